"""How much memory processes take, and the most that they took meanwhile."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
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


def peak_resident() -> int:
    """The most that this process was, with all pages that it had mapped and looked at."""
    return _kilobytes("/proc/self/status", "VmHWM:") * 1024


def all_memory(folder: Path) -> int:
    """Own memory of this process and all its descendants, and what a folder takes of a tmpfs.

    Files without a name are left out, and whatever other programs of the machine take.
    """
    files = {status.st_ino: status.st_blocks * 512 for status in _files_in(folder)}
    total = sum(files.values())
    this = psutil.Process()
    for process in [this, *this.children(recursive=True)]:
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            total += own_memory(process.pid)
    return total


def _files_in(folder: Path) -> Iterator[os.stat_result]:
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # removed since
                yield os.stat(os.path.join(parent, name), follow_symlinks=False)


class Peak:
    """Looks at :func:`all_memory` again and again, for as long as its block lasts.

    Parameters
    ----------
    folder : Path
    interval : float
        Seconds in between.

    Attributes
    ----------
    growth : int
        The most that there was, less what there was at the start.
    """

    def __init__(self, folder: Path, interval: float = 0.03) -> None:
        self._folder, self._interval = folder, interval
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._start = self._most = all_memory(self._folder)
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
            self._most = max(self._most, all_memory(self._folder))

    @property
    def growth(self) -> int:
        return self._most - self._start
