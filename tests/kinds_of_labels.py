"""Kinds of labels: indexes, attributes, names, groups, chunks and encodings."""

from __future__ import annotations

import datetime
import decimal
import math
from typing import Any

import cftime
import dask.array
import numpy as np
import pandas as pd
import xarray as xr
from xarray.indexes import NDPointIndex, RangeIndex

from tests.kinds_of_arrays import BERLIN, DAYS, PAYLOAD, Kinds, dataset, objects


def indexed(labels: Any) -> xr.Dataset:
    """A Dataset with one dimension coordinate."""
    return xr.Dataset({"v": ("x", np.arange(len(labels)))}, {"x": labels})


def _points() -> xr.Dataset:
    ds = xr.Dataset(
        {"v": (("y", "x"), np.arange(6).reshape(2, 3))},
        {
            "lat": (("y", "x"), np.arange(6.0).reshape(2, 3)),
            "lon": (("y", "x"), np.arange(6.0, 0, -1).reshape(2, 3)),
        },
    )
    return ds.set_xindex(["lat", "lon"], NDPointIndex)


def _range(dim: str = "x", **options: Any) -> xr.Dataset:
    return xr.Dataset(coords=xr.Coordinates.from_xindex(RangeIndex.arange(dim=dim, **options)))


def _multi(*levels: Any) -> xr.Dataset:
    levels = levels or (["b", "a", "b"], [1, 2, 3])
    index = pd.MultiIndex.from_arrays(levels, names=("letter", "number"))
    return xr.Dataset({"v": ("x", [1, 2, 3])}, xr.Coordinates.from_pandas_multiindex(index, "x"))


def _with_attributes_of_index() -> xr.Dataset:
    ds = indexed(DAYS)
    ds.x.attrs["standard_name"] = "time"
    ds.x.encoding["units"] = "days since 1950-01-01"
    return ds


INDEXES: Kinds = {
    "index of ints": lambda: indexed([30, 10, 20]),
    "index of int16": lambda: indexed(np.array([3, 1], "i2")),
    "index of big-endian floats": lambda: indexed(np.array([0.5, 1], ">f8")),
    "index of float32": lambda: indexed(np.array([0.1, 0.2], "f4")),
    "index of bools": lambda: indexed([True, False]),
    "index of complex": lambda: indexed([1j, 2]),
    "index of U2": lambda: indexed(["aa", "b"]),
    "index of S2": lambda: indexed(np.array([b"aa", b"b"])),
    "index of objects": lambda: indexed(objects("a", 1, None)),
    "index of objects, str": lambda: indexed(objects("a", "b")),
    "index of NaN": lambda: indexed([0.0, np.nan]),
    "index with duplicates": lambda: indexed([1, 1, 1]),
    "index without elements": lambda: indexed(np.array([], "f4")),
    "index of a range": lambda: indexed(pd.RangeIndex(10, 0, -3)),
    "index with another name": lambda: xr.Dataset(coords={"x": pd.Index([1, 2], name="y")}),
    "index of pandas strings": lambda: indexed(pd.Index(["a", "b"], dtype="str")),
    "index of nullable ints": lambda: indexed(pd.Index([1, 2], dtype="Int64")),
    "index of categories": lambda: indexed(pd.CategoricalIndex(["b", "a"], ordered=True)),
    "index of intervals": lambda: indexed(pd.interval_range(0, 3)),
    "index of bins": lambda: xr.DataArray([1, 2, 3], dims="x").groupby_bins("x", [0, 1, 3]).sum(),
    "index of periods": lambda: indexed(pd.period_range("2020", periods=3, freq="M")),
    "index of days": lambda: indexed(DAYS),
    "index of month starts": lambda: indexed(pd.date_range("2020", periods=3, freq="MS")),
    "index of times without freq": lambda: indexed(pd.DatetimeIndex(["2020", "NaT", "1999"])),
    "index of seconds": lambda: indexed(DAYS.as_unit("s")),
    "index of times in a zone": lambda: indexed(DAYS.tz_localize(BERLIN)),
    "index of timedeltas": lambda: indexed(pd.timedelta_range("1h", periods=3, freq="90min")),
    "index of cftime": lambda: indexed(
        xr.date_range("2000", periods=3, calendar="noleap", use_cftime=True)
    ),
    "index of dates": lambda: indexed(objects(datetime.date(2020, 1, 1), datetime.date(1, 1, 1))),
    "index of Decimal": lambda: indexed(objects(decimal.Decimal("1.10"), decimal.Decimal(2))),
    "index of tuples": lambda: indexed(pd.Index([(1, 2), (3, 4)], tupleize_cols=False)),
    "MultiIndex": _multi,
    "MultiIndex, missing labels": lambda: xr.Dataset(
        coords=xr.Coordinates.from_pandas_multiindex(
            pd.MultiIndex.from_arrays([["a", None], [np.nan, 0.5]], names=("k", "l")), "x"
        )
    ),
    "MultiIndex, unused labels": lambda: _multi().isel(x=[0, 2]),
    "MultiIndex, stacked": lambda: xr.Dataset(
        {"v": (("y", "x"), [[1, 2], [3, 4]])}, {"y": DAYS[:2], "x": ["a", "b"]}
    ).stack(z=("y", "x")),
    "RangeIndex of xarray": lambda: _range(start=0.0, stop=1.0, step=0.1),
    "RangeIndex of xarray, sliced": lambda: _range(start=0.0, stop=1.0, step=0.1).isel(
        x=slice(1, None, 3)
    ),
    "RangeIndex of xarray, float32": lambda: _range(
        start=0.0, stop=1.0, step=0.1, dtype=np.dtype("f4")
    ),
    "NDPointIndex": _points,
    "index of another coordinate": lambda: xr.Dataset(
        coords={"label": ("x", ["a", "b"])}
    ).set_xindex("label"),
    "two indexes of a dimension": lambda: xr.Dataset(
        coords={"x": [1, 2], "label": ("x", ["a", "b"])}
    ).set_xindex("label"),
    "no index": lambda: indexed([1, 2]).drop_indexes("x"),
    "no index, times in a zone": lambda: indexed(DAYS.tz_localize("UTC")).drop_indexes("x"),
    "no index, categories": lambda: indexed(pd.CategoricalIndex(["b", "a"])).drop_indexes("x"),
    "MultiIndex of times and categories": lambda: _multi(DAYS, pd.Categorical(["a", "b", "a"])),
    "MultiIndex of coordinates": lambda: xr.Dataset(
        coords={"a": ("x", [1, 2]), "b": ("x", ["c", "d"])}
    ).set_xindex(["a", "b"]),
    "index of business days": lambda: indexed(pd.date_range("2020", periods=3, freq="B")),
    "index of structures": lambda: indexed(np.array([(1, 2.0)], [("a", "i2"), ("b", "f4")])),
    "index of cftime, empty": lambda: indexed(
        xr.date_range("2000", periods=1, calendar="noleap", use_cftime=True)[:0]
    ),
    "index of a scalar coordinate's former dimension": lambda: indexed(DAYS).isel(x=1),
    "index with attributes and encoding": _with_attributes_of_index,
}


def described(**attrs: Any) -> xr.Dataset:
    """A Dataset with these attributes, which its variable has too."""
    return xr.Dataset({"v": ("x", [1, 2], attrs)}, attrs=attrs)


ATTRIBUTES: Kinds = {
    "attributes, text": lambda: described(units="K", empty="", other="\u00b0C \0 \U0001f30d"),
    "attributes, numbers": lambda: described(a=1, b=0.1, c=1j, d=True, e=2**100, f=-(2**63)),
    "attributes, NaN and infinity": lambda: described(
        a=math.nan, b=-math.inf, c=-0.0, d=PAYLOAD.view("f8")[0].item()
    ),
    "attributes, None": lambda: described(a=None),
    "attributes, bytes": lambda: described(a=b"\xff\0", b=b""),
    "attributes, NumPy scalars": lambda: described(
        a=np.float32(0.1),
        b=np.int8(-1),
        c=np.bool_(True),
        d=np.str_("a"),
        e=np.bytes_(b"a\0b"),
        f=np.datetime64("2020", "D"),
        g=np.timedelta64("NaT", "ns"),
        h=np.float16(np.nan),
        i=np.longdouble(1) / 3,
        j=np.void(b"ab"),
        k=np.complex64(1j),
    ),
    "attributes, arrays": lambda: described(
        a=np.array([0.1, np.nan], ">f4"),
        b=np.array(["a", "bc"]),
        c=np.array([]),
        d=np.array(1),
        e=np.array([["a", None]], object),
        f=np.array([[1, 2], [3, 4]], order="F"),
        g=np.array(["2020", "NaT"], "M8[D]"),
        h=np.array(["a"], np.dtypes.StringDType()),
    ),
    "attributes, arrays of pandas": lambda: described(
        a=pd.array([1, None], dtype="Int64"), b=pd.Categorical(["a", "b"])
    ),
    "attributes, lists": lambda: described(a=[], b=[1, "a", None, [2.0, []]]),
    "attributes, tuples": lambda: described(a=(), b=(1, (2, [3])), c=[(1,)]),
    "attributes, sets": lambda: described(a={1, "a"}, b=frozenset((1, 2)), c=set()),
    "attributes, nested dicts": lambda: described(
        a={"b": {"c": [1, {"d": None}]}, 1: 2, (1, 2): {}}
    ),
    "attributes, slices and dtypes": lambda: described(
        a=slice(1, None, 2), b=np.dtype(">f4"), c=np.dtype([("a", "i2")]), d=float
    ),
    "attributes, dates": lambda: described(
        a=datetime.date(2020, 2, 29),
        b=datetime.datetime(1, 1, 1, 0, 0, 0, 1),
        c=datetime.datetime(2020, 10, 25, 2, 30, tzinfo=BERLIN, fold=1),
        d=datetime.timedelta(days=-1, microseconds=1),
        e=datetime.time(23, 59, 59, 999999),
        f=datetime.timezone(datetime.timedelta(hours=-3, minutes=-30), "here"),
    ),
    "attributes, times of pandas": lambda: described(
        a=pd.Timestamp("2020-01-01 00:00:00.000000001"),
        b=pd.Timestamp("2020", tz=BERLIN),
        c=pd.Timedelta(1, "s"),
        d=pd.Period("2020Q1"),
        e=pd.NaT,
        f=pd.NA,
        g=pd.Interval(0, 1.5, "both"),
    ),
    "attributes, cftime": lambda: described(a=cftime.datetime(2000, 2, 30, calendar="360_day")),
    "attributes, Decimal": lambda: described(a=decimal.Decimal("1.10"), b=decimal.Decimal("-NaN")),
    "attributes, keys": lambda: dataset([1]).assign_attrs(
        {"a b/c": 1, "": 2, "\u00e9": 3, 1: 4, (1, 2): 5, None: 6, b"a": 7}
    ),
    "attributes, order of keys": lambda: described(z=1, a=2, m=3),
}

_NAMES = {
    "space": "a b",
    "slash": "a/b",
    "unicode": "\u00e9\U0001f30d",
    "empty": "",
    "dot": ".",
    "int": 7,
    "float": 0.5,
    "bool": True,
    "tuple": ("a", 1),
    "None": None,
    "bytes": b"a",
    "date": datetime.date(2020, 1, 1),
    "lone surrogate": "a\udc80",
}

NAMES: Kinds = {
    **{
        f"variable's name, {kind}": lambda name=name: xr.Dataset({name: ("x", [1, 2])})
        for kind, name in _NAMES.items()
    },
    **{
        f"dimension's name, {kind}": lambda name=name: xr.Dataset(
            {"v": xr.Variable([name], [1, 2])}
        )
        for kind, name in _NAMES.items()
    },
    **{
        f"index's name, {kind}": lambda name=name: xr.Dataset(
            coords={name: xr.Variable([name], [1, 2])}
        )
        for kind, name in _NAMES.items()
        if isinstance(name, str)
    },
    "names in another order": lambda: xr.Dataset(
        {"z": ("x", [1]), "a": ("y", [2])}, {"y": [3], "b": 4, "x": [5]}
    ),
    "coordinates before variables": lambda: xr.Dataset(coords={"x": [1]}).assign(v=("x", [2]), a=3),
    "only coordinates": lambda: xr.Dataset(coords={"a": 1, "x": [1, 2]}),
    "nothing": xr.Dataset,
    "DataArray": lambda: xr.DataArray([1, 2], {"x": [3, 4]}, name="v", attrs={"a": 1}),
    "DataArray without name": lambda: xr.DataArray([[1, 2]], {"x": [3, 4], "s": 5}, ("y", "x")),
    "DataArray, name of its coordinate": lambda: xr.DataArray([1, 2], {"x": [3, 4]}, name="x"),
    "DataArray of a coordinate": lambda: indexed(DAYS).x,
    "DataArray of a coordinate, times in a zone": lambda: indexed(DAYS.tz_localize(BERLIN)).x,
    "DataArray of a level": lambda: _multi().letter,
    "DataArray of a coordinate without index": lambda: _points().lat,
    "DataArray, int for a name": lambda: xr.DataArray(1, name=0),
    "DataArray, tuple for a name": lambda: xr.DataArray([1], dims="x", name=("a", 1)),
    "DataArray of a MultiIndex": lambda: _multi().v,
    "DataArray, coordinates in another order": lambda: xr.DataArray(
        [[1, 2]], {"z": 1, "y": [1], "a": ("x", [1, 2]), "x": [3, 4]}, ("y", "x"), name="v"
    ),
}


def _tree(name: str | None = None, **groups: xr.Dataset) -> xr.DataTree:
    return xr.DataTree.from_dict(
        {path.replace("_", "/"): ds for path, ds in groups.items()}, name=name
    )


TREES: Kinds = {
    "tree": lambda: _tree(a=dataset([1]), b_c=dataset(["x"])),
    "tree, named": lambda: _tree("root", a=dataset([1])),
    "tree, nothing": xr.DataTree,
    "tree, empty groups": lambda: _tree(a_b_c=xr.Dataset(), d=xr.Dataset()),
    "tree, inherited coordinates": lambda: xr.DataTree.from_dict(
        {
            "/": xr.Dataset({"r": ("x", [1, 2, 3])}, {"x": DAYS, "s": 1}),
            "/a": xr.Dataset({"v": ("x", [4, 5, 6])}, {"y": [7]}),
            "/a/b": xr.Dataset({"v": (("y", "x"), [[4, 5, 6]])}),
        }
    ),
    "tree, a coordinate that overrides another": lambda: xr.DataTree.from_dict(
        {"/": xr.Dataset(coords={"s": 1}), "/a": xr.Dataset(coords={"s": 2})}
    ),
    "tree, order of groups": lambda: _tree(z=xr.Dataset(), a=xr.Dataset(), z_y=xr.Dataset()),
    "tree, names of groups": lambda: xr.DataTree.from_dict(
        {"/a b/\u00e9": dataset([1]), "/ ": dataset([2]), "/..": dataset([3])}
    ),
    "tree, attributes": lambda: xr.DataTree.from_dict(
        {"/": xr.Dataset(attrs={"a": (1,)}), "/b": xr.Dataset(attrs={"c": None})}
    ),
    "tree, chunked": lambda: _tree(a=dataset(np.arange(4)).chunk(2)),
}


def chunked(*chunks: Any, dtype: Any = "f8") -> xr.Dataset:
    """A Dataset with a dask array of these chunks."""
    shape = [sum(sizes) for sizes in chunks]
    x = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    return dataset(dask.array.from_array(x, chunks))


CHUNKED: Kinds = {
    "dask, one chunk": lambda: chunked((4,)),
    "dask, equal chunks": lambda: chunked((2, 2), (3, 3, 3)),
    "dask, smaller last chunk": lambda: chunked((3, 3, 1)),
    "dask, irregular chunks": lambda: chunked((1, 4, 2), (2, 2)),
    "dask, chunks of size 1": lambda: chunked((1, 1, 1)),
    "dask, empty": lambda: chunked((0,), (2, 2)),
    "dask, chunks of size 0": lambda: chunked((2, 0, 2)),
    "dask, 0-d": lambda: dataset(dask.array.from_array(np.array(1.5))),
    "dask, big-endian": lambda: chunked((2, 2), dtype=">i4"),
    "dask, text": lambda: chunked((2, 2), dtype="U3"),
    "dask, objects": lambda: dataset(dask.array.from_array(objects("a", None, "b"), 2)),
    "dask, datetimes": lambda: chunked((2, 1), dtype="M8[s]"),
    "dask, structured": lambda: dataset(
        dask.array.from_array(np.zeros(4, [("a", "i2"), ("b", "f8")]), 2)
    ),
    "dask, StringDType": lambda: chunked((2, 1), dtype=np.dtypes.StringDType()),
    "dask, coordinate": lambda: xr.Dataset(coords={"c": ("x", dask.array.arange(4, chunks=2))}),
    "dask, masked": lambda: dataset(
        dask.array.ma.masked_greater(dask.array.arange(4, chunks=2), 1)
    ),
    "dask, dtype with metadata": lambda: dataset(
        dask.array.from_array(np.arange(2).view(np.dtype("i8", metadata={"enum": {"a": 1}})), 1)
    ),
    "dask, DataArray": lambda: xr.DataArray(dask.array.ones((4, 2), chunks=2), name="v"),
}


def _encoded(**encoding: Any) -> xr.Dataset:
    ds = xr.Dataset({"v": ("x", [1.0, 2.0])}, {"x": DAYS[:2]})
    ds.v.encoding = encoding
    return ds


def _encoded_dataset() -> xr.Dataset:
    ds = _encoded()
    ds.encoding = {"unlimited_dims": {"x"}, "source": "/data/a.nc"}
    ds.x.encoding = {"units": "days since 1950-01-01", "calendar": "standard"}
    return ds


ENCODINGS: Kinds = {
    "encoding, packed": lambda: _encoded(
        dtype=np.dtype("i2"),
        scale_factor=np.float32(0.01),
        add_offset=273.15,
        _FillValue=np.int16(-9),
    ),
    "encoding, compressed": lambda: _encoded(
        zlib=True, complevel=4, chunksizes=(1,), shuffle=False
    ),
    "encoding, NaN": lambda: _encoded(_FillValue=np.nan, missing_value=np.array([np.nan, 1e20])),
    "encoding, classes as dtype": lambda: _encoded(dtype=str, other=float),
    "encoding, coordinates": lambda: _encoded(coordinates="a b", grid_mapping=None),
    "encoding, preferred chunks": lambda: _encoded(preferred_chunks={"x": 1}),
    "encoding of a Dataset": _encoded_dataset,
}
