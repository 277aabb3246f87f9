"""The session with Temporal, as its documentation advises: a workflow that waits for signals, one retried activity.

`python -m tests.benchmarks.orchestration.temporal_app ADDRESS QUEUE` is a worker. Comparisons have a task queue of
their own, and run in processes, as is advised for what needs the processor.
"""

import asyncio
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.common import RetryPolicy
from temporalio.worker import SharedStateManager, Worker

with workflow.unsafe.imports_passed_through():
    from tests.benchmarks.orchestration import work

SESSIONS, COMPARE = "sessions", "compare"
SLOTS = 2
"""Comparisons at a time."""
PATIENCE = timedelta(hours=1)
COMPARE_TIMEOUT = timedelta(minutes=1)
HEARTBEAT_TIMEOUT = timedelta(seconds=10)
"""After that time an activity whose worker was lost is tried again. A comparison that takes longer would beat again."""


@activity.defn
def verify(session_id: str, card: str, video: str) -> None:
    """Compare and store the decision."""
    activity.heartbeat()
    work.verify(session_id, card, video)


@workflow.defn
class Session:
    """Waits for both files, has them compared once."""

    def __init__(self) -> None:
        self._paths: dict[str, str] = {}

    @workflow.signal
    def uploaded(self, kind: str, path: str) -> None:
        """A file is stored."""
        self._paths.setdefault(kind, path)

    @workflow.run
    async def run(self, session_id: str) -> str:
        """The session from its first file to its decision."""
        try:
            await workflow.wait_condition(lambda: len(self._paths) == len(work.KINDS), timeout=PATIENCE)
        except TimeoutError:
            return "expired"
        await workflow.execute_activity(
            verify,
            args=[session_id, *(self._paths[kind] for kind in work.KINDS)],
            task_queue=COMPARE,
            start_to_close_timeout=COMPARE_TIMEOUT,
            heartbeat_timeout=HEARTBEAT_TIMEOUT,
            retry_policy=RetryPolicy(maximum_interval=timedelta(seconds=10)),
        )
        return "decided"


async def serve(address: str, queue: str) -> None:
    """Work for one task queue until a signal ends it."""
    client = await Client.connect(address)
    if queue == SESSIONS:
        await Worker(client, task_queue=SESSIONS, workflows=[Session]).run()
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(SLOTS, context, initializer=work.comparison) as pool, context.Manager() as manager:
        worker = Worker(
            client,
            task_queue=COMPARE,
            activities=[verify],
            activity_executor=pool,
            max_concurrent_activities=SLOTS,
            shared_state_manager=SharedStateManager.create_from_multiprocessing(manager),
        )
        await worker.run()


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
