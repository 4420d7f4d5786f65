"""This process's place in the directory: an id, a locked file, a pool of segments."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import multiprocessing.util
import os
import secrets
import threading
import weakref
from pathlib import Path

from dask.system import CPU_COUNT

from xshm import _core, config, janitor, shortage
from xshm.directory import Directory, configured
from xshm.errors import DirectoryError, LimitError

_MAX_MAP_COUNT = "/proc/sys/vm/max_map_count"
#: Of a control group of version 2 and of version 1, as a container sees its own.
_CGROUP_LIMITS = "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"
_DEFAULT_MAX_MAP_COUNT = 65530  # the kernel's own default (vm.rst in its documentation)


class Process:
    """A living process of the directory; use :func:`current` to get this one.

    Attributes
    ----------
    directory : Directory
    id : str
        Random, 16 hexadecimal digits: the start of every file name of this process.

    Notes
    -----
    The process file is locked with ``flock`` by an open descriptor that nobody else has: a
    child closes the copy it inherits by fork, and ``exec`` closes it too.
    """

    @shortage.told
    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        with contextlib.ExitStack() as undo:
            self.id, self._lock_descriptor = _make_process_file(directory)
            undo.callback(os.close, self._lock_descriptor)
            undo.callback(os.unlink, directory.processes / self.id)
            self.segments_descriptor = os.open(
                directory.segments, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            )
            undo.callback(os.close, self.segments_descriptor)
            _core.open_pool(self.segments_descriptor, self.id, *_limits(directory))
            undo.callback(_core.close_pool)
            _core.prepare_farewell(
                self.segments_descriptor, self.id, str(directory.processes / self.id)
            )
            undo.callback(_core.cancel_farewell)
            janitor.clean(directory)
            undo.pop_all()

    def new_token(self) -> str:
        """A token's name, never given before."""
        return self._new_name("token")

    def new_message(self) -> str:
        """The name of a token for a queue: it stays for ``xshm.grace`` when this process ends."""
        return self._new_name("message")

    def new_draft(self) -> Path:
        """The path of a file in which to write a container, never given before."""
        return self.directory.segments / self._new_name("draft")

    def new_array(self) -> Path:
        """The path of this process's link to an array without a name, never given before."""
        return self.directory.segments / self._new_name("array")

    def _new_name(self, kind: str) -> str:
        # Random, not counted: who was told one name cannot guess what is on its way to others.
        return f"{self.id}.{secrets.token_hex(8)}.{kind}"

    def withdraw(self, token: str) -> None:
        """Remove a token if it is still there, and is this process's and not its parent's."""
        if token.startswith(self.id):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(token, dir_fd=self.segments_descriptor)

    def exists(self, token: str) -> bool:
        """Whether a token was neither taken nor withdrawn."""
        try:
            os.stat(token, dir_fd=self.segments_descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def close(self) -> None:
        """Remove all that is this process's, and what the dead left.

        Its arrays stay usable; the leases of others too.
        """
        _core.close_pool()
        # Somebody removed the whole directory, or put another one in its place; or there is no
        # descriptor to look into it with, and the next process removes what is left.
        with contextlib.suppress(FileNotFoundError, DirectoryError, LimitError), shortage.told:
            self.directory.check()
            janitor.remove_all_of(self.directory, self.id)
            janitor.clean(self.directory)
        self.forget()

    def forget(self) -> None:
        """Close the descriptors, and leave the files: in a child they are its parent's."""
        _core.cancel_farewell()
        os.close(self._lock_descriptor)
        os.close(self.segments_descriptor)

    def __repr__(self) -> str:
        return f"<Process {self.id} in {str(self.directory.path)!r}>"


_current: Process | None = None
_at_exit: multiprocessing.util.Finalize | None = None
_lock = threading.RLock()
_holders: weakref.WeakSet[object] = weakref.WeakSet()
_kept_open = False


def current() -> Process:
    """This process, entered in the directory on first use.

    Raises
    ------
    DirectoryError
        The directory cannot be used.
    NoRoomError
    LimitError
    """
    global _current
    with _lock:
        if _current is None:
            _current = Process(configured())
            _close_at_exit()
        return _current


def _close_at_exit() -> None:
    # Children of multiprocessing end without atexit, but run its finalizers. This is the last
    # of them: the threads that feed queues are joined by one (of priority -5).
    global _at_exit
    _at_exit = multiprocessing.util.Finalize(None, close, exitpriority=-100)


def keep_open() -> None:
    """Enter this process in the directory, until it ends."""
    global _kept_open
    current()
    _kept_open = True


def hold(holder: object) -> Process:
    """Enter this process in the directory for as long as `holder` needs it."""
    with _lock, contextlib.ExitStack() as undo:
        # Before it is entered: a holder that is dropped meanwhile is not to take it for the last.
        _holders.add(holder)
        undo.callback(_holders.discard, holder)
        process = current()
        undo.pop_all()
        return process


def release(holder: object) -> None:
    """`holder` is done. The last one to say so closes the process's place."""
    with _lock:
        _holders.discard(holder)
        if not _holders and not _kept_open:
            close()


def close() -> None:
    """Leave the directory, with nothing left in it; the next use enters it anew."""
    global _current, _kept_open
    with _lock:
        process, _current, _kept_open = _current, None, False
        _holders.clear()
        if process is not None:
            if _at_exit is not None:
                _at_exit.cancel()
            process.close()


def _start_anew_in_child() -> None:
    global _current, _kept_open
    _lock.release()
    _holders.clear()
    process, _current, _kept_open = _current, None, False
    if process is not None:
        process.forget()


# While a thread enters or leaves nobody forks: the child would not know that it has the lock of
# its parent's file, and would keep the parent from being found dead.
os.register_at_fork(
    before=_lock.acquire,
    after_in_parent=_lock.release,
    after_in_child=_start_anew_in_child,
)


def _close_at_exit_of_child(_: object) -> None:
    if _current is not None:
        _close_at_exit()


# A child of multiprocessing, spawned as well as forked, forgets all finalizers before it runs
# its function; by then it has unpickled its arguments, and may be in the directory.
multiprocessing.util.register_after_fork(close, _close_at_exit_of_child)


def set_limits() -> None:
    """Make the pool follow the configuration as it stands now."""
    with _lock:
        if _current is not None:
            _core.set_limits(*_limits(_current.directory))


def _limits(directory: Directory) -> tuple[int, int, int, int, bool]:
    return (
        max(config.get_bytes("threshold"), 1),
        _keep(),
        config.get("waiting"),
        max_map_count() // 2,  # the other half is for containers, and the rest of the program
        directory.gives_huge_pages(),
    )


@functools.cache
def max_map_count() -> int:
    """How many memory mappings a process may have."""
    try:
        with open(_MAX_MAP_COUNT) as file:
            return int(file.read())
    except OSError:  # no /proc, as in some containers
        return _DEFAULT_MAX_MAP_COUNT


def _keep() -> int:
    if config.get("keep") is not None:
        return config.get_bytes("keep")
    return _memory() // (4 * int(CPU_COUNT))


def _memory() -> int:
    """Bytes of memory that this process may use: the machine's, or its container's."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _CGROUP_LIMITS:
        with contextlib.suppress(FileNotFoundError, PermissionError):  # no container
            limit = Path(path).read_text().strip()
            if limit.isdigit():  # or "max"
                memory = min(memory, int(limit))
    return memory


def _make_process_file(directory: Directory) -> tuple[str, int]:
    while True:
        name = secrets.token_hex(8)
        path = directory.processes / name
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # A janitor looked between our two calls, and takes the file for a dead one's.
            os.close(descriptor)
            continue
        if os.fstat(descriptor).st_nlink == 1:
            os.utime(descriptor, (0, 0))  # see janitor: nobody has found it dead
            return name, descriptor
        os.close(descriptor)  # it did so, and was faster
