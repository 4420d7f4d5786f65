"""Kinds of arrays: of each dtype and class, and however they lie in memory."""

from __future__ import annotations

import datetime
import decimal
import importlib.util
import math
import zoneinfo
from collections.abc import Callable
from typing import Any

import cftime
import numpy as np
import pandas as pd
import xarray as xr

Kinds = dict[str, Callable[[], Any]]

BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
DAYS = pd.date_range("2020-02-28", periods=3)
PAYLOAD = np.array([0x7FF8000000000123, 0xFFF0000000000001, 0x8000000000000000], "u8")


def dataset(data: Any) -> xr.Dataset:
    """A Dataset with one variable, and the last of its dimensions is ``"x"``."""
    dims = ("t", "z", "y", "x")[4 - np.ndim(data) :]
    return xr.Dataset({"v": (dims, data)})


def objects(*values: Any) -> np.ndarray:
    """An array of objects, which NumPy is not to look into."""
    x = np.empty(len(values), object)
    x[:] = values
    return x


def extremes(dtype: Any) -> np.ndarray:
    """An array of numbers that are easily lost."""
    dtype = np.dtype(dtype)
    match dtype.kind:
        case "b":
            return np.array([True, False, True])
        case "i" | "u":
            info = np.iinfo(dtype)
            return np.array([info.min, info.max, 1], dtype)
        case "f":
            tiny = np.finfo(dtype).smallest_subnormal
            return np.array([np.nan, -np.nan, -0.0, np.inf, tiny, 1 / dtype.type(3)], dtype)
        case _:
            x = np.zeros(4, dtype)
            x.real = [np.nan, -0.0, np.inf, 1]
            x.imag = [-0.0, np.nan, -1, np.inf]
            return x


def structured(**options: Any) -> np.ndarray:
    """An array of structures, with their gaps cleared."""
    x = np.zeros(3, np.dtype(**options))
    x["a"] = [1, 2, 3]
    return x


_NUMBERS = [
    *("bool", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "g"),
    *("c8", "c16", "G", "q", "Q"),
    *(">i2", ">i4", ">i8", ">u2", ">u4", ">u8", ">f2", ">f4", ">f8", ">g", ">c8", ">c16"),
]
_UNITS = ("Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as")

DTYPES: Kinds = {
    **{f"numbers {char}": lambda char=char: dataset(extremes(char)) for char in _NUMBERS},
    "NaNs with a payload": lambda: dataset(PAYLOAD.view("f8")),
    "NaNs with a payload, big-endian": lambda: dataset(PAYLOAD.astype(">u8").view(">f8")),
    "bytes S5": lambda: dataset(np.array([b"ab\0c", b"", b"\xff"], "S5")),
    "bytes S0": lambda: np.ndarray((2,), "S0"),
    "text U3": lambda: dataset(np.array(["a\u00e9", "", "\U0001f30d"], "U3")),
    "text U3, big-endian": lambda: dataset(np.array(["a\u00e9", "", "b"], ">U3")),
    "text U0": lambda: np.ndarray((2,), "U0"),
    "void V3": lambda: dataset(np.array([b"abc", b"\0\0\1"], "V3")),
    "void V0": lambda: np.zeros(2, "V0"),
    "structured": lambda: dataset(structured(dtype=[("a", "i4"), ("b", "f8")])),
    "structured, nested": lambda: dataset(
        structured(dtype=[("a", "i2"), ("in", [("b", ">f4"), ("c", "S3")])])
    ),
    "structured, subarrays": lambda: dataset(structured(dtype=[("a", "f4"), ("m", "i2", (2, 3))])),
    "structured, padded": lambda: dataset(
        structured(dtype={"names": ["a"], "formats": ["i2"], "offsets": [5], "itemsize": 16})
    ),
    "structured, aligned": lambda: dataset(
        structured(dtype=[("c", "u1"), ("a", "f8")], align=True)
    ),
    "structured, titles": lambda: dataset(structured(dtype=[(("a title", "a"), "i4")])),
    "structured, overlapping": lambda: dataset(
        structured(dtype={"names": ["b", "a"], "formats": ["u1", "u4"], "offsets": [0, 0]})
    ),
    "structured, times": lambda: dataset(structured(dtype=[("a", "M8[s]"), ("b", "m8[25us]")])),
    "dtype with metadata": lambda: np.arange(3).view(np.dtype("i8", metadata={"unit": "m"})),
    **{
        f"datetime64[{unit}]": lambda unit=unit: np.array([0, 7, "NaT"], f"M8[{unit}]")
        for unit in _UNITS
    },
    **{
        f"timedelta64[{unit}]": lambda unit=unit: np.array([-3, 7, "NaT"], f"m8[{unit}]")
        for unit in _UNITS
    },
    "datetime64[25s]": lambda: np.array([0, 7, "NaT"], "M8[25s]"),
    "datetime64, no unit": lambda: np.array(["NaT", "NaT"], "M8"),
    "datetime64[s], big-endian": lambda: np.array(["2020", "NaT"], ">M8[s]"),
    **{
        f"datetimes of xarray [{unit}]": lambda unit=unit: dataset(
            np.array(["1999-12-31T23:59", "NaT"], f"M8[{unit}]")
        )
        for unit in _UNITS[6:10]
    },
    **{
        f"timedeltas of xarray [{unit}]": lambda unit=unit: dataset(
            np.array([1, "NaT"], f"m8[{unit}]")
        )
        for unit in _UNITS[6:10]
    },
}


def _text(values: list[Any], **options: Any) -> xr.Dataset:
    return dataset(np.array(values, np.dtypes.StringDType(**options)))


STRINGS: Kinds = {
    "StringDType": lambda: _text(["", "a\0b", "\u00e9" * 40, "\U0001f30d"]),
    "StringDType, None": lambda: _text(["a", None], na_object=None),
    "StringDType, NaN": lambda: _text(["a", np.nan], na_object=np.nan),
    "StringDType, NA": lambda: _text(["a", pd.NA], na_object=pd.NA),
    "StringDType, text for missing": lambda: _text(["a", "none"], na_object="none"),
    "StringDType, empty for missing": lambda: _text(["a", ""], na_object=""),
    "StringDType, strict": lambda: _text(["a", "b"], coerce=False),
    "StringDType, no elements": lambda: _text([]),
    "StringDType, 2-d": lambda: dataset(np.array([["a", "b"]], np.dtypes.StringDType()).T),
}

OBJECTS: Kinds = {
    "objects, str": lambda: dataset(objects("a", "", "\u00e9\0", "x" * 1000)),
    "objects, bytes": lambda: dataset(objects(b"a", b"", b"\xff\0")),
    "objects, str and bytes": lambda: dataset(objects("a", b"a")),
    "objects, None": lambda: dataset(objects(None, None)),
    "objects, NaN": lambda: dataset(objects(np.nan, np.nan)),
    "objects, str and None": lambda: dataset(objects("a", None, "")),
    "objects, str and NaN": lambda: dataset(objects("a", np.nan)),
    "objects, each missing value": lambda: dataset(objects(None, np.nan, pd.NA, pd.NaT, "a")),
    "objects, bools": lambda: dataset(objects(True, None, False)),
    "objects, ints": lambda: dataset(objects(1, -(2**63), 2**200)),
    "objects, floats": lambda: dataset(objects(0.1, -0.0, math.inf, PAYLOAD.view("f8")[0].item())),
    "objects, complex": lambda: dataset(objects(1j, complex(math.nan, -0.0))),
    "objects, NumPy scalars": lambda: dataset(objects(np.float32(0.1), np.int8(1), np.str_("a"))),
    "objects, mixed": lambda: dataset(objects(1, 1.0, "1", b"1", None, (1,), True)),
    "objects, Decimal": lambda: dataset(objects(decimal.Decimal("1.10"), decimal.Decimal("NaN"))),
    "objects, dates": lambda: dataset(objects(datetime.date(1, 1, 1), None)),
    "objects, datetimes in a zone": lambda: dataset(
        objects("-", datetime.datetime(2020, 10, 25, 2, 30, tzinfo=BERLIN, fold=1))
    ),
    "objects, times": lambda: dataset(objects(datetime.time(1, 2, 3, 4), datetime.time(0))),
    "objects, Timestamps": lambda: dataset(objects("-", pd.Timestamp("2020", tz="UTC"))),
    "objects, Intervals": lambda: dataset(objects(pd.Interval(0, 1), pd.Interval(1, 2, "both"))),
    "objects, lists": lambda: dataset(objects([1, 2], [], [3, [4]])),
    "objects, dicts": lambda: dataset(objects({"a": 1}, {}, {1: {"b": None}})),
    "objects, ragged arrays": lambda: dataset(objects(np.arange(2), np.ones((2, 2), ">f4"))),
    "objects, no elements": lambda: dataset(objects()),
    "objects, 0-d": lambda: xr.Dataset({"v": ((), objects("a")[0])}),
    "objects, Fortran order": lambda: dataset(
        np.array([["a", "b"], ["c", None]], object, order="F")
    ),
}

if importlib.util.find_spec("pyarrow") is None:  # with it pandas, and so xarray, cannot take them
    OBJECTS["objects, lone surrogates"] = lambda: dataset(objects("a\udc80", "b"))

_CALENDARS = ("standard", "proleptic_gregorian", "julian", "noleap", "all_leap", "360_day")


def _cftimes(calendar: str) -> list[cftime.datetime]:
    return [
        cftime.datetime(1, 2, 28, 1, 2, 3, 4, calendar=calendar),
        cftime.datetime(9999, 12, 30, calendar=calendar),
    ]


CALENDARS: Kinds = {
    **{
        f"cftime, {calendar}": lambda calendar=calendar: dataset(objects(*_cftimes(calendar)))
        for calendar in _CALENDARS
    },
    "cftime, year zero": lambda: dataset(
        objects(cftime.datetime(1, 1, 1, calendar="julian", has_year_zero=True))
    ),
    "cftime, class of a calendar": lambda: dataset(objects(cftime.DatetimeNoLeap(2000, 1, 1))),
    "cftime and None": lambda: dataset(objects(*_cftimes("noleap"), None)),
    "cftime, two calendars": lambda: dataset(objects(*_cftimes("noleap"), *_cftimes("julian"))),
    "cftime, 2-d": lambda: dataset(objects(*_cftimes("360_day")).reshape(2, 1)),
    "cftime, 0-d": lambda: dataset(np.array(_cftimes("noleap")[0])),
}


def _array(values: list[Any], dtype: Any) -> xr.Dataset:
    return dataset(pd.array(values, dtype=dtype))


PANDAS: Kinds = {
    "categories of strings": lambda: dataset(pd.Categorical(["b", "a", None], ["b", "a", "c"])),
    "categories, ordered": lambda: dataset(pd.Categorical(["b", "a"], ["b", "a"], ordered=True)),
    "categories of ints": lambda: dataset(pd.Categorical([30, 10, 30])),
    "categories of floats": lambda: dataset(pd.Categorical([0.5, np.nan, -0.0])),
    "categories of days": lambda: dataset(pd.Categorical(DAYS)),
    "categories of intervals": lambda: dataset(pd.cut(np.arange(5), 2)),
    "categories, many": lambda: dataset(pd.Categorical(np.arange(300))),
    "categories, none": lambda: dataset(pd.Categorical([None, None])),
    **{
        f"nullable {dtype}": lambda dtype=dtype: _array([1, None, 0], dtype)
        for dtype in ("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt64", "boolean")
    },
    **{
        f"nullable {dtype}": lambda dtype=dtype: _array([0.1, None, -0.0], dtype)
        for dtype in ("Float32", "Float64")
    },
    "nullable strings": lambda: _array(["a", None, "\u00e9"], pd.StringDtype("python")),
    "strings with NaN": lambda: _array(["a", None], pd.StringDtype("python", na_value=np.nan)),
    **{
        f"intervals, closed {side}": lambda side=side: dataset(
            pd.arrays.IntervalArray.from_breaks([0, 1, 2], closed=side)
        )
        for side in ("left", "right", "both", "neither")
    },
    "intervals of floats": lambda: dataset(pd.arrays.IntervalArray.from_tuples([(0.5, 1), np.nan])),
    "intervals of days": lambda: dataset(pd.interval_range(DAYS[0], periods=2).array),
    "periods, months": lambda: _array([pd.Period("2020-01", "M"), pd.NaT], "period[M]"),
    "periods, quarters": lambda: dataset(pd.period_range("2020", periods=2, freq="Q-NOV").array),
    "times in a zone": lambda: dataset(DAYS.tz_localize("Europe/Berlin").array),
    "times in UTC, seconds": lambda: dataset(DAYS.as_unit("s").tz_localize("UTC").array),
    "times in a zone, of an index": lambda: dataset(DAYS.tz_localize("Europe/Berlin")),
    "days, of an index": lambda: dataset(DAYS),
    "periods, of an index": lambda: dataset(pd.period_range("2020", periods=2, freq="W-WED")),
    "sparse floats": lambda: dataset(pd.arrays.SparseArray([np.nan, 1.5, np.nan])),
    "sparse ints": lambda: dataset(pd.arrays.SparseArray([7, 1, 7], fill_value=7)),
}

_CUBE = np.arange(24, dtype="f4").reshape(2, 3, 4)


def masked(**options: Any) -> np.ndarray:
    """A masked array, with something under its mask."""
    return np.ma.MaskedArray([1.5, -0.0, np.nan], [True, False, True], **options)


MEMORY: Kinds = {
    "0-d": lambda: dataset(np.float32(0.1)),
    "many dimensions": lambda: np.zeros((1,) * 40),
    "0-d array": lambda: np.array(7, ">i2"),
    "empty": lambda: dataset(np.empty((0, 3))),
    "empty, inner": lambda: dataset(np.empty((2, 0, 3), "U5")),
    "strided": lambda: dataset(_CUBE[:, ::2, ::3]),
    "negative strides": lambda: dataset(_CUBE[::-1, :, ::-1]),
    "transposed": lambda: dataset(_CUBE[0].T),
    "axes permuted": lambda: dataset(_CUBE.transpose(1, 2, 0)),
    "axes permuted, negative": lambda: dataset(_CUBE.transpose(2, 0, 1)[::-1]),
    "Fortran order": lambda: dataset(np.asfortranarray(_CUBE)),
    "field of a structure": lambda: dataset(structured(dtype=[("b", "u1"), ("a", "f8")])["a"]),
    "read-only": lambda: dataset(np.frombuffer(b"12345678", "u1")),
    "dimensions of size 1": lambda: dataset(np.ones((1, 3, 1))),
    "masked": masked,
    "masked, fill value": lambda: masked(fill_value=-9999.0),
    "masked, hard": lambda: masked(hard_mask=True),
    "masked nothing": lambda: np.ma.MaskedArray([1, 2]),
    "masked structures": lambda: np.ma.MaskedArray(
        structured(dtype=[("a", "i4"), ("b", "f4")]), [(True, False), (False, True), (True, True)]
    ),
    "masked objects": lambda: np.ma.MaskedArray(objects("a", None), [True, False]),
    "masked, 0-d": lambda: np.ma.MaskedArray(1, True),
    "masked, Fortran order": lambda: np.ma.masked_greater(np.asfortranarray(_CUBE[0]), 5),
}

#: These take far less room than their shape says.
REPEATED: Kinds = {
    "broadcast": lambda: dataset(np.broadcast_to(_CUBE[0, 0], (1000, 1000, 4))),
    "broadcast, inner": lambda: dataset(np.broadcast_to(_CUBE[0, :, :1], (3, 1_000_000))),
    "broadcast scalar": lambda: dataset(np.broadcast_to(np.float64(1), (1000, 1000))),
}
