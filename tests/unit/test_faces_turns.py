"""A device that is out of memory: once more, alone and face by face."""

import threading

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.errors import OutOfMemory
from tasks.faces.native import device_errors
from tasks.faces.turns import Turns, frugal

CROPS = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1)


def small_device(crops: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Takes one face at a time, and says of more what ONNX Runtime says."""
    with device_errors():
        if len(crops) > 1:
            raise RuntimeError("BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer")
    return crops.reshape(len(crops), -1).astype(np.float64)


def test_a_batch_that_is_too_large_is_computed_face_by_face_in_its_order() -> None:
    assert frugal(small_device, Turns())(CROPS)[:, 0].tolist() == [0, 1, 2, 3, 4]


def test_a_device_that_does_not_take_one_face_fails_for_now() -> None:
    def full(_crops: NDArray[np.uint8]) -> NDArray[np.float64]:
        raise OutOfMemory("full")

    turns = Turns()
    with pytest.raises(OutOfMemory):
        frugal(full, turns)(CROPS)
    with turns.together():  # and keeps nobody out afterwards
        pass


def test_the_second_try_waits_until_nobody_else_is_on_the_device_and_keeps_others_out() -> None:
    turns = Turns()
    log: list[str] = []
    inside, go_on = threading.Event(), threading.Event()

    def neighbour() -> None:
        with turns.together():
            inside.set()
            go_on.wait(10)
            log.append("neighbour leaves")

    def late() -> None:
        with turns.together():
            log.append("late one enters")

    def alone(crops: NDArray[np.uint8]) -> NDArray[np.float64]:
        if len(crops) == 1:
            log.append("alone")
            if len(log) == 2:
                threads[1].start()
                threads[1].join(0.2)  # it must not get in
        return small_device(crops)

    threads = [threading.Thread(target=neighbour), threading.Thread(target=late)]
    threads[0].start()
    assert inside.wait(10)
    threading.Timer(0.2, go_on.set).start()
    frugal(alone, turns)(CROPS)
    for thread in threads:
        thread.join(10)
    assert log == ["neighbour leaves", *["alone"] * 5, "late one enters"]
