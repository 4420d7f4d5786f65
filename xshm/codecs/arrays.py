"""Arrays as specs and raw buffers, and back: who encodes and decodes which.

========================================  ======================================================
``"kind"`` of the spec                    array
========================================  ======================================================
``"ndarray"``                             NumPy's, of a dtype of fixed size
``"masked"``                              ``MaskedArray``
``"stringdtype"``                         NumPy's, of ``StringDType``
``"strings"``, ``"cftime"``,              NumPy's, of objects
``"objects"``
``"pandas"``                              extension arrays of pandas
========================================  ======================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from xshm.array_proxy import ArrayProxy
from xshm.codecs import calendars, flat, masked, ndarrays, objects, pandas_arrays, strings
from xshm.codecs.buffers import Buffers, Source
from xshm.codecs.specs import Json, Spec, field, malformed, size, sizes, unsupported


def encode(x: Any, buffers: Buffers, where: str) -> Spec:
    """An array as a spec and buffers.

    Parameters
    ----------
    x : ndarray or pandas.api.extensions.ExtensionArray
    buffers : Buffers
        Where its elements go; it must not change until they are written.
    where : str
        What it is, for errors: ``"variable 't2m'"``.

    Raises
    ------
    UnsupportedError
        It is of another class, or has a dtype or elements that cannot be stored.
    """
    if isinstance(x, ArrayProxy):
        x = x.get()
    if isinstance(x, pd.api.extensions.ExtensionArray):
        return pandas_arrays.encode(x, buffers, where)
    if type(x) is np.ma.MaskedArray:
        return masked.encode(x, buffers, where)
    # Other subclasses may hold more than elements, units for one.
    if type(x) is np.memmap:
        x = x.view(np.ndarray)
    if type(x) is not np.ndarray and getattr(type(x), "_xshm_plain", None) is not True:
        raise unsupported(
            where,
            "an array of NumPy or pandas",
            x,
            "convert it to one first, with numpy.asarray for one",
        )
    if isinstance(x.dtype, np.dtypes.StringDType):
        return strings.encode_fixed(x, buffers, where)
    if x.dtype == object:
        return objects.encode(x, buffers, where)
    return ndarrays.encode(x, buffers, where)


def decode(spec: Json, source: Source) -> Any:
    """The array of a spec: an ndarray, or an ExtensionArray of pandas.

    Elements of fixed size are not copied.

    Raises
    ------
    FormatError
        The spec is malformed, or does not fit the buffers.
    """
    try:
        match field(spec, "kind", str):
            case "ndarray":
                return ndarrays.decode(spec, source)
            case "masked":
                return masked.decode(spec, source)
            case "stringdtype":
                return strings.decode_fixed(spec, source)
            case "strings":
                return strings.decode_objects(spec, source)
            case "cftime":
                return calendars.decode(spec, source)
            case "objects":
                return objects.decode(spec, source)
            case "pandas":
                return pandas_arrays.decode(spec, source)
            case kind:
                raise malformed("a known kind of array", kind)
    except RecursionError:
        raise malformed("an array", "one that is nested too deeply") from None


def layout(spec: Json) -> ndarrays.Layout | None:
    """Where the elements of an array of fixed size are; None for arrays of every other kind.

    Raises
    ------
    FormatError
    """
    return ndarrays.layout(spec) if field(spec, "kind", str) == "ndarray" else None


def check(spec: Json, sizes: Sequence[int]) -> None:
    """Raise a FormatError unless an array of fixed size lies within its buffer.

    Parameters
    ----------
    spec : Json
        Other kinds are checked when they are decoded.
    sizes : sequence of int
        The bytes of each buffer.
    """
    place = layout(spec)
    if place is None:
        return
    if place.buffer is None:
        ndarrays.check(place, 0)
    elif place.buffer < len(sizes):
        ndarrays.check(place, sizes[place.buffer])
    else:
        raise malformed(f"the number of one of {len(sizes)} buffers", place.buffer)


def shape_and_dtype(spec: Json) -> tuple[tuple[int, ...], Any]:
    """The shape and dtype of an array, without a look at its elements.

    The dtype of an array of pandas is part of its elements: there is None instead.

    Raises
    ------
    FormatError
    """
    match field(spec, "kind", str):
        case "ndarray":
            place = ndarrays.layout(spec)
            return place.shape, place.dtype
        case "masked":
            try:
                return shape_and_dtype(field(spec, "data", dict))
            except RecursionError:
                raise malformed("an array", "one that is nested too deeply") from None
        case "stringdtype":
            return sizes(spec, "shape"), strings.dtype_of(spec)
        case "strings" | "cftime" | "objects":
            return sizes(spec, "shape"), flat.object_dtype(spec)
        case "pandas":
            return (size(spec.get("length"), "length"),), None
        case kind:
            raise malformed("a known kind of array", kind)
