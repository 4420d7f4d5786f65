"""Exact equality of labelled objects: all that can be asked of them, to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from xarray.indexes import NDPointIndex, PandasIndex, PandasMultiIndex, RangeIndex

from tests import codecs


def assert_same(a: Any, b: Any) -> None:
    """Of the same type, with the same values, dtypes, memory order, attributes, indexes.

    Parameters
    ----------
    a : Dataset, DataArray, DataTree or ndarray
        As it was published. What dask computes may lie in memory as it likes.
    b : Dataset, DataArray, DataTree or ndarray
        As it was opened.
    """
    assert type(a) is type(b) or isinstance(b, np.ndarray)
    match a:
        case xr.DataTree():
            _assert_same_tree(a, b)
        case xr.Dataset():
            _assert_same_dataset(a, b)
        case xr.DataArray():
            codecs.assert_same(a.name, b.name)
            _assert_same_variable(a.variable, b.variable)
            # A Dataset of the coordinates only would have them in another order.
            codecs.assert_same(list(a.coords), list(b.coords))
            for name in a.coords:
                _assert_same_variable(a.coords[name].variable, b.coords[name].variable)
            _assert_same_indexes(a.xindexes, b.xindexes)
        case _:
            _assert_same_data(a, b)


def _assert_same_tree(a: xr.DataTree, b: xr.DataTree) -> None:
    assert a.name == b.name
    assert [path for path, _ in a.subtree_with_keys] == [path for path, _ in b.subtree_with_keys]
    for left, right in zip(a.subtree, b.subtree, strict=True):
        assert left.name == right.name
        assert list(left.children) == list(right.children)
        codecs.assert_same(left.encoding, right.encoding)
        _assert_same_dataset(left.to_dataset(inherit=False), right.to_dataset(inherit=False))
        assert list(left.coords) == list(right.coords)  # with those that it inherits


def _assert_same_dataset(a: xr.Dataset, b: xr.Dataset) -> None:
    codecs.assert_same(a.attrs, b.attrs)
    codecs.assert_same(a.encoding, b.encoding)
    codecs.assert_same(list(a.sizes.items()), list(b.sizes.items()))
    codecs.assert_same(list(a.variables), list(b.variables))
    codecs.assert_same(list(a.coords), list(b.coords))
    for name in a.variables:
        _assert_same_variable(a.variables[name], b.variables[name])
    _assert_same_indexes(a.xindexes, b.xindexes)


def _assert_same_variable(a: xr.Variable, b: xr.Variable) -> None:
    assert type(a) is type(b)
    codecs.assert_same(a.dims, b.dims)
    codecs.assert_same(a.attrs, b.attrs)
    codecs.assert_same(a.shape, b.shape)
    assert a.dtype == b.dtype
    encoding = dict(b.encoding)
    if a.chunks is not None:
        preferred = xr.Variable(b.dims, b.data).chunk(encoding.pop("preferred_chunks"))
        assert preferred.chunks == a.chunks
        codecs.assert_same(a.compute().data, np.asarray(b.data))
    elif isinstance(a, xr.IndexVariable):
        _assert_same_index(a.to_index(), b.to_index())
        if isinstance(a.dtype, np.dtype):
            codecs.assert_same(a.values, b.values)
    else:
        _assert_same_data(a.data, b.data)
    codecs.assert_same(a.encoding, encoding)


def _assert_same_data(a: Any, b: Any) -> None:
    # An opened array is of a subclass, which knows where it lies.
    codecs.assert_same(a, np.asarray(b) if type(a) is np.ndarray else b)
    if isinstance(a, np.ndarray):
        assert _axes_in_memory(a) == _axes_in_memory(b)


def _axes_in_memory(x: np.ndarray) -> tuple[list[int], list[int]]:
    """Axes from the outermost to the innermost; and those along which all is the same."""
    if x.size == 0:
        return [], []
    axes = [axis for axis in range(x.ndim) if x.shape[axis] > 1]
    moving = [axis for axis in axes if x.strides[axis]]
    return sorted(moving, key=lambda axis: -abs(x.strides[axis])), [
        axis for axis in axes if not x.strides[axis]
    ]


def _assert_same_indexes(a: Any, b: Any) -> None:
    def groups(indexes: Any) -> list[tuple[xr.Index, list[Any]]]:
        return [(index, list(names)) for index, names in indexes.group_by_index()]

    assert [names for _, names in groups(a)] == [names for _, names in groups(b)]
    for (left, _), (right, _) in zip(groups(a), groups(b), strict=True):
        assert type(left) is type(right)
        match left:
            case PandasMultiIndex():
                _assert_same_index(left.index, right.index)
                _assert_same_dtypes(left.level_coords_dtype, right.level_coords_dtype)
                assert left.dim == right.dim
            case PandasIndex():
                _assert_same_index(left.index, right.index)
                _assert_same_dtypes({0: left.coord_dtype}, {0: right.coord_dtype})
                assert left.dim == right.dim
            case RangeIndex():
                for of_range in ("coord_name", "dim", "size", "start", "stop", "_step", "dtype"):
                    codecs.assert_same(
                        getattr(left.transform, of_range), getattr(right.transform, of_range)
                    )
            case NDPointIndex():
                assert (left._coord_names, left._dims) == (right._coord_names, right._dims)
                assert left._shape == right._shape
                for of_tree in ("data", "boxsize"):
                    codecs.assert_same(
                        getattr(left._tree_obj._kdtree, of_tree),
                        getattr(right._tree_obj._kdtree, of_tree),
                    )
            case _:
                raise AssertionError(f"nothing is known of {left!r}")


def _assert_same_dtypes(a: dict[Any, Any], b: dict[Any, Any]) -> None:
    assert list(a) == list(b)
    for name, dtype in a.items():
        assert dtype == b[name]


def _assert_same_index(a: pd.Index, b: pd.Index) -> None:
    assert type(a) is type(b)
    codecs.assert_same(list(a.names), list(b.names))
    if isinstance(a, pd.MultiIndex):
        assert a.sortorder == b.sortorder
        for left, right in zip(a.levels, b.levels, strict=True):
            _assert_same_index(left, right)
        for left, right in zip(a.codes, b.codes, strict=True):
            codecs.assert_same(np.asarray(left), np.asarray(right))
    elif isinstance(a, pd.RangeIndex):
        assert (a.start, a.stop, a.step) == (b.start, b.stop, b.step)
    else:
        assert a.dtype == b.dtype
        assert getattr(a, "freq", None) == getattr(b, "freq", None)
        is_plain = isinstance(a.dtype, np.dtype)
        codecs.assert_same(a.values if is_plain else a.array, b.values if is_plain else b.array)
