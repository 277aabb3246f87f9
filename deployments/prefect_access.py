"""Who may call Prefect's API: whoever can make deployments there can run commands on workers.

The server of `kycflow up` asks for a secret that lies in the state folder, answers no page of another origin, and only
under names that are its own: a name that an attacker has pointed at 127.0.0.1 is refused.
"""

import os
import re
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING

from tasks.errors import ConfigurationError
from tasks.settings import Settings

if TYPE_CHECKING:  # `kycflow up` starts its processes before it imports Prefect
    from prefect.settings.legacy import Setting

    from deployments.stack import Addresses

SECRET = "prefect-secret"  # noqa: S105 - the name of its file
USER = "kycflow"
LOGIN = re.compile(r"[!-9;-~]+:[!-~]{8,}")
"""A user and a password. Prefect's server compares nothing but ASCII."""
MOST_BYTES = 1000
SERVER_SECRET, CLIENT_SECRET = "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"
SERVER_ORIGINS = "PREFECT_SERVER_CORS_ALLOWED_ORIGINS"
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")


def secret_file(settings: Settings) -> Path:
    """Where the secret lies: one line, `user:password`, as Prefect's UI and API want it."""
    return settings.state_dir.absolute() / SECRET


def read_secret(settings: Settings) -> str:
    """The secret of the state folder's Prefect server.

    Raises:
        ConfigurationError: there is none, or its file is not one that kycflow has made.
    """
    file = secret_file(settings)
    try:
        # No link: its file may be somebody else's.
        with open(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as opened:
            found = os.fstat(opened.fileno())
            if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid():
                os.fchmod(opened.fileno(), 0o600)
                text = opened.read(MOST_BYTES).decode(errors="replace").strip()
                if LOGIN.fullmatch(text):
                    return text
    except FileNotFoundError as exc:
        raise ConfigurationError(f"{file} is not there: `kycflow up` makes it. Stop the system, and start it.") from exc
    except OSError as exc:
        raise ConfigurationError(f"{file} cannot be read ({exc.strerror}): remove it, and start `kycflow up`.") from exc
    raise ConfigurationError(
        f"{file} is not a file of yours with one line, user:password: remove it, and start `kycflow up`."
    )


def make_secret(settings: Settings) -> str:
    """The secret, made where there is none yet. One that stands in the server's own variable is kept in its place.

    Raises:
        ConfigurationError: see `read_secret`. The variable holds no login.
    """
    given, file = os.environ.get(SERVER_SECRET), secret_file(settings)
    if given and not LOGIN.fullmatch(given):
        raise ConfigurationError(f"{SERVER_SECRET} is not user:password, in ASCII, with 8 characters or more.")
    if not given and os.path.lexists(file):
        return read_secret(settings)
    file.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all: a temporary file is its owner's only, and takes its name when it is complete.
    with NamedTemporaryFile("w", dir=file.parent, prefix=SECRET) as new:
        new.write(f"{given or f'{USER}:{secrets.token_urlsafe(32)}'}\n")
        new.flush()
        if given:
            file.unlink(missing_ok=True)
        with suppress(FileExistsError):  # somebody else was faster
            os.link(new.name, file)
    return read_secret(settings)


def access_variables(settings: Settings) -> dict[str, str]:
    """The lock and its key, as variables for every process of `kycflow up`. Raises as `make_secret` does."""
    value = make_secret(settings)
    return {SERVER_SECRET: value, CLIENT_SECRET: value, SERVER_ORIGINS: os.environ.get(SERVER_ORIGINS, "")}


def client_settings(settings: Settings, addresses: "Addresses | None") -> dict["Setting", str]:
    """Prefect's settings for calls to the system that runs from this state folder; none where none does.

    Raises:
        ConfigurationError: see `read_secret`.
    """
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL

    if addresses is None:
        return {}
    return {PREFECT_API_URL: addresses.prefect_api, PREFECT_API_AUTH_STRING: read_secret(settings)}


def allowed_hosts(settings: Settings) -> list[str]:
    """The names under which Prefect's server may be addressed."""
    more = (settings.prefect_hosts or "").split(",")
    return [*LOOPBACK_NAMES, *(name.strip() for name in more if name.strip())]
