"""What stands for a container, in this process and in others."""

from __future__ import annotations

import errno
import os
import re
import reprlib
import uuid
from typing import NamedTuple

from xshm.container import names, preamble
from xshm.directory import PROCESS_ID, Directory, configured
from xshm.errors import ContainerNameError, ContainerNotFoundError

_PATH = re.compile(
    rf"containers/[^/\0]+|segments/{PROCESS_ID.pattern}\.[0-9a-f]{{1,16}}\.(draft|array)"
)


class ContainerHandle(NamedTuple):
    """Which container: enough to find it from another process of the domain.

    Attributes
    ----------
    path : str
        Of its file, from the user's directory: ``containers/<name>``, or that of a draft, or of
        one that has no name.
    generation : str
        Another container may have the name by now; it is never taken for this one.
    domain : str
        The directory it is in.
    writable : bool
        Whether writes reach everybody (mode ``"r+"``), or are the process's own (``"r"``).
    """

    path: str
    generation: str
    domain: str
    writable: bool = False

    @property
    def name(self) -> str:
        """By which it was published."""
        return self.path.rpartition("/")[2]

    def directory(self) -> Directory:
        """The directory that it is in.

        Raises
        ------
        ContainerNotFoundError
            That is another host's, and not this one's.
        """
        here = configured()
        if here.domain != self.domain:
            raise ContainerNotFoundError(
                errno.ENOENT,
                f"container {self.name!r} is not in the directory of this process, {here.path}: "
                "it was published on another host, or in a Docker container of its own",
            )
        return here

    def can_be_opened(self) -> bool:
        """Whether the container still has its name."""
        try:
            os.close(self.open_file())
        except ContainerNotFoundError:
            return False
        return True

    def not_found(self) -> ContainerNotFoundError:
        """The error for a container that is not there any more."""
        if self.path.endswith(".draft"):
            return ContainerNotFoundError(
                errno.ENOENT,
                "what was to be published is gone: a Delayed of xshm.publish can be computed "
                "once, while the process that made it lives; call publish again",
            )
        if self.path.endswith(".array"):
            return ContainerNotFoundError(
                errno.ENOENT,
                "the array without a name is gone: the process that pickled it has closed it, or "
                "has ended, before this was unpickled (a pickle of it can be used once after "
                "that); keep it open there, or give it a name",
            )
        return ContainerNotFoundError(
            errno.ENOENT,
            f"container {self.name!r} was removed since this was opened: dask graphs, pickles and "
            "a SharedDataset need its name until they are computed or opened (xshm ls shows which "
            "there are)",
        )

    def version(self) -> str:
        """A text that changes with the values, for the keys of dask graphs.

        Notes
        -----
        :func:`xshm.publish` tells of values that it has written over by the file's time. Of
        what is written through arrays that are open in ``"r+"`` nobody is told, so these get
        another one each time, and no result of theirs is taken for another's.
        """
        if self.writable:
            return f"{self.generation}-{uuid.uuid4().hex}"
        try:
            file = self.open_file()
        except ContainerNotFoundError:
            return self.generation
        try:
            return f"{self.generation}-{os.fstat(file).st_mtime_ns}"
        finally:
            os.close(file)

    def open_file(self) -> int:
        """Open the container's file.

        Returns
        -------
        int
            A descriptor, which is the caller's to close.

        Raises
        ------
        ContainerNotFoundError
            It was removed or replaced, or is in the directory of another host.
        ContainerNameError
            It is no container's path: a pickle that was not made by xshm.
        """
        here = self.directory()
        if not _PATH.fullmatch(self.path):
            raise ContainerNameError(
                f"expected the path of a container, found {reprlib.repr(self.path)}"
            )
        try:
            file = names.open_file(f"{here.path}/{self.path}", write=self.writable)
        except ContainerNotFoundError as error:
            raise self.not_found() from error
        try:
            found = preamble.Preamble.unpack(
                os.pread(file, preamble.NBYTES, 0), os.fstat(file).st_size
            )
            if found.generation != self.generation:
                raise ContainerNotFoundError(
                    errno.ENOENT,
                    f"container {self.name!r} was published again since this was opened: open it "
                    "again, and build anew what was built on it",
                )
        except BaseException:
            os.close(file)
            raise
        return file
