"""Indexes of xarray as JSON and raw buffers, and back.

========================================  ======================================================
``{"type": "PandasIndex", "dim": "x",     the dtype of its coordinate where it is not that of the
"index": {...}, "coord_dtype": null}``    index: NumPy's strings, for one
``{"type": "PandasMultiIndex", "dim":     a dtype for each level, likewise
"x", "index": {...},
"level_coords_dtype": [...]}``
``{"type": "RangeIndex", "dim": "x",      ``"step"`` is null where it follows from the others
"coord_name": "x", "size": 5, "start":
0.0, "stop": 1.0, "step": null,
"dtype": {...}}``
``{"type": "NDPointIndex", "dims":        the points are in the coordinate variables; the rest is
["y"], "coord_names": ["lat", "lon"],     for the tree, which is made anew
"leafsize": 10, "boxsize": null}``
========================================  ======================================================
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Protocol

import numpy as np
import pandas as pd
import xarray as xr
from xarray.indexes import NDPointIndex, PandasIndex, PandasMultiIndex, RangeIndex
from xarray.indexes.nd_point_index import ScipyKDTreeAdapter
from xarray.indexes.range_index import RangeCoordinateTransform

from xshm.codecs import pandas_indexes, scalars
from xshm.codecs.buffers import Buffers, Source
from xshm.codecs.pandas_indexes import decode_name
from xshm.codecs.specs import Json, Spec, field, malformed, size, unsupported


class Attributes(Protocol):
    """What an index does not know of its variables; any :class:`xarray.Variable` does."""

    @property
    def dims(self) -> tuple[Hashable, ...]: ...

    @property
    def attrs(self) -> Mapping[Any, Any]: ...

    @property
    def encoding(self) -> Mapping[Any, Any]: ...


def encode(
    index: xr.Index, variables: Mapping[Hashable, xr.Variable], buffers: Buffers, where: str
) -> Spec:
    """An index as a spec and buffers.

    Parameters
    ----------
    index : xarray.Index
    variables : mapping
        The coordinate variables of the index, by name.
    buffers : Buffers
        Where its values go, if it holds any.
    where : str
        What the index is, for errors.

    Raises
    ------
    UnsupportedError
        It is of a class, or has values or names, that cannot be stored.
    """
    # Subclasses may hold more than these: they are unknown.
    if type(index) is PandasIndex or type(index) is PandasMultiIndex:
        return _encode_pandas(index, buffers, where)
    if type(index) is RangeIndex and type(index.transform) is RangeCoordinateTransform:
        return _encode_range(index.transform, where)
    if type(index) is NDPointIndex and type(index._tree_obj) is ScipyKDTreeAdapter:
        return _encode_points(index, where)
    raise unsupported(
        where,
        "a PandasIndex, PandasMultiIndex, RangeIndex, or NDPointIndex with scipy's tree",
        index._tree_obj if type(index) is NDPointIndex else index,
        f"drop the index first: ds.drop_indexes({list(variables)!r})",
    )


def holds_values(spec: Json) -> bool:
    """Whether an index makes its coordinate variables itself, with all their values."""
    return field(spec, "type", str) != "NDPointIndex"


def decode(spec: Json, variables: Mapping[Hashable, xr.Variable], source: Source) -> xr.Index:
    """The index of a spec.

    Parameters
    ----------
    spec : Json
    variables : mapping
        Its coordinate variables by name, unless the spec :func:`holds_values`.
    source : Source
        Where its buffers are.

    Raises
    ------
    FormatError
        The spec is malformed, or does not fit the variables.
    """
    match field(spec, "type", str):
        case "PandasIndex":
            return _decode_pandas(spec, source)
        case "PandasMultiIndex":
            return _decode_pandas_multi(spec, source)
        case "RangeIndex":
            return _decode_range(spec)
        case "NDPointIndex":
            return _decode_points(spec, variables)
        case kind:
            raise malformed("a known class of index", kind)


def create_variables(
    index: xr.Index, attributes: Mapping[Hashable, Attributes]
) -> dict[Hashable, xr.Variable]:
    """The coordinate variables of an index whose spec :func:`holds_values`.

    Parameters
    ----------
    index : xarray.Index
        As :func:`decode` gave it.
    attributes : mapping
        For each variable, by name: its dims, attrs and encoding.

    Returns
    -------
    dict
        The variables, in the order of `attributes`.

    Raises
    ------
    FormatError
        These are not the variables of the index.
    """
    created = dict(index.create_variables())
    if len(created) == len(attributes) == 1:
        # A pandas.Index may have another name than the one variable made of it.
        created = dict(zip(attributes, created.values(), strict=True))
    if set(created) != set(attributes):
        raise malformed(f"the variables of an index, {list(created)!r}", list(attributes))
    for name, like in attributes.items():
        variable = created[name]
        if variable.dims != tuple(like.dims):
            raise malformed(f"variable {name!r} of an index with dims {variable.dims}", like.dims)
        variable.attrs = dict(like.attrs)
        variable.encoding = dict(like.encoding)
    return {name: created[name] for name in attributes}


def _encode_pandas(index: PandasIndex, buffers: Buffers, where: str) -> Spec:
    spec: Spec = {
        "type": type(index).__name__,
        "dim": scalars.encode(index.dim, where),
        "index": pandas_indexes.encode(index.index, buffers, where),
    }
    if isinstance(index, PandasMultiIndex):
        dtypes = index.level_coords_dtype
        spec["level_coords_dtype"] = [
            _encode_dtype(dtypes[level.name], level, where) for level in index.index.levels
        ]
    else:
        spec["coord_dtype"] = _encode_dtype(index.coord_dtype, index.index, where)
    return spec


def _decode_pandas(spec: Spec, source: Source) -> PandasIndex:
    index = pandas_indexes.decode(spec.get("index"), source)
    coord_dtype = _decode_dtype(spec.get("coord_dtype"), index)
    # Not the slow path: it looks into objects, and makes an index of another class of dates.
    decoded = PandasIndex(index, _decode_dim(spec), coord_dtype, fastpath=True)
    decoded.index.name = index.name  # where there is none, xarray gives it that of the dimension
    return decoded


def _decode_pandas_multi(spec: Spec, source: Source) -> PandasMultiIndex:
    index = pandas_indexes.decode(spec.get("index"), source)
    dim, dtypes = _decode_dim(spec), field(spec, "level_coords_dtype", list)
    if not isinstance(index, pd.MultiIndex) or len(dtypes) != index.nlevels:
        raise malformed(f"a MultiIndex of {len(dtypes)} levels, one for each dtype", spec)
    if dim in index.names or None in index.names:
        raise malformed(f"levels with names, none of them {dim!r}", list(index.names))
    level_coords_dtype = {
        level.name: _decode_dtype(dtype, level)
        for level, dtype in zip(index.levels, dtypes, strict=True)
    }
    return PandasMultiIndex(index, dim, level_coords_dtype)


def _decode_dim(spec: Spec) -> str:
    # xarray makes no variable of a pandas.Index along a dimension of another name.
    dim = decode_name(spec, "dim")
    if not isinstance(dim, str):
        raise malformed("the name of a dimension as str", dim)
    return dim


def _encode_dtype(dtype: Any, index: pd.Index, where: str) -> Json:
    """The dtype of a coordinate whose values an index holds; None if they have the same."""
    dtype = pd.api.types.pandas_dtype(dtype)
    if dtype == index.dtype:
        return None
    # The dtypes of pandas have no encoding of their own; its arrays have.
    return scalars.encode(
        dtype if isinstance(dtype, np.dtype) else pd.array([], dtype=dtype), where
    )


def _decode_dtype(spec: Json, index: pd.Index) -> Any:
    if spec is None:
        return index.dtype
    match scalars.decode(spec):
        case np.dtype() as dtype:
            return dtype
        case pd.api.extensions.ExtensionArray() as empty:
            return empty.dtype
        case other:
            raise malformed("the dtype of a coordinate", other)


def _encode_range(transform: RangeCoordinateTransform, where: str) -> Spec:
    for number in (transform.start, transform.stop, transform._step):
        if number is not None and not _is_number(number):
            advice = f"drop the index first: ds.drop_indexes([{transform.coord_name!r}])"
            raise unsupported(where, "a range of numbers", number, advice)
    return {
        "type": "RangeIndex",
        "coord_name": scalars.encode(transform.coord_name, where),
        "dim": scalars.encode(transform.dim, where),
        "size": int(transform.size),
        "start": scalars.encode(transform.start, where),
        "stop": scalars.encode(transform.stop, where),
        # The public attribute gives a quotient where there is none.
        "step": scalars.encode(transform._step, where),
        "dtype": scalars.encode(np.dtype(transform.dtype), where),
    }


def _decode_range(spec: Spec) -> RangeIndex:
    dtype = scalars.decode(spec.get("dtype"))
    if not isinstance(dtype, np.dtype):
        raise malformed("the dtype of a range", dtype)
    transform = RangeCoordinateTransform(
        _decode_number(spec.get("start")),
        _decode_number(spec.get("stop")),
        size(spec.get("size"), "the size of a range"),
        decode_name(spec, "coord_name"),
        decode_name(spec, "dim"),  # type: ignore[arg-type]  # xarray takes any name
        dtype=dtype,
        step=None if spec.get("step") is None else _decode_number(spec["step"]),
    )
    return RangeIndex(transform)


def _decode_number(spec: Json) -> Any:
    number = scalars.decode(spec)
    if not _is_number(number):
        raise malformed("a number", number)
    return number


def _is_number(value: Any) -> bool:
    if not isinstance(value, (int, float, np.generic, np.ndarray)) or np.ndim(value) != 0:
        return False
    # An int of more than 64 bits would be an object.
    return np.asarray(value).dtype.kind in "iuf"


def _encode_points(index: NDPointIndex[Any], where: str) -> Spec:
    tree = index._tree_obj._kdtree
    boxsize = None if tree.boxsize is None else tree.boxsize.tolist()
    return {
        "type": "NDPointIndex",
        "coord_names": [scalars.encode(name, where) for name in index._coord_names],
        "dims": [scalars.encode(dim, where) for dim in index._dims],
        "leafsize": int(tree.leafsize),
        "boxsize": scalars.encode(boxsize, where),
    }


def _decode_points(spec: Spec, variables: Mapping[Hashable, xr.Variable]) -> xr.Index:
    names = [scalars.decode(name) for name in field(spec, "coord_names", list)]
    dims = [scalars.decode(dim) for dim in field(spec, "dims", list)]
    if not names:
        raise malformed("the names of coordinates", spec)
    options = {
        "leafsize": field(spec, "leafsize", int),
        "boxsize": scalars.decode(spec.get("boxsize")),
    }
    try:
        # The tree numbers its points in the order of these dims; the variables may have been
        # transposed since it was made.
        points = {name: variables[name].transpose(*dims) for name in names}
        return NDPointIndex.from_variables(points, options=options)
    except (KeyError, TypeError, ValueError, OverflowError, MemoryError) as error:
        raise malformed(f"variables {names!r} that make a tree of points", error) from error
