"""Run mixed graphs for a while on a cluster that is being harmed, and compare each result.

Workers are killed, stopped and disconnected at random moments, others take more memory than they
may, clients are killed, and the directory is filled and emptied.  What dask answers to that over
tcp too (a task that is given up, say) is counted, and its graph run again; all else is a failure.
Each minute the cluster comes to rest, and what its processes hold then is noted.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import logging
import os
import secrets
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import dask
import numpy as np
from dask.utils import parse_bytes
from distributed import Client, KilledWorker, LocalCluster, Scheduler, Worker, wait
from distributed.comm import CommClosedError
from distributed.shuffle._exceptions import P2PConsistencyError

import xshm
from xshm import directory, janitor, process

from .cluster import workers_of
from .fresh import own_directory
from .soak_faults import Faults
from .soak_forgetting import (
    ENVIRONMENT,
    EXTENSIONS,
    SETTINGS,
    clear_caches,
    close_idle_connections,
    forget_ended,
    forget_errors,
)
from .soak_graphs import GRAPHS, LostActorError, ask_others
from .soak_growth import Held, Sample, files_in, grown, table

#: What dask raises over tcp too when its workers are killed.
OF_DASK = (KilledWorker, CancelledError, CommClosedError, P2PConsistencyError, LostActorError)

#: How often a graph is tried again.
TRIES = 10

#: Seconds in which a cluster must have come to rest.
REST = 60

#: How many graphs run at once.
STREAMS = 3

#: Failures after which it ends.
MANY = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    parser.add_argument("--minutes", type=float, default=10, help="default 10")
    parser.add_argument("--protocol", choices=("shm", "tcp"), default="shm")
    parser.add_argument("--workers", type=int, default=4, help="default 4, of 2 threads each")
    parser.add_argument("--memory-limit", type=parse_bytes, default="512MiB", help="of a worker")
    parser.add_argument("--room", type=parse_bytes, default="2GiB", help="in the directory")
    parser.add_argument("--pause", type=float, default=2, help="seconds between faults; default 2")
    parser.add_argument("--graphs", nargs="+", choices=GRAPHS, default=list(GRAPHS))
    parser.add_argument("--seed", type=int, help="by default a random one")
    parser.add_argument("--mounts", choices=("yes", "no"), help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Run graphs and faults, and print what was survived."""
    if args.mounts is None:
        unshare = _unshare()
        mounts = ["--mounts", "yes" if unshare else "no"]
        command = [*unshare, sys.executable, "-m", "benchmarks", *sys.argv[1:], *mounts]
        os.environ.update(ENVIRONMENT)
        os.execvp(command[0], command)  # whoever ends this process ends the soak
    with (
        own_directory() as place,
        _tmpfs(place, args.room) if args.mounts == "yes" else nullcontext() as room,
        TemporaryDirectory(prefix="xshm-soak-") as scratch,
        dask.config.set({**SETTINGS, "temporary-directory": scratch}),
    ):
        soak = Soak(args, place, room)
        soak.run()
        process.close()
        left = [file for file in files_in(place) if file.parent.parent != place]
        soak.failures += [f"left in the directory: {file}" for file in left]
    print(soak.report())
    return 1 if soak.failures else 0


def _unshare() -> tuple[str, ...]:
    """The start of a command that runs in a namespace where it may mount, if there is one."""
    for command in ("unshare", "--mount"), ("unshare", "--mount", "--user", "--map-root-user"):
        with suppress(FileNotFoundError):
            mounted = [*command, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
            if subprocess.run(mounted, capture_output=True).returncode == 0:
                return command
    return ()


@contextmanager
def _tmpfs(place: Path, size: int) -> Iterator[Path]:
    options = f"size={size},mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        # Mappings of this process keep it busy.
        subprocess.run(["umount", "--lazy", str(place)], check=True)


class Soak:
    """A cluster that works and is harmed, and what came of it.

    Parameters
    ----------
    args : argparse.Namespace
    place : Path
        The directory.
    room : Path, optional
        The directory again, if it may be filled.

    Attributes
    ----------
    right, again : Counter of str
        Graphs whose result was right, by name; those tried again, by dask's error.
    failures : list of str
    samples : list of Sample
    """

    def __init__(self, args: argparse.Namespace, place: Path, room: Path | None) -> None:
        self._args, self._place, self._room = args, place, room
        self._seed = secrets.randbits(32) if args.seed is None else args.seed
        self.right: Counter[str] = Counter()
        self.again: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.failures: list[str] = []
        self.samples: list[Sample] = []

    def run(self) -> None:
        """Soak for as long as was asked for."""
        args = self._args
        with (
            LocalCluster(
                protocol=args.protocol,
                n_workers=args.workers,
                threads_per_worker=2,
                memory_limit=args.memory_limit,
                dashboard_address=":0",
                silence_logs=logging.CRITICAL,
                scheduler_kwargs={"extensions": EXTENSIONS},
                extensions={},
            ) as cluster,
            Client(cluster) as client,
            ThreadPoolExecutor(STREAMS) as pool,
        ):
            client.wait_for_workers(args.workers)
            faults = Faults(cluster, client, self._room, self._seed, args.pause)
            spared = cluster.workers[0].pid
            streams = [np.random.default_rng([self._seed, number]) for number in range(STREAMS)]
            start = time.monotonic()
            end = start + 60 * args.minutes
            while (now := time.monotonic()) < end and len(self.failures) < MANY:
                until = min(now + 60, end)
                # A client of its own: dask keeps what a scatter that failed had sent already.
                with Client(cluster) as working, faults.happening():
                    list(pool.map(functools.partial(self._work, working, until), streams))
                self._come_to_rest(client)
                self._have_clients(client)
                self._come_to_rest(client)
                if cluster.workers[0].pid != spared:
                    self.failures.append("the worker that is spared has ended")
                    break
                self._take_sample(time.monotonic() - start, spared)
            self.faults = faults.done
            self.failures += faults.failures
        if args.minutes > 4:
            self.failures += grown(self.samples)

    def _work(self, client: Client, until: float, rng: np.random.Generator) -> None:
        """Run one graph after the other."""
        while time.monotonic() < until and len(self.failures) < MANY:
            self._run_graph(client, rng, str(rng.choice(self._args.graphs)))

    def _run_graph(self, client: Client, rng: np.random.Generator, name: str) -> None:
        for _ in range(TRIES):
            try:
                GRAPHS[name](client, rng)
            except OF_DASK as error:
                self.again[f"{name}: {type(error).__name__}"] += 1
            except Exception:  # anything else, whatever it is, is what a soak looks for
                self.failures.append(f"{name}: {traceback.format_exc()}")
                return
            else:
                self.right[name] += 1
                return
        self.failures.append(f"{name}: given up after {TRIES} times")

    def _come_to_rest(self, client: Client) -> None:
        """Wait until all workers are there, and nobody holds an array."""
        end = time.monotonic() + REST
        while held := self._held(client):
            if time.monotonic() > end:
                self.failures.append(f"did not come to rest: {held}")
                return
            time.sleep(0.2)
        time.sleep(2)  # connections are closed at both ends by then, and heartbeats have theirs

    def _have_clients(self, client: Client) -> None:
        """Each worker has a client of its own then, not only those that some graph gave one."""
        workers = workers_of(client)
        asked = [client.submit(ask_others, 1, workers=[one], pure=False) for one in workers]
        with suppress(TimeoutError):  # it did not come to rest, which has been told
            wait(asked, timeout=REST)

    def _held(self, client: Client) -> list[str]:
        janitor.clean(directory.configured())  # what killed clients left
        client.run_on_scheduler(forget_ended)
        client.run(close_idle_connections, on_error="ignore")
        workers = client.run(_rest, on_error="ignore")
        found = [f"{address}: {held}" for address, held in workers.items() if any(held)]
        # In the thread of the event loop: nothing can fail meanwhile, and be suspended again.
        here = client.run_on_scheduler(_rest)
        return [
            *([f"{len(workers)} workers"] if len(workers) != self._args.workers else []),
            *([f"here: {here}"] if any(here) else []),
            *found,
            *(file.name for file in files_in(self._place) if file.suffix == ".token"),
        ]

    def _take_sample(self, seconds: float, spared: int) -> None:
        files = files_in(self._place)
        nbytes = sum(file.lstat().st_blocks * 512 for file in files)
        processes = {"this process": Held.by(os.getpid()), "worker 0": Held.by(spared)}
        self.samples.append(Sample(seconds, processes, len(files), nbytes))
        done = f"{self.right.total()} graphs, {len(self.failures)} failures"
        print(f"after {seconds:.0f} s: {done}", file=sys.stderr, flush=True)

    def report(self) -> str:
        """What was survived, in Markdown."""
        survived = {
            "graphs with the right result": self.right.total(),
            "graphs tried again for an error of dask's": self.again.total(),
            **dict(sorted(self.faults.items())),
        }
        lines = [f"Over {self._args.protocol}, seed {self._seed}:", "", "| what | times |"]
        lines += ["| --- | ---: |", *(f"| {what} | {times} |" for what, times in survived.items())]
        lines += ["", table(self.samples), ""]
        lines += [f"right: {dict(self.right)}", f"again: {dict(self.again)}", ""]
        lines += [f"FAILED: {failure}" for failure in self.failures] or ["Nothing failed."]
        return "\n".join(lines)


def _rest(dask_worker: Worker | Scheduler) -> tuple[int, int, int]:
    """Keys, segments in use and leases of this process, which keeps nothing for the next arrays."""
    forget_errors()
    clear_caches()
    xshm.trim()
    ctypes.CDLL(None).malloc_trim(0)  # otherwise the heap is as large as it ever was
    told = xshm.stats()
    keys = len(dask_worker.data) if isinstance(dask_worker, Worker) else 0
    return keys, told["live_segments"], told["leased_segments"]
