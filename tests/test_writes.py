"""Arrays arrive writable, and nobody sees anybody else's writes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from dask.distributed import Client, Future, wait
from distributed.comm.core import Comm
from distributed.protocol import to_serialize

import xshm
from tests import clusters
from tests.clusters import ITEMS, LARGE, by_handle, connected, growth, transfer, workers_of

directory = clusters.module_directory
module_client = clusters.module_client
client = clusters.client

ROWS = 1024

on_views = pytest.mark.parametrize(
    "view",
    [np.s_[:], np.s_[:, 100:], np.s_[::3], np.s_[512:], np.s_[:, ::-1], np.s_[5:900, 7:300]],
    ids=["whole", "columns", "every third row", "half", "backwards", "block"],
)


def numbers() -> np.ndarray:
    return np.arange(float(ITEMS)).reshape(ROWS, -1)


@pytest.fixture(params=["born in a segment", "born elsewhere"])
def make(request: pytest.FixtureRequest) -> Callable[[], np.ndarray]:
    """Makes the array that is sent."""

    def born_in_a_segment() -> np.ndarray:
        with xshm.allocator():
            return numbers()

    return born_in_a_segment if request.param == "born in a segment" else numbers


@contextlib.contextmanager
def read_only(x: np.ndarray) -> Iterator[None]:
    x.flags.writeable = False
    yield
    x.flags.writeable = True


# ---- two ends of a connection ----


@on_views
def test_writes_of_a_receiver_reach_nobody(
    make: Callable[[], np.ndarray], view: slice | tuple[slice, ...]
) -> None:
    sent = make()

    async def run() -> None:
        async with connected("shm") as (near, far):
            one = await transfer(sent[view], near, far)
            other = await transfer(sent[view], near, far)
            one[...] = -1
            np.testing.assert_array_equal(sent, numbers())
            np.testing.assert_array_equal(other, numbers()[view])
            third = await transfer(sent[view], near, far)
            np.testing.assert_array_equal(third, numbers()[view])
            assert (one == -1).all()

    asyncio.run(run())


@on_views
def test_writes_of_the_sender_after_sending_reach_nobody(
    make: Callable[[], np.ndarray], view: slice | tuple[slice, ...]
) -> None:
    sent = make()

    async def run() -> None:
        async with connected("shm") as (near, far):
            received = await transfer(sent[view], near, far)
            await near.write({"x": to_serialize(sent)})
            sent[...] = -1
            np.testing.assert_array_equal((await far.read())["x"], numbers())
            np.testing.assert_array_equal(received, numbers()[view])
            # Sent again, it is what it is now, wherever in it the write was.
            np.testing.assert_array_equal(await transfer(sent[view], near, far), sent[view])
            sent[700, 200] = -2
            again = await transfer(sent[view], near, far)
            np.testing.assert_array_equal(again, sent[view])
            assert sent[700, 200] == -2

    asyncio.run(run())


@on_views
def test_what_was_received_and_changed_arrives_changed(
    make: Callable[[], np.ndarray], view: slice | tuple[slice, ...]
) -> None:
    sent = make()

    async def run() -> None:
        async with connected("shm") as (near, far):
            first = await transfer(sent, near, far)
            first[600, 200] = -1  # one page of it
            second = await transfer(first[view], far, near)
            np.testing.assert_array_equal(second, first[view])
            second[...] = -2
            third = await transfer(second, near, far)
            assert (third == -2).all()
            assert first[600, 200] == -1
            first[600, 200] = numbers()[600, 200]
            np.testing.assert_array_equal(first, numbers())
            np.testing.assert_array_equal(sent, numbers())

    asyncio.run(run())


def test_what_was_received_and_not_changed_is_handed_on_without_a_copy() -> None:
    with xshm.allocator():
        sent = numbers()

    async def run() -> None:
        async with connected("shm") as (near, far):
            first = await transfer(sent, near, far)
            assert first.sum() == numbers().sum()  # reading is no write
            second = await transfer(first[:, 10:], far, near)
            third = await transfer(second[::2], near, far)
            np.testing.assert_array_equal(third, numbers()[:, 10:][::2])

    before = xshm.stats()
    asyncio.run(run())
    assert growth(before)["bytes_copied_in"] == 0


def test_an_array_that_was_read_only_arrives_read_only(make: Callable[[], np.ndarray]) -> None:
    sent = make()

    async def run() -> None:
        async with connected("shm") as (near, far):
            with read_only(sent):
                received = await transfer(sent, near, far)
            assert not received.flags.writeable
            # And it is, after all, the receiver's: its writes are its own.
            received.flags.writeable = True
            received[...] = -1
            np.testing.assert_array_equal(sent, numbers())
            assert (await transfer(sent, near, far)).flags.writeable

    asyncio.run(run())


@pytest.mark.parametrize("seed", range(4))
def test_any_sequence_of_writes_and_hand_overs(make: Callable[[], np.ndarray], seed: int) -> None:
    """Arrays and plain copies of them, written and sent at random, are equal at every step."""
    rng = np.random.default_rng(seed)

    async def step(held: list[tuple[np.ndarray, np.ndarray]], ends: tuple[Comm, Comm]) -> None:
        x, model = held[rng.integers(len(held))]
        low, high = sorted(int(i) for i in rng.integers(0, len(x) + 1, 2))
        match rng.choice(["write", "write one", "send", "send slice", "drop"]):
            case "write":
                x[low:high] = model[low:high] = rng.random()
            case "write one":
                x[-1, 3] = model[-1, 3] = rng.random()
            case "send":
                held.append((await transfer(x, *ends), model.copy()))
            case "send slice" if x.shape[1] > 250:
                held.append((await transfer(x[:, 3:-2], *ends), model[:, 3:-2].copy()))
            case "drop" if len(held) > 3:
                held.pop(int(rng.integers(len(held))))

    async def run() -> None:
        held = [(make(), numbers()), (make(), numbers())]
        async with connected("shm") as (near, far):
            for _ in range(60):
                await step(held, (near, far) if rng.integers(2) else (far, near))
                for x, model in held[-3:]:
                    np.testing.assert_array_equal(x, model)
            for x, model in held:
                np.testing.assert_array_equal(x, model)

    asyncio.run(run())


# ---- workers ----


def change(x: np.ndarray, by: float, view: slice | tuple[slice, ...] = np.s_[:]) -> np.ndarray:
    """A task that changes its input in place and returns it, or a part of it."""
    assert x.flags.writeable
    x += by
    return x[view]


def is_made(x: np.ndarray) -> bool:
    return bool((x == numbers()).all())


# A task that changes its input changes its worker's replica of it, over any comm: so these
# tests ask for the original on the worker where it was made.


@pytest.mark.parametrize("via_scheduler", [False, True])
def test_tasks_in_a_chain_of_workers_change_their_input(
    client: Client, via_scheduler: bool
) -> None:
    def here(f: Callable, *args: object, worker: str) -> Future:
        return client.submit(f, *args, workers=[worker], pure=False)

    first, second, third = workers_of(client)
    with by_handle(client, 2 * LARGE):
        x = here(numbers, worker=first)
        if via_scheduler:
            y = client.scatter(client.gather(x, direct=False), direct=False, hash=False)
        else:
            y = x
        y = here(change, y, 1, worker=second)
        z = here(change, y, 10, np.s_[:, 5:200], worker=third)
        received = client.gather(z, direct=not via_scheduler)
    np.testing.assert_array_equal(received, (numbers() + 11)[:, 5:200])
    received[...] = 0
    again = client.gather(z, direct=not via_scheduler)
    np.testing.assert_array_equal(again, (numbers() + 11)[:, 5:200])
    assert here(is_made, x, worker=first).result()


def test_two_workers_change_the_same_input(client: Client) -> None:
    first, *others = workers_of(client)
    x = client.submit(numbers, workers=[first])
    wait(x)
    client.replicate(x)  # first, lest one gets it from the other, changed
    changed = [
        client.submit(change, x, i, workers=[worker], allow_other_workers=False, pure=False)
        for i, worker in enumerate(others, start=1)
    ]
    for i, y in enumerate(client.gather(changed), start=1):
        np.testing.assert_array_equal(y, numbers() + i)
    assert client.submit(is_made, x, workers=[first]).result()


def test_what_the_client_changes_after_scattering_stays_its_own(client: Client) -> None:
    with xshm.allocator():
        x = numbers()
    scattered = client.scatter(x, broadcast=True)
    x[...] = -1
    for worker in workers_of(client):
        assert client.submit(is_made, scattered, workers=[worker], pure=False).result()
    gathered = client.gather(scattered)
    gathered[...] = -2
    np.testing.assert_array_equal(client.gather(scattered), numbers())


def test_what_a_worker_changes_after_sending_stays_its_own(client: Client) -> None:
    first, second, _ = workers_of(client)
    x = client.submit(numbers, workers=[first])
    kept = client.submit(lambda x: [x], x, workers=[second])
    wait(kept)
    client.submit(change, x, 1, workers=[first], pure=False).result()
    np.testing.assert_array_equal(client.gather(kept)[0], numbers())
