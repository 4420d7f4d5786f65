"""Datasets written, opened and read in new processes: xshm, files of other formats, bare bytes."""

from __future__ import annotations

import functools
import importlib
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from .comparison import Call, Column, Goal, Work
from .formats import BARE_OPENERS, BARE_WRITERS, OPENERS, VARIABLE, WRITERS, is_installed
from .fresh import PROCESSES, folder, fresh
from .memory import own_memory

#: Length of each of the indexes of strings and of times.
LABELS = 1_000_000


def one_variable(size: int) -> xr.Dataset:
    """A Dataset of so many bytes, float32, in rows of 4 MiB."""
    values = np.arange(size // 4, dtype=np.float32).reshape(-1, min(2**20, size // 4))
    return xr.Dataset({VARIABLE: (("time", "x"), values)})


def import_what(name: str) -> None:
    """Import all that a system needs; no import is measured."""
    xr.backends.list_engines()
    if name in WRITERS and name != "pickle":
        importlib.import_module(name)


def names(*groups: dict[str, Any]) -> list[str]:
    """The systems that are installed."""
    return [name for group in groups for name in group if is_installed(name)]


# ---- reading


@contextmanager
def reading(size: int) -> Iterator[dict[str, Call]]:
    """A variable of 1 GiB is opened in another process, and its mean taken.

    From opening to the mean, in a process that has just started and imported what it needs.
    "mmap" and "np.memmap" map the file that xshm has published, by its offset. "Pool" pickles
    the array to a process of ``multiprocessing.Pool`` that runs already. "own memory" is what
    that process takes of its own then, in sizes of the variable.
    """
    dataset = one_variable(size)
    with folder() as place, PROCESSES.Pool(1) as pool:
        for name in names(WRITERS):
            WRITERS[name](dataset, place)
        values = dataset[VARIABLE].values
        pool.apply(mean, (values[:1],))
        calls: dict[str, Call] = {
            name: functools.partial(fresh, read, name, place, size)
            for name in names(OPENERS, BARE_OPENERS)
        }
        calls["Pool"] = lambda: send(pool, values)
        yield calls


def read(name: str, place: Path, size: int) -> dict[str, float]:
    """Open and take the mean, in this process."""
    import_what(name)
    opener = (OPENERS | BARE_OPENERS)[name]
    before = own_memory()
    start = time.perf_counter()
    opened = opener(place)
    values = opened if isinstance(opened, np.ndarray) else opened[VARIABLE].values
    values.mean()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "own memory": (own_memory() - before) / size}


def send(pool: Any, values: np.ndarray[Any, Any]) -> dict[str, float]:
    """Have a process of a pool take the mean."""
    start = time.perf_counter()
    memory = pool.apply(mean, (values,))
    return {"seconds": time.perf_counter() - start, "own memory": memory / values.nbytes}


def mean(values: np.ndarray[Any, Any]) -> int:
    """Take the mean; return what memory this process has of its own then."""
    values.mean()
    return own_memory()


# ---- opening


@contextmanager
def opening(size: int) -> Iterator[dict[str, Call]]:
    """A Dataset of 20 variables, with an index of a million strings and one of a million times,
    is opened.

    "first" in a process that has just started and imported what it needs, "again" as the
    median of ten more. pandas keeps strings in Arrow's form if pyarrow is installed, and each
    as an object if not. The size is the same whatever ``--size``.
    """
    times = pd.date_range("1900-01-01", periods=LABELS, freq="h")
    stations = pd.Index([f"station {i}" for i in range(LABELS)])
    dataset = xr.Dataset(
        {
            f"v{i}": ("time" if i % 2 else "station", np.full(LABELS, i, np.float32))
            for i in range(20)
        },
        {"time": times, "station": stations},
    )
    with folder() as place:
        for name in names(WRITERS):
            WRITERS[name](dataset, place)
        del dataset
        yield {name: functools.partial(fresh, open_again, name, place) for name in names(OPENERS)}


def open_again(name: str, place: Path) -> dict[str, float]:
    """Open once, and ten times more."""
    import_what(name)
    seconds = []
    for _ in range(11):
        start = time.perf_counter()
        opened = OPENERS[name](place)
        seconds.append(time.perf_counter() - start)
        assert opened.sizes == {"time": LABELS, "station": LABELS}
        opened.close()
        del opened
    return {"first": seconds[0], "again": statistics.median(seconds[1:])}


# ---- writing


@contextmanager
def writing(size: int) -> Iterator[dict[str, Call]]:
    """A variable of 1 GiB in a process's own memory is written to ``/dev/shm``.

    From memory to a new file, in a process that has just started. "pwrite" writes the bytes
    alone, "posix_fallocate, pwrite" makes sure first that there is room for all of them, as
    xshm does.
    """
    yield {
        name: functools.partial(fresh, write, name, size) for name in names(WRITERS, BARE_WRITERS)
    }


def write(name: str, size: int) -> dict[str, float]:
    """Make a Dataset, and time how it is written."""
    import_what(name)
    dataset = one_variable(size)
    with folder() as place:
        start = time.perf_counter()
        (WRITERS | BARE_WRITERS)[name](dataset, place)
        return {"seconds": time.perf_counter() - start}


SECONDS = Column("seconds", "s")
WORKS = {
    "read": Work(
        reading,
        (SECONDS, Column("own memory", "own memory, x", "x")),
        (Goal("seconds", 1.1, against="mmap"),),
        baseline="mmap",
    ),
    "open": Work(
        opening,
        (Column("first", "first, s"), Column("again", "again, s")),
        (Goal("again", 0.003),),
    ),
    "write": Work(
        writing, (SECONDS,), (Goal("seconds", 1.2, against="pwrite"),), baseline="pwrite"
    ),
}
