"""Extension arrays of pandas come back as they were."""

from __future__ import annotations

import datetime
import importlib.util
import math
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from tests.codecs import array_back, assert_same, encoded
from xshm.codecs import arrays
from xshm.codecs.buffers import Buffers
from xshm.errors import FormatError, UnsupportedError

needs_pyarrow = pytest.mark.skipif(
    importlib.util.find_spec("pyarrow") is None, reason="pyarrow is not installed"
)

DAYS = pd.date_range("2020-03-28", periods=3)
STRINGS = ["a", "", None, "äöü \U0001f600", "a\0b", None]


def string_dtype(storage: str, na_value: Any) -> Any:
    return pd.StringDtype(storage, na_value=na_value)


ARRAYS: dict[str, Any] = {
    "categories": pd.Categorical(["a", "b", None, "a"]),
    "ordered": pd.Categorical([3, 1], [3, 2, 1], ordered=True),
    "range": pd.Categorical.from_codes([0, -1], pd.RangeIndex(5, name="n")),
    "days": pd.Categorical(DAYS),
    "days in a zone": pd.Categorical(DAYS.tz_localize("Europe/Berlin")),
    "intervals": pd.Categorical(pd.interval_range(0, 3)),
    "strings as objects": pd.Categorical(pd.Index(["b", "a"], dtype=object)),
    "many categories": pd.Categorical(np.arange(300)),
    "no categories": pd.Categorical([None]),
    **{
        dtype: pd.array([1, None, 0], dtype=dtype)
        for dtype in ("Int8", "Int64", "UInt8", "UInt64", "Float32", "Float64", "boolean")
    },
    "under the mask": pd.arrays.IntegerArray(np.array([7, 8]), np.array([True, False])),
    "NaN is not NA": pd.arrays.FloatingArray(np.array([math.nan, 1]), np.array([False, True])),
    "strings": pd.array(STRINGS, dtype=string_dtype("python", pd.NA)),
    "strings, NaN": pd.array(STRINGS, dtype=string_dtype("python", math.nan)),
    "no strings": pd.array([], dtype=string_dtype("python", pd.NA)),
    "times": DAYS.array,
    "times in seconds": DAYS.as_unit("s").array,
    "times, missing": pd.array(np.array(["2020", "NaT"], "M8[ns]")),
    "times in UTC": DAYS.tz_localize("UTC").array,
    "times in a zone": DAYS.as_unit("ms").tz_localize("Europe/Berlin").array,
    "times at an offset": DAYS.tz_localize(
        datetime.timezone(datetime.timedelta(hours=1), "X")
    ).array,
    "durations": pd.array(np.array([1, "NaT"], "m8[us]")),
    "months": pd.array([pd.Period("2020-01", "M"), pd.NaT]),
    "quarters": pd.period_range("2020", periods=2, freq="3Q-NOV").array,
    **{
        f"closed {side}": pd.arrays.IntervalArray.from_breaks([0, 1, 2], closed=side)
        for side in ("left", "right", "both", "neither")
    },
    "intervals of floats": pd.arrays.IntervalArray.from_tuples([(0.5, 1), math.nan]),
    "intervals of days": pd.interval_range(DAYS[0], periods=2).array,
    "intervals in a zone": pd.interval_range(DAYS.tz_localize("UTC")[0], periods=2).array,
    "no intervals": pd.arrays.IntervalArray.from_tuples([]),
    "sparse": pd.arrays.SparseArray([math.nan, 1.5, math.nan]),
    "sparse ints": pd.arrays.SparseArray([7, 1, 7, 2, 3], fill_value=7),
    "sparse blocks": pd.arrays.SparseArray([0, 1, 2, 0, 3], kind="block"),
    "sparse bools": pd.arrays.SparseArray([True, False]),
    "sparse times": pd.arrays.SparseArray(np.array(["2020", "NaT"], "M8[ns]")),
    "nothing sparse": pd.arrays.SparseArray([], dtype="float"),
    "of NumPy": pd.arrays.NumpyExtensionArray(np.array([1, 2], ">i2")),
    "objects of NumPy": pd.arrays.NumpyExtensionArray(np.array([1, "a"], object)),
}


@pytest.mark.parametrize("x", ARRAYS.values(), ids=ARRAYS)
def test_arrays_of_pandas_come_back(x: Any) -> None:
    assert_same(x, array_back(x))
    assert_same(x[:0], array_back(x[:0]))
    assert_same(x[::-1], array_back(x[::-1]))


@pytest.mark.parametrize("name", ["Int64", "categories", "times in a zone", "sparse", "of NumPy"])
def test_elements_are_not_copied(name: str) -> None:
    spec, memory = encoded(ARRAYS[name])
    back = arrays.decode(spec, memory)
    match back:
        case pd.arrays.IntegerArray():
            parts = [back._data, back._mask]
        case pd.Categorical():
            parts = [back.codes]
        case pd.arrays.SparseArray():
            parts = [back.sp_values]
        case pd.arrays.DatetimeArray():
            parts = [back.asi8]
        case _:
            parts = [back.to_numpy()]
    for part in parts:
        assert any(np.shares_memory(part, data) for data in memory.buffers)


def test_what_xarray_holds_comes_back() -> None:
    variable = xr.Variable("x", pd.Categorical(["a", "b", "a"]))
    assert_same(variable.data, array_back(variable.data))


# ---- Strings of Arrow.


@needs_pyarrow
@pytest.mark.parametrize("na_value", [pd.NA, math.nan], ids=repr)
def test_strings_of_arrow_come_back(na_value: Any) -> None:
    x = pd.array(STRINGS, dtype=string_dtype("pyarrow", na_value))
    pieces = pd.concat([pd.Series(x), pd.Series(x[1:3])]).array  # of two chunks
    for part in (x, x[2:5], x[:0], x[2:3], pieces, pieces[4:]):
        assert_same(part, array_back(part))


@needs_pyarrow
def test_strings_of_arrow_are_not_copied() -> None:
    spec, memory = encoded(pd.array(["a", "b"], dtype=string_dtype("pyarrow", pd.NA)))
    (chunk,) = arrays.decode(spec, memory).__arrow_array__().chunks
    _, offsets, data = chunk.buffers()
    assert offsets.address == memory.buffers[spec["offsets"]].ctypes.data
    assert data.address == memory.buffers[spec["bytes"]].ctypes.data


@needs_pyarrow
def test_strings_of_arrow_that_are_not_utf8_are_an_error_of_the_format() -> None:
    spec, memory = encoded(pd.array(["ab"], dtype=string_dtype("pyarrow", pd.NA)))
    memory.buffers[spec["bytes"]][:] = 0xFF
    with pytest.raises(FormatError):
        arrays.decode(spec, memory)


@pytest.mark.parametrize("name", ["strings", "strings, NaN"])
def test_strings_of_arrow_come_as_those_of_python_where_there_is_no_pyarrow(name: str) -> None:
    spec, memory = encoded(ARRAYS[name])
    spec["storage"] = "pyarrow"  # which differs in nothing else
    if importlib.util.find_spec("pyarrow") is None:
        assert_same(ARRAYS[name], arrays.decode(spec, memory))
    else:
        assert arrays.decode(spec, memory).dtype.storage == "pyarrow"


def test_pyarrow_is_not_imported_without_need() -> None:
    if "pyarrow" not in sys.modules:
        array_back(ARRAYS["strings"])
        assert "pyarrow" not in sys.modules


# ---- Refused, and malformed.


class Subclass(pd.arrays.IntegerArray):
    """An array that may hold more than elements."""


@pytest.mark.parametrize(
    "x",
    [
        Subclass(np.array([1]), np.array([False])),
        DAYS.array.reshape(3, 1),
        pd.arrays.NumpyExtensionArray(np.array([object()])),
        pd.Categorical([object()]),
        pd.array(["file\udcff"], dtype=string_dtype("python", pd.NA)),
    ],
    ids=lambda x: type(x).__name__,
)
def test_other_arrays_are_refused(x: Any) -> None:
    with pytest.raises(UnsupportedError, match=r"^variable 'v'.*: expected .*found .*; "):
        arrays.encode(x, Buffers(), "variable 'v'")


@needs_pyarrow
def test_arrays_of_arrow_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"found .*ArrowExtensionArray; convert"):
        arrays.encode(pd.array([1, 2], dtype="int64[pyarrow]"), Buffers(), "variable 'v'")


@pytest.mark.parametrize(
    ("name", "key", "other"),
    [
        ("categories", "codes", np.array([0, 5, 0, 0], "i1")),
        ("categories", "codes", np.array([0, -2, 0, 0], "i1")),
        ("categories", "codes", np.array([0, 1], "i1")),
        ("categories", "codes", np.array([0.0, 1, 1, 1])),
        ("Int64", "mask", np.array([False])),
        ("Int64", "mask", np.array([0, 1, 0], "u1")),
        ("Int64", "values", np.array([0, 1, 0], ">i8")),
        ("Float32", "values", np.array([0, 1, 0], "f2")),
        ("boolean", "values", np.array(["a", "b", "c"])),
        ("times", "values", np.array([1, 2, 3], "M8[D]")),
        ("times", "values", np.array([1, 2, 3])),
        ("times in UTC", "values", np.array([1, 2, 3], "m8[s]")),
        ("months", "values", np.array([1.5, 2])),
        ("closed left", "left", np.array([5, 6])),
        ("closed left", "left", np.array(["a", "b"])),
        ("closed left", "left", np.array([1])),
        ("sparse ints", "indices", np.array([0, 3, 2], "i4")),
        ("sparse ints", "indices", np.array([0, 3, 5], "i4")),
        ("sparse ints", "indices", np.array([-1, 3, 4], "i4")),
        ("sparse ints", "indices", np.array([0, 1], "i4")),
        ("of NumPy", "values", np.array([[1, 2]])),
    ],
)
def test_parts_that_do_not_fit_are_an_error_of_the_format(name: str, key: str, other: Any) -> None:
    spec, memory = encoded(ARRAYS[name])
    of_other, others = encoded(other)
    spec[key] = {**of_other, "buffer": len(memory.buffers)}
    memory.buffers += others.buffers
    with pytest.raises(FormatError):
        arrays.decode(spec, memory)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("Int64", {"type": "ArrowExtensionArray"}),
        ("Int64", {"length": 2}),
        ("Int64", {"length": -1}),
        ("strings", {"length": 2**62}),
        ("strings", {"storage": "paper"}),
        ("strings", {"missing_value": "None"}),
        ("categories", {"ordered": 1}),
        ("times in a zone", {"zone": {"key": "Nowhere/Else"}}),
        ("months", {"freq": "fortnight"}),
        ("closed left", {"closed": "ajar"}),
        ("sparse", {"index": "hash"}),
        ("sparse", {"fill_value": [1]}),
        ("sparse", {"length": 1}),
    ],
)
def test_a_malformed_spec_is_an_error_of_the_format(name: str, changed: dict[str, Any]) -> None:
    spec, memory = encoded(ARRAYS[name])
    with pytest.raises(FormatError):
        arrays.decode(spec | changed, memory)
