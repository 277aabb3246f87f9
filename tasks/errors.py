"""The error tree. Whether an operation may be tried again is decided by type, here and nowhere else.

KycflowError
├── RetryableError            a fault of ours that may pass: never a decision about a person
│   ├── StorageUnavailable    the object store does not answer, or answers with a server error
│   ├── DatabaseUnavailable   the SQL database does not answer, or is locked
│   ├── OrchestratorUnavailable  Prefect's API does not answer
│   ├── ServiceUnavailable    the upload service fails for now
│   ├── ComputeUnavailable    the GPU is lost
│   │   └── OutOfMemory       it, or the machine, has not enough memory for now
│   └── LeaseHeld             somebody else computes what is asked for, and takes long
└── TerminalError             trying again gives the same answer
    ├── ConfigurationError    a setting, a schema version or a model file is not what this version needs
    ├── ObjectMissing         a stored object that was announced is not there
    ├── ObjectChanged         a stored object has other bytes than those announced
    ├── LeaseLost             somebody else owns by now what this one was writing
    └── Refused               a request or a file that is refused, with a stable code for programs
        ├── UnknownSession, SessionDecided, SessionUndecided, SessionCancelled, SessionDeleted
        └── MediaRefused      a file that cannot be what it is said to be
"""


class KycflowError(Exception):
    """Base of all errors raised on purpose by kycflow."""


class RetryableError(KycflowError):
    """A fault of ours that may pass."""


class StorageUnavailable(RetryableError):
    """Raised when the object store does not answer or answers with a server error."""


class DatabaseUnavailable(RetryableError):
    """Raised when the SQL database does not answer or stays locked."""


class OrchestratorUnavailable(RetryableError):
    """Raised when Prefect's API does not answer or answers with a server error."""


class ServiceUnavailable(RetryableError):
    """Raised when the upload service answers that it fails for now."""


class ComputeUnavailable(RetryableError):
    """Raised when the device that compares faces is lost."""


class OutOfMemory(ComputeUnavailable):
    """Raised when the device, or the machine, has not enough memory to compare faces for now."""


class LeaseHeld(RetryableError):
    """Raised when another owner keeps a lease for longer than somebody is ready to wait."""


class TerminalError(KycflowError):
    """An error that trying again does not mend."""


class ConfigurationError(TerminalError):
    """Raised when a setting, a schema version or a model file is not what this version needs."""


class ObjectMissing(TerminalError):
    """Raised when a stored object that was announced is not there."""


class ObjectChanged(TerminalError):
    """Raised when a stored object has other bytes than those announced."""


class LeaseLost(TerminalError):
    """Raised when a lease belongs to somebody else by now. Nothing was written; theirs is the result that counts."""


class Refused(TerminalError):
    """A request that is refused: `code` is stable and for programs, the message is for people."""

    status: int = 422
    """HTTP status that says the same."""
    code: str = "REFUSED"


class UnknownSession(Refused):
    """Raised when no such session, or no such attempt of it, was created."""

    status = 404
    code = "UNKNOWN_SESSION"


class SessionDecided(Refused):
    """Raised when a file arrives for an attempt that has its decision."""

    status = 409
    code = "SESSION_DECIDED"


class SessionUndecided(Refused):
    """Raised when a further attempt is asked for while the last one has no decision yet."""

    status = 409
    code = "SESSION_UNDECIDED"


class SessionCancelled(Refused):
    """Raised when work goes on for an attempt that a person has cancelled."""

    status = 409
    code = "SESSION_CANCELLED"


class SessionDeleted(Refused):
    """Raised when a session was deleted. Its id is not used again."""

    status = 410
    code = "SESSION_DELETED"


class MediaRefused(Refused):
    """Raised when a file cannot be what it is said to be.

    `code` is one of EMPTY, TOO_LARGE, NOT_AN_IMAGE, NOT_A_VIDEO, IMAGE_UNREADABLE, IMAGE_TOO_MANY_PIXELS,
    VIDEO_UNREADABLE, VIDEO_WITHOUT_FRAMES, VIDEO_TOO_LONG, VIDEO_TOO_MANY_PIXELS, TRUNCATED.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.status = {"TOO_LARGE": 413, "NOT_AN_IMAGE": 415, "NOT_A_VIDEO": 415}.get(code, 422)


def is_retryable(error: BaseException) -> bool:
    """Whether trying again may help. Unknown errors are not retried: they are bugs, and should be loud."""
    return isinstance(error, RetryableError)
