"""Hand-over: what arrives, who sees whose writes, how long what nobody takes is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import dask.config
import numpy as np
import pytest

import xshm
from tests.conftest import segment_names
from tests.test_process import Peer, hold_array, is_all, share_array, take
from xshm import _core, handover
from xshm.directory import Directory
from xshm.errors import LostHandleError
from xshm.handle import Handle
from xshm.handover import Outbox, receive

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@pytest.mark.usefixtures("allocating")
def test_bytes_arrive_and_each_side_keeps_its_own_writes(here: Directory) -> None:
    sent = np.arange(1_000_000.0)
    handle = Outbox().share(sent)
    assert handle is not None

    sent[0] = -1  # after sending: reaches nobody
    received = np.frombuffer(receive(handle))
    assert received[0] == 0
    received[1] = -2
    assert sent[1] == 1
    np.testing.assert_array_equal(received[2:], sent[2:])


@pytest.mark.usefixtures("allocating")
def test_a_handle_can_be_taken_once(here: Directory) -> None:
    sent = np.ones(1_000_000)
    handle = Outbox().share(sent)
    assert handle is not None
    kept = receive(handle)
    with pytest.raises(LostHandleError, match="somebody else has taken it"):
        receive(handle)
    assert kept[0] == 0


def test_ordinary_memory_is_copied_in(here: Directory) -> None:
    sent = np.arange(1_000_000.0)
    outbox = Outbox()
    assert outbox.share(sent) is None
    handle = outbox.copy(sent)
    assert handle is not None
    np.testing.assert_array_equal(np.frombuffer(receive(handle)), sent)
    assert len(segment_names(here)) == 1  # kept for the next one
    xshm.trim()
    assert segment_names(here) == []


@pytest.fixture
def peer() -> Iterator[Peer]:
    """Another process of the same directory."""
    with Peer() as other:
        yield other


@pytest.mark.usefixtures("allocating")
@pytest.mark.parametrize("how", ["share", "copy"])
def test_between_processes_each_side_keeps_its_own_writes(how: str, peer: Peer) -> None:
    sent = np.full(300_000, 1.0)
    handle = getattr(Outbox(), how)(sent)
    assert peer(take, handle) == 1
    sent[:] = 2
    assert peer(is_all, 1)
    back = np.frombuffer(receive(peer(share_array, 1)))
    assert (back == 1).all()
    back[:] = 3
    assert peer(is_all, 1)
    assert (sent == 2).all()


@pytest.mark.usefixtures("allocating")
def test_one_array_to_many_receivers(here: Directory) -> None:
    """One segment, however many have it."""
    peers = [Peer() for _ in range(4)]
    try:
        x, outbox = np.full(300_000, 1.0), Outbox()
        for other in peers:
            assert other(take, outbox.share(x)) == 1
        assert len(segment_names(here)) == 1
        del x
        assert all(other(is_all, 1) for other in peers)
    finally:
        for other in peers:
            other.end()


@pytest.mark.usefixtures("allocating")
@pytest.mark.parametrize(
    "part",
    [
        slice(0, 1),
        slice(1, None),
        slice(511, 513),
        slice(512, 1024),
        slice(123_456, 765_432),
        slice(-1, None),
    ],
    ids=str,
)
def test_parts_of_an_array(part: slice) -> None:
    x = np.arange(1_000_000.0)
    handle = Outbox().share(x[part])
    assert handle is not None
    received = np.frombuffer(receive(handle))
    np.testing.assert_array_equal(received, x[part])
    received[:] = -1
    np.testing.assert_array_equal(x, np.arange(1_000_000.0))


@pytest.mark.usefixtures("allocating")
def test_part_of_a_lease_of_a_part(peer: Peer) -> None:
    x = np.arange(1_000_000.0)
    first = Outbox().share(x[1000:900_000])
    assert first is not None
    lease = np.frombuffer(receive(first))
    second = Outbox().share(lease[777:-777])
    assert second is not None
    assert (second.segment, second.offset) == (first.segment, 8 * 1777)
    np.testing.assert_array_equal(np.frombuffer(receive(second)), x[1777 : 900_000 - 777])


@pytest.mark.parametrize("size", [1, 7, 4095, 4096, 4097, 1_000_000, 2**20 + 1])
@pytest.mark.parametrize("kind", [bytes, bytearray, np.array])
def test_copies_of_any_size_and_of_any_buffer(size: int, kind: Callable[..., Any]) -> None:
    content = (b"abcdefg" * (size // 7 + 1))[:size]
    buffer = np.frombuffer(content, "u1") if kind is np.array else kind(content)
    handle = Outbox().copy(buffer)
    assert handle is not None
    assert handle.nbytes == size
    received = receive(handle)
    assert received == content
    assert not received.readonly


def test_a_copy_into_a_larger_one_that_was_used_shows_only_its_own(here: Directory) -> None:
    outbox = Outbox()
    first = outbox.copy(b"secret" * 200_000)
    assert first is not None
    receive(first)
    second = outbox.copy(b"x" * 1_190_000)
    assert second is not None
    assert second.segment == first.segment
    assert receive(second) == b"x" * 1_190_000


@pytest.mark.usefixtures("allocating")
@pytest.mark.parametrize("order", ["C", "F"])
def test_contiguous_in_either_order(order: Any) -> None:
    x = np.arange(1_000_000.0).reshape(1000, 1000).copy(order=order)
    handle = Outbox().share(x)
    assert handle is not None
    received = np.frombuffer(receive(handle)).reshape(1000, 1000, order=order)
    np.testing.assert_array_equal(received, x)


@pytest.mark.usefixtures("allocating")
def test_a_lease_lives_as_long_as_any_view_of_it() -> None:
    x = np.arange(1_000_000.0)
    handle = Outbox().share(x)
    assert handle is not None
    view = np.frombuffer(receive(handle))[10:20:3]
    assert _core.count()["leased_segments"] == 1
    del x
    np.testing.assert_array_equal(view, [10, 13, 16, 19])
    del view
    assert _core.count()["leased_segments"] == _core.count()["leased_bytes"] == 0


@pytest.mark.usefixtures("allocating")
def test_the_sender_may_end_once_it_was_taken(peer: Peer) -> None:
    peer(hold_array, 1)
    lease = np.frombuffer(receive(peer(share_array, 1)))
    peer.end()
    assert (lease == 1).all()


@pytest.mark.usefixtures("allocating")
def test_a_lease_is_an_orphan_once_its_owner_has_ended(peer: Peer) -> None:
    peer(hold_array, 1)
    lease = receive(peer(share_array, 1))
    assert _core.orphans() == []
    peer.end()
    ((_, nbytes),) = _core.orphans()
    assert nbytes == lease.nbytes
    del lease
    assert _core.orphans() == []


# ---- Tokens that nobody takes.


def test_withdrawing_removes_what_was_not_taken(here: Directory) -> None:
    outbox, other = Outbox(), Outbox()
    handles = [outbox.copy(b"a" * 1000) for _ in range(3)]
    theirs = other.copy(b"b" * 1000)
    assert theirs is not None
    assert handles[0] is not None
    receive(handles[0])
    outbox.withdraw()
    assert [name for name in segment_names(here) if name.endswith("token")] == [theirs.token]
    for handle in handles:
        assert handle is not None
        with pytest.raises(LostHandleError, match="withdrawn"):
            receive(handle)
    assert receive(theirs) == b"b" * 1000
    outbox.withdraw()


def linger(grace: float) -> Handle | None:
    """Send something, and close the connection in order; what was sent."""
    with dask.config.set({"xshm.grace": grace}):
        outbox = Outbox()
        handle = outbox.copy(b"a" * 1000)
        assert outbox.linger()
        assert not outbox.linger()
    handover.sweep()
    return handle


def test_what_lingers_can_be_taken_until_the_grace_period_is_over(
    here: Directory, peer: Peer
) -> None:
    lost = peer(linger, 0)
    with pytest.raises(LostHandleError):
        receive(lost)
    kept = peer(linger, 1000)
    peer(handover.sweep)
    assert receive(kept) == b"a" * 1000
    untaken = peer(linger, 1000)
    assert untaken.token in segment_names(here)
    peer.end()
    assert untaken.token not in segment_names(here)


def test_nothing_lingers_if_all_was_taken(here: Directory) -> None:
    outbox = Outbox()
    handle = outbox.copy(b"a" * 1000)
    assert handle is not None
    receive(handle)
    assert not outbox.linger()
    assert not Outbox().linger()


def test_thousands_of_hand_overs_do_not_pile_up(here: Directory) -> None:
    outbox = Outbox()
    untaken = []
    for i in range(2000):
        handle = outbox.copy(bytes([i % 256]) * 100)
        assert handle is not None
        if i % 10:
            assert receive(handle) == bytes([i % 256]) * 100
        else:
            untaken.append((i, handle))
    assert len(outbox._tokens) < 600  # those taken are forgotten from time to time
    for i, handle in untaken:
        assert receive(handle) == bytes([i % 256]) * 100


def test_what_was_exchanged_is_counted() -> None:
    before = xshm.stats()
    with xshm.allocator():
        x = np.ones(2**18)
    for how, buffer in (("share", x), ("copy", bytes(1000))):
        handle = getattr(Outbox(), how)(buffer)
        receive(handle)
    after = xshm.stats()
    assert {key: after[key] - before[key] for key in after if after[key] != before[key]} == {
        "handles_sent": 2,
        "bytes_sent_by_handle": 2**21 + 1000,
        "bytes_copied_in": 1000,
        "handles_received": 2,
        "bytes_received_by_handle": 2**21 + 1000,
        "live_segments": 1,
        "live_bytes": 2**21,
        "waiting_segments": 1,
        "waiting_bytes": 4096,
        "mappings": 4,
        "created": 2,
        "sealed": 1,
    }
