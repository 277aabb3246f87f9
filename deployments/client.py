"""A client of the upload API, as an app's back end would write one. Used by the command line and the demo."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import httpx

from tasks.errors import ConfigurationError, Refused, ServiceUnavailable
from tasks.settings import Settings

PATHS = {"id_image": "id-image", "selfie_video": "selfie-video"}
CHUNK_BYTES = 256 * 1024
AT_WORK = {"awaiting_files", "in_progress"}
"""Statuses that change by themselves."""


class UploadClient:
    """Talks to the upload API. Use as a context manager.

    Every method raises `Refused` with the API's code when it refuses, ServiceUnavailable when it fails for now, and
    ConfigurationError when nothing, or something else, answers.
    """

    def __init__(self, base_url: str, settings: Settings) -> None:
        token = settings.api_token
        headers = {} if token is None else {"Authorization": f"Bearer {token.get_secret_value()}"}
        self._http = httpx.Client(base_url=base_url, headers=headers, timeout=60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def create_session(self, session_id: str, deadline_seconds: int | None = None) -> dict[str, Any]:
        """Create a session; one that is there already comes back as it is."""
        body: dict[str, Any] = {"session_id": session_id}
        if deadline_seconds is not None:
            body["deadline_seconds"] = deadline_seconds
        return self._call("POST", "/sessions", json=body)

    def next_attempt(self, session_id: str) -> dict[str, Any]:
        """A further attempt, once the last one is decided."""
        return self._call("POST", f"/sessions/{session_id}/attempts")

    def upload(
        self, session_id: str, kind: str, path: Path, sent: Callable[[int], None] = lambda _: None
    ) -> dict[str, Any]:
        """Upload a file as `id_image` or `selfie_video`; `sent` is told the bytes as they go."""
        size = path.stat().st_size
        return self._call(
            "PUT",
            f"/sessions/{session_id}/{PATHS[kind]}",
            content=_chunks(path, sent),
            headers={"Content-Type": "application/octet-stream", "Content-Length": str(size)},
        )

    def session(self, session_id: str) -> dict[str, Any]:
        """The session's latest attempt: status, decision, reason, files."""
        return self._call("GET", f"/sessions/{session_id}")

    def resume(self, session_id: str) -> dict[str, Any]:
        """Go on with the session's latest attempt, which was cancelled or given up."""
        return self._call("POST", f"/sessions/{session_id}/resume")

    def delete(self, session_id: str) -> bool:
        """Delete a session; whether all of it is gone already."""
        return self._answer("DELETE", f"/sessions/{session_id}").status_code == 204

    def audit(self, session_id: str) -> list[dict[str, Any]]:
        """What happened to a session, in its order; a deleted one, too."""
        lines: list[dict[str, Any]] = self._call("GET", f"/sessions/{session_id}/audit")["lines"]
        return lines

    def wait(self, session_id: str, seconds: float, seen: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
        """Poll until the session is decided, given up or cancelled, or the time is over; the last answer.

        `seen` is told each status.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                session = self.session(session_id)
            except ServiceUnavailable:
                if time.monotonic() >= deadline:
                    raise
            else:
                seen(session["status"])
                if session["status"] not in AT_WORK or time.monotonic() >= deadline:
                    return session
            time.sleep(0.5)

    def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        return self._body(self._answer(method, path, **options))

    def _answer(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **options)
        except httpx.TransportError as exc:
            raise ConfigurationError(
                f"The upload API does not answer at {self._http.base_url}: start it with `kycflow up`, "
                "or set KYCFLOW_API_URL."
            ) from exc
        if answer.status_code in {408, 429} or answer.status_code >= 500:
            raise ServiceUnavailable(f"The upload API answered {answer.status_code}. Try again; its log says why.")
        if answer.is_success:
            return answer
        body = self._body(answer)
        refused = Refused(body.get("detail") or body.get("title") or answer.reason_phrase)
        refused.status, refused.code = answer.status_code, body.get("code", "REFUSED")
        raise refused

    def _body(self, answer: httpx.Response) -> dict[str, Any]:
        try:
            body: dict[str, Any] = answer.json()
        except ValueError as exc:
            raise ConfigurationError(
                f"What answers at {self._http.base_url} is not kycflow's upload API: set KYCFLOW_API_URL."
            ) from exc
        return body


def _chunks(path: Path, sent: Callable[[int], None]) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
            sent(len(chunk))
