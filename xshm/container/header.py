"""The JSON header of a container, as far as it concerns where bytes are."""

from __future__ import annotations

import itertools
import json
from typing import Any

from xshm.container import preamble
from xshm.errors import FormatError, UnsupportedError

#: Every buffer starts at a multiple of this many bytes, so that it can be mapped by itself.
ALIGNMENT = 4096

Header = dict[str, Any]


def place(sizes: list[int], start: int = 0) -> tuple[list[list[int]], int]:
    """Where buffers go: one after the other from `start` on, each aligned.

    Parameters
    ----------
    sizes : list of int
        Bytes of each.
    start : int
        Bytes that are taken.

    Returns
    -------
    buffers : list of [offset, nbytes]
    end : int
    """
    buffers = []
    for size in sizes:
        start = aligned(start)
        buffers.append([start, size])
        start += size
    return buffers, aligned(start)


def aligned(offset: int) -> int:
    """The next multiple of the alignment."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


def pack(header: Header) -> bytes:
    """The header as UTF-8.

    Raises
    ------
    UnsupportedError
        It is larger than a reader takes.
    """
    packed = json.dumps(header, ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode()
    if len(packed) > preamble.MAX_HEADER:
        raise UnsupportedError(
            f"expected attributes and names of at most {preamble.MAX_HEADER} bytes, found "
            f"{len(packed)}: store large ones as variables"
        )
    return packed


def unpack(packed: bytes, data_nbytes: int) -> Header:
    """Read a header, and check that its buffers lie in the data, apart from each other.

    Parameters
    ----------
    packed : bytes
    data_nbytes : int
        Size of all the data.

    Raises
    ------
    FormatError
    """
    try:
        header = json.loads(packed.decode())
    except (ValueError, RecursionError) as error:  # no JSON or no UTF-8; nested too deeply
        raise FormatError(f"expected a header in JSON, found otherwise: {error}") from error
    if not isinstance(header, dict) or not isinstance(header.get("buffers"), list):
        raise FormatError("expected a header that lists its buffers, found none")
    _check_buffers(header["buffers"], data_nbytes)
    return header


def _check_buffers(buffers: list[Any], data_nbytes: int) -> None:
    for buffer in buffers:
        match buffer:
            case [int(offset), int(nbytes)] if (
                type(offset) is type(nbytes) is int  # and not bool
                and offset >= 0
                and offset % ALIGNMENT == 0
                and 0 <= nbytes <= data_nbytes - offset
            ):
                continue
        raise FormatError(
            f"expected a buffer [offset, nbytes] within {data_nbytes} bytes of data, the offset "
            f"a multiple of {ALIGNMENT}, found {str(buffer)[:80]}"
        )
    for (offset, nbytes), (following, _) in itertools.pairwise(sorted(b for b in buffers if b[1])):
        if offset + nbytes > following:
            raise FormatError(
                f"expected buffers apart from each other, found one of {nbytes} bytes at {offset} "
                f"that overlaps one at {following}"
            )
