"""Where the bytes of an array lie."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from numpy.lib.array_utils import byte_bounds

from xshm import _core


class _Span:
    """What NumPy needs to make an array of the bytes that another one spans."""

    def __init__(self, x: np.ndarray[Any, Any]) -> None:
        low, high = byte_bounds(x)
        self.owner = x  # keeps the bytes alive
        self.__array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "shape": (high - low,),
            "data": (low, not x.flags.writeable),
        }


def bytes_spanned(x: np.ndarray[Any, Any]) -> memoryview:
    """All bytes from the lowest to the highest that an array's elements occupy, no copy."""
    return np.asarray(_Span(x)).data


def is_shared(x: np.ndarray[Any, Any]) -> bool:
    """Whether an array's bytes lie in a segment of this process, or in one leased by it.

    Such an array is handed to another process without a copy, unless it was written to since
    it was last handed over.

    Parameters
    ----------
    x : ndarray
        Of any dtype, shape and strides.

    Examples
    --------
    >>> import numpy as np, xshm
    >>> xshm.is_shared(np.ones(1_000_000))
    False
    """
    return x.size > 0 and _core.locate(bytes_spanned(x)) is not None


def segment_leased(x: np.ndarray[Any, Any]) -> str | None:
    """The name of the segment, another process's, that an array is a lease of.

    Returns
    -------
    str or None
        None if it is none, or has been written to since.
    """
    if x.nbytes < mmap.PAGESIZE or x.dtype.hasobject:
        return None
    span = bytes_spanned(x)
    place = _core.locate(span)
    if place is None or place[0] != "leased" or _core.was_written(span):
        return None
    return place[1]
