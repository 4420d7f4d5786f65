"""Indexes of pandas as JSON and raw buffers, and back.

========================================  ======================================================
``{"type": "RangeIndex", "start": 0,      no values are stored
"stop": 9, "step": 3}``
``{"type": "MultiIndex", "levels":        each level is an index, its codes are an array of ints;
[...], "codes": [...],                    -1 stands for a missing label
"sortorder": null}``
``{"type": "DatetimeIndex", "values":     likewise every other class; only times have a ``"freq"``
{...}, "freq": "MS"}``
========================================  ======================================================

Each has a ``"name"`` too.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from pandas.tseries.frequencies import to_offset

from xshm.codecs import arrays, ndarrays, scalars
from xshm.codecs.buffers import Buffers, Source
from xshm.codecs.specs import Json, Spec, field, malformed, unsupported

#: Classes that pandas itself chooses by the dtype of an array, without reading it.
_CHOSEN_BY_DTYPE: dict[str, type[pd.Index]] = {
    "Index": pd.Index,
    "DatetimeIndex": pd.DatetimeIndex,
    "TimedeltaIndex": pd.TimedeltaIndex,
    "PeriodIndex": pd.PeriodIndex,
    "IntervalIndex": pd.IntervalIndex,
    "CategoricalIndex": pd.CategoricalIndex,
}
_UNITS = ("s", "ms", "us", "ns")


def encode(index: pd.Index, buffers: Buffers, where: str) -> Spec:
    """An index as a spec and buffers.

    Parameters
    ----------
    index : pandas.Index
    buffers : Buffers
        Where the values go.
    where : str
        What the index is, for errors.

    Raises
    ------
    UnsupportedError
        It is of a class, or has values, a name or a freq, that cannot be stored.
    """
    kind = type(index)
    spec: Spec = {"type": kind.__name__, "name": scalars.encode(index.name, where)}
    if kind is pd.RangeIndex:
        return {**spec, "start": index.start, "stop": index.stop, "step": index.step}
    if kind is pd.MultiIndex:
        return {
            **spec,
            "levels": [encode(level, buffers, where) for level in index.levels],
            "codes": [
                ndarrays.encode(np.ascontiguousarray(codes), buffers, where)
                for codes in index.codes
            ],
            "sortorder": index.sortorder,
        }
    if kind is not xr.CFTimeIndex and kind not in _CHOSEN_BY_DTYPE.values():
        advice = "make a plain pandas.Index of it first"
        raise unsupported(where, "an index class of pandas or xarray", index, advice)
    # pandas wraps the array of a plain dtype: what is in it is wanted.
    wrapped = isinstance(index.dtype, np.dtype)
    spec["values"] = arrays.encode(index.values if wrapped else index.array, buffers, where)
    if kind in (pd.DatetimeIndex, pd.TimedeltaIndex):
        spec["freq"] = _encode_freq(index, where)
    return spec


def _encode_freq(index: Any, where: str) -> str | None:
    if index.freq is None:
        return None
    text: str = index.freq.freqstr
    # Some offsets have no text (DateOffset), or one that says less than they do (holidays).
    try:
        if to_offset(text) == index.freq:
            return text
    except ValueError:
        pass
    raise unsupported(
        where,
        "a freq whose text says all of it",
        index.freq,
        f"take {index.freq!r} off first: pandas.{type(index).__name__}(index, freq=None)",
    )


def decode(spec: Json, source: Source) -> pd.Index:
    """The index of a spec, on the buffers themselves where its dtype has a fixed size.

    Raises
    ------
    FormatError
        The spec is malformed, or the values do not make an index of the class it names.
    """
    kind = field(spec, "type", str)
    if kind == "RangeIndex":
        return _decode_range(spec)
    if kind == "MultiIndex":
        return _decode_multi(spec, source)
    values = arrays.decode(field(spec, "values", dict), source)
    if kind == "CFTimeIndex":
        return _decode_cftime(values, decode_name(spec))
    if kind not in _CHOSEN_BY_DTYPE:
        raise malformed("a known class of index", kind)
    index = _decode_array(kind, values, decode_name(spec))
    if spec.get("freq") is not None:
        _set_freq(index, field(spec, "freq", str))
    return index


def decode_name(spec: Spec, key: str = "name") -> Hashable:
    """The name in a spec: of an index, a coordinate or a dimension.

    Raises
    ------
    FormatError
        It cannot be a name.
    """
    name: Hashable = scalars.decode(spec.get(key))
    try:
        hash(name)
    except TypeError:
        raise malformed("a name", name) from None
    return name


def _decode_range(spec: Spec) -> pd.Index:
    start, stop, step = (field(spec, key, int) for key in ("start", "stop", "step"))
    if step == 0 or any(not -(2**63) <= number < 2**63 for number in (start, stop, step)):
        raise malformed("a range of 64-bit integers", spec)
    if abs(stop - start) >= 2**63 * abs(step):
        raise malformed("a range of less than 2**63 integers", spec)
    return pd.RangeIndex(start, stop, step, name=decode_name(spec))


def _decode_array(kind: str, values: Any, name: Hashable) -> pd.Index:
    if values.ndim != 1 or not _is_taken_as_it_is(values.dtype):
        raise malformed("one-dimensional values that pandas indexes", values.dtype)
    # Without the dtype pandas would look into objects for something better.
    dtype = values.dtype if values.dtype == object else None
    index = pd.Index(values, dtype=dtype, copy=False, name=name, tupleize_cols=False)
    if type(index) is not _CHOSEN_BY_DTYPE[kind]:
        raise malformed(f"values of a {kind}", values.dtype)
    return index


def _is_taken_as_it_is(dtype: Any) -> bool:
    """Whether pandas makes an index of an array of this dtype without a conversion."""
    if not isinstance(dtype, np.dtype):
        return True
    if dtype.kind in "mM":
        return np.datetime_data(dtype) in [(unit, 1) for unit in _UNITS]
    return dtype.kind in "biufcO" and dtype != np.float16


def _decode_cftime(values: Any, name: Hashable) -> pd.Index:
    try:
        if isinstance(values, np.ndarray) and values.ndim == 1:
            return xr.CFTimeIndex(values, name)
    except TypeError:  # something else among the values, or more than one calendar
        pass
    raise malformed("dates of one calendar of cftime", values.dtype)


def _set_freq(index: pd.Index, text: str) -> None:
    if not isinstance(index, (pd.DatetimeIndex, pd.TimedeltaIndex)):
        raise malformed("times, which have a freq", index.dtype)
    try:
        freq = to_offset(text)
    except (ValueError, OverflowError):
        raise malformed("a freq", text) from None
    if index.dtype.kind == "m" and not isinstance(freq, (pd.offsets.Tick, pd.offsets.Day)):
        raise malformed("a freq of a fixed length", text)
    # The public setter makes the whole range anew to compare: 7 ms for a million hours. The freq
    # was compared when the index was made; if a file lies, set operations go wrong, no more.
    index._freq = freq
    if index.freq is not freq:  # a pandas that keeps it elsewhere
        index.freq = freq


def _decode_multi(spec: Spec, source: Source) -> pd.Index:
    levels = [_decode_level(level, source) for level in field(spec, "levels", list)]
    # A column: codes that repeat one element without end would be read without end.
    codes = [ndarrays.decode_column(c, source) for c in field(spec, "codes", list)]
    if not 0 < len(levels) == len(codes):
        raise malformed("codes for each level of a MultiIndex", spec)
    for level, of_level in zip(levels, codes, strict=True):
        _check_codes(of_level, len(level), codes[0].shape)
    sortorder = None
    if spec.get("sortorder") is not None:
        sortorder = field(spec, "sortorder", int)
        if not 0 <= sortorder <= len(levels):
            raise malformed("a sortorder up to the number of levels", sortorder)
    # Its own checks would hash all labels of the levels.
    names = [level.name for level in levels]
    index = pd.MultiIndex(levels, codes, sortorder, names=names, verify_integrity=False)
    index.name = decode_name(spec)
    return index


def _decode_level(spec: Json, source: Source) -> pd.Index:
    if field(spec, "type", str) == "MultiIndex":
        raise malformed("a level of one dimension", spec)
    return decode(spec, source)


def _check_codes(codes: Any, nlabels: int, shape: tuple[int, ...]) -> None:
    if codes.dtype.kind != "i":
        raise malformed("codes of a level as an array of integers", codes.dtype)
    if codes.shape != shape:
        raise malformed(f"as many codes for each level, {shape}", codes.shape)
    # pandas takes labels by these without a look.
    if codes.size and not -1 <= codes.min() <= codes.max() < nlabels:
        raise malformed(f"codes from -1 to {nlabels - 1}", [codes.min(), codes.max()])
