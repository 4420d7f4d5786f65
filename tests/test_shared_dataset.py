"""``SharedDataset``: what it says of a container, opens, locks and removes, in any process."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from dask.base import tokenize

import xshm
from tests.test_publish import maps
from xshm.directory import configured

pytestmark = pytest.mark.usefixtures("dask_threads")

SPAWN = multiprocessing.get_context("spawn")


def test_it_tells_its_variables_without_opening_them() -> None:
    with xshm.publish(maps().chunk(time=4), "x") as shared:
        t2m = shared.variables["t2m"]
        assert t2m.dims == ("time", "lat", "lon")
        assert t2m.shape == (8, 4, 5)
        assert t2m.dtype == "float64"
        assert t2m.chunks == ((4, 4), (4,), (5,))
        assert not t2m.is_coordinate
        assert shared.variables["name"].is_coordinate
        assert list(shared.variables) == ["t2m", "height", "time", "lat", "name"]
        assert shared.kind == "dataset"
        assert shared.nbytes >= maps().nbytes


def test_variables_of_a_tree_go_by_their_paths() -> None:
    tree = xr.DataTree.from_dict({"/": maps(), "/a/b": xr.Dataset({"q": ("i", [1])})})
    with xshm.publish(tree, "x") as shared:
        assert "a/b/q" in shared.variables
        assert "t2m" in shared.variables


@pytest.mark.parametrize(
    ("obj", "words"),
    [
        (maps(), ["dataset", "t2m", "(time, lat, lon)", "title"]),
        (maps().t2m, ["dataarray", "units", "* time"]),
        (np.eye(2), ["ndarray", "[[1. 0.]\n [0. 1.]]"]),
        (xr.DataTree.from_dict({"/a": maps()}), ["datatree", "Group: /a"]),
    ],
    ids=["Dataset", "DataArray", "ndarray", "DataTree"],
)
def test_it_shows_what_it_stands_for(obj: Any, words: list[str]) -> None:
    with xshm.publish(obj, "x") as shared:
        assert repr(shared).startswith("<xshm.SharedDataset 'x'> ")
        for word in words:
            assert word in repr(shared)
        html = shared._repr_html_()
        assert "xshm.SharedDataset &#x27;x&#x27;" in html
    assert repr(shared) == "<xshm.SharedDataset 'x' (removed or replaced)>"
    assert "removed" in shared._repr_html_()


def test_what_is_written_to_an_object_that_is_open_to_read_stays_in_this_process() -> None:
    with xshm.publish(maps(), "x") as shared:
        mine, theirs = shared.open(), shared.open()
        mine.t2m.values[0] = 7.0  # type: ignore[union-attr]
        mine["height"] += 1  # type: ignore[index]
        xr.testing.assert_identical(theirs, maps())
        assert mine.t2m.values[0].min() == 7.0  # type: ignore[union-attr]


def test_what_is_written_to_an_object_that_is_open_to_write_is_seen_by_all() -> None:
    with xshm.publish(maps(), "x") as shared:
        reader = shared.open()
        writer = shared.open("r+")
        writer.t2m.values[0] = 7.0  # type: ignore[union-attr]
        writer["height"].loc[{"lat": -60}] = -1  # type: ignore[index]
        assert reader.t2m.values[0].min() == 7.0  # type: ignore[union-attr]
        with SPAWN.Pool(1) as pool:
            assert pool.apply(_sums, (shared,)) == (20 * 7.0 + 7 * 20, maps().height[1:].sum() - 5)
            pool.close()
            pool.join()


def _sums(shared: xshm.SharedDataset) -> tuple[float, float]:
    ds: Any = shared.open()
    return float(ds.t2m.values.sum()), float(ds.height.values.sum())


def test_strings_cannot_be_written_to_in_place() -> None:
    ds = xr.Dataset({"word": ("i", np.array(["a", "b"], dtype=object))})
    with xshm.publish(ds, "x") as shared:
        with pytest.raises(ValueError, match="read-only"):
            shared.open("r+").word.values[0] = "c"  # type: ignore[union-attr]
        shared.open().word.values[0] = "c"  # type: ignore[union-attr]


def test_a_mode_that_there_is_not() -> None:
    with xshm.publish(maps(), "x") as shared, pytest.raises(ValueError, match="expected mode 'r'"):
        shared.open("w")  # type: ignore[arg-type]


def test_it_travels_as_a_handle() -> None:
    with xshm.publish(maps(times=1000), "x") as shared:
        assert len(pickle.dumps(shared)) < 500
        again = pickle.loads(pickle.dumps(shared))
        assert (again.name, again.generation) == (shared.name, shared.generation)
        xr.testing.assert_identical(again.open(), shared.open())
    with xshm.publish(maps(2.0), "x"):  # of the same name, but not the same
        assert not again.exists
        with pytest.raises(FileNotFoundError, match="x"):
            again.open()


def test_tokens_tell_containers_of_one_name_apart() -> None:
    with xshm.publish(maps(), "x") as first:
        assert tokenize(first) == tokenize(pickle.loads(pickle.dumps(first)))
        before = tokenize(first)
    with xshm.publish(maps(), "x") as second:
        assert tokenize(second) != before


def test_opened_objects_travel_as_handles_until_they_are_written_to() -> None:
    ds = maps(times=1000)
    with xshm.publish(ds, "x") as shared:
        opened: Any = shared.open()
        assert len(pickle.dumps(opened)) < 10_000
        opened.t2m.values  # noqa: B018  # looked at
        opened.load()
        assert len(pickle.dumps(opened)) < 10_000
        xr.testing.assert_identical(pickle.loads(pickle.dumps(opened)), ds)
        opened.t2m.values[0] = 7.0
        assert len(pickle.dumps(opened)) > opened.t2m.nbytes
        assert pickle.loads(pickle.dumps(opened)).t2m.values[0].min() == 7.0
        with SPAWN.Pool(1) as pool:
            assert pool.apply(_mean, (shared.open(),)) == 1.0
            pool.close()
            pool.join()


def _mean(ds: xr.Dataset) -> float:
    return float(ds.t2m.values.mean())


def test_a_pickle_of_what_was_replaced_fails_and_gives_nothing_else() -> None:
    with xshm.publish(maps(times=1000), "x") as shared:
        pickled = pickle.dumps(shared.open())
    with (
        xshm.publish(maps(2.0), "x"),
        pytest.raises(xshm.ContainerNotFoundError, match="published again"),
    ):
        pickle.loads(pickled).load()


def test_an_array_that_has_lost_its_name_travels_with_its_bytes() -> None:
    with xshm.publish(np.arange(1000.0), "x") as shared:
        x = shared.open()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(x)), x)


def test_a_dataset_that_has_lost_its_name_does_not_travel() -> None:
    with xshm.publish(maps(times=1000), "x") as shared:
        opened: Any = shared.open()
    with pytest.raises(xshm.ContainerNotFoundError, match="need its name"):
        pickle.loads(pickle.dumps(opened)).load()
    assert opened.chunk(time=100).t2m.sum().compute().item() == 20_000  # but in this process


def test_many_small_parts_travel_without_mappings() -> None:
    with xshm.publish(np.arange(1000.0), "x") as shared:
        x: Any = shared.open()
        parts = pickle.loads(pickle.dumps([x[i % 1000 : i % 1000 + 1] for i in range(70_000)]))
        assert parts[-1] == 999


def test_what_is_changed_in_place_still_reaches_everybody() -> None:
    with xshm.publish(maps(times=1000), "x") as shared:
        writer: Any = shared.open("r+")
        writer["t2m"] += 1
        np.add(writer.t2m.data, 1, out=writer.t2m.data)
        pickle.loads(pickle.dumps(writer)).t2m[0] = -5
        assert shared.open().t2m.values[0].max() == -5  # type: ignore[union-attr]
        assert shared.open().t2m.values[1].max() == 3  # type: ignore[union-attr]


def test_deep_copies_are_apart() -> None:
    with xshm.publish(maps(), "x") as shared:
        for opened in (shared.open(), xr.open_dataset(shared), xr.open_dataset("x", engine="xshm")):
            copy: Any = opened.copy(deep=True)  # type: ignore[union-attr]
            copy.t2m[0] = 99.0
            xr.testing.assert_identical(opened, maps())
            before = opened.copy(deep=True)  # type: ignore[union-attr]
            shared.open("r+").t2m[1] = 7.0  # type: ignore[union-attr]
            xr.testing.assert_identical(before, maps())
            shared.open("r+").t2m[1] = 1.0  # type: ignore[union-attr]


def test_what_is_selected_one_by_one_does_not_hold_the_container() -> None:
    shared = xshm.publish(np.arange(10_000.0), "x")
    whole: Any = shared.open()
    shared.unlink()
    few = whole[[1, 2, 3]]
    assert "/containers/x" in Path("/proc/self/maps").read_text()
    del whole
    assert "/containers/x" not in Path("/proc/self/maps").read_text()
    assert few.tolist() == [1, 2, 3]


def test_labels_and_masks_cannot_be_written_to_in_place() -> None:
    masked = np.ma.MaskedArray(np.zeros(4), mask=[True, False, False, False])
    nullable = pd.array([1, None, 3, 4], dtype="Int64")
    ds = xr.Dataset({"n": ("lat", nullable)}, {"lat": [1.0, 2.0, 3.0, 4.0]})
    with xshm.publish(ds, "x") as shared, xshm.publish(masked, "m") as shared_masked:
        writer: Any = shared.open("r+")
        with pytest.raises(ValueError, match="read-only"):
            np.asarray(writer.indexes["lat"])[0] = 98
        with pytest.raises(ValueError, match="read-only"):
            writer.n.data[0] = 77
        with pytest.raises(ValueError, match="read-only"):
            shared_masked.open("r+").mask[0] = False  # type: ignore[union-attr]
        assert shared.open().lat.values[0] == 1  # type: ignore[union-attr]


def test_in_place_functions_of_tasks_change_nothing_but_their_chunk() -> None:
    def increase(block: np.ndarray) -> np.ndarray:
        block += 1
        return block

    with xshm.publish(xr.Dataset({"x": ("i", np.zeros(10_000))}), "x") as shared:
        for opened in (xr.open_dataset(shared, chunks={}), shared.open("r+").chunk()):  # type: ignore[union-attr]
            y = opened.x.data.map_blocks(increase, meta=np.empty(0))
            assert y.compute().max() == y.compute().max() == 1
        assert shared.open().x.values.max() == 0  # type: ignore[union-attr]


def test_it_tells_of_variables_that_were_added_since() -> None:
    with xshm.publish(maps(), "x") as shared:
        assert "u" not in shared.variables
        xshm.publish(maps()[["t2m"]].rename(t2m="u"), "x", mode="a")
        assert "u" in shared.variables
        assert shared == xshm.SharedDataset("x")
        assert len({shared, xshm.SharedDataset("x")}) == 1


def test_by_name() -> None:
    with xshm.publish(maps(), "b"), xshm.publish(np.zeros(3), "a") as a:
        assert [shared.name for shared in xshm.list()] == ["a", "b"]
        xr.testing.assert_identical(xshm.open("b"), maps())
        assert xshm.SharedDataset("a").generation == a.generation
        xshm.unlink("a")
        assert not a.exists
        with pytest.raises(FileNotFoundError, match="there is no container 'a'"):
            xshm.unlink("a")
        with pytest.raises(FileNotFoundError, match="there is no container 'a'"):
            xshm.open("a")
        with pytest.raises(FileNotFoundError):
            a.unlink()


def test_who_has_it_open_keeps_it() -> None:
    shared = xshm.publish(maps(), "x")
    opened = shared.open()
    shared.unlink()
    xr.testing.assert_identical(opened, maps())


def test_who_has_it_open_keeps_strings_too_looked_at_or_not() -> None:
    ds = xr.Dataset({"word": ("i", np.array(["a", "b"], dtype=object))})
    shared = xshm.publish(ds, "x")
    looked_at, opened = shared.open(), shared.open()
    looked_at.load()  # type: ignore[union-attr]
    shared.unlink()
    xr.testing.assert_identical(looked_at, ds)
    xr.testing.assert_identical(opened, ds)


# ---- the lock ----


def test_all_who_open_a_container_have_the_same_lock_and_its_successor_has_another() -> None:
    shared = xshm.publish(np.zeros(1), "x")
    with shared.lock:
        assert xshm.SharedDataset("x").lock.locked()
        with xshm.publish(np.zeros(1), "x", mode="w") as successor:
            assert not successor.lock.locked()


def test_the_lock_passes_to_a_pool_and_makes_sums_right() -> None:
    with xshm.publish(np.zeros(1, np.int64), "x") as shared:
        with SPAWN.Pool(3) as pool:
            pool.starmap(_count, [(shared.lock, shared)] * 3)
            pool.close()
            pool.join()
        assert shared.open()[0] == 600  # type: ignore[index]


def _count(lock: Any, shared: xshm.SharedDataset) -> None:
    counts: Any = shared.open("r+")
    for _ in range(200):
        with lock:
            before = int(counts[0])
            time.sleep(0)  # give others their turn to do it wrong
            counts[0] = before + 1


def test_a_child_forked_while_names_are_locked_does_not_lock_them() -> None:
    reading, writing = os.pipe()
    with configured().names_locked():
        child = os.fork()
        if child == 0:
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
    try:
        folder = os.open(configured().containers, os.O_RDONLY)
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(folder)
    finally:
        os.close(reading)
        os.close(writing)
        os.waitpid(child, 0)
