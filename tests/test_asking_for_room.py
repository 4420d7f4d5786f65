"""A directory that gets short of room: all processes are asked for what they keep idle."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import dask.config
import numpy as np
import pytest

import xshm
from tests.clusters import by_handle, cluster, total, workers_of
from tests.conftest import tmpfs, wait_until
from tests.test_process import Peer, counted, held
from xshm import _core, process
from xshm.directory import configured
from xshm.errors import NoRoomError
from xshm.handle import Handle
from xshm.handover import Outbox, receive

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts a tmpfs: only root may"),
]

MIB = 2**20


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 128 MiB, which is the directory of the test."""
    with tmpfs(tmp_path / "small", "size=128m") as mounted:
        yield mounted


@pytest.fixture
def hoarder(small: Path) -> Iterator[Peer]:
    """A process that keeps 100 MiB for its next arrays."""
    with Peer() as peer:
        peer(keep_idle, 100)
        yield peer


# ---- what other processes do ----


def keep_idle(mib: int) -> None:
    """Have so much memory of freed arrays."""
    with xshm.allocator():
        arrays = [np.ones(10 * MIB // 8) for _ in range(mib // 10)]
        assert all(map(xshm.is_shared, arrays))


def work_until_asked(seconds: float = 30) -> int:
    """Use small arrays until something was given back; how much that was."""
    before = _core.count()["given_bytes"]
    end = time.monotonic() + seconds
    with xshm.allocator():
        while _core.count()["given_bytes"] == before and time.monotonic() < end:
            np.ones(2 * MIB // 8)
            time.sleep(0.005)
    return _core.count()["given_bytes"] - before


def large_array() -> np.ndarray:
    """An array that has no room beside what the hoarder keeps."""
    with xshm.allocator():
        return np.full(60 * MIB // 8, 7.0)


# ---- plain processes ----


def test_a_process_that_works_gives_what_others_need(hoarder: Peer) -> None:
    hoarder.start(work_until_asked)
    wait_until(lambda: xshm.is_shared(large_array()), "an array born in a segment", 30)
    assert hoarder.result() >= 40 * MIB
    # Not more than it takes, and not what is in use.
    assert hoarder(counted)["free_bytes"] >= 20 * MIB


def test_a_process_that_does_nothing_keeps_what_it_has(hoarder: Peer) -> None:
    assert not xshm.is_shared(large_array())
    assert hoarder(counted)["free_bytes"] == 100 * MIB
    assert not xshm.is_shared(large_array())


def test_what_is_copied_waits_for_the_room_that_others_give(hoarder: Peer) -> None:
    hoarder.start(work_until_asked)
    handle = Outbox().copy(bytes(60 * MIB), patient=True)
    assert handle is not None
    assert receive(handle) == bytes(60 * MIB)
    assert hoarder.result() > 0


def test_a_container_waits_for_the_room_that_others_give(hoarder: Peer) -> None:
    hoarder.start(work_until_asked)
    xshm.publish(np.ones(60 * MIB // 8), "large")
    assert (xshm.open("large") == 1).all()
    xshm.unlink("large")
    assert hoarder.result() > 0


def test_a_container_takes_the_place_of_own_idle_arrays(small: Path) -> None:
    keep_idle(100)
    xshm.publish(np.ones(60 * MIB // 8), "large")
    assert 0 < _core.count()["free_bytes"] <= 60 * MIB
    xshm.unlink("large")


def test_what_the_directory_can_never_hold_costs_nobody_anything(hoarder: Peer) -> None:
    keep_idle(10)
    hoarder.start(work_until_asked, 1)
    with xshm.allocator():
        assert not xshm.is_shared(np.empty(200 * MIB))
    assert Outbox().copy(bytes(200 * MIB), patient=True) is None
    assert _core.count()["free_bytes"] == 10 * MIB
    assert hoarder.result() == 0


def test_waiting_in_vain_is_not_repeated_at_once(hoarder: Peer) -> None:
    process.keep_open()
    for i in range(100):  # 50 s, if each waited
        with pytest.raises(NoRoomError):
            xshm.SharedArray.from_shape(60 * MIB)
        if i:
            assert Outbox().copy(bytes(60 * MIB), patient=True) is None


@pytest.mark.parametrize("kind", ["link", "hard link", "folder", "pipe", "huge"])
def test_what_somebody_puts_in_the_place_of_the_file_does_no_harm(
    kind: str, hoarder: Peer, small: Path
) -> None:
    wanted, precious = configured().path / "wanted", small / "precious"
    precious.write_bytes(b"precious")
    match kind:
        case "link":
            wanted.symlink_to(precious)
        case "hard link":
            wanted.hardlink_to(precious)
        case "folder":
            wanted.mkdir()
        case "pipe":
            os.mkfifo(wanted)
        case "huge":
            with wanted.open("wb") as file:
                file.truncate(2**62)
    assert (large_array() == 7).all()
    hoarder(keep_idle, 20)
    assert precious.read_bytes() == b"precious"
    precious.unlink()


# ---- clusters ----


def test_workers_and_clients_give_what_a_worker_needs(small: Path) -> None:
    with dask.config.set({"distributed.client.heartbeat": "100ms"}), cluster() as client:
        one, other = workers_of(client)
        client.run(keep_idle, 50, workers=[one])
        keep_idle(50)  # here, in the client

        def is_born_in_a_segment() -> bool:
            x = client.submit(large_array, workers=[other], pure=False)
            return client.submit(xshm.is_shared, x, workers=[other], pure=False).result()

        wait_until(is_born_in_a_segment, "an array born in a segment", 30)
        with by_handle(client, 60 * MIB):
            x = client.submit(large_array, workers=[other])
            sent = client.submit(np.sum, x, workers=[one], allow_other_workers=False)
            assert sent.result() == 7 * 60 * MIB // 8
        assert total(client, "given_bytes") >= 40 * MIB
        del x


# ---- any order ----


def exchange(seed: int, inbox: list[tuple[Handle, float]]) -> list[tuple[Handle, float]]:
    """Take what was sent, make, compare, forget and send arrays of all sizes."""
    arrays: list[tuple[np.ndarray, float]] = held.setdefault("arrays", [])
    outbox = held.setdefault("outbox", Outbox())
    choose = random.Random(seed)
    arrays += [(np.frombuffer(receive(handle)), number) for handle, number in inbox]
    sent = []
    with xshm.allocator():
        for i in range(12):
            number = seed + i / 16
            arrays.append((np.full(choose.randrange(MIB, 12 * MIB) // 8, number), number))
            while sum(x.nbytes for x, _ in arrays) > 40 * MIB:
                x, number = arrays.pop(choose.randrange(len(arrays)))
                assert (x == number).all()
                handle = outbox.share(x) or outbox.copy(x)
                if handle is not None and len(sent) < 2:
                    sent.append((handle, number))
    return sent


def test_pools_that_together_are_larger_than_the_directory(small: Path) -> None:
    """Three processes that want 120 MiB, of which they keep as much again, have 128."""
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer()) for _ in range(3)]
        for peer in peers:
            peer(own_pool_keeps_all)
        sent: list[list[tuple[Handle, float]]] = [[] for _ in peers]
        for turn in range(12):
            for i, peer in enumerate(peers):
                peer.start(exchange, 3 * turn + i, sent[i])
            answers = [peer.result() for peer in peers]
            sent = [*answers[1:], answers[0]]
        given = [peer(counted)["given_bytes"] for peer in peers]
        assert all(now > _core.count()["given_bytes"] for now in given), given
        for peer in peers:
            peer(held.clear)


def own_pool_keeps_all() -> None:
    """Whatever the machine's memory."""
    dask.config.set({"xshm.keep": "1 GiB"})
