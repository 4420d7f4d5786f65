"""What dask's workers and clients do with data: the same tests on tcp and on shm.

Scheduler, workers and client share this process, as in distributed's own tests, and so one
place in the directory; on shm their arrays travel as handles all the same.
"""

from __future__ import annotations

import asyncio
import gc
import operator
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import dask.array as da
import dask.config
import numpy as np
import pandas as pd
import pytest
from distributed import (
    Client,
    Event,
    Lock,
    Nanny,
    Queue,
    Scheduler,
    Variable,
    Worker,
    get_client,
    get_worker,
    secede,
    wait,
    worker_client,
)
from distributed.client import FutureCancelledError
from distributed.utils_comm import gather_from_workers
from distributed.utils_test import gen_cluster

import xshm
from tests.clusters import (
    ITEMS,
    LARGE,
    PROTOCOLS,
    Adder,
    cluster,
    growth,
    leaving_nothing,
    workers_of,
)
from tests.conftest import files_in, wait_until

Test = Callable[..., Awaitable[None]]

NO_MEMORY_MANAGER = {"distributed.scheduler.active-memory-manager.start": False}


def on_both(nbytes: int = LARGE, **options: Any) -> Callable[[Test], Callable[..., None]]:
    """Run a test on a cluster of each protocol: two workers in this process, and a client.

    On shm at least so many bytes have to travel as handles, and none of a large frame otherwise.
    """

    def decorate(test: Test) -> Callable[..., None]:
        @pytest.mark.parametrize("protocol", PROTOCOLS)
        def run(protocol: str, directory: Path) -> None:
            usual = {"nthreads": [("127.0.0.1", 1)] * 2, "client": True, "timeout": 90}
            arguments = {**usual, "active_rpc_timeout": 30, **options}
            # distributed's tests begin with the configuration as it was when they were imported.
            config = {**arguments.pop("config", {}), "xshm.directory": str(directory)}
            scheduler = f"{protocol}://127.0.0.1"
            before = xshm.stats()
            gen_cluster(scheduler=scheduler, config=config, **arguments)(test)()
            grown = growth(before)
            by_handle = grown["bytes_sent_by_handle"] + grown["bytes_received_by_handle"]
            assert by_handle >= nbytes if protocol == "shm" else by_handle == 0
            assert grown["bytes_sent_inline"] == 0
            gc.collect()
            wait_until(lambda: files_in(directory) == [], "all have left the directory")

        run.__name__ = run.__qualname__ = test.__name__
        run.__doc__ = test.__doc__
        run.__module__ = test.__module__
        return run

    return decorate


def numbers(start: float = 0) -> np.ndarray:
    return np.arange(start, start + ITEMS)


def double(x: np.ndarray) -> np.ndarray:
    return x * 2


def same(received: Any, expected: np.ndarray) -> None:
    assert isinstance(received, np.ndarray)
    np.testing.assert_array_equal(received, expected)


async def until(condition: Callable[[], bool]) -> None:
    """Let the cluster work until this holds; the test's own time limit ends it otherwise."""
    while not condition():
        await asyncio.sleep(0.01)


# ---- gather and scatter ----


@on_both(6 * LARGE)
async def test_gather(c: Client, s: Scheduler, a: Worker, b: Worker) -> None:
    for direct in (False, True):
        futures = c.map(numbers, range(4), pure=False)
        received = await c.gather({"x": futures[:2], "y": (futures[2:], 1)}, direct=direct)
        for i, x in enumerate([*received["x"], *received["y"][0]]):
            same(x, numbers(i))


@on_both()
async def test_gather_what_a_worker_had_that_has_gone(
    c: Client, s: Scheduler, a: Worker, b: Worker
) -> None:
    computed = c.submit(numbers, workers=[b.address], allow_other_workers=True)
    scattered = await c.scatter(numbers(1), workers=[b.address])
    await wait([computed, scattered])
    await b.close()
    same(await computed, numbers())  # again, elsewhere
    assert computed.key in a.data
    with pytest.raises(FutureCancelledError):
        await scattered
    assert len(await c.gather([computed, scattered], errors="skip")) == 1


@on_both()
async def test_gather_asks_those_workers_that_are_left(
    c: Client, s: Scheduler, a: Worker, b: Worker
) -> None:
    x = c.submit(numbers, workers=[a.address])
    await wait(x)
    await b.close()
    who_has = {x.key: [b.address, a.address], "missing": [b.address], "nowhere": []}
    c.rpc.timeout = 1
    data, missing, failed, workers = await gather_from_workers(who_has, rpc=c.rpc)
    same(data[x.key], numbers())
    assert (set(missing), failed) == ({"missing", "nowhere"}, [])
    assert set(workers) <= {b.address}


@on_both(4 * LARGE)
async def test_scatter(c: Client, s: Scheduler, a: Worker, b: Worker) -> None:
    for options in ({}, {"broadcast": True}, {"direct": True}, {"direct": False}, {"hash": False}):
        one = await c.scatter(numbers(), **options)
        several = await c.scatter([numbers(1), numbers(2)], **options)
        named = await c.scatter({"x": numbers(3)}, **options)
        futures = [one, *several, named["x"]]
        for i, future in enumerate(futures):
            assert len(s.tasks[future.key].who_has) == (2 if "broadcast" in options else 1)
            same(await c.submit(double, future, workers=[b.address]), numbers(i) * 2)
            same(await future, numbers(i))
        await c.cancel(futures)
        del one, several, named, futures, future
        await until(lambda: not s.tasks)


# ---- replicas ----


@on_both(2 * LARGE, nthreads=[("127.0.0.1", 1)] * 3)
async def test_replicate(c: Client, s: Scheduler, a: Worker, b: Worker, d: Worker) -> None:
    x = c.submit(numbers, workers=[a.address], allow_other_workers=True)
    await wait(x)
    await c.replicate(x, n=2)
    assert len(s.tasks[x.key].who_has) == 2
    await c.replicate(x)
    assert len(s.tasks[x.key].who_has) == 3
    for worker in (a, b, d):
        same(worker.data[x.key], numbers())
    b.data[x.key][:] = -1  # what a task does to its worker's replica is not to reach others
    same(a.data[x.key], numbers())
    same(d.data[x.key], numbers())


@on_both(
    LARGE,
    config={
        **NO_MEMORY_MANAGER,
        "distributed.worker.memory.rebalance.measure": "managed",
        "distributed.worker.memory.rebalance.sender-min": 0,
        "distributed.worker.memory.rebalance.sender-recipient-gap": 0,
    },
    worker_kwargs={"memory_limit": "4 GiB"},
)
async def test_rebalance(c: Client, s: Scheduler, a: Worker, b: Worker) -> None:
    futures = c.map(numbers, range(8), workers=[a.address], allow_other_workers=True)
    await wait(futures)
    await c.rebalance(futures)
    assert 0 < len(b.data) < 8
    assert len(a.data) + len(b.data) == 8
    for i, future in enumerate(futures):
        same(await future, numbers(i))


@on_both()
async def test_retire_workers(c: Client, s: Scheduler, a: Worker, b: Worker) -> None:
    futures = c.map(numbers, range(4), workers=[a.address], allow_other_workers=True)
    await wait(futures)
    retired = await c.retire_workers([a.address])
    assert list(retired) == [a.address]
    await until(lambda: a.address not in s.workers)
    assert len(b.data) == 4
    for i, x in enumerate(await c.gather(futures)):
        same(x, numbers(i))


@on_both(
    config={
        "distributed.scheduler.active-memory-manager.start": False,
        "distributed.scheduler.active-memory-manager.policies": [
            {"class": "distributed.active_memory_manager.ReduceReplicas"}
        ],
    }
)
async def test_the_active_memory_manager_drops_replicas(
    c: Client, s: Scheduler, a: Worker, b: Worker
) -> None:
    futures = c.map(numbers, range(3), workers=[a.address], allow_other_workers=True)
    await c.replicate(futures)
    assert len(a.data) == len(b.data) == 3
    await c.amm.run_once()
    await until(lambda: len(a.data) + len(b.data) == 3)
    for i, x in enumerate(await c.gather(futures)):
        same(x, numbers(i))
    same(await c.submit(operator.add, *futures[:2]), numbers() + numbers(1))


# ---- who computes where ----


def add_elsewhere(x: np.ndarray, i: float, busy: str) -> np.ndarray:
    """One worker is busy with its first task until the other one has one."""
    if get_worker().address == busy:
        assert Event("elsewhere").wait(60)
    else:
        Event("elsewhere").set()
    return x + i


@on_both()
async def test_stolen_tasks_take_their_arguments_along(
    c: Client, s: Scheduler, a: Worker, b: Worker
) -> None:
    x = c.submit(numbers, workers=[a.address])
    await wait(x)
    options = {"workers": [a.address], "allow_other_workers": True}
    sums = c.map(add_elsewhere, [x] * 10, range(10), busy=a.address, **options)
    for i, future in enumerate(sums):
        same(await future, numbers(i))
    assert any(future.key in b.data for future in sums)


@on_both(4 * LARGE)
async def test_p2p_rechunk(c: Client, s: Scheduler, a: Worker, b: Worker) -> None:
    x = np.arange(2000.0 * 2000).reshape(2000, 2000)
    rows = da.arange(x.size, chunks=x.size // 4, dtype=float).reshape(x.shape)
    with dask.config.set({"array.rechunk.method": "p2p"}):
        columns = rows.rechunk((2000, 500))
        assert any("p2p" in str(key) for key in columns.dask)
        same(await c.compute(columns * 2), x * 2)


@on_both(2**20)  # shards of frames are smaller; the result is not
async def test_p2p_shuffle(c: Client, s: Scheduler, a: Worker, b: Worker) -> None:
    pytest.importorskip("pyarrow")  # p2p sends Arrow tables
    dd = pytest.importorskip("dask.dataframe")
    frame = pd.DataFrame({"key": np.arange(ITEMS) % 97, "x": numbers()})
    with dask.config.set({"dataframe.shuffle.method": "p2p"}):
        shuffled = dd.from_pandas(frame, npartitions=4).shuffle("key")
        received = await c.compute(shuffled)
    pd.testing.assert_frame_equal(received.sort_values("x").reset_index(drop=True), frame)


def _with_worker_client(x: np.ndarray) -> np.ndarray:
    with worker_client() as client:
        (y,) = client.scatter([x], direct=True)
        futures = client.map(np.multiply, [y] * 3, [1, 2, 3], pure=False)
        total: np.ndarray = sum(client.gather(futures))
        return total


def _with_get_client(x: np.ndarray) -> np.ndarray:
    future = get_client().submit(double, x, workers=[get_worker().address])
    secede()
    result: np.ndarray = future.result()
    return result


@on_both(4 * LARGE)
async def test_tasks_that_are_clients(c: Client, s: Scheduler, a: Worker, b: Worker) -> None:
    x = c.submit(numbers, workers=[a.address])
    same(await c.submit(_with_worker_client, x, workers=[b.address]), numbers() * 6)
    same(await c.submit(_with_get_client, x, workers=[b.address]), numbers() * 2)


# ---- what tasks share ----


def add_from_elsewhere(adder: Any, y: np.ndarray) -> np.ndarray:
    result: np.ndarray = adder.add(y).result()
    return result


@on_both(4 * LARGE)
async def test_actors(c: Client, s: Scheduler, a: Worker, b: Worker) -> None:
    adder = await c.submit(Adder, numbers(), actor=True, workers=[a.address])
    first = await adder.add(numbers(1))
    same(first, numbers() + numbers(1))
    there = await c.submit(add_from_elsewhere, adder, numbers(1), workers=[b.address])
    same(there, numbers() + 2 * numbers(1))
    same(await adder.x, numbers() + 2 * numbers(1))
    same(first, numbers() + numbers(1))  # what came first is as it came


def put_in_turn(start: float) -> None:
    with worker_client() as client, Lock("lock"):
        Queue("queue").put(client.scatter(numbers(start), direct=True))
        get_worker().log_event("produced", {"start": start})
        Event("event").set()


@on_both(4 * LARGE)
async def test_queue_variable_lock_and_events(
    c: Client, s: Scheduler, a: Worker, b: Worker
) -> None:
    events: list[float] = []
    c.subscribe_topic("produced", lambda event: events.append(event[1]["start"]))
    producers = c.map(put_in_turn, range(4), pure=False)
    assert await Event("event").wait(30)
    await c.gather(producers)
    queue, variable = Queue("queue"), Variable("variable")
    received = [await (await queue.get()) for _ in range(4)]
    for i, x in enumerate(sorted(received, key=lambda x: float(x[0]))):
        same(x, numbers(i))
    await until(lambda: sorted(events) == [0, 1, 2, 3])
    await variable.set(await c.scatter(numbers(9)))
    same(await (await variable.get()), numbers(9))
    assert not await Lock("lock").locked()
    queue.close()
    variable.delete()


@on_both(2 * LARGE)
async def test_published_datasets_outlive_the_connection_of_who_published(
    c: Client, s: Scheduler, a: Worker, b: Worker
) -> None:
    array = c.persist(da.arange(ITEMS, chunks=ITEMS // 2, dtype=float))
    await c.publish_dataset(future=c.submit(numbers, 1), array=array, itself=numbers(2))
    await wait(array)
    del array
    connection = c.scheduler_comm
    connection.comm.abort()
    await until(lambda: c.scheduler_comm not in (None, connection) and c.status == "running")
    assert set(await c.list_datasets()) == {"future", "array", "itself"}
    same(await (await c.get_dataset("future")), numbers(1))
    same(await c.compute(await c.get_dataset("array")), numbers())
    same(await c.get_dataset("itself"), numbers(2))
    for name in ("future", "array", "itself"):
        await c.unpublish_dataset(name)


# ---- workers in processes of their own, and in none ----


@on_both(3 * LARGE, nthreads=[])
async def test_a_nanny_has_the_scheme_of_its_schedulers_address_and_restarts(
    c: Client, s: Scheduler
) -> None:
    scheme = s.address.partition("://")[0]
    async with Nanny(s.address, nthreads=1) as nanny:
        before = nanny.worker_address
        for address in (nanny.address, before):
            assert address.startswith(f"{scheme}://")
        assert list(s.workers) == [before]
        x = await c.scatter(numbers(1))
        y = c.submit(numbers)
        same(await c.submit(operator.add, x, y), numbers() + numbers(1))
        await c.restart()
        assert x.status == y.status == "cancelled"
        (after,) = s.workers  # the nanny may not have heard of it yet
        assert after != before
        assert after.startswith(f"{scheme}://")
        same(await c.submit(double, numbers(2)), numbers(2) * 2)


@pytest.mark.parametrize("protocol", [None, *PROTOCOLS])
def test_workers_in_threads_of_the_client(directory: Path, protocol: str | None) -> None:
    before = xshm.stats()
    with leaving_nothing(directory), cluster(protocol=protocol, processes=False) as client:
        first, second = workers_of(client)
        assert first.startswith(f"{protocol or 'inproc'}://")
        x = client.submit(numbers, workers=[first])
        y = client.submit(double, x, workers=[second])
        same(client.gather(y), numbers() * 2)
        del x, y
    assert growth(before)["handles_received"] >= (2 if protocol == "shm" else 0)
