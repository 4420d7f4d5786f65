"""``engine="xshm"``: what ``xarray.open_dataset`` and its relatives offer."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import xshm
from tests.test_publish import maps

pytestmark = pytest.mark.usefixtures("dask_threads")

TREE = xr.DataTree.from_dict(
    {"/": maps(), "/model": maps(2.0), "/model/run": xr.Dataset({"q": ("lat", np.arange(4))})},
    name="root",
)


def test_xarray_lists_the_engine() -> None:
    assert "xshm" in xr.backends.list_engines()


def test_a_handle_needs_no_engine_and_a_name_does() -> None:
    with xshm.publish(maps(), "x") as shared:
        xr.testing.assert_identical(xr.open_dataset(shared), maps())
        xr.testing.assert_identical(xr.load_dataset(shared), maps())
        with pytest.raises((ValueError, FileNotFoundError)):
            xr.open_dataset("x")


def test_a_data_array_is_opened_as_one() -> None:
    for array in (maps().t2m, maps().t2m.rename(None), maps().lat):
        with xshm.publish(array, "x"):
            xr.testing.assert_identical(xr.open_dataarray("x", engine="xshm"), array)


def test_variables_are_dropped() -> None:
    with xshm.publish(maps(), "x"):
        opened = xr.open_dataset("x", engine="xshm", drop_variables="height")
        xr.testing.assert_identical(opened, maps().drop_vars("height"))
        opened = xr.open_dataset("x", engine="xshm", drop_variables=["t2m", "time"])
        xr.testing.assert_identical(opened, maps().drop_vars(["t2m", "time"]))


def test_all_labels_of_a_multi_index_are_dropped_together() -> None:
    ds = maps().assign_coords(lon=np.arange(5)).stack(cell=("lat", "lon"))
    with xshm.publish(ds, "x"):
        opened = xr.open_dataset("x", engine="xshm", drop_variables=["cell", "lat", "lon"])
        xr.testing.assert_identical(opened, ds.drop_vars(["cell", "lat", "lon"]))


def test_options_about_decoding_are_accepted_and_have_no_effect() -> None:
    ds = maps()
    ds["count"] = ("lat", np.arange(4), {"_FillValue": 0, "scale_factor": 2.0, "units": "days"})
    with xshm.publish(ds, "x"):
        for value in (True, False):
            opened = xr.open_dataset(
                "x",
                engine="xshm",
                mask_and_scale=value,
                decode_times=value,
                decode_timedelta=value,
                concat_characters=value,
                decode_coords=value,
            )
            xr.testing.assert_identical(opened, ds)
        xr.testing.assert_identical(xr.open_dataset("x", engine="xshm", decode_cf=False), ds)


def test_options_that_there_are_not_are_refused() -> None:
    with xshm.publish(maps(), "x"):
        for open_it in (xr.open_dataset, xr.open_datatree, xr.open_groups):
            with pytest.raises(TypeError, match="colour"):
                open_it("x", engine="xshm", colour="red")


def test_groups_of_a_tree() -> None:
    with xshm.publish(TREE, "x") as shared:
        xr.testing.assert_identical(xr.open_datatree("x", engine="xshm"), TREE)
        xr.testing.assert_identical(xr.open_datatree(shared), TREE)
        opened = xr.open_dataset("x", engine="xshm", group="model")
        xr.testing.assert_identical(opened, TREE["model"].to_dataset(inherit=False))
        groups = xr.open_groups("x", engine="xshm")
        assert list(groups) == ["/", "/model", "/model/run"]
        xr.testing.assert_identical(
            groups["/model/run"], TREE["/model/run"].to_dataset(inherit=False)
        )
        part = xr.open_datatree("x", engine="xshm", group="/model")
        assert [node.path for node in part.subtree] == ["/", "/run"]
        with pytest.raises(KeyError, match="'/nowhere'"):
            xr.open_dataset("x", engine="xshm", group="nowhere")


def test_a_tree_is_opened_in_chunks() -> None:
    with xshm.publish(TREE.chunk(time=4), "x"):
        opened = xr.open_datatree("x", engine="xshm", chunks={})
        assert opened["model/t2m"].chunks == ((4, 4), (4,), (5,))
        assert opened["model/t2m"].sum().compute() == 2 * 8 * 20


def test_several_names_are_opened_as_one_dataset() -> None:
    whole = maps().drop_vars("height").assign(t2m=maps().t2m.cumsum("time"))
    parts = [whole.isel(time=slice(0, 4)), whole.isel(time=slice(4, 8))]
    with (
        xr.set_options(use_new_combine_kwarg_defaults=True),
        xshm.publish(parts[0], "a") as a,
        xshm.publish(parts[1], "b") as b,
    ):
        for which in (["a", "b"], [a, b]):
            with xr.open_mfdataset(which, engine="xshm") as opened:
                assert opened.t2m.chunks is not None
                xr.testing.assert_identical(opened.compute(), whole)


def test_it_can_be_closed_and_used_as_a_context_manager() -> None:
    with xshm.publish(maps(), "x"):
        with xr.open_dataset("x", engine="xshm") as opened:
            values = opened.t2m.values
        np.testing.assert_array_equal(values, maps().t2m.values)  # arrays outlive it


def test_there_is_none_of_that_name() -> None:
    with pytest.raises(FileNotFoundError, match="there is no container 'nothing'"):
        xr.open_dataset("nothing", engine="xshm")


def test_an_array_is_no_dataset() -> None:
    with (
        xshm.publish(np.zeros(3), "x"),
        pytest.raises(xshm.UnsupportedError, match=r"open it with xshm\.open\('x'\)"),
    ):
        xr.open_dataset("x", engine="xshm")
