"""What lets Prefect's server do more flow runs with a core: settings in its environment, and its garbage collector.

`docs/workers.md` has what each of them gives.
"""

import gc
from typing import Final

LOAD_VARIABLES: Final = {
    # Prefect's 5 are too few for workers with many runs side by side: what overflows is a new connection for a single
    # call, with all its statements prepared anew. SQLite does not have it.
    "PREFECT_SERVER_DATABASE_SQLALCHEMY_POOL_SIZE": "20",
    # Prefect's 15 s mark each run of a backlog Late, in a transaction of its own, when the server has most to do.
    "PREFECT_SERVER_SERVICES_LATE_RUNS_AFTER_SECONDS": "60",
    # Prefect's 1 is a transaction of four statements for each of a task run's states. The UI has them a second later.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL": "2",
}

YOUNG_OBJECTS = 50_000
"""New objects before the collector looks at them. Python's 700 are made by a single call of Prefect's API."""


def leave_loaded_alone() -> None:
    """Have the garbage collector never look again at what is loaded by now, and at what is new more seldom.

    Modules and pydantic's models are hundreds of thousands of objects that live as long as the process. Memory that is
    in no cycle is freed at once, as always.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 20, 50)
