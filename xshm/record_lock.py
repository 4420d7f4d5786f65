"""A record lock on a file's first byte: of what a descriptor stands for, not of the process.

Others can ask whether somebody has it, without taking it. See ``F_OFD_SETLK`` in fcntl(2): it
goes with the last descriptor of one opening of the file, so a child that inherits one keeps it.
"""

from __future__ import annotations

import fcntl
import os
import struct

# A struct flock of fcntl(2): kind, whence, start, length, pid; with what pads it.
_RECORD = struct.Struct("hhqqi0q")


def take(descriptor: int, *, exclusive: bool = True, wait: bool = False) -> None:
    """Take the lock.

    Raises
    ------
    BlockingIOError
        Somebody else has it, and this was not to wait.
    """
    command = fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK
    fcntl.fcntl(descriptor, command, _record(fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK))


def give_back(descriptor: int) -> None:
    """Give the lock back, if it is held."""
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _record(fcntl.F_UNLCK))


def is_held(descriptor: int) -> bool:
    """Whether anybody else has it."""
    found = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _record(fcntl.F_WRLCK))
    return bool(_RECORD.unpack(found)[0] != fcntl.F_UNLCK)


def _record(kind: int) -> bytes:
    return _RECORD.pack(kind, os.SEEK_SET, 0, 1, 0)
