"""What shm:// adds to what distributed expects of a comm: handles, and who may take them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
from pathlib import Path
from typing import Any

import dask.config
import numpy as np
import pytest
from distributed.comm.core import Comm, CommClosedError, connect, listen
from distributed.protocol import Serialized, to_serialize

import xshm
from tests.clusters import ITEMS, LARGE, PROTOCOLS, connected, growth, soon, transfer
from tests.conftest import segment_names
from xshm.dask.domain import who_am_i
from xshm.directory import Directory, configured

on_both = pytest.mark.parametrize("protocol", PROTOCOLS)


def tokens(here: Directory) -> list[str]:
    """Hand-overs that nobody has taken."""
    return [name for name in segment_names(here) if name.endswith(".token")]


# ---- handles ----


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
            with pytest.raises(CommClosedError):
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
from tests.clusters import echo

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


def test_with_a_process_of_a_copy_of_the_directory_too(directory: Path, tmp_path: Path) -> None:
    """As in virtual machines that were started from one snapshot."""
    folder = tmp_path / f"xshm-{os.geteuid()}"
    folder.mkdir(mode=0o700)
    (folder / "domain").symlink_to(configured().domain)
    sent = np.arange(ITEMS)
    received, grown = asyncio.run(_echoed_by_process(sent, tmp_path))
    assert (folder / "domain").readlink() == Path(configured().domain)
    np.testing.assert_array_equal(received, sent)
    assert grown["handles_sent"] == grown["handles_received"] == 0


@pytest.mark.parametrize("process_id", [None, "0" * 16, "", ".", "../domain"])
def test_a_peer_that_is_no_process_here_gets_ordinary_bytes(process_id: Any) -> None:
    async def run() -> None:
        async with connected("shm", xshm={**who_am_i(), "process": process_id}) as (near, far):
            before = xshm.stats()
            assert (await transfer(np.ones(ITEMS), far, near)).sum() == ITEMS
            assert growth(before)["handles_sent"] == 0

    asyncio.run(run())


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
