"""Plain data that crosses a boundary: flow parameters, task results, database rows, API answers.

Nothing here holds a picture, an embedding or a person's name, so all of it may be seen on the Prefect server.
"""

import hashlib
import json
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Literal, Self
from uuid import UUID

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
    DIFFERENT_PEOPLE_IN_VIDEO = "DIFFERENT_PEOPLE_IN_VIDEO"
    STILL_PICTURE_AS_VIDEO = "STILL_PICTURE_AS_VIDEO"
    PRESENTATION_ATTACK_SUSPECTED = "PRESENTATION_ATTACK_SUSPECTED"
    # The face in the selfie video: record it again, closer, steadier, in better light, looking at the camera.
    FACE_TOO_SMALL = "FACE_TOO_SMALL"
    FACE_TOO_BLURRED = "FACE_TOO_BLURRED"
    FACE_TOO_DARK = "FACE_TOO_DARK"
    FACE_TOO_BRIGHT = "FACE_TOO_BRIGHT"
    FACE_LOW_CONTRAST = "FACE_LOW_CONTRAST"
    FACE_TURNED_AWAY = "FACE_TURNED_AWAY"
    # The same for the portrait on the ID card.
    ID_IMAGE_FACE_TOO_SMALL = "ID_IMAGE_FACE_TOO_SMALL"
    ID_IMAGE_FACE_TOO_BLURRED = "ID_IMAGE_FACE_TOO_BLURRED"
    ID_IMAGE_FACE_TOO_DARK = "ID_IMAGE_FACE_TOO_DARK"
    ID_IMAGE_FACE_TOO_BRIGHT = "ID_IMAGE_FACE_TOO_BRIGHT"
    ID_IMAGE_FACE_LOW_CONTRAST = "ID_IMAGE_FACE_LOW_CONTRAST"
    ID_IMAGE_FACE_TURNED_AWAY = "ID_IMAGE_FACE_TURNED_AWAY"
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
        Literal["onnx", "tensorflow", "pytorch", "dlib"], Field(description="What runs the recogniser.")
    ] = "onnx"
    frames: Annotated[int, Field(ge=1, le=100, description="Video frames looked at, spread over its time.")] = 10
    frames_used: Annotated[int, Field(ge=1, le=100, description="Of these, the frames compared at most.")] = 3
    anti_spoofing: Annotated[bool, Field(description="Whether DeepFace's anti-spoofing looks at the frames used.")] = (
        False
    )
    weights_sha256: Annotated[
        dict[str, Sha256], Field(description="SHA-256 of each weight file in use, by file name.")
    ] = {}
    algorithm: Annotated[int, Field(ge=1, description="Version of kycflow's own sampling, alignment, pooling.")] = 3

    def fingerprint(self) -> str:
        """SHA-256 over the configuration's canonical JSON, lower-case hexadecimal."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def comparison_key(reference_sha256: str, probe_sha256: str, engine: EngineConfig) -> str:
    """Name of a comparison: SHA-256 over both files' SHA-256 and the engine's fingerprint."""
    return hashlib.sha256(f"{reference_sha256}\n{probe_sha256}\n{engine.fingerprint()}".encode()).hexdigest()


Box = tuple[float, float, float, float]
"""Left, top, width, height, in pixels of an upright picture."""


class FaceQuality(Plain):
    """What was measured on one face. `tasks/faces/quality.py` says how."""

    eye_distance: Annotated[float, Field(ge=0, description="Between the eyes, in pixels of the file's own picture.")]
    sharpness: Annotated[float, Field(ge=0, description="Of the aligned face: the Laplacian's deviation over its own.")]
    brightness: Annotated[float, Field(ge=0, le=1, description="Mean luminance of the face, 0 black to 1 white.")]
    contrast: Annotated[float, Field(ge=0, le=1, description="Standard deviation of that luminance.")]
    yaw: Annotated[float, Field(ge=-90, le=90, description="Degrees turned; positive to the picture's right.")]
    pitch: Annotated[float, Field(ge=-90, le=90, description="Degrees nodded; positive looks down.")]
    roll: Annotated[float, Field(ge=-180, le=180, description="Degrees tilted; positive clockwise in the picture.")]
    confidence: Annotated[float, Field(ge=0, le=1.0001, description="Of the face detector.")]


class FrameScore(Plain):
    """One video frame that took part in the comparison."""

    time_seconds: Annotated[float, Field(ge=0, description="Position in the video.")]
    similarity: Annotated[float, Field(ge=-1.0001, le=1.0001, description="Cosine with the reference.")]
    weight: Annotated[float, Field(ge=0, le=1, description="Share in the probe's embedding, by quality.")]
    box: Annotated[Box, Field(description="The face, in the upright frame.")]
    quality: FaceQuality


class FaceComparison(Plain):
    """What the engine says of one pair of files.

    Either `similarity` is a number (cosine, -1 to 1) or `rejection` says why the media cannot be compared. Whether what
    was measured is good enough is judged later, by `tasks/judgement.py`.
    """

    similarity: Annotated[float | None, Field(ge=-1.0001, le=1.0001)] = None
    rejection: Reason | None = None
    detail: Annotated[str | None, Field(description="More about a rejection, for people. Never file content.")] = None
    reference: Annotated[FaceQuality | None, Field(description="Quality of the face on the ID image.")] = None
    reference_box: Annotated[Box | None, Field(description="That face, in the ID image turned upright.")] = None
    frames: Annotated[tuple[FrameScore, ...], Field(description="The frames used, in the order of time.")] = ()
    frames_looked_at: int = 0
    spread: Annotated[
        float | None, Field(ge=-1.0001, le=1.0001, description="Smallest cosine between two of the frames used.")
    ] = None
    motion: Annotated[
        float | None, Field(ge=0, description="Movement of the face that a moved still picture does not have.")
    ] = None
    anti_spoofing: Annotated[
        float | None, Field(ge=0, le=1, description="Share of frames that DeepFace's anti-spoofing takes for real.")
    ] = None
    device: str = "cpu"
    seconds: Annotated[
        dict[str, float], Field(description="Wall time by stage: decode, detect, align, embed, motion, total.")
    ] = {}

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
    picture_key: Annotated[str | None, Field(description="Storage key of its picture, for reviewers.")]
    computations: Annotated[int, Field(ge=1, description="How often its computation was started.")]
    started_by: Annotated[str, Field(description="Who started it last: `flow run` and its id.")]
    started_at: datetime
    finished_at: datetime


class Thresholds(Plain):
    """Bounds on the similarity: match at or above `match`, review at or above `review`, else no match."""

    match: Annotated[float, Field(ge=-1, le=1)]
    review: Annotated[float, Field(ge=-1, le=1)]


class Bounds(Plain):
    """Bounds on what was measured beside the similarity. `tasks/judgement.py` says where the defaults come from."""

    min_eye_distance: Annotated[float, Field(ge=0, description="Pixels, in the selfie video.")]
    min_id_eye_distance: Annotated[float, Field(ge=0, description="Pixels, on the ID image.")]
    min_sharpness: Annotated[float, Field(ge=0)]
    min_brightness: Annotated[float, Field(ge=0, le=1)]
    max_brightness: Annotated[float, Field(ge=0, le=1)]
    min_contrast: Annotated[float, Field(ge=0, le=1)]
    max_angle: Annotated[float, Field(ge=0, le=90, description="Degrees, of yaw and of pitch.")]
    min_motion: Annotated[float, Field(ge=0)]
    min_spread: Annotated[float | None, Field(ge=-1, le=1, description="Cosine; None: not judged.")]


class Verdict(Plain):
    """Pure judgement: what, and why."""

    decision: DecisionKind
    reason: Reason
    detail: Annotated[str | None, Field(description="The measured figure and its bound, for people.")] = None


class Decision(Plain):
    """A recorded decision: the one answer of a session's attempt."""

    session_id: SessionId
    attempt: AttemptNumber
    decision: DecisionKind
    reason: Reason
    similarity: float | None = None
    thresholds: Thresholds | None = None
    bounds: Bounds | None = None
    detail: str | None = None
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

    def there(self) -> list[StoredFile]:
        """The files that are there."""
        return [file for file in (self.id_image, self.selfie_video) if file is not None]

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


class Status(StrEnum):
    """Where an attempt stands. `tasks/database/status.py` says which changes are possible."""

    AWAITING_FILES = "awaiting_files"
    IN_PROGRESS = "in_progress"
    DECIDED = "decided"
    ERROR = "error"
    """A fault of the system that was not mended by trying again. An upload or a retried run goes on with it."""
    CANCELLED = "cancelled"
    """Stopped by a person. Resumed by a person."""
    DELETED = "deleted"
    """Its files and results are gone, or about to go."""


OPEN = (Status.AWAITING_FILES, Status.IN_PROGRESS)


class Attempt(Plain):
    """One attempt of a session, as stored: its deadline, its newest files, its decision if there is one."""

    session_id: SessionId
    attempt: AttemptNumber
    created_at: datetime
    deadline_at: datetime
    status: Status = Status.AWAITING_FILES
    announced: Annotated[bool, Field(description="Made by the upload service, which wakes it at each upload.")] = False
    files: FilePair = FilePair()
    decision: Decision | None = None
    flow_run_id: Annotated[UUID | None, Field(description="The flow run that follows it, once there is one.")] = None
    comparison_key: Annotated[Sha256 | None, Field(description="The comparison it has asked for.")] = None
    recoveries: Annotated[int, Field(ge=0, description="How often its flow run was started again after a fault.")] = 0

    @property
    def open(self) -> bool:
        """Whether somebody is still at work on it, or should be."""
        return self.status in OPEN

    def overdue(self) -> bool:
        """Whether its deadline is over."""
        return datetime.now(UTC) >= self.deadline_at

    def with_files(self, files: FilePair) -> Self:
        """The same attempt with other files."""
        return self.model_copy(update={"files": files})
