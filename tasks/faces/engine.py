"""The engine: an ID image and a selfie video in, one comparison out. The same files give the same result."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.contracts import EngineConfig, FaceComparison, FrameScore, Reason
from tasks.errors import MediaRefused
from tasks.faces.alignment import align
from tasks.faces.detection import SURE_CONFIDENCE, Face, detect, has_rival
from tasks.faces.models import recogniser_named
from tasks.faces.native import device_of, load_models
from tasks.faces.recognition import embed, unit
from tasks.media import read_id_image, sample_frames
from tasks.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PORTRAIT_SIDE = 360
PORTRAIT_MARGIN = 0.2
"""A portrait for people shows more around the face than the recogniser's crop does."""


@dataclass(frozen=True)
class ComparedFaces:
    """A comparison, and what a picture of it needs: (360, 360, 3) BGR portraits, None where no face was found."""

    comparison: FaceComparison
    card_portrait: "NDArray[np.uint8] | None" = None
    best_portrait: "NDArray[np.uint8] | None" = None


@dataclass(frozen=True)
class _Seen:
    """One face that takes part: when, how sure, the recogniser's crop, the portrait for people."""

    time_seconds: float
    confidence: float
    crop: "NDArray[np.uint8]"
    portrait: "NDArray[np.uint8]"


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
    """Warm models and the rules around them.

    Raises ConfigurationError when weights are missing or wrong, ComputeUnavailable when the device fails.
    """

    def __init__(self, config: EngineConfig, weights_dir: Path) -> None:
        self.config = config
        self._size = recogniser_named(config.recogniser).input_size
        self._detector, recogniser = load_models(config, weights_dir)
        self.device = device_of(recogniser, config)

    def compare(self, id_image: Path, selfie_video: Path, settings: Settings) -> ComparedFaces:
        """Score the two files, or say why they cannot be judged.

        The probe's embedding is the mean of the frames' unit embeddings, of unit length again; `similarity` is its
        cosine with the reference's. Raises ComputeUnavailable.
        """
        begin, stages, looked_at = time.perf_counter(), _Stages(), 0
        card: _Seen | None = None
        comparison: FaceComparison
        best: _Seen | None = None
        try:
            card = self._card(id_image, settings, stages)
            frames, looked_at = self._video(selfie_video, settings, stages)
            with stages("embed"):
                embeddings = embed(self.config.recogniser, [card.crop, *(frame.crop for frame in frames)])
            reference, each = embeddings[0], embeddings[1:]
            similarities = each @ reference
            best = frames[int(similarities.argmax())]
            comparison = FaceComparison(
                similarity=float(unit(each.mean(axis=0)) @ reference),
                frames=tuple(
                    FrameScore(time_seconds=frame.time_seconds, similarity=float(score), confidence=frame.confidence)
                    for frame, score in zip(frames, similarities, strict=True)
                ),
            )
        except _Rejected as exc:
            comparison = FaceComparison(rejection=exc.reason, detail=str(exc))
        stages["total"] = time.perf_counter() - begin
        return ComparedFaces(
            comparison.model_copy(
                update={"frames_looked_at": looked_at, "device": self.device, "seconds": dict(stages)},
            ),
            card.portrait if card else None,
            best.portrait if best else None,
        )

    def _card(self, path: Path, settings: Settings, stages: _Stages) -> _Seen:
        import numpy as np

        try:
            with stages("decode"):
                image = np.ascontiguousarray(np.asarray(read_id_image(path, settings))[:, :, ::-1])
        except MediaRefused as exc:
            raise _Rejected(Reason.ID_IMAGE_UNREADABLE, str(exc)) from exc
        with stages("detect"):
            image, faces = self._upright(image)
            if not faces:
                raise _Rejected(Reason.NO_FACE_IN_ID_IMAGE, "No face was found on the ID image, whichever way up.")
            if has_rival(faces):
                raise _Rejected(Reason.SEVERAL_FACES_IN_ID_IMAGE, "Several faces of like size are on the ID image.")
            return self._seen(image, faces[0], 0.0)

    def _upright(self, image: "NDArray[np.uint8]") -> "tuple[NDArray[np.uint8], list[Face]]":
        """Turned the way that shows the surest face; other ways are tried only when upright shows none sure."""
        import numpy as np

        faces = detect(self._detector, self.config.detector, image)
        if faces and faces[0].confidence >= SURE_CONFIDENCE:
            return image, faces
        turned = [np.ascontiguousarray(np.rot90(image, turns)) for turns in (1, 2, 3)]
        found = [(image, faces), *((each, detect(self._detector, self.config.detector, each)) for each in turned)]
        return max(found, key=lambda pair: pair[1][0].confidence if pair[1] else 0.0)

    def _video(self, path: Path, settings: Settings, stages: _Stages) -> tuple[list[_Seen], int]:
        seen: list[_Seen] = []
        looked_at = crowded = 0
        samples = sample_frames(path, self.config.frames, settings)
        while True:
            try:
                with stages("decode"):
                    sample = next(samples, None)
            except MediaRefused as exc:
                raise _Rejected(Reason.VIDEO_UNREADABLE, str(exc)) from exc
            if sample is None:
                break
            looked_at += 1
            with stages("detect"):
                faces = detect(self._detector, self.config.detector, sample[1])
                crowded += has_rival(faces)
                if faces:
                    seen.append(self._seen(sample[1], faces[0], sample[0]))
        if not seen:
            raise _Rejected(Reason.NO_FACE_IN_VIDEO, f"No face was found in {looked_at} frames of the selfie video.")
        if crowded > len(seen) / 2:
            raise _Rejected(
                Reason.SEVERAL_FACES_IN_VIDEO, f"Several faces of like size are in {crowded} of {len(seen)} frames."
            )
        return seen, looked_at

    def _seen(self, image: "NDArray[np.uint8]", face: Face, moment: float) -> _Seen:
        return _Seen(
            moment,
            face.confidence,
            align(image, face.points, self._size),
            align(image, face.points, (PORTRAIT_SIDE, PORTRAIT_SIDE), PORTRAIT_MARGIN),
        )


_engines: dict[str, FaceEngine] = {}
_loading = threading.Lock()


def load_engine(config: EngineConfig, settings: Settings) -> FaceEngine:
    """The process's warm engine for this configuration; loaded once, then kept.

    Raises ConfigurationError and ComputeUnavailable as `FaceEngine` does.
    """
    key = f"{config.fingerprint()} {settings.weights_dir}"
    with _loading:
        if key not in _engines:
            _engines[key] = FaceEngine(config, settings.weights_dir)
        return _engines[key]
