"""Plain data that crosses a boundary: flow parameters, task results, database rows, API answers.

Nothing here holds a picture, an embedding or a person's name, so all of it may be seen on the Prefect server.
"""

import hashlib
import json
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

SESSION_ID_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,63}$"

SessionId = Annotated[str, StringConstraints(pattern=SESSION_ID_PATTERN)]
AttemptNumber = Annotated[int, Field(ge=1, le=1000)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Plain(BaseModel):
    """Base of the contracts: frozen, and closed to unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FileKind(StrEnum):
    """The two files that an attempt needs."""

    ID_IMAGE = "id_image"
    SELFIE_VIDEO = "selfie_video"


class DecisionKind(StrEnum):
    """What a session can end in."""

    MATCH = "match"
    REVIEW = "review"
    NO_MATCH = "no_match"
    REJECTED = "rejected"
    EXPIRED = "expired"


class Reason(StrEnum):
    """Why: one stable code for each decision, for client programs and the audit."""

    SIMILARITY_SUFFICIENT = "SIMILARITY_SUFFICIENT"
    SIMILARITY_IN_REVIEW_BAND = "SIMILARITY_IN_REVIEW_BAND"
    SIMILARITY_INSUFFICIENT = "SIMILARITY_INSUFFICIENT"
    ID_IMAGE_UNREADABLE = "ID_IMAGE_UNREADABLE"
    NO_FACE_IN_ID_IMAGE = "NO_FACE_IN_ID_IMAGE"
    SEVERAL_FACES_IN_ID_IMAGE = "SEVERAL_FACES_IN_ID_IMAGE"
    VIDEO_UNREADABLE = "VIDEO_UNREADABLE"
    NO_FACE_IN_VIDEO = "NO_FACE_IN_VIDEO"
    SEVERAL_FACES_IN_VIDEO = "SEVERAL_FACES_IN_VIDEO"
    ID_IMAGE_MISSING = "ID_IMAGE_MISSING"
    SELFIE_VIDEO_MISSING = "SELFIE_VIDEO_MISSING"
    BOTH_FILES_MISSING = "BOTH_FILES_MISSING"


class StoredFile(Plain):
    """A file in storage. Objects are written once and never overwritten, so the key names the bytes."""

    storage_key: Annotated[str, Field(min_length=1, max_length=512, description="Key in the object store.")]
    sha256: Annotated[Sha256, Field(description="SHA-256 of the file's bytes, lower-case hexadecimal.")]
    size_bytes: Annotated[int, Field(ge=1, description="Size in bytes.")]


class EngineConfig(Plain):
    """All that changes a comparison score, and nothing else."""

    recogniser: Annotated[str, Field(description="DeepFace's name of the face recognition model.")] = "SFace"
    detector: Annotated[str, Field(description="DeepFace's name of the face detector.")] = "yunet"
    backend: Annotated[
        Literal["onnx", "tensorflow"], Field(description="What runs a model that DeepFace has in several forms.")
    ] = "onnx"
    frames: Annotated[int, Field(ge=1, le=100, description="Video frames looked at, evenly spaced.")] = 10
    weights_sha256: Annotated[
        dict[str, Sha256], Field(description="SHA-256 of each weight file in use, by file name.")
    ] = {}
    algorithm: Annotated[int, Field(ge=1, description="Version of kycflow's own sampling, alignment, pooling.")] = 1

    def fingerprint(self) -> str:
        """SHA-256 over the configuration's canonical JSON, lower-case hexadecimal."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def comparison_key(reference_sha256: str, probe_sha256: str, engine: EngineConfig) -> str:
    """Name of a comparison: SHA-256 over both files' SHA-256 and the engine's fingerprint."""
    return hashlib.sha256(f"{reference_sha256}\n{probe_sha256}\n{engine.fingerprint()}".encode()).hexdigest()


class FrameScore(Plain):
    """One video frame that took part in the comparison."""

    time_seconds: Annotated[float, Field(ge=0, description="Position in the video.")]
    similarity: Annotated[float, Field(ge=-1.0001, le=1.0001, description="Cosine with the reference.")]
    confidence: Annotated[float, Field(ge=0, le=1.0001, description="Of the face detector.")]


class FaceComparison(Plain):
    """What the engine says of one pair of files.

    Either `similarity` is a number (cosine, -1 to 1) or `rejection` says why the media cannot be judged.
    """

    similarity: Annotated[float | None, Field(ge=-1.0001, le=1.0001)] = None
    rejection: Reason | None = None
    detail: Annotated[str | None, Field(description="More about a rejection, for people. Never file content.")] = None
    frames: tuple[FrameScore, ...] = ()
    frames_looked_at: int = 0
    device: str = "cpu"
    seconds: Annotated[dict[str, float], Field(description="Wall time by stage: decode, detect, embed, total.")] = {}

    @model_validator(mode="after")
    def _scored_or_rejected(self) -> Self:
        if (self.similarity is None) == (self.rejection is None):
            raise ValueError("A comparison has either a similarity or a rejection.")
        return self


class Comparison(Plain):
    """A stored comparison row, finished."""

    comparison_key: Sha256
    result: FaceComparison
    engine: EngineConfig
    picture_key: Annotated[str | None, Field(description="Storage key of card face and best frame, side by side.")]
    computations: Annotated[int, Field(ge=1, description="How often its computation was started.")]
    started_at: datetime
    finished_at: datetime


class Thresholds(Plain):
    """Bounds on the similarity: match at or above `match`, review at or above `review`, else no match."""

    match: Annotated[float, Field(ge=-1, le=1)]
    review: Annotated[float, Field(ge=-1, le=1)]


class Verdict(Plain):
    """Pure judgement: what, and why."""

    decision: DecisionKind
    reason: Reason


class Decision(Plain):
    """A recorded decision: the one answer of a session's attempt."""

    session_id: SessionId
    attempt: AttemptNumber
    decision: DecisionKind
    reason: Reason
    similarity: float | None = None
    thresholds: Thresholds | None = None
    comparison_key: Sha256 | None = None
    decided_at: datetime


class FilePair(Plain):
    """What is there of an attempt's two files."""

    id_image: StoredFile | None = None
    selfie_video: StoredFile | None = None

    @property
    def complete(self) -> bool:
        """Whether both files are there."""
        return self.id_image is not None and self.selfie_video is not None

    def of(self, kind: FileKind) -> StoredFile | None:
        """The file of that kind, if it is there."""
        return self.id_image if kind is FileKind.ID_IMAGE else self.selfie_video

    def missing(self) -> Reason | None:
        """The reason code that names what is missing; None when nothing is."""
        match (self.id_image, self.selfie_video):
            case (None, None):
                return Reason.BOTH_FILES_MISSING
            case (None, _):
                return Reason.ID_IMAGE_MISSING
            case (_, None):
                return Reason.SELFIE_VIDEO_MISSING
            case _:
                return None


class Attempt(Plain):
    """One attempt of a session, as stored: its deadline, its newest files, its decision if there is one."""

    session_id: SessionId
    attempt: AttemptNumber
    created_at: datetime
    deadline_at: datetime
    files: FilePair = FilePair()
    decision: Decision | None = None

    @property
    def status(self) -> Literal["awaiting_files", "in_progress", "decided"]:
        """Derived from what is stored, so that it cannot disagree with it."""
        if self.decision is not None:
            return "decided"
        return "in_progress" if self.files.complete else "awaiting_files"

    def overdue(self) -> bool:
        """Whether its deadline is over."""
        return datetime.now(UTC) >= self.deadline_at

    def with_files(self, files: FilePair) -> Self:
        """The same attempt with other files."""
        return self.model_copy(update={"files": files})
