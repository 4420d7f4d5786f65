"""Time the exchange of chunks between workers: tcp, shm and inproc in one run.

Each round starts a new cluster for every work and protocol, one protocol directly after
the other, so that a drift in the machine's speed does not bias their ratio.  The first
run on a new cluster is recorded apart from the warm ones.  Each run makes its input
anew, since dask keeps the replicas of what it moved, and gives it back.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import dask
import numpy as np
from dask.base import annotate, tokenize
from dask.delayed import delayed
from distributed import futures_of, get_task_stream

from .cluster import TIMEOUT, Session, session
from .measure import (
    Phase,
    Results,
    Row,
    Sample,
    Target,
    machine,
    machine_text,
    table,
    write_json,
)
from .memory import cluster_pss, system_shmem

MiB = 2**20
GiB = 2**30
PROTOCOLS = ("tcp", "shm", "inproc")

#: What a work returns: its measures, and a result to compare between protocols.
Outcome = tuple[dict[str, float], Any]


def inc(i: Any) -> Any:
    """Add one: the smallest of tasks."""
    return i + 1


def time_transfer(s: Session, nbytes: int) -> float:
    """Seconds of action "transfer" in the task stream for one chunk to a neighbour.

    The receiving task asks for the number of dimensions only: no page is touched.
    """
    s.wait_released()
    x = s.chunk_on(s.workers[0], s.length(nbytes))
    with get_task_stream(s.client) as stream:
        task = s.client.submit(np.ndim, x, workers=[s.workers[1]], pure=False)
        assert task.result(timeout=TIMEOUT) == 1
    seconds = [
        part["stop"] - part["start"]
        for entry in stream.data
        if entry["key"] == task.key
        for part in entry["startstops"]
        if part["action"] == "transfer"
    ]
    assert seconds, "no transfer in the task stream"
    return float(sum(seconds))


def transfer(s: Session) -> Outcome:
    """One chunk of 256 MiB goes to a neighbouring worker.

    ``transfer`` is the time of action "transfer" in the task stream, for a task that
    touches no page.  ``read`` is the time from submit to result of a task that sums the
    chunk, on a third worker.
    """
    seconds = time_transfer(s, 256 * MiB)
    s.wait_released()
    x = s.chunk_on(s.workers[0], s.length(256 * MiB))
    start = time.perf_counter()
    total = s.client.submit(np.sum, x, workers=[s.workers[2]], pure=False).result(timeout=TIMEOUT)
    return {"transfer": seconds, "read": time.perf_counter() - start}, total


def transfer_sizes(s: Session) -> Outcome:
    """One chunk of 1 MiB, then one of 1 GiB, goes to a neighbouring worker.

    Time of action "transfer" in the task stream, and the ratio of the two; no page is
    touched.  For 1 MiB the median of five transfers is taken.
    """
    small = float(np.median([time_transfer(s, MiB) for _ in range(5)]))
    large = time_transfer(s, GiB)
    return {"small": small, "large": large, "growth": large / small}, None


def scatter(s: Session, born: bool = False) -> Outcome:
    """An array of 512 MiB goes from the client to all four workers, and each sums it.

    Time of ``client.scatter(x, broadcast=True)`` and of the four sums; the same less the time
    of ``dask.tokenize(x)``, taken apart, as scatter hashes the array by default and no
    protocol has a part in that; and the memory that cluster and client have gained, as PSS,
    in sizes of the array: since the cluster was new and idle, less the array itself, so that
    memory kept from an earlier run counts as well.
    """
    allocator: AbstractContextManager[Any] = nullcontext()
    if born:
        import xshm

        allocator = xshm.allocator()
    with allocator:
        x = np.random.default_rng(s.seed).random(s.length(512 * MiB))
    start = time.perf_counter()
    tokenize(x)
    hashing = time.perf_counter() - start
    start = time.perf_counter()
    future = s.client.scatter(x, broadcast=True)
    sums = [s.client.submit(np.sum, future, workers=[w], pure=False) for w in s.workers]
    totals = [task.result(timeout=TIMEOUT) for task in sums]
    seconds = time.perf_counter() - start
    memory = (cluster_pss() - s.idle_pss) / x.nbytes - 1
    shmem = (system_shmem() - s.idle_shmem) / x.nbytes
    assert np.allclose(totals, x.sum())
    measures = {
        "seconds": seconds,
        "unhashed": seconds - hashing,
        "memory": memory,
        "shmem": shmem,
    }
    return measures, totals[0]


def gather(s: Session) -> Outcome:
    """Eight chunks of 128 MiB, on four workers, go to the client: time of ``client.gather``.

    The chunks are not read within that time.
    """
    length = s.length(128 * MiB)
    x = s.random((8 * length,), (length,))
    futures = futures_of(x)
    start = time.perf_counter()
    chunks = s.client.gather(futures)
    seconds = time.perf_counter() - start
    return {"seconds": seconds}, sum(float(chunk[::1000].sum()) for chunk in chunks)


def rechunk(s: Session, method: str) -> Outcome:
    """1.8 GB, 15000 x 15000 float64, from 8 row chunks to 8 column chunks and column sums.

    Time of ``x.rechunk(...).sum(axis=0)`` on a persisted x.
    """
    n = s.side(15000, 8)
    x = s.random((n, n), (n // 8, n))
    with dask.config.set({"array.rechunk.method": method}):
        start = time.perf_counter()
        sums = s.compute(x.rechunk((n, n // 8)).sum(axis=0))
        return {"seconds": time.perf_counter() - start}, sums


def transpose(s: Session) -> Outcome:
    """1.8 GB, 15000 x 15000 float64 in 36 chunks: time of ``(x + x.T).mean()``."""
    n = s.side(15000, 6)
    x = s.random((n, n), (n // 6, n // 6))
    start = time.perf_counter()
    mean = s.compute((x + x.T).mean())
    return {"seconds": time.perf_counter() - start}, mean


def matmul(s: Session) -> Outcome:
    """8192 x 8192 float32 in 16 chunks: time of ``(x @ x).sum()``."""
    n = s.side(8192, 4)
    x = s.random((n, n), (n // 4, n // 4), dtype=np.float32)
    start = time.perf_counter()
    total = s.compute((x @ x).sum())
    return {"seconds": time.perf_counter() - start}, total


def small(s: Session) -> Outcome:
    """Small messages: 1000 tasks without data, and 100 hops of a 10 kB array.

    ``storm`` is the time to submit 1000 tiny tasks one by one and to gather their results.
    ``hops`` is the time of a chain of 100 tasks, each on the other of two workers than the
    one before, whose result of 10 kB it takes.
    """
    start = time.perf_counter()
    results = s.client.gather([s.client.submit(inc, i, pure=False) for i in range(1000)])
    storm = time.perf_counter() - start
    x = delayed(np.zeros)(1250)
    for i in range(100):
        with annotate(workers=[s.workers[i % 2]]):
            x = delayed(inc)(x)
    start = time.perf_counter()
    last = s.compute(x)
    return {"storm": storm, "hops": time.perf_counter() - start}, (sum(results), last)


@dataclass(frozen=True)
class Work:
    """Something to measure, and the protocols on which it says something."""

    run: Callable[[Session], Outcome]
    protocols: tuple[str, ...] = PROTOCOLS

    def description(self) -> str:
        """Docstring of the function, in one line."""
        function = getattr(self.run, "func", self.run)
        return " ".join((function.__doc__ or "").split())


PROCESSES = ("tcp", "shm")
WORKS = {
    "transfer": Work(transfer, PROCESSES),
    "transfer-sizes": Work(transfer_sizes, PROCESSES),
    "scatter": Work(scatter, PROCESSES),
    "scatter-born": Work(partial(scatter, born=True), ("shm",)),
    "gather": Work(gather),
    "rechunk-tasks": Work(partial(rechunk, method="tasks")),
    "rechunk-p2p": Work(partial(rechunk, method="p2p")),
    "transpose": Work(transpose),
    "matmul": Work(matmul),
    "small": Work(small, PROCESSES),
}

#: Works whose samples another work is compared with.
NEEDS = {"scatter-born": ("scatter",), "rechunk-tasks": ("rechunk-p2p",)}


def faster(times: float) -> Target:
    """At least so many times faster than tcp."""
    return Target("faster", times)


def at_most(value: float) -> Target:
    """At most this figure, on shm."""
    return Target("at most", value)


BORN = ("scatter",)
ROWS = [
    Row("256 MiB to a neighbour, pages not touched", "transfer", "transfer", faster(50)),
    Row("256 MiB to a neighbour, and reads it", "transfer", "read"),
    Row("1 MiB to a neighbour, pages not touched", "transfer-sizes", "small"),
    Row("1 GiB to a neighbour, pages not touched", "transfer-sizes", "large"),
    Row("time of 1 GiB / time of 1 MiB", "transfer-sizes", "growth", at_most(3), None, unit="x"),
    Row("512 MiB to all, ordinary array", "scatter", target=faster(8)),
    Row("512 MiB to all, less hashing", "scatter", "unhashed", faster(8)),
    Row("512 MiB to all, extra memory", "scatter", "memory", at_most(1.2), at_most(1.2), unit="x"),
    Row("512 MiB to all, born in shm", "scatter-born", target=faster(8), against=BORN),
    Row(
        "512 MiB to all, born in shm, less hashing",
        "scatter-born",
        "unhashed",
        faster(8),
        against=BORN,
    ),
    Row(
        "512 MiB to all, born in shm, extra memory",
        "scatter-born",
        "memory",
        at_most(1.2),
        at_most(1.2),
        against=BORN,
        unit="x",
    ),
    Row("gather 1 GiB", "gather", target=faster(5)),
    Row(
        "rechunk 1.8 GB, tasks, against tcp's better method",
        "rechunk-tasks",
        target=faster(2),
        against=("rechunk-tasks", "rechunk-p2p"),
    ),
    Row("rechunk 1.8 GB, p2p", "rechunk-p2p", target=faster(1)),
    Row("(x + x.T).mean(), 1.8 GB", "transpose", target=faster(1.2)),
    Row("(x @ x).sum(), 8192^2 float32", "matmul", target=faster(1.15)),
    Row("1000 tiny tasks", "small", "storm", faster(1)),
    Row("100 hops of 10 kB", "small", "hops", faster(1)),
]


def same(a: Any, b: Any) -> bool:
    """Whether two results, or tuples of results, agree up to rounding."""
    if isinstance(a, tuple):
        return all(same(x, y) for x, y in zip(a, b, strict=True))
    return a is b is None or bool(np.allclose(a, b, rtol=1e-4))


def measure_round(
    results: Results,
    number: int,
    names: list[str],
    protocols: list[str],
    warm: int,
    scale: float,
) -> None:
    """Run each work once on new clusters, the protocols directly one after the other.

    Parameters
    ----------
    results : Results
        Takes the samples and the failures.
    number : int
        Of the round.  Every other round takes the protocols backwards, so that none is
        always the one after.
    names, protocols : list of str
    warm : int
        Runs after the first.
    scale : float
    """
    order = protocols if number % 2 == 0 else protocols[::-1]
    for name in names:
        work = WORKS[name]
        expected: dict[int, Any] = {}
        for protocol in order:
            if protocol not in work.protocols or (name, protocol) in results.failures:
                continue
            began = time.perf_counter()
            try:
                with session(protocol, scale) as s:
                    for run in range(warm + 1):
                        s.seed = 1000 * number + run
                        measures, result = work.run(s)
                        if not same(result, expected.setdefault(run, result)):
                            raise AssertionError("result differs between protocols")
                        phase: Phase = "warm" if run else "first"
                        results.samples.append(Sample(name, protocol, number, phase, measures))
                        del result
                        s.wait_released()
            except Exception as error:
                traceback.print_exc()
                results.failures[name, protocol] = f"{type(error).__name__}: {error}"
            seconds = time.perf_counter() - began
            line = f"round {number + 1}: {name} on {protocol}, {seconds:.1f} s"
            print(line, file=sys.stderr, flush=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    add = parser.add_argument
    add("--repeats", type=int, default=5, metavar="N", help="rounds, each on new clusters")
    add("--warm", type=int, default=1, metavar="N", help="warm runs per round, after the first")
    add("--scale", type=float, default=1.0, metavar="F", help="share of the bytes; 1 is judged")
    add("--only", nargs="+", choices=WORKS, metavar="NAME", help=f"of {', '.join(WORKS)}")
    add("--protocols", nargs="+", choices=PROTOCOLS, default=list(PROTOCOLS))
    add("--json", default="exchange.json", metavar="FILE", help="where to write all samples")


def run(args: argparse.Namespace) -> int:
    """Measure, print the tables, write the JSON."""
    began = time.perf_counter()
    protocols: list[str] = [name for name in PROTOCOLS if name in args.protocols]
    if "shm" in protocols and importlib.util.find_spec("xshm") is None:
        print("xshm is not installed: shm is left out", file=sys.stderr)
        protocols.remove("shm")
    asked = args.only or list(WORKS)
    wanted = {*asked, *(other for name in asked for other in NEEDS.get(name, ()))}
    names = [name for name in WORKS if name in wanted]
    rows = [row for row in ROWS if row.work in names]
    judge = args.scale == 1 and "shm" in protocols
    description = machine()
    results = Results()
    rounds = 0
    try:
        for number in range(args.repeats):
            measure_round(results, number, names, protocols, args.warm, args.scale)
            rounds += 1
            seconds = time.perf_counter() - began
            settings = {k: v for k, v in vars(args).items() if k != "run"}
            settings |= {"rounds": rounds, "seconds": seconds}
            write_json(args.json, results, rows, protocols, description, settings, judge)
    except KeyboardInterrupt:
        print("interrupted: this is what there is", file=sys.stderr)

    print(machine_text(description))
    print(
        f"Four workers of one thread.  {rounds} rounds, each with a new cluster for every "
        f"work and protocol,\na first run and {args.warm} warm, the input made anew for each.  "
        "Median [lowest..highest] over the runs;\nratios are taken within a round."
    )
    if args.scale != 1:
        print(f"Sizes are scaled by {args.scale:g}: the names give the full ones.")
    print("\nWhat is measured:\n")
    for doc, group in groupby(names, key=lambda name: WORKS[name].description()):
        print(f"- {', '.join(group)}: {doc}")
    print("\nWarm runs:\n")
    print(table(results, rows, protocols, "warm", judge))
    print("\nFirst run on a new cluster, cold pages:\n")
    print(table(results, rows, protocols, "first", judge))
    print(f"\nTook {time.perf_counter() - began:.0f} s; all samples are in {args.json}.")
    return 1 if results.failures else 0
