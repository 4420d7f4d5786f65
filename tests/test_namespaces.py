"""Equal addresses prove nothing: processes that do not share a directory exchange bytes.

Each test runs in namespaces of its own (unshare(1)), where it may mount and use addresses.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import itertools
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dask.distributed import Client, wait

import xshm
from tests.clusters import cluster

LENGTH = 1_000_000  # of float64: 8 MB
SIOCSIFFLAGS = 0x8914  # set an interface's flags (netdevice(7))
IFF_UP = 1


# ---- a namespace to be in ----


@functools.cache
def unshare() -> tuple[str, ...] | None:
    """The start of a command that runs in new network and mount namespaces, if there is one."""
    own = ("unshare", "--net", "--mount")
    for command in own, (*own, "--user", "--map-root-user"):
        with contextlib.suppress(FileNotFoundError):
            mounted = [*command, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
            if subprocess.run(mounted, capture_output=True).returncode == 0:
                return command
    return None


needs_namespaces = pytest.mark.skipif(
    unshare() is None, reason="needs unshare(1) and the right to mount: root, or user namespaces"
)


def run_in_namespace(function: Callable[..., None], *arguments: object) -> str:
    """Call a function of a test module in a new process and namespace; returns its stderr."""
    call = f"{function.__name__}({', '.join(map(repr, map(str, arguments)))})"
    script = f"from {function.__module__} import *; loopback_up(); {call}"
    done = subprocess.run(
        [*(unshare() or ()), sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def loopback_up() -> None:
    """A new network namespace has a loopback interface, but it is down."""
    with socket.socket() as any_socket:
        request = struct.pack("16sh14x", b"lo", IFF_UP)
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, request)


@contextlib.contextmanager
def running(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that gets a SIGTERM at the end of the block."""
    with subprocess.Popen(command, text=True, **options) as process:
        try:
            yield process
        finally:
            process.terminate()


def mount_tmpfs(folder: str, size: str) -> None:
    """Mount an empty tmpfs of this size."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)


# ---- the tests ----


@needs_namespaces
def test_equal_addresses_but_different_directories(directory: Path) -> None:
    run_in_namespace(exchange_between_mount_namespaces, directory)


@needs_namespaces
@pytest.mark.skipif(shutil.which("ip") is None, reason="needs ip(8) of iproute2")
def test_two_hosts(directory: Path) -> None:
    run_in_namespace(exchange_between_hosts, directory)


# ---- what runs in the namespace ----


def exchange_between_mount_namespaces(directory: str) -> None:
    """All addresses are 127.0.0.1, and one place has a directory that the other does not see."""
    with (
        cluster(n_workers=0, host="127.0.0.1") as client,
        _elsewhere(directory, "--mount") as there,
    ):
        _assert_handles_within_and_bytes_across(client, there, "127.0.0.1", "127.0.0.1")


def exchange_between_hosts(directory: str) -> None:
    """Two hosts, as far as they can tell: a cable between them, and nothing in common."""
    with _elsewhere(directory, "--mount", "--net") as there:
        pid = there[-1].removeprefix("--target=")
        _run("ip", "link", "add", "here", "type", "veth", "peer", "name", "there", "netns", pid)
        _run("ip", "address", "add", "10.99.0.1/24", "dev", "here")
        _run("ip", "link", "set", "here", "up")
        _run(*there, "ip", "link", "set", "lo", "up")
        _run(*there, "ip", "address", "add", "10.99.0.2/24", "dev", "there")
        _run(*there, "ip", "link", "set", "there", "up")
        with cluster(n_workers=0, host="10.99.0.1") as client:
            _assert_handles_within_and_bytes_across(client, there, "10.99.0.1", "10.99.0.2")


def _assert_handles_within_and_bytes_across(
    client: Client, there: Sequence[str], host_here: str, host_there: str
) -> None:
    """Start one worker here and two there, and let each fetch from each other one."""
    with (
        _worker(client, "here", host_here),
        _worker(client, "there", host_there, there),
        _worker(client, "also there", host_there, there),
    ):
        client.wait_for_workers(3, timeout=30)
        workers = client.scheduler_info()["workers"]
        place = {address: w["name"].removeprefix("also ") for address, w in workers.items()}

        def sent_by(address: str) -> np.ndarray:
            counted = client.run(xshm.stats, workers=[address])[address]
            return np.array([counted["bytes_sent_by_handle"], counted["bytes_sent_inline"]])

        for value, (sender, receiver) in enumerate(itertools.permutations(place, 2)):
            x = client.submit(np.full, LENGTH, float(value), workers=[sender])
            wait(x)
            before = sent_by(sender)
            total = client.submit(np.sum, x, workers=[receiver], allow_other_workers=False)
            assert total.result() == LENGTH * value
            by_handle, inline = sent_by(sender) - before
            if place[sender] == place[receiver]:
                assert (by_handle, inline) == (8 * LENGTH, 0)
            else:
                assert (by_handle, inline) == (0, 8 * LENGTH)
            assert client.gather(x)[-1] == value


@contextlib.contextmanager
def _elsewhere(directory: str, *namespaces: str) -> Iterator[Sequence[str]]:
    """New namespaces with an own tmpfs at `directory`: the start of commands to run in them."""
    prepare = f"mount -t tmpfs tmpfs {directory} && echo ready && exec cat"
    command = ["unshare", *namespaces, "sh", "-c", prepare]
    pipe = subprocess.PIPE
    with running(command, stdin=pipe, stdout=pipe) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        yield ("nsenter", *namespaces, f"--target={holder.pid}")


@contextlib.contextmanager
def _worker(client: Client, name: str, host: str, where: Sequence[str] = ()) -> Iterator[None]:
    options = ["--name", name, "--host", host, "--nthreads=1", "--no-nanny", "--no-dashboard"]
    address = client.scheduler.address
    with running([*where, sys.executable, "-m", "dask", "worker", address, *options]):
        yield


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
