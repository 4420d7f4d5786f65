"""Namespaces of Linux (unshare(1)): places to mount file systems in, and hosts on one computer."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

SIOCSIFFLAGS = 0x8914  # set an interface's flags (netdevice(7))
IFF_UP = 1

#: What a host has for itself.
_HOST = ("--net", "--mount", "--pid")
_NEW_HOST = ("unshare", *_HOST, "--fork", "--kill-child", "--mount-proc")


# ---- a namespace to be in ----


@functools.cache
def unshare() -> tuple[str, ...] | None:
    """The start of a command that runs in new network and mount namespaces, if there is one."""
    own = ("unshare", "--net", "--mount")
    for command in own, (*own, "--user", "--map-root-user"):
        if _succeeds(*command, "mount", "-t", "tmpfs", "tmpfs", "/mnt"):
            return command
    return None


@functools.cache
def can_have_hosts() -> bool:
    """Whether other computers can be imitated in such a namespace."""
    start = unshare()
    return (
        start is not None
        and _succeeds(*start, "ip", "link", "add", "switch", "type", "bridge")
        and _succeeds(*start, *_NEW_HOST, "true")
    )


def _succeeds(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


needs_namespaces = pytest.mark.skipif(
    unshare() is None, reason="needs unshare(1) and the right to mount: root, or user namespaces"
)
needs_hosts = pytest.mark.skipif(
    not can_have_hosts(),
    reason="needs ip(8) of iproute2, unshare(1), and the right to make networks: root",
)


def run_in_namespace(function: Callable[..., None], *arguments: object) -> str:
    """Call a function of a test module in a new process and namespace; returns its stderr."""
    call = f"{function.__name__}({', '.join(map(repr, map(str, arguments)))})"
    script = (
        f"from {__name__} import loopback_up; loopback_up(); "
        f"from {function.__module__} import *; {call}"
    )
    done = subprocess.run(
        [*(unshare() or ()), sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=110,
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
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:  # as a nanny whose worker finds no scheduler
                process.kill()


def mount_tmpfs(folder: str, size: str) -> None:
    """Mount an empty tmpfs of this size."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)


# ---- hosts ----


def make_switch(address: str) -> None:
    """What the cables of other hosts end in; this process's namespace has this address there."""
    _run("ip", "link", "add", "switch", "type", "bridge")
    _run("ip", "address", "add", f"{address}/24", "dev", "switch")
    _run("ip", "link", "set", "switch", "up")


class Host:
    """A computer, as far as its processes can tell, with a cable to the switch.

    Parameters
    ----------
    address : str
    power : subprocess.Popen
        When this process is killed, so are all on the host.

    Attributes
    ----------
    command : tuple of str
        The start of a command that runs there.
    """

    def __init__(self, address: str, power: subprocess.Popen[str]) -> None:
        self.address = address
        self.power = power
        pids = f"--pid=/proc/{power.pid}/ns/pid_for_children"
        self.command = ("nsenter", f"--target={power.pid}", "--net", "--mount", pids)

    def run(self, *command: str) -> str:
        """What a command prints that runs there."""
        return _run(*self.command, *command)


@contextlib.contextmanager
def host(address: str, prepare: str = "true") -> Iterator[Host]:
    """Another host; `prepare` is a shell command that is run there first.

    Notes
    -----
    It has its own network, processes and mounts, and its own tmpfs if `prepare` mounts one.
    Without, it shares directories as containers do that mount the same volume.
    """
    command = [*_NEW_HOST, "sh", "-c", f"{prepare} && echo ready && exec cat"]
    pipe = subprocess.PIPE
    with running(command, stdin=pipe, stdout=pipe) as power:
        assert power.stdout is not None
        assert power.stdout.readline() == "ready\n"
        port, network = f"port{address.rpartition('.')[2]}", f"{power.pid}"
        _run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", network)
        _run("ip", "link", "set", port, "master", "switch", "up")
        there = Host(address, power)
        there.run("ip", "link", "set", "lo", "up")
        there.run("ip", "address", "add", f"{address}/24", "dev", "eth0")
        there.run("ip", "link", "set", "eth0", "up")
        # dask asks which way it would go to a public address, to learn its own.
        there.run("ip", "route", "add", "default", "dev", "eth0")
        yield there


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
