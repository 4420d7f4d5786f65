"""How much memory processes take, and the most that they took meanwhile."""

from __future__ import annotations

import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

import psutil


def cluster_pss() -> int:
    """Memory of this process and all its descendants, in bytes, as PSS.

    The proportional set size divides a shared page between the processes that map it,
    so the sum counts each page once.
    """
    total = 0
    this = psutil.Process()
    for process in [this, *this.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return total


def system_shmem() -> int:
    """Shared memory of the whole machine in bytes, mapped or not (``Shmem`` of meminfo)."""
    return _kilobytes("/proc/meminfo", "Shmem:") * 1024


def own_memory(pid: int | str = "self") -> int:
    """Bytes of a process that are no file's: written by it, and seen by nobody else."""
    return _kilobytes(f"/proc/{pid}/smaps_rollup", "Pss_Anon:") * 1024


def _kilobytes(path: str, key: str) -> int:
    with open(path) as lines:
        for line in lines:
            if line.startswith(key):
                return int(line.split()[1])
    return 0


def all_memory() -> int:
    """Own memory of this process and all its descendants, and the shared memory there is."""
    total = system_shmem()
    this = psutil.Process()
    for process in [this, *this.children(recursive=True)]:
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            total += own_memory(process.pid)
    return total


class Peak:
    """Looks at :func:`all_memory` again and again, for as long as its block lasts.

    Attributes
    ----------
    growth : int
        The most that there was, less what there was at the start.
    """

    def __init__(self, interval: float = 0.03) -> None:
        self._interval = interval
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._start = self._most = all_memory()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(self._interval):
            self._most = max(self._most, all_memory())

    @property
    def growth(self) -> int:
        return self._most - self._start
