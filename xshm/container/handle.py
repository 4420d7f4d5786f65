"""What stands for a container, in this process and in others."""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from xshm import directory
from xshm.container import names, preamble
from xshm.errors import ContainerNotFoundError


class ContainerHandle(NamedTuple):
    """Which container: enough to find it from another process of the domain.

    Attributes
    ----------
    path : str
        Of its file, from the user's directory: ``containers/<name>``, or that of a draft.
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
        """
        here = directory.configured()
        if here.domain != self.domain:
            raise ContainerNotFoundError(
                errno.ENOENT,
                f"container {self.name!r} is not in the directory of this process, {here.path}: "
                "it was published on another host, or in a Docker container of its own",
                self.name,
            )
        file = names.open_file(here.path / self.path, write=self.writable)
        try:
            found = preamble.Preamble.unpack(
                os.pread(file, preamble.NBYTES, 0), os.fstat(file).st_size
            )
            if found.generation != self.generation:
                raise ContainerNotFoundError(
                    errno.ENOENT,
                    f"container {self.name!r} was published again since this was opened: open it "
                    "again, and build anew what was built on it",
                    self.name,
                )
        except BaseException:
            os.close(file)
            raise
        return file
