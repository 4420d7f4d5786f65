"""Room in the directory, taken before it is used."""

from __future__ import annotations

import errno
import os

from xshm import _core, shortage
from xshm.directory import Directory
from xshm.errors import NoRoomError


@shortage.told
def reserve(
    here: Directory, file: int, offset: int, nbytes: int, what: str = "the container"
) -> None:
    """Allocate bytes of a file, after idle segments have made room for them if need be.

    Raises
    ------
    NoRoomError
    LimitError
    """
    try:
        _core.make_room(nbytes)
        os.posix_fallocate(file, offset, nbytes)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise no_room(here, nbytes, what) from error


def no_room(here: Directory, nbytes: int, what: str) -> NoRoomError:
    """The error for something that the directory has no room for."""
    free, total = here.room()
    return NoRoomError(
        errno.ENOSPC,
        f"{what} needs {nbytes / 2**20:.1f} MiB, and {here.path.parent} has "
        f"{free / 2**20:.1f} of {total / 2**20:.1f} MiB free, and "
        f"{shortage.files_in(here.path.parent)}: remove other containers (xshm ls, xshm rm NAME), "
        "make it larger (mount -o remount,size=8g,nr_inodes=1m), or set xshm.directory to a "
        "larger tmpfs",
    )
