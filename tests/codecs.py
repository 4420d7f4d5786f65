"""What the tests of codecs share: there and back by way of JSON and bytes, and exact equality."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pandas as pd

from xshm.codecs import arrays, scalars
from xshm.codecs.buffers import Buffers
from xshm.errors import FormatError


class Memory:
    """The buffers of an encoder, as a file would hold them."""

    def __init__(self, buffers: Buffers) -> None:
        self.buffers = [
            np.frombuffer(bytearray(np.ascontiguousarray(x).tobytes()), np.uint8)
            for x in buffers.sources
        ]

    def buffer(self, number: int) -> np.ndarray:
        if not 0 <= number < len(self.buffers):
            raise FormatError("no such buffer")
        return self.buffers[number]


def through_json(spec: Any) -> Any:
    return json.loads(json.dumps(spec, allow_nan=False))


def value_back(value: Any) -> Any:
    """A value that went there and back."""
    return scalars.decode(through_json(scalars.encode(value, "attribute 'a'")))


def encoded(x: Any) -> tuple[Any, Memory]:
    """An array as its spec, and its buffers."""
    buffers = Buffers()
    spec = through_json(arrays.encode(x, buffers, "variable 'v'"))
    memory = Memory(buffers)
    assert buffers.sizes() == [data.nbytes for data in memory.buffers]
    arrays.check(spec, buffers.sizes())
    return spec, memory


def array_back(x: Any) -> Any:
    """An array that went there and back."""
    spec, memory = encoded(x)
    back = arrays.decode(spec, memory)
    shape, dtype = arrays.shape_and_dtype(spec)
    assert shape == x.shape
    if dtype is not None:
        assert_same(back.dtype, dtype)
    return back


def assert_same(a: Any, b: Any) -> None:
    """Of the same type, and equal to the last bit, in all that can be asked of them."""
    assert type(a) is type(b)
    match a:
        case np.dtype():
            _assert_same_dtype(a, b)
        case np.ma.MaskedArray():
            assert_same(a.data, b.data)
            assert (a.mask is np.ma.nomask) == (b.mask is np.ma.nomask)
            assert_same(np.asarray(a.mask), np.asarray(b.mask))
            assert_same(a.fill_value, b.fill_value)
            assert a.hardmask == b.hardmask
        case np.ndarray():
            _assert_same_array(a, b)
        case np.str_() | np.bytes_():
            assert len(a) == len(b)
            assert a == b
        case np.generic():
            _assert_same_array(np.asarray(a), np.asarray(b))
        case pd.api.extensions.ExtensionArray():
            _assert_same_extension_array(a, b)
        case pd.Index():
            pd.testing.assert_index_equal(a, b, exact=True)
        case float():
            assert struct.pack("d", a) == struct.pack("d", b)
        case complex():
            assert struct.pack("dd", a.real, a.imag) == struct.pack("dd", b.real, b.imag)
        case int() | str():
            assert a == b
        case list() | tuple():
            assert len(a) == len(b)
            for left, right in zip(a, b, strict=True):
                assert_same(left, right)
        case dict():
            assert_same(list(a.items()), list(b.items()))
        case set() | frozenset():
            assert_same(sorted(a, key=repr), sorted(b, key=repr))
        case slice():
            assert_same([a.start, a.stop, a.step], [b.start, b.stop, b.step])
        case _:  # of dates and the like the repr says all, but for the fold of some
            assert repr(a) == repr(b)
            assert getattr(a, "fold", None) == getattr(b, "fold", None)


def _assert_same_dtype(a: Any, b: Any) -> None:
    assert a == b
    assert (a.char, a.byteorder, a.itemsize, a.isalignedstruct) == (
        b.char,
        b.byteorder,
        b.itemsize,
        b.isalignedstruct,
    )
    assert a.type is b.type
    assert_same(dict(a.metadata or {}), dict(b.metadata or {}))
    if isinstance(a, np.dtypes.StringDType):
        assert a.coerce == b.coerce
        assert hasattr(a, "na_object") == hasattr(b, "na_object")
        assert_same(getattr(a, "na_object", None), getattr(b, "na_object", None))
    for name in a.names or ():
        assert_same(list(a.fields[name]), list(b.fields[name]))
    if a.subdtype is not None:
        assert_same(a.base, b.base)


def _assert_same_array(a: Any, b: Any) -> None:
    assert_same(a.dtype, b.dtype)
    assert a.shape == b.shape
    if a.dtype.names is not None:
        for name in a.dtype.names:
            _assert_same_array(a[name], b[name])
    elif a.dtype.kind in "OT":
        assert_same(a.ravel().tolist(), b.ravel().tolist())
    elif a.dtype.char == "g":  # its last bytes are not part of the number
        assert a.tobytes() == b.tobytes() or (_digits(a) == _digits(b)).all()
    elif a.dtype.char == "G":
        _assert_same_array(a.real, b.real)
        _assert_same_array(a.imag, b.imag)
    else:
        assert a.tobytes() == b.tobytes()


def _digits(x: Any) -> Any:
    nbytes = np.finfo(x.dtype).bits // 8
    return np.ascontiguousarray(x).reshape(-1).view("u1").reshape(x.size, nbytes)[:, :10]


def _assert_same_extension_array(a: Any, b: Any) -> None:
    pd.testing.assert_extension_array_equal(a, b, check_exact=True)
    assert a.dtype == b.dtype
    match a:
        case pd.Categorical():
            assert_same(np.asarray(a.codes), np.asarray(b.codes))
            assert_same(a.categories, b.categories)
        case pd.arrays.SparseArray():
            assert a.kind == b.kind
            assert_same(a.fill_value, b.fill_value)
            assert_same(a.sp_index.indices, b.sp_index.indices)
            assert_same(a.sp_values, b.sp_values)
        case pd.arrays.NumpyExtensionArray() if type(a) is pd.arrays.NumpyExtensionArray:
            assert_same(a.to_numpy(), b.to_numpy())
        case pd.arrays.IntegerArray() | pd.arrays.FloatingArray() | pd.arrays.BooleanArray():
            assert_same(a._data, b._data)
            assert_same(a._mask, b._mask)
        case pd.arrays.IntervalArray():
            assert_same(a.left, b.left)
            assert_same(a.right, b.right)
        case pd.arrays.DatetimeArray():
            assert_same(a.tz, b.tz)
        case pd.arrays.StringArray() | pd.arrays.ArrowStringArray():
            assert a.dtype.storage == b.dtype.storage
            assert a.dtype.na_value is b.dtype.na_value
            assert_same(np.asarray(a, object), np.asarray(b, object))
