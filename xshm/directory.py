"""The directory that holds the segments of one user, and its domain.

Layout, below ``xshm.directory``::

    xshm-<uid>/           0700
        domain            a link to a random id, which tells one directory from another
        wanted            who finds no room says here when, and for how much: see _core/room.c
        processes/<id>    one for each process, locked by it for as long as it lives; a worker's
                          size is what it keeps for its next arrays: see _core/room.c
        segments/         <id>.<number>.segment, .token, .message and .array,
                          and of containers .draft and .lifetime
        containers/       one for each published name
        locks/            one for each lock that is held, empty

``<id>`` is the process id that xshm gives (16 hexadecimal digits, random), not the pid:
what runs in Docker may share the directory without sharing pids.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

import psutil

from xshm import config, shortage
from xshm.errors import DirectoryError

PROCESS_ID = re.compile(r"[0-9a-f]{16}")
SEGMENT_NAME = re.compile(rf"{PROCESS_ID.pattern}\.[0-9a-f]{{1,16}}\.segment")
TOKEN_NAME = re.compile(rf"{PROCESS_ID.pattern}\.[0-9a-f]{{1,16}}\.token")
MESSAGE_NAME = re.compile(rf"{PROCESS_ID.pattern}\.[0-9a-f]{{1,16}}\.message")

_DOMAIN_ID = re.compile(r"[0-9a-f]{32}")
_EXPECTED = "expected a directory on a tmpfs that this user may write to: set xshm.directory"


class Directory:
    """One user's folder of segments, made if need be.

    Parameters
    ----------
    parent : str or Path
        Where the folder is, or is to be made: a directory on a tmpfs.

    Attributes
    ----------
    path : Path
        The folder, ``parent / "xshm-<uid>"``.
    domain : str
        The random id that its link ``domain`` holds, 32 hexadecimal digits.

    Raises
    ------
    DirectoryError
        The folder is a link, belongs to somebody else, lets others in, or cannot be made.

    Notes
    -----
    Invariant 9, "only this user": the folder is ``0700`` and ours. One that is not is
    refused rather than mended: somebody may have opened what is in it already.
    """

    def __init__(self, parent: str | os.PathLike[str]) -> None:
        self.path = Path(parent) / f"xshm-{os.geteuid()}"
        self.segments = self.path / "segments"
        self.processes = self.path / "processes"
        self.containers = self.path / "containers"
        self.locks = self.path / "locks"
        folders = self.path, self.segments, self.processes, self.containers, self.locks
        try:
            for folder in folders:
                with contextlib.suppress(FileExistsError):
                    folder.mkdir(mode=0o700)
                _check_is_ours(folder)
            self.domain = _read_or_make_domain(self.path)
            self._state = _state(self.path)
        except DirectoryError:
            raise
        except OSError as error:
            lacking = shortage.error_for(error)
            reason = lacking.strerror if lacking else f"{error.strerror}; {_EXPECTED}"
            raise DirectoryError(
                error.errno, f"cannot use {self.path} for shared memory: {reason}", str(self.path)
            ) from error

    def is_as_found(self) -> bool:
        """Whether the folder is the one that was found, and has the same in it."""
        try:
            return _state(self.path) == self._state
        except OSError:
            return False

    def check(self) -> None:
        """Look again whether the folder is ours alone, and not another one in its place.

        Raises
        ------
        DirectoryError
        FileNotFoundError
            It was removed.
        """
        _check_is_ours(self.path)

    @contextlib.contextmanager
    def names_locked(self) -> Iterator[None]:
        """While the block runs, no other process gives a container's name, or takes one away."""
        self.check()
        with shortage.told:
            descriptor = os.open(self.containers, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            # Closing is not enough: a child that was forked meanwhile has the descriptor too.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def remove_name(self, name: str, inode: int | None = None) -> bool:
        """Take a container's name away, or only if it still stands for the file `inode`."""
        path = self.containers / name
        with self.names_locked(), contextlib.suppress(FileNotFoundError):
            if inode is None or path.lstat().st_ino == inode:
                path.unlink()
                return True
        return False

    def gives_huge_pages(self) -> bool:
        """Whether the tmpfs is mounted so that it gives huge pages to who asks for them."""
        device = os.stat(self.segments).st_dev
        wanted = f"{os.major(device)}:{os.minor(device)}"
        try:
            mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        except OSError:  # no /proc: small pages are always right
            return False
        for mount in mounts:
            # proc(5): id, parent, major:minor, root, mount point, options, ..., super options
            fields = mount.split()
            if fields[2] == wanted:
                options = fields[-1].split(",")
                return "huge=advise" in options or "huge=always" in options
        return False

    def room(self) -> tuple[int, int]:
        """Bytes free for this user, and bytes in all, of the file system.

        Those of the machine's memory if the file system was mounted without a limit.
        """
        status = os.statvfs(self.segments)
        if status.f_blocks == 0:
            memory = psutil.virtual_memory()
            return memory.available, memory.total
        return status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize

    def __repr__(self) -> str:
        return f"<Directory {str(self.path)!r} domain={self.domain}>"


def configured() -> Directory:
    """The directory that the configuration names.

    Raises
    ------
    DirectoryError
        It is not an absolute path, or cannot be used.
    """
    global _last
    parent, user = config.get("directory"), os.geteuid()
    # Asked for with each array that is opened: looking at all that is in it takes 50 us.
    if _last is not None and _last[:2] == (parent, user) and _last[2].is_as_found():
        return _last[2]
    if not os.path.isabs(parent):
        raise DirectoryError(
            errno.EINVAL, f"expected xshm.directory to be an absolute path, found {str(parent)!r}"
        )
    directory = Directory(parent)
    _last = parent, user, directory
    return directory


_last: tuple[object, int, Directory] | None = None


def _state(folder: Path) -> tuple[int, ...]:
    # Links and size count the folders and all entries: times alone are too coarse for what
    # happens at once.
    s = os.lstat(folder)
    return s.st_dev, s.st_ino, s.st_mode, s.st_uid, s.st_nlink, s.st_size, s.st_ctime_ns


def _check_is_ours(folder: Path) -> None:
    status = folder.lstat()
    found = None
    if not stat.S_ISDIR(status.st_mode):
        found = "a link" if stat.S_ISLNK(status.st_mode) else "not a directory"
    elif status.st_uid != os.geteuid():
        found = f"owned by user {status.st_uid}"
    elif stat.S_IMODE(status.st_mode) & 0o077:
        found = f"open to others (mode {stat.S_IMODE(status.st_mode):o})"
    if found is not None:
        raise DirectoryError(
            errno.EPERM,
            f"{folder} is {found}; expected a directory of user {os.geteuid()} with mode 700: "
            "remove it, or set xshm.directory to another place",
            str(folder),
        )


def _read_or_make_domain(folder: Path) -> str:
    # A link whose target is the id: made whole or not at all, and it takes no page, so that
    # it can be made in a tmpfs that is full.
    link = folder / "domain"
    with contextlib.suppress(FileExistsError):
        link.symlink_to(secrets.token_hex(16))
    domain = os.readlink(link)
    if not _DOMAIN_ID.fullmatch(domain):
        raise DirectoryError(
            errno.EINVAL,
            f"{link} points to {domain[:40]!r}; expected 32 hexadecimal digits: remove it when "
            "no program uses xshm",
            str(link),
        )
    return domain
