"""NumPy takes a SharedArray for an array, and writes through it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import xshm
from xshm import SharedArray


@pytest.fixture
def x() -> np.ndarray:
    return np.arange(1.0, 13.0).reshape(3, 4)


@pytest.fixture
def a(x: np.ndarray) -> Iterator[SharedArray[np.float64]]:
    with SharedArray.from_array(x) as shared:
        yield shared


KEYS = [
    (1, 2),
    -1,
    slice(None, None, 2),
    (..., 0),
    (None, 1),
    ([0, 2], [1, 3]),
    (),
    np.s_[1:, ::-1],
]


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_indexing_and_assignment_are_those_of_an_ndarray(a: Any, x: np.ndarray, key: Any) -> None:
    np.testing.assert_array_equal(a[key], x[key])
    a[key] = -1
    x[key] = -1
    np.testing.assert_array_equal(a, x)


def test_a_mask_selects_and_assigns(a: Any, x: np.ndarray) -> None:
    np.testing.assert_array_equal(a[a > 5], x[x > 5])
    mask = SharedArray.from_array(x > 5)
    np.testing.assert_array_equal(x[mask], x[x > 5])
    a[mask] = 0
    np.testing.assert_array_equal(a, np.where(x > 5, 0, x))


def test_it_is_an_array_without_a_copy(a: Any, x: np.ndarray) -> None:
    for same in (a.get(), np.asarray(a), np.asarray(a, copy=False), np.array(a, copy=None)):
        assert isinstance(same, np.ndarray)
        assert np.shares_memory(same, a.get())
    assert type(np.asarray(a)) is np.ndarray
    np.asarray(a)[0, 0] = 99
    assert a[0, 0] == 99


def test_copies_are_made_when_asked_for_or_needed(a: Any, x: np.ndarray) -> None:
    for other in (np.array(a), np.asarray(a, copy=True), np.asarray(a, "f4"), a.copy()):
        other[0, 0] = -1
    assert a[0, 0] == 1
    assert np.asarray(a, "f4").dtype == "f4"
    with pytest.raises(ValueError, match="copy"):
        np.asarray(a, "f4", copy=False)


@pytest.mark.parametrize(
    "function",
    [
        *(operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv),
        *(operator.mod, operator.pow, operator.lt, operator.ge, operator.eq, operator.ne),
        *(divmod, np.arctan2, np.maximum),
    ],
)
def test_operators(a: Any, x: np.ndarray, function: Callable[..., Any]) -> None:
    for other in (2, 2.5 * x, SharedArray.from_array(2.5 * x)):
        plain = np.asarray(other)
        np.testing.assert_array_equal(function(a, other), function(x, plain))
        np.testing.assert_array_equal(function(other, a), function(plain, x))
        assert not isinstance(function(a, other), SharedArray)


def test_unary_operators_and_matrix_products(a: Any, x: np.ndarray) -> None:
    np.testing.assert_array_equal(-a, -x)
    np.testing.assert_array_equal(abs(-a), x)
    np.testing.assert_array_equal(a @ a.T, x @ x.T)
    np.testing.assert_array_equal(x.T @ a, x.T @ x)
    np.testing.assert_array_equal(~SharedArray.from_array(x > 3), x <= 3)


def test_results_are_ordinary_arrays_and_scalars(a: Any) -> None:
    assert type(a + 1) is np.ndarray
    assert type(np.sqrt(a)) is np.ndarray
    assert type(a.sum()) is type(np.add.reduce(a, None)) is np.float64
    assert not np.shares_memory(a + 0, a.get())


def test_operators_in_place_write_through(a: Any, x: np.ndarray) -> None:
    before, view = a, a.get()
    a += 1
    a *= a
    a -= x
    a[1:] /= 2
    expected = (x + 1) ** 2 - x
    expected[1:] /= 2
    assert a is before
    np.testing.assert_array_equal(view, expected)


def test_an_ndarray_is_changed_in_place_by_a_shared_one(a: Any, x: np.ndarray) -> None:
    y = x.copy()
    y += a
    assert type(y) is np.ndarray
    np.testing.assert_array_equal(y, 2 * x)


def test_functions_write_to_it(a: Any, x: np.ndarray) -> None:
    assert np.add(x, 1, out=a) is a
    np.testing.assert_array_equal(a, x + 1)
    np.copyto(a, x)
    np.testing.assert_array_equal(a, x)
    np.put(a, [0, 5], -1)
    np.putmask(a, x == 12, 0)
    np.add.at(a, (1, [2, 2]), 10)
    np.fill_diagonal(a, 7)
    y = x.copy()
    np.put(y, [0, 5], -1)
    y[-1, -1] = 0
    y[1, 2] += 20
    np.fill_diagonal(y, 7)
    np.testing.assert_array_equal(a, y)


def test_outputs_come_back_as_they_were_given(a: Any, x: np.ndarray) -> None:
    other = SharedArray.zeros((3, 4))
    first, second = np.divmod(x, 5, out=(a, other))
    assert first is a
    assert second is other
    np.testing.assert_array_equal(other, x % 5)
    first, second = np.modf(x, out=(None, other))
    assert type(first) is np.ndarray
    assert second is other
    sums = SharedArray.zeros(4)
    assert np.sum(x, axis=0, out=sums) is sums
    np.testing.assert_array_equal(sums, x.sum(0))
    assert np.clip(a, 0, 1, out=a) is a
    assert a.max() <= 1


def test_functions_take_it_wherever_they_take_arrays(a: Any, x: np.ndarray) -> None:
    np.testing.assert_array_equal(np.concatenate([a, x, a]), np.concatenate([x, x, x]))
    np.testing.assert_array_equal(np.block([[a, a], [x, x]]), np.tile(x, (2, 2)))
    np.testing.assert_array_equal(np.where(a > 3, a, 0), np.where(x > 3, x, 0))
    np.testing.assert_array_equal(np.einsum("ij,kj->ik", a, a), x @ x.T)
    np.testing.assert_array_equal(np.linalg.norm(a), np.linalg.norm(x))
    np.testing.assert_array_equal(np.linalg.svd(a)[1], np.linalg.svd(x)[1])
    np.testing.assert_array_equal(np.fft.fft(a), np.fft.fft(x))
    assert np.mean(a) == np.mean(x)
    assert np.shape(a) == (3, 4)
    assert np.array_equal(a, x)
    assert np.zeros_like(a).shape == (3, 4)


def test_attributes_and_methods_are_those_of_an_ndarray(a: Any, x: np.ndarray) -> None:
    assert (a.shape, a.dtype, a.ndim, a.size, a.nbytes, a.itemsize) == ((3, 4), "f8", 2, 12, 96, 8)
    assert a.strides == (32, 8)
    np.testing.assert_array_equal(a.T, x.T)
    assert a.mean() == x.mean()
    assert a.tolist() == x.tolist()
    np.testing.assert_array_equal(a.astype(int).cumsum(axis=1), x.cumsum(axis=1))
    a.sort(axis=0)
    a.T[0] = 5
    assert (a[:, 0] == 5).all()
    a.fill(3)
    assert (a == 3).all()


def test_an_attribute_that_there_is_not_is_named() -> None:
    a: Any = SharedArray.zeros(1)
    with pytest.raises(AttributeError, match="'SharedArray' object has no attribute 'nonsense'"):
        a.nonsense  # noqa: B018
    with pytest.raises(AttributeError, match="'SharedArray' object has no attribute '_nonsense'"):
        a._nonsense  # noqa: B018
    with pytest.raises(AttributeError):
        a.nonsense = 1  # what is set by mistake must not vanish
    assert not hasattr(a, "__array_interface__")


def test_it_is_a_sequence(a: Any, x: np.ndarray) -> None:
    assert len(a) == 3
    assert [row.tolist() for row in a] == x.tolist()
    assert [row.tolist() for row in reversed(a)] == x[::-1].tolist()
    assert 5 in a
    assert 99 not in a
    scalar: Any = SharedArray.from_array(7)
    with pytest.raises(TypeError, match="unsized"):
        len(scalar)


def test_one_element_is_a_number() -> None:
    seven: Any = SharedArray.from_array(7)
    assert bool(seven)
    assert not SharedArray.zeros(1)
    assert (int(seven), float(seven), complex(seven)) == (7, 7.0, 7 + 0j)
    assert "abcdefgh"[seven] == "h"
    many: Any = SharedArray.zeros(3)
    for convert in (bool, int, float, operator.index):
        with pytest.raises((TypeError, ValueError), match=r"array|scalar"):
            convert(many)


def test_it_has_no_hash_as_an_ndarray_has_none() -> None:
    with pytest.raises(TypeError, match="unhashable"):
        hash(SharedArray.zeros(1))


def test_xarray_and_dask_take_it_for_an_array(a: Any, x: np.ndarray) -> None:
    array = xr.DataArray(a, dims=("x", "y"))
    xr.testing.assert_equal(array + 1, xr.DataArray(x + 1, dims=("x", "y")))
    assert array.mean().item() == x.mean()
    assert isinstance(array + a, xr.DataArray)
    chunked = da.from_array(a, chunks=2)
    np.testing.assert_array_equal(chunked.sum(axis=0).compute(scheduler="sync"), x.sum(0))
    lazy = a + da.from_array(x)
    assert isinstance(lazy, da.Array)
    np.testing.assert_array_equal(lazy.compute(scheduler="sync"), 2 * x)


def test_dask_never_takes_a_result_for_that_of_other_values(a: Any) -> None:
    before = dask_name(a)
    a[:] = 0
    assert dask_name(a) != before


def dask_name(a: Any) -> str:
    name: str = da.from_array(a).name
    return name


def test_other_libraries_get_the_buffer_of_the_ndarray(a: Any) -> None:
    memoryview(a.get()).cast("B")[:8] = bytes(8)
    assert a[0, 0] == 0
    assert xshm.asarray(a.get(), shape=12)[0] == 0
