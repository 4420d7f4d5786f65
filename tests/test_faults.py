"""Clusters in trouble: what goes wrong may delay a result, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import dask
import numpy as np
import psutil
import pytest
from dask.distributed import Client, Future, Nanny, Scheduler, Worker, as_completed, wait

import xshm
from tests.clusters import assert_nothing_held, cluster, total, workers_of
from tests.conftest import files_in, wait_until
from xshm import janitor, process

CHUNKS, ROUNDS = 32, 8
LENGTH = 2**18  # of float64: a chunk of 2 MiB


@pytest.fixture
def client() -> Iterator[Client]:
    """Two workers that do not wait long for one that has gone (dask's default is 30 s)."""
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "5s"}),
        cluster(dashboard_address=":0") as client,
    ):
        yield client


class Exchange:
    """Chunks that go to and fro between two workers, and grow by 1 each time: 512 MiB."""

    def __init__(self, client: Client) -> None:
        self.client = client
        workers = workers_of(client)[:2]
        self.totals: list[Future] = []
        for i in range(CHUNKS):
            here, there = workers[i % 2], workers[(i + 1) % 2]
            x = self._submit(here, np.full, LENGTH, float(i))
            for _ in range(ROUNDS):
                here, there = there, here
                x = self._submit(here, np.add, x, 1.0)
            self.totals.append(self._submit(here, np.sum, x))

    def _submit(self, worker: str, function: Callable[..., object], *arguments: object) -> Future:
        return self.client.submit(
            function, *arguments, workers=[worker], allow_other_workers=True, pure=False
        )

    def wait_until_under_way(self) -> None:
        next(as_completed(self.totals))
        assert not all(future.done() for future in self.totals)

    def assert_right(self) -> None:
        expected = [LENGTH * (i + ROUNDS) for i in range(CHUNKS)]
        assert self.client.gather(self.totals) == expected


@contextlib.contextmanager
def again_and_again(action: Callable[[], object], pause: float = 0.01) -> Iterator[None]:
    """Do something all the time while a block runs."""
    end = threading.Event()

    def repeat() -> None:
        while not end.wait(pause):
            action()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


# ---- what others do to files ----


@pytest.mark.slow
def test_lost_tokens(client: Client, directory: Path) -> None:
    lost: list[Path] = []

    def lose_one() -> None:
        for token in directory.glob("xshm-*/segments/*.token"):
            with contextlib.suppress(FileNotFoundError):  # taken meanwhile
                token.unlink()
                lost.append(token)
                return

    with again_and_again(lose_one, pause=0.001):
        for _ in range(30):  # a token is there for about a millisecond
            Exchange(client).assert_right()
            if len(lost) >= 3:
                break
    assert lost


def test_directory_removed(client: Client, directory: Path) -> None:
    exchange = Exchange(client)
    exchange.wait_until_under_way()
    while list(directory.iterdir()):  # others add to it meanwhile
        shutil.rmtree(directory / f"xshm-{os.geteuid()}", ignore_errors=True)
    exchange.assert_right()
    Exchange(client).assert_right()
    assert total(client, "bytes_sent_inline") > 0
    # Who cannot hand over sends bytes: no error came out of it.
    assert "_hand_over" not in str(client.get_worker_logs())


# ---- what happens to processes and connections ----


def test_worker_killed(client: Client) -> None:
    exchange = Exchange(client)
    before = set(client.run(os.getpid).values())
    exchange.wait_until_under_way()
    os.kill(min(before), signal.SIGKILL)
    exchange.assert_right()
    wait_until(lambda: len(client.run(os.getpid)) == 2, "the nanny starts another worker")
    assert set(client.run(os.getpid).values()) != before
    Exchange(client).assert_right()


def test_worker_stopped_for_a_while(client: Client) -> None:
    exchange = Exchange(client)
    pid = min(client.run(os.getpid).values())
    exchange.wait_until_under_way()
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(TimeoutError):
            wait(exchange.totals, timeout=1)
    finally:
        os.kill(pid, signal.SIGCONT)
    exchange.assert_right()


def test_connections_aborted(client: Client) -> None:
    exchange = Exchange(client)
    aborted = 0
    while aborted < 10:
        exchange.wait_until_under_way()
        aborted += sum(client.run(_abort_transfers).values())
    exchange.assert_right()


def _abort_transfers(dask_worker: Worker) -> int:
    transfers = [comm for comms in dask_worker.rpc.occupied.values() for comm in comms]
    for comm in transfers:
        comm.abort()
    return len(transfers)


def test_client_killed_while_it_gathers(client: Client, directory: Path) -> None:
    address = client.scheduler.address
    with script(gather_for_ever, address) as gathering:
        assert total(client, "live_segments") + total(client, "leased_segments") > 0
        gathering.kill()
    Exchange(client).assert_right()
    janitor.clean(process.current().directory)  # as the next process does that comes or goes
    assert_nothing_held(client, directory)
    living = len(files_in(directory / f"xshm-{os.geteuid()}" / "processes"))
    assert living == len(workers_of(client)) + 1


def gather_for_ever(address: str) -> None:
    """A client with scattered data, and with leases."""
    with Client(address) as client:
        scattered = client.scatter([np.ones(LENGTH)] * 2, hash=False)
        chunks = client.map(np.full, [LENGTH] * 10, range(10))
        while True:
            kept = client.gather([*scattered, *chunks])
            print("gathered", len(kept), flush=True)


@pytest.mark.slow
def test_scheduler_killed(directory: Path, tmp_path: Path) -> None:
    """As on tcp: workers and nannies end by themselves."""
    file = str(tmp_path / "scheduler")
    with (
        script(schedule, file) as scheduling,
        script(work_for_scheduler, file) as one,
        script(work_for_scheduler, file) as other,
        Client(scheduler_file=file) as client,
    ):
        client.wait_for_workers(2)
        exchange = Exchange(client)
        exchange.wait_until_under_way()
        scheduling.kill()
        assert [one.wait(30), other.wait(30)] == [0, 0]
        with pytest.raises(CancelledError):
            exchange.assert_right()
        del exchange
    with dask.config.set({"xshm.grace": "0s"}):
        me = process.current()  # the next process that starts
    assert files_in(directory) == [str(me.directory.processes.relative_to(directory) / me.id)]


def schedule(file: str) -> None:
    async def run() -> None:
        async with Scheduler(protocol="shm", port=0, scheduler_file=file, dashboard=False):
            print("ready", flush=True)
            await asyncio.Event().wait()

    asyncio.run(run())


def work_for_scheduler(file: str) -> None:
    async def run() -> None:
        async with Nanny(scheduler_file=file, nthreads=1, dashboard=False) as nanny:
            print("ready", flush=True)
            await nanny.finished()

    asyncio.run(run())


# ---- what users do to clusters ----


@pytest.mark.slow
def test_restart(client: Client) -> None:
    exchange = Exchange(client)
    exchange.wait_until_under_way()
    client.restart()
    Exchange(client).assert_right()


@pytest.mark.slow
def test_scaled_down_and_up_while_working(client: Client) -> None:
    exchange = Exchange(client)
    exchange.wait_until_under_way()
    client.cluster.scale(1)
    wait_until(lambda: len(workers_of(client)) == 1, "one worker left")
    client.cluster.scale(3)
    exchange.assert_right()
    client.wait_for_workers(3)
    Exchange(client).assert_right()


def test_closed_while_working(directory: Path) -> None:
    with cluster(dashboard_address=":0") as client:
        Exchange(client).wait_until_under_way()
    assert files_in(directory) == []


# ---- how scripts end ----


@pytest.mark.parametrize(
    ("ending", "status"),
    [("exception", 1), ("exit", 3), ("interrupt", -signal.SIGINT), ("handled SIGTERM", 4)],
)
def test_script_ends(directory: Path, ending: str, status: int) -> None:
    with script(work_until_the_end, ending) as working:
        match ending:
            case "interrupt":
                working.send_signal(signal.SIGINT)
            case "handled SIGTERM":
                working.terminate()
        errors = working.communicate(timeout=30)[1]
        assert working.returncode == status
    assert files_in(directory) == []
    assert errors.count("Traceback") < 30  # dask's own: a few, for what it was doing
    assert "resource_tracker" not in errors
    assert "Exception ignored" not in errors


@pytest.mark.parametrize("whom", ["all processes", "the script"])
def test_killed_script(directory: Path, whom: str) -> None:
    with script(work_until_the_end, "kill") as working:
        if whom == "all processes":
            working.send_signal(signal.SIGSTOP)  # so that it starts no other
            for child in psutil.Process(working.pid).children(recursive=True):
                if "resource_tracker" not in str(child.cmdline()):  # Python's own
                    child.kill()
        working.kill()  # otherwise its workers find out by themselves, and end
        files = list(directory.glob("xshm-*/processes/*"))
        wait_until(lambda: not any(map(_is_locked, files)), "all processes are dead")
    assert any(name.endswith(".segment") for name in files_in(directory))
    with dask.config.set({"xshm.grace": "0s"}):
        me = process.current()  # the next process that starts
    assert files_in(directory) == [str(me.directory.processes.relative_to(directory) / me.id)]


def _is_locked(file: Path) -> bool:
    """Whether its process lives, as others of xshm find out."""
    try:
        with file.open("r+") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:  # it has left in order
        return False
    return False


def work_until_the_end(ending: str) -> None:
    """A script that uses all of xshm, and ends in one way or another."""
    xshm.enable()
    mine = np.ones(LENGTH)
    assert xshm.is_shared(mine)
    if ending == "handled SIGTERM":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(4))
    with cluster(dashboard_address=":0") as client:
        exchanges = [Exchange(client) for _ in range(3)]
        exchanges[0].wait_until_under_way()
        print("under way", flush=True)
        match ending:
            case "exception":
                raise ValueError("the script's own")
            case "exit":
                sys.exit(3)
        threading.Event().wait()


@contextlib.contextmanager
def script(function: Callable[[str], None], argument: str) -> Iterator[subprocess.Popen[str]]:
    """Call a function of this module in a process of its own.

    The block starts when it prints something.
    """
    command = f"import {__name__} as tests; tests.{function.__name__}({argument!r})"
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", command],
        stdout=pipe,
        stderr=pipe,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() != "", process.communicate()[1]
            yield process
        finally:
            process.kill()  # if it is still there; its workers follow by themselves
