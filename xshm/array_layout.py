"""Shapes and dtypes that an array in shared memory can have."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import DTypeLike

from xshm.errors import LayoutError, UnsupportedError

Shape = SupportsIndex | Iterable[SupportsIndex]

_MAX_NBYTES = 2**62  # no file system has room for more
_MAX_NDIM = 64  # of NumPy 2


def new_layout(shape: Shape, dtype: DTypeLike) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """The shape and dtype of a new array, as NumPy would make it."""
    dtype = np.dtype(dtype)
    lengths: tuple[SupportsIndex, ...]
    lengths = tuple(shape) if isinstance(shape, Iterable) else (shape,)
    shape = tuple(map(operator.index, lengths))
    if dtype.subdtype is not None:
        dtype, inner = dtype.subdtype
        shape += inner
    if dtype.itemsize == 0 and dtype.names is None:
        raise LayoutError(
            f"expected a dtype with a size, found {dtype.str!r}: say how long the longest element "
            f"is, {dtype.kind}20 for one"
        )
    check(shape, dtype)
    return shape, dtype


def check(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Raise an error unless an array of this shape and dtype can be shared."""
    if dtype.hasobject or dtype.kind == "T":
        raise UnsupportedError(
            f"expected a dtype of fixed size, found {dtype}: strings have one as numpy.array(x, "
            "'U'); objects can be read by others, but not written to, after xshm.publish(x, name)"
        )
    if any(n < 0 for n in shape) or len(shape) > _MAX_NDIM:
        raise LayoutError(
            f"expected a shape of at most {_MAX_NDIM} lengths from 0 on, found {shape}"
        )
    # A length of 0 does not save the others: NumPy counts so, too.
    nbytes = math.prod(n or 1 for n in shape) * dtype.itemsize
    if nbytes >= _MAX_NBYTES:
        raise LayoutError(
            f"expected an array of less than {_MAX_NBYTES} bytes, found shape {shape} of {dtype}"
        )
