"""Every way that data takes in a dask cluster gives NumPy's results, and leaves nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import dask.config
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from dask.distributed import (
    Client,
    Event,
    LocalCluster,
    Lock,
    Queue,
    Variable,
    wait,
    worker_client,
)

import xshm
from tests import clusters
from tests.clusters import (
    ITEMS,
    LARGE,
    Adder,
    assert_same,
    by_handle,
    cluster,
    growth,
    leaving_nothing,
    total,
    workers_of,
)
from tests.conftest import wait_until

directory = clusters.module_directory
module_client = clusters.module_client
client = clusters.client


def numbers(start: float = 0) -> np.ndarray:
    return np.arange(start, start + ITEMS)


def double(x: np.ndarray) -> np.ndarray:
    return x * 2


def identity(x: Any) -> Any:
    return x


# ---- clusters of their own; first, so that the shared one has not started yet ----


@pytest.mark.slow
def test_results_of_computations_with_several_threads_a_worker(directory: Path) -> None:
    x = np.arange(1000.0 * 1000).reshape(1000, 1000) / 1e6
    a = da.from_array(x, chunks=(500, 500))
    with leaving_nothing(directory), cluster(threads_per_worker=4) as client, by_handle(client):
        np.testing.assert_allclose((a + a.T).sum(axis=0).compute(), (x + x.T).sum(axis=0))
        np.testing.assert_allclose((a @ a).compute(), x @ x)
        np.testing.assert_array_equal(a.rechunk((1000, 250)).compute(), x)
        np.testing.assert_array_equal(da.flip(a, 0)[::3, 7:].compute(), x[::-1][::3, 7:])


def test_an_asynchronous_client(directory: Path) -> None:
    async def run() -> None:
        async with (
            LocalCluster(
                protocol="shm", n_workers=2, dashboard_address=":0", asynchronous=True
            ) as local,
            Client(local, asynchronous=True) as client,
        ):
            x = await client.scatter(numbers())
            y = client.submit(double, x)
            np.testing.assert_array_equal(await y, numbers() * 2)
            np.testing.assert_array_equal(await client.gather(y, direct=True), numbers() * 2)

    with leaving_nothing(directory):
        before = xshm.stats()
        asyncio.run(run())
        assert growth(before)["handles_sent"] >= 1


@pytest.mark.slow
def test_spilled_chunks_are_read_back_and_sent(directory: Path) -> None:
    limits = {
        "distributed.worker.memory.target": 0.01,  # 40 MiB of 4 GiB: a chunk more goes to disk
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        "distributed.worker.memory.terminate": False,
    }
    with (
        leaving_nothing(directory),
        dask.config.set(limits),
        cluster(memory_limit="4 GiB") as client,
    ):
        first, second = workers_of(client)
        chunks = client.map(numbers, range(20), workers=[first])
        wait(chunks)
        spilled = client.run(lambda dask_worker: len(dask_worker.data.slow), workers=[first])
        assert spilled[first] >= 5
        doubled = client.map(double, chunks, workers=[second])
        for i, (chunk, twice) in enumerate(zip(chunks, doubled, strict=True)):
            np.testing.assert_array_equal(twice.result(), numbers(i) * 2)
            np.testing.assert_array_equal(chunk.result(), numbers(i))
        del chunks, doubled, chunk, twice


@pytest.mark.slow
def test_a_worker_retires_and_a_cluster_restarts(directory: Path) -> None:
    with leaving_nothing(directory), cluster() as client:
        first, second = workers_of(client)
        x = client.submit(numbers, workers=[first], allow_other_workers=True)
        wait(x)
        client.retire_workers([first])
        assert set(client.who_has(x)[x.key]) == {second}
        np.testing.assert_array_equal(x.result(), numbers())
        del x
        client.restart()
        (x,) = client.scatter([numbers(1)])
        np.testing.assert_array_equal(client.submit(double, x).result(), numbers(1) * 2)
        del x


def _cluster_within(protocol: str) -> np.ndarray:
    with (
        LocalCluster(
            protocol=protocol,
            n_workers=2,
            threads_per_worker=1,
            processes=False,
            dashboard_address=":0",
        ) as local,
        Client(local, set_as_default=False) as client,
    ):
        first, second = workers_of(client)
        x = client.submit(numbers, workers=[first])
        result: np.ndarray = client.submit(double, x, workers=[second]).result()
        return result


@pytest.mark.parametrize(("outer", "inner"), [("shm", "shm"), ("shm", "tcp"), ("tcp", "shm")])
def test_a_cluster_within_a_task_and_one_beside(directory: Path, outer: str, inner: str) -> None:
    with leaving_nothing(directory), cluster(protocol=outer, n_workers=1) as client:
        x = client.submit(numbers)
        within = client.submit(_cluster_within, inner)
        np.testing.assert_array_equal(_cluster_within(inner), numbers() * 2)
        np.testing.assert_array_equal(within.result(), numbers() * 2)
        np.testing.assert_array_equal(client.submit(double, x).result(), numbers() * 2)
        del x, within


@contextlib.contextmanager
def _command(*arguments: str, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """A ``dask`` command of a shell, ended in order."""
    dask_script = str(Path(sys.executable).with_name("dask"))
    process = subprocess.Popen([dask_script, *arguments], env={**os.environ, **env})
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@pytest.mark.slow
def test_scheduler_and_workers_of_the_command_line(directory: Path, tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    options = ("scheduler", "--protocol", "shm", "--host", "127.0.0.1", "--port", "0")
    with leaving_nothing(directory), contextlib.ExitStack() as stack:
        stack.enter_context(_command(*options, "--no-dashboard", "--scheduler-file", str(file)))
        wait_until(lambda: file.exists() and bool(file.read_text()), "a scheduler", 30)
        address = json.loads(file.read_text())["address"]
        assert address.startswith("shm://127.0.0.1:")
        worker = ("worker", address, "--nthreads", "1", "--no-dashboard")
        stack.enter_context(_command(*worker, "--nworkers", "2", "--name", "here"))
        stack.enter_context(
            _command(*worker, "--name", "elsewhere", DASK_XSHM__DIRECTORY=str(elsewhere))
        )
        client = stack.enter_context(Client(address))
        client.wait_for_workers(3, timeout=30)
        by_name = {
            info["name"]: worker
            for worker, info in client.scheduler_info(n_workers=-1)["workers"].items()
        }
        x = client.submit(np.arange, float(ITEMS), workers=[by_name["here-0"]])
        y = client.submit(np.multiply, x, 2, workers=[by_name["here-1"]])
        z = client.submit(np.multiply, y, 2, workers=[by_name["elsewhere"]])
        np.testing.assert_array_equal(client.gather(z), numbers() * 4)
        np.testing.assert_array_equal(client.gather(y), numbers() * 2)
        stats = client.run(xshm.stats)
        assert stats[by_name["here-1"]]["handles_received"] >= 1
        assert stats[by_name["elsewhere"]]["handles_received"] == 0
        del x, y, z
    assert not list(elsewhere.rglob("*.segment"))


# ---- to, from and between workers ----


def test_worker_to_worker(client: Client) -> None:
    first, second, third = workers_of(client)
    with by_handle(client, 2 * LARGE):
        x = client.submit(numbers, workers=[first])
        y = client.submit(double, x, workers=[second])
        z = client.submit(np.subtract, y, x, workers=[third])
        np.testing.assert_array_equal(client.submit(identity, z).result(), numbers())


@pytest.mark.parametrize("direct", [False, True])
def test_gather(client: Client, direct: bool) -> None:
    with by_handle(client, 6 * LARGE):
        futures = client.map(numbers, range(6))
        received = client.gather({"a": futures[:3], "b": (futures[3:], 1)}, direct=direct)
    for i, x in enumerate([*received["a"], *received["b"][0]]):
        np.testing.assert_array_equal(x, numbers(i))


@pytest.mark.parametrize(
    "options",
    [{}, {"broadcast": True}, {"direct": True}, {"direct": False}, {"hash": False}],
    ids=str,
)
def test_scatter(client: Client, options: dict[str, bool]) -> None:
    with by_handle(client, 4 * LARGE):
        one = client.scatter(numbers(), **options)
        several = client.scatter([numbers(1), numbers(2)], **options)
        named = client.scatter({"x": numbers(3)}, **options)
        futures = [one, *several, named["x"]]
        doubled = client.map(double, futures, workers=workers_of(client)[:1], pure=False)
        for i, (future, twice) in enumerate(zip(futures, doubled, strict=True)):
            np.testing.assert_array_equal(future.result(), numbers(i))
            np.testing.assert_array_equal(twice.result(), numbers(i) * 2)


def test_actors(client: Client) -> None:
    one = numbers(1)
    with by_handle(client, 6 * LARGE):
        adder = client.submit(Adder, numbers(), actor=True).result()
        first = adder.add(one).result()
        first_copy = first.copy()
        second = adder.add(one).result()
    np.testing.assert_array_equal(second, numbers() + 2 * one)
    np.testing.assert_array_equal(first, first_copy)
    np.testing.assert_array_equal(first, numbers() + one)
    np.testing.assert_array_equal(adder.x, second)
    np.testing.assert_array_equal(one, numbers(1))


def test_run(client: Client) -> None:
    x = numbers()
    with by_handle(client, 6 * LARGE):
        results = client.run(double, x)
    assert len(results) == 3
    for result in results.values():
        np.testing.assert_array_equal(result, x * 2)


def test_a_large_array_in_the_graph(client: Client) -> None:
    x = numbers()
    with by_handle(client, 3 * LARGE):
        doubled = client.submit(double, x)
        np.testing.assert_array_equal(doubled.result(), x * 2)


def test_futures_within_arguments(client: Client) -> None:
    x, y = client.map(numbers, [0, 1])
    total = client.submit(lambda d: d["a"][0] + d["b"], {"a": [x], "b": y})
    np.testing.assert_array_equal(total.result(), numbers() + numbers(1))


def test_published_datasets(client: Client) -> None:
    future = client.submit(numbers)
    array = da.from_array(numbers(1), chunks=ITEMS // 2).persist()
    client.publish_dataset(future=future, array=array, itself=numbers(2))
    del future, array
    with Client(client.scheduler.address, set_as_default=False) as other:
        np.testing.assert_array_equal(other.get_dataset("future").result(), numbers())
        array = other.get_dataset("array")
        np.testing.assert_array_equal(other.compute(array).result(), numbers(1))
        np.testing.assert_array_equal(other.get_dataset("itself"), numbers(2))
        del array
    for name in client.list_datasets():
        client.unpublish_dataset(name)


def _with_client_of_worker(x: np.ndarray) -> np.ndarray:
    with worker_client() as client:
        (y,) = client.scatter([x], direct=True)
        futures = client.map(np.multiply, [y] * 3, [1, 2, 3], pure=False)
        return sum(client.gather(futures))


def test_worker_client(client: Client) -> None:
    with by_handle(client):
        x = client.submit(numbers)
        received = client.submit(_with_client_of_worker, x).result()
    np.testing.assert_array_equal(received, numbers() * 6)


@pytest.mark.parametrize("method", ["tasks", "p2p"])
def test_rechunk(client: Client, method: str) -> None:
    x = np.arange(2000.0 * 2000).reshape(2000, 2000)
    with dask.config.set({"array.rechunk.method": method}), by_handle(client):
        a = da.arange(x.size, chunks=x.size // 4, dtype=float).reshape(x.shape).persist()
        columns = a.rechunk((2000, 500)).persist()
        np.testing.assert_array_equal(columns.compute(), x)
        rows = columns.map_blocks(double).rechunk((400, 2000))
        np.testing.assert_array_equal(rows.compute(), x * 2)


@pytest.mark.parametrize("method", ["tasks", "p2p"])
def test_shuffle_of_frames(client: Client, method: str) -> None:
    pytest.importorskip("pyarrow")  # p2p sends Arrow tables
    dd = pytest.importorskip("dask.dataframe")
    frame = pd.DataFrame({"key": np.arange(ITEMS) % 97, "x": numbers()})
    with dask.config.set({"dataframe.shuffle.method": method}):
        shuffled = dd.from_pandas(frame, npartitions=6).shuffle("key").compute()
    pd.testing.assert_frame_equal(shuffled.sort_values("x").reset_index(drop=True), frame)


def test_queue_variable_event_and_lock(client: Client) -> None:
    queue, variable, lock, event = Queue("q"), Variable("v"), Lock("l"), Event("e")

    def produce(start: float) -> None:
        with worker_client() as client, Lock("l"):
            Queue("q").put(client.scatter(numbers(start), direct=True))
            Event("e").set()

    with by_handle(client):
        client.gather(client.map(produce, range(4), pure=False))
        assert event.wait(10)
        received = sorted((queue.get().result() for _ in range(4)), key=lambda x: x[0])
        for i, x in enumerate(received):
            np.testing.assert_array_equal(x, numbers(i))
        variable.set(client.scatter(numbers(9)))
        np.testing.assert_array_equal(variable.get().result(), numbers(9))
    assert not lock.locked()
    queue.close()
    variable.delete()
    event.clear()


class FailedError(Exception):
    """Carries an array."""


def test_exceptions_that_carry_arrays(client: Client) -> None:
    def fail(x: np.ndarray) -> None:
        raise FailedError(x)

    failing = client.submit(fail, client.submit(numbers))
    with pytest.raises(FailedError) as info:
        failing.result()
    np.testing.assert_array_equal(info.value.args[0], numbers())
    failing.release()  # dask keeps a future whose exception was raised: its frames refer to it
    with pytest.raises(FailedError):
        client.run(fail, numbers())


def test_replicate_and_rebalance(client: Client) -> None:
    first, *_ = workers_of(client)
    with by_handle(client, 4 * LARGE):
        x = client.submit(numbers, workers=[first], allow_other_workers=True)
        wait(x)
        client.replicate(x)
        assert len(client.who_has(x)[x.key]) == 3
        ys = client.map(numbers, range(1, 7), workers=[first], allow_other_workers=True)
        wait(ys)
        client.rebalance(ys)
        for i, y in enumerate(client.gather([x, *ys])):
            np.testing.assert_array_equal(y, numbers(i))
        sums = client.run(lambda key, dask_worker: dask_worker.data[key].sum(), x.key)
        assert len(sums) == 3
        np.testing.assert_allclose(list(sums.values()), numbers().sum())


@pytest.mark.slow
def test_labelled_arrays_and_frames(client: Client) -> None:
    time = pd.date_range("2000-01-01", periods=1200)
    t = xr.DataArray(
        np.sin(np.arange(1200.0 * 800)).reshape(1200, 800),
        dims=("time", "x"),
        coords={"time": time, "x": np.arange(800)},
        name="t",
        attrs={"units": "K"},
    )
    frame = t[::10].to_dataframe().reset_index()
    with by_handle(client):
        chunked = t.chunk(time=200).persist()
        anomaly = chunked.groupby("time.season") - chunked.groupby("time.season").mean()
        expected = t.groupby("time.season") - t.groupby("time.season").mean()
        xr.testing.assert_allclose(anomaly.compute(), expected)
        xr.testing.assert_identical(chunked.transpose().compute(), t.transpose())
        assert_same(client.submit(identity, client.scatter(frame)).result(), frame)
        assert_same(
            client.submit(identity, client.scatter(t.to_dataset())).result(), t.to_dataset()
        )


def test_nothing_is_copied_when_workers_exchange_chunks(client: Client) -> None:
    x = np.arange(2000.0 * 2000).reshape(2000, 2000)
    a = da.arange(x.size, chunks=x.size // 2, dtype=float).reshape(x.shape).persist()
    copied = total(client, "bytes_copied_in")
    with by_handle(client):
        np.testing.assert_array_equal(a.rechunk((2000, 1000)).map_blocks(double).compute(), x * 2)
    assert total(client, "bytes_copied_in") == copied
