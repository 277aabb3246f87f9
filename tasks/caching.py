"""Prefect's cache of finished tasks: how its keys are made, and that its results lie in kycflow's own storage.

The cache saves work and shows in the UI what was reused, as `Cached`. Nothing relies on it: a hit is a hint, which is
checked against its row in SQL, and SQL's unique keys and leases keep each result single. So there are no locks here,
which would outlive a process that was killed. What cannot be read or is not ours is a miss.
"""

import asyncio
import hashlib
import json
import logging
from dataclasses import dataclass
from typing import Any, TypedDict
from uuid import UUID

from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext
from prefect.filesystems import WritableFileSystem
from prefect.serializers import JSONSerializer
from pydantic import PrivateAttr
from pydantic_core import to_jsonable_python

from tasks.errors import KycflowError, StorageUnavailable
from tasks.settings import current_settings
from tasks.storage import open_storage
from tasks.storage.keys import RESULTS

VERSION = 1
"""Of what keys and results mean. With a greater one, nothing is found that was kept before."""
MOST_BYTES = 4096
"""Of a record. One that has more is not ours."""
SERIALIZER = JSONSerializer(object_decoder=None)
"""Plain JSON. A decoder would be code that a record names."""

log = logging.getLogger(__name__)


@dataclass
class NamedInputs(CachePolicy):
    """A task's cache key: a name in storage, made from those of its inputs that its result stands for.

    Never from ids of runs: a retry, a run that is repeated, and another session with the same inputs find the result.
    """

    folder: str = ""
    """Where its results lie, with names of inputs in braces: whoever erases what they are about finds them by it."""
    names: tuple[str, ...] = ()

    def compute_key(
        self, task_ctx: TaskRunContext, inputs: dict[str, Any], flow_parameters: dict[str, Any], **kwargs: Any
    ) -> str:
        """See CachePolicy."""
        del flow_parameters, kwargs
        stands_for = {"task": task_ctx.task.name, "version": VERSION, **{name: inputs[name] for name in self.names}}
        canonical = json.dumps(to_jsonable_python(stands_for), sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        return f"{self.folder.format(**inputs)}{task_ctx.task.name.replace(' ', '-')}-{digest}"


class ResultStorage(WritableFileSystem):
    """kycflow's storage, as Prefect wants it: the same for all workers, without a setting or a block on its server.

    A record says itself which code is to read it, pickle say, and whoever can write to storage writes records. So
    nothing of a stored one but the name in it reaches Prefect.
    """

    _block_type_slug = "kycflow-results"
    _block_document_id: UUID | None = PrivateAttr(UUID("6b796366-6c6f-4770-8265-73756c747300"))
    """Prefect takes a block for a task's results only if it has an id. The server has none of this id."""

    def read_path(self, path: str, _sync: bool = True) -> bytes:  # type: ignore[override]  # Prefect calls it so
        """The record of a result.

        Raises:
            StorageUnavailable: there is none, or it is not ours: Prefect takes that for a miss.
        """
        content = open_storage(current_settings()).read(path, MOST_BYTES)
        name = None if content is None else _name(path, content)
        if content is not None and name is None:
            log.warning("%s is not as kycflow writes it", path, extra={"action": "result.refused"})
        if name is None:
            raise StorageUnavailable(f"{path} is no result of kycflow's. It is made again.")
        return _record(path, name)

    async def aread_path(self, path: str) -> bytes:
        """See `read_path`."""
        return await asyncio.to_thread(self.read_path, path)

    def write_path(self, path: str, content: bytes, _sync: bool = True) -> None:  # type: ignore[override]
        """Keep a result that is a name. Nothing is kept of None, as it stands for nothing, or of an exception.

        Never raises: what the task did is done, whether or not the next one finds it here.
        """
        name = _name(path, content)
        if name is None or len(content) > MOST_BYTES or not path.startswith(RESULTS):
            return
        try:
            open_storage(current_settings()).replace(path, _record(path, name))
        except KycflowError as exc:
            log.warning("result not kept: %s", exc, extra={"action": "result.not_kept"})

    async def awrite_path(self, path: str, content: bytes) -> None:
        """See `write_path`."""
        await asyncio.to_thread(self.write_path, path, content)


OWN_STORAGE = ResultStorage()


class CacheOptions(TypedDict):
    """Options of Prefect's `@task` that make it cached."""

    cache_policy: CachePolicy
    persist_result: bool
    result_storage: WritableFileSystem
    result_serializer: JSONSerializer[Any]
    cache_result_in_memory: bool


class FlowOptions(TypedDict):
    """Options of Prefect's `@flow` on results."""

    persist_result: bool
    result_storage: WritableFileSystem


WITHOUT_RESULT = FlowOptions(persist_result=False, result_storage=OWN_STORAGE)
"""For every flow: else Prefect's server is asked where results go, and what a flow returns is written there."""


def cached(folder: str, *names: str) -> CacheOptions:
    """`@task` options of a task that returns a name: that of a row which it has found or made. None is not cached.

    Args:
        folder: what its keys begin with, as a format of its inputs.
        names: the inputs that make the key.
    """
    return CacheOptions(
        cache_policy=NamedInputs(folder=folder, names=names),
        persist_result=True,
        result_storage=OWN_STORAGE,
        result_serializer=SERIALIZER,
        cache_result_in_memory=False,
    )


def _name(path: str, content: bytes) -> str | None:
    """The name in a record; None if it is not one that kycflow writes at this path."""
    try:
        record = json.loads(content)
        about = record["metadata"]
        if about["serializer"] != SERIALIZER.model_dump() or about["storage_key"] != path:
            return None
        name = json.loads(record["result"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return name if isinstance(name, str) else None


def _record(path: str, name: str) -> bytes:
    about = {"storage_key": path, "serializer": SERIALIZER.model_dump()}
    return json.dumps({"metadata": about, "result": json.dumps(name)}).encode()
