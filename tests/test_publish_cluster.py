"""Containers and clusters: written by workers, and read by them window by window."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import psutil
import pytest
import xarray as xr
from dask.base import tokenize
from dask.distributed import Client

import xshm
from tests import clusters
from tests.conftest import files_in

CHUNK = 2**20  # float64 items: 8 MiB


directory = clusters.module_directory
client = clusters.client


@pytest.fixture(scope="module", params=clusters.PROTOCOLS)
def module_client(request: pytest.FixtureRequest, directory: Path) -> Iterator[Client]:
    """A cluster that all tests of the module share, with either protocol."""
    with clusters.cluster(protocol=request.param) as client:
        yield client


def numbered(chunks: int) -> xr.Dataset:
    """Each chunk holds the id of the process that made it, then its own number."""

    def fill(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        block = np.full(block.shape, float(block_info[None]["chunk-location"][0]))
        block[0] = os.getpid()
        return block

    x = da.zeros(chunks * CHUNK, chunks=CHUNK).map_blocks(fill, dtype=float, meta=np.empty(0))
    return xr.Dataset({"x": ("i", x)})


def test_workers_write_their_chunks_into_the_container(client: Client) -> None:
    with xshm.publish(numbered(6), "x") as shared:
        x = shared.open().x.values.reshape(6, CHUNK)  # type: ignore[union-attr]
        np.testing.assert_array_equal(x[:, 1:], np.repeat(np.arange(6.0), CHUNK - 1).reshape(6, -1))
        assert {*x[:, 0]} == {*client.run(os.getpid).values()}


def test_persisted_chunks_are_not_gathered_in_the_client(client: Client) -> None:
    ds = numbered(6).persist()
    before = psutil.Process().memory_info().rss
    with xshm.publish(ds, "x") as shared:
        assert psutil.Process().memory_info().rss - before < 3 * CHUNK * 8
        assert shared.open().x.values[-1] == 5.0  # type: ignore[union-attr]


def test_a_delayed_container_is_published_by_a_worker(client: Client) -> None:
    delayed = xshm.publish(numbered(2), "x", compute=False)
    with client.compute(delayed).result() as shared:
        assert shared.open().x.values[-1] == 1.0


def test_tasks_carry_handles_and_workers_map_their_own_window(client: Client) -> None:
    lazy = da.arange(16 * CHUNK, chunks=CHUNK, dtype=float)
    with xshm.publish(xr.Dataset({"x": ("i", lazy)}), "x"):
        opened = xr.open_dataset("x", engine="xshm", chunks={})
        assert opened.x.data.npartitions == 16
        assert len(pickle.dumps(opened.__dask_graph__())) < 20_000
        assert opened.x.sum(skipna=False).compute().item() == sum(range(16 * CHUNK))

        def mapped(block: np.ndarray) -> np.ndarray:
            block.sum()
            maps = Path("/proc/self/smaps").read_text().split("\n")
            sizes = [int(n.split()[1]) for i, n in enumerate(maps) if _is_of_container(maps, i)]
            return np.full(1, max(sizes) * 1024)

        windows = opened.x.data.map_blocks(mapped, dtype=int, chunks=(1,), meta=np.empty(0, int))
        assert windows.compute().max() <= CHUNK * 8 + 4096


def _is_of_container(lines: list[str], number: int) -> bool:
    return lines[number].startswith("Size:") and "/containers/" in lines[number - 1]


def test_workers_get_the_bytes_themselves(client: Client) -> None:
    with xshm.publish(xr.Dataset({"x": ("i", np.arange(2.0 * CHUNK))}), "x") as shared:
        opened = xr.open_dataset(shared, chunks={"i": CHUNK})
        blocks = opened.x.data.map_blocks(
            lambda block: np.array([xshm.container.mapped.lies_in_container(block)]),
            dtype=bool,
            chunks=(1,),
            meta=np.empty(0, bool),
        )
        assert blocks.compute().all()


def test_what_a_task_writes_to_its_chunk_stays_with_it(client: Client) -> None:
    def clear(block: np.ndarray) -> np.ndarray:
        block[:] = 0
        return block

    with xshm.publish(xr.Dataset({"x": ("i", np.ones(2 * CHUNK))}), "x") as shared:
        x = xr.open_dataset(shared, chunks={"i": CHUNK}).x
        assert x.data.map_blocks(clear, dtype=float).sum().compute() == 0
        assert x.sum().compute().item() == 2 * CHUNK
        assert shared.open().x.values.sum() == 2 * CHUNK  # type: ignore[union-attr]


@pytest.mark.parametrize("by_name", [True, False], ids=["name", "handle"])
def test_results_of_a_name_that_was_published_again_are_new(client: Client, by_name: bool) -> None:
    def mean(shared: xshm.SharedDataset) -> tuple[str, float]:
        if by_name:
            opened = xr.open_dataset("x", engine="xshm", chunks={"i": 1000})
        else:
            opened = xr.open_dataset(shared, chunks={"i": 1000})
        kept.append(opened.x.mean().persist())  # the cluster holds the result under its key
        return tokenize(opened), kept[-1].compute().item()

    kept: list[Any] = []
    with xshm.publish(xr.Dataset({"x": ("i", np.full(5000, 1.0))}), "x") as first:
        token, value = mean(first)
        assert value == 1.0
    with xshm.publish(xr.Dataset({"x": ("i", np.full(5000, 2.0))}), "x") as second:
        other, value = mean(second)
        assert value == 2.0
        assert token != other


@pytest.mark.parametrize("by_name", [True, False], ids=["name", "handle"])
def test_results_of_values_that_were_written_over_are_new(client: Client, by_name: bool) -> None:
    kept = []
    with xshm.publish(xr.Dataset({"x": ("i", np.zeros(5000))}), "x") as shared:
        for value in (0.0, 1.0):
            engine = {"engine": "xshm"} if by_name else {}
            opened = xr.open_dataset("x" if by_name else shared, chunks={"i": 1000}, **engine)
            kept.append(opened.x.mean().persist())  # the cluster holds it under its key
            assert kept[-1].compute().item() == value
            xshm.publish(xr.Dataset({"x": ("i", np.ones(5000))}), "x", mode="r+")


def test_a_graph_made_before_publishing_again_fails_and_reads_no_other_data(
    client: Client,
) -> None:
    with xshm.publish(xr.Dataset({"x": ("i", np.full(5000, 1.0))}), "x") as shared:
        graph = xr.open_dataset(shared, chunks={"i": 1000}).x.mean()
    with (
        xshm.publish(xr.Dataset({"x": ("i", np.full(5000, 2.0))}), "x"),
        pytest.raises(xshm.ContainerNotFoundError, match="published again"),
    ):
        graph.compute()


def test_workers_that_cannot_write_here_are_told_of_before_anything_is_computed(
    tmp_path: Path, directory: Path
) -> None:
    computed = tmp_path / "computed"

    def never(block: np.ndarray) -> np.ndarray:
        computed.touch()
        return block

    meta = np.empty(0)  # so that dask does not try it here
    lazy = xr.Dataset({"x": ("i", da.zeros(4, chunks=2).map_blocks(never, meta=meta))})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    before = files_in(directory)
    with clusters.cluster(
        protocol="tcp", n_workers=1, config={"xshm": {"directory": str(elsewhere)}}
    ):
        with pytest.raises(xshm.XshmError, match="a container is on one host"):
            xshm.publish(lazy, "x")
        with pytest.raises(xshm.XshmError, match="a container is on one host"):
            xshm.publish(lazy, "x", compute=False)
        new = set(files_in(directory)) - set(before)
        assert [f for f in new if "/segments/" in f or "/containers/" in f] == []
    assert not computed.exists()
