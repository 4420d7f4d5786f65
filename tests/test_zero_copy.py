"""Nothing is copied: arrays that are opened lie in the container, and stay there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import xshm
from tests.test_publish import maps
from xshm.container.mapped import MappedArray, lies_in_container

pytestmark = pytest.mark.usefixtures("dask_threads")

DTYPES = [
    *"?bBhHiIqQefdgFDG",
    ">f4",
    ">i8",
    "S5",
    "U3",
    "V7",
    "M8[ns]",
    "M8[s]",
    "m8[ms]",
    [("a", "f4"), ("b", "i8", 2)],
]


def shares_memory(*arrays: Any) -> bool:
    first, *others = (np.asarray(array) for array in arrays)
    return all(np.shares_memory(first, other) for other in others)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_of_a_fixed_size(dtype: Any) -> None:
    x = np.zeros((30, 40), dtype)
    with xshm.publish(xr.Dataset({"x": (("i", "j"), x)}), "x") as shared:
        opened: Any = shared.open()
        values = opened.x.values
        assert lies_in_container(values)
        assert values.flags.writeable
        assert shares_memory(values, opened.x.values, opened.x.T.values, opened.x[3:5, ::2].values)


def _loaded(ds: xr.Dataset) -> np.ndarray:
    return ds.load().t2m.values


@pytest.mark.parametrize(
    "look",
    [
        lambda ds: ds.t2m.values,
        lambda ds: ds.t2m.data,
        lambda ds: ds.t2m.to_numpy(),
        _loaded,
        lambda ds: ds.t2m.load().values,
        lambda ds: ds.t2m.T.values,
        lambda ds: ds.t2m.transpose("lon", "time", "lat").values,
        lambda ds: ds.t2m[2].values,
        lambda ds: ds.t2m[1:7:2, ::-1].values,
        lambda ds: ds.isel(time=slice(2, 5)).t2m.values,
        lambda ds: ds.isel(time=3).transpose("lon", ...).t2m.values,
        lambda ds: ds.sel(time=slice("2000-01-02", "2000-01-04")).t2m.values,
        lambda ds: ds.rename(t2m="t").t.values,
        lambda ds: ds[["t2m"]].assign_attrs(a=1).t2m.values,
        lambda ds: ds.copy().t2m.values,
        lambda ds: ds.t2m.expand_dims("member").values,
        lambda ds: ds.t2m.squeeze().values,
    ],
)
def test_views_of_what_is_opened(look: Any) -> None:
    with xshm.publish(maps(), "x") as shared:
        opened: Any = shared.open()
        assert lies_in_container(look(opened))
        assert shares_memory(look(opened), opened.t2m.values)


def test_what_is_computed_is_an_ordinary_array() -> None:
    with xshm.publish(maps(), "x") as shared:
        values = shared.open().t2m.values  # type: ignore[union-attr]
        assert type(values + 1) is np.ndarray
        assert type(values.mean()) is np.float64
        assert not lies_in_container(values + 1)
        assert not lies_in_container(values.copy())
        assert not isinstance(np.concatenate([values, values]), MappedArray)


@pytest.mark.parametrize(
    "labels",
    [
        np.arange(1000.0),
        np.arange(1000, dtype="i4"),
        pd.date_range("2000", periods=1000, freq="h"),
        pd.timedelta_range("1h", periods=1000),
    ],
    ids=["float64", "int32", "datetime64", "timedelta64"],
)
def test_labels_of_an_index(labels: Any) -> None:
    ds = xr.Dataset({"x": ("i", np.zeros(1000))}, {"i": labels})
    with xshm.publish(ds, "x") as shared:
        opened: Any = shared.open()
        assert opened.xshm.nbytes_shared == opened.nbytes
        assert shares_memory(opened.indexes["i"].values, opened.i.values)
        if not isinstance(labels, pd.DatetimeIndex | pd.TimedeltaIndex):
            assert lies_in_container(opened.indexes["i"].values)


def test_coordinates_without_an_index() -> None:
    ds = xr.Dataset(coords={"area": ("i", np.ones(1000)), "i": np.arange(1000)})
    with xshm.publish(ds, "x") as shared:
        assert lies_in_container(shared.open().area.values)  # type: ignore[union-attr]


def test_datetimes_are_not_copied_by_xarray() -> None:
    times = np.arange(1000).astype("M8[ns]").reshape(10, 100)
    with xshm.publish(xr.Dataset({"t": (("i", "j"), times)}), "x") as shared:
        opened: Any = shared.open()
        assert lies_in_container(opened.t.values)
        assert lies_in_container(opened.t[2:4].values)


def test_an_array_that_is_published_from_a_container_is_opened_from_there() -> None:
    with xshm.publish(np.arange(10), "x") as shared:
        x: Any = shared.open()
        assert lies_in_container(x)
        assert shares_memory(x, x[::2], x.reshape(2, 5).T)


def test_the_accessor_tells_what_lies_in_shared_memory() -> None:
    ds = maps()
    assert not ds.xshm.is_shared
    assert ds.xshm.nbytes_shared == 0
    with ds.xshm.publish("x") as shared:
        opened: Any = shared.open()
        assert opened.xshm.is_shared
        assert opened.xshm.nbytes_shared == opened.nbytes
        assert opened.t2m.xshm.is_shared
        assert opened.t2m.xshm.nbytes_shared >= opened.t2m.nbytes
        mixed = opened.assign(new=opened.t2m + 1)
        assert not mixed.xshm.is_shared
        assert 0 < mixed.xshm.nbytes_shared < mixed.nbytes
        assert not xr.open_dataset(shared, chunks={}).xshm.is_shared  # nothing is open yet
    tree = xr.DataTree.from_dict({"/": maps(), "/a": maps()})
    with tree.xshm.publish("x") as shared:
        assert shared.open().xshm.is_shared  # type: ignore[union-attr]
    with maps().t2m.xshm.publish("x", lifetime="process") as shared:
        xr.testing.assert_identical(shared.open(), maps().t2m)


def test_the_accessor_tells_of_segments_too() -> None:
    with xshm.allocator():
        ds = xr.Dataset({"x": ("i", np.ones(2**20))})
    assert ds.xshm.is_shared
    assert ds.xshm.nbytes_shared == ds.x.nbytes


def test_an_empty_object_is_not_shared() -> None:
    assert not xr.Dataset().xshm.is_shared
