"""Many computations on a device at once; or one alone, after the device ran out of memory."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tasks.errors import OutOfMemory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Embed = Callable[[NDArray[np.uint8]], NDArray[np.float64]]


class Turns:
    """Who works `together` shares the device; who works `alone` waits until it is empty, and keeps others out."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._closed = False

    @contextmanager
    def together(self) -> Iterator[None]:
        """Share the device with others."""
        with self._changed:
            self._changed.wait_for(lambda: not self._closed)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Have the device for oneself."""
        with self._changed:
            self._changed.wait_for(lambda: not self._closed)
            self._closed = True
            self._changed.wait_for(lambda: self._inside == 0)
        try:
            yield
        finally:
            with self._changed:
                self._closed = False
                self._changed.notify_all()


def frugal(embed: "Embed", turns: Turns) -> "Embed":
    """The same function, tried once more when the device is out of memory: alone, and face by face.

    Raises OutOfMemory when one face alone is too much, and what `embed` raises.
    """

    def embed_frugally(crops: "NDArray[np.uint8]") -> "NDArray[np.float64]":
        import numpy as np

        try:
            with turns.together():
                return embed(crops)
        except OutOfMemory:
            with turns.alone():
                return np.concatenate([embed(crops[number : number + 1]) for number in range(len(crops))])

    return embed_frugally
