"""What is read from a wire that is cut, or from somebody who is no comm."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from pathlib import Path
from typing import Any

import dask.config
import numpy as np
import pytest
from distributed.comm.addressing import get_address_host_port
from distributed.comm.core import Comm, CommClosedError, connect, listen
from distributed.protocol import to_serialize

import xshm
from tests.clusters import ITEMS, PROTOCOLS, assert_same, connected, echo, soon, transfer
from tests.conftest import files_in

on_both = pytest.mark.parametrize("protocol", PROTOCOLS)


# ---- a wire that is cut ----


class Cutting:
    """Passes bytes on to a listener and back, and cuts both ways at one place of the first."""

    def __init__(self, address: str, place: int) -> None:
        self._target = get_address_host_port(address)
        self._left = place
        self.passed = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream = await asyncio.open_connection(*self._target)
        back = asyncio.ensure_future(_pass_on(upstream_reader, writer))
        while self._left and (data := await reader.read(min(self._left, 2**16))):
            self._left -= len(data)
            self.passed += len(data)
            upstream.write(data)
            await upstream.drain()
        for end in (upstream, writer):
            end.close()
        await back


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(2**16):
            writer.write(data)
    writer.close()


async def _send_through(protocol: str, place: int) -> tuple[list[Any], int]:
    """What arrives of two messages if the wire is cut there, and how many bytes of them passed."""
    received: list[Any] = []

    async def serve(comm: Comm) -> None:
        for _ in range(2):
            try:
                received.append((await comm.read())["x"])
            except CommClosedError:
                assert comm.closed()
        await comm.close()

    async with listen(f"{protocol}://127.0.0.1:0", serve) as listener:
        cutting = Cutting(listener.contact_address, place)
        server = await asyncio.start_server(cutting.serve, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        with pytest.raises(CommClosedError):  # noqa: PT012  # which of these depends on the place
            comm = await connect(f"{protocol}://{host}:{port}", timeout=5)
            for message in ({"x": 1}, {"x": to_serialize(np.arange(ITEMS // 4))}):
                await comm.write(message)
            await comm.read()
        server.close()
        await server.wait_closed()
    return received, cutting.passed


@on_both
def test_a_wire_cut_at_any_place_is_a_closed_connection(directory: Path, protocol: str) -> None:
    async def run() -> None:
        received, total = await _send_through(protocol, 2**30)
        np.testing.assert_array_equal(received[1], np.arange(ITEMS // 4))
        for place in [*range(0, min(total, 1200), 7), *range(1200, total, total // 7), total - 4]:
            received, passed = await _send_through(protocol, place)
            assert len(received) < 2
            assert passed == place
        await soon(lambda: files_in(directory) == [])

    with dask.config.set({"xshm.threshold": "64 KiB"}):
        asyncio.run(run())


# ---- peers that send anything else ----

GARBAGE = {
    "nothing": b"",
    "part of a length": b"\1\0\0",
    "another protocol": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no frames": struct.pack("QQ", 8, 0),
    "less than its length": struct.pack("Q", 1000) + b"x" * 10,
    "more bytes than there is memory": struct.pack("Q", 2**45) + b"x" * 10,
    "more bytes than there are addresses": struct.pack("Q", 2**64 - 1) + b"x" * 10,
    "more frames than bytes": struct.pack("QQ", 8, 2**40),
    "a frame longer than memory": struct.pack("QQQ", 16, 1, 2**45),
    "frames of noise": struct.pack("QQQQ", 64, 2, 20, 20) + bytes(range(200, 240)),
    "noise": bytes(range(256)) * 100,
}


@on_both
@pytest.mark.parametrize("garbage", GARBAGE)
def test_a_stranger_is_not_handled_and_disturbs_nobody(protocol: str, garbage: str) -> None:
    handled: list[Comm] = []

    async def serve(comm: Comm) -> None:
        handled.append(comm)
        await echo(comm)

    async def run() -> None:
        async with listen(f"{protocol}://127.0.0.1:0", serve) as listener:
            where = get_address_host_port(listener.contact_address)
            reader, writer = await asyncio.open_connection(*where)
            writer.write(GARBAGE[garbage])
            await writer.drain()
            for _ in range(2):  # while the stranger is there, and after
                comm = await connect(listener.contact_address)
                await comm.write({"x": to_serialize(np.arange(ITEMS))})
                np.testing.assert_array_equal((await comm.read())["x"], np.arange(ITEMS))
                await comm.close()
                with contextlib.suppress(OSError):  # the listener closed first
                    writer.write_eof()
                    await reader.read()  # until it does
                writer.close()

    asyncio.run(run())
    assert len(handled) == 2


@on_both
@pytest.mark.parametrize("garbage", GARBAGE)
def test_what_no_comm_sends_is_an_error_to_its_reader_alone(
    directory: Path, protocol: str, garbage: str
) -> None:
    sent = np.arange(ITEMS)

    async def run() -> None:
        async with (
            connected(protocol) as (near, far),
            connected(protocol) as (sender, receiver),
        ):
            reading = asyncio.ensure_future(far.read())
            await getattr(near, "_wire", near).stream.write(GARBAGE[garbage])
            assert_same(await transfer(sent, sender, receiver), sent)
            near.abort()
            with pytest.raises((OSError, ValueError, LookupError, MemoryError, struct.error)):
                await asyncio.wait_for(reading, 30)
            assert_same(await transfer(sent, receiver, sender), sent)

    asyncio.run(run())
    assert files_in(directory) == []


def test_a_stranger_takes_no_room_in_the_directory() -> None:
    async def run() -> None:
        async with listen("shm://127.0.0.1:0", echo) as listener:
            where = get_address_host_port(listener.contact_address)
            _, stranger = await asyncio.open_connection(*where)
            stranger.write(struct.pack("Q", 2**26) + b"x")  # 64 MiB, says who has not shaken hands
            await stranger.drain()
            comm = await connect(listener.contact_address)
            await comm.write({"x": to_serialize(np.ones(10))})
            await comm.read()
            assert xshm.stats()["created"] == before["created"]
            await comm.close()
            stranger.close()

    before = xshm.stats()
    asyncio.run(run())
