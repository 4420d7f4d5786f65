"""Arrays whose elements have no fixed size: their elements in a row, and columns about them.

A column is a buffer with one number for each element. Where there are no elements it is None.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from itertools import repeat
from typing import Any

import numpy as np
import pandas as pd

from xshm.codecs import dtypes
from xshm.codecs.buffers import Buffers, Source
from xshm.codecs.specs import Spec, field, malformed, size, sizes

Array = np.ndarray[Any, Any]

#: What stands for a missing element, by its code; 0 is the code of an element that is there.
MISSING = {1: None, 2: np.nan, 3: pd.NA, 4: pd.NaT}

_MISSING_TYPES = {type(value): code for code, value in MISSING.items()}
_NAN = struct.pack("<d", np.nan)
_UNKNOWN = 255


def outline(x: Array) -> Spec:
    """The part of a spec that says the shape of an array, and its memory order."""
    in_columns = x.flags.f_contiguous and not x.flags.c_contiguous
    return {"shape": list(x.shape), "order": "F" if in_columns else "C"}


def elements(x: Array) -> list[Any]:
    """The elements of an array in its memory order."""
    return x.ravel(outline(x)["order"]).tolist()


def count(spec: Spec) -> int:
    """How many elements an array has."""
    return math.prod(sizes(spec, "shape"))


def restore(x: Array, spec: Spec) -> Array:
    """An array of one dimension in the shape and memory order that a spec says."""
    shape, order = sizes(spec, "shape"), field(spec, "order", str)
    if order == "C" or order == "F":
        try:
            restored: Array = x.reshape(shape, order=order)  # type: ignore[call-overload]
            return restored
        except ValueError:  # more dimensions than NumPy has, or of a 0 and of huge ones
            pass
    raise malformed(f"a shape of {x.size} elements, and the order 'C' or 'F'", spec)


def objects(values: Iterable[Any], spec: Spec) -> Array:
    """An array of objects in the shape and memory order that a spec says."""
    return restore(np.fromiter(values, object_dtype(spec), count(spec)), spec)


def object_dtype(spec: Spec) -> np.dtype[Any]:
    """The dtype of an array of objects: the spec tells it only if it has metadata."""
    dtype = dtypes.decode_any(spec.get("dtype", "|O"))
    if dtype.kind != "O":
        raise malformed("a dtype of objects", spec)
    return dtype


def add(x: Array, buffers: Buffers) -> int | None:
    """Add a column."""
    return buffers.add(x) if x.size else None


def column(spec: Spec, key: str, source: Source, dtype: str, length: int) -> Array:
    """A column of so many numbers, on the buffer itself.

    Raises
    ------
    FormatError
        The buffer is too small.
    """
    if length == 0:
        return np.empty(0, dtype)
    data = source.buffer(size(spec.get(key), f"the buffer of {key!r}"))
    nbytes = length * np.dtype(dtype).itemsize
    if data.nbytes < nbytes:
        raise malformed(f"{nbytes} bytes in the buffer of {key!r}", data.nbytes)
    return data[:nbytes].view(dtype)


def codes(values: list[Any], present: dict[type, int]) -> Array | None:
    """A code for each element: which of `present`, or of :data:`MISSING`, it is.

    Returns
    -------
    ndarray of uint8, or None
        None if there are other elements.
    """
    types = _MISSING_TYPES | present
    found = np.fromiter(map(types.get, map(type, values), repeat(_UNKNOWN)), "u1", len(values))
    if (found == _UNKNOWN).any():
        return None
    for position in np.flatnonzero(found == types[float]).tolist():
        value = values[position]
        # Numbers are floats too, and other NaNs exist: they differ in their bits.
        if value is not np.nan and struct.pack("<d", value) != _NAN:
            return None
    return found


def put_missing(values: list[Any], codes: Array) -> None:
    """Replace the elements that have the code of a missing one."""
    for code, missing in MISSING.items():
        for position in np.flatnonzero(codes == code).tolist():
            values[position] = missing
