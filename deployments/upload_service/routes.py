"""The endpoints."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.security import HTTPBearer
from sqlalchemy import text

from deployments.upload_service.models import AuditView, Health, NewSession, SessionView, UploadView
from deployments.upload_service.problems import declared
from deployments.upload_service.uploads import Uploads
from tasks.contracts import Attempt, AttemptNumber, FileKind, SessionId
from tasks.database.attempts import API, next_attempt, open_attempt
from tasks.database.audit import trail
from tasks.database.engine import reading

WhichAttempt = Annotated[AttemptNumber | None, Query(description="The latest when left out.")]

ALWAYS = declared(
    _401="The service has a token, and the request has not.",
    _422="A field is wrong: `INVALID_REQUEST`.",
    _500="The service failed: `INTERNAL`.",
    _503="A part of the service does not answer, or too many files are coming in: `TRY_AGAIN`. Send the same request "
    "again after `Retry-After` seconds.",
)
UNKNOWN = declared(_404="No such session or attempt: `UNKNOWN_SESSION`.")
GONE = declared(_410="The session was deleted: `SESSION_DELETED`.")
REFUSED = declared(
    _408="No byte came for a minute, or the whole took longer than ten: `UPLOAD_STALLED`.",
    _409="The attempt is decided: `SESSION_DECIDED`.",
    _413="The file is larger than accepted: `TOO_LARGE`.",
    _415="The bytes are no image or no video, whatever the content type says: `NOT_AN_IMAGE`, `NOT_A_VIDEO`.",
    _422="A field is wrong: `INVALID_REQUEST`. Or the file cannot be used: `EMPTY`, `TRUNCATED`, `IMAGE_UNREADABLE`, "
    "`IMAGE_TOO_MANY_PIXELS`, `VIDEO_UNREADABLE`, `VIDEO_WITHOUT_FRAMES`, `VIDEO_TOO_LONG`, `VIDEO_TOO_MANY_PIXELS`.",
)

# The guard checks the token; this tells OpenAPI of it.
bearer = Depends(HTTPBearer(auto_error=False, description="Only when the service has `KYCFLOW_API_TOKEN`."))
router = APIRouter()
sessions = APIRouter(prefix="/sessions", tags=["sessions"], dependencies=[bearer], responses=ALWAYS)


def _uploads(request: Request) -> Uploads:
    uploads: Uploads = request.app.state.uploads
    return uploads


Service = Annotated[Uploads, Depends(_uploads)]


def _body(*media_types: str) -> dict[str, Any]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {"requestBody": {"required": True, "content": dict.fromkeys(media_types, binary)}}


@sessions.post(
    "", status_code=201, responses=GONE | {200: {"model": SessionView, "description": "It was there already."}}
)
async def create_session(new: NewSession, service: Service, response: Response) -> SessionView:
    """Create a session. Repeated: 200 with what is there, its deadline unchanged."""
    seconds = new.deadline_seconds or service.settings.session_deadline_seconds
    attempt, made = await asyncio.to_thread(open_attempt, service.engine, new.session_id, 1, seconds)
    await _show(service, attempt)
    response.status_code = 201 if made else 200
    return SessionView.of(attempt)


@sessions.get("/{session_id}", responses=UNKNOWN | GONE)
async def read_session(session_id: SessionId, service: Service, attempt: WhichAttempt = None) -> SessionView:
    """What is known of a session's attempt: its files, its status, its decision."""
    return SessionView.of(await service.standing(session_id, attempt))


@sessions.delete(
    "/{session_id}",
    status_code=204,
    responses=UNKNOWN
    | {202: {"description": "It is deleted for every reader. What is left of it goes with a repetition or the purge."}},
)
async def delete_session(session_id: SessionId, service: Service) -> Response:
    """Cancel what runs for a session, and remove its media and results. Its audit trail stays. Repeated: the same."""
    from tasks.deletion import delete_session as delete

    return Response(status_code=204 if await delete(session_id, by=API) else 202)


@sessions.post(
    "/{session_id}/resume", responses=UNKNOWN | GONE | declared(_409="The attempt is decided: `SESSION_DECIDED`.")
)
async def resume_session(session_id: SessionId, service: Service, attempt: WhichAttempt = None) -> SessionView:
    """Go on with an attempt that was cancelled, or given up with `error`. An open one looks for its files again now.

    If its flow run was cancelled while it had a process, it goes on 80 seconds after that at the earliest.
    """
    from tasks.trigger import resume

    return SessionView.of(await resume(await service.standing(session_id, attempt), by=API))


@sessions.get("/{session_id}/audit", responses=UNKNOWN)
async def read_audit(session_id: SessionId, service: Service) -> AuditView:
    """What happened to a session, in its order. It stays readable after the session was deleted."""
    return AuditView(session_id=session_id, lines=await asyncio.to_thread(trail, service.engine, session_id))


@sessions.post(
    "/{session_id}/attempts",
    status_code=201,
    responses=UNKNOWN | GONE | declared(_409="The latest attempt has no decision yet: `SESSION_UNDECIDED`."),
)
async def create_attempt(session_id: SessionId, service: Service) -> SessionView:
    """Begin a further attempt after a decision, with files of its own. Repeated: the same attempt, until it has one."""
    seconds = service.settings.session_deadline_seconds
    attempt = await asyncio.to_thread(next_attempt, service.engine, session_id, seconds)
    await _show(service, attempt)
    return SessionView.of(attempt)


async def _show(service: Uploads, attempt: Attempt) -> None:
    """Give a new attempt its flow run, so that people see it from its beginning."""
    if attempt.open and attempt.flow_run_id is None:
        await service.tell(attempt)


STORED: dict[int | str, dict[str, Any]] = {200: {"model": UploadView, "description": "This file is there already."}}


@sessions.put(
    "/{session_id}/id-image",
    status_code=201,
    responses=STORED | UNKNOWN | GONE | REFUSED,
    openapi_extra=_body("image/jpeg", "image/png", "image/webp", "application/octet-stream"),
)
async def put_id_image(
    session_id: SessionId, request: Request, service: Service, response: Response, attempt: WhichAttempt = None
) -> UploadView:
    """Upload the image of the ID card as the request's body. It replaces an earlier one."""
    return await _put(request, service, response, session_id, attempt, FileKind.ID_IMAGE)


@sessions.put(
    "/{session_id}/selfie-video",
    status_code=201,
    responses=STORED | UNKNOWN | GONE | REFUSED,
    openapi_extra=_body("video/mp4", "video/webm", "video/quicktime", "application/octet-stream"),
)
async def put_selfie_video(
    session_id: SessionId, request: Request, service: Service, response: Response, attempt: WhichAttempt = None
) -> UploadView:
    """Upload the selfie video as the request's body. It replaces an earlier one."""
    return await _put(request, service, response, session_id, attempt, FileKind.SELFIE_VIDEO)


async def _put(
    request: Request, service: Uploads, response: Response, session_id: str, attempt: int | None, kind: FileKind
) -> UploadView:
    found, stored, new, started = await service.take(request, session_id, attempt, kind)
    response.status_code = 201 if new else 200
    return UploadView(
        session_id=session_id,
        attempt=found.attempt,
        kind=kind,
        sha256=stored.sha256,
        size_bytes=stored.size_bytes,
        status=found.status,
        started=started,
    )


@router.get("/health", tags=["service"], responses=declared(_503="Its database does not answer."))
async def health(service: Service) -> Health:
    """Whether the service and its database answer."""
    await asyncio.to_thread(_ask_database, service)
    return Health()


def _ask_database(service: Uploads) -> None:
    with reading(service.engine) as session:
        session.execute(text("SELECT 1"))


router.include_router(sessions)
