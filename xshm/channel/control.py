"""What a channel has beside its latest message: a folder, a page that all map, a writer's lock.

A channel is a folder in ``channels/``, of the channel's name, with two files:

``control``
    One page: what it is, a word that counts events, the number of the latest version. The writer
    holds a record lock on its first byte for life, which readers can ask after without taking it.
``latest``
    A hard link to the segment that holds the latest message; none before the first one.

The files are reached through a descriptor of the folder: a channel that was removed is not
mistaken for a new one of the same name.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import weakref
from pathlib import Path

from xshm import _core, record_lock, shortage
from xshm.channel.message import START, Message
from xshm.container.room import reserve
from xshm.directory import Directory
from xshm.errors import ChannelNotFoundError, FormatError, WriterError

#: In the folder: the link to the latest message.
LATEST = "latest"

_NBYTES = 4096
_MAGIC = b"\x93xshmch\x01"  # the last byte is the version of the page's layout
_EVENTS, _VERSION = slice(8, 12), slice(16, 24)


class Control:
    """The folder and the control page of a channel, made if need be.

    Parameters
    ----------
    directory : Directory
    name : str

    Attributes
    ----------
    name : str
    folder : int
        A descriptor.
    writing : threading.Lock
        For threads that write through one object.

    Raises
    ------
    NoRoomError
    FormatError
        There is something else of that name.
    """

    @shortage.told
    def __init__(self, directory: Directory, name: str) -> None:
        self.name = name
        self._directory = directory
        self._path = path_of(directory, name)
        self._lock = -1
        self.writing = threading.Lock()
        with contextlib.ExitStack() as undo:
            with directory.names_locked(), contextlib.ExitStack() as unmake:
                unmake.callback(_remove_if_empty, self._path)
                self.folder = _open_folder(self._path)
                undo.callback(os.close, self.folder)
                self._file = os.open(
                    "control",
                    os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
                    0o600,
                    dir_fd=self.folder,
                )
                undo.callback(os.close, self._file)
                page = self._map()
                unmake.pop_all()
            undo.pop_all()
        self._events = page[_EVENTS].cast("I")
        self._version = page[_VERSION].cast("Q")
        self._descriptors = [self.folder, self._file]
        weakref.finalize(self, _close, self._descriptors).atexit = False
        _living.add(self)

    def _map(self) -> memoryview:
        # Whoever made it may have been killed on the way: then it is finished here.
        if os.fstat(self._file).st_size < _NBYTES:
            with contextlib.ExitStack() as undo:
                undo.callback(_remove_folder, self.folder, self._path)
                reserve(self._directory, self._file, 0, _NBYTES, "the channel")
                undo.pop_all()
        page = memoryview(_core.map_window(self._file, 0, _NBYTES, True))
        start = page[: len(_MAGIC)]
        if start == bytes(len(_MAGIC)):
            start[:] = _MAGIC
        if start != _MAGIC:
            raise FormatError(
                f"expected a channel at {self._path}, whose control page starts with {_MAGIC!r}, "
                f"found {bytes(start)!r}: it is none, or of another version of xshm"
            )
        return page

    # ---- versions and events ----

    @property
    def version(self) -> int:
        """Number of the latest version, 0 before the first."""
        return self._version[0]

    @property
    def events(self) -> int:
        """A number that changes with each event."""
        return self._events[0]

    def announce(self, version: int) -> None:
        """Say that there is a version, and wake who waits for it."""
        self._version[0] = version
        _core.tell_event(self._events)

    def wait(self, events: int, seconds: float) -> None:
        """Sleep until there is another event, or for that long, or less."""
        _core.wait_for_event(self._events, events, seconds)

    # ---- the writer ----

    @property
    def is_writer(self) -> bool:
        """Whether this object is the one that writes."""
        return self._lock >= 0

    def has_writer(self) -> bool:
        """Whether there is a living process that writes."""
        return record_lock.is_held(self._file)

    @shortage.told
    def become_writer(self) -> None:
        """Be the one that writes, until it is closed.

        Raises
        ------
        WriterError
            There is another one.
        """
        # By a descriptor of its own: the lock is that of what the descriptor stands for, and
        # who holds it is not told by asking.
        with _no_fork:
            self._lock = self._open_again()
            self._descriptors.append(self._lock)
        try:
            record_lock.take(self._lock)
        except BlockingIOError:
            self._give_up_writing()
            raise WriterError(
                f"expected channel {self.name!r} to have no writer, found that another "
                "object or process writes to it: one may write until it is closed or ends"
            ) from None
        self.catch_up()

    @shortage.told
    def catch_up(self) -> None:
        """Announce the latest: who wrote it may have been killed, or interrupted, before."""
        with contextlib.suppress(FileNotFoundError, FormatError):  # none yet, or one to replace
            self.announce(max(self.version, self._latest_version()))

    def _open_again(self) -> int:
        try:
            file = os.open("control", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.folder)
        except FileNotFoundError as error:
            raise self.not_found() from error
        if os.path.samestat(os.fstat(file), os.fstat(self._file)):
            return file
        os.close(file)
        raise self.not_found()

    def has_latest(self) -> bool:
        """Whether anything was ever written."""
        try:
            os.stat(LATEST, dir_fd=self.folder, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _latest_version(self) -> int:
        latest = os.open(LATEST, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.folder)
        try:
            return Message.unpack(os.pread(latest, START, 0), os.fstat(latest).st_size).version
        finally:
            os.close(latest)

    def _give_up_writing(self) -> None:
        # Closing is not enough: a child that is just being forked has the descriptor too.
        record_lock.give_back(self._lock)
        self.forget_writing()

    def forget_writing(self) -> None:
        """In a child: its parent is the writer."""
        with _no_fork:
            self._descriptors.remove(self._lock)
            os.close(self._lock)
            self._lock = -1

    # ---- the end ----

    def is_removed(self) -> bool:
        """Whether the channel has lost its name."""
        return os.fstat(self._file).st_nlink == 0

    def not_found(self) -> ChannelNotFoundError:
        """The error for a channel that was removed."""
        return ChannelNotFoundError(
            errno.ENOENT,
            f"channel {self.name!r} was removed since it was opened: make the Channel anew "
            "to begin another one of that name",
        )

    @shortage.told
    def remove(self) -> None:
        """Take the channel's name away, and wake who waits.

        Raises
        ------
        ChannelNotFoundError
            That was done before.
        """
        with self._directory.names_locked():
            if self.is_removed():
                raise self.not_found()
            # First the page, by which everybody else sees that the channel has gone.
            os.unlink("control", dir_fd=self.folder)
            _core.tell_event(self._events)
            while not _remove_folder(self.folder, self._path):
                pass  # its writer has just written

    def close(self) -> None:
        """Give everything back; if this is the writer, there is none from now on."""
        if self.is_writer:
            self._give_up_writing()
            _core.tell_event(self._events)
        _close(self._descriptors)


def path_of(directory: Directory, name: str) -> Path:
    """Where the channel of that name is, if there is one."""
    return directory.path / "channels" / name


@shortage.told
def all_in(directory: Directory) -> list[str]:
    """The names in use, sorted."""
    try:
        return sorted(os.listdir(directory.path / "channels"))
    except FileNotFoundError:  # there was never one
        return []


def status_of(directory: Directory, name: str) -> tuple[os.stat_result, int]:
    """The status of a channel's control page, and the bytes of its files.

    Raises
    ------
    FileNotFoundError
        There is no channel of that name.
    """
    path = path_of(directory, name)
    control = os.lstat(path / "control")
    nbytes = control.st_size
    with contextlib.suppress(FileNotFoundError):  # nothing was written yet
        nbytes += os.lstat(path / LATEST).st_size
    return control, nbytes


def _open_folder(path: Path) -> int:
    for folder in (path.parent, path):
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except NotADirectoryError as error:
        raise FormatError(
            f"expected a channel at {path}, which is a folder, found a file or a link: it was "
            "not made by xshm; remove it by hand"
        ) from error


def _remove_folder(folder: int, path: Path) -> bool:
    # Not all that it lists, at first: listing takes a descriptor, and there may be none.
    _unlink(folder, ["control", LATEST])
    try:
        path.rmdir()
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        _unlink(folder, os.listdir(folder))
        return False
    return True


def _remove_if_empty(path: Path) -> None:
    with contextlib.suppress(OSError):  # it is not empty, or was not made
        path.rmdir()


def _unlink(folder: int, names: list[str]) -> None:
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)


def _close(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())


# A child is no writer: its copy of the lock would stay when its parent is killed. Between a
# descriptor's opening and its being known, and while it is closed, nobody forks.
_living: weakref.WeakSet[Control] = weakref.WeakSet()
_no_fork = threading.RLock()


def _forget_in_child() -> None:
    for control in [*_living]:
        control.writing = threading.Lock()
        if control.is_writer:
            control.forget_writing()
    _no_fork.release()


os.register_at_fork(
    before=_no_fork.acquire,
    after_in_parent=_no_fork.release,
    after_in_child=_forget_in_child,
)
