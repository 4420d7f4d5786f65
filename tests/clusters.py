"""Connections and clusters for the tests of the dask layer, and what must be equal on them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import dask.config
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from dask.distributed import Client, LocalCluster
from distributed.comm.core import Comm, CommClosedError, Listener, connect, listen
from distributed.protocol import to_serialize

import xshm
from tests.conftest import files_in, own_directory, wait_until

PROTOCOLS = ("tcp", "shm")

#: Bytes of the arrays in the tests with the configured threshold of 1 MiB, and their items.
LARGE = 4 * 2**20
ITEMS = LARGE // 8

Handler = Callable[[Comm], Awaitable[None]]


# ---- connections ----


@contextlib.asynccontextmanager
async def connected(
    protocol: str, deserialize: bool = True, host: str = "127.0.0.1", **overrides: Any
) -> AsyncIterator[tuple[Comm, Comm]]:
    """Both ends of a connection: the one that connected, and the one that accepted."""
    ends = both_ends(
        lambda handler: listen(f"{protocol}://{host}:0", handler, deserialize=deserialize),
        lambda listener: connect(
            listener.contact_address, deserialize=deserialize, handshake_overrides=overrides
        ),
    )
    async with ends as (near, far):
        yield near, far


@contextlib.asynccontextmanager
async def both_ends(
    listen: Callable[[Handler], Listener], connect: Callable[[Listener], Awaitable[Comm]]
) -> AsyncIterator[tuple[Comm, Comm]]:
    """Both ends of a connection, made by functions that listen and connect."""
    accepted: asyncio.Queue[Comm] = asyncio.Queue()
    async with listen(accepted.put) as listener:
        near = await connect(listener)
        far = await accepted.get()
        try:
            yield near, far
        finally:
            near.abort()
            far.abort()


async def transfer(value: Any, sender: Comm, receiver: Comm) -> Any:
    """What arrives of a value at the other end."""
    _, message = await asyncio.gather(sender.write({"x": to_serialize(value)}), receiver.read())
    return message["x"]


async def echo(comm: Comm) -> None:
    """Serve one client until it goes."""
    with contextlib.suppress(CommClosedError):
        while True:
            message = await comm.read()
            await comm.write({"x": to_serialize(message["x"])})


async def soon(condition: Callable[[], bool]) -> None:
    """Let the event loop run until this holds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def exchange(value: Any, protocol: str) -> Any:
    """What arrives of a value, sent over a connection of its own."""

    async def send() -> Any:
        async with connected(protocol) as (near, far):
            return await transfer(value, near, far)

    return asyncio.run(send())


def growth(before: dict[str, int]) -> dict[str, int]:
    """How much this process's numbers grew since then."""
    now = xshm.stats()
    return {key: now[key] - before[key] for key in now}


# ---- clusters ----


@pytest.fixture(scope="module")
def module_directory() -> Iterator[Path]:
    """One directory for all tests of a module, so that they can share a cluster.

    Notes
    -----
    In such a module, ``directory = clusters.module_directory`` takes the place of the fixture
    that gives each test its own, and so on::

        directory = clusters.module_directory
        module_client = clusters.module_client
        client = clusters.client
    """
    with own_directory() as parent:
        yield parent


@contextlib.contextmanager
def cluster(**options: Any) -> Iterator[Client]:
    """A client of a new ``shm`` cluster: two worker processes of one thread each."""
    usual = {"protocol": "shm", "n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
    with LocalCluster(**{**usual, **options}) as local, Client(local) as client:
        yield client


@pytest.fixture(scope="module")
def module_client(directory: Path) -> Iterator[Client]:
    """A cluster of three workers that all tests of a module share."""
    # The memory manager would remove replicas while a test counts on them.
    manager = "distributed.scheduler.active-memory-manager.start"
    with dask.config.set({manager: False}), cluster(n_workers=3) as client:
        yield client


@pytest.fixture
def client(module_client: Client, directory: Path) -> Iterator[Client]:
    """The module's cluster, in which the test must not leave anything."""
    yield module_client
    assert_nothing_held(module_client, directory)


@contextlib.contextmanager
def leaving_nothing(parent: Path) -> Iterator[None]:
    """All processes that enter the directory within leave it, and no hand-over stays."""

    def left() -> list[str]:
        return [
            file
            for file in files_in(parent)
            if file.endswith(".token") or Path(file).name.partition(".")[0] not in before
        ]

    before = {Path(file).name for file in files_in(parent) if "/processes/" in file}
    yield
    gc.collect()
    wait_until(lambda: not left(), "all processes left the directory")


def workers_of(client: Client) -> list[str]:
    """Addresses of the workers."""
    return sorted(known_of_workers(client))


def known_of_workers(client: Client) -> dict[str, Any]:
    """What the scheduler knows of the workers, by address."""
    # Not Client.scheduler_info: the client asks all the time for what it tells without workers,
    # and returns what it has heard last.
    known: dict[str, Any] = client.sync(client.scheduler.identity)["workers"]
    return known


def total(client: Client, key: str) -> int:
    """One of xshm's numbers, summed over the workers and this process, once each."""
    by_process = client.run(lambda: (os.getpid(), xshm.stats()[key]))
    return sum(dict([*by_process.values(), (os.getpid(), xshm.stats()[key])]).values())


@contextlib.contextmanager
def by_handle(client: Client, nbytes: int = LARGE) -> Iterator[None]:
    """At least so many bytes travel as handles within, and none of large frames otherwise."""
    handed_over = total(client, "bytes_sent_by_handle")
    inline = total(client, "bytes_sent_inline")
    yield
    assert total(client, "bytes_sent_by_handle") - handed_over >= nbytes
    assert total(client, "bytes_sent_inline") == inline


def assert_nothing_held(client: Client, parent: Path) -> None:
    """Wait until no process holds an array any more, and no hand-over is left."""

    def held() -> list[str]:
        gc.collect()
        client.run(gc.collect)
        numbers = {key: total(client, key) for key in ("live_segments", "leased_segments")}
        return [
            *(f"{number} {key}" for key, number in numbers.items() if number),
            *(path.name for path in parent.rglob("*.token")),
        ]

    wait_until(lambda: not held(), "arrays and tokens given back")


# ---- what tasks share ----


class Adder:
    """An actor."""

    x = np.empty(0)  # dask finds an actor's attributes in its class

    def __init__(self, x: np.ndarray) -> None:
        self.x = x

    def add(self, y: np.ndarray) -> np.ndarray:
        self.x += y
        return self.x


# ---- values ----


def assert_same(received: Any, expected: Any) -> None:
    """Equal types, values and bits, and equally writable."""
    assert type(received) is type(expected)
    match expected:
        case np.ma.core.MaskedConstant():
            assert received is expected
        case np.ma.MaskedArray():
            assert_same(received.data, expected.data)
            assert_same(received.mask, expected.mask)
            assert_same(received.fill_value, expected.fill_value)
            assert received.hardmask == expected.hardmask
        case np.ndarray():
            assert received.dtype == expected.dtype
            assert received.shape == expected.shape
            assert received.flags.writeable == expected.flags.writeable
            if expected.dtype.hasobject or expected.dtype.kind == "T":
                assert received.tolist() == expected.tolist()
            else:
                assert received.tobytes() == expected.tobytes()
        case xr.Dataset() | xr.DataArray():
            xr.testing.assert_identical(received, expected)
        case pd.DataFrame():
            pd.testing.assert_frame_equal(received, expected)
        case pd.Series():
            pd.testing.assert_series_equal(received, expected)
        case pd.Index():
            pd.testing.assert_index_equal(received, expected, exact=True)
        case memoryview():
            assert received.format == expected.format
            assert received.shape == expected.shape
            assert received.readonly == expected.readonly
            assert received.tobytes() == expected.tobytes()
        case dict():
            assert list(received) == list(expected)
            for key in expected:
                assert_same(received[key], expected[key])
        case list() | tuple():
            assert len(received) == len(expected)
            for one, other in zip(received, expected, strict=True):
                assert_same(one, other)
        case _ if hasattr(expected, "__dict__"):
            assert_same(vars(received), vars(expected))
        case _:
            assert received == expected


Make = Callable[[], Any]
