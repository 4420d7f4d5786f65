"""A message: a page that says what follows, and then a container.

A message fills a segment, or the start of one. The container in it is as ``docs/format.md`` says,
but for objects that are neither labelled nor arrays: these are in its header, as attributes are.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple, Self

import dask
import numpy as np
import xarray as xr

from xshm import _core
from xshm.array_proxy import ArrayProxy
from xshm.codecs import scalars
from xshm.codecs.buffers import Buffers
from xshm.container.header import Header
from xshm.container.image import Image
from xshm.container.plan import Plan
from xshm.directory import SEGMENT_NAME
from xshm.errors import FormatError
from xshm.labelled.from_container import Decoder, reading
from xshm.labelled.to_container import encode

#: Bytes before the container, so that it starts at a page.
START = 4096

_MAGIC = b"\x93xshmmsg"
_LAYOUT = 1
# Little-endian: magic, layout, version, time, monotonic time, size of the container, segment.
_FIELDS = struct.Struct("<8sQQQQQ64s")


class Message(NamedTuple):
    """What a message says of itself.

    Attributes
    ----------
    version : int
    written_at, monotonic : int
        When it was written, in nanoseconds: since the epoch, and by ``CLOCK_MONOTONIC``.
    nbytes : int
        Size of its container.
    segment : str
        The segment that it lies in, by which readers can hand its arrays on; empty if that has
        no name, or a message is so small that it is copied anyway.
    """

    version: int
    written_at: int
    monotonic: int
    nbytes: int
    segment: str

    def pack(self) -> bytes:
        """The first page."""
        *numbers, segment = self
        return _FIELDS.pack(_MAGIC, _LAYOUT, *numbers, segment.encode()).ljust(START, b"\0")

    @classmethod
    def unpack(cls, packed: bytes, nbytes: int) -> Self:
        """Check the first bytes of a file of `nbytes` bytes.

        Raises
        ------
        FormatError
        """
        if len(packed) < _FIELDS.size:
            raise FormatError(
                f"expected a message of a channel, of {START} bytes and more, found {nbytes} bytes"
            )
        magic, layout, version, written_at, monotonic, size, name = _FIELDS.unpack_from(packed)
        if (magic, layout) != (_MAGIC, _LAYOUT):
            raise FormatError(
                f"expected a message of a channel, which starts with {_MAGIC!r} and {_LAYOUT}, "
                f"found {magic!r} and {layout}: it is none, or was written by another version of "
                "xshm"
            )
        segment = name.rstrip(b"\0").decode("ascii", "replace")
        self = cls(version, written_at, monotonic, size, segment)
        if not 0 < self.nbytes <= nbytes - START:
            raise FormatError(
                f"expected a container of at most {nbytes - START} bytes in a message, found one "
                f"of {self.nbytes}: it is damaged"
            )
        if segment and not SEGMENT_NAME.fullmatch(segment):
            raise FormatError(f"expected the name of a segment in a message, found {segment!r}")
        return self


class Contents(NamedTuple):
    """An object taken apart, of which nothing is copied yet."""

    plan: Plan
    buffers: Buffers

    @classmethod
    def of(cls, obj: Any) -> Self:
        """Take an object apart.

        Raises
        ------
        UnsupportedError
            It holds something that a container cannot hold.
        """
        header, buffers = _encode(obj)
        return cls(Plan.of(header, buffers), buffers)

    def fill(self, memory: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        """Copy everything to where the container is to be, and nothing else: gaps are cleared."""
        end = len(self.plan.start)
        memory[:end] = np.frombuffer(self.plan.start, np.uint8)
        for source, offset in zip(self.buffers.sources, self.plan.offsets, strict=True):
            if isinstance(source, np.ndarray) and source.nbytes:
                memory[end:offset] = 0
                np.ndarray(source.shape, source.dtype, memory, offset)[...] = source
                end = offset + source.nbytes
        memory[end:] = 0


def _encode(obj: Any) -> tuple[Header, Buffers]:
    if dask.is_dask_collection(obj) or isinstance(obj, xr.DataTree):
        obj = obj.compute()
    if isinstance(obj, xr.Dataset | xr.DataArray | xr.DataTree | np.ndarray | ArrayProxy):
        encoded = encode(obj)
        return encoded.header, encoded.buffers
    value = scalars.encode(obj, "the value")
    return {"kind": "value", "value": value, "groups": []}, Buffers()


def decode(memory: memoryview) -> Any:
    """The object of a container; its arrays lie in the memory.

    Raises
    ------
    FormatError
    """
    image = Image(memory)
    header = image.container.header
    if header.get("kind") == "value":
        with reading("the value"):
            return scalars.decode(header["value"])
    return Decoder(image).published()


def allocate(nbytes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Memory for a message: a segment, if it is large and there is room."""
    before = _core.set_handler(_core.HANDLER)
    try:
        return np.empty(nbytes, np.uint8)
    finally:
        _core.set_handler(before)
