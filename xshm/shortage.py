"""What to say when the system has no more of something: files, open files, mappings, memory."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from types import TracebackType

from xshm import config
from xshm.errors import LimitError, NoRoomError, XshmError


def error_for(error: OSError) -> NoRoomError | LimitError | None:
    """The error to raise in place of what a system call gave, or None if it lacked nothing."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            parent = config.get("directory")
            return NoRoomError(
                error.errno,
                f"expected room for another file in {parent}, found {files_in(parent)} free: "
                "remove containers (xshm ls, xshm rm NAME) and what killed processes left (xshm "
                "gc), allow more files (mount -o remount,nr_inodes=1m; or this user's quota), or "
                "set xshm.directory to a larger tmpfs",
            )
        case errno.EMFILE:
            most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            return LimitError(
                error.errno,
                f"expected to open another file, found that this process has {most} open, as many "
                "as it may: close some (ls -l /proc/PID/fd shows them), or allow more (ulimit -n)",
            )
        case errno.ENFILE:
            return LimitError(
                error.errno,
                "expected to open another file, found that all processes together have as many "
                "open as they may: end some, or allow more (sysctl fs.file-max)",
            )
        case errno.ENOMEM:
            return LimitError(
                error.errno,
                "expected memory, or another mapping of memory, found that this process gets no "
                "more: give up arrays that it does not need, use larger and fewer ones, or allow "
                "more mappings (sysctl vm.max_map_count) or memory (ulimit -v; the job's or the "
                "container's limit)",
            )
        case _:
            return None


def files_in(folder: str | os.PathLike[str]) -> str:
    """How many files more a file system can have, and how many in all, in words."""
    try:
        status = os.statvfs(folder)
    except FileNotFoundError:  # removed meanwhile
        return "no files"
    # nr_inodes=0 sets no limit.
    return f"{status.f_favail} of {status.f_files} files" if status.f_files else "any files"


class _Told(contextlib.ContextDecorator):
    """In a block, or a function, a shortage is told as an error of ours, with what to do."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, OSError) and not isinstance(error, XshmError):
            told = error_for(error)
            if told is not None:
                raise told from error


#: ``with shortage.told:`` or ``@shortage.told``
told = _Told()
