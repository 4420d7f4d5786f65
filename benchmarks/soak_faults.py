"""What a soak does to its cluster while it works: kill, stop, disconnect, fill, take memory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from distributed import Client, LocalCluster, Nanny, Status, Worker

#: Bytes that are left of the room in a directory that is filled.
LEFT = 8 * 2**20

#: Seconds after which something that was to end has not.
TIMEOUT = 60


class Faults:
    """Does harm to a cluster at random moments, in a thread of its own.

    Parameters
    ----------
    cluster : distributed.LocalCluster
        Its worker 0 is spared what would end it, so that it can be seen how it grows.
    client : distributed.Client
    room : Path, optional
        A tmpfs to fill; by default none is.
    seed : int
    pause : float
        Seconds between two faults, on average.

    Attributes
    ----------
    done : Counter of str
        How often each was done.
    failures : list of str
        What went wrong with them.
    """

    def __init__(
        self, cluster: LocalCluster, client: Client, room: Path | None, seed: int, pause: float
    ) -> None:
        self._cluster, self._client, self._room = cluster, client, room
        self._rng = np.random.default_rng(seed)
        self._pause = pause
        self._kinds = {
            self.kill: 0.55,
            self.stop: 0.1,
            self.disconnect: 0.12,
            self.exceed: 0.08,
            self.visit: 0.07,
            **({self.fill: 0.08} if room else {}),
        }
        self.done: Counter[str] = Counter()
        self.failures: list[str] = []

    @contextlib.contextmanager
    def happening(self) -> Iterator[None]:
        """Faults happen while the block runs."""
        over = threading.Event()

        def happen() -> None:
            weights = np.array(list(self._kinds.values()))
            while not over.wait(self._rng.exponential(self._pause)):
                kinds = list(self._kinds)
                kinds[self._rng.choice(len(kinds), p=weights / weights.sum())]()

        thread = threading.Thread(target=happen, name="faults")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _victim(self, to_end: bool = True) -> Nanny | None:
        """A worker that runs; one that may be ended, if it is to be."""
        running = [
            nanny
            for name, nanny in self._cluster.workers.items()
            if not (to_end and name == 0)
            and nanny.status == Status.running
            and nanny.worker_address in self._cluster.scheduler.workers
        ]
        return self._rng.choice(np.array(running, dtype=object)) if running else None

    def kill(self) -> None:
        """SIGKILL to a worker."""
        nanny = self._victim()
        if nanny is not None and nanny.pid is not None:
            _send(signal.SIGKILL, nanny.pid)
            self.done["workers killed"] += 1

    def stop(self) -> None:
        """A worker does nothing for a while, wherever it is."""
        nanny = self._victim(to_end=False)
        if nanny is not None and (pid := nanny.pid) is not None:
            _send(signal.SIGSTOP, pid)
            time.sleep(self._rng.uniform(0.2, 3))
            _send(signal.SIGCONT, pid)
            self.done["workers stopped for a while"] += 1

    def disconnect(self) -> None:
        """Connections between workers are aborted while something goes over them."""
        nanny = self._victim(to_end=False)
        if nanny is not None:
            address = nanny.worker_address
            aborted = self._client.run(_abort_transfers, workers=[address], on_error="ignore")
            self.done["connections aborted"] += sum(aborted.values())

    def exceed(self) -> None:
        """A worker takes more memory than it may, for its nanny to end it."""
        nanny = self._victim()
        if nanny is None:
            return
        pid, how = nanny.pid, self._rng.choice(["array", "bytes"])
        limit = nanny.memory_manager.memory_limit
        task = self._client.submit(
            _take, how, 2 * limit, workers=[nanny.worker_address], pure=False
        )
        end = time.monotonic() + TIMEOUT
        while nanny.pid == pid and time.monotonic() < end:
            time.sleep(0.1)
        if nanny.pid == pid:
            self.failures.append(f"a worker that took {2 * limit} bytes was not ended")
        task.cancel()
        self.done["workers ended for their memory"] += 1

    def visit(self) -> None:
        """Another client is killed while it scatters and gathers."""
        command = "import sys; from benchmarks.soak_graphs import visit; visit(sys.argv[1])"
        address = self._cluster.scheduler_address
        with subprocess.Popen(
            [sys.executable, "-c", command, address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as visitor:
            assert visitor.stdout is not None
            visitor.stdout.readline()
            time.sleep(self._rng.uniform(0, 1))
            visitor.kill()
            _, errors = visitor.communicate()
        if visitor.returncode == -signal.SIGKILL:
            self.done["clients killed"] += 1
        else:
            self.failures.append(f"another client ended by itself: {errors}")

    def fill(self) -> None:
        """A file takes nearly all room in the directory, while a worker is killed or not."""
        assert self._room is not None
        file = self._room / "filled"
        with file.open("wb") as opened:
            free = os.statvfs(self._room)
            with contextlib.suppress(OSError):  # others were faster: it is full as well
                room = free.f_bavail * free.f_frsize
                os.posix_fallocate(opened.fileno(), 0, max(room - LEFT, 1))
        time.sleep(self._rng.uniform(0.5, 3))
        if self._rng.integers(2):
            self.kill()
            time.sleep(2)
        file.unlink()
        self.done["directory filled and emptied"] += 1


def _send(number: signal.Signals, pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has just ended, by its nanny say
        os.kill(pid, number)


async def _abort_transfers(dask_worker: Worker) -> int:
    """Abort what this worker fetches, and what others fetch from it, as soon as there is any."""
    for _ in range(1000):
        fetched = [comm for comms in dask_worker.rpc.occupied.values() for comm in comms]
        given = [comm for comm, op in dask_worker._comms.items() if op == "get_data"]
        if fetched or given:
            for comm in (*fetched, *given):
                comm.abort()
            return len(fetched) + len(given)
        await asyncio.sleep(0.001)
    return 0


def _take(how: str, nbytes: int) -> int:
    taken = np.ones(nbytes // 8) if how == "array" else b"1" * nbytes
    time.sleep(TIMEOUT)
    return len(taken)
