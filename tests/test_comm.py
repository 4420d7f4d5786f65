"""What distributed expects of a comm, and what shm:// adds: handles, and who may take them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import dask.config
import numpy as np
import pytest
from distributed.comm.core import Comm, CommClosedError, connect, listen
from distributed.comm.tcp import TCP, TCPConnector
from distributed.protocol import Serialized, dumps, to_serialize

import xshm
from tests.clusters import ITEMS, LARGE, PROTOCOLS, connected, growth, transfer
from tests.conftest import files_in, segment_names
from xshm.dask.domain import who_am_i
from xshm.directory import Directory
from xshm.errors import HandleError, LostHandleError
from xshm.handle import Handle
from xshm.handover import Outbox

on_both = pytest.mark.parametrize("protocol", PROTOCOLS)


def tokens(here: Directory) -> list[str]:
    """Hand-overs that nobody has taken."""
    return [name for name in segment_names(here) if name.endswith(".token")]


async def soon(condition: Callable[[], bool]) -> None:
    """Let the event loop run until this holds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def echo(comm: Comm) -> None:
    """Serve one client until it goes."""
    with contextlib.suppress(CommClosedError):
        while True:
            message = await comm.read()
            await comm.write({"x": to_serialize(message["x"])})


# ---- the contract ----


@on_both
def test_messages_of_all_sizes_go_to_and_fro(protocol: str) -> None:
    async def run() -> None:
        async with connected(protocol) as (near, far):
            for n in (1, 1000, ITEMS):
                message = {"op": "ping", "n": n, "x": [to_serialize(np.arange(n))] * 2}
                for sender, receiver in ((near, far), (far, near)):
                    sent, got = await asyncio.gather(sender.write(message), receiver.read())
                    assert sent >= 8 * n
                    assert (got["op"], got["n"], len(got["x"])) == ("ping", n, 2)
                    np.testing.assert_array_equal(got["x"][1], np.arange(n))

    asyncio.run(run())


def test_a_message_of_more_handles_than_any_bound(here: Directory) -> None:
    arrays = [np.full(ITEMS // 32, i) for i in range(300)]

    async def run() -> None:
        with dask.config.set({"xshm.threshold": "64 KiB"}):
            async with connected("shm") as (near, far):
                for got, sent in zip(await transfer(arrays, near, far), arrays, strict=True):
                    np.testing.assert_array_equal(got, sent)

    asyncio.run(run())
    assert tokens(here) == []
    assert xshm.stats()["handles_received"] >= len(arrays)


@on_both
def test_addresses_and_name(protocol: str) -> None:
    async def run() -> None:
        async with connected(protocol) as (near, far):
            assert near.local_address == far.peer_address
            assert near.peer_address == far.local_address
            assert near.local_address.startswith(f"{protocol}://127.0.0.1:")
            assert near.same_host
            assert near.peer_address in repr(near)
            assert "closed" not in repr(near)
            near.abort()
            assert "closed" in repr(near)

    asyncio.run(run())


@on_both
@pytest.mark.parametrize("end", ["closed", "aborted"])
def test_after_the_end_both_sides_get_comm_closed_error(protocol: str, end: str) -> None:
    async def run() -> None:
        async with connected(protocol) as (near, far):
            reading = asyncio.ensure_future(far.read())
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


@on_both
def test_close_in_order_lets_the_other_end_read_what_was_sent(
    directory: Path, protocol: str
) -> None:
    sent = np.arange(ITEMS)

    async def run() -> None:
        async with connected(protocol) as (near, far):

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


@on_both
def test_twenty_clients_at_once(protocol: str) -> None:
    async def ask(address: str, i: int) -> None:
        comm = await connect(address)
        for n in (10, ITEMS // 4):
            await comm.write({"x": to_serialize(np.full(n, i))})
            np.testing.assert_array_equal((await comm.read())["x"], np.full(n, i))
        await comm.close()

    async def run() -> None:
        async with listen(f"{protocol}://127.0.0.1:0", echo) as listener:
            await asyncio.gather(*(ask(listener.contact_address, i) for i in range(20)))

    asyncio.run(run())


@on_both
def test_what_cannot_be_serialized_leaves_the_connection_usable(protocol: str) -> None:
    class Refuses:
        def __reduce__(self) -> str:
            raise TypeError("not me")

    async def run() -> None:
        async with connected(protocol) as (near, far):
            message = {"x": [to_serialize(np.ones(ITEMS)), to_serialize(Refuses())]}
            with pytest.raises(TypeError, match="Could not serialize"):
                await near.write(message, on_error="raise")
            assert (await transfer(np.ones(ITEMS), near, far)).sum() == ITEMS

    asyncio.run(run())


# ---- relays, as the scheduler is one ----


@pytest.mark.parametrize("stations", [1, 3])
@pytest.mark.usefixtures("allocating")
def test_a_relay_passes_handles_on_and_copies_nothing(stations: int) -> None:
    sent = np.arange(ITEMS).reshape(4, -1)

    async def run() -> np.ndarray:
        async with contextlib.AsyncExitStack() as stack:
            first, last = await stack.enter_async_context(connected("shm"))
            message, receiver = {"x": to_serialize(sent[:, 1:])}, last
            for _ in range(stations):
                near, far = await stack.enter_async_context(connected("shm", deserialize=False))
                await near.write(message)
                message = await far.read()
                assert isinstance(message["x"], Serialized)
            await first.write(message)
            received: np.ndarray = (await receiver.read())["x"]
            return received

    before = xshm.stats()
    received = asyncio.run(run())
    grown = growth(before)
    np.testing.assert_array_equal(received, sent[:, 1:])
    assert grown["handles_sent"] == stations + 1
    assert grown["bytes_copied_in"] == grown["bytes_sent_inline"] == 0
    assert grown["created"] == 0


# ---- who may take a hand-over, and until when ----


@pytest.mark.parametrize("large", [ITEMS, 100 * ITEMS // 8])
def test_abort_withdraws_what_was_not_taken(here: Directory, large: int) -> None:
    async def run() -> None:
        async with connected("shm") as (near, far):
            await near.write({"x": to_serialize(np.ones(large))})
            assert len(tokens(here)) == 1
            near.abort()
            assert tokens(here) == []
            with pytest.raises((CommClosedError, LostHandleError)):
                await far.read()

    asyncio.run(run())


def test_what_the_receiver_never_reads_is_withdrawn_when_it_goes(here: Directory) -> None:
    async def run() -> None:
        async with connected("shm") as (near, far):
            await near.write({"x": to_serialize(np.ones(ITEMS))})
            assert len(tokens(here)) == 1
            far.abort()
            await soon(lambda: tokens(here) == [])

    asyncio.run(run())


@pytest.mark.filterwarnings("ignore:unclosed")
def test_a_dropped_connection_withdraws_too(here: Directory) -> None:
    async def run() -> None:
        accepted: asyncio.Queue[Comm] = asyncio.Queue()
        async with listen("shm://127.0.0.1:0", accepted.put) as listener:
            near = await connect(listener.contact_address)
            far = await accepted.get()
            await near.write({"x": to_serialize(np.ones(ITEMS))})
            del near
            gc.collect()
            await soon(lambda: tokens(here) == [])
            far.abort()

    asyncio.run(run())


def test_after_close_in_order_unread_hand_overs_last_for_the_grace_period(here: Directory) -> None:
    async def run() -> None:
        with dask.config.set({"xshm.grace": "10 ms"}):
            async with connected("shm") as (near, _):
                await near.write({"x": to_serialize(np.ones(ITEMS))})
                await near.close()
                await soon(lambda: tokens(here) == [])

    asyncio.run(run())


def test_a_cancelled_read_gives_everything_back(here: Directory) -> None:
    async def run() -> None:
        async with connected("shm") as (near, far):
            reading = asyncio.ensure_future(far.read())
            await asyncio.sleep(0)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            with contextlib.suppress(CommClosedError):
                await near.write({"x": to_serialize(np.ones(ITEMS))})
            await soon(lambda: tokens(here) == [])
            assert xshm.stats()["leased_segments"] == 0

    asyncio.run(run())


# ---- the handshake ----

_ECHO = """
import asyncio, sys
from distributed.comm.core import connect
from tests.test_comm import echo

async def run():
    await echo(await connect(sys.argv[1]))

asyncio.run(run())
"""


async def _echoed_by_process(
    sent: np.ndarray, parent: Path, protocol: str = "shm"
) -> tuple[np.ndarray, dict[str, int]]:
    """What comes back from a process with that directory, and how our numbers grew."""
    accepted: asyncio.Queue[Comm] = asyncio.Queue()
    async with listen(f"{protocol}://127.0.0.1:0", accepted.put) as listener:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _ECHO, listener.contact_address),
            env={**os.environ, "DASK_XSHM__DIRECTORY": str(parent)},
        )
        comm = await accepted.get()
        before = xshm.stats()
        await comm.write({"x": to_serialize(sent)})
        received = (await comm.read())["x"]
        await comm.close()
        assert await process.wait() == 0
    return received, growth(before)


def test_processes_of_one_directory_exchange_handles(directory: Path) -> None:
    sent = np.arange(ITEMS)
    received, grown = asyncio.run(_echoed_by_process(sent, directory))
    np.testing.assert_array_equal(received, sent)
    assert grown["handles_sent"] == grown["handles_received"] == 1
    assert grown["bytes_sent_inline"] == 0


def test_processes_of_two_directories_exchange_ordinary_bytes(
    directory: Path, tmp_path: Path
) -> None:
    sent = np.arange(ITEMS)
    received, grown = asyncio.run(_echoed_by_process(sent, tmp_path))
    np.testing.assert_array_equal(received, sent)
    assert received.flags.writeable
    assert grown["handles_sent"] == grown["handles_received"] == 0
    assert grown["bytes_sent_inline"] == LARGE


@pytest.mark.parametrize(
    "told", [None, {}, 3, {"version": 0}, {"domain": "0" * 32}, {"version": 1, "domain": None}]
)
def test_to_a_peer_that_tells_anything_else_go_ordinary_bytes(told: Any) -> None:
    async def run() -> None:
        if isinstance(told, dict) and len(told) == 1:
            overrides = {"xshm": {**who_am_i(), **told}}
        else:
            overrides = {"xshm": told}
        async with connected("shm", **overrides) as (near, far):
            before = xshm.stats()
            for sender, receiver in ((near, far), (far, near)):
                assert (await transfer(np.ones(ITEMS), sender, receiver)).sum() == ITEMS
            assert growth(before)["handles_sent"] == 0
            assert growth(before)["bytes_sent_inline"] == 2 * LARGE

    asyncio.run(run())


@on_both
@pytest.mark.parametrize("compression", ["zlib", "auto", None])
@pytest.mark.parametrize("domain", ["one", "two"])
def test_compression(protocol: str, compression: str | None, domain: str) -> None:
    sent = np.zeros((3, ITEMS // 3))

    async def run() -> None:
        overrides = {} if domain == "one" else {"xshm": None}
        with dask.config.set({"distributed.comm.compression": compression}):
            # distributed takes two addresses for two hosts, between which it compresses.
            async with connected(protocol, host="127.0.0.2", **overrides) as (near, far):
                assert not near.same_host
                received = await transfer(sent, near, far)
                np.testing.assert_array_equal(received, sent)
                assert received.flags.writeable
                if protocol == "shm" and domain == "one":
                    assert near.handshake_options["compression"] is None
                elif compression == "zlib":
                    assert near.handshake_options["compression"] == "zlib"

    asyncio.run(run())


# ---- a hostile peer ----


@contextlib.asynccontextmanager
async def raw_connection(address: str) -> AsyncIterator[TCP]:
    """A peer that shook hands as one of our domain, and now writes envelopes as it likes."""
    comm = await TCPConnector().connect(address.removeprefix("shm://"), deserialize=False)
    try:
        await comm.read()
        hello = {**comm.handshake_info(), "xshm": who_am_i()}
        await comm.write(Serialized({"handles": [], "quick": False}, dumps(hello)))
        yield comm
    finally:
        comm.abort()


def _frames(handle: Handle) -> tuple[list[bytes], int]:
    """The small frames of a message, and the place of its only large one."""
    frames = dumps(
        {"x": to_serialize(np.zeros(handle.nbytes, "u1"))}, context={"compression": None}
    )
    return [bytes(frame) for frame in frames[:-1]], len(frames) - 1


def _listing(*entries: Any) -> Callable[[Handle], Any]:
    def envelope(handle: Handle) -> Serialized:
        small, place = _frames(handle)
        filled = [entry(place, handle) if callable(entry) else entry for entry in entries]
        return Serialized({"handles": filled, "quick": False}, small)

    return envelope


def _changed(**fields: Any) -> Callable[[Handle], Any]:
    return _listing(lambda place, handle: (place, *handle._replace(**fields)))


HOSTILE: dict[str, Callable[[Handle], Any]] = {
    "no envelope": lambda handle: {"op": "identity"},
    "another header": lambda handle: Serialized({"serializer": "pickle"}, [b"x"]),
    "handles not a list": lambda handle: Serialized({"handles": {"a": 1}, "quick": False}, []),
    "an entry not a list": _listing("abc"),
    "an empty entry": _listing(()),
    "too few fields": _listing(lambda place, handle: (place, *handle[:3])),
    "too many fields": _listing(lambda place, handle: (place, *handle, 1)),
    "a place too large": _listing(lambda place, handle: (place + 1, *handle)),
    "a place below zero": _listing(lambda place, handle: (-1, *handle)),
    "a place twice": _listing(*[lambda place, handle: (place, *handle)] * 2),
    "a token elsewhere": _changed(token="../../../../etc/passwd"),
    "a token elsewhere, well-named": _changed(token=f"../{'0' * 16}.1.token"),
    "a token with a zero": _changed(token=f"{'0' * 16}.1.token\0"),
    "a token with an end of line": _changed(token=f"{'0' * 16}.1.token\n"),
    "a token of bytes": _changed(token=b"x"),
    "a segment elsewhere": _changed(segment=f"../{'0' * 16}.1.segment"),
    "a token that is not there": _changed(token=f"{'0' * 16}.1.token"),
    "an offset below zero": _changed(offset=-4096),
    "an offset past the end": _changed(offset=2**40),
    "an offset near the largest": _changed(offset=2**63 - 1),
    "an offset not a number": _changed(offset=0.5),
    "no bytes": _changed(nbytes=0),
    "bytes below zero": _changed(nbytes=-1),
    "bytes past the end": _changed(nbytes=2 * LARGE),
    "very many bytes": _changed(nbytes=2**63 - 1),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_envelope_ends_its_connection_and_nothing_else(name: str) -> None:
    errors: list[OSError] = []

    async def serve(comm: Comm) -> None:
        try:
            await echo(comm)
        except OSError as error:
            assert comm.closed()
            errors.append(error)

    async def run() -> None:
        async with listen("shm://127.0.0.1:0", serve) as listener:
            honest = await connect(listener.contact_address)
            async with raw_connection(listener.contact_address) as hostile:
                handle = Outbox().copy(np.zeros(LARGE, "u1"))
                assert handle is not None
                before = xshm.stats()
                await hostile.write(HOSTILE[name](handle))
                with pytest.raises(CommClosedError):
                    await asyncio.wait_for(hostile.read(), 10)
            grown = growth(before)
            assert grown["handles_received"] == grown["leased_segments"] == 0
            await honest.write({"x": to_serialize(np.ones(ITEMS))})
            assert (await honest.read())["x"].sum() == ITEMS
            await honest.close()

    asyncio.run(run())
    (error,) = errors
    assert isinstance(error, HandleError)


def test_a_link_in_place_of_a_token_is_not_followed(here: Directory, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret" * LARGE)
    token = f"{'0' * 16}.1.token"
    (here.segments / token).symlink_to(secret)

    async def serve(comm: Comm) -> None:
        with pytest.raises(HandleError, match="cannot take"):
            await echo(comm)

    async def run() -> None:
        async with (
            listen("shm://127.0.0.1:0", serve) as listener,
            raw_connection(listener.contact_address) as hostile,
        ):
            handle = Handle(token, f"{'0' * 16}.1.segment", 0, LARGE)
            small, place = _frames(handle)
            await hostile.write(Serialized({"handles": [(place, *handle)], "quick": False}, small))
            with pytest.raises(CommClosedError):
                await hostile.read()

    asyncio.run(run())
    (here.segments / token).unlink(missing_ok=True)
