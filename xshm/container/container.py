"""A container as it is found: its header, checked, and its bytes, mapped on demand."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable, Iterator
from typing import Any, Literal, Self

import numpy as np

from xshm.container import header as headers
from xshm.container import names, preamble
from xshm.container.handle import ContainerHandle
from xshm.container.mapped import MappedArray
from xshm.directory import configured
from xshm.errors import FormatError
from xshm.names import check

Mode = Literal["r", "r+"]


class Contents:
    """What a container says of itself.

    Attributes
    ----------
    preamble : Preamble
    header : dict
        Decoded from JSON; its buffers are checked, the rest is not.
    """

    def __init__(self, start: preamble.Preamble, header: headers.Header) -> None:
        self.preamble, self.header = start, header

    @property
    def buffers(self) -> list[list[int]]:
        """Offset from the start of the data, and size, of each buffer, in bytes."""
        return self.header["buffers"]  # type: ignore[no-any-return]

    def sizes(self) -> list[int]:
        """Bytes of each buffer."""
        return [nbytes for _, nbytes in self.buffers]

    def offset_of(self, number: int) -> int:
        """Where a buffer starts, from the start of the container.

        Raises
        ------
        FormatError
            There is no buffer of that number.
        """
        if type(number) is not int or not 0 <= number < len(self.buffers):
            raise FormatError(
                f"expected the number of one of {len(self.buffers)} buffers, found {number!r}"
            )
        return self.preamble.data_offset + int(self.buffers[number][0])


class Container(Contents):
    """The contents of a container's file. It holds no descriptor, and no memory of the file.

    Attributes
    ----------
    handle : ContainerHandle
    inode : int
        Of its file.
    """

    def __init__(self, handle: ContainerHandle, file: int) -> None:
        super().__init__(*read(file))
        self.handle = handle._replace(generation=self.preamble.generation)
        self.inode = os.fstat(file).st_ino

    @staticmethod
    def open(name: str, mode: Mode = "r") -> Container:
        """The container of that name; see :func:`opened`."""
        with opened(name, mode) as (container, _):
            return container

    @staticmethod
    def of(handle: ContainerHandle) -> Container:
        """The container that a handle stands for, and no other; see :func:`opened`."""
        with opened(handle) as (container, _):
            return container


class MappedContainer:
    """The bytes of a container.

    Notes
    -----
    The whole is mapped at once, which costs microseconds, and the file is closed again. The
    mapping ends with the last array that lies in it.
    """

    def __init__(self, container: Container, file: int) -> None:
        self.container = container
        self._whole = MappedArray.map(container.handle, file, 0, container.preamble.nbytes)

    @classmethod
    def open(cls, which: str | ContainerHandle, mode: Mode = "r") -> Self:
        """Open a container and map it; see :func:`opened`."""
        with opened(which, mode) as (container, file):
            return cls(container, file)

    def buffer(self, number: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The bytes of a buffer, to be decoded: what others can see is not changed through it."""
        start = self.container.offset_of(number)
        buffer = self._whole[start : start + self.container.buffers[number][1]]
        buffer.flags.writeable = not self.container.handle.writable
        return buffer

    def array(
        self,
        number: int,
        offset: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        dtype: np.dtype[Any],
    ) -> np.ndarray[Any, Any]:
        """An array in a buffer; it was checked that it lies within."""
        return self._whole.part(self.container.offset_of(number) + offset, shape, strides, dtype)


@contextlib.contextmanager
def opened(which: str | ContainerHandle, mode: Mode = "r") -> Iterator[tuple[Container, int]]:
    """A container and its open file.

    Parameters
    ----------
    which : str or ContainerHandle
        A name, or a handle, which says the mode itself.
    mode : {"r", "r+"}
        ``"r"``: what is written to its arrays stays in this process. ``"r+"``: everybody sees it.

    Raises
    ------
    ContainerNotFoundError
        There is none; or it is not the one that the handle stands for, or on another host.
    ContainerNameError
    FormatError
        The file is no container, or is damaged.
    """
    if mode not in ("r", "r+"):
        raise ValueError(f"expected mode 'r' or 'r+', found {mode!r}")
    here = configured()
    if not isinstance(which, ContainerHandle):
        path = f"containers/{check(which, 'container')}"
        which = ContainerHandle(path, "", here.domain, mode == "r+")
        file = names.open_file(f"{here.path}/{path}", write=mode == "r+")
    else:
        file = which.open_file()
    try:
        try:
            container = Container(which, file)
        except FormatError:
            with here.names_locked():  # somebody may have been adding variables just now
                container = Container(which, file)
    except BaseException as error:
        os.close(file)
        if isinstance(error, FormatError):
            raise FormatError(f"cannot open {here.path / which.path}: {error}") from None
        raise
    try:
        yield container, file
    finally:
        os.close(file)


def read(file: int) -> tuple[preamble.Preamble, headers.Header]:
    """The preamble and the header of an open file, checked.

    Raises
    ------
    FormatError
    """
    return parse(lambda nbytes, offset: os.pread(file, nbytes, offset), os.fstat(file).st_size)


def parse(
    read: Callable[[int, int], bytes], nbytes: int
) -> tuple[preamble.Preamble, headers.Header]:
    """The preamble and the header of a container of `nbytes` bytes, checked.

    Parameters
    ----------
    read : callable
        Gives so many bytes from an offset on.
    nbytes : int

    Raises
    ------
    FormatError
    """
    first = read(mmap.PAGESIZE, 0)  # most headers lie there, too
    packed = first[: preamble.NBYTES]
    start = preamble.Preamble.unpack(packed, nbytes)
    header_end = start.header_offset + start.header_nbytes
    if header_end <= len(first):
        packed_header = first[start.header_offset : header_end]
    else:
        packed_header = read(start.header_nbytes, start.header_offset)
    preamble.check(packed, packed_header)
    return start, headers.unpack(packed_header, start.nbytes - start.data_offset)
