"""A worker's memory is what only it keeps alive: what is shared does not count, all else does."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import dask.config
import numpy as np
import pytest
import xarray as xr
from dask.distributed import Client, LocalCluster, Worker, get_worker, wait
from dask.sizeof import sizeof
from distributed.scheduler import KilledWorker

import xshm
from tests import clusters
from tests.conftest import wait_until

MiB = 2**20
LIMIT = 400 * MiB
CHUNK = 8 * MiB  # a task takes several times that while it computes
NBYTES = 6 * LIMIT  # of the container
N_WORKERS = 4


def _events(client: Client, topic: str) -> Any:
    return client.get_events(topic)


def wants_of_memory(client: Client) -> dict[str, int]:
    """How often dask's workers did what they do when memory is short."""
    spills = client.run(
        lambda dask_worker: dask_worker.data.cumulative_metrics.get(("disk-write", "count"), 0)
    )
    return {
        "pauses": sum(
            event.get("status") == "paused"
            for worker in spills
            for _, event in _events(client, worker)
        ),
        "spills": sum(spills.values()),
        "restarts": len(_events(client, "worker-restart-memory")),
    }


@contextlib.contextmanager
def limited(protocol: str, n_workers: int, limit: int) -> Iterator[Client]:
    """A cluster whose workers may take so much memory."""
    with (
        LocalCluster(
            protocol=protocol,
            n_workers=n_workers,
            threads_per_worker=1,
            memory_limit=limit,
            dashboard_address=":0",
        ) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(n_workers)
        yield client


@pytest.mark.slow
@pytest.mark.parametrize("protocol", clusters.PROTOCOLS)
def test_what_is_published_does_not_count_as_memory_of_workers(
    protocol: str, directory: Path
) -> None:
    """Neither while they write it, nor while they compute with it."""
    side = 64
    shape = NBYTES // (4 * side**2), side, side
    values = da.ones(shape, "f4", chunks=(CHUNK // (4 * side**2), side, side))
    dataset = xr.Dataset({"t2m": (("time", "y", "x"), values)})
    with limited(protocol, N_WORKERS, LIMIT) as client:
        with xshm.publish(dataset, "large") as shared:
            assert shared.nbytes > NBYTES
            opened = xr.open_dataset(shared, chunks={})
            assert client.compute(opened.t2m.mean()).result() == 1
            assert (client.compute(opened.t2m.var("time")).result() == 0).all()
        assert wants_of_memory(client) == {"pauses": 0, "spills": 0, "restarts": 0}


def test_what_all_have_from_one_counts_for_none_of_them() -> None:
    with xshm.allocator():
        x = np.ones(3 * LIMIT // 8)
    with limited("shm", 4, LIMIT) as client:
        sent = client.scatter(x, broadcast=True, hash=False)
        sums = [
            client.submit(np.sum, sent, workers=[worker], pure=False)
            for worker in clusters.workers_of(client)
        ]
        assert client.gather(sums) == [x.size] * 4
        time.sleep(1)  # of dask's monitors, which look ten times a second
        assert wants_of_memory(client) == {"pauses": 0, "spills": 0, "restarts": 0}
        memory = client.run(lambda dask_worker: dask_worker.monitor.get_process_memory())
        assert max(memory.values()) < LIMIT // 2
        del sent, sums


def take(how: str, nbytes: int) -> int:
    """Take memory, and keep it for a while."""
    taken = np.ones(nbytes // 8) if how == "array" else b"1" * nbytes
    time.sleep(5)
    return len(taken)


@pytest.mark.parametrize("how", ["array", "bytes"])
@pytest.mark.parametrize("protocol", [pytest.param("tcp", marks=pytest.mark.slow), "shm"])
def test_who_takes_more_than_the_limit_is_ended(protocol: str, how: str) -> None:
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        limited(protocol, 1, LIMIT) as client,
    ):
        with pytest.raises(KilledWorker):
            client.submit(take, how, 2 * LIMIT).result()
        assert wants_of_memory(client)["restarts"] == 1


def spilled(client: Client) -> int:
    """How many values the workers have on the disk."""
    return sum(client.run(lambda dask_worker: len(dask_worker.data.disk)).values())


def keep(x: Any) -> None:
    get_worker().kept = x  # type: ignore[attr-defined]


def test_a_spilled_chunk_gives_its_segment_back_and_comes_back_into_one() -> None:
    limit = 600 * MiB  # beside what dask fills of it there is room for a message of 50 MiB
    with (
        dask.config.set({"distributed.worker.memory.spill-compression": False}),
        limited("shm", 2, limit) as client,
    ):
        owner, other = clusters.workers_of(client)
        on_owner = {"workers": [owner], "pure": False}
        first = client.submit(np.full, CHUNK // 8, 7.0, **on_owner)
        client.submit(keep, first, workers=[other]).result()
        chunks = [
            client.submit(np.full, CHUNK // 8, i, **on_owner) for i in range(2 * limit // CHUNK)
        ]
        wait([first, *chunks])
        wait_until(lambda: spilled(client) > limit // CHUNK, "more than the limit is on the disk")

        numbers = client.run(xshm.stats, workers=[owner])[owner]
        in_segments = sum(numbers[f"{kind}_bytes"] for kind in ("live", "free", "waiting"))
        assert in_segments <= 0.8 * limit  # else it would be paused

        # The lease of the other worker is as it was, and spilled chunks go as handles.
        kept = client.run(lambda dask_worker: float(dask_worker.kept.sum()), workers=[other])
        assert kept[other] == 7.0 * CHUNK / 8
        sums = client.map(np.sum, chunks, workers=[other])
        assert client.gather(sums) == [i * CHUNK / 8 for i in range(len(chunks))]
        after = client.run(xshm.stats, workers=[owner])[owner]
        assert after["bytes_sent_by_handle"] - numbers["bytes_sent_by_handle"] >= limit
        assert after["bytes_copied_in"] == 0
        assert after["bytes_sent_inline"] == 0
        assert wants_of_memory(client)["restarts"] == 0


def test_a_lease_takes_no_memory_but_for_what_is_written() -> None:
    with limited("shm", 2, LIMIT) as client:
        owner, other = clusters.workers_of(client)
        x = client.submit(np.ones, CHUNK // 8, workers=[owner])
        client.replicate(x)

        def spill_and_use(key: str, dask_worker: Worker) -> tuple[float, float]:
            data = dask_worker.data
            with contextlib.suppress(KeyError):  # there is nothing else to spill
                while True:
                    data.fast.evict()
            return data[key].sum(), data.cumulative_metrics["disk-read", "count"]

        # Spilling it, the other would gain nothing.
        results = client.run(spill_and_use, x.key)
        assert results == {owner: (CHUNK / 8, 1), other: (CHUNK / 8, 0)}

        lease = client.gather(x)
        assert sizeof(lease) < 1000
        lease += 1
        assert sizeof(lease) >= CHUNK


def test_what_only_leases_keep_counts_for_one_of_the_holders() -> None:
    with (
        dask.config.set({"distributed.scheduler.active-memory-manager.start": False}),
        limited("shm", 3, 2 * LIMIT) as client,
    ):
        owner, *holders = clusters.workers_of(client)
        x = client.submit(np.ones, LIMIT // 8, workers=[owner])
        client.replicate(x)

        def counted() -> int:
            memory = client.run(
                lambda dask_worker: dask_worker.monitor.get_process_memory(), workers=holders
            )
            return sum(memory.values())

        before = counted()
        client.run(lambda: os.kill(os.getpid(), signal.SIGKILL), workers=[owner], on_error="ignore")
        client.wait_for_workers(3)
        # The new worker's process has cleared what was the old one's, but for the leases.
        wait_until(lambda: counted() - before > 0.9 * LIMIT, "the orphan counts")
        assert counted() - before < 1.5 * LIMIT
        assert client.submit(np.sum, x, workers=[holders[0]]).result() == LIMIT // 8


@pytest.mark.slow
@pytest.mark.parametrize("protocol", clusters.PROTOCOLS)
def test_three_times_as_much_as_all_limits_is_computed_through_the_disk(protocol: str) -> None:
    limit, n_workers, side = 600 * MiB, 2, 1448
    n_chunks = math.isqrt(3 * n_workers * limit // (8 * side**2))
    shape = n_chunks * side, n_chunks * side
    x = da.fromfunction(lambda i, j: i + 2 * j, shape=shape, chunks=(side, side), dtype="f8")
    with limited(protocol, n_workers, limit) as client:
        x = x.persist()
        wait(x)
        assert spilled(client) > n_chunks**2 // 2
        mean = (x + x.T).mean().compute()
        assert np.isclose(mean, 3 * (shape[0] - 1))
        assert wants_of_memory(client)["restarts"] == 0
