"""Datasets larger than a worker's memory: published by a cluster, and computed with on one."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from distributed import Client

import xshm

from .cluster import TIMEOUT, new_cluster, session
from .comparison import Call, Column, Goal, Work
from .files import SECONDS
from .formats import NAME, OPENERS, VARIABLE, WRITERS, is_installed
from .fresh import folder
from .memory import Peak, peak_resident

MiB = 2**20
PROTOCOLS = ("tcp", "shm")
MEMORY_LIMIT = 700 * MiB
_SIDE = 64
_CHUNK = (1024, _SIDE, _SIDE)  # 16 MiB in float32


def _shape(nbytes: int) -> tuple[int, int, int]:
    return max(nbytes // (4 * _SIDE**2), 4), _SIDE, _SIDE


# ---- publishing


@contextmanager
def publishing(size: int) -> Iterator[dict[str, Call]]:
    """A persisted Dataset of 4 GiB is published from a cluster of four workers.

    From ``publish`` to its return. "more than the container" is the highest sum of all
    processes' own memory and the files in shared memory meanwhile, less what it was before,
    less the container.
    """
    yield {
        f"xshm, {protocol}": functools.partial(publish_persisted, protocol, 4 * size)
        for protocol in PROTOCOLS
    }


def publish_persisted(protocol: str, nbytes: int) -> dict[str, float]:
    """Persist random numbers on a new cluster, and publish them."""
    with folder() as place, dask.config.set({"xshm.directory": str(place)}):
        with session(protocol) as s:
            values = s.random(_shape(nbytes), _CHUNK, np.float32)
            dataset = xr.Dataset({VARIABLE: (("time", "y", "x"), values)})
            with Peak(place) as peak:
                start = time.perf_counter()
                shared = xshm.publish(dataset, NAME)
                seconds = time.perf_counter() - start
            extra = peak.growth - shared.nbytes
        return {"seconds": seconds, "extra": extra / MiB}


# ---- computing with little memory


@contextmanager
def computing(size: int, twice: bool = False) -> Iterator[dict[str, Call]]:
    """Four workers with 700 MiB each compute over a published Dataset of 4 GiB.

    The variance along time, on a Dataset opened with ``chunks={}``, and how often a worker
    paused, spilled or was restarted for want of memory; the limits are dask's defaults. "peak"
    is the largest that a worker was, with all pages that it has mapped and looked at. zarr's
    chunks are dask's.
    """
    with folder() as place, dask.config.set({"xshm.directory": str(place)}):
        values = da.random.default_rng(0).random(_shape(4 * size), chunks=_CHUNK, dtype="f4")
        dataset = xr.Dataset({VARIABLE: (("time", "y", "x"), values)})
        shared = xshm.publish(dataset, NAME)
        calls: dict[str, Call] = {
            f"xshm, {protocol}": functools.partial(compute_limited, protocol, shared, twice)
            for protocol in PROTOCOLS
        }
        if is_installed("zarr"):
            WRITERS["zarr"](dataset, place)
            calls["zarr, tcp"] = functools.partial(compute_limited, "tcp", place, twice)
        yield calls


def computing_twice(size: int) -> AbstractContextManager[dict[str, Call]]:
    """The same with ``(x - x.mean("time")).var("time")``, for which dask keeps all chunks.

    It wants each chunk twice, and the mean in between.
    """
    return computing(size, twice=True)


def compute_limited(protocol: str, where: Any, twice: bool) -> dict[str, float]:
    """Compute on a new cluster of small workers, and count what it did for want of memory."""
    with new_cluster(protocol, 4, MEMORY_LIMIT) as client:
        if isinstance(where, Path):
            dataset = OPENERS["zarr"](where, chunks={})
        else:
            dataset = xr.open_dataset(where, chunks={})
        x = dataset[VARIABLE]
        variance = (x - x.mean("time") if twice else x).var("time")
        start = time.perf_counter()
        found = client.compute(variance).result(timeout=TIMEOUT)
        seconds = time.perf_counter() - start
        assert abs(float(found.mean()) - 1 / 12) < 0.01  # of numbers between 0 and 1
        return {"seconds": seconds, **want_of_memory(client)}


def want_of_memory(client: Client) -> dict[str, float]:
    """How often the workers of a cluster paused, spilled and were restarted, and their peak."""
    workers = client.run(lambda dask_worker: (_spilled(dask_worker), peak_resident()))
    events: Any = client.get_events()
    paused = [
        event
        for address in workers
        for _, event in events.get(address, ())
        if event.get("status") == "paused"
    ]
    return {
        "pauses": len(paused),
        "spills": sum(spills["count"] for spills, _ in workers.values()),
        "spilled": sum(spills["bytes"] for spills, _ in workers.values()) / MiB,
        "restarts": len(events.get("worker-restart-memory", ())),
        "peak": max(peak for _, peak in workers.values()) / MiB,
    }


def _spilled(worker: Any) -> dict[str, float]:
    metrics: dict[tuple[str, str], float] = worker.data.cumulative_metrics
    return {unit: metrics.get(("disk-write", unit), 0.0) for unit in ("count", "bytes")}


WANT = (
    Column("pauses", "pauses", "x"),
    Column("spills", "spills", "x"),
    Column("spilled", "MiB spilled", "x"),
    Column("restarts", "restarts", "x"),
    Column("peak", "peak, MiB", "x"),
)
WORKS = {
    "publish": Work(
        publishing,
        (SECONDS, Column("extra", "more than the container, MiB", "x")),
        (Goal("extra", 200),),
    ),
    "compute": Work(
        computing,
        (SECONDS, *WANT),
        tuple(Goal(name, 0) for name in ("pauses", "spills", "restarts")),
    ),
    "compute-twice": Work(computing_twice, (SECONDS, *WANT)),
}
