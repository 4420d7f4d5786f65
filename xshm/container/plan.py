"""What a new container is to be like, byte for byte, but for its arrays."""

from __future__ import annotations

import secrets
from typing import NamedTuple, Self

from xshm.codecs.buffers import Buffers
from xshm.container import header as headers
from xshm.container import preamble


class Plan(NamedTuple):
    """Where the parts of a container go.

    Attributes
    ----------
    generation : str
    start : bytes
        Its first bytes: the preamble and the header.
    offsets : list of int
        Where each buffer starts.
    nbytes : int
        Size of the whole.
    """

    generation: str
    start: bytes
    offsets: list[int]
    nbytes: int

    @classmethod
    def of(cls, header: headers.Header, buffers: Buffers) -> Self:
        """Plan a container of these buffers, with a header that does not list them yet."""
        placed, data_nbytes = headers.place(buffers.sizes())
        packed = headers.pack({**header, "buffers": placed})
        data_offset = headers.aligned(preamble.NBYTES + len(packed))
        start = preamble.Preamble(
            secrets.token_hex(16),
            preamble.NBYTES,
            len(packed),
            data_offset,
            data_offset + data_nbytes,
        )
        return cls(
            start.generation,
            start.pack(packed) + packed,
            [data_offset + offset for offset, _ in placed],
            start.nbytes,
        )
