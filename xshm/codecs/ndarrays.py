"""NumPy arrays of a dtype of fixed size: where their elements are in a buffer.

The elements are stored without gaps, along the axes in the order that they had in memory, so
that an array comes back with the memory order it had. An axis along which all elements are the
same one (of stride 0) is stored once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xshm.codecs import dtypes
from xshm.codecs.buffers import Buffers, Source
from xshm.codecs.specs import Spec, malformed, size, sizes
from xshm.errors import FormatError

Array = np.ndarray[Any, Any]


class Layout(NamedTuple):
    """Where the elements of an array are.

    Attributes
    ----------
    dtype : dtype
    shape, strides : tuple of int
    buffer : int or None
        The number of the buffer; None if the shape has a 0: then there are no elements.
    offset : int
        Bytes before the first element.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    buffer: int | None
    offset: int


def encode(x: Array, buffers: Buffers, where: str, *, in_full: bool = False) -> Spec:
    """An array of a dtype of fixed size.

    Parameters
    ----------
    x : ndarray
    buffers : Buffers
    where : str
        What it is, for errors.
    in_full : bool, optional
        Whether every element gets bytes of its own, so that it can be written to.

    Raises
    ------
    UnsupportedError
        Its dtype cannot be stored.
    """
    dtype = dtypes.encode(x.dtype, where)
    is_repeated = [
        n > 1 and stride == 0 and not in_full for n, stride in zip(x.shape, x.strides, strict=True)
    ]
    once = x[(*(slice(1) if repeated else slice(None) for repeated in is_repeated), ...)]
    order = sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis]))
    strides = [0] * x.ndim
    stride = x.itemsize
    for axis in reversed(order):
        if not is_repeated[axis]:
            strides[axis] = stride
            stride *= max(x.shape[axis], 1)
    number = buffers.add(once.transpose(order)) if 0 not in x.shape else None
    return _spec(dtype, x.shape, strides, number)


def reserve(shape: Sequence[int], dtype: np.dtype[Any], buffers: Buffers) -> Spec:
    """An array in C order that somebody writes later.

    Raises
    ------
    UnsupportedError
        Its dtype cannot be stored.
    """
    encoded = dtypes.encode(dtype)
    shape = [int(n) for n in shape]
    nbytes = math.prod(shape) * dtype.itemsize
    return _spec(encoded, shape, _c_strides(shape, dtype.itemsize), buffers.reserve(nbytes))


def layout(spec: Spec) -> Layout:
    """Where the elements of an array are, as its spec says.

    Raises
    ------
    FormatError
        The spec is malformed; whether its buffer exists is not looked at.
    """
    if type(spec) is not dict or spec.get("kind") != "ndarray":
        raise malformed("the spec of an ndarray", spec)
    dtype = dtypes.decode(spec.get("dtype"))
    shape, strides = sizes(spec, "shape"), sizes(spec, "strides")
    number = spec.get("buffer")
    if number is not None or 0 not in shape:
        size(number, "the number of a buffer")
    if len(shape) != len(strides) or len(shape) > 64 or dtype.subdtype is not None:
        raise malformed("the spec of an ndarray, with as many strides as dimensions", spec)
    return Layout(dtype, shape, strides, number, size(spec.get("offset"), "an offset"))


def check(place: Layout, nbytes: int) -> None:
    """Raise a FormatError unless an array lies within a buffer of so many bytes."""
    dtype, shape, strides, _, offset = place
    # NumPy cannot count the bytes of larger ones, even if they are all the same one.
    if math.prod(n or 1 for n in shape) * dtype.itemsize >= 2**63:
        raise malformed("an array of less than 2**63 bytes", shape)
    end = offset + dtype.itemsize
    end += sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if 0 not in shape and end > nbytes:
        raise FormatError(
            f"expected an array within a buffer of {nbytes} bytes, found one that ends at {end}: "
            "the container is damaged"
        )


def decode(spec: Spec, source: Source) -> Array:
    """The array of a spec, on the buffer itself.

    Raises
    ------
    FormatError
        The spec is malformed, or lies outside its buffer.
    """
    place = layout(spec)
    dtype, shape, strides, number, offset = place
    if number is None or 0 in shape:
        check(place, 0)
        return np.ndarray(shape, dtype)
    data = source.buffer(number)
    check(place, data.nbytes)
    return np.ndarray(shape, dtype, data, offset, strides)


def decode_column(spec: Spec, source: Source) -> Array:
    """An array that has to have one dimension, and its elements one after the other."""
    x = decode(spec, source)
    if x.ndim != 1 or (x.size and x.strides[0] != x.itemsize):
        raise malformed("an array of one dimension, stored without gaps or repetition", spec)
    return x


def _c_strides(shape: Sequence[int], itemsize: int) -> list[int]:
    strides = [itemsize] * len(shape)
    for axis in reversed(range(len(shape) - 1)):
        strides[axis] = strides[axis + 1] * max(shape[axis + 1], 1)
    return strides


def _spec(dtype: Any, shape: Sequence[int], strides: Sequence[int], buffer: int | None) -> Spec:
    return {
        "kind": "ndarray",
        "dtype": dtype,
        "shape": list(shape),
        "strides": list(strides),
        "buffer": buffer,
        "offset": 0,
    }
