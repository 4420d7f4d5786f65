"""Attributes, encodings and names come back as they were; what cannot is refused."""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import math
import struct
import uuid
import zoneinfo
from typing import Any

import cftime
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.codecs import assert_same, through_json, value_back
from xshm.codecs import scalars
from xshm.errors import FormatError, UnsupportedError

BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
AMBIGUOUS = datetime.datetime(2020, 10, 25, 2, 30)

VALUES: list[Any] = [
    *[None, True, False, 0, -1, 2**63, 2**64, -(2**63) - 1, 10**5000],
    *["", "units", "äöü \U0001f600", "a\0", "file\udcff"],
    *[0.0, -0.0, 1e-320, math.inf, -math.inf, math.nan],
    struct.unpack("d", bytes.fromhex("efbeadde0000f07f"))[0],  # another NaN
    *[1j, complex(math.nan, -0.0), complex(-0.0, math.inf)],
    *[b"", b"a\0\xff"],
    [1, [2.5, "a", [None]]],
    (1, ("a", [()])),
    {1, "a", (2,)},
    frozenset({1.5}),
    {"b": 1, "a": {"nested": [{}]}, 3: None, (1, 2): b"", None: 4, "dict": [], "int": "0x1"},
    *[slice(None), slice(1, None, -2), slice("a", pd.Timestamp("2020"))],
    *[np.dtype("<f4"), np.dtype(">M8[25s]"), np.dtype(object), np.dtypes.StringDType()],
    np.dtypes.StringDType(na_object=None, coerce=False),
    np.dtypes.StringDType(na_object=math.nan),
    np.dtype([("a", ">i2"), ("b", "U3", (2,))], metadata={"unit": "m"}),
    *[str, bytes, int, float, bool, complex, object],
    *[np.dtype(code).type(1) for code in "?bBhHiIlLqQefdgFDG"],
    *[np.float32(math.nan), np.float64(-0.0), np.longdouble(1) / 3],
    *[np.str_(""), np.str_("a\0"), np.bytes_(b"a\0"), np.void(b"\0a"), np.void(b"")],
    *[np.datetime64("NaT"), np.datetime64(3, "25s"), np.datetime64(-1, "as")],
    *[np.timedelta64("NaT", "D"), np.timedelta64(5), np.timedelta64(2**62, "ns")],
    np.zeros(2, [("a", ">i4"), ("b", "S3")])[1],
    np.arange(6, dtype=">i2").reshape(2, 3),
    np.arange(6.0).reshape(2, 3).T,
    *[np.array(7), np.array([], "U4"), np.array([["a", None], [1, (2,)]], object)],
    np.ma.masked_array([1, 2], [False, True]),
    pd.array([1, None], dtype="Int8"),
    *[datetime.date(1, 1, 1), datetime.date.max],
    *[datetime.datetime.min, datetime.datetime(2020, 1, 2, 3, 4, 5, 6)],
    *[AMBIGUOUS.replace(tzinfo=BERLIN), AMBIGUOUS.replace(tzinfo=BERLIN, fold=1)],
    datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
    datetime.datetime(1, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(seconds=-3601), "X")),
    *[datetime.time(1, 2, 3, 4, fold=1), datetime.time(23, tzinfo=datetime.UTC)],
    *[datetime.timedelta.min, datetime.timedelta.max, datetime.timedelta(microseconds=-1)],
    *[BERLIN, datetime.UTC],
    *[decimal.Decimal(text) for text in ("1.10", "-0", "Infinity", "NaN12", "sNaN", "1E+1000")],
    *[pd.NA, pd.NaT, pd.Timestamp("2020"), pd.Timestamp("1700").as_unit("s")],
    *[pd.Timestamp(1, tz="UTC"), pd.Timestamp("2020-07-01", tz=BERLIN)],
    pd.Timestamp(AMBIGUOUS.replace(fold=1), tz=BERLIN),
    *[pd.Timedelta(1), pd.Timedelta("-3D").as_unit("s")],
    *[pd.Period("2020-02", "M"), pd.Period("2020", "2Q-NOV")],
    *[pd.Interval(0, 1.5, "both"), pd.Interval(pd.Timestamp(0), pd.Timestamp(1))],
    cftime.DatetimeNoLeap(2000, 2, 28, 1, 2, 3, 4),
    cftime.Datetime360Day(2000, 2, 30, has_year_zero=True),
    cftime.datetime(2000, 1, 1, calendar="julian"),
    cftime.datetime(2000, 1, 1, calendar=""),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{type(value).__name__}")
def test_values_come_back(value: Any) -> None:
    assert_same(value, value_back(value))


_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.complex_numbers()
    | st.text(st.characters())
    | st.binary()
    | st.decimals()
    | st.dates()
    | st.datetimes(timezones=st.none() | st.timezones())
    | st.times(timezones=st.none() | st.just(datetime.UTC))
    | st.timedeltas()
)


@given(
    st.recursive(
        _LEAVES,
        lambda inner: (
            st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner)
        ),
    )
)
def test_any_value_comes_back(value: Any) -> None:
    assert_same(value, value_back(value))


@given(st.integers(0, 2**64 - 1))
def test_every_float_keeps_its_bits(bits: int) -> None:
    (value,) = struct.unpack("<d", struct.pack("<Q", bits))
    assert_same(value, value_back(value))


def test_what_json_has_stays_readable() -> None:
    value = [None, True, 3, -1.5, "metres"]
    assert scalars.encode(value, "") == value


class Text(str):
    """A string that may hold more than text."""


class Colour(enum.IntEnum):
    RED = 1


@pytest.mark.parametrize(
    "value",
    [
        Text("a"),
        Colour.RED,
        collections.OrderedDict(a=1),
        collections.defaultdict(list),
        collections.namedtuple("Point", "x y")(1, 2),
        uuid.UUID(int=1),
        object(),
        len,
        list,
        np.int64,
        Ellipsis,
        range(3),
        np.array([1]).view(np.recarray),
        np.array([object()]),
        np.zeros(1, [("a", object)])[0],
        datetime.datetime(2020, 1, 1, tzinfo=type("Zone", (datetime.tzinfo,), {})()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_known_is_refused(value: Any) -> None:
    for holder in (value, [value], {"key": (value,)}):
        with pytest.raises(UnsupportedError, match=r"^attribute 'a' of variable 'v'.*found.*;"):
            scalars.encode(holder, "attribute 'a' of variable 'v'")


def test_a_refusal_says_which_value_of_a_dict_it_is() -> None:
    with pytest.raises(UnsupportedError, match=r"^attribute 'a', 'deep', 'er': .*found object; "):
        scalars.encode({"deep": {"er": object()}}, "attribute 'a'")


def _list() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


def _dict() -> Any:
    value: dict[str, Any] = {}
    value["self"] = value
    return value


def _array() -> Any:
    value = np.empty(2, object)
    value[:] = [value, [value]]
    return value


@pytest.mark.parametrize("make", [_list, _dict, _array])
def test_what_contains_itself_is_refused(make: Any) -> None:
    with pytest.raises(UnsupportedError, match=r"^attribute 'a'.*contain itself"):
        scalars.encode(make(), "attribute 'a'")


def test_deep_values_come_back() -> None:
    value: Any = 1
    for _ in range(64):
        value = {"deeper": value}
    assert_same(value, value_back(value))


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"int": "0x1", "str": ""},
        {"unknown": 1},
        math.nan,
        {"int": 1},
        {"int": "x"},
        {"str": "*"},
        {"str": "AA"},
        {"str": "/w=="},
        {"float": "00"},
        {"float": "zz"},
        {"bytes": "ä"},
        {"complex": [1, 2.0]},
        {"complex": [1.0]},
        {"decimal": "1.1.1"},
        {"type": "eval"},
        {"type": []},
        {"missing": "None"},
        {"missing": {}},
        {"tuple": 1},
        {"set": [[]]},
        {"dict": [[1]]},
        {"dict": [[[], 1]]},
        {"slice": [1, 2]},
        {"Interval": [2, 1, "left"]},
        {"Interval": ["a", "b", "left"]},
        {"Interval": [1, 2, "ajar"]},
        {"numpy": ["<f8", "AAAA"]},
        {"numpy": ["|O", "AAAAAAAAAAA="]},
        {"numpy": ["<U1", "AAAAAA=="]},
        {"numpy.str": 1},
        {"dtype": "object"},
        {"dtype": {"string": {"coerce": 1}}},
        {"array": [{"kind": "ndarray"}, []]},
        {"array": [{"kind": "objects", "json": 0, "shape": [1], "order": "C"}, [1]]},
        {"cftime": ["datetime", "standard", True, [2000, 13, 1, 0, 0, 0, 0]]},
        {"cftime": ["eval", "standard", True, [2000, 1, 1, 0, 0, 0, 0]]},
        {"cftime": ["datetime", "lunar", True, [2000, 1, 1, 0, 0, 0, 0]]},
        {"cftime": ["DatetimeNoLeap", "julian", True, [2000, 1, 1, 0, 0, 0, 0]]},
        {"cftime": ["datetime", "standard", True, [10**20, 1, 1, 0, 0, 0, 0]]},
        {"cftime": ["datetime", "standard", True, [2000, 1, 1, 0, 0, 0, True]]},
        {"datetime": ["yesterday", None, 0]},
        {"datetime": ["2020-01-01T00:00:00", None, 2]},
        {"datetime": ["2020-01-01T00:00:00", {"key": "../../etc/passwd"}, 0]},
        {"datetime": ["2020-01-01T00:00:00", {"key": "Nowhere/Else"}, 0]},
        {"datetime": ["2020-01-01T00:00:00", {"offset": 10**15}, 0]},
        {"date": "2020-13-01"},
        {"time": ["25:00", None, 0]},
        {"timedelta": 10**30},
        {"timezone": 1},
        {"Timestamp": [1, "D", None, 0]},
        {"Timestamp": [2**70, "ns", None, 0]},
        {"Timedelta": [1.5, "ns"]},
        {"Period": [1, "fortnight"]},
        {"Period": [2**70, "M"]},
    ],
    ids=lambda spec: repr(spec)[:50],
)
def test_a_malformed_value_is_an_error_of_the_format(spec: Any) -> None:
    with pytest.raises(FormatError):
        scalars.decode(spec)


@pytest.mark.parametrize("tag", [None, "tuple", "frozenset"])
def test_a_value_that_is_too_deep_is_an_error_of_the_format(tag: str | None) -> None:
    spec: Any = 1
    for _ in range(100_000):
        spec = [spec] if tag is None else {tag: [spec]}
    with pytest.raises(FormatError):
        scalars.decode(spec)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=8,
)


@given(tag=st.sampled_from(sorted(scalars._DECODERS)), inner=_JSON)
def test_any_json_is_a_value_or_an_error_of_the_format(tag: str, inner: Any) -> None:
    try:
        value = scalars.decode({tag: inner})
    except FormatError:
        return
    through_json(scalars.encode(value, ""))
