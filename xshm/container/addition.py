"""Buffers and variables added to a container that others may have open."""

from __future__ import annotations

import contextlib
import os

from xshm import process
from xshm.codecs.buffers import Buffers
from xshm.container import header as headers
from xshm.container import names, preamble
from xshm.container.file import read
from xshm.container.mapped import ContainerHandle
from xshm.container.room import reserve
from xshm.container.writing import write_buffers
from xshm.errors import XshmError


class Addition:
    """Room at the end of a container's file, with the bytes that were at hand.

    Parameters
    ----------
    name : str
    header : dict
        The container's, with what is added, and the old buffers.
    old : Preamble
        Of the container when that header was made.
    buffers : Buffers
        The new ones.

    Attributes
    ----------
    handle : ContainerHandle
        For those who write the rest.
    offsets : list of int
        Where each new buffer starts in the file.

    Raises
    ------
    NoRoomError
    XshmError
        Somebody else changed the container meanwhile.

    Notes
    -----
    The generation stays: who has the container open goes on with the old header, which still
    says the truth. The 64 bytes that point to the new one are written last, in one call.
    """

    def __init__(
        self, name: str, header: headers.Header, old: preamble.Preamble, buffers: Buffers
    ) -> None:
        here = process.hold(self).directory
        self._header, self._old = header, old
        with contextlib.ExitStack() as undo:
            undo.callback(process.release, self)
            path = names.path_of(here, name)
            self.handle = ContainerHandle(
                str(path.relative_to(here.path)), old.generation, here.domain, writable=True
            )
            self._file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            undo.callback(os.close, self._file)
            with here.names_locked():
                self._check_unchanged()
                # Others may be adding too: what they reserved lies before the end.
                end = os.fstat(self._file).st_size - old.data_offset
                self._placed, self._end = headers.place(buffers.sizes(), end)
                reserve(here, self._file, old.data_offset + end, self._end - end)
            self.offsets = [old.data_offset + offset for offset, _ in self._placed]
            write_buffers(self._file, buffers, self.offsets)
            undo.pop_all()
        self._directory = here

    def publish(self) -> None:
        """From now on everybody who opens the container finds what was added.

        Raises
        ------
        XshmError
            Somebody else changed the container meanwhile.
        """
        packed = headers.pack({**self._header, "buffers": self._header["buffers"] + self._placed})
        with self._directory.names_locked():
            self._check_unchanged()
            end = headers.aligned(os.fstat(self._file).st_size)
            reserve(self._directory, self._file, end, len(packed))
            os.pwrite(self._file, packed, end)
            start = self._old._replace(
                header_offset=end, header_nbytes=len(packed), nbytes=end + len(packed)
            )
            os.pwrite(self._file, start.pack(packed), 0)
        self.discard()

    def discard(self) -> None:
        """Give it up, or be done with it."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            process.release(self)

    def _check_unchanged(self) -> None:
        found, _ = read(self._file)
        if found != self._old:
            raise XshmError(
                "somebody else changed the container while variables were added to it: publish "
                "them again"
            )
