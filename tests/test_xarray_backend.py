"""xarray's own tests of its backends, run on ``engine="xshm"``.

What goes to a netCDF file there is published here; all else is as xarray wrote it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import xarray as xr
from xarray.tests.conftest import (  # noqa: F401  # fixtures of the tests below
    create_test_datatree,
    simple_datatree,
    time_unit,
    use_dask,
)
from xarray.tests.test_backends import DatasetIOBase
from xarray.tests.test_backends_datatree import NetCDFIOBase

import xshm

pytestmark = pytest.mark.usefixtures("dask_threads")

#: Tests that do not apply, and why: they are about what files of netCDF are and keep.
LEFT_OUT_OF_DATASETS = {
    "test_write_store": "writes variables encoded for netCDF to a store; there is no store",
    "test_roundtrip_string_encoded_characters": "netCDF notes the _Encoding of characters",
    "test_roundtrip_cftime_datetime_data": "netCDF notes units and calendar of encoded dates",
    "test_roundtrip_coordinates_with_space": "netCDF cannot keep the name of such a coordinate",
    "test_roundtrip_stringdtype_nulls": "netCDF makes missing strings empty; here they are kept",
}
LEFT_OUT_OF_TREES = {
    "test_to_netcdf": "expects a file that is kept open; test_an_opened_tree_equals has the rest",
    "test_write_subgroup": "netCDF forgets the tree's name; test_a_part_of_a_tree has the rest",
    "test_netcdf_encoding": "is about the compression of netCDF",
    "test_no_redundant_dimensions": "looks into the file with netCDF4",
    "test_default_write_engine": "is about which library writes netCDF",
    "test_roundtrip_via_memoryview": "is about netCDF files in memory",
    "test_to_memoryview_compute_false": "is about netCDF files in memory",
    "test_compute_false": "expects a file at once; test_a_tree_is_computed_later has the rest",
}

_numbers = itertools.count()


class TestByName(DatasetIOBase):
    """Opened as ``xarray.open_dataset("name", engine="xshm")``."""

    engine = "xshm"

    @contextlib.contextmanager
    def roundtrip(
        self,
        data: xr.Dataset,
        save_kwargs: Mapping[str, Any] | None = None,
        open_kwargs: Mapping[str, Any] | None = None,
        allow_cleanup_failure: bool = False,
    ) -> Iterator[xr.Dataset]:
        name = f"test-{next(_numbers)}"
        with self.save(data, name, **(save_kwargs or {})):  # noqa: SIM117
            with self.open(name, **(open_kwargs or {})) as opened:
                yield opened

    def save(
        self, dataset: xr.Dataset, path: str, encoding: Mapping[str, Any] | None = None
    ) -> xshm.SharedDataset:
        dataset = dataset.copy()
        for name, given in (encoding or {}).items():
            dataset[name].encoding = given
        return xshm.publish(dataset, path)

    def test_load_async(self) -> None:
        asyncio.run(super().test_load_async())  # xarray leaves this to a plugin of pytest

    def test_roundtrip_example_1_netcdf(self) -> None:
        super().test_roundtrip_example_1_netcdf()  # xarray skips it where there is no "netcdf"


class TestByHandle(TestByName):
    """Opened as ``xarray.open_dataset(shared)``."""

    @contextlib.contextmanager
    def open(self, path: str, **kwargs: Any) -> Iterator[xr.Dataset]:
        with xr.open_dataset(xshm.SharedDataset(path), **kwargs) as opened:
            yield opened


class TestAsTree(TestByName):
    """Opened as ``xarray.open_datatree("name", engine="xshm")``."""

    @contextlib.contextmanager
    def open(self, path: str, **kwargs: Any) -> Iterator[xr.Dataset]:
        with xr.open_datatree(path, engine=self.engine, **kwargs) as opened:
            yield opened.to_dataset()


class _Names:
    """Stands in for a folder in which files are named: names of containers have none."""

    def __truediv__(self, name: str) -> str:
        return name


class TestTrees(NetCDFIOBase):
    """DataTrees that are published in place of being written to netCDF."""

    engine = "xshm"

    @pytest.fixture
    def tmpdir(self) -> _Names:
        return _Names()

    @pytest.fixture(autouse=True)
    def _publish(self, monkeypatch: pytest.MonkeyPatch, directory: object) -> Iterator[None]:
        def to_netcdf(tree: xr.DataTree, name: str, *, engine: str) -> None:
            assert engine == self.engine
            xshm.publish(tree, name)

        monkeypatch.setattr(xr.DataTree, "to_netcdf", to_netcdf)
        yield
        for shared in xshm.list():
            shared.unlink()

    def test_an_opened_tree_equals(self, tmpdir: _Names, simple_datatree: xr.DataTree) -> None:  # noqa: F811
        simple_datatree.to_netcdf(tmpdir / "test.nc", engine=self.engine)
        with xr.open_datatree("test.nc", engine=self.engine) as opened:
            xr.testing.assert_identical(opened, simple_datatree)

    def test_a_tree_is_computed_later(self, simple_datatree: xr.DataTree) -> None:  # noqa: F811
        later = xshm.publish(simple_datatree.chunk(), "a", compute=False)
        assert xshm.list() == []
        xr.testing.assert_identical(later.compute().open(), simple_datatree)

    def test_a_part_of_a_tree_keeps_what_it_inherits(self) -> None:
        tree = xr.DataTree.from_dict({"/": xr.Dataset(coords={"x": [1, 2]}), "/a/b": xr.Dataset()})
        xshm.publish(tree["a"], "a")
        opened = xshm.open("a")
        assert opened.name == "a"
        xr.testing.assert_equal(opened, tree["a"])
        assert "x" not in opened["b"].to_dataset(inherit=False).coords


LEFT_OUT = [(TestByName, LEFT_OUT_OF_DATASETS), (TestTrees, LEFT_OUT_OF_TREES)]

for tests, left_out in LEFT_OUT:
    for name in left_out:
        setattr(tests, name, None)


@pytest.mark.parametrize(("tests", "left_out"), LEFT_OUT)
def test_what_is_left_out_is_a_test_of_xarray(tests: type, left_out: Mapping[str, str]) -> None:
    (base,) = tests.__bases__
    assert [name for name in left_out if not callable(getattr(base, name, None))] == []
