"""What type checkers know of a SharedArray; nothing here is an error."""

from __future__ import annotations

from multiprocessing.managers import SharedMemoryManager
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

from xshm import Lock, SharedArray


def made_of_arrays(x: NDArray[np.float32], y: SharedArray[np.int8], z: list[int]) -> None:
    """The dtype is that of the array."""
    assert_type(SharedArray.from_array(x), SharedArray[np.float32])
    assert_type(SharedArray.from_array(x, "name"), SharedArray[np.float32])
    assert_type(SharedArray.from_array(y), SharedArray[np.int8])
    assert_type(SharedArray.from_array(z), SharedArray[Any])


def made_of_shapes(dtype: np.dtype[np.uint16], manager: SharedMemoryManager) -> None:
    """The dtype is the one that is asked for, float64 if none is."""
    assert_type(SharedArray.from_shape(3), SharedArray[np.float64])
    assert_type(SharedArray.from_shape((2, 3), np.int16), SharedArray[np.int16])
    assert_type(SharedArray.from_shape([2, 3], dtype, "name"), SharedArray[np.uint16])
    assert_type(SharedArray.from_shape((), "f4", manager=manager), SharedArray[Any])
    assert_type(SharedArray.zeros(3), SharedArray[np.float64])
    assert_type(SharedArray.zeros(3, np.int32), SharedArray[np.int32])
    assert_type(SharedArray.empty(3, np.complex64, "name"), SharedArray[np.complex64])
    assert_type(SharedArray.empty(3, name="name"), SharedArray[np.float64])
    assert_type(SharedArray.full(3, 7), SharedArray[Any])
    assert_type(SharedArray.full(3, 7, np.uint8, "name"), SharedArray[np.uint8])


def attached() -> None:
    """Of a name nobody knows the dtype, but the user may."""
    assert_type(SharedArray("name"), SharedArray[Any])
    known: SharedArray[np.float32] = SharedArray("name")
    assert_type(known.get(), NDArray[np.float32])
    assert_type(SharedArray[np.float32]("name").get(), NDArray[np.float32])


def used(a: SharedArray[np.float64]) -> None:
    """As an ndarray."""
    assert_type(a.get(), NDArray[np.float64])
    assert_type(a.shape, tuple[int, ...])
    assert_type(a.dtype, np.dtype[np.float64])
    assert_type(a.T, NDArray[np.float64])
    assert_type(a.name, str | None)
    assert_type(a.lock, Lock)
    assert_type(a.view(np.uint8), SharedArray[np.uint8])
    assert_type(a.view("u1"), SharedArray[Any])
    assert_type(len(a), int)
    x: NDArray[np.float64] = np.asarray(a)
    with a.lock, a as same:
        assert_type(same, SharedArray[np.float64])
        same[1:] = x[1:] + a[0]
        a += 1
        same *= a
    np.copyto(a.get(), a.mean())


def takes_any_number(a: SharedArray[np.number[Any]]) -> None:
    """A more general dtype."""


def given(a: SharedArray[np.int16]) -> None:
    """As ndarrays are: where their dtype is a kind of the one that is wanted."""
    takes_any_number(a)
