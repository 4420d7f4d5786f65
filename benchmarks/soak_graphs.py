"""The work of a soak: graphs of many kinds, each compared with what NumPy computes."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from distributed import Client, Future, wait, worker_client
from distributed.comm import CommClosedError
from distributed.shuffle._exceptions import P2PConsistencyError

import xshm

Array = np.ndarray[Any, Any]
Graph = Callable[[Client, np.random.Generator], None]

#: Side of square arrays and of their chunks; a chunk is of 2 MiB.
SIDE, CHUNK = 2048, 512

#: Seconds after which a graph counts as hung.
TIMEOUT = 180


class WrongResultError(AssertionError):
    """What came out is not what NumPy computes."""


class LostActorError(Exception):
    """The worker of an actor has ended."""


def check(found: Any, expected: Any) -> None:
    """Raise if two arrays, or lists of them, are not equal."""
    if isinstance(expected, list):
        if len(found) != len(expected):
            raise WrongResultError(f"expected {len(expected)} arrays, found {len(found)}")
        for one, other in zip(found, expected, strict=True):
            check(one, other)
        return
    found, expected = np.asarray(found), np.asarray(expected)
    if (found.dtype, found.shape) != (expected.dtype, expected.shape):
        raise WrongResultError(
            f"expected {expected.dtype} {expected.shape}, found {found.dtype} {found.shape}"
        )
    if not np.array_equal(found, expected):
        differ = np.argwhere(found != expected)
        first = tuple(differ[0])
        raise WrongResultError(
            f"{len(differ)} of {expected.size} items differ, the first at {first}: "
            f"expected {expected[first]}, found {found[first]}"
        )


def matrix(rng: np.random.Generator, side: int = SIDE) -> tuple[da.Array, Array]:
    """A matrix of small whole numbers, so that sums are exact in any order: dask's and NumPy's."""
    a, b, modulus = (int(n) for n in rng.integers(3, 100, 3))
    i = da.arange(side, chunks=CHUNK, dtype=float)
    j = np.arange(side, dtype=float)
    return (a * i[:, None] + b * i) % modulus, (a * j[:, None] + b * j) % modulus


def result_of(client: Client, collection: Any) -> Any:
    """Compute a collection."""
    return client.compute(collection).result(timeout=TIMEOUT)


def results_of(client: Client, futures: list[Future]) -> list[Any]:
    """Gather the results of futures."""
    wait(futures, timeout=TIMEOUT)
    results: list[Any] = client.gather(futures)
    return results


# ---- collections ----


def reductions(client: Client, rng: np.random.Generator) -> None:
    """Sums of a matrix and its transpose."""
    x, y = matrix(rng)
    check(result_of(client, (x + x.T).sum(axis=0)), (y + y.T).sum(axis=0))


def rechunk(client: Client, rng: np.random.Generator, method: str = "tasks") -> None:
    """From squares to rows to columns, and all of it gathered."""
    x, y = matrix(rng)
    rows = x.rechunk((SIDE // 8, SIDE), method=method)
    check(result_of(client, rows.rechunk((SIDE, SIDE // 8), method=method) + 1), y + 1)


def rechunk_p2p(client: Client, rng: np.random.Generator) -> None:
    """The same, by dask's shuffle."""
    try:
        rechunk(client, rng, "p2p")
    except RuntimeError as error:
        if not str(error).startswith("P2P"):
            raise
        raise P2PConsistencyError(str(error)) from error


def matmul(client: Client, rng: np.random.Generator) -> None:
    """A matrix times its transpose."""
    x, y = matrix(rng, SIDE // 2)
    check(result_of(client, x @ x.T), y @ y.T)


def overlap(client: Client, rng: np.random.Generator) -> None:
    """Each item less its neighbours, across the edges of chunks."""
    x, y = matrix(rng)

    def less_neighbours(block: Array) -> Array:
        return block - np.roll(block, 1, 0) - np.roll(block, -1, 1)

    expected = less_neighbours(np.pad(y, 1))[1:-1, 1:-1]
    check(result_of(client, x.map_overlap(less_neighbours, depth=1, boundary=0)), expected)


def in_place(client: Client, rng: np.random.Generator) -> None:
    """Tasks that write into what other tasks, often on other workers, made for them."""
    x, y = matrix(rng)

    def negate(block: Array) -> Array:
        np.negative(block, out=block)
        return block

    with dask.config.set({"optimization.fuse.active": False}):
        made = (x + 1).rechunk((SIDE, CHUNK // 2), method="tasks")
        check(result_of(client, made.map_blocks(negate).sum(axis=1)), -(y + 1).sum(axis=1))


def groupby(client: Client, rng: np.random.Generator) -> None:
    """Totals of groups along a dimension that has chunks."""
    x, y = matrix(rng)
    labels = np.arange(SIDE) // (SIDE // 4)
    total = xr.DataArray(x, dims=("time", "x"), coords={"season": ("time", labels)})
    found = result_of(client, total.groupby("season").sum()).transpose("season", "x")
    check(found, y.reshape(4, -1, SIDE).sum(axis=1))


def persisted(client: Client, rng: np.random.Generator) -> None:
    """Several results of one array that stays on the workers meanwhile."""
    x, y = matrix(rng)
    x = client.persist(x)
    check(result_of(client, x.max(axis=1)), y.max(axis=1))
    check(result_of(client, x[1::3, 5:-7].T), y[1::3, 5:-7].T)
    check(result_of(client, x), y)


# ---- futures ----

LENGTH = 2**19  # of float64: 4 MiB


def chain(client: Client, rng: np.random.Generator) -> None:
    """Arrays that go from task to task, and in lists of them."""
    start = float(rng.integers(100))
    futures = [client.submit(np.full, LENGTH, start + i, pure=False) for i in range(8)]
    for _ in range(4):
        futures = [
            client.submit(np.add, one, other, pure=False)
            for one, other in itertools.pairwise([*futures, futures[0]])
        ]
    total = client.submit(_sum_of, futures, pure=False).result(timeout=TIMEOUT)
    check(total, 16 * sum(start + i for i in range(8)))


def _sum_of(arrays: list[Array]) -> float:
    return float(sum(array.sum() for array in arrays)) / LENGTH


def parts(client: Client, rng: np.random.Generator) -> None:
    """Tasks that return views, lists and dicts of arrays; other tasks and the client use them."""
    seed = int(rng.integers(1000))
    made = client.submit(_parts, seed, pure=False)
    doubled = client.submit(lambda parts: [2 * part for part in parts], made, pure=False)
    named = client.submit(lambda parts: dict(enumerate(parts)), made, pure=False)
    expected = _parts(seed)
    check(made.result(timeout=TIMEOUT), expected)
    check(doubled.result(timeout=TIMEOUT), [2 * part for part in expected])
    check(list(named.result(timeout=TIMEOUT).values()), expected)


def _parts(seed: int) -> list[Array]:
    x = seed + np.arange(4 * LENGTH, dtype=float).reshape(1024, -1)
    return [x[::2], x[:, 10:1500], x.T, x[5:9], np.broadcast_to(x[3], (512, x.shape[1])), x[:0]]


def broadcast(client: Client, rng: np.random.Generator) -> None:
    """One array for all workers, each of which writes to it; nobody sees what others write."""
    with xshm.allocator() if rng.integers(2) else nullcontext():
        x = np.full(2 * LENGTH, float(rng.integers(100)))
    sent = client.scatter(x, hash=False, timeout=TIMEOUT)
    try:
        # Not scatter's own broadcast, which tries for ever to reach a worker that has ended.
        client.replicate(sent)
    except (KeyError, ValueError, AssertionError) as error:  # the scheduler counts on one, too
        raise CommClosedError(f"not replicated: {error!r}") from error
    total = client.submit(np.sum, sent, pure=False).result(timeout=TIMEOUT)
    check(total, x.sum())
    written = client.map(_write_over, [sent] * 8, range(8), pure=False)
    check(results_of(client, written), [np.float64(value * x.size) for value in range(8)])


def _write_over(x: Array, value: int) -> Any:
    with _alone:  # with the other threads of this worker
        x[:] = value
        time.sleep(0.01)
        return x.sum()


_alone = threading.Lock()


def gather(client: Client, rng: np.random.Generator) -> None:
    """Large results, all at once."""
    value = int(rng.integers(100))
    futures = client.map(np.full, [LENGTH] * 12, range(value, value + 12), pure=False)
    check(results_of(client, futures), [np.full(LENGTH, value + i) for i in range(12)])


def tasks_of_tasks(client: Client, rng: np.random.Generator) -> None:
    """A task that has other tasks run, and gathers their results itself."""
    value = float(rng.integers(100))
    total = client.submit(ask_others, value, pure=False).result(timeout=TIMEOUT)
    check(total, value * 4 * LENGTH)


def ask_others(value: float) -> float:
    """A task that has a client of its worker's, which stays: four arrays, added up."""
    with worker_client() as client:
        made = client.map(np.full, [LENGTH] * 4, [value] * 4, pure=False)
        return float(sum(array.sum() for array in client.gather(made)))


class Total:
    """An actor: it keeps an array, to which others are added."""

    def __init__(self, length: int) -> None:
        self.total = np.zeros(length)

    def add(self, x: Array) -> None:
        """Add an array."""
        self.total += x

    def get(self) -> Array:
        """What was added up."""
        return self.total


def actor(client: Client, rng: np.random.Generator) -> None:
    """An actor that is given arrays, and asked for one."""
    values = rng.integers(0, 100, 4)
    try:
        total = client.submit(Total, LENGTH, actor=True, pure=False).result(timeout=TIMEOUT)
        for value in values:
            total.add(np.full(LENGTH, float(value))).result(timeout=TIMEOUT)
        found = total.get().result(timeout=TIMEOUT)
    except (OSError, ValueError, RuntimeError) as error:  # dask says it in one of several ways
        if "Actor" not in str(error):
            raise
        raise LostActorError(str(error)) from error
    check(found, np.full(LENGTH, float(values.sum())))


GRAPHS: dict[str, Graph] = {
    graph.__name__: graph
    for graph in (
        *(reductions, rechunk, rechunk_p2p, matmul, overlap, in_place, groupby, persisted),
        *(chain, parts, broadcast, gather, tasks_of_tasks, actor),
    )
}


def visit(address: str) -> None:
    """Scatter and gather for ever, in a process of its own."""
    with Client(address) as client:
        for value in itertools.count():
            x = np.full(2 * LENGTH, float(value))
            sent = client.scatter([x, x + 1], hash=False)
            more = client.map(np.add, sent, [1] * 2, pure=False)
            check(client.gather(more), [x + 1, x + 2])
            print(os.getpid(), "gathered", flush=True)
