"""Arrays born in segments: which ones, in which context, and what if there is no room."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dask.config
import numpy as np
import psutil
import pytest

import xshm
from tests.conftest import segment_names
from tests.test_pool import array, name_of, send, taken
from xshm import _core, handover, process
from xshm.directory import Directory
from xshm.errors import DirectoryError
from xshm.handover import Outbox, receive

MIB = 2**20


def born_shared() -> bool:
    """Whether a large array made here and now is born in a segment."""
    return xshm.is_shared(np.ones(MIB))


# ---- Which arrays.


@pytest.mark.usefixtures("allocating")
@pytest.mark.parametrize(
    "make",
    [
        lambda x: np.empty(MIB),
        lambda x: np.ones((1024, 1024)),
        lambda x: np.full(MIB, 3, "i4"),
        lambda x: np.arange(MIB),
        lambda x: x + 1,
        lambda x: x.T @ x.T,
        lambda x: x.copy(),
        lambda x: x.astype("f4"),
        lambda x: np.concatenate([x, x]),
        lambda x: np.stack([x, x]),
        lambda x: x[::2, ::2].repeat(4, axis=0),
        lambda x: np.ascontiguousarray(x.T),
        lambda x: np.empty_like(x),
        lambda x: np.sort(x, axis=0),
        lambda x: np.where(x > 0, x, 1),
        lambda x: np.array(x.tolist()),
        lambda x: np.empty(MIB, "f8,i4"),
    ],
)
def test_however_numpy_makes_it(make: Callable[[np.ndarray], np.ndarray]) -> None:
    x = np.ones((1024, 1024))
    y = make(x)
    assert xshm.is_shared(y)
    y.view("u1").fill(0)
    assert (x == 1).all()


@pytest.mark.usefixtures("allocating")
def test_from_the_threshold_on() -> None:
    assert xshm.is_shared(np.empty(MIB, "u1"))
    assert not xshm.is_shared(np.empty(MIB - 1, "u1"))
    assert not xshm.is_shared(np.empty(0))
    assert not xshm.is_shared(np.array(5))
    with dask.config.set({"xshm.threshold": "64 kiB"}):
        process.set_limits()
        assert xshm.is_shared(np.empty(2**16, "u1"))
        assert not xshm.is_shared(np.empty(2**16 - 1, "u1"))
    process.set_limits()
    assert not xshm.is_shared(np.empty(2**16, "u1"))


@pytest.mark.usefixtures("allocating")
def test_ordinary_arrays_are_as_before() -> None:
    """Made before, small, or foreign memory: all can be used and freed."""
    with ThreadPoolExecutor(1) as other:  # where the allocator is NumPy's
        large = other.submit(np.ones, MIB).result()
    assert not xshm.is_shared(large)
    small = [np.full(i, i) for i in range(200)]
    assert all((x == i).all() for i, x in enumerate(small))
    assert not xshm.is_shared(np.frombuffer(bytearray(2 * MIB), "u1"))
    del large, small


@pytest.mark.usefixtures("allocating")
def test_views_lie_in_the_segment_too() -> None:
    x = array(1)
    assert xshm.is_shared(x[5:10])
    assert xshm.is_shared(x[::-7])
    assert xshm.is_shared(x.view("u1")[-1:])
    assert not xshm.is_shared(x[:0])


@pytest.mark.usefixtures("allocating")
def test_zeros_use_a_warm_segment_and_clear_it() -> None:
    x = array(1)
    name = name_of(x)
    del x
    z = np.zeros(2 * MIB // 8)
    assert name_of(z) == name
    assert not z.any()
    assert (z.ctypes.data % 4096) == 0
    again = np.zeros(2 * MIB // 8)  # none is warm: lazily zeroed memory costs nothing
    assert not xshm.is_shared(again)
    assert not again.any()


@pytest.mark.usefixtures("allocating")
def test_zeros_that_are_hardly_touched_take_no_room(here: Directory) -> None:
    """Larger than the whole tmpfs, and lazily zeroed as ever."""
    size = min(100 * 2**30, psutil.virtual_memory().total * 3 // 4)
    before, refused = psutil.Process().memory_info().rss, _core.count()["refused"]
    x = np.zeros(size, "u1")
    x[:: size // 10] = 1
    assert int(x[size // 10]) == 1
    assert psutil.Process().memory_info().rss - before < 100 * MIB
    assert segment_names(here) == []
    assert _core.count()["refused"] == refused


@pytest.mark.usefixtures("allocating")
@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("size", [1, 1000, MIB // 16, MIB // 4 - 7, MIB // 4 + 7, MIB, 3 * MIB])
def test_resizing_keeps_the_contents(size: int, sealed: bool) -> None:
    x = np.arange(MIB // 4, dtype=float)
    lease = taken(send(x)) if sealed else x.copy()
    x.resize(size, refcheck=False)
    kept = min(size, MIB // 4)
    np.testing.assert_array_equal(x[:kept], np.arange(kept))
    assert not x[kept:].any()
    x[:] = -1
    np.testing.assert_array_equal(lease, np.arange(MIB // 4))


@pytest.mark.usefixtures("allocating")
def test_resizing_to_a_fraction_gives_the_segment_back() -> None:
    x = array(1, 8 * MIB)
    x.resize(10, refcheck=False)
    assert (x == 1).all()
    assert not xshm.is_shared(x)
    assert _core.count()["live_segments"] == 0


@pytest.mark.usefixtures("allocating")
def test_an_array_that_grows_step_by_step() -> None:
    x = np.arange(10.0)
    for size in range(10, 400_000, 37_000):
        before = x.size
        x.resize(size, refcheck=False)
        x[before:] = np.arange(before, size)
    np.testing.assert_array_equal(x, np.arange(float(size)))


@pytest.mark.usefixtures("allocating")
def test_freed_in_any_order() -> None:
    arrays = {i: array(i, MIB * (1 + i % 3)) for i in range(60)}
    for i in np.random.default_rng(0).permutation(60):
        assert (arrays[i] == i).all()
        del arrays[i]
    assert _core.count()["live_segments"] == _core.count()["live_bytes"] == 0


# ---- In which context.


def test_off_until_enabled_and_after_disabling() -> None:
    assert not born_shared()
    xshm.enable()
    try:
        x = np.ones(MIB)
        assert xshm.is_shared(x)
        xshm.enable()  # a second time is no different
        assert born_shared()
    finally:
        xshm.disable()
    assert not born_shared()
    xshm.disable()
    assert (x == 1).all()
    assert xshm.is_shared(x)


def test_the_with_block_nests_and_ends_with_an_exception() -> None:
    with xshm.allocator():
        with contextlib.suppress(ZeroDivisionError), xshm.allocator():
            assert born_shared()
            raise ZeroDivisionError
        assert born_shared()
        xshm.disable()
        with xshm.allocator():
            assert born_shared()
        assert not born_shared()
    assert not born_shared()


def test_a_directory_that_cannot_be_used_leaves_numpys_allocator(directory: Path) -> None:
    with dask.config.set({"xshm.directory": str(directory / "missing")}):
        with pytest.raises(DirectoryError, match=r"missing.*set xshm\.directory"):
            xshm.enable()
        with pytest.raises(DirectoryError), xshm.allocator():
            pass
        assert not born_shared()
    with xshm.allocator():
        assert born_shared()


@pytest.mark.usefixtures("allocating")
def test_arrays_outlive_leaving_the_directory(directory: Path) -> None:
    x, y = array(1), array(2)
    handle = send(y)
    lease = taken(handle)
    x[0] = 5
    process.close()
    assert list((directory / f"xshm-{os.geteuid()}" / "segments").iterdir()) == []
    x[1] = y[1] = lease[1] = 6
    assert (x[2:] == 1).all()
    assert (y[2:] == 2).all()
    assert (lease[2:] == 2).all()
    assert not born_shared()  # NumPy's own, until the directory is entered again
    assert Outbox().share(x) is None  # which this does
    copied = Outbox().copy(x)
    assert copied is not None
    np.testing.assert_array_equal(taken(copied), x)
    x.resize(10, refcheck=False)
    assert list(x[:3]) == [5, 6, 1]
    del x, y
    assert Outbox().share(array(7)) is not None  # not in a segment of before, that has no name


@pytest.mark.usefixtures("allocating")
def test_a_thread_starts_without_and_can_enable() -> None:
    def work() -> tuple[bool, bool]:
        before = born_shared()
        xshm.enable()
        return before, born_shared()

    with ThreadPoolExecutor(1) as other:
        assert other.submit(work).result() == (False, True)
        assert other.submit(born_shared).result()  # the same thread goes on with it
    assert born_shared()


def test_a_thread_that_enables_does_so_for_itself() -> None:
    with ThreadPoolExecutor(1) as other:
        other.submit(xshm.enable).result()
        assert other.submit(born_shared).result()
        assert not born_shared()


def test_a_copied_context_inherits_and_keeps_its_own() -> None:
    """A notebook that runs each cell in a copy must enable in each, or use ``with``."""
    contextvars.copy_context().run(xshm.enable)
    assert not born_shared()

    cell = contextvars.copy_context()
    cell.run(xshm.enable)
    assert cell.run(born_shared)  # one context entered twice keeps it

    with xshm.allocator():
        copied = contextvars.copy_context()
        assert copied.run(born_shared)
        copied.run(xshm.disable)
        assert not copied.run(born_shared)
        assert born_shared()
    assert not born_shared()


def test_asyncio_tasks_inherit_and_keep_their_own() -> None:
    async def enabling() -> bool:
        xshm.enable()
        await asyncio.sleep(0)
        return born_shared()

    async def checking() -> bool:
        await asyncio.sleep(0)
        return born_shared()

    async def main() -> None:
        assert await asyncio.gather(enabling(), checking()) == [True, False]
        assert not born_shared()
        with xshm.allocator():
            assert await asyncio.create_task(checking())
            assert await asyncio.to_thread(born_shared)
            task = asyncio.create_task(checking())
        assert await task
        assert not born_shared()

    asyncio.run(main())


# ---- Many threads.


def test_threads_allocate_exchange_and_free_at_once(here: Directory) -> None:
    shared: list[np.ndarray] = []

    def work(seed: int) -> None:
        xshm.enable()
        random, outbox = np.random.default_rng(seed), Outbox()
        own: list[tuple[int, np.ndarray]] = []
        for i in range(100):
            x = np.full(int(random.integers(MIB // 8, MIB // 2)), i)
            if random.random() < 0.5:
                handle = outbox.share(x)
                assert handle is not None
                x[:] = -1  # reaches nobody
                own.append((i, np.frombuffer(receive(handle), int)))
            else:
                own.append((i, x))
                if shared and random.random() < 0.3:
                    shared.pop()  # of another thread
                shared.append(x)
            if len(own) > 6:
                number, y = own.pop(int(random.integers(len(own))))
                assert (y == number).all()
            if i % 50 == 0:
                xshm.trim(int(random.integers(8 * MIB)))

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work, seed) for seed in range(4)]:
            done.result()
    shared.clear()
    counts = _core.count()
    assert counts["live_segments"] == counts["leased_segments"] == counts["live_bytes"] == 0
    xshm.trim()
    assert segment_names(here) == []
    assert _core.count()["mappings"] == 0


# ---- Limits: of mappings and segments.


@pytest.mark.usefixtures("allocating")
def test_ten_thousand_live_arrays(here: Directory) -> None:
    with dask.config.set({"xshm.threshold": "64 KiB"}):
        process.set_limits()
        refused = _core.count()["refused"]
        arrays = [np.full(2**16, i % 251, "u1") for i in range(10_000)]
        counts = _core.count()
        assert counts["live_segments"] == 10_000
        assert counts["refused"] == refused
        assert all(x[0] == i % 251 and x[-1] == i % 251 for i, x in enumerate(arrays))
        arrays.clear()
    process.set_limits()
    assert _core.count()["live_segments"] == 0


@pytest.mark.usefixtures("allocating")
def test_without_mappings_left_arrays_are_ordinary_and_leases_are_read() -> None:
    outbox = Outbox()
    sent = [array(i) for i in range(6)]
    handles = [outbox.share(x) for x in sent]
    handles += [outbox.share(x[1000:]) for x in sent]
    try:
        _core.set_limits(
            MIB, 2**30, 64, _core.count()["mappings"] + 2 + 3, False
        )  # one array and three leases
        refused = _core.count()["refused"]
        ordinary = np.ones(MIB)
        leases = [taken(handle) for handle in handles if handle is not None]
        assert [xshm.is_shared(lease) for lease in leases] == [True] * 3 + [False] * 9
        assert not born_shared()
        assert _core.count()["refused"] > refused
        assert xshm.is_shared(ordinary)  # there was room for one
    finally:
        process.set_limits()
    del sent
    assert all((lease == i % 6).all() for i, lease in enumerate(leases))
    leases[-1][:] = 9  # writable, as any
    assert born_shared()
    handle = Outbox().copy(leases[-1])
    assert handle is not None
    assert (taken(handle) == 9).all()


# ---- No room (invariant 5: no store into a page that might not be there).


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 8 MiB, which is the directory of the test."""
    if os.geteuid() != 0:
        pytest.skip("mounts a tmpfs: only root may")
    mounted = tmp_path / "small"
    mounted.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "xshm-test", str(mounted)], check=True
    )
    try:
        with dask.config.set({"xshm.directory": str(mounted)}), xshm.allocator():
            yield mounted
        process.close()
        assert list(mounted.glob("*/segments/*")) == []
    finally:
        process.close()
        subprocess.run(["umount", "--lazy", str(mounted)], check=True)


def _fill_up(parent: Path) -> Path:
    other = parent / "filler"
    with open(other, "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return other


def test_where_there_is_no_room_arrays_are_ordinary(small: Path) -> None:
    arrays = [np.full(2 * MIB // 8, float(i)) for i in range(8)]
    assert [xshm.is_shared(x) for x in arrays] == [True] * 4 + [False] * 4
    assert all((x == i).all() for i, x in enumerate(arrays))
    assert xshm.stats()["refused"] >= 4
    del arrays
    assert born_shared()


def test_an_array_larger_than_the_room_takes_none_of_it(small: Path) -> None:
    other = np.full(MIB // 4, 1.0)
    x = np.ones(2 * MIB)  # 16 MiB
    assert not xshm.is_shared(x)
    assert xshm.is_shared(other)
    assert born_shared() is False  # 8 MiB, beside the directory's own pages
    assert xshm.is_shared(np.ones(MIB // 2))


def test_no_room_for_a_copy_is_said_once(
    small: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(handover, "_refusal_said", False)
    outbox = Outbox()
    kept = [outbox.copy(bytes(2 * MIB)) for _ in range(3)]
    with caplog.at_level(logging.WARNING):
        assert outbox.copy(bytes(4 * MIB)) is None
        assert outbox.copy(bytearray(4 * MIB)) is None
    (line,) = caplog.messages
    assert str(small) in line
    assert "set xshm.directory" in line
    assert "8 MiB in all" in line
    for handle in kept:
        assert handle is not None
        assert receive(handle) == bytes(2 * MIB)
    assert outbox.copy(bytes(4 * MIB)) is not None


@pytest.mark.parametrize("sealed", [False, True])
def test_a_directory_that_others_fill_up_disturbs_no_array(small: Path, sealed: bool) -> None:
    """Space was reserved: nothing here may end with SIGBUS."""
    arrays = [np.empty(MIB // 4) for _ in range(2)]
    outbox = Outbox()
    handles = [outbox.share(x) for x in arrays] if sealed else []
    filler = _fill_up(small)
    for i, x in enumerate(arrays):
        x[:] = i
    assert all((x == i).all() for i, x in enumerate(arrays))
    for handle in handles:
        assert handle is not None
        lease = taken(handle)
        lease[:] = 5
        assert (lease == 5).all()
    assert np.ones(MIB // 4).all()  # an ordinary one, or a recycled segment
    if not sealed:
        handle = outbox.share(arrays[1])
        assert handle is not None
        assert (taken(handle) == 1).all()
    filler.unlink()


def test_a_segment_written_to_by_a_copy_is_reserved_to_its_end(small: Path) -> None:
    """The next array of the size class may be longer than the bytes that were copied in."""
    size = 15 * MIB // 8  # one of eight sizes between 1 and 2 MiB
    handle = Outbox().copy(bytes(size - 100_000))
    assert handle is not None
    assert receive(handle) == bytes(size - 100_000)
    filler = _fill_up(small)
    x = np.ones(size // 8)
    assert name_of(x) == handle.segment
    assert x.all()
    filler.unlink()


def test_idle_segments_are_given_up_before_one_is_refused(small: Path) -> None:
    idle = [np.ones(MIB // 4) for _ in range(3)]
    assert all(map(xshm.is_shared, idle))
    idle.clear()
    large = np.ones(5 * MIB // 8)
    assert xshm.is_shared(large)
    assert _core.count()["free_segments"] == 1  # no more of them than it takes
    assert large.all()
    del large
    assert Outbox().copy(bytes(3 * MIB)) is not None
    assert Outbox().copy(bytes(4 * MIB)) is not None


def test_a_signal_in_the_midst_of_reserving_does_no_harm() -> None:
    """An unfinished reservation is taken back by the kernel when a signal comes."""
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            time.sleep(0.005)

    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        with xshm.allocator():
            for i in range(20):
                x = np.full(MIB, i, "i4")
                assert xshm.is_shared(x)
                assert (x == i).all()
                del x
                xshm.trim()
    finally:
        stop.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)
