"""Removal of what dead processes left.

Invariant 6, "a dead process holds nothing": each process holds a lock on its own file in
``processes/`` for life. The kernel drops the lock however the process ends, so whoever gets
it may remove what carries that process's id. Leases are not touched by this: the bytes of
an unlinked segment live until the last mapping is gone.

Messages, which are tokens sent over a queue, stay for ``xshm.grace`` after that: their sender
may end before they are read. The clock is the time of the process file. It is 0 while its
process lives, and is set by the process when it ends, or by the first that finds it dead.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from xshm import config, lock_file, shortage
from xshm.directory import PROCESS_ID, Directory

logger = logging.getLogger(__name__)

_LIFETIME = ".lifetime"
_MESSAGE = ".message"


class Remains(NamedTuple):
    """What there is of a process, to be removed.

    Attributes
    ----------
    process : str
        Its id.
    files : dict of Path to os.stat_result
        Containers bound to its life among them; its own file last.
    """

    process: str
    files: dict[Path, os.stat_result]

    def remove(self, directory: Directory) -> None:
        """Remove all of it."""
        for file, status in self.files.items():
            if file.parent == directory.containers:
                directory.remove_name(file.name, status.st_ino)
            else:
                with contextlib.suppress(FileNotFoundError):  # another janitor was faster
                    os.unlink(file)


def remains(directory: Directory) -> Iterator[Remains]:
    """What the dead left. Until the next one is asked for, nobody else finds this one dead.

    Messages that may still be read are not among its files; there may be no others.

    Notes
    -----
    Segments are listed before processes: a file seen in the first list had its process's
    file then, so that one missing from the second has ended since, in order or not.
    """
    owners = _by_process(os.listdir(directory.segments))
    dead = []
    for process in sorted({*owners, *os.listdir(directory.processes)}):
        with _lock_if_dead(directory, process) as is_dead:
            if is_dead:
                dead.append(process)
    # Listed once for all, now that they make no more: without a message that was sent last, its
    # sender's file would go, and then the message before its time.
    names = _by_process(os.listdir(directory.segments)) if dead else {}
    for process in dead:
        with _lock_if_dead(directory, process) as is_dead:
            if is_dead:
                yield _remains_of(directory, process, names.get(process, []))


def clean(directory: Directory) -> list[str]:
    """Remove what the dead left.

    Parameters
    ----------
    directory : Directory

    Returns
    -------
    list of str
        The ids of the processes that were found dead, and had left something.
    """
    dead = []
    for left in remains(directory):
        left.remove(directory)
        if left.files:
            dead.append(left.process)
    lock_file.remove_free(directory)
    if dead:
        logger.debug("removed what %d dead processes left in %s", len(dead), directory.path)
    return dead


def remove_all_of(directory: Directory, process: str) -> None:
    """Remove every file of a process that is about to end, its own file last."""
    names = _by_process(os.listdir(directory.segments)).get(process, [])
    _remains_of(directory, process, names).remove(directory)


@contextlib.contextmanager
def _lock_if_dead(directory: Directory, process: str) -> Iterator[bool]:
    """Whether a process is dead; while the block runs, nobody else will find that."""
    if not PROCESS_ID.fullmatch(process):
        yield False  # not a name of ours: leave it to whoever made it
        return
    try:
        descriptor = os.open(directory.processes / process, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield True  # only its segments are left
        return
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        yield False  # a link, a folder, ...: not a file of ours
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)


@shortage.told
def bind_to_life(directory: Directory, process: str, name: str, inode: int) -> Path:
    """Have a container's name removed when a process ends, unless it names another file then.

    Returns
    -------
    Path
        The note that says so, which may be removed.
    """
    note = directory.segments / f"{process}.{inode:x}{_LIFETIME}"
    # A link that leads nowhere: its target is what is noted, as with the directory's domain.
    os.symlink(f"{inode}/{name}", note)
    return note


def _by_process(names: list[str]) -> dict[str, list[str]]:
    by_process: dict[str, list[str]] = {}
    for name in names:
        by_process.setdefault(name.partition(".")[0], []).append(name)
    return by_process


def _remains_of(directory: Directory, process: str, names: list[str]) -> Remains:
    bound = {}
    for name in names:
        if name.endswith(_LIFETIME):
            # Another janitor was faster; or it is no link of ours.
            with contextlib.suppress(OSError):
                inode, _, container = os.readlink(directory.segments / name).partition("/")
                if inode.isdecimal() and container and "/" not in container:
                    bound[directory.containers / container] = int(inode)
    own = [*(directory.segments / name for name in names), directory.processes / process]
    if any(name.endswith(_MESSAGE) for name in names) and _in_grace(own[-1]):
        own = [file for file in own[:-1] if file.suffix != _MESSAGE]
    files = {}
    for file in [*bound, *own]:
        with contextlib.suppress(FileNotFoundError):
            status = file.lstat()
            if not stat.S_ISDIR(status.st_mode) and bound.get(file) in (None, status.st_ino):
                files[file] = status
    return Remains(process, files)


def _in_grace(process_file: Path) -> bool:
    """Whether a process that is dead, or about to end, may still be read from."""
    now = time.time()
    try:
        ended = process_file.stat().st_mtime
        if ended == 0:
            ended = now
            os.utime(process_file, (now, now))
    except FileNotFoundError:  # somebody removed it by hand
        return False
    return now < ended + config.get_seconds("grace")
