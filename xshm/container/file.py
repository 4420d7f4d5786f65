"""An open container: its header, checked, and its buffers, mapped."""

from __future__ import annotations

import os
from typing import Any, Literal

import numpy as np

from xshm.container import header as headers
from xshm.container import names, preamble
from xshm.container.mapped import ContainerHandle, MappedArray
from xshm.directory import Directory, configured
from xshm.errors import FormatError

Mode = Literal["r", "r+"]


class ContainerFile:
    """A container as it was when it was opened.

    Parameters
    ----------
    name : str
    mode : {"r", "r+"}
        ``"r"``: what is written to the arrays stays in this process. ``"r+"``: everybody sees it.

    Attributes
    ----------
    handle : ContainerHandle
    preamble : Preamble
    header : dict
        Decoded from JSON; its buffers are checked, the rest is not.

    Raises
    ------
    ContainerNotFoundError
    ContainerNameError
    FormatError
        The file is no container, or is damaged.

    Notes
    -----
    The whole is mapped at once, which costs microseconds, and the file is closed: an open
    container holds no descriptor. The mapping ends with the last array that lies in it.
    """

    def __init__(self, name: str, mode: Mode = "r") -> None:
        if mode not in ("r", "r+"):
            raise ValueError(f"expected mode 'r' or 'r+', found {mode!r}")
        here = configured()
        path = names.path_of(here, name)
        file = names.open_file(path, write=mode == "r+")
        try:
            self.preamble, self.header = _read(here, file, name)
            self.handle = ContainerHandle(
                str(path.relative_to(here.path)),
                self.preamble.generation,
                here.domain,
                mode == "r+",
            )
            status = os.fstat(file)
            self.inode, self.modified = status.st_ino, status.st_mtime
            self.whole = MappedArray.map(self.handle, file, 0, self.preamble.nbytes)
        finally:
            os.close(file)

    @property
    def buffers(self) -> list[list[int]]:
        """Offset from the start of the data, and size, of each buffer."""
        return self.header["buffers"]  # type: ignore[no-any-return]

    def sizes(self) -> list[int]:
        """Bytes of each buffer."""
        return [nbytes for _, nbytes in self.buffers]

    def offset_of(self, number: int) -> int:
        """Where a buffer starts, from the start of the file."""
        self._check(number)
        return self.preamble.data_offset + int(self.buffers[number][0])

    def buffer(self, number: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The bytes of a buffer."""
        start = self.offset_of(number)
        return self.whole[start : start + self.buffers[number][1]]

    def _check(self, number: Any) -> None:
        if type(number) is not int or not 0 <= number < len(self.buffers):
            raise FormatError(
                f"expected the number of one of {len(self.buffers)} buffers, found {number!r}"
            )


def _read(here: Directory, file: int, name: str) -> tuple[preamble.Preamble, headers.Header]:
    try:
        try:
            return read(file)
        except FormatError:
            # Somebody may have been adding variables just now.
            with here.names_locked():
                return read(file)
    except FormatError as error:
        raise FormatError(f"cannot open container {name!r}: {error}") from None


def read(file: int) -> tuple[preamble.Preamble, headers.Header]:
    """The preamble and the header of an open file, checked.

    Raises
    ------
    FormatError
    """
    packed = os.pread(file, preamble.NBYTES, 0)
    start = preamble.Preamble.unpack(packed, os.fstat(file).st_size)
    packed_header = os.pread(file, start.header_nbytes, start.header_offset)
    preamble.check(packed, packed_header)
    return start, headers.unpack(packed_header, start.nbytes - start.data_offset)
