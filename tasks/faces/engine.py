"""The engine: an ID image and a selfie video in, one comparison out. The same files give the same result."""

import math
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from tasks.contracts import EngineConfig, FaceComparison, FaceQuality, FrameScore, Reason
from tasks.errors import MediaRefused
from tasks.faces.alignment import TEMPLATE_SIDE, align
from tasks.faces.detection import (
    CARD_SIDES,
    Face,
    Patch,
    cut_out,
    rivals,
    shrunk,
)
from tasks.faces.models import recogniser_named
from tasks.faces.motion import MARGIN, SIDE, motion
from tasks.faces.native import load_models
from tasks.faces.pooling import best_of_parts, pooled, spread, unit
from tasks.faces.quality import measure, weight
from tasks.faces.shown import ComparedFaces, Shown
from tasks.faces.tracking import Follower
from tasks.faces.upright import Standing, find_any_way, quarters, turned
from tasks.media import read_id_image, sample_frames
from tasks.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_QUARTERS = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
_SHOWN_SIDE = 640
_GOOD = 0.5
"""What a frame must weigh (`quality.weight`) for its part of the time not to be looked at again."""


@dataclass(frozen=True)
class Enrolled:
    """The face of one picture: `embedding`, (d,) of unit length, or why there is none."""

    embedding: "NDArray[np.float64] | None" = None
    quality: FaceQuality | None = None
    rejection: Reason | None = None
    detail: str | None = None
    shown: Shown | None = None


@dataclass(frozen=True)
class _Seen:
    """A face that takes part. `crop`: as the recogniser wants it; `near`: as `motion` wants it."""

    time_seconds: float
    face: Face
    quality: FaceQuality
    crop: "NDArray[np.uint8]"
    near: "NDArray[np.uint8]"
    shown: Shown


class _Rejected(Exception):
    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class _Stages(defaultdict[str, float]):
    """Wall seconds by stage."""

    def __init__(self) -> None:
        super().__init__(float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self[name] += time.perf_counter() - begin


class FaceEngine:
    """Warm models and the rules around them. May be used from several threads at once.

    Raises ConfigurationError when weights are missing or wrong, ComputeUnavailable when the device fails.
    """

    def __init__(self, config: EngineConfig, settings: Settings) -> None:
        self.config = config
        self._size = recogniser_named(config.recogniser).input_size
        self._models = load_models(config, settings.weights_dir, settings.device)
        self.device = self._models.device

    def compare(self, id_image: Path, selfie_video: Path, settings: Settings) -> ComparedFaces:
        """Score the two files, or say why they cannot be compared.

        `similarity` is the cosine of the reference's embedding with the probe's: the mean of the used frames'
        embeddings, weighted by quality. Raises ComputeUnavailable.
        """
        begin, stages = time.perf_counter(), _Stages()
        looked_at: list[tuple[float, str]] = []
        card: _Seen | None = None
        card_pixels: NDArray[np.uint8] | None = None
        frames: list[_Seen] = []
        seconds = 0.0
        try:
            image = self._read_card(id_image, settings, stages)
            card_pixels = _shrunk(image, _SHOWN_SIDE)
            card = self._reference(image, card_pixels, stages)
            candidates, seconds = self._candidates(selfie_video, settings, stages, looked_at)
            comparison, frames = self._score(card, candidates, stages)
        except _Rejected as exc:
            comparison = FaceComparison(
                rejection=exc.reason,
                detail=str(exc),
                reference=card.quality if card else None,
                reference_box=_rounded(card.face) if card else None,
            )
        used = {frame.time_seconds for frame in frames}
        stages["total"] = time.perf_counter() - begin
        return ComparedFaces(
            comparison.model_copy(
                update={
                    "frames_looked_at": len(looked_at),
                    "device": self.device,
                    "seconds": {name: round(spent, 4) for name, spent in stages.items()},
                },
            ),
            card=card.shown if card else None,
            card_pixels=card_pixels,
            frames=tuple(frame.shown for frame in frames),
            duration_seconds=seconds,
            looked_at=tuple((at, "used" if at in used else what) for at, what in looked_at),
        )

    def enrol(self, path: Path, settings: Settings, *, in_the_middle: bool = False) -> Enrolled:
        """The face of one picture, found, aligned and embedded as an ID image's.

        `in_the_middle`: of several faces of like size take the one next to the picture's middle, as labelled sets are
        meant, in place of none. Raises ComputeUnavailable.
        """
        try:
            image = self._read_card(path, settings, _Stages())
            seen = self._reference(image, _shrunk(image, _SHOWN_SIDE), _Stages(), in_the_middle=in_the_middle)
        except _Rejected as exc:
            return Enrolled(rejection=exc.reason, detail=str(exc))
        return Enrolled(unit(self._models.embed(seen.crop[None]))[0], seen.quality, shown=seen.shown)

    def _read_card(self, path: Path, settings: Settings, stages: _Stages) -> Image.Image:
        try:
            with stages("decode"):
                return read_id_image(path, settings)
        except MediaRefused as exc:
            raise _Rejected(Reason.ID_IMAGE_UNREADABLE, str(exc)) from exc

    def _reference(
        self, image: Image.Image, shown: "NDArray[np.uint8]", stages: _Stages, *, in_the_middle: bool = False
    ) -> _Seen:
        with stages("detect"):
            image, shown, faces = self._upright(image, shown)
            if not faces:
                raise _Rejected(Reason.NO_FACE_IN_ID_IMAGE, "No face was found on the ID image, whichever way up.")
            person = faces[0]
            others = rivals(person, faces)
            if others and in_the_middle:
                person = min((person, *others), key=lambda face: _off_middle(face, image.size))
            elif others:
                raise _Rejected(Reason.SEVERAL_FACES_IN_ID_IMAGE, "Several faces of like size are on the ID image.")
            patch = cut_out(self._models, image.size, lambda *box: _pixels(image.crop(box)), person)
        with stages("align"):
            return self._seen(patch, 0.0, 1.0, shown, max(image.size) / max(shown.shape[:2]))

    def _upright(
        self, image: Image.Image, shown: "NDArray[np.uint8]"
    ) -> "tuple[Image.Image, NDArray[np.uint8], list[Face]]":
        """The picture and its copy for people turned the way that shows the surest face, with the faces in the picture.

        Larger copies are searched when no way up shows one.
        """
        import numpy as np

        for side in CARD_SIDES:
            copy = shrunk(shown, side)[0] if side <= _SHOWN_SIDE else _shrunk(image, side)
            scale = max(image.size) / max(copy.shape[:2])
            if faces := find_any_way(self._models, copy):
                turns = quarters(faces[0])
                upright = image if (turn := _QUARTERS[turns]) is None else image.transpose(turn)
                faces = [turned(face.moved(scale), turns, image.size) for face in faces]
                return upright, np.ascontiguousarray(np.rot90(shown, turns)), faces
            if max(image.size) <= side:
                break
        return image, shown, []

    def _candidates(
        self, path: Path, settings: Settings, stages: _Stages, looked_at: list[tuple[float, str]]
    ) -> tuple[list[_Seen], float]:
        """The person's face in each frame that shows it alone, and the video's length in seconds."""
        follower, standing, seen, seconds = Follower(), Standing(self._models), list[_Seen](), 0.0
        done: set[int] = set()  # runs of parts that have shown a good frame

        def run_of(part: int) -> int:
            return part * self.config.frames_used // self.config.frames

        samples = sample_frames(path, self.config.frames, settings, lambda part: run_of(part) not in done)
        while True:
            try:
                with stages("decode"):
                    sample = next(samples, None)
            except MediaRefused as exc:
                raise _Rejected(Reason.VIDEO_UNREADABLE, str(exc)) from exc
            if sample is None:
                break
            seconds = sample.video_seconds
            with stages("detect"):
                pixels, small, faces = standing.look(sample.pixels)
                person = follower.pick(faces)
                patch = None if person is None else self._cut_out(pixels, person)
            if patch is None:
                looked_at.append((sample.time_seconds, "several faces" if faces else "no face"))
                continue
            looked_at.append((sample.time_seconds, "spare"))
            with stages("align"):
                shrink = max(pixels.shape[:2]) / max(small.shape[:2])
                seen.append(self._seen(patch, sample.time_seconds, sample.scale, small, shrink))
            if weight(seen[-1].quality) >= _GOOD:
                done.add(run_of(sample.part))
        if not follower.seen:
            raise _Rejected(Reason.NO_FACE_IN_VIDEO, f"No face was found in {len(looked_at)} frames of the video.")
        if follower.mostly_crowded or not seen:
            raise _Rejected(
                Reason.SEVERAL_FACES_IN_VIDEO,
                f"Several faces of like size are in {follower.crowded} of {follower.seen} frames with a face.",
            )
        return seen, seconds

    def _cut_out(self, pixels: "NDArray[np.uint8]", face: Face) -> Patch:
        import numpy as np

        height, width = pixels.shape[:2]

        def part_of(left: int, top: int, right: int, bottom: int) -> "NDArray[np.uint8]":
            return np.ascontiguousarray(pixels[top:bottom, left:right])

        return cut_out(self._models, (width, height), part_of, face)

    def _score(self, card: _Seen, candidates: list[_Seen], stages: _Stages) -> tuple[FaceComparison, list[_Seen]]:
        import numpy as np

        chosen = best_of_parts(
            [seen.time_seconds for seen in candidates],
            [weight(seen.quality) for seen in candidates],
            self.config.frames_used,
        )
        frames = [candidates[index] for index in chosen]
        weights = np.array([weight(seen.quality) for seen in frames])
        weights /= weights.sum()
        with stages("embed"):
            embeddings = unit(self._models.embed(np.stack([card.crop, *(seen.crop for seen in frames)])))
        reference, probes = embeddings[0], embeddings[1:]
        with stages("motion"):
            moved = motion([seen.near for seen in frames])
        real = None
        if self._models.is_real is not None:
            with stages("anti_spoofing"):
                real = float(np.mean([self._is_real(seen.shown) for seen in frames]))
        comparison = FaceComparison(
            similarity=float(np.clip(pooled(probes, weights.tolist()) @ reference, -1, 1)),
            reference=card.quality,
            reference_box=_rounded(card.face),
            frames=tuple(
                FrameScore(
                    time_seconds=round(seen.time_seconds, 3),
                    similarity=float(score),
                    weight=float(share),
                    box=_rounded(seen.face),
                    quality=seen.quality,
                )
                for seen, score, share in zip(frames, probes @ reference, weights, strict=True)
            ),
            spread=spread(probes),
            motion=round(moved, 4),
            anti_spoofing=real,
        )
        return comparison, frames

    def _is_real(self, shown: Shown) -> bool:
        left, top, width, height = (round(value) for value in shown.box)
        assert self._models.is_real is not None  # noqa: S101 - for the type checker; the caller looked
        return self._models.is_real(shown.pixels, (left, top, max(1, width), max(1, height)))

    def _seen(self, patch: Patch, moment: float, scale: float, small: "NDArray[np.uint8]", shrink: float) -> _Seen:
        """`scale`: the file's pixels for one of the picture's. `shrink`: the picture's for one of its small copy's."""
        points = patch.face.points
        template = align(patch.pixels, points, (TEMPLATE_SIDE, TEMPLATE_SIDE))
        crop = template if self._size == template.shape[1::-1] else align(patch.pixels, points, self._size)
        face = patch.in_picture
        in_small = face.moved(1 / shrink)
        return _Seen(
            moment,
            face.moved(scale),
            measure(points, face.confidence, template, patch.scale * scale),
            crop,
            align(patch.pixels, points, (SIDE, SIDE), MARGIN),
            Shown(small, in_small.box, in_small.points, crop),
        )


def _pixels(image: Image.Image) -> "NDArray[np.uint8]":
    import numpy as np

    return np.asarray(image)


def _shrunk(image: Image.Image, side: int) -> "NDArray[np.uint8]":
    """A picture's copy with its longest side at most `side`. The whole is never copied out of Pillow."""
    factor = max(image.size) // side
    return shrunk(_pixels(image.reduce(factor) if factor > 1 else image), side)[0]


def _off_middle(face: Face, size: tuple[int, int]) -> float:
    left, top, width, height = face.box
    return math.hypot(left + width / 2 - size[0] / 2, top + height / 2 - size[1] / 2)


def _rounded(face: Face) -> tuple[float, float, float, float]:
    left, top, width, height = (round(value, 1) for value in face.box)
    return left, top, width, height


_engines: dict[str, FaceEngine] = {}
_loading = threading.Lock()


def load_engine(config: EngineConfig, settings: Settings) -> FaceEngine:
    """The process's warm engine for this configuration; loaded once, then kept.

    Raises ConfigurationError and ComputeUnavailable as `FaceEngine` does.
    """
    name = f"{config.fingerprint()} {settings.weights_dir} {settings.device}"
    with _loading:
        if name not in _engines:
            _engines[name] = FaceEngine(config, settings)
        return _engines[name]
