"""A lock between processes that the kernel releases when its holder dies."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from xshm import names
from xshm.directory import configured
from xshm.errors import LockError, UnsupportedError
from xshm.lock_file import LockFile


class _Hold(NamedTuple):
    """What a thread has of a lock."""

    file: LockFile
    exclusive: bool
    taken: list[bool]
    """For each time that it was taken and not released: whether exclusively."""


class _Holds(threading.local):
    """What this thread holds."""

    def __init__(self) -> None:
        self.by_path: dict[Path, _Hold] = {}


_holds = _Holds()


class _Side:
    """What readers and writers do with a lock."""

    _exclusive: ClassVar[bool]

    def __init__(self, name: str, *, reentrant: bool = False) -> None:
        self._name = names.check(name, "lock")
        self._reentrant = reentrant
        self._found: Path | None = None

    @classmethod
    def _of(cls, name: str, reentrant: bool) -> Self:
        return cls(name, reentrant=reentrant)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._of, (self.name, self._reentrant)

    @property
    def name(self) -> str:
        """Its name."""
        return self._name

    @property
    def _path(self) -> Path:
        # Not before it is used: a worker of a Pool that fails to unpickle a task says nothing.
        # No cached_property: in Python 3.11 it takes a lock, which a forked child may find taken.
        if self._found is None:
            self._found = configured().locks / self._name
        return self._found

    def acquire(self, timeout: float | None = None) -> bool:
        """Take the lock.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most, 0 to try once; without it, for as long as it takes.

        Returns
        -------
        bool
            Whether it was to be had in that time.

        Raises
        ------
        LockError
            This thread has it already, and it is not reentrant; or has it as a reader only, and
            would wait for itself.
        NoRoomError
            The directory has no room for another file.
        LimitError
            The process can open no other file.
        DirectoryError
            The directory cannot be used.
        UnsupportedError
            The timeout is True or False, as other locks take it.

        Notes
        -----
        Without a timeout the kernel wakes who waits. With one, the lock is tried at intervals
        of up to 10 ms. A try may also fail when somebody who had the lock is just giving it back.
        """
        if isinstance(timeout, bool):
            raise UnsupportedError(
                f"expected a timeout in seconds, or none, found {timeout}: acquire() waits, "
                "acquire(timeout=0) does not"
            )
        hold = _holds.by_path.get(self._path)
        if hold is not None:
            self._check_again(hold)
            hold.taken.append(self._exclusive)
            return True
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            file = LockFile(self._path)
            try:
                if not file.take(self._exclusive, until):
                    return False
                if file.is_current():
                    _holds.by_path[self._path] = _Hold(file, self._exclusive, [self._exclusive])
                    return True
            finally:
                if self._path not in _holds.by_path:
                    file.close()

    def _check_again(self, hold: _Hold) -> None:
        if self._exclusive and not hold.exclusive:
            raise LockError(
                f"expected lock {self.name!r} not to be held by this thread as a reader, found "
                "that it is: it would wait for itself; release the reader's side first, or take "
                "the lock exclusively from the start"
            )
        if not self._reentrant:
            raise LockError(
                f"expected lock {self.name!r} not to be held by this thread, found that it is: "
                "release it first, or make it with reentrant=True to take it again"
            )

    def release(self) -> None:
        """Give the lock back, or, if it was taken several times, undo one of these.

        Raises
        ------
        LockError
            This thread has not taken it, or not in this way.
        """
        hold = _holds.by_path.get(self._path)
        if hold is None or self._exclusive not in hold.taken:
            way = "exclusively" if self._exclusive else "as a reader"
            raise LockError(
                f"expected lock {self.name!r} to be held {way} by this thread, found that it is "
                "not: it is released by the thread that took it, and as often"
            )
        hold.taken.remove(self._exclusive)
        if not hold.taken:
            del _holds.by_path[self._path]
            hold.file.give_back()

    def locked(self) -> bool:
        """Whether this thread holds it, in this way or a stronger one."""
        hold = _holds.by_path.get(self._path)
        return hold is not None and (hold.exclusive or not self._exclusive)

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def __repr__(self) -> str:
        reentrant = ", reentrant=True" if self._reentrant else ""
        return f"<xshm.{type(self).__name__} {self.name!r}{reentrant}>"


class SharedLock(_Side):
    """The readers' side of a lock, which :meth:`Lock.shared` gives: many may hold it together."""

    _exclusive = False


class Lock(_Side):
    """A lock with a name, for the processes of this user and their threads.

    One thread of one process holds it, or any number of them hold its :meth:`shared` side. When
    its holder ends, killed or not, it is free. It goes to another process by pickle, in a task of
    a pool as well; whoever makes one of that name has the same lock.

    Parameters
    ----------
    name : str
        As those of containers: at most 200 bytes, no slashes, no dot at the start.
    reentrant : bool
        Whether the thread that holds it may take it again; it releases it as often. Otherwise
        that is an error.

    Raises
    ------
    ContainerNameError
        The text cannot be a name.

    Notes
    -----
    A thread holds the lock of that name, whichever object it took it with. Nothing is
    left in the directory when it is released. A child forked while it is held does not hold it.
    Neither readers nor writers keep the others waiting for ever: who waits for writing goes
    before readers who come later.

    Examples
    --------
    >>> import xshm
    >>> lock = xshm.Lock("results")
    >>> with lock:
    ...     lock.locked()
    True
    >>> with lock.shared():
    ...     lock.locked()
    False
    """

    _exclusive = True

    def shared(self) -> SharedLock:
        """The readers' side: it keeps writers out, but not other readers."""
        return SharedLock._of(self.name, self._reentrant)


os.register_at_fork(after_in_child=lambda: _holds.by_path.clear())
