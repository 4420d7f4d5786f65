"""Locks between processes that nobody else wants at the moment."""

from __future__ import annotations

import fcntl
import functools
import os
import statistics
import timeit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .comparison import Call, Column, Work
from .fresh import PROCESSES, folder, fresh


@contextmanager
def locking(size: int) -> Iterator[dict[str, Call]]:
    """A lock that nobody else has or wants is taken and given back.

    The median of seven times 2,000, in a process that has just started. "flock" opens a file,
    locks it and closes it, which is the least that a lock of the kernel with a name takes.
    """
    with folder() as place:
        yield {system: functools.partial(fresh, lock, system, place) for system in LOCKS}


def lock(system: str, place: Path) -> dict[str, float]:
    """Take a lock and give it back, again and again."""
    acquire, release = LOCKS[system](place)

    def both() -> None:
        acquire()
        release()

    seconds = timeit.repeat(both, number=2000, repeat=7)
    return {"seconds": 1e6 * statistics.median(seconds) / 2000}


#: What takes a lock, and what gives it back.
Pair = tuple[Callable[[], Any], Callable[[], Any]]


def _xshm(place: Path) -> Pair:
    import xshm

    lock = xshm.Lock("benchmark")
    return lock.acquire, lock.release


def _shared(place: Path) -> Pair:
    import xshm

    lock = xshm.Lock("benchmark").shared()
    return lock.acquire, lock.release


def _multiprocessing(place: Path) -> Pair:
    lock = PROCESSES.Lock()
    return lock.acquire, lock.release


def _flock(place: Path) -> Pair:
    path, held = place / "lock", list[int]()

    def acquire() -> None:
        held.append(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        fcntl.flock(held[0], fcntl.LOCK_EX)

    def release() -> None:
        os.close(held.pop())

    return acquire, release


LOCKS = {
    "xshm": _xshm,
    "xshm, shared": _shared,
    "multiprocessing.Lock": _multiprocessing,
    "flock": _flock,
}

WORKS = {
    "lock": Work(
        locking,
        (Column("seconds", "taken and given back, µs", "x"),),
        baseline="multiprocessing.Lock",
    ),
}
