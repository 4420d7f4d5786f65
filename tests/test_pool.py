"""The pool: what is recycled and when, what is kept warm, who may write to what.

The invariants are those of docs/design.md.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask.config
import numpy as np
import pytest

import xshm
from tests.conftest import segment_names, wait_until
from tests.test_process import Peer, drop, hold_array, is_all, share_array, take
from xshm import _core, process
from xshm.directory import Directory
from xshm.errors import LostHandleError
from xshm.handle import Handle
from xshm.handover import Outbox, receive

pytestmark = [
    pytest.mark.usefixtures("allocating"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]

KIB, MIB = 2**10, 2**20


def array(number: float, nbytes: int = 2 * MIB) -> np.ndarray:
    """An array that holds one number all over, in a segment."""
    x = np.full(nbytes // 8, float(number))
    assert xshm.is_shared(x)
    return x


def name_of(x: np.ndarray) -> str:
    """Name of the segment that an array lies in."""
    place = _core.locate(x)
    assert place is not None
    return place[1]


def state_of(x: np.ndarray) -> str:
    """How an array lies in its segment."""
    place = _core.locate(x)
    assert place is not None
    return place[0]


def send(x: np.ndarray) -> Handle:
    """Send an array as it is."""
    handle = Outbox().share(x)
    assert handle is not None
    return handle


def taken(handle: Handle) -> np.ndarray:
    """Receive an array of floats."""
    return np.frombuffer(receive(handle))


@pytest.fixture
def peer() -> Iterator[Peer]:
    """Another process of the same directory."""
    with Peer() as other:
        yield other


@pytest.fixture
def limit() -> Iterator[Callable[..., None]]:
    """Change the configuration, and make the pool follow."""
    with contextlib.ExitStack() as stack:

        def change(**values: Any) -> None:
            stack.enter_context(dask.config.set({f"xshm.{k}": v for k, v in values.items()}))
            process.set_limits()

        yield change
    process.set_limits()


# ---- Invariant 2: a segment is recycled only when its array is gone, an exclusive lock can
# ---- be had and, under that lock, its link count is 1.


def test_a_segment_is_used_again_for_the_next_array_of_its_size() -> None:
    x = array(1)
    name = name_of(x)
    del x
    assert _core.count()["free_segments"] == 1
    y = array(2)
    assert name_of(y) == name
    assert (y == 2).all()
    counts = _core.count()
    assert counts["free_segments"] == counts["free_bytes"] == 0
    assert (counts["live_segments"], counts["live_bytes"]) == (1, 2 * MIB)


def test_a_segment_is_used_again_for_a_slightly_smaller_array_as_it_is(here: Directory) -> None:
    x = array(1, 4 * MIB)
    name = name_of(x)
    del x
    y = array(2, 4 * MIB - 5000)  # an eighth may stay unused
    assert name_of(y) == name
    assert blocks_of(here, name) == 4 * MIB


def blocks_of(here: Directory, name: str) -> int:
    """Bytes of memory that a segment takes."""
    return (here.segments / name).stat().st_blocks * 512


@pytest.mark.parametrize("handed_out", [False, True])
def test_a_segment_is_used_again_for_a_smaller_array_and_its_rest_given_back(
    here: Directory, handed_out: bool
) -> None:
    x = array(1, 15 * MIB)
    name = name_of(x)
    if handed_out:
        taken(send(x))
    del x
    y = array(2, 8 * MIB)
    assert name_of(y) == name
    counts = _core.count()
    assert (counts["live_bytes"], counts["free_bytes"]) == (8 * MIB, 0)
    assert blocks_of(here, name) == 8 * MIB
    assert (y == 2).all()
    assert (taken(send(y)) == 2).all()


def test_bytes_copied_in_use_a_larger_segment_again_and_so_does_the_next_array(
    here: Directory,
) -> None:
    first, second = bytes(range(256)) * 12 * KIB, bytes(range(255, -1, -1)) * 10 * KIB
    for data in first, second:  # the first into a file that is not mapped
        handle = Outbox().copy(data)
        assert handle is not None
        assert receive(handle) == data
        assert blocks_of(here, handle.segment) == len(data)
    x = array(1)
    assert name_of(x) == handle.segment
    assert blocks_of(here, handle.segment) == 2 * MIB
    assert (np.fromfile(here.segments / handle.segment) == 1).all()


def test_of_several_segments_the_nearest_in_size_is_used_again() -> None:
    arrays = [array(1, nbytes * MIB) for nbytes in (3, 5, 4, 7)]
    names = [name_of(x) for x in arrays]
    arrays.clear()
    arrays = [array(1, 4 * MIB) for _ in range(4)]
    assert [name_of(x) for x in arrays[:3]] == [names[2], names[1], names[3]]
    assert name_of(arrays[3]) not in names  # 3 MiB are too few


def test_a_segment_of_twice_the_size_is_not_cut() -> None:
    x = array(1, 4 * MIB)
    name = name_of(x)
    del x
    assert name_of(array(2)) != name
    assert _core.count()["free_bytes"] == 6 * MIB


def test_nothing_is_cut_that_somebody_may_still_read(here: Directory, peer: Peer) -> None:
    x, y = array(1, 4 * MIB), array(1, 4 * MIB)
    in_flight = send(x)
    lease = send(y)
    peer(take, lease)
    del x, y
    z = array(2, 3 * MIB)
    assert name_of(z) not in (in_flight.segment, lease.segment)
    for handle in in_flight, lease:
        assert blocks_of(here, handle.segment) == 4 * MIB
    assert peer(is_all, 1)
    assert (taken(in_flight) == 1).all()


def test_not_recycled_while_a_token_exists() -> None:
    x = array(1)
    name, outbox = name_of(x), Outbox()
    handle = outbox.share(x)
    assert handle is not None
    del x
    y = array(2)
    assert name_of(y) != name
    assert taken(handle)[-1] == 1

    z = array(3)  # both are gone now, and the lease too
    assert name_of(z) == name


def test_not_recycled_while_a_lease_is_held_here() -> None:
    x = array(1)
    name = name_of(x)
    lease = taken(send(x))
    del x
    y = array(2)
    assert name_of(y) != name
    assert (lease == 1).all()
    del lease
    assert name_of(array(3)) == name


def test_not_recycled_while_a_lease_is_held_in_another_process(peer: Peer) -> None:
    x = array(1)
    name = name_of(x)
    peer(take, send(x))
    del x
    assert _core.count()["waiting_segments"] == 1
    y = array(2)
    assert name_of(y) != name
    assert peer(is_all, 1)
    peer(drop, 1)
    z = array(3)
    assert name_of(z) == name
    assert _core.count()["waiting_segments"] == 0


def test_not_recycled_while_one_of_two_leases_is_held(peer: Peer) -> None:
    x = array(1)
    name = name_of(x)
    with Peer() as another:
        another(take, send(x))
        peer(take, send(x))
        del x
        another.kill()
        second = array(2)
        assert name_of(second) != name
        assert peer(is_all, 1)
    peer.kill()
    assert name_of(array(3)) == name


def test_a_lease_that_was_handed_on_keeps_the_segment(peer: Peer) -> None:
    x = array(1)
    name = name_of(x)
    peer(take, send(x))
    handle = peer(share_array, 1)
    assert handle.segment == name
    del x
    peer(drop, 1)
    assert name_of(array(2)) != name  # the token of the other process is in flight
    lease = taken(handle)
    assert name_of(array(2)) != name
    assert (lease == 1).all()


def test_withdrawn_makes_it_free_again() -> None:
    x = array(1)
    name, outbox = name_of(x), Outbox()
    handle = outbox.share(x)
    assert handle is not None
    del x
    outbox.withdraw()
    y = array(2)
    assert name_of(y) == name
    with pytest.raises(LostHandleError):
        receive(handle)
    assert (y == 2).all()


def test_pushed_off_the_waiting_ones_its_name_goes_and_its_bytes_stay(
    here: Directory, limit: Callable[..., None], peer: Peer
) -> None:
    limit(waiting=2)
    for number in range(5):
        x = array(number)
        peer(take, send(x))
        del x
    assert _core.count()["waiting_segments"] == 2
    assert len(segment_names(here)) == 2
    later = [array(10 + i) for i in range(5)]
    assert all(peer(is_all, number) for number in range(5))
    del later


def test_none_may_wait(here: Directory, limit: Callable[..., None]) -> None:
    limit(waiting=0)
    x = array(1)
    handle = send(x)
    del x
    assert segment_names(here) == [handle.token]
    assert (taken(handle) == 1).all()
    assert segment_names(here) == []


def test_idle_bytes_are_bounded(here: Directory, limit: Callable[..., None]) -> None:
    limit(keep="5 MiB")
    arrays = [array(i) for i in range(6)]
    newest = name_of(arrays[-1])
    while arrays:
        del arrays[0]
    counts = _core.count()
    assert (counts["free_segments"], counts["free_bytes"]) == (2, 4 * MIB)
    assert len(segment_names(here)) == 2
    assert newest in segment_names(here)  # the one that was idle longest goes first

    limit(keep=0)
    assert segment_names(here) == []
    array(1)
    assert segment_names(here) == []


def test_the_one_that_was_idle_longest_goes_first_of_whatever_size(here: Directory) -> None:
    arrays = [array(1, 4 * MIB), array(2, 2 * MIB), array(3, 3 * MIB), array(4, 2 * MIB)]
    arrays[3][0] = 0
    handle = send(arrays[3])
    names = [name_of(x) for x in arrays]
    for i in (0, 3, 1, 2):
        arrays[i] = np.empty(0)
    left = [set(names), {names[1], names[2], names[3]}, {names[1], names[2]}, {names[2]}, set()]
    for keep, expected in zip((11, 7, 5, 3, 0), left, strict=True):
        xshm.trim(keep * MIB)
        assert set(segment_names(here)) - {handle.token} == expected
    assert taken(handle)[0] == 0


def test_waiting_ones_count_as_idle_bytes(here: Directory, limit: Callable[..., None]) -> None:
    limit(keep="5 MiB")
    arrays = [array(i) for i in range(4)]
    leases = [taken(handle) for handle in map(send, arrays)]
    arrays.clear()
    counts = _core.count()
    assert counts["waiting_bytes"] + counts["free_bytes"] == 4 * MIB
    assert all((lease == i).all() for i, lease in enumerate(leases))


def test_trim_gives_idle_segments_back(here: Directory) -> None:
    arrays = [array(i) for i in range(4)]
    kept = arrays.pop()
    arrays.clear()
    assert xshm.trim(2 * MIB) == 4 * MIB
    assert _core.count()["free_bytes"] == 2 * MIB
    assert xshm.trim() == 2 * MIB
    assert xshm.trim() == 0
    assert segment_names(here) == [name_of(kept)]
    assert (kept == 3).all()


def test_sizes_and_counts_agree_after_many_arrays(here: Directory) -> None:
    random = np.random.default_rng(0)
    live: list[np.ndarray] = []
    for i in range(300):
        if live and random.random() < 0.5:
            at = int(random.integers(len(live)))
            assert (live[at] == live[at][0]).all()
            del live[at]
        else:
            live.append(array(i, int(random.integers(MIB, 9 * MIB)) // 8 * 8))
    assert _core.count()["live_segments"] == len(live)
    live.clear()
    counts = _core.count()
    assert counts["live_segments"] == counts["live_bytes"] == 0
    assert counts["free_segments"] == len(segment_names(here))
    xshm.trim()
    counts = _core.count()
    assert counts["free_bytes"] == counts["free_segments"] == counts["mappings"] == 0


# ---- Invariant 3: a handle either gives the bytes that were sent or raises.


@pytest.mark.parametrize("size", [2 * MIB, MIB], ids=["as it was", "cut"])
def test_a_token_withdrawn_while_its_receiver_waits_for_the_lock_is_lost(
    here: Directory, size: int
) -> None:
    """Between the receiver's opening of the token and its lock the segment may be recycled."""
    x = array(1)
    outbox = Outbox()
    handle = outbox.share(x)
    assert handle is not None
    del x  # and with it our own shared lock
    outcome: list[object] = []

    def try_to_take() -> None:
        try:
            outcome.append(receive(handle))
        except LostHandleError as error:
            outcome.append(error)

    receiver = threading.Thread(target=try_to_take)
    descriptor = os.open(here.segments / handle.segment, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # as the owner does when it recycles
        inode = os.fstat(descriptor).st_ino
        receiver.start()
        wait_until(lambda: _waits_for(inode), "the receiver has opened the token")
        outbox.withdraw()
        os.ftruncate(descriptor, size)
        os.pwrite(descriptor, bytes(size), 0)
    finally:
        os.close(descriptor)
        receiver.join()
    assert isinstance(outcome[0], LostHandleError)
    assert _core.count()["leased_segments"] == 0


def _waits_for(inode: int) -> bool:
    locks = Path("/proc/locks").read_text().splitlines()
    return any("->" in line and f":{inode} " in line for line in locks)


def _take_until_told(path: str) -> tuple[int, int]:
    """Take every hand-over that appears in a fifo; how many came right, how many were lost."""
    right = lost = 0
    with open(path) as fifo:
        for line in fifo:
            number, *fields = line.split()
            handle = Handle(fields[0], fields[1], int(fields[2]), int(fields[3]))
            try:
                x = np.frombuffer(receive(handle))
            except LostHandleError:
                lost += 1
            else:
                assert (x == float(number)).all()
                right += 1
    return right, lost


def test_a_withdrawn_token_races_with_its_receiver(directory: Path, peer: Peer) -> None:
    """Whatever is received is what was sent, and not what the segment was used for next."""
    path = str(directory / "fifo")
    os.mkfifo(path)
    peer.start(_take_until_told, path)
    with open(path, "w", buffering=1) as fifo:
        for number in range(1000):
            x = array(number, 3 * MIB // 2)
            outbox = Outbox()
            handle = outbox.share(x)
            assert handle is not None
            del x
            print(number, *handle, file=fifo)
            for _ in range(number % 50):  # a little later each time
                os.stat(path)
            outbox.withdraw()
            array(-1, MIB if number % 2 else 3 * MIB // 2)
    os.unlink(path)
    right, lost = peer.result()
    assert right + lost == 1000
    assert lost > 0
    assert right > 0


def test_a_handle_of_an_ended_process_is_lost(peer: Peer) -> None:
    peer(hold_array, 1)
    handle = peer(share_array, 1)
    peer.end()
    with pytest.raises(LostHandleError, match="gone"):
        receive(handle)


# ---- Invariants 1 and 4: a sealed segment is not written to, and what was written to since
# ---- is not handed on as the original.


def test_the_owner_writes_to_the_segment_only_until_it_is_handed_out(here: Directory) -> None:
    x = array(1)
    assert state_of(x) == "open"
    x[:] = 2
    handle = send(x)
    assert state_of(x) == "sealed"
    x[:] = 3
    file = np.fromfile(here.segments / handle.segment, float)
    assert (file == 2).all()
    assert (x == 3).all()
    assert (taken(handle) == 2).all()


def test_a_receivers_writes_reach_nobody(here: Directory, peer: Peer) -> None:
    x = array(1)
    peer(take, send(x))
    lease = taken(send(x))
    lease[:] = 5
    assert (np.fromfile(here.segments / name_of(x), float) == 1).all()
    assert (x == 1).all()
    assert peer(is_all, 1)


def test_sealing_keeps_the_address_and_views() -> None:
    x = array(1)
    view, address = x[10:20], x.ctypes.data
    handle = send(x)
    assert x.ctypes.data == address
    view[:] = 7
    assert (x[10:20] == 7).all()
    assert (taken(handle) == 1).all()


def test_a_clean_lease_is_handed_on_as_the_original(peer: Peer) -> None:
    x = array(1)
    lease = taken(send(x))
    assert not _core.was_written(lease)
    handle = Outbox().share(lease)
    assert handle is not None
    assert handle.segment == name_of(x) == name_of(lease)
    assert peer(take, handle) == 1


@pytest.mark.parametrize("where", [0, 4096, 123_457, 2 * MIB - 1])
def test_a_lease_with_one_byte_written_is_not_handed_on(where: int) -> None:
    x = array(1)
    lease = receive(send(x))
    lease[where] = 255
    assert _core.was_written(lease)
    assert Outbox().share(lease) is None
    handle = Outbox().copy(lease)
    assert handle is not None
    assert handle.segment != name_of(x)
    assert receive(handle) == lease


def test_only_the_pages_that_are_sent_count() -> None:
    x = array(1)
    lease = taken(send(x))
    lease[0] = 2
    handle = Outbox().share(lease[1024:])
    assert handle is not None
    assert (handle.offset, handle.nbytes) == (8192, 2 * MIB - 8192)
    assert (taken(handle) == 1).all()
    assert Outbox().share(lease[10:20]) is None  # of the page that was written to


@pytest.mark.parametrize("where", [0, 200_000, -1])
def test_what_the_owner_wrote_after_handing_out_is_not_handed_on(where: int) -> None:
    x = array(1)
    first = send(x)
    assert not _core.was_written(x)
    x[where] = 2
    assert _core.was_written(x)
    assert Outbox().share(x) is None
    handle = Outbox().copy(x)
    assert handle is not None
    np.testing.assert_array_equal(taken(handle), x)
    assert (taken(first) == 1).all()


def test_reading_a_lease_does_not_make_it_written() -> None:
    lease = taken(send(array(1)))
    assert lease.sum() == lease.size
    assert not _core.was_written(lease)


def test_a_copy_of_a_lease_is_not_that_lease() -> None:
    lease = taken(send(array(1)))
    copied = lease.copy()
    handle = send(copied)
    assert handle.segment != name_of(lease)


def test_a_lease_whose_segment_lost_its_name_is_copied(
    limit: Callable[..., None], peer: Peer
) -> None:
    limit(waiting=0)
    x = array(1)
    lease = taken(send(x))
    del x
    assert not _core.was_written(lease)
    assert Outbox().share(lease) is None
    handle = Outbox().copy(lease)
    assert handle is not None
    assert peer(take, handle) == 1


def test_a_name_that_is_another_files_by_now_is_not_handed_on(here: Directory) -> None:
    x = array(1)
    lease = taken(send(x))
    path = here.segments / name_of(x)
    path.unlink()
    path.write_bytes(b"other" * MIB)
    before = segment_names(here)
    assert Outbox().share(lease) is None
    assert segment_names(here) == before
    path.unlink()


def test_an_open_segment_whose_name_is_gone_is_copied(here: Directory) -> None:
    x = array(1)
    (here.segments / name_of(x)).unlink()
    assert Outbox().share(x) is None
    handle = Outbox().copy(x)
    assert handle is not None
    assert (taken(handle) == 1).all()


def test_after_recycling_a_segment_is_open_and_shows_no_old_writes(here: Directory) -> None:
    x = array(1)
    send_and_take = taken(send(x))
    x[:] = 9  # private to the old array
    name = name_of(x)
    del x, send_and_take
    y = np.empty(2 * MIB // 8)
    assert name_of(y) == name
    assert state_of(y) == "open"
    y[:] = 4
    assert (np.fromfile(here.segments / name, float) == 4).all()
    assert (taken(send(y)) == 4).all()


# ---- Asking the kernel which pages are private, where it is older or has no /proc.

_WRITTEN = """
import subprocess
import sys
import numpy as np
import xshm
from xshm import _core
from xshm.handover import Outbox, receive

if "no-proc" in sys.argv:
    subprocess.run(["mount", "-t", "tmpfs", "none", "/proc"], check=True)
xshm.enable()
answers = []
for where in (None, 0, 2**19 + 3, 2**20 - 1):
    x = np.ones(2**20)  # 8 MiB: several reads of the page map
    lease = np.frombuffer(receive(Outbox().share(x)))
    if where is not None:
        lease[where] = 2
    lease.sum()
    answers.append(_core.was_written(lease))
    answers.append(_core.was_written(lease[10_000:20_000]))
print(*answers)
"""


def _refuse_page_scan() -> None:
    """Make ioctl(PAGEMAP_SCAN) fail as on a kernel before 6.7, for this process."""

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

    ioctl = {"x86_64": 16, "aarch64": 29}[os.uname().machine]
    request = 0xC0606610
    steps = [  # code, jump if true, jump if false, value: see seccomp(2)
        (0x20, 0, 0, 0),  # load the number of the system call
        (0x15, 0, 3, ioctl),
        (0x20, 0, 0, 24),  # load the low half of its second argument
        (0x15, 0, 1, request),
        (0x06, 0, 0, 0x00050000 | 25),  # ENOTTY
        (0x06, 0, 0, 0x7FFF0000),  # allow
    ]
    packed = b"".join(
        code.to_bytes(2, sys.byteorder) + bytes([yes, no]) + value.to_bytes(4, sys.byteorder)
        for code, yes, no, value in steps
    )
    buffer = ctypes.create_string_buffer(packed)
    program = Program(len(steps), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0  # PR_SET_SECCOMP, filter


def _answers(*prefix: str, argument: str = "", **kwargs: Any) -> str:
    done = subprocess.run(
        [*prefix, sys.executable, "-c", _WRITTEN, argument],
        capture_output=True,
        text=True,
        timeout=60,
        **kwargs,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.filterwarnings("ignore:.*preexec_fn:DeprecationWarning")
def test_older_kernels_page_map_gives_the_same_answers() -> None:
    expected = "False False True False True False True False"
    assert _answers() == expected
    assert _answers(preexec_fn=_refuse_page_scan) == expected


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts: only root may")
def test_without_proc_everything_counts_as_written() -> None:
    assert _answers("unshare", "--mount", argument="no-proc") == " ".join(["True"] * 8)


# ---- a budget ----


def bytes_in_pool() -> int:
    counts = _core.count()
    return counts["live_bytes"] + counts["free_bytes"] + counts["waiting_bytes"]


def test_where_much_is_live_a_little_is_kept_beyond_the_budget() -> None:
    live = [array(i) for i in range(6)]
    _core.set_budget(6 * MIB, 10 * MIB)  # so 4 MiB of these
    del live[5]
    assert (bytes_in_pool(), _core.count()["free_bytes"]) == (10 * MIB, 0)
    del live[3:]
    assert (bytes_in_pool(), _core.count()["free_bytes"]) == (10 * MIB, 4 * MIB)
    del live[2]
    assert (bytes_in_pool(), _core.count()["free_bytes"]) == (8 * MIB, 4 * MIB)
    del live[1]
    assert (bytes_in_pool(), _core.count()["free_bytes"]) == (6 * MIB, 4 * MIB)
    del live[0]
    assert _core.count()["free_bytes"] == 6 * MIB


def test_a_budget_bounds_what_is_live_and_what_is_kept_together() -> None:
    live = [array(i) for i in range(4)]
    del live[2:]
    assert bytes_in_pool() == 8 * MIB
    _core.set_budget(6 * MIB)
    assert bytes_in_pool() == 6 * MIB
    live.append(array(2, 4 * MIB))  # of another class: what is kept makes room for it
    assert bytes_in_pool() == 8 * MIB  # all of it live: nobody is refused
    del live[0]
    assert bytes_in_pool() == 6 * MIB
    assert [x[0] for x in live] == [1, 2]
    live.append(array(3))
    assert live[-1][-1] == 3
