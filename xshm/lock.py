"""A lock between processes that the kernel releases when its holder dies."""

from __future__ import annotations

import fcntl
import os
import threading
import time
import weakref
from typing import Self

from xshm.container.handle import ContainerHandle
from xshm.errors import XshmError

_LONGEST_PAUSE = 0.01  # seconds between two tries, where a time is set


class ContainerLock:
    """The lock of a container: one process, and one of its threads, holds it at a time.

    It guards nothing by itself: those who write to a container opened with ``mode="r+"`` agree
    to take it. It goes to another process by pickle, in a task of a pool as well.

    Parameters
    ----------
    container : ContainerHandle

    Examples
    --------
    >>> import numpy as np, xshm
    >>> with xshm.publish(np.zeros(3), "counts") as shared, shared.lock:
    ...     shared.open("r+")[:] += 1

    Notes
    -----
    It is ``flock`` on the container's file: the kernel takes it back when its holder ends,
    however that happens. A child forked while it is held does not hold it.
    """

    def __init__(self, container: ContainerHandle) -> None:
        self._container = container._replace(writable=True)
        self._in_process = threading.Lock()
        self._file = -1
        self._holder = 0  # the thread that has it

    def acquire(self, timeout: float | None = None) -> bool:
        """Take the lock.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most; without it, for as long as it takes.

        Returns
        -------
        bool
            Whether it was to be had in that time.

        Raises
        ------
        ContainerNotFoundError
            The container was removed or replaced.
        XshmError
            This thread holds it already.
        """
        if self._file >= 0 and self._holder == threading.get_ident():
            raise XshmError(
                "expected a lock that this thread does not hold, found one that it does: it "
                "cannot be taken twice"
            )
        until = None if timeout is None else time.monotonic() + timeout
        if not self._in_process.acquire(timeout=-1 if timeout is None else max(timeout, 0)):
            return False
        try:
            file = self._container.open_file()
            try:
                if _flock(file, until):
                    os.close(self._container.open_file())  # it is not replaced by now
                    self._file, self._holder = file, threading.get_ident()
                    _held.add(self)
                    return True
            finally:
                if self._file != file:
                    os.close(file)
        finally:
            if self._file < 0:
                self._in_process.release()
        return False

    def release(self) -> None:
        """Give the lock back.

        Raises
        ------
        XshmError
            It is not held.
        """
        if self._file < 0:
            raise XshmError("expected a lock that this object holds, found one that it does not")
        file, self._file = self._file, -1
        _held.discard(self)
        # Closing is not enough: a child that was forked meanwhile may have the descriptor too.
        fcntl.flock(file, fcntl.LOCK_UN)
        os.close(file)
        self._in_process.release()

    def locked(self) -> bool:
        """Whether this object holds it."""
        return self._file >= 0

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def __reduce__(self) -> tuple[type[ContainerLock], tuple[ContainerHandle]]:
        return ContainerLock, (self._container,)


def _flock(file: int, until: float | None) -> bool:
    if until is None:
        fcntl.flock(file, fcntl.LOCK_EX)
        return True
    pause = 1e-4
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            left = until - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(pause, left))
            pause = min(2 * pause, _LONGEST_PAUSE)
        else:
            return True


_held: weakref.WeakSet[ContainerLock] = weakref.WeakSet()


def _forget_in_child() -> None:
    # A child's copy of the descriptor would keep the lock when the parent is killed.
    for lock in [*_held]:
        os.close(lock._file)
        lock._file = -1
        lock._in_process = threading.Lock()
    _held.clear()


os.register_at_fork(after_in_child=_forget_in_child)
