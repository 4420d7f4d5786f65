"""Time graphs of three times the workers' memory limits, which go through the disk: tcp and shm.

Two workers of one thread each, new for each run.
"""

from __future__ import annotations

import argparse
import functools
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dask.array as da
from distributed import wait

from .cluster import TIMEOUT, new_cluster
from .comparison import Call, Column, Goal, Work, add_options, run_works
from .fresh import own_directory

PROTOCOLS = ("tcp", "shm")
N_WORKERS = 2
TIMES = 3
_SIDE = 1448  # of a chunk of 16 MiB
_SECONDS = "s from persist to the result"
_COLUMNS = (
    Column("seconds", _SECONDS),
    Column("persist", "of these, until all is made"),
    Column("restarts", "restarted workers", "x"),
)
_GOALS = (
    Goal("seconds", 1, against="tcp", of="shm"),
    Goal("restarts", 0, of="shm"),
)


@contextmanager
def transpose(limit: int) -> Iterator[dict[str, Call]]:
    """``(x + x.T).mean()``: each chunk is asked of the other worker, or read from the disk."""
    yield _on_both(limit, lambda x: (x + x.T).mean())


@contextmanager
def deviation(limit: int) -> Iterator[dict[str, Call]]:
    """``((x - x.mean(axis=0)) ** 2).mean()``: all chunks are read twice, where they are."""
    yield _on_both(limit, lambda x: ((x - x.mean(axis=0)) ** 2).mean())


WORKS = {
    "transpose": Work(transpose, _COLUMNS, _GOALS, baseline="tcp"),
    "deviation": Work(deviation, _COLUMNS, _GOALS, baseline="tcp"),
}


def _on_both(limit: int, function: Callable[[da.Array], da.Array]) -> dict[str, Call]:
    return {p: functools.partial(_compute, p, limit, function) for p in PROTOCOLS}


def _compute(
    protocol: str, limit: int, function: Callable[[da.Array], da.Array]
) -> dict[str, float]:
    side = math.isqrt(TIMES * N_WORKERS * limit // (8 * _SIDE**2)) * _SIDE
    x = da.random.default_rng(0).random((side, side), chunks=(_SIDE, _SIDE))
    with (
        tempfile.TemporaryDirectory() as folder,
        new_cluster(protocol, N_WORKERS, limit, local_directory=folder) as client,
    ):
        start = time.perf_counter()
        x = client.persist(x)
        wait(x, timeout=TIMEOUT)
        persisted = time.perf_counter() - start
        result: Any = client.compute(function(x)).result(timeout=TIMEOUT)
        seconds = time.perf_counter() - start
        assert math.isfinite(result)
        restarts = len(client.get_events("worker-restart-memory"))
    return {"seconds": seconds, "persist": persisted, "restarts": float(restarts)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    add_options(parser, WORKS, "of a worker's memory limit, as 512MiB", "spilling.json")


def run(args: argparse.Namespace) -> int:
    """Measure, print the tables, write the JSON."""
    with own_directory():
        return run_works(args, WORKS, (), ())
