"""The sign of life of a flow run's execution, in SQL: from it the sweep knows whose process is gone."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect.context import FlowRunContext

from tasks.leasing import sign_of_life


def run_lease(flow_run_id: UUID | str) -> str:
    """Name of the lease that a flow run's execution keeps. Its owner is the id of the run's state Running."""
    return f"run:{flow_run_id}"


def worker_lease(name: str) -> str:
    """Name of the lease that a worker keeps."""
    return f"worker:{name}"


@contextmanager
def alive() -> Iterator[None]:
    """Give a sign of life for the current flow run while the block runs."""
    context = FlowRunContext.get()
    run = None if context is None else context.flow_run
    if run is None or run.state is None:
        yield
        return
    with sign_of_life(run_lease(run.id), str(run.state.id), forget=True):
        yield
