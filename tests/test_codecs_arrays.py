"""NumPy arrays come back as they were: elements to the last bit, dtype, and memory order."""

from __future__ import annotations

import datetime
import decimal
import math
from typing import Any

import cftime
import dask.array
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.dtypes import StringDType

from tests.codecs import Memory, array_back, assert_same, encoded
from xshm.codecs import arrays
from xshm.codecs.buffers import Buffers
from xshm.errors import FormatError, UnsupportedError

STRUCTURE = np.dtype([("a", "i1"), ("b", ">f8"), ("c", "U2", (2,))], align=True)


def axes_in_memory(x: np.ndarray) -> list[int]:
    """The axes that matter, by their strides, the longest first."""
    long = [axis for axis in range(x.ndim) if x.shape[axis] > 1]
    return sorted(long, key=lambda axis: -abs(x.strides[axis]))


# ---- Of fixed size.


@pytest.mark.parametrize(
    "x",
    [
        np.array(3.5),
        np.array([]),
        np.empty((0, 3, 2**40), ">i2"),
        np.arange(24).reshape(2, 3, 4),
        np.asfortranarray(np.arange(24).reshape(2, 3, 4)),
        np.arange(24).reshape(2, 3, 4).transpose(1, 2, 0),
        np.arange(24).reshape(2, 3, 4)[::-1, :, ::-2],
        np.arange(24)[5:20:3],
        np.arange(8)[:, None][:, ::-1],
        np.broadcast_to(np.float32(1.5), (3, 2**30)),
        np.broadcast_to(np.arange(3)[:, None], (2, 3, 4)),
        np.array([1, 2], ">u2"),
        np.array(["a", "", "äöü"]),
        np.array([b"a\0b", b""]),
        np.array(["2020", "NaT"], "M8[25s]"),
        np.array([math.nan, -0.0, math.inf], "<f2"),
        np.array([0x7FF0000000000001, 0xFFF8000000000002], "u8").view("f8"),
        np.zeros(3, STRUCTURE),
        np.zeros((2, 2), STRUCTURE)["c"],
        np.zeros(2, [("a", "i4"), ("b", "i4")])[["b"]],
        np.zeros(3, "S0"),
        np.array([1, 2], np.dtype("f8", metadata={"unit": "m"})),
        np.zeros(2, np.dtype((np.record, [("a", "i1")]))),
        np.arange(4, dtype=np.longdouble) / 3,
        np.zeros([1] * 64, "i1"),
    ],
    ids=lambda x: f"{x.dtype}-{x.shape if x.ndim < 5 else x.ndim}",
)
def test_arrays_of_fixed_size_come_back(x: np.ndarray) -> None:
    back = array_back(x)
    if x.nbytes < 2**30:
        assert_same(x, back)
    assert (back.dtype, back.shape) == (x.dtype, x.shape)
    assert axes_in_memory(back) == axes_in_memory(x)
    if x.size:
        is_repeated = [n > 1 and s == 0 for n, s in zip(x.shape, x.strides, strict=True)]
        assert is_repeated == [
            n > 1 and s == 0 for n, s in zip(back.shape, back.strides, strict=True)
        ]


@st.composite
def strided(draw: st.DrawFn) -> np.ndarray:
    dtype = draw(npst.array_dtypes() | npst.scalar_dtypes())
    x = draw(npst.arrays(dtype, npst.array_shapes(min_dims=0, min_side=0, max_side=5)))
    x = x.transpose(draw(st.permutations(range(x.ndim))))
    return x[draw(npst.basic_indices(x.shape, allow_newaxis=True))] if x.ndim else x


@given(strided())
def test_any_array_of_fixed_size_comes_back(x: Any) -> None:
    x = np.asarray(x)
    back = array_back(x)
    assert_same(x, back)
    assert axes_in_memory(back) == axes_in_memory(x)


def test_elements_are_not_copied() -> None:
    spec, memory = encoded(np.arange(6.0).reshape(2, 3))
    back = arrays.decode(spec, memory)
    assert np.shares_memory(back, memory.buffers[0])
    assert back.flags.writeable


def test_repeated_elements_are_stored_once() -> None:
    _, memory = encoded(np.broadcast_to(np.arange(3), (2**40, 3)))
    assert [data.nbytes for data in memory.buffers] == [24]


def test_an_array_without_elements_has_no_buffer() -> None:
    spec, memory = encoded(np.empty((3, 0)))
    assert memory.buffers == []
    assert arrays.layout(spec).buffer is None


def test_the_layout_says_where_elements_are() -> None:
    x = np.arange(6, dtype="<i2").reshape(2, 3).T
    spec, memory = encoded(x)
    dtype, shape, strides, number, offset = arrays.layout(spec)
    found = np.ndarray(shape, dtype, memory.buffer(number), offset, strides)
    assert_same(found, x)
    assert arrays.layout(encoded(np.array(["a"], object))[0]) is None


# ---- Masked.


@pytest.mark.parametrize(
    "x",
    [
        np.ma.masked_array([1, 2, 3], [False, True, False]),
        np.ma.masked_array([1.5, math.nan]),
        np.ma.masked_array([[1, 2]], [[True, False]], fill_value=7, hard_mask=True),
        np.ma.masked_array([1.0], fill_value=math.nan, dtype=">f4"),
        np.ma.masked_array(["a", "b"], [True, False], fill_value="?"),
        np.ma.masked_array(np.array([1, "a"], object), [True, False]),
        np.ma.masked_array([(1, 2.0)], [(True, False)], dtype=[("a", "i4"), ("b", "f8")]),
        np.ma.masked_array(np.asfortranarray(np.ones((2, 3))), True),
        np.ma.masked_array(5, True),
    ],
    ids=str,
)
def test_masked_arrays_come_back(x: Any) -> None:
    assert_same(x, array_back(x))


def test_a_hard_mask_stays_hard() -> None:
    back = array_back(np.ma.masked_array([1, 2], [True, False], hard_mask=True))
    back[0] = 9
    assert back.mask.tolist() == [True, False]


# ---- Strings.

NA_OBJECTS = [{}, *({"na_object": na} for na in (None, math.nan, pd.NA, "missing", ""))]


@pytest.mark.parametrize("coerce", [True, False])
@pytest.mark.parametrize("options", NA_OBJECTS, ids=repr)
def test_strings_of_numpy_come_back(options: dict[str, Any], coerce: bool) -> None:
    values = ["", "a\0b", "äöü \U0001f600", "long " * 100, *options.values()]
    x = np.array(values, StringDType(coerce=coerce, **options))
    assert_same(x, array_back(x))
    assert_same(x[:0], array_back(x[:0]))


STRINGS = [
    ["a", "", "äöü"],
    [b"a", b"\0\xff", b""],
    ["a", None, b"b", math.nan, pd.NA, pd.NaT],
    [None, None],
    [math.nan],
    ["file\udcff"],
    [np.str_("a"), "a"],
    [],
]


@pytest.mark.parametrize("values", STRINGS, ids=repr)
def test_strings_among_objects_come_back(values: list[Any]) -> None:
    x = np.array(values, object)
    assert_same(x, array_back(x))


@given(st.lists(st.text(st.characters()) | st.binary() | st.none() | st.just(pd.NA)))
def test_any_strings_among_objects_come_back(values: list[Any]) -> None:
    x = np.array([*values, None], object)[:-1]
    assert_same(x, array_back(x))


# ---- Other objects.


def dates(kind: type, **options: Any) -> list[Any]:
    return [kind(2000, 2, 28, 23, 59, 59, 999_999, **options), kind(1, 1, 1, **options)]


OBJECTS = [
    dates(cftime.DatetimeNoLeap),
    dates(cftime.DatetimeProlepticGregorian, has_year_zero=False),
    dates(cftime.datetime, calendar="julian"),
    [*dates(cftime.DatetimeGregorian), None, math.nan, pd.NaT],
    [*dates(cftime.DatetimeNoLeap), *dates(cftime.DatetimeAllLeap)],
    [*dates(cftime.DatetimeNoLeap), "a"],
    [1, 2.5, "a", None, True, 2**100],
    [math.nan, math.inf, 1.5],
    [decimal.Decimal("1.10"), datetime.date(2020, 1, 1), datetime.timedelta(1)],
    [pd.Timestamp("2020", tz="UTC"), pd.Period("2020", "M"), pd.Interval(0, 1)],
    [(1, "a"), [1], {"a": 1}, {1}],
    [np.float32(1), np.int64(1), np.datetime64("2020")],
]


@pytest.mark.parametrize("values", OBJECTS, ids=lambda values: type(values[0]).__name__)
def test_objects_come_back(values: list[Any]) -> None:
    x = np.empty(len(values), object)
    x[:] = values
    assert_same(x, array_back(x))


@pytest.mark.parametrize("value", ["a", 1, cftime.DatetimeNoLeap(2000, 1, 1)], ids=repr)
@pytest.mark.parametrize("shape", [(), (0,), (0, 2**40), (2, 3), (2, 1, 3)])
def test_objects_keep_their_shape_and_order(shape: tuple[int, ...], value: Any) -> None:
    for order in "CF":
        x = np.full(shape, value, object, order)
        back = array_back(x)
        assert_same(x, back)
        assert back.flags.f_contiguous == x.flags.f_contiguous
        assert back.flags.c_contiguous == x.flags.c_contiguous


def test_objects_inside_of_arrays_come_back() -> None:
    x = np.empty(2, object)
    x[:] = [np.array([1.5, 2.5]), np.array(["a", None], object)]
    assert_same(x, array_back(x))


def test_the_metadata_of_a_dtype_of_objects_is_kept() -> None:
    x = np.array(["a"], np.dtype(object, metadata={"element_type": str}))
    assert_same(x, array_back(x))


# ---- Refused.


class Subclass(np.ndarray):
    """An array that may hold more than elements."""


class Mapped(np.ndarray):
    """As an array that xshm itself gives."""

    _xshm_plain = True


@pytest.mark.parametrize(
    "x",
    [
        np.arange(3).view(Subclass),
        np.zeros(2, [("a", "i4")]).view(np.recarray),
        dask.array.ones(3),
        [1, 2],
        np.zeros(2, [("a", object)]),
    ],
    ids=lambda x: type(x).__name__,
)
def test_other_arrays_are_refused(x: Any) -> None:
    with pytest.raises(UnsupportedError, match=r"^variable 'v': expected .*found .*; convert"):
        arrays.encode(x, Buffers(), "variable 'v'")


def test_an_array_of_our_own_is_plain() -> None:
    assert_same(np.arange(3), array_back(np.arange(3).view(Mapped)))


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_refusal_says_which_element_it_is(order: Any) -> None:
    x = np.full((2, 3), 1, object, order)
    x[1, 2] = object()
    with pytest.raises(UnsupportedError, match=r"^variable 'v', element \[1, 2\]: .*found object"):
        arrays.encode(x, Buffers(), "variable 'v'")


# ---- Malformed.


def test_elements_outside_of_the_buffer_are_an_error_of_the_format() -> None:
    spec, memory = encoded(np.arange(6.0).reshape(2, 3))
    for changed in (
        {"offset": 8},
        {"offset": -8},
        {"offset": 2**63},
        {"strides": [32, 8]},
        {"strides": [-24, 8]},
        {"strides": [2**62, 8]},
        {"strides": [8]},
        {"shape": [3, 3]},
        {"shape": [True, 3]},
        {"shape": [2.0, 3]},
        {"shape": [2**62, 3], "strides": [0, 0]},
        {"shape": "23"},
        {"buffer": 1},
        {"buffer": None},
        {"buffer": -1},
        {"dtype": "<c16"},
        {"dtype": "|O"},
        {"dtype": {"base": "<f8", "shape": [1]}},
    ):
        with pytest.raises(FormatError):
            arrays.decode(spec | changed, memory)
        with pytest.raises(FormatError):
            arrays.check(spec | changed, [48])
    with pytest.raises(FormatError, match="a known kind of array"):
        arrays.decode(spec | {"kind": "ndarrays"}, memory)
    for key in spec:
        without = {k: v for k, v in spec.items() if k != key}
        with pytest.raises(FormatError):
            arrays.decode(without, memory)


def test_strings_outside_of_the_buffer_are_an_error_of_the_format() -> None:
    spec, memory = encoded(np.array(["ab", "ä"], object))
    offsets = memory.buffers[spec["offsets"]].view("i8")
    assert offsets.tolist() == [0, 2, 4]
    for changed in ([0, 5, 4], [0, 2, 5], [-1, 2, 4], [0, 2, 2**62], [0, 3, 4]):
        offsets[:] = changed
        with pytest.raises(FormatError):
            arrays.decode(spec, memory)


def test_unknown_codes_of_strings_are_an_error_of_the_format() -> None:
    spec, memory = encoded(np.array(["a", None], object))
    memory.buffers[spec["codes"]][1] = 6
    with pytest.raises(FormatError):
        arrays.decode(spec, memory)


def test_a_mask_of_another_shape_is_an_error_of_the_format() -> None:
    spec, memory = encoded(np.ma.masked_array([1, 2], [True, False]))
    spec["mask"]["shape"] = [1]
    with pytest.raises(FormatError):
        arrays.decode(spec, memory)


@pytest.mark.parametrize("text", ["", "[1", "[1,2", '{"a":1}', "[NaN]", "[1]", "[" * 100_000])
def test_objects_that_are_no_list_in_json_are_an_error_of_the_format(text: str) -> None:
    spec, _ = encoded(np.array([1, 2], object))
    buffers = Buffers()
    buffers.add(np.frombuffer(text.encode(), "u1"))
    with pytest.raises(FormatError):
        arrays.decode(spec, Memory(buffers))
