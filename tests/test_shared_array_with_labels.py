"""A Dataset over SharedArrays: what one process writes to its variables, all see."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from tests.test_process import Peer
from xshm import SharedArray

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@pytest.fixture(params=["a name", None], ids=["named", "unnamed"])
def a(request: pytest.FixtureRequest) -> Iterator[SharedArray[np.float64]]:
    with SharedArray.zeros((3, 4), name=request.param) as shared:
        yield shared


@pytest.fixture
def ds(a: Any) -> xr.Dataset:
    return xr.Dataset({"t2m": (("time", "x"), a)}, {"time": [2000, 2001, 2002]})


def write_by_label(ds: xr.Dataset) -> None:
    ds["t2m"].loc[{"time": 2001}] = 7


def write_in_place(ds: xr.Dataset) -> None:
    ds["t2m"] += 7


def write_to_a_part(ds: xr.Dataset) -> None:
    ds["t2m"].isel(time=1)[:] = 7


@pytest.mark.parametrize("write", [write_by_label, write_in_place, write_to_a_part])
def test_what_another_process_writes_is_seen(
    a: Any, ds: xr.Dataset, write: Callable[[xr.Dataset], None]
) -> None:
    with Peer() as peer:
        peer(write, ds)
    assert (a[1] == 7).all()
    assert (ds.t2m.sel(time=2001) == 7).all()


def test_a_part_of_it_is_the_same_memory_elsewhere(a: Any, ds: xr.Dataset) -> None:
    part = pickle.loads(pickle.dumps(ds.isel(x=slice(None, None, 2))))
    part["t2m"][1] = 7
    assert a[1].tolist() == [7, 0, 7, 0]


def test_what_is_computed_of_it_is_not_shared(a: Any, ds: xr.Dataset) -> None:
    for other in (ds + 1, ds.copy(deep=True), ds.fillna(1)):
        other["t2m"][:] = 7
    assert (a == 0).all()


def test_it_is_written_to_a_file(a: Any, ds: xr.Dataset, tmp_path: Path) -> None:
    pytest.importorskip("netCDF4")
    a[:] = 7
    ds.to_netcdf(tmp_path / "file.nc", engine="netcdf4")
    with xr.open_dataset(tmp_path / "file.nc", engine="netcdf4") as opened:
        assert opened.load().identical(ds)
