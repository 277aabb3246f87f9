"""The secret of Prefect's server, and the names under which it answers."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from deployments.prefect_access import (
    CLIENT_SECRET,
    SERVER_ORIGINS,
    SERVER_SECRET,
    access_variables,
    allowed_hosts,
    client_settings,
    make_secret,
    read_secret,
    secret_file,
)
from deployments.stack import Addresses
from tasks.errors import ConfigurationError
from tasks.settings import Settings

ADDRESSES = Addresses(prefect_ui="http://127.0.0.1:1", upload_api="http://127.0.0.1:2", stack="one")


@pytest.fixture(autouse=True)
def _own_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (SERVER_SECRET, CLIENT_SECRET, SERVER_ORIGINS):
        monkeypatch.delenv(name, raising=False)


def test_it_is_made_once_for_its_owner_only(settings: Settings) -> None:
    first = make_secret(settings)
    assert make_secret(settings) == read_secret(settings) == first
    assert first.startswith("kycflow:")
    assert stat.S_IMODE(secret_file(settings).stat().st_mode) == 0o600
    assert [one.name for one in settings.state_dir.iterdir()] == [secret_file(settings).name]


def test_racers_have_the_same_one(settings: Settings) -> None:
    with ThreadPoolExecutor(16) as racers:
        assert len({*racers.map(lambda _: make_secret(settings), range(64))}) == 1


def test_every_state_folder_has_its_own(tmp_path: Path) -> None:
    assert make_secret(Settings(state_dir=tmp_path / "a")) != make_secret(Settings(state_dir=tmp_path / "b"))


def test_a_file_that_others_may_read_is_closed_again(settings: Settings) -> None:
    first = make_secret(settings)
    secret_file(settings).chmod(0o644)
    assert read_secret(settings) == first
    assert stat.S_IMODE(secret_file(settings).stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"no colon at all", b"kycflow:short", b"a:12345678\nb:12345678", b"a:\xff2345678", b"a:\x0012345678"],
)
def test_what_is_no_login_is_refused(settings: Settings, content: bytes) -> None:
    make_secret(settings)
    secret_file(settings).write_bytes(content)
    with pytest.raises(ConfigurationError, match="remove it"):
        make_secret(settings)


def test_a_prepared_file_is_refused_and_left_alone(settings: Settings, tmp_path: Path) -> None:
    settings.state_dir.mkdir()
    other = tmp_path / "other"
    other.write_text("kycflow:of-somebody-else")
    other.chmod(0o644)
    secret_file(settings).symlink_to(other)
    with pytest.raises(ConfigurationError, match="remove it"):
        make_secret(settings)
    assert stat.S_IMODE(other.stat().st_mode) == 0o644
    secret_file(settings).unlink()
    secret_file(settings).mkdir()
    with pytest.raises(ConfigurationError, match="remove it"):
        make_secret(settings)
    secret_file(settings).rmdir()
    os.mkfifo(secret_file(settings))
    with pytest.raises(ConfigurationError, match="remove it"):
        make_secret(settings)


def test_the_operators_own_is_taken_and_found_by_other_shells(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_secret(settings)
    monkeypatch.setenv(SERVER_SECRET, "ops:chosen-by-ops")
    wanted = {SERVER_SECRET: "ops:chosen-by-ops", CLIENT_SECRET: "ops:chosen-by-ops", SERVER_ORIGINS: ""}
    assert access_variables(settings) == wanted
    monkeypatch.delenv(SERVER_SECRET)
    assert read_secret(settings) == "ops:chosen-by-ops"


def test_a_client_makes_none(settings: Settings) -> None:
    with pytest.raises(ConfigurationError, match="is not there"):
        client_settings(settings, ADDRESSES)
    assert not secret_file(settings).exists()


def test_the_key_of_another_server_is_not_used_for_this_one(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CLIENT_SECRET, "prod:other-secret")
    assert access_variables(settings)[CLIENT_SECRET] == read_secret(settings)
    assert read_secret(settings) in client_settings(settings, ADDRESSES).values()
    assert client_settings(settings, None) == {}


def test_names_beside_its_own_are_the_operators(settings: Settings) -> None:
    assert allowed_hosts(settings) == ["127.0.0.1", "localhost", "[::1]"]
    more = Settings(prefect_hosts="prefect.bank.example, *.internal.example")
    assert allowed_hosts(more)[3:] == ["prefect.bank.example", "*.internal.example"]


@pytest.mark.parametrize(
    "names", ["*", "a,*", "*b.example", "a b", "a.example/x", "http://a.example", ",", "a.example:4200", "::1"]
)
def test_what_is_no_name_is_refused(names: str) -> None:
    with pytest.raises(ValidationError):
        Settings(prefect_hosts=names)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "prefect.bank.example"])
def test_a_server_without_a_login_does_not_listen_to_other_machines(host: str) -> None:
    import typer

    from deployments.prefect_server import serve

    app = typer.Typer()
    app.command()(serve)
    done = CliRunner().invoke(app, ["--host", host, "--port", "1"])
    assert done.exit_code == 1
    assert isinstance(done.exception, ConfigurationError)
    assert SERVER_SECRET in str(done.exception)
