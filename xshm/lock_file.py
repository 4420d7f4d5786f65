"""The file of a lock: how it is taken, given back and removed.

Notes
-----
``flock`` on the file is the lock. Each acquisition opens the file anew, so that threads keep
each other out as processes do, and the kernel takes the lock back when its holder ends.

*The file goes when nobody needs it.* Who gives the lock back removes the file first, under an
exclusive lock; a reader can have that one if there is no other reader. Somebody may have opened
the file by then. He gets the lock of a file that has gone, sees that the path names no file or
another one, and starts again. So two who hold the lock always hold it on the same file.

*Nobody is overtaken for ever.* ``flock`` alone lets new readers in while a writer waits, and lets
who has just given the lock back take it again before those who wait have woken up. So there
is a turnstile before it, a record lock on the file's first byte: everybody passes it, and stays
in it while he waits for the lock. A writer in it keeps all others out. The file is not removed
while somebody waits in the turnstile, since a new file would have an empty one.

*What stays.* Whoever is killed leaves the file, which is empty; so does, rarely, one whose time
is over in just the moment in which the lock is given back. The next one to give that lock back
removes it, or the janitor.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

from xshm import record_lock, shortage
from xshm.directory import Directory
from xshm.errors import DirectoryError

_LONGEST_PAUSE = 0.01  # seconds between two tries, where a time is set


class LockFile:
    """A lock's file, opened, for one acquisition.

    Parameters
    ----------
    path : Path

    Raises
    ------
    NoRoomError
        The file system has room for no other file.
    LimitError
    DirectoryError
        There is something else at the path, or the directory has gone.
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        self.path = path
        self._descriptor = -1
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        try:
            with _no_fork:
                self._descriptor = os.open(path, flags, 0o600)
                _open.add(self)
        except OSError as error:
            raise shortage.error_for(error) or _refused(path, error) from error

    def take(self, exclusive: bool, until: float | None) -> bool:
        """Take the lock, waiting until a time of :func:`time.monotonic`, or as long as it takes."""
        kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        if until is None:
            record_lock.take(self._descriptor, exclusive=exclusive, wait=True)
            fcntl.flock(self._descriptor, kind)
        elif not (
            _try_until(until, lambda: record_lock.take(self._descriptor, exclusive=exclusive))
            and _try_until(until, lambda: fcntl.flock(self._descriptor, kind | fcntl.LOCK_NB))
        ):
            return False
        record_lock.give_back(self._descriptor)
        return True

    def is_current(self) -> bool:
        """Whether the path still names this file."""
        try:
            return os.path.samestat(os.lstat(self.path), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    def remove_if_free(self) -> None:
        """Remove the file if nobody else has the lock or waits for it."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        if not record_lock.is_held(self._descriptor) and self.is_current():
            os.unlink(self.path)

    def give_back(self) -> None:
        """Give the lock back, and remove the file if nobody needs it."""
        try:
            self.remove_if_free()
        finally:
            # Closing is not enough: a child that is just being forked has the descriptor too.
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            self.close()

    def close(self) -> None:
        """Close the file, once; the lock goes with it, unless a parent still has it."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    __del__ = close  # a thread that has ended holds nothing


def remove_free(directory: Directory) -> None:
    """Remove the files of locks that nobody holds."""
    for name in os.listdir(directory.locks):
        try:
            file = LockFile(directory.locks / name, create=False)
        except DirectoryError:  # somebody else was faster; or it is no file of ours
            continue
        try:
            file.remove_if_free()
        finally:
            file.close()


def _try_until(until: float, attempt: Callable[[], object]) -> bool:
    # The kernel has no wait with a time limit for file locks.
    pause = 1e-4
    while True:
        try:
            attempt()
        except BlockingIOError:
            left = until - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(pause, left))
            pause = min(2 * pause, _LONGEST_PAUSE)
        else:
            return True


def _refused(path: Path, error: OSError) -> DirectoryError:
    return DirectoryError(
        error.errno,
        f"cannot open {path} to lock it ({error.strerror}); expected a file of this user's, or "
        "none: remove what is there, or make the xshm.Lock anew if the directory was removed",
        str(path),
    )


# A child closes its copies: the parent's lock would stay with it when the parent is killed. Between
# a file's opening and its entry in the list nobody forks.
_open: weakref.WeakSet[LockFile] = weakref.WeakSet()
_no_fork = threading.RLock()


def _close_in_child() -> None:
    for file in [*_open]:
        file.close()
    _no_fork.release()


os.register_at_fork(
    before=_no_fork.acquire,
    after_in_parent=_no_fork.release,
    after_in_child=_close_in_child,
)
