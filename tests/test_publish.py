"""What ``publish`` puts under a name, and when; in all modes."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import dask.config
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from dask.callbacks import Callback

import xshm
from tests.conftest import files_in
from tests.namespaces import (
    mount_tmpfs,
    needs_namespaces,
    run_in_namespace,
)
from xshm import janitor
from xshm.container import preamble
from xshm.directory import configured

pytestmark = pytest.mark.usefixtures("dask_threads")

SPAWN = multiprocessing.get_context("spawn")


def maps(value: float = 1.0, times: int = 8) -> xr.Dataset:
    return xr.Dataset(
        {
            "t2m": (("time", "lat", "lon"), np.full((times, 4, 5), value), {"units": "K"}),
            "height": (("lat", "lon"), np.arange(20.0).reshape(4, 5)),
        },
        {
            "time": pd.date_range("2000-01-01", periods=times),
            "lat": np.linspace(-60, 60, 4),
            "name": ("lon", np.array(["a", "bb", "ccc", "dddd", "é"])),
        },
        {"title": "maps"},
    )


# ---- all at once ----


@pytest.mark.parametrize(
    "obj",
    [
        maps(),
        maps().t2m,
        maps().t2m.rename(None),
        maps().lat,
        xr.DataTree.from_dict({"/": maps(), "/deep/er": maps(2.0)}, name="root"),
    ],
    ids=["Dataset", "DataArray", "without a name", "coordinate", "DataTree"],
)
def test_labelled_objects_come_back_as_they_were(obj: Any) -> None:
    with xshm.publish(obj, "x") as shared:
        xr.testing.assert_identical(shared.open(), obj)
        assert type(shared.open()) is type(obj)
        if not isinstance(obj, xr.Dataset):
            assert shared.open().name == obj.name


def test_an_array_comes_back_as_an_array() -> None:
    x = np.arange(12, dtype=">i2").reshape(3, 4).T
    with xshm.publish(x, "x") as shared:
        y = shared.open()
        assert isinstance(y, np.ndarray)
        np.testing.assert_array_equal(y, x, strict=True)
        assert y.flags.f_contiguous


def test_other_things_are_refused() -> None:
    with pytest.raises(xshm.UnsupportedError, match="found a list"):
        xshm.publish([1, 2], "x")  # type: ignore[arg-type]


def test_what_is_refused_is_named_with_its_group() -> None:
    tree = xr.DataTree.from_dict({"/": maps(), "/a/b": xr.Dataset({"q": ("i", [object()])})})
    with pytest.raises(xshm.UnsupportedError, match=r"^variable 'q' of group '/a/b'"):
        xshm.publish(tree, "x")


@pytest.mark.parametrize("name", ["", "a/b", ".hidden", "..", "x" * 201, "new\nline", "nul\0", 3])
def test_names_that_files_cannot_have_are_refused(name: Any) -> None:
    with pytest.raises(xshm.ContainerNameError, match="expected the name of a container"):
        xshm.publish(maps(), name)


def test_a_name_that_exists_is_refused_before_anything_is_computed() -> None:
    def never(block: np.ndarray) -> np.ndarray:
        raise AssertionError("computed")

    lazy = xr.Dataset({"x": ("i", da.zeros(4, chunks=2).map_blocks(never, dtype=float))})
    with xshm.publish(maps(), "x") as shared:
        with pytest.raises(FileExistsError, match=r"container 'x' exists.*mode='w'"):
            xshm.publish(lazy, "x")
        xr.testing.assert_identical(shared.open(), maps())


def test_replacing_leaves_the_old_one_to_those_who_have_it_open() -> None:
    old = xshm.publish(maps(1.0), "x")
    opened = old.open()
    with xshm.publish(maps(2.0), "x", mode="w") as new:
        assert old.generation != new.generation
        assert not old.exists
        xr.testing.assert_identical(opened, maps(1.0))
        xr.testing.assert_identical(xshm.open("x"), maps(2.0))
        with pytest.raises(xshm.ContainerNotFoundError, match="x"):
            old.open()


def test_what_is_published_is_a_copy() -> None:
    ds = maps()
    with xshm.publish(ds, "x") as shared:
        ds.t2m.values[:] = 7
        xr.testing.assert_identical(shared.open(), maps())


def test_a_header_that_no_reader_takes_is_refused_and_leaves_nothing(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preamble, "MAX_HEADER", 10_000)  # not the real one, of 256 MiB
    with pytest.raises(xshm.UnsupportedError, match="of at most 10000 bytes, found"):
        xshm.publish(maps().assign_attrs(title="x" * 10_000), "x")
    assert files_in(directory) == []


def test_a_broadcast_array_is_stored_once() -> None:
    x = np.broadcast_to(np.arange(1000.0), (1000, 1000))
    with xshm.publish(xr.Dataset({"x": (("i", "j"), x)}), "x") as shared:
        assert shared.nbytes < 100_000
        np.testing.assert_array_equal(shared.open().x.values, x)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"mode": "x"}, "expected mode"),
        ({"lifetime": "day"}, "expected lifetime"),
        ({"region": "auto"}, "expected mode 'r\\+' with a region"),
        ({"mode": "a", "lifetime": "process"}, "with lifetime='process'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        xshm.publish(maps(), "x", **options)


# ---- dask ----


def test_variables_of_dask_are_computed_chunk_by_chunk_and_their_chunks_remembered() -> None:
    tasks: list[Any] = []
    lazy = maps().chunk(time=3, lat=2)
    with (
        Callback(pretask=lambda key, dsk, state: tasks.append(key)),
        xshm.publish(lazy, "x") as shared,
    ):
        xr.testing.assert_identical(shared.open(), maps())
        assert shared.variables["t2m"].chunks == ((3, 3, 2), (2, 2), (5,))
        again = xr.open_dataset("x", engine="xshm", chunks={})
        assert again.t2m.chunks == lazy.t2m.chunks
        assert again.t2m.encoding["preferred_chunks"] == {"time": 3, "lat": 2, "lon": 5}
    assert len(tasks) >= 6  # seen by dask's callbacks, and so by its progress bars


def test_irregular_chunks_are_remembered() -> None:
    lazy = maps().chunk(time=(1, 5, 2))
    with xshm.publish(lazy, "x"):
        assert xr.open_dataset("x", engine="xshm", chunks={}).chunks["time"] == (1, 5, 2)


def test_strings_of_dask_are_published() -> None:
    words = np.array(["a", None, "ccc"], dtype=object)
    lazy = xr.Dataset({"word": ("i", da.from_array(words, chunks=2))})
    with xshm.publish(lazy, "x") as shared:
        np.testing.assert_array_equal(shared.open().word.values, words)


def test_a_failing_task_leaves_nothing(directory: Path) -> None:
    def fail(block: np.ndarray) -> np.ndarray:
        raise ZeroDivisionError("of the task")

    lazy = xr.Dataset({"x": ("i", da.zeros(4, chunks=2).map_blocks(fail, dtype=float))})
    with pytest.raises(ZeroDivisionError, match="of the task"):
        xshm.publish(lazy, "x")
    assert [f for f in files_in(directory) if "processes/" not in f] == []


def test_compute_false_publishes_later() -> None:
    delayed = xshm.publish(maps().chunk(time=2), "x", compute=False)
    assert xshm.list() == []
    shared = delayed.compute()
    with shared:
        xr.testing.assert_identical(shared.open(), maps())


@pytest.mark.parametrize("mode", ["w-", "w"])
@pytest.mark.parametrize("chunks", [None, {"time": 2}], ids=["numpy", "dask"])
@pytest.mark.parametrize("lifetime", ["boot", "process"])
def test_a_delayed_container_is_published_once(
    mode: Any, chunks: Any, lifetime: Any, directory: Path
) -> None:
    ds = maps() if chunks is None else maps().chunk(chunks)
    delayed = xshm.publish(ds, "x", mode=mode, compute=False, lifetime=lifetime)
    with delayed.compute() as shared:
        shared.open("r+").t2m.values[:] = 7
        with pytest.raises(FileNotFoundError, match=r"computed once.*call publish again"):
            delayed.compute()
        assert shared.open().t2m.values.min() == 7
    left = [f for f in files_in(directory) if "processes/" not in f and "lifetime" not in f]
    assert left == []


def test_compute_false_without_dask_publishes_later_too() -> None:
    delayed = xshm.publish(maps(), "x", compute=False)
    assert xshm.list() == []
    with delayed.compute() as shared:
        xr.testing.assert_identical(shared.open(), maps())


def test_compute_false_travels_to_a_process_that_computes_it() -> None:
    delayed = xshm.publish(maps().chunk(time=2), "x", compute=False)
    with SPAWN.Pool(1) as pool:
        shared = pool.apply(_compute, (pickle.dumps(delayed),))
        pool.close()
        pool.join()
    with shared:
        xr.testing.assert_identical(shared.open(), maps())


def _compute(delayed: bytes) -> Any:
    return pickle.loads(delayed).compute(scheduler="sync")


# ---- no room ----


@pytest.mark.parametrize("mode", ["w-", "a"])
def test_no_room_says_how_much_is_needed_and_leaves_nothing(directory: Path, mode: Any) -> None:
    huge = xr.Dataset({"huge": ("i", da.zeros(2**45, chunks=2**40))})
    with xshm.publish(maps(), "small") as shared:
        before, size = files_in(directory), _file_size(shared)
        needed = r"needs 2684354\d\d.\d MiB, and .* has \d+.\d of \d+.\d MiB free.*xshm rm"
        with pytest.raises(xshm.NoRoomError, match=needed) as raised:
            xshm.publish(huge, "small" if mode == "a" else "huge", mode=mode)
        assert raised.value.errno == errno.ENOSPC
        assert files_in(directory) == before
        assert _file_size(shared) == size


@needs_namespaces
def test_a_directory_that_is_nearly_full(directory: Path) -> None:
    run_in_namespace(publish_in_a_small_directory, directory)


def publish_in_a_small_directory(directory: str) -> None:
    """Two Datasets of 3 MiB in a tmpfs of 4 MiB."""
    mount_tmpfs(directory, "4m")
    ds = xr.Dataset({"x": ("i", np.ones(3 * 2**17))})
    with dask.config.set({"xshm.directory": directory}):
        with xshm.publish(ds, "first"):
            before = files_in(Path(directory))
            with pytest.raises(xshm.NoRoomError, match=r"needs 3.0 MiB, and .* of 4.0 MiB free"):
                xshm.publish(ds, "second")
            assert files_in(Path(directory)) == before
        with xshm.publish(ds, "second") as shared:
            xr.testing.assert_identical(shared.open(), ds)


# ---- part of it ----


def test_a_failing_addition_leaves_the_room_of_others_alone() -> None:
    n = 60_000
    with xshm.publish(xr.Dataset({"x": ("i", np.arange(float(n)))}), "x"):
        first = xr.Dataset({"a": ("i", np.full(n, 3.0))})
        pending = xshm.publish(first, "x", mode="a", compute=False)
        with pytest.raises(ZeroDivisionError):
            xshm.publish(_failing("b", n), "x", mode="a")
        pending.compute(scheduler="sync")
        assert (xshm.open("x").a.values == 3.0).all()  # type: ignore[union-attr]
        xshm.publish(first * 2, "x", mode="r+")
        assert (xshm.open("x").a.values == 6.0).all()  # type: ignore[union-attr]


def _failing(name: str, length: int) -> xr.Dataset:
    def fail(block: np.ndarray) -> np.ndarray:
        raise ZeroDivisionError("of the task")

    meta = np.empty(0)  # so that dask does not try it here
    return xr.Dataset({name: ("i", da.zeros(length).map_blocks(fail, meta=meta))})


@pytest.mark.parametrize("looked_at", [False, True])
def test_a_container_is_written_over_with_its_own_values(looked_at: bool) -> None:
    with xshm.publish(xr.Dataset({"x": ("i", np.arange(6.0))}), "x") as shared:
        backwards = shared.open().isel(i=slice(None, None, -1))  # type: ignore[union-attr]
        if looked_at:
            backwards.load()
        xshm.publish(backwards, "x", mode="r+")
        assert shared.open().x.values.tolist() == [5, 4, 3, 2, 1, 0]  # type: ignore[union-attr]


def test_values_that_are_stored_once_are_not_written_over_one_by_one() -> None:
    ds = xr.Dataset({"x": (("i", "j"), np.broadcast_to(np.arange(3.0), (4, 3)))})
    with xshm.publish(ds, "x") as shared:
        with pytest.raises(xshm.UnsupportedError, match=r"'x' cannot be written over.*repeated"):
            xshm.publish(ds.isel(i=[0]) + 1, "x", mode="r+", region={"i": slice(0, 1)})
        for mode in ("r", "r+"):
            opened: Any = shared.open(mode)
            with pytest.raises(ValueError, match="read-only"):
                opened.x.values[0, 0] = 5
        xr.testing.assert_identical(shared.open(), ds)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (np.zeros(2, "i1"), np.array([300, 1])),
        (np.zeros(2, "U1"), np.array(["abc", "d"])),
        (np.zeros(2, "M8[s]"), np.zeros(2, "M8[ns]")),
        (np.zeros(2, "u8"), np.array([-1, 1])),
    ],
    ids=["int8", "U1", "datetime64[s]", "uint64"],
)
def test_values_are_not_cut_to_fit(old: np.ndarray, new: np.ndarray) -> None:
    with xshm.publish(xr.Dataset({"x": ("i", old)}), "x") as shared:
        with pytest.raises(ValueError, match="see astype"):
            xshm.publish(xr.Dataset({"x": ("i", new)}), "x", mode="r+")
        xshm.publish(xr.Dataset({"x": ("i", new.astype(old.dtype))}), "x", mode="r+")
        np.testing.assert_array_equal(
            shared.open().x.values,  # type: ignore[union-attr]
            new.astype(old.dtype),
        )


def test_doubles_are_written_over_singles() -> None:
    with xshm.publish(xr.Dataset({"x": ("i", np.zeros(2, "f4"))}), "x") as shared:
        xshm.publish(xr.Dataset({"x": ("i", [0.5, 1.5])}), "x", mode="r+")
        assert shared.open().x.values.tolist() == [0.5, 1.5]  # type: ignore[union-attr]


def test_values_are_written_over_later() -> None:
    with xshm.publish(maps(), "x") as shared:
        delayed = xshm.publish(maps(2.0)[["t2m"]], "x", mode="r+", compute=False)
        xr.testing.assert_identical(shared.open(), maps())
        delayed.compute()
        xr.testing.assert_identical(shared.open(), maps(2.0))


def test_variables_are_added() -> None:
    u = maps(3.0)[["t2m"]].rename(t2m="u10")
    with xshm.publish(maps(), "x") as shared:
        before = shared.open()
        added = xshm.publish(u, "x", mode="a")
        xr.testing.assert_identical(added.open(), maps().assign(u10=u.u10))
        xr.testing.assert_identical(xshm.open("x"), maps().assign(u10=u.u10))
        xr.testing.assert_identical(before, maps())
        assert added.generation == shared.generation


def test_variables_are_added_lazily_and_again_and_again() -> None:
    with xshm.publish(maps(), "x"):
        for number in range(5):
            extra = maps(number)[["t2m"]].rename(t2m=f"v{number}").chunk(time=3)
            xshm.publish(extra, "x", mode="a")
        xshm.publish(maps(9.0)[["t2m"]].rename(t2m="later"), "x", mode="a", compute=False).compute()
        for number in range(5):
            np.testing.assert_array_equal(xshm.open("x")[f"v{number}"].values, float(number))
        assert xshm.open("x").later.values[0, 0, 0] == 9


def test_a_new_coordinate_and_its_index_are_added() -> None:
    extra = xr.Dataset({"depth": ("level", [1.0, 2.0])}, {"level": ["top", "bottom"]})
    with xshm.publish(maps(), "x"):
        xshm.publish(extra, "x", mode="a")
        assert xshm.open("x").depth.sel(level="bottom").item() == 2.0


def test_a_variable_that_exists_is_not_added() -> None:
    with xshm.publish(maps(), "x"):
        with pytest.raises(xshm.ContainerExistsError, match="'t2m' already"):
            xshm.publish(maps(), "x", mode="a")
        moved = maps()[["t2m"]].rename(t2m="u").assign_coords(lat=[1.0, 2.0, 3.0, 4.0])
        with pytest.raises(ValueError, match="coordinate 'lat' as it is in container 'x'"):
            xshm.publish(moved, "x", mode="a")


def test_a_failing_addition_gives_its_room_back() -> None:
    def fail(block: np.ndarray) -> np.ndarray:
        raise ZeroDivisionError("of the task")

    lazy = xr.Dataset({"u": ("time", da.zeros(8, chunks=2).map_blocks(fail, dtype=float))})
    with xshm.publish(maps(), "x") as shared:
        size = _file_size(shared)
        with pytest.raises(ZeroDivisionError):
            xshm.publish(lazy, "x", mode="a")
        assert _file_size(shared) == size
        xr.testing.assert_identical(xshm.open("x"), maps())


def _file_size(shared: xshm.SharedDataset) -> int:
    file = shared.container.handle.open_file()
    try:
        return os.fstat(file).st_size
    finally:
        os.close(file)


@pytest.mark.parametrize("chunks", [None, {"time": 1}], ids=["numpy", "dask"])
@pytest.mark.parametrize("region", ["auto", {"time": slice(2, 5)}, {"time": "auto"}])
def test_a_region_is_written_over_and_seen_by_who_has_it_open(region: Any, chunks: Any) -> None:
    part = maps(5.0)[["t2m"]].isel(time=slice(2, 5))
    part = part if chunks is None else part.chunk(chunks)
    with xshm.publish(maps(), "x") as shared:
        opened = shared.open()
        part = part if region in ("auto", {"time": "auto"}) else part.drop_vars(["lat", "name"])
        xshm.publish(part, "x", mode="r+", region=region)
        expected = np.ones((8, 4, 5))
        expected[2:5] = 5.0
        np.testing.assert_array_equal(xshm.open("x").t2m.values, expected)
        np.testing.assert_array_equal(opened.t2m.values, expected)


def test_dims_of_another_order_are_written_where_they_belong() -> None:
    with xshm.publish(maps(), "x"):
        new = maps(4.0)[["t2m"]].transpose("lon", "lat", "time").drop_vars(["time", "lat", "name"])
        new.t2m[0] = 6.0
        xshm.publish(new, "x", mode="r+")
        assert xshm.open("x").t2m.isel(lon=0).values.min() == 6.0
        assert xshm.open("x").t2m.isel(lon=1).values.max() == 4.0


@pytest.mark.parametrize(
    ("change", "region", "error", "expected"),
    [
        (lambda ds: ds.rename(t2m="u"), None, ValueError, "found 'u': add it with mode='a'"),
        (lambda ds: ds.isel(time=slice(3)), None, ValueError, "expected 8 along dimension 'time'"),
        (
            lambda ds: ds.isel(time=slice(3)),
            {"time": slice(2, 4)},
            ValueError,
            "expected 2 along dimension 'time', found 3",
        ),
        (lambda ds: ds.isel(time=[1, 3]), "auto", ValueError, "one after the other"),
        (lambda ds: ds.isel(time=[1]), "atuo", ValueError, "found 'atuo'"),
        (lambda ds: ds.isel(time=3), {"time": slice(3, 4)}, ValueError, "keep a dimension"),
        (lambda ds: ds, {"time": slice(4, 12)}, ValueError, "does not grow"),
        (
            lambda ds: ds.assign_coords(time=pd.date_range("1900", periods=8)),
            "auto",
            ValueError,
            "labels along dimension 'time' that are in the container",
        ),
        (lambda ds: ds, {"depth": slice(1)}, ValueError, "found 'depth'"),
        (lambda ds: ds, {"time": slice(0, 8, 2)}, ValueError, "with step 1"),
        (lambda ds: ds.astype(str), None, ValueError, "of float64, found.*<U32"),
        (
            lambda ds: ds.assign_coords(lat=[1.0, 2.0, 3.0, 4.0]),
            None,
            xshm.UnsupportedError,
            "'lat' cannot be written over",
        ),
    ],
)
def test_what_cannot_be_written_over_is_refused_and_nothing_is_changed(
    change: Callable[[xr.Dataset], xr.Dataset], region: Any, error: type, expected: str
) -> None:
    with xshm.publish(maps(), "x") as shared:
        with pytest.raises(error, match=expected):
            xshm.publish(change(maps(7.0)[["t2m"]]), "x", mode="r+", region=region)
        xr.testing.assert_identical(shared.open(), maps())


@pytest.mark.parametrize("mode", ["a", "r+"])
def test_there_has_to_be_one_to_change(mode: Any) -> None:
    with pytest.raises(FileNotFoundError, match="there is no container 'x'"):
        xshm.publish(maps(), "x", mode=mode)


def test_trees_and_arrays_are_published_whole() -> None:
    with xshm.publish(np.zeros(3), "x"):
        with pytest.raises(xshm.UnsupportedError, match="Dataset or DataArray"):
            xshm.publish(np.zeros(3), "x", mode="r+")
        with pytest.raises(xshm.UnsupportedError, match="to hold a dataset, found a ndarray"):
            xshm.publish(maps(), "x", mode="a")


def test_a_data_array_is_written_over_but_stays_one_variable() -> None:
    with xshm.publish(maps().t2m, "x") as shared:
        xshm.publish(maps(2.0).t2m, "x", mode="r+")
        xr.testing.assert_identical(shared.open(), maps(2.0).t2m)
        with pytest.raises(xshm.UnsupportedError, match="to hold a dataset, found a dataarray"):
            xshm.publish(maps()[["height"]], "x", mode="a")


# ---- how long it lives ----


def test_a_block_removes_it_also_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), xshm.publish(maps(), "x"):
        raise ZeroDivisionError
    assert xshm.list() == []


def test_a_block_does_not_remove_what_took_its_place() -> None:
    with xshm.publish(maps(1.0), "x"):
        new = xshm.publish(maps(2.0), "x", mode="w")
    assert new.exists
    new.unlink()


_PUBLISH = """
import os, signal, sys
import numpy as np
import xshm
xshm.publish(np.arange(1000), "x", lifetime=sys.argv[1])
print("published", flush=True)
if sys.argv[2] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("ending", ["returns", "killed"])
@pytest.mark.parametrize("lifetime", ["boot", "process"])
def test_a_container_lives_as_long_as_it_was_told(lifetime: str, ending: str) -> None:
    script = [sys.executable, "-c", _PUBLISH, lifetime, ending]
    run = subprocess.run(script, capture_output=True, text=True, timeout=60)
    assert run.stdout == "published\n", run.stderr
    assert run.returncode == (-signal.SIGKILL if ending == "killed" else 0)
    with xshm.allocator():  # whoever enters the directory removes what the dead left
        names = [shared.name for shared in xshm.list()]
    assert names == ([] if lifetime == "process" else ["x"])
    for name in names:
        xshm.unlink(name)


def test_the_name_of_a_dead_publisher_can_be_used_again() -> None:
    with xshm.publish(np.zeros(1), "other"):  # so that this process is there before
        script = [sys.executable, "-c", _PUBLISH, "process", "killed"]
        subprocess.run(script, capture_output=True, timeout=60)
        with xshm.publish(np.ones(3), "x") as shared:
            assert shared.open().sum() == 3  # type: ignore[union-attr]


def test_a_name_that_is_taken_is_not_bound_to_the_life_of_who_failed(directory: Path) -> None:
    with xshm.publish(maps(), "x"):
        with pytest.raises(xshm.ContainerExistsError):
            xshm.publish(maps(), "x", lifetime="process")
        assert not [f for f in files_in(directory) if "lifetime" in f]


def test_a_delayed_container_lives_with_the_process_that_asked() -> None:
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            "import numpy as np, xarray as xr, xshm\n"
            "ds = xr.Dataset({'a': ('i', np.arange(9))}).chunk(i=3)\n"
            "d = xshm.publish(ds, 'x', compute=False, lifetime='process')\n"
            "print(d.compute().exists)",
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.stdout == "True\n", run.stderr
    assert xshm.list() == []


# ---- several at once ----


def _publish_often(mode: str, value: float, start: Any, results: Any) -> None:
    start.wait()
    for _ in range(20):
        try:
            xshm.publish(maps(value, times=100), "x", mode=mode)  # type: ignore[arg-type]
        except FileExistsError:
            results.put(("refused", value))
        else:
            results.put(("published", value))


@pytest.mark.parametrize("mode", ["w-", "w"])
def test_of_those_who_publish_at_once_one_wins_or_the_last_one_stands_whole(mode: str) -> None:
    start, results = SPAWN.Event(), SPAWN.Queue()
    publishers = [
        SPAWN.Process(target=_publish_often, args=(mode, value, start, results))
        for value in (1.0, 2.0)
    ]
    for publisher in publishers:
        publisher.start()
    start.set()
    found = [results.get(timeout=60) for _ in range(40)]
    for publisher in publishers:
        publisher.join(60)
        publisher.close()
    results.close()
    winners = [value for what, value in found if what == "published"]
    assert len(winners) == (1 if mode == "w-" else 40)
    values = np.unique(xshm.open("x").t2m.values)  # type: ignore[union-attr]
    assert values.tolist() in ([winners] if mode == "w-" else [[1.0], [2.0]])
    xshm.unlink("x")


_PUBLISH_LARGE = """
import numpy as np, xshm, xarray as xr
ds = xr.Dataset({"x": ("i", np.full(2**24, 3.0)), "word": ("j", [str(i) for i in range(10000)])})
print("ready", flush=True)
while True:
    xshm.publish(ds, "x", mode="w")
"""


@pytest.mark.slow
def test_a_publisher_killed_at_any_moment_leaves_the_whole_or_nothing(directory: Path) -> None:
    for number in range(12):
        with subprocess.Popen(
            [sys.executable, "-c", _PUBLISH_LARGE], stdout=subprocess.PIPE
        ) as publisher:
            assert publisher.stdout is not None
            assert publisher.stdout.readline() == b"ready\n"
            try:
                publisher.wait(0.013 * number)
            except subprocess.TimeoutExpired:
                publisher.kill()
        if xshm.list():
            ds = xshm.open("x")
            assert (ds.x.values == 3.0).all()  # type: ignore[union-attr]
            assert ds.word.values[9999] == "9999"  # type: ignore[union-attr]
            xshm.unlink("x")
        janitor.clean(configured())
        assert files_in(directory) == []


def _add_often(name: str, start: Any, results: Any) -> None:
    start.wait()
    added = refused = 0
    while added < 5:
        try:
            variable = xr.Dataset({f"{name}{added}": ("i", np.full(10_000, float(added)))})
            xshm.publish(variable, "x", mode="a")
            added += 1
        except xshm.XshmError as error:
            if "somebody else changed" not in str(error):
                raise
            refused += 1
    results.put(refused)


def test_those_who_add_at_once_lose_nothing() -> None:
    with xshm.publish(xr.Dataset({"first": ("i", np.zeros(10_000))}), "x"):
        start, results = SPAWN.Event(), SPAWN.Queue()
        adders = [SPAWN.Process(target=_add_often, args=(n, start, results)) for n in "ab"]
        for adder in adders:
            adder.start()
        start.set()
        for _ in adders:
            results.get(timeout=60)
        for adder in adders:
            adder.join(60)
            adder.close()
        results.close()
        ds = xshm.open("x")
        for name in "ab":
            for number in range(5):
                values = ds[f"{name}{number}"].values  # type: ignore[index]
                np.testing.assert_array_equal(values, float(number))
