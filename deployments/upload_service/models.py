"""What the API takes and gives. No storage keys, no pictures."""

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field

from tasks.contracts import (
    Attempt,
    AttemptNumber,
    DecisionKind,
    FileKind,
    Plain,
    Reason,
    SessionId,
    Sha256,
    StoredFile,
    Thresholds,
)
from tasks.database.audit import AuditLine

Status = Annotated[
    Literal["awaiting_files", "in_progress", "decided", "error", "cancelled"],
    Field(
        description="`awaiting_files` until both files are there, `in_progress` until there is a decision. `error` "
        "after a fault of the system that trying again did not mend, until an upload or a person goes on with it. "
        "`cancelled` by a person, until a person resumes it."
    ),
]


class NewSession(Plain):
    """A session to create."""

    session_id: SessionId
    deadline_seconds: Annotated[
        int | None,
        Field(
            ge=5, le=604_800, description="How long to wait for both files; the service's own default when left out."
        ),
    ] = None


class FileView(BaseModel):
    """A file that is there."""

    sha256: Sha256
    size_bytes: int

    @classmethod
    def of(cls, stored: StoredFile | None) -> Self | None:
        """Without its storage key."""
        return None if stored is None else cls(sha256=stored.sha256, size_bytes=stored.size_bytes)


class Files(BaseModel):
    """The newest file of each kind."""

    id_image: FileView | None
    selfie_video: FileView | None


class SessionView(BaseModel):
    """One attempt of a session, as it stands."""

    session_id: SessionId
    attempt: AttemptNumber
    status: Status
    created_at: datetime
    deadline_at: Annotated[datetime, Field(description="When it expires unless both files are there.")]
    files: Files
    decision: DecisionKind | None = None
    reason: Annotated[Reason | None, Field(description="Stable code that says why.")] = None
    detail: Annotated[str | None, Field(description="More about a rejection, for people.")] = None
    similarity: Annotated[float | None, Field(description="Cosine of the two faces, -1 to 1.")] = None
    thresholds: Annotated[Thresholds | None, Field(description="Those that the decision was made with.")] = None
    decided_at: datetime | None = None
    flow_run_name: Annotated[str, Field(description="Name of its flow run in Prefect.")]

    @classmethod
    def of(cls, attempt: Attempt) -> Self:
        """An attempt as the client sees it."""
        decision = attempt.decision
        view = cls(
            session_id=attempt.session_id,
            attempt=attempt.attempt,
            status=attempt.status,
            created_at=attempt.created_at,
            deadline_at=attempt.deadline_at,
            files=Files(
                id_image=FileView.of(attempt.files.id_image), selfie_video=FileView.of(attempt.files.selfie_video)
            ),
            flow_run_name=f"{attempt.session_id} attempt {attempt.attempt}",
        )
        if decision is None:
            return view
        return view.model_copy(
            update={
                name: getattr(decision, name)
                for name in ("decision", "reason", "detail", "similarity", "thresholds", "decided_at")
            }
        )


class UploadView(FileView):
    """A file that was stored, and the attempt it now counts for."""

    session_id: SessionId
    attempt: AttemptNumber
    kind: FileKind
    status: Status
    started: Annotated[
        bool,
        Field(
            description="Whether the flow run was started or woken at once. When false the file is stored all the "
            "same, and the sweep starts the run within minutes, unless the session is `cancelled`."
        ),
    ]


class AuditView(BaseModel):
    """What happened to a session's attempts and to the comparisons that they asked for, in its order."""

    session_id: SessionId
    lines: list[AuditLine]


class Health(BaseModel):
    """The service answers, and so does its database."""

    status: Literal["ok"] = "ok"
