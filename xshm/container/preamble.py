"""The first 64 bytes of a container: what it is, and where its header lies."""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from xshm.errors import FormatError

MAGIC = b"\x93xshm\r\n\x1a"
VERSION = 1
NBYTES = 64

#: A header may not be larger than this, in bytes: nobody is to read gigabytes to be told no.
MAX_HEADER = 2**28

# Little-endian: magic, version, checksum, generation, offset and size of the header, offset of
# the data, size of the file.
_FIELDS = struct.Struct("<8sII16sQQQQ")
_CHECKSUM = slice(12, 16)


class Preamble(NamedTuple):
    """Where the parts of a container are, in bytes from the start of its file.

    Attributes
    ----------
    generation : str
        32 hexadecimal digits, random: no two containers have the same.
    header_offset, header_nbytes : int
        The JSON header.
    data_offset : int
        Where the offsets of the header's buffers count from: a multiple of the page size.
    nbytes : int
        Size of the whole.
    """

    generation: str
    header_offset: int
    header_nbytes: int
    data_offset: int
    nbytes: int

    def pack(self, header: bytes) -> bytes:
        """The 64 bytes, with a checksum over themselves and the header."""
        generation, *offsets = self
        packed = bytearray(_FIELDS.pack(MAGIC, VERSION, 0, bytes.fromhex(generation), *offsets))
        packed[_CHECKSUM] = struct.pack("<I", zlib.crc32(header, zlib.crc32(packed)))
        return bytes(packed)

    @classmethod
    def unpack(cls, packed: bytes, nbytes: int) -> Preamble:
        """Check the first bytes of a file of `nbytes` bytes.

        Raises
        ------
        FormatError
            It is no container, or was cut off, or is of a version that is not known here.
        """
        if len(packed) < NBYTES:
            raise FormatError(
                f"expected a container, of {NBYTES} bytes and more, found {len(packed)} bytes: "
                "it is cut off"
            )
        if packed[: len(MAGIC)] != MAGIC:
            raise FormatError(
                f"expected a container, which starts with {MAGIC!r}, found {packed[:8]!r}"
            )
        _, version, _, generation, *offsets = _FIELDS.unpack(packed)
        if version != VERSION:
            raise FormatError(
                f"expected version {VERSION} of the format, found {version}: it was written by "
                "another version of xshm, which can read it"
            )
        self = cls(generation.hex(), *offsets)
        if self.header_nbytes > MAX_HEADER:
            raise FormatError(
                f"expected a header of at most {MAX_HEADER} bytes, found {self.header_nbytes}"
            )
        if not (
            NBYTES <= self.header_offset <= self.nbytes - self.header_nbytes
            and NBYTES <= self.data_offset <= self.nbytes <= nbytes
        ):
            raise FormatError(
                f"expected a file of {self.nbytes} bytes that hold a header of "
                f"{self.header_nbytes} at {self.header_offset}, found one of {nbytes} bytes: "
                "it is cut off, or damaged"
            )
        return self


def check(packed: bytes, header: bytes) -> None:
    """Compare the checksum of a preamble with its own bytes, and those of the header.

    Raises
    ------
    FormatError
        They differ.
    """
    (expected,) = struct.unpack("<I", packed[_CHECKSUM])
    blank = packed[: _CHECKSUM.start] + bytes(4) + packed[_CHECKSUM.stop :]
    found = zlib.crc32(header, zlib.crc32(blank))
    if found != expected:
        raise FormatError(
            f"expected a header with the checksum {expected:08x}, found {found:08x}: it is damaged"
        )
