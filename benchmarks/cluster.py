"""A local cluster to measure on, and what the benchmarks ask of it."""

from __future__ import annotations

import gc
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import dask
import dask.array as da
import numpy as np
from distributed import Client, LocalCluster, futures_of, wait

from .memory import cluster_pss, system_shmem

#: Seconds after which a piece of work counts as hung.
TIMEOUT = 300

#: Nothing is spilled, paused or restarted for want of memory.
NO_SPILLING = {
    f"distributed.worker.memory.{name}": False
    for name in ("target", "spill", "pause", "terminate", "transfer")
}


@dataclass
class Session:
    """A client of a running cluster, with the size and seed of the next run.

    Attributes
    ----------
    client : distributed.Client
    workers : list of str
        Addresses of the workers.
    protocol : str
    scale : float
        Share of the full number of bytes to work on.
    seed : int
        Seed of the next run's input.  Runs that are compared have the same seed.
    idle_pss, idle_shmem : int
        `cluster_pss` and `system_shmem` of the new, idle cluster.
    """

    client: Client
    workers: list[str]
    protocol: str
    scale: float = 1.0
    seed: int = 0
    idle_pss: int = field(default_factory=cluster_pss)
    idle_shmem: int = field(default_factory=system_shmem)

    def length(self, nbytes: int) -> int:
        """Length of a float64 vector of ``nbytes``, scaled."""
        return max(1, round(nbytes * self.scale / 8))

    def side(self, full: int, multiple: int) -> int:
        """Side of a square matrix, scaled in bytes, as a multiple of ``multiple``."""
        parts = max(1, round(full * math.sqrt(self.scale) / multiple))
        return parts * multiple

    def random(
        self,
        shape: tuple[int, ...],
        chunks: tuple[int, ...],
        dtype: type = np.float64,
        **kwargs: Any,
    ) -> da.Array:
        """Persist random numbers, made by ordinary tasks on the workers, and wait for them.

        Parameters
        ----------
        shape, chunks : tuple of int
        dtype : type
            ``numpy.float64`` or ``numpy.float32``.
        **kwargs
            Arguments of ``Client.persist``, as ``workers``.
        """
        rng = da.random.default_rng(self.seed)
        array: da.Array = self.client.persist(
            rng.random(shape, chunks=chunks, dtype=dtype), **kwargs
        )
        wait(array, timeout=TIMEOUT)
        return array

    def chunk_on(self, worker: str, length: int) -> Any:
        """Persist one chunk of random numbers on ``worker``; return its future."""
        array = self.random((length,), (length,), workers=[worker])
        (future,) = futures_of(array)
        return future

    def compute(self, collection: Any) -> Any:
        """Compute a dask collection."""
        return self.client.compute(collection).result(timeout=TIMEOUT)

    def wait_released(self) -> None:
        """Wait until the workers hold no data, once all futures are deleted."""
        deadline = time.monotonic() + TIMEOUT
        gc.collect()
        while any(self.client.run(_count_keys).values()):
            if time.monotonic() > deadline:
                raise TimeoutError("workers still hold data after all futures were deleted")
            time.sleep(0.01)
        self.client.run(gc.collect)


def _count_keys(dask_worker: Any) -> int:
    return len(dask_worker.data)


@contextmanager
def new_cluster(
    protocol: str, n_workers: int, memory_limit: int, **options: Any
) -> Iterator[Client]:
    """Start a new cluster of workers with one thread each; its client.

    Parameters
    ----------
    protocol : {"tcp", "shm", "inproc"}
    n_workers : int
    memory_limit : int
        Of each worker, in bytes; 0 for none.
    **options
        Arguments of ``LocalCluster``.
    """
    with (
        LocalCluster(
            protocol=protocol,
            n_workers=n_workers,
            threads_per_worker=1,
            memory_limit=memory_limit,
            dashboard_address=":0",
            silence_logs=logging.ERROR,
            **options,
        ) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(n_workers, timeout=TIMEOUT)
        yield client


def workers_of(client: Client) -> list[str]:
    """Addresses of all workers."""
    # Not by Client.scheduler_info, which now and then leaves them out: the client also asks for
    # that without workers, all the time, and returns what it has heard last.
    return sorted(client.sync(client.scheduler.identity)["workers"])


@contextmanager
def session(protocol: str, scale: float = 1.0, n_workers: int = 4) -> Iterator[Session]:
    """Start a new cluster of workers with one thread each; close it at the end.

    Parameters
    ----------
    protocol : {"tcp", "shm", "inproc"}
        With "inproc" the workers are threads of this process, otherwise processes.
    scale : float
        Share of the full number of bytes to work on.
    n_workers : int
    """
    try:
        with (
            dask.config.set(NO_SPILLING),
            new_cluster(protocol, n_workers, 0, processes=protocol != "inproc") as client,
        ):
            client.run(_count_keys)  # all that the workers import is imported now
            yield Session(client, workers_of(client), protocol, scale)
    finally:
        gc.collect()
        if protocol == "shm":
            # The client's process outlives the cluster: the next one starts without
            # the segments that this process has kept warm.
            import xshm

            xshm.trim()
