"""Whatever happens to a spec or its buffers: an array comes of it, or an error of the format."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import cftime
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import test_codecs_pandas
from tests.codecs import encoded
from xshm.codecs import arrays
from xshm.errors import FormatError

ARRAYS: dict[str, Any] = {
    **test_codecs_pandas.ARRAYS,
    "numbers": np.arange(6.0).reshape(2, 3).T,
    "repeated": np.broadcast_to(np.arange(3, dtype=">i2"), (4, 3)),
    "structure": np.zeros(2, [(("title", "a"), "i4", (2,)), ("b", "M8[25s]")]),
    "masked": np.ma.masked_array([1, 2], [True, False], fill_value=3),
    "StringDType": np.array(["a", "", pd.NA], np.dtypes.StringDType(na_object=pd.NA)),
    "strings and others": np.array([["a", b"b"], [None, np.nan]], object),
    "dates": np.array([cftime.DatetimeNoLeap(2000, 1, 1), None], object),
    "objects": np.array([1, (2,), {"a": np.arange(2)}, pd.Timestamp("2020")], object),
}


def places(spec: Any) -> Iterator[tuple[Any, Any]]:
    """Each object or list in a spec, with each key or position in it."""
    if isinstance(spec, dict | list):
        for key in list(spec) if isinstance(spec, dict) else range(len(spec)):
            yield spec, key
            yield from places(spec[key])


WRONG = st.sampled_from(
    [None, True, -1, 0, 1, 2, 7, 2**31, 2**62, 2**63, 1.5, "", "C", "<f8", "|O", [], [0], {}]
)


def assert_decodes_or_refuses(spec: Any, memory: Any) -> None:
    for use in (arrays.layout, arrays.shape_and_dtype):
        with contextlib.suppress(FormatError):
            use(spec)
    try:
        arrays.check(spec, [data.nbytes for data in memory.buffers])
        x = arrays.decode(spec, memory)
    except FormatError:
        return
    if isinstance(x, np.ndarray) and x.size < 1000 and x.nbytes < 10**6:
        x.tobytes()  # reads all of it


@pytest.mark.parametrize("name", ARRAYS)
@settings(max_examples=60)
@given(data=st.data())
def test_a_spec_with_something_else_in_it(name: str, data: st.DataObject) -> None:
    spec, memory = encoded(ARRAYS[name])
    for _ in range(data.draw(st.integers(1, 3))):
        everything = list(places(spec))
        holder, key = data.draw(st.sampled_from(everything))
        match data.draw(st.sampled_from(["wrong", "swap", "drop"])):
            case "wrong":
                holder[key] = copy.deepcopy(data.draw(WRONG))
            case "swap":
                other, other_key = data.draw(st.sampled_from(everything))
                holder[key] = copy.deepcopy(other[other_key])
            case "drop":
                del holder[key]
        if not spec:
            break
    assert_decodes_or_refuses(spec, memory)


@pytest.mark.parametrize("name", ARRAYS)
@settings(max_examples=60)
@given(data=st.data())
def test_a_buffer_with_something_else_in_it(name: str, data: st.DataObject) -> None:
    spec, memory = encoded(ARRAYS[name])
    if not memory.buffers:
        return
    number = data.draw(st.integers(0, len(memory.buffers) - 1))
    original = memory.buffers[number].tobytes()
    changed = bytearray(original)
    if changed and data.draw(st.booleans()):
        position = data.draw(st.integers(0, len(changed) - 1))
        new = data.draw(st.sampled_from([b"\xff", b"\0", b"\x7f", b"\x80" * 8, b"\xff" * 8]))
        changed[position : position + len(new)] = new
    else:
        del changed[data.draw(st.integers(0, len(changed))) :]
    memory.buffers[number] = np.frombuffer(changed, np.uint8)
    assert_decodes_or_refuses(spec, memory)


@pytest.mark.parametrize(
    "outer",
    [
        {"kind": "masked", "mask": None, "hardmask": False},
        {"kind": "pandas", "type": "Numpy", "length": 1},
        {"kind": "pandas", "type": "Interval", "length": 1, "closed": "left"},
    ],
    ids=str,
)
def test_arrays_in_arrays_without_end(outer: dict[str, Any]) -> None:
    spec: Any = None
    for _ in range(100_000):
        spec = {**outer, "data": spec, "values": spec, "left": spec}
    _, memory = encoded(ARRAYS["numbers"])
    with pytest.raises(FormatError):
        arrays.decode(spec, memory)
    with contextlib.suppress(FormatError):
        arrays.shape_and_dtype(spec)
