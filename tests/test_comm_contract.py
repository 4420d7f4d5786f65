"""What distributed expects of any comm: the same tests for its own and for ours."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import dask.config
import numpy as np
import pytest
from distributed.comm.addressing import (
    get_address_host,
    get_address_host_port,
    get_local_address_for,
    normalize_address,
    parse_address,
    resolve_address,
    unparse_address,
)
from distributed.comm.core import Comm, CommClosedError, Listener, connect, listen
from distributed.protocol import Serialized, deserialize, to_serialize
from distributed.security import Security
from distributed.utils import get_ip

import xshm
from tests.clusters import ITEMS, PROTOCOLS, Handler, both_ends, echo, growth, transfer
from tests.conftest import files_in

on_both = pytest.mark.parametrize("protocol", PROTOCOLS)
over_each = pytest.mark.parametrize("over", ["tcp", "shm", "tls", "shms", "inproc"], indirect=True)
over_wires = pytest.mark.parametrize("over", ["tcp", "shm", "tls", "shms"], indirect=True)


@functools.cache
def security() -> Security:
    """A key and a certificate, which all ends have."""
    return Security.temporary()


class Transport:
    """A protocol, and what its two ends are told."""

    def __init__(self, protocol: str) -> None:
        self.protocol = protocol
        self.encrypted = protocol in ("tls", "shms")
        self.location = "" if protocol == "inproc" else "127.0.0.1:0"

    def listen(self, handler: Handler, **options: Any) -> Listener:
        secured = security().get_listen_args("worker") if self.encrypted else {}
        return listen(f"{self.protocol}://{self.location}", handler, **secured, **options)

    async def connect(self, listener: Listener, **options: Any) -> Comm:
        secured = security().get_connection_args("worker") if self.encrypted else {}
        return await connect(listener.contact_address, **secured, **options)

    def connected(self) -> AbstractAsyncContextManager[tuple[Comm, Comm]]:
        """Both ends of a connection: the one that connected, and the one that accepted."""
        return both_ends(self.listen, self.connect)


@pytest.fixture
def over(request: pytest.FixtureRequest) -> Transport:
    return Transport(request.param)


def numbers(n: int = ITEMS, start: float = 0) -> np.ndarray:
    return np.arange(start, start + n)


# ---- messages ----


@over_each
def test_messages_of_all_sizes_go_to_and_fro(over: Transport) -> None:
    async def run() -> None:
        async with over.connected() as (near, far):
            for n in (0, 1, 1000, ITEMS):
                message = {"op": "ping", "n": n, "x": [to_serialize(np.arange(n))] * 2}
                for sender, receiver in ((near, far), (far, near)):
                    sent, got = await asyncio.gather(sender.write(message), receiver.read())
                    assert sent >= (8 * n if over.protocol != "inproc" else 1)
                    assert (got["op"], got["n"], len(got["x"])) == ("ping", n, 2)
                    np.testing.assert_array_equal(got["x"][1], np.arange(n))

    before = xshm.stats()
    asyncio.run(run())
    by_handle = over.protocol in ("shm", "shms")
    assert growth(before)["handles_received"] == (4 if by_handle else 0)


@over_wires
def test_messages_arrive_in_the_order_of_writing(over: Transport) -> None:
    async def run() -> None:
        async with over.connected() as (near, far):

            async def send() -> None:
                for i, n in enumerate([1, ITEMS, 10, ITEMS // 2] * 3):
                    await near.write({"x": to_serialize(np.full(n, i))})

            sending = asyncio.ensure_future(send())
            assert [(await far.read())["x"][0] for _ in range(12)] == list(range(12))
            await sending

    asyncio.run(run())


@over_wires
def test_each_array_of_a_message_has_memory_of_its_own(over: Transport) -> None:
    async def run() -> None:
        async with over.connected() as (near, far):
            for n in (100, ITEMS):
                sent = [numbers(n), numbers(n, 1)]
                one, other = await transfer(sent, near, far)
                one[:] = -1
                np.testing.assert_array_equal(other, numbers(n, 1))
                np.testing.assert_array_equal(sent[0], numbers(n))

    asyncio.run(run())


@over_wires
def test_what_cannot_be_serialized_leaves_the_connection_usable(over: Transport) -> None:
    class Refuses:
        def __reduce__(self) -> str:
            raise TypeError("not me")

    async def run() -> None:
        async with over.connected() as (near, far):
            message = {"x": [to_serialize(np.ones(ITEMS)), to_serialize(Refuses())]}
            with pytest.raises(TypeError, match="Could not serialize"):
                await near.write(message, on_error="raise")
            assert (await transfer(np.ones(ITEMS), near, far)).sum() == ITEMS

    asyncio.run(run())


# ---- who deserializes ----


@over_each
@pytest.mark.parametrize("listener", [True, False], ids=["listener", "raw listener"])
@pytest.mark.parametrize("connector", [True, False], ids=["connector", "raw connector"])
def test_each_end_decides_whether_it_deserializes(
    over: Transport, listener: bool, connector: bool
) -> None:
    accepted: asyncio.Queue[Comm] = asyncio.Queue()

    def check(message: dict[str, Any], n: int, deserialized: bool) -> None:
        found = [message["x"], message["more"][0]["y"]]
        if not deserialized and over.protocol != "inproc":  # which serializes nothing
            assert all(isinstance(value, Serialized) for value in found)
            found = [deserialize(value.header, value.frames) for value in found]
        elif not deserialized:
            found = [value.data for value in found]
        assert message["op"] == "update"
        np.testing.assert_array_equal(found[0], numbers(n))
        assert found[1] == "text"

    async def run() -> None:
        async with over.listen(accepted.put, deserialize=listener) as listening:
            near = await over.connect(listening, deserialize=connector)
            far = await accepted.get()
            for n in (10, ITEMS):
                text = [{"y": to_serialize("text")}]
                sent = {"op": "update", "x": to_serialize(numbers(n)), "more": text}
                await near.write(sent)
                received = await far.read()
                check(received, n, listener)
                # A relay passes on what it has not looked into.
                await far.write(sent if listener else received)
                check(await near.read(), n, connector)
            near.abort()
            far.abort()

    asyncio.run(run())


class Truncated:
    """Of which the end is missing when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _raise_eof_error, ()


def _raise_eof_error() -> None:
    raise EOFError("nothing left to read")


@over_wires
@pytest.mark.parametrize("reader", ["listener", "connector"])
@pytest.mark.parametrize("n", [10, ITEMS])
def test_frames_whose_end_is_missing_abort_the_connection(
    directory: Path, over: Transport, reader: str, n: int
) -> None:
    async def run() -> None:
        async with over.connected() as (near, far):
            sender, receiver = (near, far) if reader == "listener" else (far, near)
            await sender.write({"x": to_serialize(np.ones(n)), "y": to_serialize(Truncated())})
            with pytest.raises(CommClosedError, match="truncated data"):
                await receiver.read()
            assert receiver.closed()

    asyncio.run(run())
    assert files_in(directory) == []


# ---- listeners and connectors ----


@over_each
def test_many_listeners_each_with_its_own_clients(over: Transport) -> None:
    count = 10

    def named(i: int) -> Handler:
        async def serve(comm: Comm) -> None:
            await comm.write(i)
            with pytest.raises(CommClosedError):
                await comm.read()

        return serve

    async def run() -> None:
        async with contextlib.AsyncExitStack() as stack:
            listeners = [
                await stack.enter_async_context(over.listen(named(i))) for i in range(count)
            ]
            assert len({listener.contact_address for listener in listeners}) == count
            for i, listener in enumerate(listeners):
                comms = [await over.connect(listener) for _ in range(2)]
                assert [await comm.read() for comm in comms] == [i, i]
                for comm in comms:
                    await comm.close()

    asyncio.run(run())


@over_each
def test_twenty_clients_at_once(over: Transport) -> None:
    async def ask(listener: Listener, i: int) -> None:
        comm = await over.connect(listener)
        for n in (10, ITEMS // 4):
            await comm.write({"x": to_serialize(np.full(n, i))})
            np.testing.assert_array_equal((await comm.read())["x"], np.full(n, i))
        await comm.close()

    async def run() -> None:
        async with over.listen(echo) as listener:
            await asyncio.gather(*(ask(listener, i) for i in range(20)))

    asyncio.run(run())


@over_wires
def test_connections_outlive_their_listener_which_accepts_no_others(over: Transport) -> None:
    async def run() -> None:
        async with over.listen(echo) as listener:
            comm = await over.connect(listener)
        with pytest.raises(ValueError, match="non-started"):
            _ = listener.contact_address
        await comm.write({"x": to_serialize(numbers())})
        np.testing.assert_array_equal((await comm.read())["x"], numbers())
        with pytest.raises(OSError, match="Timed out trying to connect"):
            await connect(comm.peer_address, timeout=0.1, **_connecting(over))
        await comm.close()

    asyncio.run(run())


def _connecting(over: Transport) -> dict[str, Any]:
    return dict(security().get_connection_args("worker")) if over.encrypted else {}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


@over_wires
def test_where_nobody_listens_connecting_ends_with_its_timeout(
    directory: Path, over: Transport
) -> None:
    address = f"{over.protocol}://127.0.0.1:{_free_port()}"

    async def run() -> None:
        with pytest.raises(OSError, match=f"connect to {address} after 0.1 s") as info:
            await connect(address, timeout="100 ms", **_connecting(over))
        assert isinstance(info.value.__cause__, OSError)

    asyncio.run(run())
    assert files_in(directory) == []


@over_wires
def test_connecting_waits_for_the_listener_to_come(over: Transport) -> None:
    over.location = f"127.0.0.1:{_free_port()}"

    async def run() -> None:
        address = f"{over.protocol}://{over.location}"
        connecting = asyncio.ensure_future(connect(address, timeout=30, **_connecting(over)))
        await asyncio.sleep(0.05)  # for it to have failed once; it passes without, too
        async with over.listen(echo):
            comm = await connecting
            await comm.write({"x": to_serialize(numbers())})
            np.testing.assert_array_equal((await comm.read())["x"], numbers())
            await comm.close()

    asyncio.run(run())


@on_both
@pytest.mark.parametrize(
    ("address", "error"),
    [("127.0.0.1", "missing port"), ("::1", "needs brackets"), ("[::1", "needs brackets")],
)
def test_addresses_that_are_none(protocol: str, address: str, error: str) -> None:
    async def run() -> None:
        with pytest.raises(ValueError, match=error):
            await connect(f"{protocol}://{address}")

    asyncio.run(run())


# ---- addresses ----


@over_each
def test_addresses_and_name(over: Transport) -> None:
    async def run() -> None:
        async with over.connected() as (near, far):
            assert near.local_address == far.peer_address
            assert near.peer_address == far.local_address
            for comm in (near, far):
                assert comm.local_address.startswith(f"{over.protocol}://")
                assert comm.peer_address.startswith(f"{over.protocol}://")
                assert comm.same_host
                comm.name = "a name"
                assert comm.local_address in repr(comm)
                assert comm.peer_address in repr(comm)
                assert "a name" in repr(comm)
                assert "closed" not in repr(comm)
            near.abort()
            assert "closed" in repr(near)

    asyncio.run(run())


@on_both
def test_parts_of_an_address(protocol: str) -> None:
    address = f"{protocol}://127.0.0.1:8786"
    assert parse_address(address) == (protocol, "127.0.0.1:8786")
    assert unparse_address(protocol, "127.0.0.1:8786") == address
    assert normalize_address(address) == address
    assert get_address_host(address) == "127.0.0.1"
    assert get_address_host_port(address) == ("127.0.0.1", 8786)
    assert get_address_host_port(f"{protocol}://[::1]:8786") == ("::1", 8786)
    assert resolve_address(f"{protocol}://localhost:8786") == address
    assert get_local_address_for(address) == f"{protocol}://127.0.0.1"


@on_both
@pytest.mark.parametrize("where", ["0.0.0.0", "", "0.0.0.0:0", ":0"])
def test_a_listener_on_every_interface_is_contacted_at_one(protocol: str, where: str) -> None:
    async def run() -> None:
        async with listen(f"{protocol}://{where}", echo) as listener:
            host, port = get_address_host_port(listener.contact_address)
            assert host == get_ip()
            assert port > 0
            assert get_address_host_port(listener.listen_address)[1] == port
            for address in (listener.contact_address, f"{protocol}://127.0.0.1:{port}"):
                comm = await connect(address)
                assert comm.peer_address == address
                await comm.write({"x": to_serialize(numbers())})
                np.testing.assert_array_equal((await comm.read())["x"], numbers())
                await comm.close()

    asyncio.run(run())


@on_both
def test_ipv6(protocol: str) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")

    async def run() -> None:
        async with listen(f"{protocol}://[::1]:0", echo) as listener:
            assert listener.contact_address == listener.listen_address
            assert listener.contact_address.startswith(f"{protocol}://[::1]:")
            comm = await connect(listener.contact_address)
            assert comm.local_address.startswith(f"{protocol}://[::1]:")
            assert comm.same_host
            await comm.write({"x": to_serialize(numbers())})
            np.testing.assert_array_equal((await comm.read())["x"], numbers())
            await comm.close()

    asyncio.run(run())


@on_both
def test_the_default_scheme(protocol: str) -> None:
    async def run() -> None:
        async with listen(f"{protocol}://127.0.0.1:0", echo) as listener:
            _, _, location = listener.contact_address.partition("://")
            comm = await connect(location)
            assert comm.peer_address == listener.contact_address
            await comm.close()

    with dask.config.set({"distributed.comm.default-scheme": protocol}):
        asyncio.run(run())


# ---- the end of a connection ----


@over_each
@pytest.mark.parametrize("end", ["closed", "aborted"])
def test_after_the_end_both_sides_get_comm_closed_error(over: Transport, end: str) -> None:
    async def run() -> None:
        async with over.connected() as (near, far):
            reading = asyncio.ensure_future(far.read())
            await asyncio.sleep(0)  # it waits when the end comes
            if end == "closed":
                await near.close()
            else:
                near.abort()
            with pytest.raises(CommClosedError):
                await reading
            for comm in (near, far):
                assert comm.closed()
                with pytest.raises(CommClosedError):
                    await comm.read()
                with pytest.raises(CommClosedError):
                    await comm.write({"x": to_serialize(np.ones(ITEMS))})
                await comm.close()
                comm.abort()

    asyncio.run(run())


@over_wires
@pytest.mark.parametrize("end", ["listener", "connector"])
def test_who_waits_for_a_message_learns_that_the_other_end_is_dropped(
    directory: Path, over: Transport, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        accepted: asyncio.Queue[Comm] = asyncio.Queue()
        async with over.listen(accepted.put) as listener:
            ends = {"connector": await over.connect(listener), "listener": await accepted.get()}
            del ends[end]
            (kept,) = ends.values()
            with pytest.raises(CommClosedError):
                await asyncio.wait_for(kept.read(), 30)
            assert kept.closed()

    asyncio.run(run())
    assert "dangling" in caplog.text
    assert files_in(directory) == []


@on_both
def test_close_in_order_lets_the_other_end_read_what_was_sent(
    directory: Path, protocol: str
) -> None:
    sent = np.arange(ITEMS)

    async def run() -> None:
        async with Transport(protocol).connected() as (near, far):

            async def write_and_close() -> None:
                await near.write({"x": to_serialize(sent)})
                await near.close()

            writing = asyncio.ensure_future(write_and_close())
            if protocol == "shm":  # what TCP has not sent yet it sends while the other reads
                await writing
            np.testing.assert_array_equal((await far.read())["x"], sent)
            await writing
            with pytest.raises(CommClosedError):
                await far.read()

    asyncio.run(run())
    assert files_in(directory) == []  # no grace period: what was sent has been read
