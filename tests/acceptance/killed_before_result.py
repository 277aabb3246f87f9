"""A process that dies between the row of a comparison and Prefect's result of it. Run by test_caching.py."""

import asyncio
import os
import signal
import sys

from flows.verify_session import verify_session
from tasks.caching import ResultStorage

write = ResultStorage.write_path


def killed(storage: ResultStorage, path: str, content: bytes, _sync: bool = True) -> None:
    if "compute-comparison" in path:
        os.kill(os.getpid(), signal.SIGKILL)
    write(storage, path, content)


if __name__ == "__main__":
    ResultStorage.write_path = killed  # type: ignore[assignment,method-assign]
    asyncio.run(verify_session(sys.argv[1]))
