"""Dtypes come back as they were, in all that NumPy tells of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tests.codecs import assert_same, through_json
from xshm.codecs import dtypes
from xshm.errors import FormatError, UnsupportedError

UNITS = ["Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as"]

DTYPES: list[Any] = [
    *[np.dtype(code) for code in "?bBhHiIlLqQefdgFDGc"],
    *[np.dtype(code).newbyteorder(">") for code in "hHiIlLqQefdgFDG"],
    *["S0", "S5", "<U0", "<U3", ">U3", "V0", "V7", "S2000000000"],
    *[f"{kind}8[{unit}]" for unit in UNITS for kind in "Mm"],
    *["M8", ">m8", ">M8[25s]", "m8[1000000000as]"],
    [("a", "i1"), ("b", ">f8")],
    [("a", "i1"), ("b", [("c", "U3", (2, 3)), ("d", "?")], 2)],
    np.dtype([("a", "i1"), ("b", "f8")], align=True),
    [(("the title", "a"), "i4"), ("b", "i4")],
    [("ä", "i4"), ("f1", [])],
    {"names": ["b", "a"], "formats": ["i4", "i2"], "offsets": [0, 2], "itemsize": 99},
    [],
    np.dtype((np.record, [("a", "i1")])),
    np.dtype("f8", metadata={"unit": "m", "n": (1, 2.0)}),
    np.dtype([("a", np.dtype("f8", metadata={"unit": "m"}))], metadata={"of": "all"}),
    np.dtype(("i4", (2, 3))),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_come_back(dtype: Any) -> None:
    dtype = np.dtype(dtype)
    assert_same(dtype, dtypes.decode(through_json(dtypes.encode(dtype))))


@given(
    npst.array_dtypes(allow_subarrays=True)
    | npst.nested_dtypes(max_itemsize=2**16)
    | npst.datetime64_dtypes()
)
def test_any_dtype_comes_back(dtype: Any) -> None:
    assert_same(dtype, dtypes.decode(through_json(dtypes.encode(dtype))))


@pytest.mark.parametrize(
    "dtype",
    [
        np.dtype(object),
        np.dtypes.StringDType(),
        np.dtype([("a", object)]),
        np.dtype("f8", metadata={"unit": object()}),
    ],
    ids=str,
)
def test_what_has_no_fixed_size_is_refused(dtype: Any) -> None:
    with pytest.raises(UnsupportedError, match=r"^variable 'v'"):
        dtypes.encode(dtype, "variable 'v'")


@pytest.mark.parametrize("dtype", [np.dtype(object), np.dtype(object, metadata={"a": 1})])
def test_objects_are_a_dtype_of_arrays(dtype: Any) -> None:
    assert_same(dtype, dtypes.decode_any(through_json(dtypes.encode_any(dtype))))


def _structure(**changed: Any) -> Any:
    return {
        "fields": [["a", "<i4", 0]],
        "itemsize": 4,
        "aligned": False,
        "record": False,
        **changed,
    }


def _deep() -> Any:
    spec: Any = "<i4"
    for _ in range(100_000):
        spec = {"base": spec, "shape": [1]}
    return spec


@pytest.mark.parametrize(
    "spec",
    [
        *[None, 1, True, [], {}],
        *["", "f8", "=f8", "<f7", "<O8", "|O", "i4,i4", "<U-1", "<U9999999999", "|S3000000000"],
        *["(2,)<i4", "<M8[0s]", "<M8[s/3]", "<M8[9999999999s]", "<M8[generic]", "float64", "|T16"],
        {"str": "|O"},
        {"str": "<f8", "char": "q"},
        {"str": "<i8", "char": "O"},
        {"str": "<f8", "metadata": {"list": 1}},
        {"str": "<f8", "metadata": "unit"},
        {"base": "<f8", "shape": [-1]},
        {"base": "<f8", "shape": [2**62, 2**62]},
        {"base": "<f8", "shape": [2**31]},
        {"base": "<f8", "shape": [True]},
        {"base": "|O", "shape": [1]},
        _structure(itemsize=3),
        _structure(itemsize=2**62, fields=[["a", "<i4", 2**61]]),
        _structure(fields=[["a", "<i4", -1]]),
        _structure(fields=[["a", "<i4", 2**63 - 1]]),
        _structure(fields=[["a", "|O", 0]]),
        _structure(fields=[["a", "<i2", 0], ["a", "<i2", 2]]),
        _structure(fields=[[1, "<i2", 0]]),
        _structure(fields=[["a", "<i2", 0, []]]),
        _structure(fields=[["a", "<i2", 0, "b"], ["b", "<i2", 2]]),
        _structure(fields=[["a"]]),
        _structure(fields=None),
        _structure(aligned=1),
        _structure(aligned=True, fields=[["a", "<i4", 1]], itemsize=5),
        _structure(record=None),
    ],
    ids=str,
)
def test_a_malformed_dtype_is_an_error_of_the_format(spec: Any) -> None:
    with pytest.raises(FormatError):
        dtypes.decode(spec)


def test_a_dtype_that_is_too_deep_is_an_error_of_the_format() -> None:
    with pytest.raises(FormatError):
        dtypes.decode(_deep())


@given(st.text("<>|=bifcSUVMmO?0123456789[]sDYn,()", max_size=12))
def test_any_text_is_a_dtype_of_fixed_size_or_an_error_of_the_format(text: str) -> None:
    try:
        dtype = dtypes.decode(text)
    except FormatError:
        return
    assert dtype.str == text
    assert not dtype.hasobject
