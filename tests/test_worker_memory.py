"""What a worker's memory is, and what its process may keep, beside what dask usually does."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import dask.config
import numpy as np
import psutil
import pytest
from distributed import Nanny, Worker, wait
from distributed.spill import SpillBuffer

import xshm
from tests import clusters
from tests.conftest import wait_until
from xshm import process
from xshm.dask.spill import attend_to
from xshm.directory import configured
from xshm.own_memory import orphans_of, resident, segments_of

MiB = 2**20
CHUNK = 16 * MiB


def make_and_free(n_chunks: int) -> None:
    """Have so many chunks in memory at a time."""
    chunks = [np.ones(CHUNK // 8) for _ in range(n_chunks)]
    del chunks


def test_what_lost_its_name_with_its_owner_in_use_is_no_orphan(allocating: None) -> None:
    x = np.ones(CHUNK // 8)
    process.close()  # as its last connection does, but x is still there
    process.current()
    assert xshm.stats()["live_bytes"] == CHUNK
    assert orphans_of(os.getpid(), configured()) == 0  # it would count twice
    del x


def test_a_process_whose_workers_have_ended_keeps_as_much_as_before(allocating: None) -> None:
    make_and_free(10)
    with clusters.cluster(processes=False, n_workers=1, memory_limit="300MiB") as client:
        client.submit(make_and_free, 1).result()
        client.run(lambda dask_worker: dask_worker.monitor.get_process_memory())
    make_and_free(10)
    assert xshm.stats()["free_bytes"] >= 10 * CHUNK


def test_what_is_kept_for_next_arrays_is_bounded_where_dask_spills_nothing() -> None:
    """Else it would be what pauses a worker, for ever, or ends it."""
    limit = 600 * MiB
    with (
        dask.config.set({f"distributed.worker.memory.{key}": False for key in ("target", "spill")}),
        clusters.cluster(n_workers=1, memory_limit=limit) as client,
    ):
        client.submit(make_and_free, 20).result()
        memory = client.run(lambda dask_worker: dask_worker.monitor.get_process_memory())
        assert max(memory.values()) < 0.7 * limit
        assert client.run(lambda: xshm.stats()["free_bytes"] >= CHUNK)


def test_what_is_spilled_gives_its_memory_to_the_next_chunks() -> None:
    limit = 600 * MiB
    with (
        dask.config.set({"distributed.worker.memory.monitor-interval": "1h"}),
        clusters.cluster(n_workers=1, memory_limit=limit) as client,
    ):
        (base,) = client.run(lambda dask_worker: dask_worker.monitor.get_process_memory()).values()
        count = (7 * limit // 10 - base) // CHUNK + 1  # beyond where dask spills
        chunks = client.map(np.ones, [CHUNK // 8] * count, pure=False)
        wait(chunks)
        (spilled,) = client.run(spill).values()
        assert 3 <= spilled <= 6  # a tenth of the limit
        (stats,) = client.run(xshm.stats).values()
        assert stats["free_bytes"] == spilled * CHUNK
        assert client.run(spill) == client.run(spilled_chunks)  # and not for what is kept
        chunks += client.map(np.ones, [CHUNK // 8] * 3, pure=False)
        wait(chunks)
        (then,) = client.run(xshm.stats).values()
        assert (then["created"], then["recycled"]) == (stats["created"], stats["recycled"] + 3)


def test_what_is_kept_for_next_arrays_pauses_no_worker() -> None:
    """It would be paused for ever: without an array there is nothing that could go."""
    fractions = {"monitor-interval": "1h", "target": 0.5, "spill": 0.6, "pause": 0.6}
    with (
        dask.config.set({f"distributed.worker.memory.{key}": fractions[key] for key in fractions}),
        clusters.cluster(n_workers=1, memory_limit=600 * MiB) as client,
    ):
        client.submit(make_and_free, 25).result()
        client.run(spill)
        assert client.submit(make_and_free, 1).result(timeout=30) is None


def test_what_is_kept_for_next_arrays_ends_no_worker_that_spills_late() -> None:
    limit = 600 * MiB
    fractions = {"monitor-interval": "1h", "target": 0.9, "spill": 0.93, "terminate": 0.95}
    with (
        dask.config.set({f"distributed.worker.memory.{key}": fractions[key] for key in fractions}),
        clusters.cluster(n_workers=1, memory_limit=limit) as client,
    ):
        client.submit(make_and_free, 35).result()
        client.run(spill)
        (memory,) = client.run(kept_alive).values()
        assert memory < 0.95 * limit


def kept_alive() -> int:
    """The memory of this process, as its nanny counts it."""
    return resident(os.getpid())[0] + segments_of(os.getpid(), configured())


def test_a_limit_that_is_set_while_a_worker_runs_is_what_it_spills_by() -> None:
    with (
        dask.config.set({"distributed.worker.memory.monitor-interval": "1h"}),
        clusters.cluster(n_workers=1, memory_limit=2000 * MiB) as client,
    ):
        chunks = client.map(np.ones, [CHUNK // 8] * 8, pure=False)
        wait(chunks)
        (memory,) = client.run(
            lambda dask_worker: dask_worker.monitor.get_process_memory()
        ).values()
        client.run(set_memory_limit, memory)
        (spilled,) = client.run(spill).values()
        assert 0 < spilled < len(chunks)


def set_memory_limit(limit: int, dask_worker: Worker) -> None:
    dask_worker.memory_manager.memory_limit = limit


class Evicting(dict[str, int]):
    """What a user gives a worker for its data, in place of dask's own."""

    def __init__(self) -> None:
        self.fast = ["x", "y", "z"]

    def evict(self) -> int:
        return len(self.fast.pop())


def test_data_of_a_users_own_are_spilled_until_it_is_enough() -> None:
    data = Evicting()
    attend_to(data, lambda: len(data.fast) == 1)
    assert [data.evict() for _ in range(4)] == [1, 1, -1, -1]


async def spill(dask_worker: Worker) -> int:
    """Do what dask does when it looks at the memory; how many chunks are spilled by now."""
    await dask_worker.memory_manager.memory_monitor(dask_worker)
    return spilled_chunks(dask_worker)


def spilled_chunks(dask_worker: Worker) -> int:
    return len(dask_worker.data.slow)


def make_after_freeing(n_chunks: int, nbytes: int) -> int:
    make_and_free(n_chunks)
    return len(b"1" * nbytes)


@pytest.mark.slow
def test_what_is_kept_for_next_arrays_ends_no_worker_before_it_could_give_it_back() -> None:
    with clusters.cluster(n_workers=1, memory_limit="600MiB") as client:
        for _ in range(10):
            client.submit(make_after_freeing, 20, 250 * MiB, pure=False).result()
        assert client.get_events("worker-restart-memory") == ()


def look_as_nanny(dask_worker: Nanny) -> bool:
    """Do what the nanny does when it looks at its worker; whether it has ended it."""
    dask_worker.memory_manager.memory_monitor(dask_worker)
    return bool(dask_worker.memory_manager._last_terminated_pid > 0)


def take_and_stop(n_chunks: int, nbytes: int) -> None:
    """Take memory, having freed some, and do no more, not even look at it."""
    sys.setswitchinterval(10)  # seconds, in which no other thread looks at it either
    make_and_free(n_chunks)
    taken = b"1" * nbytes
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(60)  # this thread may be the last to stop
    del taken


@pytest.mark.parametrize(
    ("n_chunks", "nbytes", "looks"),
    [
        pytest.param(20, 350 * MiB, 10, id="what it keeps, if it does not give it back in time"),
        pytest.param(0, 550 * MiB, 1, id="what it uses, if it still does at the next look"),
    ],
)
def test_a_nanny_ends_a_worker_for(n_chunks: int, nbytes: int, looks: int) -> None:
    with (
        dask.config.set({"distributed.worker.memory.monitor-interval": "1h"}),
        clusters.cluster(n_workers=1, memory_limit=600 * MiB) as client,
    ):

        def looks_and_ends_it() -> bool:
            (ended,) = client.run(look_as_nanny, nanny=True).values()
            return bool(ended)

        client.run(spill)  # from then on what it keeps is bounded
        (pid,) = client.run(os.getpid).values()
        task = client.submit(take_and_stop, n_chunks, nbytes)
        worker = psutil.Process(pid)
        wait_until(lambda: worker.status() == psutil.STATUS_STOPPED, "the worker has stopped")
        assert [looks_and_ends_it() for _ in range(looks + 1)] == [False] * looks + [True]
        task.cancel()
        looks_and_ends_it()  # and with SIGKILL


def test_no_lease_is_spilled_for_own_chunks_as_long_as_its_owner_keeps_it(
    allocating: None, tmp_path: Path
) -> None:
    data = SpillBuffer(str(tmp_path), target=3 * CHUNK + CHUNK // 2)
    attend_to(data, lambda: False)
    of_another = [np.full(CHUNK // 8, i) for i in range(3)]
    for i, x in enumerate(of_another):
        data["lease", i] = clusters.exchange(x, "shm")
    leases = set(data.fast)
    for i in range(5):
        data["own", i] = np.full(CHUNK // 8, i)
    assert set(data.slow) == {("own", 0), ("own", 1)}
    while data.evict() >= 0:
        pass
    assert set(data.fast) == leases
    of_another.clear()
    del x
    xshm.trim()  # what the owner keeps for its next arrays
    assert data.evict() >= 0
    assert [data["lease", i][-1] for i in range(3)] == [0, 1, 2]
    assert [data["own", i][-1] for i in range(5)] == [0, 1, 2, 3, 4]
    data.clear()
