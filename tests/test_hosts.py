"""Clusters of several hosts: neighbours exchange handles, all others bytes.

The hosts are namespaces that only a cable connects (see :mod:`tests.namespaces`). What runs on
them are the commands that users start there.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from subprocess import Popen

import dask
import dask.array as da
import numpy as np
from dask.distributed import Client, wait

import xshm
from tests.clusters import cluster, workers_of
from tests.conftest import wait_until
from tests.namespaces import (
    Host,
    host,
    make_switch,
    needs_hosts,
    needs_namespaces,
    run_in_namespace,
    running,
)

LENGTH = 1_000_000  # of float64: 8 MB
HERE, FIRST, SECOND = "10.99.0.3", "10.99.0.1", "10.99.0.2"


# ---- the tests ----


@needs_hosts
def test_neighbours_exchange_handles_and_others_bytes(directory: Path) -> None:
    run_in_namespace(work_on_two_hosts, directory)


@needs_hosts
def test_a_worker_dies_and_then_a_host_and_the_others_go_on(directory: Path) -> None:
    run_in_namespace(lose_a_worker_and_a_host, directory)


@needs_hosts
def test_containers_that_share_a_volume_exchange_handles(directory: Path) -> None:
    run_in_namespace(exchange_between_containers)


@needs_namespaces
def test_equal_addresses_but_different_directories(directory: Path) -> None:
    run_in_namespace(exchange_between_mounts, directory)


def test_workers_share_memory_under_a_scheduler_of_tcp() -> None:
    """As the workers of dask-kubernetes do, which tells them an address of that scheme."""
    with cluster(n_workers=0, protocol="tcp", host="127.0.0.1") as client:
        two = "--nworkers=2", "--nthreads=1", "--no-dashboard", "--protocol=shm"
        with _dask("worker", client.scheduler.address, *two) as command:
            client.wait_for_workers(2, timeout=60)
            _assert_handles_go(client, lambda sender, receiver: True)
            field = np.random.default_rng(1).random(LENGTH)
            everywhere = client.scatter(field, broadcast=True)
            np.testing.assert_array_equal(client.gather(everywhere), field)
            np.testing.assert_array_equal(client.gather(everywhere, direct=True), field)
            client.cluster.close()  # Client.shutdown would leave itself in dask's configuration
            assert command.wait(60) == 0


# ---- what runs in the namespace ----


def work_on_two_hosts(directory: str) -> None:
    """The scheduler is on the second host, the client on a third."""
    with _two_hosts(directory) as hosts, _cluster_of(hosts, SECOND) as (client, commands):
        _assert_handles_go(client, _neighbours)
        _assert_results_are_right(client)
        _shut_down(client, *commands)
        for there in hosts:
            assert there.run("find", directory, "-type", "f") == ""


def lose_a_worker_and_a_host(directory: str) -> None:
    """The scheduler is on the first host, the client on a third; what is lost is on the second."""
    with (
        _two_hosts(directory) as (first, second),
        _cluster_of((first, second), FIRST) as (client, _),
    ):
        on_first, _, neighbour, victim = workers_of(client)
        kept = client.submit(np.full, LENGTH, 7.0, workers=[neighbour])
        lost = client.submit(np.full, LENGTH, 8.0, workers=[victim], allow_other_workers=True)
        wait([kept, lost])
        pid = client.run(os.getpid, workers=[victim])[victim]
        second.run("kill", "-9", str(pid))
        sums = [client.submit(np.sum, x, workers=[on_first]) for x in (kept, lost)]
        assert client.gather(sums) == [7.0 * LENGTH, 8.0 * LENGTH]
        client.wait_for_workers(4, timeout=60)  # its nanny has started another
        _assert_handles_go(client, _neighbours)

        results = client.map(np.full, [LENGTH] * 8, range(8))
        wait(results)
        second.power.kill()
        wait_until(lambda: len(workers_of(client)) == 2, "the host is missed", 60)
        assert client.gather(client.map(np.sum, results)) == [LENGTH * i for i in range(8)]
        _assert_handles_go(client, _neighbours)


def exchange_between_containers() -> None:
    """Two containers have different addresses and pids, and mount the same volume."""
    make_switch(HERE)
    with host(FIRST) as one, host(SECOND) as other, cluster(n_workers=0, host=HERE) as client:
        options = "--no-nanny", "--no-dashboard"
        address = client.scheduler.address
        with (
            _dask("worker", address, *options, where=one.command) as first,
            _dask("worker", address, *options, where=other.command) as second,
        ):
            client.wait_for_workers(2, timeout=60)
            assert not _neighbours(*workers_of(client))
            _assert_handles_go(client, lambda sender, receiver: True)
            _shut_down(client, first, second)


def exchange_between_mounts(directory: str) -> None:
    """All addresses are 127.0.0.1, and one worker has a directory that the other does not see."""
    mount = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs "$0" && exec "$@"', directory)
    with cluster(n_workers=0, host="127.0.0.1") as client:
        options = "--host=127.0.0.1", "--no-nanny", "--no-dashboard"
        address = client.scheduler.address
        with _dask("worker", address, *options), _dask("worker", address, *options, where=mount):
            client.wait_for_workers(2, timeout=60)
            _assert_handles_go(client, lambda sender, receiver: False)


# ---- hosts and the commands on them ----


@contextlib.contextmanager
def _two_hosts(directory: str) -> Iterator[tuple[Host, Host]]:
    """Each with a directory of its own, and a third for the process that calls."""
    make_switch(HERE)
    own = f"mount -t tmpfs tmpfs /dev/shm && mkdir -m 700 {directory}"
    with host(FIRST, own) as first, host(SECOND, own) as second:
        yield first, second


@contextlib.contextmanager
def _cluster_of(hosts: Sequence[Host], scheduler: str) -> Iterator[tuple[Client, list[Popen[str]]]]:
    """Two workers on each host, and the commands that run there."""
    address = f"shm://{scheduler}:8786"
    (on,) = (there for there in hosts if there.address == scheduler)
    with contextlib.ExitStack() as stack:
        start = _dask("scheduler", "--protocol=shm", "--no-dashboard", where=on.command)
        commands = [stack.enter_context(start)]
        for there in hosts:
            two = "--nworkers=2", "--nthreads=1", "--no-dashboard"
            join = _dask("worker", address, *two, where=there.command)
            commands.append(stack.enter_context(join))
        client = stack.enter_context(Client(address, timeout=60))
        client.wait_for_workers(4, timeout=60)
        yield client, commands


def _dask(
    *arguments: str, where: Sequence[str] = ()
) -> contextlib.AbstractContextManager[Popen[str]]:
    return running([*where, sys.executable, "-m", "dask", *arguments])


def _shut_down(client: Client, *commands: Popen[str]) -> None:
    """Scheduler and workers end in good order, which leaves no file.

    Notes
    -----
    A signal would not reach those on other hosts: it ends what waits for them on this one.
    """
    client.shutdown()
    for command in commands:
        assert command.wait(60) == 0


def _neighbours(worker: str, other: str) -> bool:
    return worker.rpartition(":")[0] == other.rpartition(":")[0]


# ---- what must be so ----


def _assert_handles_go(client: Client, where: Callable[[str, str], bool]) -> None:
    """Let each worker fetch from each other one: by handle `where` it is to, otherwise as bytes."""
    for sender, receiver in itertools.permutations(workers_of(client), 2):
        expected = (8 * LENGTH, 0) if where(sender, receiver) else (0, 8 * LENGTH)
        sent = _sent(client, sender, receiver)
        assert sent == expected, f"{sender} to {receiver}: {sent}, not {expected}"


_values = itertools.count()


def _sent(client: Client, sender: str, receiver: str) -> tuple[int, int]:
    """Bytes that a worker sends another as handles, and as such."""

    def so_far() -> np.ndarray:
        told = client.run(xshm.stats, workers=[sender])[sender]
        return np.array([told["bytes_sent_by_handle"], told["bytes_sent_inline"]])

    value = next(_values)
    x = client.submit(np.full, LENGTH, float(value), workers=[sender], pure=False)
    wait(x)
    before = so_far()
    assert client.submit(np.sum, x, workers=[receiver]).result() == LENGTH * value
    by_handle, inline = so_far() - before
    return int(by_handle), int(inline)


def _assert_results_are_right(client: Client) -> None:
    """To all, from all, and from each to each other, whatever way it takes."""
    field = np.random.default_rng(1).random(LENGTH)
    everywhere = client.scatter(field, broadcast=True)
    sums = [client.submit(zlib.crc32, everywhere, workers=[w]) for w in workers_of(client)]
    assert client.gather(sums) == [zlib.crc32(field)] * 4
    made = [
        client.submit(np.add, everywhere, i, workers=[worker])
        for i, worker in enumerate(workers_of(client))
    ]
    for direct in False, True:
        for i, received in enumerate(client.gather(made, direct=direct)):
            np.testing.assert_array_equal(received, field + i)
    numbers = np.arange(1600**2).reshape(1600, 1600)
    x = da.arange(1600**2, chunks=400 * 1600).reshape(1600, 1600)
    with dask.config.set({"array.rechunk.method": "tasks"}):
        turned = (x + x.T).rechunk((-1, 400))
    np.testing.assert_array_equal(turned.compute(), numbers + numbers.T)
