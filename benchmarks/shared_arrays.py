"""Arrays that processes share by name: how they are attached, and how elements are got at."""

from __future__ import annotations

import functools
import statistics
import time
import timeit
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np

from .comparison import Call, Column, Goal, Work, share
from .fresh import folder, fresh, installed

DTYPE = np.dtype(np.float64)

#: Times that an array is attached for one sample.
TIMES = 500

#: Of a two-dimensional array.
Shape = tuple[int, int]

#: Takes a name and a shape; returns the array of that name, and what closes it.
Attach = Callable[[str, Shape], tuple[Any, Callable[[], Any]]]


# ---- systems: what makes an array of a name and removes it, and what attaches it


@contextmanager
def _make_xshm(name: str, shape: Shape) -> Iterator[None]:
    import xshm

    with xshm.SharedArray.zeros(shape, DTYPE, name):
        yield


def _attach_xshm() -> Attach:
    import xshm

    def attach(name: str, shape: Shape) -> tuple[Any, Callable[[], Any]]:
        array: Any = xshm.SharedArray(name)
        return array, array.close

    return attach


@contextmanager
def _make_shared_memory(name: str, shape: Shape) -> Iterator[None]:
    memory = SharedMemory(name, create=True, size=shape[0] * shape[1] * DTYPE.itemsize)
    try:
        yield
    finally:
        memory.close()
        memory.unlink()


def _attach_shared_memory() -> Attach:
    def attach(name: str, shape: Shape) -> tuple[Any, Callable[[], Any]]:
        memory = SharedMemory(name)
        return np.ndarray(shape, DTYPE, memory.buf), memory.close

    return attach


def _attach_shared_ndarray2() -> Attach:
    from shared_ndarray2 import SharedNDArray

    def attach(name: str, shape: Shape) -> tuple[Any, Callable[[], Any]]:
        array = SharedNDArray(name, shape, DTYPE)
        return array, array.shm.close

    return attach


@contextmanager
def _make_shared_array(name: str, shape: Shape) -> Iterator[None]:
    import SharedArray

    SharedArray.create(f"shm://{name}", shape, DTYPE)
    try:
        yield
    finally:
        SharedArray.delete(f"shm://{name}")


def _attach_shared_array() -> Attach:
    import SharedArray

    def attach(name: str, shape: Shape) -> tuple[Any, Callable[[], Any]]:
        return SharedArray.attach(f"shm://{name}"), int  # it is closed when it is gone

    return attach


def _new(name: str, shape: Shape) -> tuple[Any, Callable[[], Any]]:
    return np.zeros(shape, DTYPE), int


#: Packages that are compared with, where they are installed.
PACKAGES = ("shared_ndarray2", "SharedArray")

SYSTEMS = {
    "xshm": (_make_xshm, _attach_xshm),
    "SharedMemory": (_make_shared_memory, _attach_shared_memory),
    "shared_ndarray2": (_make_shared_memory, _attach_shared_ndarray2),
    "SharedArray": (_make_shared_array, _attach_shared_array),
}


@contextmanager
def made(size: int) -> Iterator[dict[str, tuple[str, Shape]]]:
    """Arrays of 8 MB, one of each system; their names and shapes."""
    shape = (max(share(size, 8_000_000) // (1000 * DTYPE.itemsize), 5), 1000)
    with folder() as place, ExitStack() as stack:
        arrays = {}
        for number, (system, (make, _)) in enumerate(SYSTEMS.items()):
            if system not in PACKAGES or installed(system):
                name = f"{place.name}-{number}"
                stack.enter_context(make(name, shape))
                arrays[system] = name, shape
        yield arrays


# ---- attaching


@contextmanager
def attaching(size: int) -> Iterator[dict[str, Call]]:
    """An array of 8 MB that another process made is attached by its name.

    "attach" until the array is there, "and close" until one of its elements was read and it is
    closed again. "first" in a process that has just started, the others as the medians of 500
    more. "SharedMemory" is Python's own, with an ``np.ndarray`` over it: it, and
    "shared_ndarray2", must be told dtype and shape.
    """
    with made(size) as arrays:
        yield {
            system: functools.partial(fresh, attach, system, *arrays[system]) for system in arrays
        }


def attach(system: str, name: str, shape: Shape) -> dict[str, float]:
    """Attach and close an array, again and again."""
    attach = SYSTEMS[system][1]()
    attached, closed = [], []
    for _ in range(TIMES + 1):
        start = time.perf_counter()
        array, close = attach(name, shape)
        attached.append(time.perf_counter() - start)
        assert array[3, 4] == 0
        del array
        close()
        closed.append(time.perf_counter() - start)
        del close
    return {
        "first": 1e6 * attached[0],
        "attach": 1e6 * statistics.median(attached[1:]),
        "close": 1e6 * statistics.median(closed[1:]),
    }


# ---- elements


@contextmanager
def elements(size: int) -> Iterator[dict[str, Call]]:
    """Elements of an array of 8 MB are read and written: ``a[3, 4]`` and ``a[3, 4] = 1``.

    The median of seven times 20,000, in a process that has just started. "ndarray" is NumPy's
    own, and what ``get()`` returns.
    """
    with made(size) as arrays:
        asked = [system for system in ("xshm", "shared_ndarray2") if system in arrays]
        calls: dict[str, Call] = {
            system: functools.partial(fresh, access, system, *arrays[system]) for system in asked
        }
        calls["ndarray"] = functools.partial(fresh, access, "ndarray", *arrays["xshm"])
        yield calls


def access(system: str, name: str, shape: Shape) -> dict[str, float]:
    """Read and write an element, again and again."""
    attach = SYSTEMS[system][1]() if system in SYSTEMS else _new
    array, close = attach(name, shape)
    measures = {}
    for measure, statement in (("read", "a[3, 4]"), ("write", "a[3, 4] = 1")):
        seconds = timeit.repeat(statement, globals={"a": array}, number=20_000, repeat=7)
        measures[measure] = 1e9 * statistics.median(seconds) / 20_000
    close()
    return measures


WORKS = {
    "attach": Work(
        attaching,
        (
            Column("attach", "attach, µs", "x"),
            Column("close", "and close, µs", "x"),
            Column("first", "first, µs", "x"),
        ),
        (Goal("attach", 50),),
        baseline="SharedMemory",
    ),
    "element": Work(
        elements,
        (Column("read", "read, ns", "x"), Column("write", "write, ns", "x")),
        (
            Goal("read", 1, against="shared_ndarray2"),
            Goal("write", 1, against="shared_ndarray2"),
        ),
        baseline="ndarray",
    ),
}
