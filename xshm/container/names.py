"""Names of containers, and the files behind them."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from xshm import shortage
from xshm.directory import Directory
from xshm.errors import ContainerNotFoundError, FormatError
from xshm.names import check


def path_of(directory: Directory, name: str) -> Path:
    """Where the container of that name is, if there is one."""
    return directory.containers / check(name, "container")


def open_file(path: str, *, write: bool = False) -> int:
    """Open the file of a container.

    Parameters
    ----------
    path : str
        Not a ``Path``: joining one takes as long as opening the file.
    write : bool, optional

    Returns
    -------
    int
        A descriptor, which is the caller's to close.

    Raises
    ------
    ContainerNotFoundError
        There is none.
    FormatError
        It is not an ordinary file of this user, which nobody else may open.
    LimitError
    """
    access = os.O_RDWR if write else os.O_RDONLY
    try:
        # A FIFO would block without O_NONBLOCK; a link is not followed: invariant 9.
        descriptor = os.open(path, access | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise not_found(Path(path)) from error
    except OSError as error:
        if told := shortage.error_for(error):
            raise told from error
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.EACCES):
            raise
        raise FormatError(
            f"expected a container at {path}, found a link, a folder, a socket or somebody "
            f"else's file ({error.strerror})"
        ) from error
    status = os.fstat(descriptor)
    if (
        not stat.S_ISREG(status.st_mode)
        or status.st_uid != os.geteuid()
        or stat.S_IMODE(status.st_mode) & 0o077
    ):
        os.close(descriptor)
        raise FormatError(
            f"expected an ordinary file of user {os.geteuid()} with mode 600 at {path}, found "
            f"mode {stat.filemode(status.st_mode)} of user {status.st_uid}"
        )
    return descriptor


@shortage.told
def all_in(directory: Directory) -> list[str]:
    """The names in use, sorted."""
    return sorted(name for name in os.listdir(directory.containers) if not name.startswith("."))


def remove(directory: Directory, name: str) -> None:
    """Take a name away. Who has its container open keeps it; the last one frees the memory.

    Raises
    ------
    ContainerNotFoundError
        There is none of that name.
    FormatError
        It is a folder.
    """
    path = path_of(directory, name)
    try:
        if not directory.remove_name(path.name):
            raise not_found(path)
    except IsADirectoryError as error:
        raise is_folder(path) from error


def not_found(path: Path) -> ContainerNotFoundError:
    """The error for a name that there is not."""
    advice = "xshm ls shows which there are"
    if (path.parents[1] / "channels" / path.name).exists():
        advice = f"there is a channel of that name: xshm.Channel({path.name!r})"
    return ContainerNotFoundError(
        errno.ENOENT, f"there is no container {path.name!r} in {path.parent} ({advice})"
    )


def is_folder(path: Path) -> FormatError:
    """The error for a folder in a container's place."""
    return FormatError(
        f"expected a container at {path}, found a folder: it was not made by xshm; remove it by "
        "hand"
    )
