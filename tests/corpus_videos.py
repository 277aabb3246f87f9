"""Odd selfie videos, each with the reason of the decision that it gives beside the genuine card."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image, ImageDraw, ImageFilter

from tasks.contracts import Reason
from tasks.faces.detection import Face, find_faces
from tasks.faces.models import engine_config
from tasks.faces.native import load_models
from tests.filmed_pictures import filmed
from tests.media_corpus import RATE, SIZE, Case, Footage, Picture, pasted, resized, write_clip
from tests.remuxed import hide_beginning, put_before, with_matrix, with_pixel_shape

MATCH, STILL = Reason.SIMILARITY_SUFFICIENT, Reason.STILL_PICTURE_AS_VIDEO
UNREADABLE, NO_FACE = Reason.VIDEO_UNREADABLE, Reason.NO_FACE_IN_VIDEO

BLACK: Picture = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
GREY: Picture = np.full_like(BLACK, 120)

Builder = Callable[[Footage, Path], object]
Change = Callable[[Sequence[Picture]], Sequence[Picture]]


def _clip(
    change: Change = lambda clip: clip,
    *,
    kind: str = "mp4",
    rate: int = RATE,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
) -> Builder:
    """The man's video, changed."""
    return lambda footage, path: write_clip(
        path, change(footage.clip), kind=kind, rate=rate, codec=codec, pix_fmt=pix_fmt, container_options=options
    )


def _each(change: Callable[[Picture], Picture]) -> Change:
    return lambda clip: [change(picture) for picture in clip]


# Containers, codecs, times


def _turned_by_metadata(footage: Footage, path: Path, clockwise: int) -> None:
    """As phones write it: frames that lie on their side, and a matrix that says how to show them."""
    write_clip(path, [np.rot90(picture, clockwise) for picture in footage.clip], kind="mp4")
    cosine, sine = ((1, 0), (0, 1), (-1, 0), (0, -1))[clockwise]
    with_matrix(path, (cosine, sine, -sine, cosine))


def _mirrored_by_metadata(footage: Footage, path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Frames that are mirrored, and a matrix that undoes it."""
    mirror = np.flipud if matrix[3] < 0 else np.fliplr
    with_matrix(write_clip(path, [mirror(picture) for picture in footage.clip], kind="mp4"), matrix)


def _anamorphic(footage: Footage, path: Path, shape: Fraction) -> None:
    """Pixels that are not square."""
    width, height = round(SIZE[0] / max(1.0, float(shape))), round(SIZE[1] * min(1.0, float(shape)))
    narrow = [resized(picture, width, height) for picture in footage.clip]
    with_pixel_shape(write_clip(path.with_suffix(".mp4"), narrow, kind="mp4"), shape).rename(path)


def _behind_another_track(footage: Footage, path: Path, frames: int, *, enabled: bool) -> None:
    """A preview, or a depth map, is the first track."""
    put_before(write_clip(path, footage.clip, kind="mov"), [np.zeros((60, 80, 3), np.uint8)] * frames, enabled=enabled)


def _trimmed(footage: Footage, path: Path) -> None:
    """An edit list hides a second and a half, in which a picture of the woman is filmed."""
    woman = [pasted(GREY, footage.woman, 60 + 2 * index, 10 + index) for index in range(15)]
    hide_beginning(write_clip(path, woman + footage.clip, kind="mp4"), 1.5)


def _sound(footage: Footage, path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _unknown_codec(footage: Footage, path: Path) -> None:
    """The container's four letters name a codec that FFmpeg has never heard of."""
    path.write_bytes(write_clip(path, footage.clip, kind="mp4").read_bytes().replace(b"avc1", b"zzzz"))


def _gif(footage: Footage, path: Path) -> None:
    first, *others = (Image.fromarray(picture) for picture in footage.clip[::4])
    first.save(path, "GIF", save_all=True, append_images=others, duration=100)


def _irregular(footage: Footage, path: Path) -> None:
    steps = np.resize([0.01, 0.3, 0.02, 0.07], len(footage.clip))
    write_clip(path, footage.clip, kind="mp4", times=np.cumsum(steps).tolist())


def _slow(footage: Footage, path: Path) -> None:
    write_clip(path, footage.frames[::2], kind="mp4", rate=1)


def _four_k(clip: Sequence[Picture]) -> Sequence[Picture]:
    """Four frames of 3840 x 2160, grey at the sides."""
    wall = np.full((2160, 3840, 3), 90, np.uint8)
    return [pasted(wall, resized(picture, 2880, 2160), 480, 0) for picture in clip[:8:2]]


def write_laborious(footage: Footage, path: Path) -> None:
    """A minute of 4K with 240 frames a second, 18 MB, in which every frame leads on from the first alone."""
    unit, codec = Fraction(1, 240), "libvpx"
    encoder = av.CodecContext.create(codec, "w")
    assert isinstance(encoder, VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 3840, 2160, "yuv420p", unit
    encoder.options = {"deadline": "realtime", "cpu-used": "8"}
    frame = VideoFrame.from_ndarray(_four_k(footage.clip)[0], format="rgb24")
    contents = []
    for moment in range(2):
        frame.pts, frame.time_base = moment, unit
        contents += [bytes(packet) for packet in encoder.encode(frame)]
    contents += [bytes(packet) for packet in encoder.encode()]
    with av.open(str(path), "w", format="webm") as container:
        stream = container.add_stream(codec, rate=240)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = 3840, 2160, "yuv420p"
        for moment in range(14_300):
            packet = av.Packet(contents[min(moment, 1)])
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, moment, moment, unit
            packet.is_keyframe = moment == 0
            container.mux(packet)


# Who is seen


def _side_by_side(footage: Footage, path: Path) -> None:
    wide = np.concatenate([BLACK, BLACK], axis=1)
    pictures = [
        pasted(pasted(wide, picture, 0, 0), footage.woman, 400 + index, 20)
        for index, picture in enumerate(footage.clip)
    ]
    write_clip(path, pictures, kind="mp4")


def _with_woman(footage: Footage, path: Path, width: int, left: int, top: int, frames: slice) -> None:
    """Her picture is beside the man in some frames."""
    woman = resized(footage.woman, width, width * footage.woman.shape[0] // footage.woman.shape[1])
    clip = list(footage.clip)
    for index in range(len(clip))[frames]:
        clip[index] = pasted(clip[index], woman, left, top)
    write_clip(path, clip, kind="mp4")


def _woman_later(footage: Footage, path: Path) -> None:
    woman = [pasted(GREY, footage.woman, 60 + 2 * index, 10 + index) for index in range(10)]
    write_clip(path, footage.clip[:10] + woman, kind="mp4")


# Pictures held before a camera


def _filmed_picture(footage: Footage, path: Path, frame: int, top: int, sway: int) -> None:
    """A frame of the man's video; higher up it leaves the camera's view now and then."""
    write_clip(path, filmed(footage.clip[frame], BLACK, 0, top, sway), kind="mp4")


def _held_picture(footage: Footage, path: Path, width: int) -> None:
    """A small print of his portrait, with a room behind it that does not move."""
    noise = np.random.default_rng(3).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    portrait = np.asarray(footage.portraits[0].resize((width, round(width * 1.41))))
    write_clip(path, filmed(portrait, resized(noise, *SIZE), 90, 12), kind="mp4")


# Masks


def write_masked(footage: Footage, path: Path) -> None:
    """A surgical mask, from the nose down, that moves with the face."""
    models = load_models(engine_config(footage.settings), footage.settings.weights_dir)
    write_clip(path, [_masked(picture, find_faces(models, picture)[0]) for picture in footage.clip], kind="mp4")


def _masked(picture: Picture, face: Face) -> Picture:
    right, left, nose, mouth_right, mouth_left = face.points
    across, down = left - right, (mouth_right + mouth_left - right - left) / 2
    outline = (
        nose - 0.25 * down,
        nose + 0.75 * across,
        mouth_left + 0.35 * across + 0.1 * down,
        mouth_left + 0.75 * down,
        mouth_right + 0.75 * down,
        mouth_right - 0.35 * across + 0.1 * down,
        nose - 0.75 * across,
    )
    image = Image.fromarray(picture)
    ImageDraw.Draw(image).polygon([(float(x), float(y)) for x, y in outline], fill=(190, 215, 225))
    return np.asarray(image)


# How well it is seen


def _light(times: float, plus: float) -> Change:
    """As a camera records it that takes too little or too much light: values beyond its range are lost."""
    return _each(lambda picture: np.clip(picture * times + plus, 0, 255).astype(np.uint8))


def _blurred(radius: float) -> Change:
    return _each(lambda picture: np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius))))


def _scaled(width: int, height: int) -> Change:
    return _each(lambda picture: resized(picture, width, height))


VIDEOS = [
    *(Case(f"rotation-{90 * turns}", partial(_turned_by_metadata, clockwise=turns), MATCH) for turns in range(4)),
    Case("mirrored-by-metadata", partial(_mirrored_by_metadata, matrix=(-1, 0, 0, 1)), MATCH),
    Case("flipped-by-metadata", partial(_mirrored_by_metadata, matrix=(1, 0, 0, -1)), MATCH),
    Case("mirrored", _clip(_each(lambda picture: picture[:, ::-1])), MATCH),
    # Containers and codecs
    Case("h264-mp4", _clip(), MATCH),
    Case("h264-mp4-fragmented", _clip(options={"movflags": "frag_keyframe+empty_moov"}), MATCH),
    Case("h264-mov", _clip(kind="mov"), MATCH),
    Case("h264-mkv", _clip(kind="matroska"), MATCH),
    Case("hevc-mp4", _clip(codec="libx265"), MATCH),
    Case("vp8-webm", _clip(kind="webm", codec="libvpx"), MATCH),
    Case("vp9-webm", _clip(kind="webm", codec="libvpx-vp9"), MATCH),
    Case("av1-webm", _clip(kind="webm", codec="libsvtav1"), MATCH),
    Case("mjpeg-mov", _clip(kind="mov", codec="mjpeg", pix_fmt="yuvj420p"), MATCH),
    Case("ffv1-mkv", _clip(kind="matroska", codec="ffv1"), UNREADABLE, "VIDEO_UNREADABLE", "ffv1"),
    Case("mpeg2-mp4", _clip(codec="mpeg2video", rate=25), UNREADABLE, "VIDEO_UNREADABLE", "mpeg2video"),
    Case("unknown-codec", _unknown_codec, UNREADABLE, "VIDEO_UNREADABLE", "not supported"),
    Case("avi", _clip(kind="avi", codec="mpeg4"), UNREADABLE, "NOT_A_VIDEO", "MP4, MOV, WebM"),
    Case("mpeg-ts", _clip(kind="mpegts"), UNREADABLE, "NOT_A_VIDEO"),
    Case("animated-gif", _gif, UNREADABLE, "NOT_A_VIDEO"),
    Case("sound-only", _sound, UNREADABLE, "VIDEO_WITHOUT_FRAMES", "sound only"),
    Case("empty", lambda footage, path: path.touch(), UNREADABLE, "EMPTY"),
    Case("text", lambda footage, path: path.write_text("No video.\n"), UNREADABLE, "NOT_A_VIDEO"),
    Case("jpeg", lambda footage, path: path.write_bytes(footage.genuine_card.read_bytes()), UNREADABLE, "NOT_A_VIDEO"),
    Case("preview-track-first", partial(_behind_another_track, frames=1, enabled=True), MATCH),
    Case("depth-track-first", partial(_behind_another_track, frames=20, enabled=False), MATCH),
    # Times and sizes
    Case("trimmed", _trimmed, MATCH),
    Case("wide-pixels", partial(_anamorphic, shape=Fraction(2)), MATCH),
    Case("tall-pixels", partial(_anamorphic, shape=Fraction(1, 2)), MATCH),
    Case("single-frame", _clip(lambda clip: clip[:1]), STILL, says="1 frames"),
    Case("two-frames", _clip(lambda clip: [clip[0], clip[6]]), MATCH),
    Case("one-a-second", _slow, MATCH),
    Case("irregular-times", _irregular, MATCH),
    Case(
        "240-a-second",
        _clip(lambda clip: [each for each in _scaled(176, 144)(clip) for _ in range(12)], rate=240),
        MATCH,
    ),
    Case("too-long", _clip(lambda clip: [BLACK] * 62, rate=1), UNREADABLE, "VIDEO_TOO_LONG", "60 seconds"),
    Case("tiny", _clip(_scaled(96, 72)), Reason.FACE_TOO_SMALL, says="16 is needed"),
    Case("tinier", _clip(_scaled(48, 36)), NO_FACE),
    Case(
        "far-away",
        _clip(_each(lambda picture: pasted(GREY, resized(picture, 112, 84), 130, 100))),
        Reason.FACE_TOO_SMALL,
    ),
    Case("huge", _clip(_four_k), MATCH),
    Case(
        "too-many-pixels",
        _clip(lambda clip: [np.zeros((2176, 3840, 3), np.uint8)]),
        UNREADABLE,
        "VIDEO_TOO_MANY_PIXELS",
        "3840 x 2176",
    ),
    Case("ribbon", _clip(lambda clip: [np.zeros((16, 8000, 3), np.uint8)] * 2), NO_FACE),
    # Who is seen
    Case("black", _clip(lambda clip: [BLACK] * 20), NO_FACE, says="No face"),
    Case("black-at-first", _clip(lambda clip: [BLACK] * 10 + list(clip[:10])), MATCH),
    Case("black-now-and-then", _clip(lambda clip: [BLACK, *clip[:6], BLACK, BLACK, *clip[6:], BLACK]), MATCH),
    Case("side-by-side", _side_by_side, Reason.SEVERAL_FACES_IN_VIDEO, says="frames with a face"),
    Case("woman-later", _woman_later, Reason.DIFFERENT_PEOPLE_IN_VIDEO),
    Case("woman-on-a-poster", partial(_with_woman, width=50, left=262, top=20, frames=slice(None)), MATCH),
    Case("woman-for-a-while", partial(_with_woman, width=112, left=205, top=60, frames=slice(12, 18)), MATCH),
    Case("one-frame-repeated", _clip(lambda clip: list(clip[:1]) * 20), STILL),
    *(
        Case(f"filmed-picture-{frame}-{sway}", partial(_filmed_picture, frame=frame, top=top, sway=sway), STILL)
        for frame, top, sway in ((0, 0, 4), (4, -12, 4), (4, -12, 12), (9, -12, 4), (14, -12, 18))
    ),
    *(Case(f"held-picture-{width}", partial(_held_picture, width=width), STILL) for width in (110, 140)),
    # Occlusion is not measured: SFace knows him by what is left of his face.
    Case("mask", write_masked, MATCH),
    # How well
    Case("blurred", _clip(_blurred(5)), Reason.FACE_TOO_BLURRED, says="Sharpness"),
    Case("blurred-beyond-a-face", _clip(_blurred(12)), NO_FACE),
    Case("dark", _clip(_light(0.4, -30)), Reason.FACE_TOO_DARK, says="Brightness"),
    Case("overexposed", _clip(_light(0.5, 190)), Reason.FACE_TOO_BRIGHT, says="Brightness"),
    Case("faded", _clip(_light(0.1, 110)), NO_FACE),
]
