"""The sign of life of a flow run's execution, in SQL: from it the sweep knows whose process is gone."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect.context import FlowRunContext

from tasks.dispatch import worker_of
from tasks.leasing import sign_of_life

_here: set[str] = set()
"""The workers of this process."""


def run_lease(flow_run_id: UUID | str) -> str:
    """Name of the lease that a flow run's execution keeps. Its owner is the id of the run's state Running."""
    return f"run:{flow_run_id}"


def worker_lease(name: str) -> str:
    """Name of the lease that a worker keeps."""
    return f"worker:{name}"


@contextmanager
def worker_alive(name: str, runs: Callable[[], Collection[UUID]] | None = None) -> Iterator[None]:
    """Give a sign of life for a worker, and for all flow runs in its process, while the block runs.

    Args:
        runs: asked from a thread for the flow runs that the worker has, each from before it is Pending until its last
            state is known. One that it does not have any more is lost. None: it does not tell.
    """
    told = None if runs is None else lambda: sorted(map(str, runs()))
    with sign_of_life(worker_lease(name), name, forget=False, runs=told):
        _here.add(name)
        try:
            yield
        finally:
            _here.discard(name)


def in_worker() -> bool:
    """Whether the current flow run is executed in its worker's own process, beside others."""
    context = FlowRunContext.get()
    return context is not None and context.flow_run is not None and worker_of(context.flow_run) in _here


@contextmanager
def alive() -> Iterator[None]:
    """Give a sign of life for the current flow run while the block runs. Its worker's is enough in the same process."""
    context = FlowRunContext.get()
    run = None if context is None else context.flow_run
    if run is None or run.state is None or in_worker():
        yield
        return
    with sign_of_life(run_lease(run.id), str(run.state.id), forget=True):
        yield
