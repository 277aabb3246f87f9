"""All settings, in one place: environment variables that begin with KYCFLOW_."""

import os
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, HttpUrl, SecretStr, StringConstraints, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from tasks.contracts import FileKind, Sha256

MIB = 1024 * 1024
PREFIX = "KYCFLOW_"
HOSTS_PATTERN = r"^ *(\*\.)?[A-Za-z0-9.-]+ *(, *(\*\.)?[A-Za-z0-9.-]+ *)*$"


def _default_state_dir() -> Path:
    """`.kycflow` in the checkout, whatever the working directory: Prefect starts flow runs in a temporary one.

    Without a checkout it is in the working directory, and `kycflow worker` tells its flow runs where that was.
    """
    checkout = Path(__file__).parent.parent
    return (checkout if (checkout / "prefect.yaml").exists() else Path.cwd()) / ".kycflow"


class Settings(BaseSettings):
    """Typed, bounded settings. Units stand in the names; the README's table is generated from this class."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True, hide_input_in_errors=True)

    state_dir: Path = Field(
        default_factory=_default_state_dir,
        description="Folder for everything written on this machine. Empty: `.kycflow` in the checkout, or, "
        "where kycflow is installed without one, in the current folder.",
    )
    database_url: str | None = Field(
        None,
        description="SQLAlchemy URL, `postgresql://user:password@host/kycflow` say. Empty: SQLite in the state folder.",
    )
    storage_url: Annotated[str, StringConstraints(pattern=r"^(s3://[a-z0-9.-]+(/.*)?|file://.+)$")] | None = Field(
        None, description="`s3://bucket/prefix` or `file:///folder`. Empty: a folder in the state folder."
    )
    s3_endpoint_url: HttpUrl | None = Field(None, description="Address of an S3-compatible server that is not AWS.")
    s3_credentials_block: str | None = Field(
        None,
        description="Name of a Prefect block `aws-credentials` to use. Empty: the usual AWS environment and roles.",
    )

    session_deadline_seconds: int = Field(
        3600, ge=5, le=604_800, description="How long a session waits for both files, from its creation."
    )
    look_seconds: float = Field(
        10,
        ge=1,
        le=3600,
        description="How often the sweep looks through storage for files that another system puts there.",
    )

    max_id_image_bytes: int = Field(64 * MIB, ge=1024, description="Largest ID image accepted.")
    max_id_image_pixels: int = Field(
        52_000_000, ge=10_000, description="Most pixels of an ID image; baseline JPEGs may have 260 million."
    )
    max_selfie_video_bytes: int = Field(100 * MIB, ge=1024, description="Largest selfie video accepted.")
    max_selfie_video_seconds: float = Field(60, ge=1, le=3600, description="Longest selfie video accepted.")
    max_selfie_video_pixels: int = Field(
        3840 * 2160, ge=10_000, description="Most pixels of a video frame: the default admits 4K."
    )

    recogniser: str = Field("SFace", description="DeepFace's name of the face recognition model.")
    detector: str = Field("yunet", description="DeepFace's name of the face detector.")
    backend: Literal["onnx", "tensorflow", "pytorch"] = Field(
        "onnx", description="What runs a model that DeepFace has in several forms. PyTorch is yours to install."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where models run. `auto`: on the GPU where there is one; `cuda`: fail without one."
    )
    frames: int = Field(10, ge=1, le=100, description="Video frames looked at, spread over its time.")
    frames_used: int = Field(
        3, ge=1, le=100, description="Of these, how many are compared at most: the best of as many parts of the time."
    )
    anti_spoofing: Literal["auto", "on", "off"] = Field(
        "auto",
        description="DeepFace's anti-spoofing. `auto`: where its two weight files have a sum in "
        "`KYCFLOW_WEIGHTS_SHA256`.",
    )
    match_threshold: float | None = Field(
        None, ge=-1, le=1, description="Similarity from which it is a match. Empty: the model's own default."
    )
    review_threshold: float | None = Field(
        None, ge=-1, le=1, description="Similarity from which a person looks. Empty: the model's own default."
    )
    min_eye_distance: float = Field(16, ge=0, description="Fewest pixels between the eyes in the selfie video.")
    min_id_eye_distance: float = Field(16, ge=0, description="Fewest pixels between the eyes on the ID image.")
    min_sharpness: float = Field(0.048, ge=0, description="Least sharpness of a face: the Laplacian's deviation.")
    min_brightness: float = Field(0.08, ge=0, le=1, description="Least mean luminance of a face.")
    max_brightness: float = Field(0.92, ge=0, le=1, description="Greatest mean luminance of a face.")
    min_contrast: float = Field(0.02, ge=0, le=1, description="Least standard deviation of a face's luminance.")
    max_angle: float = Field(45, ge=0, le=90, description="Most degrees that a head may be turned or nodded.")
    min_motion: float = Field(
        0.015, ge=0, le=1, description="Least motion of a face, below which a still picture was filmed. 0: not judged."
    )
    min_spread: float | None = Field(
        None,
        ge=-1,
        le=1,
        description="Least similarity between two frames, below which they show different people. Empty: the model's "
        "own default.",
    )
    models_folder: Path | None = Field(
        None, description="Folder with weight files that were brought by other means; looked into first."
    )
    weights_sha256: dict[str, Sha256] = Field(
        {}, description="JSON object, file name to SHA-256, for weights that kycflow does not pin itself."
    )

    lease_seconds: float = Field(
        10,
        ge=1,
        le=600,
        description="How long work is taken to go on without a sign of life. It is renewed four times in that time.",
    )
    most_recoveries: int = Field(
        20,
        ge=0,
        le=100,
        description="How often a flow run is started again after it crashed, or its process was lost, before it is "
        "given up.",
    )

    worker_type: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]*$")] = Field(
        "resident",
        description="Type of the work pools that `kycflow up` and `kycflow deploy` create: `resident`, or a type of "
        "Prefect's such as `process` or `kubernetes`.",
    )
    drain_seconds: float = Field(
        30,
        ge=0,
        le=3600,
        description="How long a resident worker that is told to end lets its flow runs finish. It hands back the rest.",
    )
    worker_memory_mib: int | None = Field(
        None, ge=256, description="Memory, in MiB, above which a resident worker drains and ends, to be started again."
    )

    media_retention_days: int = Field(
        30,
        ge=1,
        le=36_500,
        description="How long media, crops and scores are kept after their session's end. Then the purge deletes them.",
    )
    # Not 30: to PostgreSQL a day may have 25 hours.
    decision_retention_days: int = Field(
        1825,
        ge=31,
        le=36_500,
        description="How long decisions and the audit trail are kept: at least as long as media. The database refuses "
        "to delete lines of the audit trail that are younger than 30 days.",
    )

    api_url: HttpUrl | None = Field(
        None, description="Where the command line finds the upload API. Empty: where `kycflow up` says."
    )
    api_token: SecretStr | None = Field(
        None, description="When set, the upload API wants `Authorization: Bearer <token>`."
    )
    host: str = Field(
        "127.0.0.1",
        description="Address that the upload API of `kycflow up` listens on. Its Prefect server stays on 127.0.0.1.",
    )
    api_port: int = Field(8420, ge=1, le=65_535, description="Port of the upload API; the next free one if taken.")
    prefect_port: int = Field(4200, ge=1, le=65_535, description="Port of Prefect's server; likewise.")
    prefect_hosts: Annotated[str, StringConstraints(pattern=HOSTS_PATTERN)] | None = Field(
        None,
        description="Names, separated by commas, under which kycflow's Prefect server may be addressed beside "
        "`localhost` and `127.0.0.1`; `*.example.com` for all of a domain. Requests for other hosts are refused.",
    )

    @field_validator("*", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: object, info: object) -> object:
        """An empty environment variable means the default, as deployment templates leave them empty."""
        if value == "":
            name = info.field_name  # type: ignore[attr-defined]
            return cls.model_fields[name].get_default(call_default_factory=True)
        return value

    @model_validator(mode="after")
    def _in_order(self) -> "Settings":
        match, review = self.match_threshold, self.review_threshold
        if match is not None and review is not None and review > match:
            raise ValueError("KYCFLOW_REVIEW_THRESHOLD is above KYCFLOW_MATCH_THRESHOLD: lower it or raise the other.")
        if self.decision_retention_days < self.media_retention_days:
            raise ValueError(
                "KYCFLOW_DECISION_RETENTION_DAYS is below KYCFLOW_MEDIA_RETENTION_DAYS: raise it or lower the other."
            )
        return self

    def max_bytes(self, kind: FileKind) -> int:
        """Largest file of that kind accepted."""
        return self.max_id_image_bytes if kind is FileKind.ID_IMAGE else self.max_selfie_video_bytes

    @property
    def database(self) -> str:
        """The SQLAlchemy URL in use."""
        return self.database_url or f"sqlite:///{self.state_dir.absolute() / 'kycflow.db'}"

    @property
    def storage(self) -> str:
        """The storage URL in use."""
        return self.storage_url or f"file://{self.state_dir.absolute() / 'storage'}"

    @property
    def weights_dir(self) -> Path:
        """Where weight files are placed. DeepFace wants this shape under its DEEPFACE_HOME."""
        return self.state_dir.absolute() / "models" / ".deepface" / "weights"

    @property
    def samples_dir(self) -> Path:
        """Where sample media for demo and tests are placed."""
        return self.state_dir.absolute() / "samples"


def current_settings() -> Settings:
    """The settings as the environment has them now. Reading it anew takes 1.5 ms, which a session would do 20 times.

    Raises:
        pydantic.ValidationError: a variable has a value that is not allowed.
    """
    return _read(frozenset((name, text) for name, text in os.environ.items() if name.upper().startswith(PREFIX)))


@lru_cache(maxsize=8)
def _read(variables: frozenset[tuple[str, str]]) -> Settings:
    del variables  # what an answer is kept by
    return Settings()
