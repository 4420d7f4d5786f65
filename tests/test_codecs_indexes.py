"""Indexes come back as they were, from JSON and buffers; what cannot is refused."""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.tseries.offsets import CustomBusinessDay
from xarray.indexes import (
    CoordinateTransform,
    CoordinateTransformIndex,
    NDPointIndex,
    PandasIndex,
    PandasMultiIndex,
    RangeIndex,
    TreeAdapter,
)

from xshm.codecs import indexes
from xshm.codecs.buffers import Buffers
from xshm.errors import FormatError, UnsupportedError


class Memory:
    """The buffers of an encoder, as a file would hold them."""

    def __init__(self, buffers: Buffers) -> None:
        self.buffers = [np.array(x, order="C").reshape(-1).view(np.uint8) for x in buffers.sources]

    def buffer(self, number: int) -> np.ndarray:
        if type(number) is not int or not 0 <= number < len(self.buffers):
            raise FormatError("no such buffer")
        return self.buffers[number]


def encoded(
    index: xr.Index, variables: dict[Hashable, xr.Variable] | None = None
) -> tuple[Any, Memory]:
    buffers = Buffers()
    if variables is None:
        variables = dict(index.create_variables())
    spec = indexes.encode(index, variables, buffers, "the index of 'x'")
    return json.loads(json.dumps(spec, allow_nan=False)), Memory(buffers)


def carried(index: xr.Index) -> Any:
    """An index that holds its values, there and back."""
    spec, memory = encoded(index)
    assert indexes.holds_values(spec)
    return indexes.decode(spec, {}, memory)


def carried_dataset(ds: xr.Dataset) -> xr.Dataset:
    """A dataset whose indexes went there and back, with the coordinates they make."""
    variables, made = dict(ds.variables), {}
    for index, own in ds.xindexes.group_by_index():
        spec, memory = encoded(index, own)
        plain = {name: xr.Variable(v.dims, v.values, v.attrs) for name, v in own.items()}
        back = indexes.decode(spec, {} if indexes.holds_values(spec) else plain, memory)
        if indexes.holds_values(spec):
            own = indexes.create_variables(back, own)
        variables |= own
        made |= dict.fromkeys(own, back)
    made = {name: made[name] for name in ds.xindexes}
    coords = {name: variables[name] for name in ds.coords}
    return xr.Dataset(
        {name: variables[name] for name in ds.data_vars},
        xr.Coordinates(coords, made),
        ds.attrs,
    )


def assert_same_pandas(a: pd.Index, b: pd.Index) -> None:
    assert type(a) is type(b)
    pd.testing.assert_index_equal(a, b, exact=True, check_names=True)
    assert a.dtype == b.dtype
    assert a.name == b.name
    assert type(a.name) is type(b.name)
    assert getattr(a, "freq", None) == getattr(b, "freq", None)
    if isinstance(a, pd.MultiIndex):
        assert a.names == b.names
        assert a.sortorder == b.sortorder
        for left, right in zip(a.levels, b.levels, strict=True):
            assert_same_pandas(left, right)
        for left, right in zip(a.codes, b.codes, strict=True):
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)
    if isinstance(a.dtype, pd.CategoricalDtype):
        assert_same_pandas(a.categories, b.categories)
    if a.dtype == object:
        assert list(map(type, a)) == list(map(type, b))


def assert_same(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    assert a.equals(b)
    if isinstance(a, PandasIndex):
        assert a.dim == b.dim
        assert a.coord_dtype == b.coord_dtype
        assert_same_pandas(a.index, b.index)
    if isinstance(a, PandasMultiIndex):
        assert a.level_coords_dtype == b.level_coords_dtype
        assert list(a.level_coords_dtype) == list(b.level_coords_dtype)


def assert_same_dataset(a: xr.Dataset, b: xr.Dataset) -> None:
    xr.testing.assert_identical(a, b)
    assert set(a.xindexes) == set(b.xindexes)
    assert list(a.coords) == list(b.coords)
    for name, variable in a.variables.items():
        other = b.variables[name]
        assert type(variable) is type(other)
        assert variable.dtype == other.dtype
        assert variable.encoding == other.encoding
    for name in a.xindexes:
        assert_same(a.xindexes[name], b.xindexes[name])


# ---- Indexes of pandas.


def _longdouble() -> pd.Index:
    return pd.Index(np.array([1, np.nextafter(np.longdouble(1), 2)]))


PANDAS_INDEXES: dict[str, Callable[[], pd.Index]] = {
    **{
        np.dtype(code).name: lambda code=code: pd.Index(np.array([1, 0, 1]).astype(code))
        for code in "bBhHiIqQfdFD?"
    },
    "longdouble": _longdouble,
    "big-endian": lambda: pd.Index(np.array([1, 2.5], ">f4")),
    "NaN and zeros": lambda: pd.Index([np.nan, -0.0, np.inf]),
    "not unique": lambda: pd.Index([3, 1, 3, 2]),
    "strings": lambda: pd.Index(["b", "", "äöü \U0001f600", "b"]),
    "strings and missing": lambda: pd.Index(["a", None]),
    "strings as objects": lambda: pd.Index(["a", "b", None], dtype=object),
    "string": lambda: pd.Index(["a", pd.NA], dtype="string[python]"),
    "bytes": lambda: pd.Index([b"a", b"\0b"], dtype=object),
    "objects": lambda: pd.Index([1, "a", 2.5, None], dtype=object),
    "tuples": lambda: pd.Index([(1, "a"), (2, "b")], tupleize_cols=False),
    "timestamps as objects": lambda: pd.Index(
        [pd.Timestamp("2000"), pd.Timestamp("2001")], dtype=object
    ),
    **{
        f"datetime64[{unit}]": lambda unit=unit: pd.DatetimeIndex(
            np.array(["2000-01-01", "NaT", "1999-05-05"], f"M8[{unit}]")
        )
        for unit in ("s", "ms", "us", "ns")
    },
    **{
        f"freq {freq}": lambda freq=freq: pd.date_range("2000", periods=5, freq=freq)
        for freq in ("D", "6h", "MS", "QE-FEB", "W-WED", "B", "-1D", "2YS-MAR", "15min30s")
    },
    "freq of nothing": lambda: pd.date_range("2000", periods=0, freq="D"),
    "tz": lambda: pd.DatetimeIndex(["2000-03-26 01:30", "2000-07-01"], tz="Europe/Berlin"),
    "tz and freq": lambda: pd.date_range("2000-03-25", periods=3, freq="D", tz="Europe/Berlin"),
    "utc": lambda: pd.date_range("2000", periods=3, freq="h", tz="UTC", unit="s"),
    "offset": lambda: pd.DatetimeIndex(["2000-03-26T01:30+05:30"]),
    "timedelta": lambda: pd.TimedeltaIndex(np.array([1, -5, "NaT"], "m8[ms]")),
    "timedelta freq": lambda: pd.timedelta_range("1h", periods=4, freq="90min"),
    "period": lambda: pd.period_range("2000", periods=3, freq="Q-MAR"),
    "period and missing": lambda: pd.PeriodIndex(["2000-01", None], freq="M"),
    "interval": lambda: pd.interval_range(0, 3, closed="left"),
    "interval of dates": lambda: pd.interval_range(pd.Timestamp("2000"), periods=2, closed="both"),
    "interval and missing": lambda: pd.IntervalIndex.from_tuples([(0, 1.5), np.nan]),
    "categorical": lambda: pd.CategoricalIndex(["b", "a", None, "b"], ["b", "c", "a"]),
    "ordered": lambda: pd.CategoricalIndex([1, 3], [3, 2, 1], ordered=True),
    "categories of dates": lambda: pd.CategoricalIndex(pd.DatetimeIndex(["2000", "2001"])),
    "range": lambda: pd.RangeIndex(2, 11, 3),
    "range down": lambda: pd.RangeIndex(5, -1, -2),
    "range of nothing": lambda: pd.RangeIndex(7, 7),
    "Int8": lambda: pd.Index([1, None], dtype="Int8"),
    "Float32": lambda: pd.Index([1.5, None], dtype="Float32"),
    "boolean": lambda: pd.Index([True, None], dtype="boolean"),
    "sparse": lambda: pd.Index(pd.arrays.SparseArray([0, 0, 1])),
    "cftime": lambda: xr.date_range("2000-02-28", periods=3, calendar="360_day", use_cftime=True),
    "cftime of nothing": lambda: xr.CFTimeIndex([]),
    "no objects": lambda: pd.Index([], dtype=object),
    "no strings": lambda: pd.Index([], dtype="str"),
    "no numbers": lambda: pd.Index([], dtype="f4"),
    "no intervals": lambda: pd.IntervalIndex([]),
    "no categories": lambda: pd.CategoricalIndex([]),
}


@pytest.mark.parametrize("make", PANDAS_INDEXES.values(), ids=PANDAS_INDEXES)
def test_an_index_of_pandas_comes_back(make: Callable[[], pd.Index]) -> None:
    index = PandasIndex(make(), "x")
    assert_same(index, carried(index))


#: pandas itself looks nothing up in the others.
LEVELS = {k: v for k, v in PANDAS_INDEXES.items() if k not in ("longdouble", "big-endian")}


@pytest.mark.parametrize("make", LEVELS.values(), ids=LEVELS)
def test_and_as_the_level_of_a_multi_index(make: Callable[[], pd.Index]) -> None:
    level = make().unique()
    count = len(level)
    multi = pd.MultiIndex(
        [level, pd.Index(["a", "b"])],
        [[*range(count), -1], [*(0 for _ in range(count)), 1]],
        names=["one", "two"],
    )
    index = PandasMultiIndex(multi, "x")
    assert_same(index, carried(index))


@pytest.mark.parametrize(
    "name", [None, "x", "other", "", 7, 1.5, ("a", 1), pd.Timestamp("2000")], ids=repr
)
def test_any_name_comes_back(name: Any) -> None:
    index = PandasIndex(pd.Index([1, 2]), "dim")
    index.index.name = name
    back = carried(index)
    assert_same(index, back)
    (variable,) = indexes.create_variables(
        back, {"called otherwise": xr.Variable("dim", [1, 2], {"units": "m"})}
    ).items()
    assert variable[0] == "called otherwise"
    assert variable[1].attrs == {"units": "m"}


@pytest.mark.parametrize("dtype", ["f8", "i4", "?", "D", "M8[ns]", "M8[s]", "m8[us]"])
def test_values_of_a_fixed_size_are_not_copied(dtype: str) -> None:
    spec, memory = encoded(PandasIndex(pd.Index(np.array([1, 0, 1]).astype(dtype)), "x"))
    values = indexes.decode(spec, {}, memory).index.values
    assert np.shares_memory(values, memory.buffers[0])


def test_nor_those_of_times_with_a_zone_or_a_freq() -> None:
    times = pd.date_range("2000", periods=5, freq="D", tz="Europe/Berlin")
    spec, memory = encoded(PandasIndex(times, "x"))
    back = indexes.decode(spec, {}, memory).index
    assert any(np.shares_memory(back.asi8, buffer) for buffer in memory.buffers)


def test_a_range_needs_no_buffer() -> None:
    spec, memory = encoded(PandasIndex(pd.RangeIndex(10**12), "x"))
    assert memory.buffers == []
    assert len(indexes.decode(spec, {}, memory).index) == 10**12


def test_objects_that_are_dates_stay_objects() -> None:
    """xarray makes a CFTimeIndex of them where it has the choice."""
    dates = xr.date_range("2000", periods=2, calendar="noleap", use_cftime=True)
    index = PandasIndex(pd.Index(list(dates), dtype=object), "x", fastpath=True)
    assert type(index.index) is pd.Index
    assert_same(index, carried(index))


# ---- Several levels.


MULTI_INDEXES: dict[str, Callable[[], pd.MultiIndex]] = {
    "product": lambda: pd.MultiIndex.from_product([["a", "b"], [1, 2, 3]], names=["u", "v"]),
    "unused levels": lambda: pd.MultiIndex.from_product([["a", "b"], [1, 2, 3]], names=["u", "v"])[
        4:
    ],
    "missing": lambda: pd.MultiIndex.from_arrays(
        [[1, None, 2], ["a", "b", None]], names=["u", "v"]
    ),
    "not unique": lambda: pd.MultiIndex.from_arrays([[1, 1], ["a", "a"]], names=["u", "v"]),
    "many": lambda: pd.MultiIndex.from_product([range(200), [0.5, 1.5]], names=["u", "v"]),
    "nothing": lambda: pd.MultiIndex.from_arrays([[], []], names=["u", "v"]),
    "one level": lambda: pd.MultiIndex.from_arrays([[1, 2]], names=["u"]),
    "times": lambda: pd.MultiIndex.from_product(
        [pd.date_range("2000", periods=2, freq="MS", tz="UTC"), [1]], names=["u", "v"]
    ),
    "other names": lambda: pd.MultiIndex.from_arrays([[1], [2], [3]], names=[1, ("a", 2), None]),
    "sortorder": lambda: pd.MultiIndex(
        [["a", "b"], [1, 2]], [[0, 0, 1], [1, 0, 1]], sortorder=1, names=["u", "v"]
    ),
}


@pytest.mark.parametrize("make", MULTI_INDEXES.values(), ids=MULTI_INDEXES)
def test_a_multi_index_comes_back(make: Callable[[], pd.MultiIndex]) -> None:
    index = PandasMultiIndex(make(), "x")
    assert_same(index, carried(index))


def test_codes_of_a_multi_index_are_not_copied() -> None:
    index = PandasMultiIndex(pd.MultiIndex.from_product([range(300), [1, 2]]), "x")
    spec, memory = encoded(index)
    for codes in indexes.decode(spec, {}, memory).index.codes:
        assert any(np.shares_memory(codes, buffer) for buffer in memory.buffers)


# ---- In a dataset.


def _stacked() -> xr.Dataset:
    ds = xr.Dataset(
        {"v": (("x", "y"), np.arange(6.0).reshape(2, 3))},
        {"x": ["a", "bbb"], "y": ("y", np.array([10, 20, 30], "i2"))},
    ).stack(z=("x", "y"))
    ds["z"].attrs = {"of": "z"}
    ds["x"].attrs = {"of": "x"}
    ds["y"].encoding = {"zlib": True}
    return ds


def _not_along_its_name() -> xr.Dataset:
    ds = xr.Dataset({"v": ("x", [1.0, 2.0])}, {"station": ("x", ["p", "q"], {"long_name": "s"})})
    return ds.set_xindex("station")


def _categorical_level() -> xr.Dataset:
    categories = ("x", pd.Categorical(["a", "b", "a"]))
    return xr.Dataset(coords={"c": categories, "n": ("x", [1, 2, 3])}).set_index(x=["c", "n"])


def _times() -> xr.Dataset:
    time = pd.date_range("2000", periods=4, freq="MS")
    ds = xr.Dataset({"v": ("time", np.arange(4.0))}, {"time": time})
    ds["time"].attrs = {"standard_name": "time"}
    ds["time"].encoding = {"units": "days since 1900-01-01", "dtype": np.dtype("f4")}
    return ds


DATASETS: dict[str, tuple[Callable[[], xr.Dataset], dict[str, Any]]] = {
    "numbers": (lambda: xr.Dataset(coords={"x": [10, 20, 30]}), {"x": 20}),
    "float32": (
        lambda: xr.Dataset(coords={"x": np.array([0.1, 0.2], "f4")}),
        {"x": np.float32(0.2)},
    ),
    "U": (lambda: xr.Dataset(coords={"x": np.array(["a", "bbb"], "<U7")}), {"x": "bbb"}),
    "S": (lambda: xr.Dataset(coords={"x": np.array([b"a", b"bbb"], "S4")}), {"x": b"bbb"}),
    "objects": (lambda: xr.Dataset(coords={"x": np.array(["a", 1], object)}), {"x": 1}),
    "StringDType": (
        lambda: xr.Dataset(coords={"x": np.array(["a", "b"], np.dtypes.StringDType())}),
        {"x": "b"},
    ),
    "str of pandas": (lambda: xr.Dataset(coords={"x": pd.Index(["a", "b"])}), {"x": "b"}),
    "range": (lambda: xr.Dataset(coords={"x": pd.RangeIndex(4)}), {"x": slice(1, 2)}),
    "times": (_times, {"time": slice("2000-02", "2000-03")}),
    "cftime": (
        lambda: xr.Dataset(
            coords={"x": xr.date_range("2000", periods=40, calendar="noleap", use_cftime=True)}
        ),
        {"x": "2000-02"},
    ),
    "categorical": (
        lambda: xr.Dataset(coords={"x": pd.CategoricalIndex(["p", "q"])}),
        {"x": "q"},
    ),
    "interval": (
        lambda: xr.Dataset(coords={"x": pd.interval_range(0, 3)}),
        {"x": pd.Interval(1, 2)},
    ),
    "nullable": (lambda: xr.Dataset(coords={"x": pd.Index([1, 2], dtype="Int64")}), {"x": 2}),
    "two": (lambda: xr.Dataset(coords={"x": [1, 2], "y": ["a", "b"]}), {"x": 1, "y": "b"}),
    "not along its name": (_not_along_its_name, {"station": "q"}),
    "renamed": (lambda: _not_along_its_name().rename(x="y", station="s"), {"s": "p"}),
    "stacked": (_stacked, {"x": "bbb"}),
    "part of stacked": (lambda: _stacked().isel(z=[5, 0]), {"z": ("bbb", 30)}),
    "stacked and renamed": (lambda: _stacked().rename(x="first", z="both"), {"first": "a"}),
    "categorical level": (_categorical_level, {"c": "a"}),
}


@pytest.mark.parametrize(("make", "where"), DATASETS.values(), ids=DATASETS)
def test_a_dataset_comes_back_and_selects_the_same(
    make: Callable[[], xr.Dataset], where: dict[str, Any]
) -> None:
    ds = make()
    back = carried_dataset(ds)
    assert_same_dataset(ds, back)
    assert_same_dataset(ds.sel(where), back.sel(where))


def test_float16_comes_back_though_pandas_has_none() -> None:
    with pytest.warns(FutureWarning, match="float16"):
        ds = xr.Dataset(coords={"x": np.array([0.5, 1.5], "f2")})
    assert_same_dataset(ds, carried_dataset(ds))


def test_what_was_stacked_can_be_unstacked() -> None:
    xr.testing.assert_identical(_stacked().unstack("z"), carried_dataset(_stacked()).unstack("z"))


def test_attributes_are_not_shared_with_who_gave_them() -> None:
    ds = _times()
    carried_dataset(ds)["time"].attrs["standard_name"] = "changed"
    assert ds["time"].attrs["standard_name"] == "time"


# ---- Ranges and points of xarray.


RANGES: dict[str, Callable[[], RangeIndex]] = {
    "arange": lambda: RangeIndex.arange(0.0, 1.0, 0.1, dim="x"),
    "linspace": lambda: RangeIndex.linspace(-1.0, 1.0, 7, endpoint=True, dim="x"),
    "float32": lambda: RangeIndex.arange(0.0, 5.0, 1.0, dim="x", dtype=np.dtype("f4")),
    "integers": lambda: RangeIndex.arange(0, 5, 1, dim="x"),
    "NumPy scalars": lambda: RangeIndex.arange(np.float32(0), np.float32(1), 0.25, dim="x"),
    "other name": lambda: RangeIndex.arange(0.0, 1.0, 0.1, dim="x", coord_name="lon"),
    "nothing": lambda: RangeIndex.arange(0.0, 0.0, 0.1, dim="x"),
    "every third": lambda: RangeIndex.arange(0.0, 1.0, 0.1, dim="x").isel({"x": slice(1, None, 3)}),
    "backwards": lambda: RangeIndex.arange(0.0, 1.0, 0.1, dim="x").isel({"x": slice(None, 2, -2)}),
}


@pytest.mark.parametrize("make", RANGES.values(), ids=RANGES)
def test_a_range_of_xarray_comes_back(make: Callable[[], RangeIndex]) -> None:
    index = make()
    ds = xr.Dataset(coords=xr.Coordinates.from_xindex(index)).assign_attrs(title="t")
    back = carried_dataset(ds)
    assert_same_dataset(ds, back)
    one, two = index.transform, back.xindexes[index.transform.coord_name].transform
    for field in ("start", "stop", "step", "_step", "size", "dtype", "dims", "coord_names"):
        assert getattr(one, field) == getattr(two, field)
        assert type(getattr(one, field)) is type(getattr(two, field))


def test_a_range_of_xarray_needs_no_buffer() -> None:
    spec, memory = encoded(RangeIndex.arange(0.0, 1e12, 1.0, dim="x"))
    assert memory.buffers == []
    assert indexes.decode(spec, {}, memory).transform.size == 10**12


def _points(**options: Any) -> xr.Dataset:
    pytest.importorskip("scipy")
    random = np.random.default_rng(1)
    x, y = random.uniform(0, 10, (2, 6, 5))
    ds = xr.Dataset({"v": (("j", "i"), np.arange(30).reshape(6, 5))})
    ds = ds.assign_coords(x=(("j", "i"), x, {"units": "km"}), y=(("j", "i"), y))
    return ds.set_xindex(("x", "y"), NDPointIndex, **options)


@pytest.mark.parametrize(
    "change",
    [
        lambda ds: ds,
        lambda ds: ds.transpose("i", "j"),
        lambda ds: ds.rename(x="lon", y="lat").rename(j="row"),
        lambda ds: ds[["y", "x", "v"]],
    ],
    ids=["as made", "transposed", "renamed", "in another order"],
)
@pytest.mark.parametrize(
    "options", [{}, {"leafsize": 2}, {"boxsize": 10.0}, {"boxsize": [10.0, 0.0]}], ids=repr
)
def test_points_come_back(options: dict[str, Any], change: Callable[..., xr.Dataset]) -> None:
    ds = change(_points(**options))
    back = carried_dataset(ds)
    assert_same_dataset(ds, back)
    one, two = (next(iter(d.xindexes.values())) for d in (ds, back))
    assert one._coord_names == two._coord_names
    assert one._dims == two._dims
    assert one._shape == two._shape
    # A point near the edge of the box, whose neighbour may be at the other edge.
    for point in ((9.9, 0.1), (5.0, 5.0)):
        where = dict(zip(one._coord_names, point, strict=True))
        xr.testing.assert_identical(
            ds.sel(where, method="nearest"), back.sel(where, method="nearest")
        )
    assert one._tree_obj._kdtree.leafsize == two._tree_obj._kdtree.leafsize


def test_points_are_not_stored_twice() -> None:
    ds = _points()
    spec, memory = encoded(ds.xindexes["x"], dict(ds.variables))
    assert not indexes.holds_values(spec)
    assert memory.buffers == []


# ---- What is refused.


class _OwnPandasIndex(PandasIndex):
    pass


class _OwnDatetimeIndex(pd.DatetimeIndex):
    pass


class _OwnIndex(xr.Index):
    @classmethod
    def from_variables(cls, variables: Any, *, options: Any) -> _OwnIndex:
        return cls()


class _OwnTree(TreeAdapter):
    def __init__(self, points: Any = None, *, options: Any = None) -> None:
        pass

    def query(self, points: Any) -> Any:
        raise NotImplementedError


def _own_datetimes() -> pd.Index:
    index = pd.DatetimeIndex(["2000"])
    index.__class__ = _OwnDatetimeIndex
    return index


REFUSED: dict[str, tuple[Callable[[], xr.Index], str]] = {
    "subclass": (lambda: _OwnPandasIndex([1, 2], "x"), "_OwnPandasIndex.*drop_indexes"),
    "unknown": (_OwnIndex, "_OwnIndex.*drop_indexes"),
    "transform": (
        lambda: CoordinateTransformIndex(CoordinateTransform(["x"], {"x": 2})),
        "CoordinateTransformIndex.*drop_indexes",
    ),
    "tree": (
        lambda: NDPointIndex(_OwnTree(), coord_names=("x",), dims=("x",), shape=(2,)),
        "NDPointIndex.*_OwnTree.*drop_indexes",
    ),
    "subclass of pandas": (lambda: PandasIndex(_own_datetimes(), "x"), "_OwnDatetimeIndex"),
    "name": (lambda: PandasIndex(pd.Index([1], name=_OwnIndex), "x"), "'x'"),
    "values": (lambda: PandasIndex(pd.Index([_OwnIndex()]), "x"), "'x'"),
    "range of Timestamps": (
        lambda: RangeIndex.arange(
            pd.Timestamp("2000"), pd.Timestamp("2001"), pd.Timedelta("1D"), dim="x"
        ),
        "Timestamp.*drop_indexes",
    ),
    "freq with holidays": (
        lambda: PandasIndex(
            pd.date_range("2000", periods=3, freq=CustomBusinessDay(holidays=["2000-01-05"])), "x"
        ),
        "freq=None",
    ),
    "freq without a text": (
        lambda: PandasIndex(
            pd.date_range("2000", periods=3, freq=pd.DateOffset(months=1, days=1)), "x"
        ),
        "freq=None",
    ),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_come_back_is_refused(make: Callable[[], xr.Index], message: str) -> None:
    index = make()
    with pytest.raises(UnsupportedError, match=message) as caught:
        indexes.encode(index, {"x": xr.Variable("x", [1, 2])}, Buffers(), "the index of 'x'")
    assert str(caught.value).startswith("the index of 'x'")


def test_a_freq_that_was_refused_can_be_taken_off_as_the_error_says() -> None:
    times = pd.date_range("2000", periods=3, freq=pd.DateOffset(months=1))
    assert_same_pandas(
        carried(PandasIndex(pd.DatetimeIndex(times, freq=None), "x")).index,
        pd.DatetimeIndex(list(times), name="x"),
    )


# ---- What comes from a file is not trusted.


def _changed(index: xr.Index, *changes: tuple[list[Any], Any]) -> tuple[Any, Memory]:
    spec, memory = encoded(index)
    for path, value in changes:
        *parents, last = path
        target = spec
        for key in parents:
            target = target[key]
        target[last] = value
    return spec, memory


def _range() -> xr.Index:
    return PandasIndex(pd.RangeIndex(5), "x")


def _times_index() -> xr.Index:
    return PandasIndex(pd.date_range("2000", periods=3, freq="D"), "x")


def _multi() -> xr.Index:
    return PandasMultiIndex(pd.MultiIndex.from_product([["a", "b"], [1, 2]], names=["u", "v"]), "x")


def _other_values(dtype: Any) -> Any:
    """The spec of two values of a dtype that lie in the first buffer."""
    index = PandasIndex(pd.Index(np.array([1, 2], dtype)), "x")
    return encoded(index)[0]["index"]["values"]


HOSTILE: dict[str, Callable[[], tuple[Any, Memory]]] = {
    "start": lambda: _changed(RANGES["arange"](), (["start"], "a")),
    "no dimension": lambda: _changed(_range(), (["dim"], None)),
    "dimension that is a number": lambda: _changed(_multi(), (["dim"], 7)),
    "codes that repeat one": lambda: _changed(
        _multi(), (["index", "codes", 0, "strides"], [0]), (["index", "codes", 1, "strides"], [0])
    ),
    "type": lambda: _changed(_range(), (["type"], "Index")),
    "inner type": lambda: _changed(_range(), (["index", "type"], "object")),
    "type that is no text": lambda: _changed(_range(), (["index", "type"], ["Index"])),
    "dimension": lambda: _changed(_range(), (["dim"], ["a", "list"])),
    "step": lambda: _changed(_range(), (["index", "step"], 0)),
    "step that is no number": lambda: _changed(_range(), (["index", "step"], True)),
    "stop": lambda: _changed(_range(), (["index", "stop"], 2**63)),
    "length": lambda: _changed(
        _range(), (["index", "start"], -(2**63)), (["index", "stop"], 2**63 - 1)
    ),
    "freq": lambda: _changed(_times_index(), (["index", "freq"], "sometimes")),
    "huge freq": lambda: _changed(_times_index(), (["index", "freq"], "9" * 30 + "D")),
    "freq that is no text": lambda: _changed(_times_index(), (["index", "freq"], 1)),
    "freq of numbers": lambda: _changed(
        PandasIndex(pd.Index([1, 2]), "x"), (["index", "freq"], "D")
    ),
    "freq of no fixed length": lambda: _changed(
        PandasIndex(pd.TimedeltaIndex(np.array([1, 2], "m8[s]")), "x"), (["index", "freq"], "MS")
    ),
    "numbers as times": lambda: _changed(
        _times_index(), (["index", "values"], _other_values("i8"))
    ),
    "class of other values": lambda: _changed(_times_index(), (["index", "type"], "PeriodIndex")),
    "numbers as dates of cftime": lambda: _changed(
        _times_index(), (["index", "type"], "CFTimeIndex")
    ),
    "no levels": lambda: _changed(
        _multi(), (["index", "levels"], []), (["index", "codes"], []), (["level_coords_dtype"], [])
    ),
    "codes of one level": lambda: _changed(
        _multi(), (["index", "codes"], encoded(_multi())[0]["index"]["codes"][:1])
    ),
    "a dtype too few": lambda: _changed(_multi(), (["level_coords_dtype"], [None])),
    "sortorder": lambda: _changed(_multi(), (["index", "sortorder"], 3)),
    "levels in levels": lambda: _changed(
        _multi(), (["index", "levels", 0], encoded(_multi())[0]["index"])
    ),
    "level called as the dimension": lambda: _changed(
        _multi(), (["index", "levels", 0, "name"], "x")
    ),
    "level without a name": lambda: _changed(_multi(), (["index", "levels", 0, "name"], None)),
    "one level as several": lambda: _changed(_multi(), (["index"], encoded(_range())[0]["index"])),
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_a_malformed_spec_is_refused(make: Callable[[], tuple[Any, Memory]]) -> None:
    spec, memory = make()
    with pytest.raises(FormatError):
        indexes.decode(spec, {}, memory)


@pytest.mark.parametrize("code", [-2, 2, 127])
def test_codes_out_of_range_are_refused(code: int) -> None:
    spec, memory = encoded(_multi())
    codes = indexes.decode(spec, {}, memory).index.codes[1]
    (buffer,) = (b for b in memory.buffers if np.shares_memory(b, codes))
    buffer.view(codes.dtype)[3] = code
    with pytest.raises(FormatError, match="codes"):
        indexes.decode(spec, {}, memory)


def test_codes_of_unlike_lengths_are_refused() -> None:
    spec, memory = encoded(_multi())
    longer = PandasMultiIndex(
        pd.MultiIndex.from_product([["a", "b"], [1, 2, 3]], names=["u", "v"]), "x"
    )
    other, buffers = encoded(longer)
    spec["index"]["codes"][1] = other["index"]["codes"][1]
    assert len(buffers.buffers) == len(memory.buffers)
    memory.buffers[3:] = buffers.buffers[3:]
    with pytest.raises(FormatError):
        indexes.decode(spec, {}, memory)


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"x": xr.Variable("x", [1]), "y": xr.Variable("x", [1])},
        {"x": xr.Variable("y", [1])},
        {"x": xr.Variable((), 1)},
    ],
    ids=["none", "too many", "other dimension", "no dimension"],
)
def test_variables_that_are_not_those_of_the_index_are_refused(attributes: Any) -> None:
    with pytest.raises(FormatError, match="expected"):
        indexes.create_variables(_range(), attributes)


def test_nor_are_those_of_other_levels_taken() -> None:
    with pytest.raises(FormatError, match="expected"):
        indexes.create_variables(_multi(), {n: xr.Variable("x", range(4)) for n in "xuw"})


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"x": xr.Variable("i", [1.0, 2.0])},
        {"x": xr.Variable("i", [1.0, 2.0]), "y": xr.Variable("k", [1.0, 2.0])},
        {"x": xr.Variable(("j", "i"), [[1.0, 2.0]]), "y": xr.Variable(("j", "i"), [[1.0]])},
        {name: xr.Variable(("j", "i"), [["a"]]) for name in "xy"},
        {name: xr.Variable(("j", "i"), [[np.nan]]) for name in "xy"},
    ],
    ids=["none", "one", "other dimensions", "other shapes", "texts", "NaN"],
)
def test_points_that_make_no_tree_are_refused(variables: Any) -> None:
    ds = _points()
    spec, memory = encoded(ds.xindexes["x"], dict(ds.variables))
    with pytest.raises(FormatError):
        indexes.decode(spec, variables, memory)


@functools.cache
def _valid() -> list[tuple[Any, Memory, dict[Hashable, xr.Variable]]]:
    plain = {name: xr.Variable(("j", "i"), np.arange(6.0).reshape(2, 3)) for name in "xy"}
    cases: list[xr.Index] = [
        *(PandasIndex(make(), "x") for make in PANDAS_INDEXES.values()),
        *(PandasMultiIndex(make(), "x") for make in MULTI_INDEXES.values()),
        *(make() for make in RANGES.values()),
    ]
    if importlib.util.find_spec("scipy") is not None:
        cases.append(NDPointIndex.from_variables(plain, options={"boxsize": 10.0}))
    return [(*encoded(index, plain), plain) for index in cases]


def _paths(spec: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = spec.items() if isinstance(spec, dict) else enumerate(spec)
    found = [path] if path else []
    for key, value in inner:
        if isinstance(value, dict | list):
            found += _paths(value, (*path, key))
        else:
            found.append((*path, key))
    return found


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 40)
    | st.integers(-(2**65), 2**65)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["", "x", "D", "ns", "UTC", "<f4", "O", "Index", "MultiIndex", "right"])
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=6,
)


@given(st.data())
@settings(max_examples=400)
@pytest.mark.filterwarnings("ignore")  # pandas and xarray warn of odd values
def test_any_change_to_a_spec_gives_an_index_or_is_refused(data: st.DataObject) -> None:
    cases = _valid()
    spec, memory, plain = data.draw(st.sampled_from(cases))
    spec = copy.deepcopy(spec)
    for _ in range(data.draw(st.integers(1, 2))):
        paths = _paths(spec)
        if not paths:
            break
        *parents, last = data.draw(st.sampled_from(paths))
        target = spec
        for key in parents:
            target = target[key]
        if isinstance(target, dict) and data.draw(st.booleans()):
            del target[last]
        else:
            target[last] = data.draw(
                _JSON | st.sampled_from([c[0] for c in cases]).map(copy.deepcopy)
            )
    try:
        index = indexes.decode(spec, plain, memory)
        if indexes.holds_values(spec):
            indexes.create_variables(index, index.create_variables())
    except FormatError:
        return
    assert isinstance(index, xr.Index)


@given(_JSON)
def test_whatever_comes_is_no_index(spec: Any) -> None:
    with pytest.raises(FormatError):
        indexes.decode(spec, {}, Memory(Buffers()))
