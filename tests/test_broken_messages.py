"""A process at one end of a connection is killed or stopped, or the connection cut, in the middle
of a message: the other end is told, and nothing stays."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

import dask.config
import numpy as np
import pytest
from distributed.comm.core import Comm, CommClosedError, connect, listen
from distributed.protocol import to_serialize

import xshm
from tests.clusters import ITEMS, PROTOCOLS, connected, soon
from tests.conftest import segment_names
from xshm import janitor
from xshm.directory import Directory

_PEER = "import asyncio, sys; from {0} import {1}; asyncio.run({1}(sys.argv[1]))"


async def receive(address: str) -> None:
    """Read messages, and say so, until the other end goes."""
    comm = await connect(address)
    print("ready", flush=True)
    while True:
        try:
            print((await comm.read())["x"].sum(), flush=True)
        except OSError as error:
            print(type(error).__name__, flush=True)
            return


async def send(address: str) -> None:
    """Send one message, and do nothing more."""
    comm = await connect(address)
    await comm.write({"x": to_serialize(np.ones(ITEMS))})
    print("sent", flush=True)
    await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def peer(role: str) -> AsyncIterator[tuple[Comm, Process]]:
    """A connection to a new process, as soon as that has said something."""
    accepted: asyncio.Queue[Comm] = asyncio.Queue()
    async with listen("shm://127.0.0.1:0", accepted.put) as listener:
        program = _PEER.format(__name__, role)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program, listener.contact_address), stdout=PIPE
        )
        try:
            comm = await accepted.get()
            await said(process)
            yield comm, process
            comm.abort()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def said(process: Process) -> str:
    """The next line that it prints."""
    assert process.stdout is not None
    return (await process.stdout.readline()).decode().strip()


def tokens(here: Directory) -> list[str]:
    """Hand-overs on their way."""
    return [name for name in segment_names(here) if name.endswith(".token")]


def test_a_receiver_is_killed_before_it_has_read(here: Directory) -> None:
    async def run() -> None:
        async with peer("receive") as (comm, process):
            process.send_signal(signal.SIGSTOP)
            await comm.write({"x": to_serialize(np.ones(ITEMS))})
            assert len(tokens(here)) == 1
            process.kill()
            await soon(lambda: tokens(here) == [])
            with pytest.raises(CommClosedError):
                await comm.read()

    asyncio.run(run())


def test_a_receiver_is_stopped_and_its_sender_gives_up(here: Directory) -> None:
    async def run() -> None:
        async with peer("receive") as (comm, process):
            process.send_signal(signal.SIGSTOP)
            await comm.write({"x": to_serialize(np.ones(ITEMS))})
            comm.abort()
            assert tokens(here) == []
            process.send_signal(signal.SIGCONT)
            assert await said(process) == "CommClosedError"

    asyncio.run(run())


def test_a_receiver_that_is_stopped_for_a_while_gets_the_message(here: Directory) -> None:
    async def run() -> None:
        async with peer("receive") as (comm, process):
            process.send_signal(signal.SIGSTOP)
            await comm.write({"x": to_serialize(np.full(ITEMS, 2.0))})
            process.send_signal(signal.SIGCONT)
            assert float(await said(process)) == 2 * ITEMS
            assert tokens(here) == []

    asyncio.run(run())


def test_a_sender_is_killed_before_its_message_is_read(here: Directory) -> None:
    async def run() -> None:
        async with peer("send") as (comm, process):
            process.kill()
            await process.wait()
            x = (await comm.read())["x"]  # the bytes outlive their sender
            assert (x == 1).all()
            assert len(janitor.clean(here)) == 1
            assert (x == 1).all()
            assert segment_names(here) == []

    asyncio.run(run())


def test_what_a_killed_sender_sent_may_be_cleared_before_it_is_read(here: Directory) -> None:
    async def run() -> None:
        async with peer("send") as (comm, process):
            process.kill()
            await process.wait()
            assert len(janitor.clean(here)) == 1
            assert segment_names(here) == []
            with pytest.raises(CommClosedError, match="LostHandleError"):  # and dask asks again
                await comm.read()
            assert comm.closed()

    asyncio.run(run())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_connection_is_cut_in_the_middle_of_a_frame(protocol: str, directory: Path) -> None:
    async def run() -> None:
        with dask.config.set({"xshm.threshold": "1 GiB"}):  # so that all of it goes over the socket
            async with connected(protocol) as (near, far):
                await near.write({"x": to_serialize(np.ones(2**23))})  # more than sockets hold
                near.abort()
                with pytest.raises(CommClosedError):
                    await far.read()
                assert far.closed()

    asyncio.run(run())


def test_nothing_accumulates_over_a_hundred_broken_messages(here: Directory) -> None:
    def held() -> tuple[int, ...]:
        gc.collect()
        xshm.trim()
        told = xshm.stats()
        kinds = told["live_segments"], told["leased_segments"], told["mappings"]
        return *kinds, len(os.listdir("/proc/self/fd")), len(segment_names(here))

    async def break_one(number: int) -> None:
        async with connected("shm") as (near, far):
            message = {"x": to_serialize(np.ones(ITEMS))}
            match number % 4:
                case 0:  # given up by the sender, unread
                    await near.write(message)
                    near.abort()
                case 1:  # given up by the receiver, unread
                    await near.write(message)
                    far.abort()
                    await soon(lambda: tokens(here) == [])
                case 2:  # read by nobody any more
                    reading = asyncio.ensure_future(far.read())
                    await asyncio.sleep(0)
                    reading.cancel()
                    with contextlib.suppress(CommClosedError):
                        await near.write(message)
                case 3:  # read, and then the connection is cut
                    await asyncio.gather(near.write(message), far.read())
                    far.abort()
        await soon(lambda: tokens(here) == [])

    async def run() -> None:
        for number in range(4):
            await break_one(number)
        before = held()
        for number in range(100):
            await break_one(number)
        assert held() == before

    asyncio.run(run())
