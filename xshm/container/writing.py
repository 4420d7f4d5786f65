"""Arrays written to a file, whatever their strides."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from xshm.codecs.buffers import Buffers
from xshm.whereabouts import bytes_spanned

_PIECE = 2**23  # bytes of a strided array that are made contiguous at a time


def write_buffers(file: int, buffers: Buffers, offsets: list[int]) -> None:
    """Write what is at hand of the buffers."""
    for source, offset in zip(buffers.sources, offsets, strict=True):
        if not isinstance(source, int):
            _write(file, source, offset)


def _write(file: int, x: np.ndarray[Any, Any], offset: int) -> None:
    if x.size == 0 or x.dtype.itemsize == 0:
        return
    if x.flags.c_contiguous:
        # pwrite, not a mapping: half the cost while the pages are new.
        left = bytes_spanned(x)
        while left:
            written = os.pwrite(file, left, offset)
            left, offset = left[written:], offset + written
        return
    row_nbytes = x[0].size * x.itemsize
    if row_nbytes > _PIECE and x.ndim > 1:
        for row in x:
            _write(file, row, offset)
            offset += row_nbytes
        return
    rows = max(_PIECE // row_nbytes, 1)
    for first in range(0, len(x), rows):
        piece = np.ascontiguousarray(x[first : first + rows])
        _write(file, piece, offset)
        offset += piece.nbytes
