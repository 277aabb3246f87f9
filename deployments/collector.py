"""Python's garbage collector in processes that load much and live long: Prefect's server, resident workers."""

import gc

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
