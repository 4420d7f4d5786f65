"""A container that is being written, under a name of its own until it is whole."""

from __future__ import annotations

import contextlib
import errno
import os

from xshm import janitor, process, shortage
from xshm.codecs.buffers import Buffers
from xshm.container import names
from xshm.container.handle import ContainerHandle
from xshm.container.header import Header
from xshm.container.plan import Plan
from xshm.container.room import reserve
from xshm.container.writing import write_buffers
from xshm.directory import configured
from xshm.errors import ContainerExistsError


class Draft:
    """A new container, with its header and the bytes that were at hand; others may follow.

    Parameters
    ----------
    header : dict
        Without its buffers.
    buffers : Buffers

    Attributes
    ----------
    path : Path
        A file that goes with this process, if it is not published before.
    handle : ContainerHandle
        For those who write the rest.
    offsets : list of int
        Where each buffer starts in the file.

    Raises
    ------
    NoRoomError
        Nothing is left behind.
    LimitError
        Nor then.

    Notes
    -----
    Invariant 5, "no store into a page that might not be there": all of the file is allocated
    before anybody maps it to write to it.
    """

    @shortage.told
    def __init__(self, header: Header, buffers: Buffers) -> None:
        plan = Plan.of(header, buffers)
        self.process = process.hold(self)
        self.nbytes, self.offsets = plan.nbytes, plan.offsets
        here = self.process.directory
        self.path = self.process.new_draft()
        self.handle = ContainerHandle(
            str(self.path.relative_to(here.path)), plan.generation, here.domain, writable=True
        )
        with contextlib.ExitStack() as undo:
            undo.callback(self.discard)
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            undo.callback(os.close, file)
            reserve(here, file, 0, self.nbytes)
            write_buffers(file, buffers, self.offsets)
            os.pwrite(file, plan.start, 0)
            undo.pop_all()
            os.close(file)

    def discard(self) -> None:
        """Remove the file; the container stays if it was published."""
        self.path.unlink(missing_ok=True)
        process.release(self)


@shortage.told
def publish(draft: ContainerHandle, name: str, *, replace: bool) -> ContainerHandle:
    """Give a draft its name: from now on everybody sees it, whole.

    Raises
    ------
    ContainerExistsError
        There is one of that name, and it was not to be replaced.
    """
    here = configured()
    path = names.path_of(here, name)
    try:
        with here.names_locked():
            if replace:
                os.rename(here.path / draft.path, path)
            else:
                os.link(here.path / draft.path, path)
                (here.path / draft.path).unlink()
    except FileExistsError as error:
        raise exists(name) from error
    except IsADirectoryError as error:
        raise names.is_folder(path) from error
    except FileNotFoundError as error:
        raise draft.not_found() from error
    return draft._replace(path=str(path.relative_to(here.path)), writable=False)


@shortage.told
def check_is_free(name: str) -> None:
    """Before a lot is written that is to have a name: see whether it can have it.

    Raises
    ------
    ContainerExistsError
    ContainerNameError
    """
    here = configured()
    path = names.path_of(here, name)
    if path.exists():
        janitor.clean(here)  # its publisher may be dead, and it was to live as long
        if path.exists():
            raise exists(name)


def exists(name: str) -> ContainerExistsError:
    """The error for a name that is taken."""
    return ContainerExistsError(
        errno.EEXIST,
        f"container {name!r} exists: use it (xshm.open, xshm.SharedArray), remove it first with "
        f"xshm.unlink({name!r}), or replace it by xshm.publish(..., mode='w')",
    )
