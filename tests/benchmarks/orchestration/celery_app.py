"""The session with Celery and Redis, as Celery's documentation advises for tasks that must survive a lost worker.

Idempotent tasks acknowledged late, one message fetched at a time, retries with backoff, a queue of its own for what is
long. Nobody waits inside a task: each upload is a task, the one that finds both files starts the comparison. The
visibility time-out is a minute instead of Celery's hour, as no task here takes longer.
"""

import os
from typing import Any

import psycopg
from celery import Celery
from celery.signals import worker_process_init

from tests.benchmarks.orchestration import work

BROKER = "BENCHMARK_BROKER"
COMPARE = "compare"

app = Celery("sessions", broker=os.environ.get(BROKER))
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    task_routes={"compare": {"queue": COMPARE}},
    worker_prefetch_multiplier=1,
    worker_proc_alive_timeout=120,  # models are loaded in that time
    broker_connection_retry_on_startup=True,
    broker_transport_options={"visibility_timeout": 60},
)
RETRIED: dict[str, Any] = {"autoretry_for": (psycopg.OperationalError,), "retry_backoff": True, "max_retries": 10}


@worker_process_init.connect
def warm_up(**_: object) -> None:
    """Models are loaded before the first task comes."""
    if os.environ.get("BENCHMARK_QUEUE") == COMPARE:
        work.comparison()


@app.task(name="uploaded", **RETRIED)
def uploaded(session_id: str, kind: str, path: str) -> None:
    """Note a file; have the files compared when both are there."""
    if work.note_upload(session_id, kind, path):
        compare.delay(session_id)


@app.task(name="compare", **RETRIED)
def compare(session_id: str) -> None:
    """Compare and decide."""
    found = work.uploads(session_id)
    work.verify(session_id, *(found[kind] for kind in work.KINDS))
