"""kycflow's own pipeline, as the evaluation runs it: what the engine makes of an ID image."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.contracts import Bounds
from tasks.evaluation.gallery import Pipeline
from tasks.evaluation.templates import Template
from tasks.judgement import bounds_for, face_complaint
from tasks.settings import Settings

if TYPE_CHECKING:
    from tasks.faces.engine import FaceEngine

NAME = "kycflow"


def own_pipeline(engine: "FaceEngine", settings: Settings) -> Pipeline:
    """The engine's templates. `make` raises ComputeUnavailable."""
    # Beside the engine's configuration, these change which pictures are read. A labelled picture is of one person: the
    # one in the middle, when others of like size are on it.
    limits = f"{settings.max_id_image_bytes} {settings.max_id_image_pixels}"
    fingerprint = hashlib.sha256(f"{NAME} {engine.config.fingerprint()} {limits}".encode()).hexdigest()
    bounds = bounds_for(settings)
    return Pipeline(
        NAME,
        fingerprint,
        lambda path: _enrolled(engine, path, settings),
        lambda template: _complaint(template, bounds),
    )


def _enrolled(engine: "FaceEngine", path: Path, settings: Settings) -> Template:
    import numpy as np

    from tasks.evaluation.worst import as_jpeg

    enrolled = engine.enrol(path, settings, in_the_middle=True)
    if enrolled.embedding is None:
        return Template(np.empty((0, 0)), str(enrolled.rejection), enrolled.quality)
    crop = None if enrolled.shown is None else as_jpeg(enrolled.shown.aligned)
    return Template(enrolled.embedding[np.newaxis], None, enrolled.quality, crop)


def _complaint(template: Template, bounds: Bounds) -> str | None:
    """The bound for which a session with such an ID image would be rejected."""
    if template.quality is None:
        return None
    found = face_complaint(template.quality, bounds, bounds.min_id_eye_distance)
    return None if found is None else str(found[0])
