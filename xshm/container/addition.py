"""Buffers added to a container that others may have open."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

from xshm.codecs.buffers import Buffers
from xshm.container import header as headers
from xshm.container import preamble
from xshm.container.container import Container, read
from xshm.container.handle import ContainerHandle
from xshm.container.room import reserve
from xshm.container.writing import write_buffers
from xshm.directory import configured
from xshm.errors import XshmError


@dataclass(frozen=True, slots=True)
class Addition:
    """Room at the end of a container's file, which no header speaks of yet.

    Use :func:`begin`.

    Attributes
    ----------
    handle : ContainerHandle
        For those who write the rest.
    header : dict
        The one that speaks of it.
    old : Preamble
    offsets : list of int
        Where each buffer starts in the file, the old ones too.
    begins, ends : int
        Size of the file before and after this room was taken.

    Notes
    -----
    The generation stays: who has the container open goes on with the old header, which still
    says the truth. The 64 bytes that point to the new one are written last, in one call.
    """

    handle: ContainerHandle
    header: headers.Header
    old: preamble.Preamble
    offsets: list[int]
    begins: int
    ends: int

    def publish(self) -> None:
        """From now on everybody who opens the container finds what was added.

        Raises
        ------
        XshmError
            Somebody else changed the container meanwhile.
        """
        packed = headers.pack(self.header)
        file = self.handle.open_file()
        try:
            with configured().names_locked():
                _check_unchanged(file, self.old)
                start = headers.aligned(os.fstat(file).st_size)
                reserve(configured(), file, start, len(packed))
                os.pwrite(file, packed, start)
                new = self.old._replace(
                    header_offset=start, header_nbytes=len(packed), nbytes=start + len(packed)
                )
                os.pwrite(file, new.pack(packed), 0)
        finally:
            os.close(file)

    def discard(self) -> None:
        """Give the room back, unless somebody else has taken more behind it."""
        file = self.handle.open_file()
        try:
            with configured().names_locked():
                if os.fstat(file).st_size == self.ends:
                    os.ftruncate(file, self.begins)
        finally:
            os.close(file)


def begin(container: Container, header: headers.Header, buffers: Buffers) -> Addition:
    """Make room for more buffers, and write what is at hand of them.

    Parameters
    ----------
    container : Container
    header : dict
        Its header, with what is added, and the old buffers.
    buffers : Buffers
        The new ones, numbered after the old ones.

    Raises
    ------
    NoRoomError
    XshmError
        Somebody else changed the container meanwhile.
    """
    old = container.preamble
    handle = container.handle._replace(writable=True)
    file = handle.open_file()
    try:
        with configured().names_locked():
            _check_unchanged(file, old)
            # Others may be adding too: what they reserved lies before the end.
            begins = os.fstat(file).st_size
            start = headers.aligned(begins - old.data_offset)
            placed, end = headers.place(buffers.sizes(), start)
            reserve(configured(), file, old.data_offset + start, max(end - start, 1))
            ends = os.fstat(file).st_size
        all_buffers = header["buffers"] + placed
        offsets = [old.data_offset + offset for offset, _ in all_buffers]
        header = {**header, "buffers": all_buffers}
        addition = Addition(handle, header, old, offsets, begins, ends)
        with contextlib.ExitStack() as undo:
            undo.callback(addition.discard)
            write_buffers(file, buffers, offsets[-len(placed) :] if placed else [])
            undo.pop_all()
    finally:
        os.close(file)
    return addition


def _check_unchanged(file: int, old: preamble.Preamble) -> None:
    found, _ = read(file)
    if found != old:
        raise XshmError(
            "somebody else changed the container while variables were added to it: publish them "
            "again"
        )
