"""What a Prefect server lets strangers do, seen from here without a login: for `kycflow doctor`."""

import ipaddress
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx

from deployments.prefect_access import CLIENT_SECRET, SERVER_ORIGINS, SERVER_SECRET
from tasks.errors import OrchestratorUnavailable

FOREIGN = "https://kycflow.invalid"
"""An origin that nobody has: names in `.invalid` are never given to anyone (RFC 2606)."""


REFUSALS = {301, 302, 303, 307, 308, 401, 403}
"""What a server answers that wants a login, or a proxy before it that sends people to one."""


class Exposure(NamedTuple):
    """One way in, and how to close it."""

    finding: str
    remedy: str


async def exposures(api_url: str) -> list[Exposure]:
    """The ways into a Prefect server, none for one that is closed.

    Raises:
        OrchestratorUnavailable: it does not answer.
    """
    try:
        async with httpx.AsyncClient(base_url=api_url, timeout=10) as stranger:
            # GET: a server with CSRF protection refuses a POST without a token, which it gives to anybody.
            version = (await stranger.get("/admin/version")).status_code
            asked = {"Origin": FOREIGN, "Access-Control-Request-Method": "POST"}
            preflight = await stranger.options("/deployments/", headers=asked)
    except httpx.TransportError as exc:
        raise OrchestratorUnavailable("Prefect's API does not answer.") from exc
    found = []
    remedy = f"Set {SERVER_SECRET}=user:password for the server and {CLIENT_SECRET} for its clients."
    if version < 300:
        found.append(Exposure("no login: who reaches it runs commands on its workers", remedy))
    elif version not in REFUSALS:
        found.append(Exposure(f"it is not known whether it asks for a login: it answered {version}", remedy))
    if preflight.headers.get("access-control-allow-origin") in {"*", FOREIGN}:
        found.append(
            Exposure("any web page may call it", f"Set {SERVER_ORIGINS}= (empty) for the server, or your own origins.")
        )
    address = urlsplit(api_url)
    if address.scheme == "http" and not is_loopback(address.hostname or ""):
        found.append(
            Exposure(
                "no TLS: its login and session ids cross the network in plain text",
                "Put a proxy with TLS before it, and https:// into PREFECT_API_URL.",
            )
        )
    return found


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine, by its form alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
