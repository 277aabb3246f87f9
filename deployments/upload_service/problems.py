"""Every error as `application/problem+json` (RFC 9457), with a stable `code` for programs."""

import logging
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from tasks.contracts import SESSION_ID_PATTERN
from tasks.errors import KycflowError, Refused, RetryableError

RETRY_AFTER_SECONDS = 5
HTTP_CODES = {
    401: "UNAUTHORIZED",
    404: "NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    408: "UPLOAD_STALLED",
    413: "TOO_LARGE",
    503: "TRY_AGAIN",
}

log = logging.getLogger(__name__)


class Problem(BaseModel):
    """What went wrong. Programs look at `code`, people at `detail`."""

    type: Annotated[str, Field(examples=["urn:kycflow:problem:unknown-session"])]
    title: Annotated[str, Field(examples=["Unknown session"])]
    status: Annotated[int, Field(examples=[404])]
    detail: Annotated[str, Field(examples=["There is no session '7f9c24e8-3b1d'. Create it first."])]
    code: Annotated[str, Field(examples=["UNKNOWN_SESSION"])]
    errors: Annotated[
        list[dict[str, str]] | None, Field(description="For INVALID_REQUEST: each wrong field and why.")
    ] = None


def declared(**problems: str) -> dict[int | str, dict[str, Any]]:
    """Problem responses for an endpoint's OpenAPI: `declared(_404="Why")`."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {int(name[1:]): {"description": why, "content": content} for name, why in problems.items()}


def problem(
    status: int, code: str, detail: str, errors: list[dict[str, str]] | None = None, headers: Any = None
) -> Response:
    """A problem document as response."""
    document = Problem(
        type=f"urn:kycflow:problem:{code.lower().replace('_', '-')}",
        title=code.replace("_", " ").capitalize(),
        status=status,
        detail=detail,
        code=code,
        errors=errors,
    )
    return JSONResponse(
        document.model_dump(exclude_none=True), status, headers=headers, media_type="application/problem+json"
    )


def install(app: FastAPI) -> None:
    """Answer every error of the application with a problem document, and describe it in its OpenAPI."""
    generate = app.openapi

    def with_problem() -> dict[str, Any]:
        document = generate()
        document["components"]["schemas"]["Problem"] = Problem.model_json_schema()
        return document

    app.openapi = with_problem  # type: ignore[method-assign]

    @app.exception_handler(KycflowError)
    async def _known(request: Request, exc: KycflowError) -> Response:
        if isinstance(exc, Refused):
            return problem(exc.status, exc.code, str(exc))
        log.error("request failed: %s", exc, extra={"action": "request.failed", "error": type(exc).__name__})
        if isinstance(exc, RetryableError):
            return problem(
                503,
                "TRY_AGAIN",
                "A part of the service does not answer. Send the same request again: it has the same effect.",
                headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
            )
        return _internal()

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, exc: RequestValidationError) -> Response:
        errors = [_in_words(error) for error in exc.errors()]
        detail = " ".join(f"{error['field']}: {error['message']}" for error in errors)
        return problem(422, "INVALID_REQUEST", detail, errors)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, exc: HTTPException) -> Response:
        code = HTTP_CODES.get(exc.status_code, f"HTTP_{exc.status_code}")
        return problem(exc.status_code, code, str(exc.detail), headers=exc.headers)

    @app.exception_handler(ClientDisconnect)
    async def _gone(request: Request, exc: ClientDisconnect) -> Response:
        log.info("client went away during an upload", extra={"action": "upload.interrupted"})
        return Response(status_code=400)

    @app.exception_handler(Exception)
    async def _unknown(request: Request, exc: Exception) -> Response:
        return _internal()


def _internal() -> Response:
    return problem(500, "INTERNAL", "The service failed. Its log says why.")


def _in_words(error: Any) -> dict[str, str]:
    field = ".".join(str(part) for part in error["loc"][1:]) or "body"
    if error.get("ctx", {}).get("pattern") == SESSION_ID_PATTERN:
        return {
            "field": field,
            "message": "must be 1 to 64 of a-z, 0-9, '-' and '_', beginning with a letter or digit.",
        }
    return {"field": field, "message": f"{error['msg']}."}
