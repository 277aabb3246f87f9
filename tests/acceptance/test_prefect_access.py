"""The Prefect server of `kycflow up` to people without its secret: neighbours on the machine, pages in a browser."""

import asyncio
import json
import stat
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from deployments.prefect_access import read_secret, secret_file
from tests.browser import page
from tests.http_server import serving
from tests.prefect_server import prefect_server
from tests.system import System

FOREIGN = "https://attacker.invalid"
# In this order they ran a command on a worker of a server without a login.
SEVEN_CALLS: list[tuple[str, str, dict[str, object] | None]] = [
    ("GET", "/work_pools/gpu", None),
    ("DELETE", "/work_pools/gpu", None),
    ("POST", "/work_pools/", {"name": "gpu", "type": "process", "base_job_template": {}}),
    ("POST", "/flows/", {"name": "rogue"}),
    ("POST", "/deployments/", {"name": "rogue", "flow_id": "{id}", "entrypoint": "os.abort", "work_pool_name": "gpu"}),
    ("POST", "/deployments/{id}/create_flow_run", {"job_variables": {"command": "touch /tmp/mark"}}),
    ("POST", "/flow_runs/{id}/set_state", {"state": {"type": "SCHEDULED"}}),
]
SOME_ID = "00000000-0000-0000-0000-000000000000"


def stranger(system: System, **headers: str) -> httpx.Client:
    """Who reaches the server and has not its secret."""
    return httpx.Client(base_url=system.addresses.prefect_api, headers=headers)


@pytest.mark.parametrize(("method", "path", "body"), SEVEN_CALLS)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": FOREIGN},
        {"Authorization": "Basic " + "a3ljZmxvdzo="},  # kycflow, without a password
        {"Authorization": "Bearer x"},
        {"Authorization": "Basic \u00e4"},
        {"X-Forwarded-Host": "127.0.0.1", "X-Forwarded-For": "127.0.0.1"},
    ],
)
def test_a_stranger_is_refused(
    system: System, method: str, path: str, body: dict[str, object] | None, headers: dict[str, str]
) -> None:
    content = None if body is None else json.dumps(body).replace("{id}", SOME_ID)
    with stranger(system) as client:
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        answer = client.request(method, path.format(id=SOME_ID), content=content, headers=raw)
    assert answer.status_code == 401
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("path", ["/health/../work_pools/gpu", "//work_pools/gpu", "/ready/../flows/"])
def test_the_open_health_check_is_no_way_in(system: System, path: str) -> None:
    raw = httpx.URL(system.addresses.prefect_api).copy_with(raw_path=f"/api{path}".encode())
    assert httpx.get(raw).status_code in {401, 404}


def test_the_pool_is_as_it_was(system: System) -> None:
    with system.prefect_http() as client:
        assert client.get("/work_pools/gpu").json()["type"] == "resident"


@pytest.mark.parametrize("method", ["POST", "DELETE", "PATCH"])
def test_a_page_of_another_origin_gets_no_permission(system: System, method: str) -> None:
    asked = {"Origin": FOREIGN, "Access-Control-Request-Method": method}
    with stranger(system, **asked) as client:
        answer = client.options("/work_pools/gpu")
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "host", ["attacker.invalid", "attacker.invalid:4200", "127.0.0.1.attacker.invalid", "", "a@127.0.0.1"]
)
@pytest.mark.parametrize("path", ["/api/health", "/", "/docs", "/api/flows/"])
def test_a_name_that_an_attacker_has_pointed_here_is_refused(system: System, host: str, path: str) -> None:
    """Its pages would be of the same origin to the browser."""
    answer = httpx.get(f"{system.addresses.prefect_ui}{path}", headers={"Host": host})
    assert answer.status_code == 400


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_its_own_names_are_answered(system: System, name: str) -> None:
    port = httpx.URL(system.addresses.prefect_ui).port
    answer = httpx.get(f"{system.addresses.prefect_ui}/api/health", headers={"Host": f"{name}:{port}"})
    assert answer.status_code == 200


@pytest.mark.parametrize("path", ["/events/in", "/events/out", "/logs/out"])
@pytest.mark.parametrize("host", ["127.0.0.1", "attacker.invalid"])
def test_no_socket_is_opened_for_a_stranger(system: System, path: str, host: str) -> None:
    address = system.addresses.prefect_api.replace("http://", "ws://") + path

    async def talk() -> str:
        async with connect(address, subprotocols=["prefect"], additional_headers={"Host": host}) as socket:  # type: ignore[list-item]
            await socket.send(json.dumps({"type": "auth", "token": "kycflow:guess"}))
            return str(await socket.recv())

    with pytest.raises((ConnectionClosed, InvalidStatus)):
        asyncio.run(talk())


def test_the_secret_is_its_owners_only_and_nobody_tells_it(system: System) -> None:
    file, (_, _, password) = secret_file(system.settings), read_secret(system.settings).partition(":")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(password) >= 32
    told = [system.settings.state_dir / "up.log", system.settings.state_dir / "stack.json"]
    told += (system.settings.state_dir / "logs").glob("*.log")
    assert not [one.name for one in told if password in one.read_text(errors="replace")]
    assert str(file) in told[0].read_text().replace("\n", "")
    with system.prefect_http() as client:
        assert password not in client.get("/admin/settings").text


ATTACK = """
async ({api, calls}) => {
  const seen = [];
  for (const [method, path, body] of calls)
    for (const mode of ["cors", "no-cors"])
      for (const credentials of ["omit", "include"])
        for (const headers of [{"content-type": "application/json"}, {"content-type": "text/plain"}, {}]) {
          try {
            const answer = await fetch(api + path, {method, mode, headers, body, credentials});
            seen.push(answer.status);  // 0 where the page is not told
          } catch { seen.push(-1); }
        }
  return seen;
}
"""


def carried_out(api: str) -> list[int]:
    """What a page of another origin is told of its calls, in a real browser: 0 nothing, -1 that there was no answer."""
    calls = [(method, path.format(id=SOME_ID), body and json.dumps(body)) for method, path, body in SEVEN_CALLS]
    with serving(FastAPI()) as elsewhere, page() as attacker:
        attacker.goto(f"{elsewhere}/docs")
        seen: list[int] = attacker.evaluate(ATTACK, {"api": api, "calls": calls})
    return seen


def test_without_the_lock_the_attack_succeeds(tmp_path: Path) -> None:
    with prefect_server(tmp_path / "prefect") as api:
        httpx.post(f"{api}/work_pools/", json={"name": "gpu", "type": "resident"}).raise_for_status()
        carried_out(api)
        assert httpx.get(f"{api}/work_pools/gpu").json()["type"] == "process"


def test_a_web_page_open_on_the_same_machine_can_do_nothing(system: System) -> None:
    with system.prefect_http() as client:
        before = client.get("/work_pools/gpu").json()["id"], client.post("/deployments/count", json={}).json()
    seen = carried_out(system.addresses.prefect_api)
    assert len(seen) == 12 * len(SEVEN_CALLS)
    assert {*seen} <= {0, -1}
    with system.prefect_http() as client:
        assert (client.get("/work_pools/gpu").json()["id"], client.post("/deployments/count", json={}).json()) == before


@pytest.mark.parametrize(("version", "path"), [("v2", "/v2/dashboard"), ("v1", "/dashboard")])
def test_the_ui_asks_for_the_secret_once(system: System, version: str, path: str) -> None:
    with page(prefect_ui_version=version) as user:
        user.goto(system.addresses.prefect_ui)
        user.wait_for_url(f"**{path.rpartition('/')[0]}/login**")
        user.locator("input").first.fill(read_secret(system.settings))
        user.keyboard.press("Enter")
        user.wait_for_url(f"**{path}**")
        user.goto(system.addresses.prefect_ui)
        user.get_by_text("gpu", exact=True).first.wait_for()
        assert "login" not in user.url


def test_whoever_has_the_secret_is_let_in(system: System) -> None:
    with system.prefect_http() as client:
        assert client.get("/work_pools/gpu").status_code == 200
