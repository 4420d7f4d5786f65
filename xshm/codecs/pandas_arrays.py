"""Extension arrays of pandas as specs and raw buffers, and back.

========================================  ======================================================
``"Categorical"``                         ``"codes"``, of which -1 stands for a missing value;
                                          ``"categories"``, an index; ``"ordered"``
``"Nullable"``                            ``"values"`` of ints, floats or bools, and a ``"mask"``
                                          of those that are missing
``"String"``                              see :mod:`xshm.codecs.pandas_strings`
``"Times"``                               ``"values"``, an array of datetime64 or timedelta64; of
                                          UTC if there is a ``"zone"``
``"Period"``                              ``"values"``, ordinals, and their ``"freq"``
``"Interval"``                            ``"left"``, ``"right"``, ``"closed"``
``"Sparse"``                              ``"values"`` at ``"indices"``; elsewhere there is
                                          ``"fill_value"``; ``"index"`` is integer or block
``"Numpy"``                               ``"values"``
========================================  ======================================================

This is the ``"type"`` of a spec. Each has a ``"length"`` too. What is an array stays an array:
see :mod:`xshm.codecs.arrays`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from pandas.core.arrays.sparse.array import make_sparse_index

from xshm.codecs import arrays, ndarrays, pandas_indexes, pandas_strings, scalars, times
from xshm.codecs.buffers import Buffers, Source
from xshm.codecs.specs import Spec, field, malformed, size, unsupported
from xshm.errors import FormatError

Array = np.ndarray[Any, Any]

_TYPES = {
    pd.Categorical: "Categorical",
    pd.arrays.IntegerArray: "Nullable",
    pd.arrays.FloatingArray: "Nullable",
    pd.arrays.BooleanArray: "Nullable",
    pd.arrays.StringArray: "String",
    pd.arrays.ArrowStringArray: "String",
    pd.arrays.DatetimeArray: "Times",
    pd.arrays.TimedeltaArray: "Times",
    pd.arrays.PeriodArray: "Period",
    pd.arrays.IntervalArray: "Interval",
    pd.arrays.SparseArray: "Sparse",
    pd.arrays.NumpyExtensionArray: "Numpy",
}

_NULLABLE = {
    "i": pd.arrays.IntegerArray,
    "u": pd.arrays.IntegerArray,
    "f": pd.arrays.FloatingArray,
    "b": pd.arrays.BooleanArray,
}


def encode(x: Any, buffers: Buffers, where: str) -> Spec:
    """An extension array of pandas.

    Raises
    ------
    UnsupportedError
        It is of a class, or has values, that cannot be stored.
    """
    kind = _TYPES.get(type(x))
    if kind is None or x.ndim != 1:
        raise unsupported(
            where,
            "a one-dimensional array of pandas' own classes, but for ArrowExtensionArray",
            x,
            "convert it with to_numpy() or astype() first",
        )
    return {
        "kind": "pandas",
        "type": kind,
        "length": len(x),
        **_encode_parts(kind, x, buffers, where),
    }


def _encode_parts(kind: str, x: Any, buffers: Buffers, where: str) -> Spec:
    def add(values: Any) -> Spec:
        # Columns: see _ndarray.
        column = np.ascontiguousarray(values) if type(values) is np.ndarray else values
        return arrays.encode(column, buffers, where)

    match kind:
        case "Categorical":
            categories = pandas_indexes.encode(x.categories, buffers, f"{where}, its categories")
            return {"codes": add(x.codes), "categories": categories, "ordered": x.ordered}
        case "Nullable":  # to_numpy() loses what lies under the mask
            return {"values": add(x._data), "mask": add(x._mask)}
        case "String":
            return pandas_strings.encode(x, buffers, where)
        case "Times":
            zone = times.encode_zone(getattr(x, "tz", None), where)
            return {"values": add(x.asi8.view(f"{x.dtype.kind}8[{x.unit}]")), "zone": zone}
        case "Period":
            return {"values": add(x.asi8), "freq": x.freqstr}
        case "Interval":
            left, right = (
                side.values if isinstance(side.dtype, np.dtype) else side.array
                for side in (x.left, x.right)
            )
            return {"left": add(left), "right": add(right), "closed": x.closed}
        case "Sparse":
            return {
                "values": add(x.sp_values),
                "indices": add(x.sp_index.indices),
                "fill_value": scalars.encode(x.fill_value, where),
                "index": x.kind,
            }
        case _:
            return {"values": add(x.to_numpy(copy=False))}


def decode(spec: Spec, source: Source) -> Any:
    """The extension array of a spec.

    Raises
    ------
    FormatError
    """
    length = size(spec.get("length"), "length")
    try:
        x = _decode(field(spec, "type", str), spec, source, length)
    except FormatError:
        raise
    except (ValueError, TypeError, NotImplementedError, OverflowError) as error:
        raise malformed("parts that pandas makes an array of", error) from error
    if len(x) != length:
        raise malformed(f"an array of {length} elements", len(x))
    return x


def _decode(kind: str, spec: Spec, source: Source, length: int) -> Any:
    match kind:
        case "Categorical":
            return _decode_categorical(spec, source)
        case "Nullable":
            values, mask = _ndarray(spec, "values", source, "biuf"), _ndarray(spec, "mask", source)
            return _NULLABLE[values.dtype.kind](values, mask)
        case "String":
            return pandas_strings.decode(spec, source, length)
        case "Times":
            return _decode_times(spec, source)
        case "Period":
            values = _ndarray(spec, "values", source, "i")
            return pd.arrays.PeriodArray(
                values, dtype=times.decode_period_dtype(field(spec, "freq", str))
            )
        case "Interval":
            left, right = (_decode_side(spec, key, source) for key in ("left", "right"))
            return pd.arrays.IntervalArray.from_arrays(left, right, field(spec, "closed", str))
        case "Sparse":
            return _decode_sparse(spec, source, length)
        case "Numpy":
            values = arrays.decode(field(spec, "values", dict), source)
            if type(values) is not np.ndarray or values.ndim != 1:
                raise malformed("an array of NumPy of one dimension", spec)
            return pd.arrays.NumpyExtensionArray(values)
        case _:
            raise malformed("a known type of an array of pandas", kind)


def _ndarray(spec: Spec, key: str, source: Source, kinds: str = "b") -> Array:
    """A column, as pandas has them: of a dtype of these kinds, not swapped.

    One that repeats its elements without end would be read without end.
    """
    x = ndarrays.decode_column(field(spec, key, dict), source)
    if not x.dtype.isnative or x.dtype.kind not in kinds:
        raise malformed(f"{key!r} as an array of NumPy of one dimension, of kind {kinds}", spec)
    return x


def _decode_categorical(spec: Spec, source: Source) -> Any:
    codes = _ndarray(spec, "codes", source, "i")
    categories = pandas_indexes.decode(field(spec, "categories", dict), source)
    if isinstance(categories, pd.MultiIndex):
        raise malformed("categories of one dimension", spec)
    dtype = pd.CategoricalDtype(categories, field(spec, "ordered", bool))
    return pd.Categorical.from_codes(codes, dtype=dtype)  # looks whether the codes are in range


def _decode_times(spec: Spec, source: Source) -> Any:
    values = _ndarray(spec, "values", source, "mM")
    if np.datetime_data(values.dtype) not in [(unit, 1) for unit in times.UNITS]:
        raise malformed(f"a unit of pandas, one of {', '.join(times.UNITS)}", values.dtype)
    x = pd.array(values, copy=False)
    zone = times.decode_zone(spec.get("zone"))
    if zone is None:
        return x
    if x.dtype.kind != "M":
        raise malformed("times of day in a time zone, or none", spec)
    return x.view(pd.DatetimeTZDtype(x.unit, zone))


def _decode_side(spec: Spec, key: str, source: Source) -> Any:
    if field(field(spec, key, dict), "kind", str) == "ndarray":
        return _ndarray(spec, key, source, "iufmM")
    x = arrays.decode(spec[key], source)
    if x.ndim != 1 or x.dtype.kind not in "iufmM" or isinstance(x.dtype, pd.SparseDtype):
        raise malformed(f"{key!r} as an array of numbers or times of one dimension", spec)
    return x


def _decode_sparse(spec: Spec, source: Source, length: int) -> Any:
    indices = _ndarray(spec, "indices", source, "i")
    values = arrays.decode(field(spec, "values", dict), source)
    kind = field(spec, "index", str)
    if type(values) is not np.ndarray or values.shape != indices.shape or indices.dtype != "i4":
        raise malformed("as many values as indices, which have 32 bits", spec)
    is_within = not indices.size or 0 <= indices[0] <= indices[-1] < length
    if not is_within or (indices[1:] <= indices[:-1]).any():
        raise malformed(f"indices that ascend from 0 or above to below {length}", spec)
    dtype = pd.SparseDtype(values.dtype, scalars.decode(spec.get("fill_value")))
    # The public way warns of its own end, or is not there yet.
    index = make_sparse_index(length, indices, kind)
    return pd.arrays.SparseArray._simple_new(values, index, dtype)
