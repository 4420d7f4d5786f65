"""``Lock``: between threads and processes, readers and writers, living and killed."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask.config
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import xshm
from tests.conftest import files_in, own_directory, wait_until
from tests.test_process import Peer
from xshm import lock_file, process
from xshm.directory import Directory, configured
from xshm.lock_file import LockFile

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@pytest.fixture
def other() -> Iterator[Callable[..., Any]]:
    """Calls a function in another thread, the same each time."""
    with ThreadPoolExecutor(1) as thread:
        yield lambda function, *arguments: thread.submit(function, *arguments).result(30)


def lock_files() -> list[str]:
    return sorted(os.listdir(configured().locks))


# ---- one holder ----


def test_it_keeps_another_thread_out(other: Callable[..., Any]) -> None:
    lock = xshm.Lock("a")
    with lock:
        assert lock.locked()
        assert not other(lock.acquire, 0)
        assert not other(lock.acquire, 0.03)
        assert not other(lock.locked)
    assert not lock.locked()
    assert other(lock.acquire, 0)
    assert not lock.acquire(0)
    other(lock.release)
    assert lock.acquire(0)
    lock.release()


def test_locks_of_other_names_are_others() -> None:
    with xshm.Lock("a"), xshm.Lock("b") as b:
        assert b.locked()
        assert lock_files() == ["a", "b"]
    assert lock_files() == []


def test_any_lock_of_that_name_is_the_same(other: Callable[..., Any]) -> None:
    with xshm.Lock("a"):
        assert xshm.Lock("a").locked()
        assert not other(xshm.Lock("a").acquire, 0)
        with pytest.raises(xshm.LockError, match="reentrant=True"):
            xshm.Lock("a").acquire(0)
        xshm.Lock("a").release()
        assert not xshm.Lock("a").locked()
        xshm.Lock("a").acquire()


def test_who_waits_gets_it_when_it_is_released(other: Callable[..., Any]) -> None:
    lock = xshm.Lock("a")
    for timeout in (None, 30):
        lock.acquire()
        with ThreadPoolExecutor(3) as pool:
            waiting = [pool.submit(_take_and_release, lock, timeout) for _ in range(3)]
            assert not other(lock.acquire, 0.02)
            lock.release()
            assert [one.result(30) for one in waiting] == [True] * 3


def _take_and_release(lock: Any, timeout: float | None = None) -> bool:
    taken: bool = lock.acquire(timeout)
    if taken:
        lock.release()
    return taken


def test_a_lock_is_released_when_the_block_fails() -> None:
    lock = xshm.Lock("a")
    with pytest.raises(ZeroDivisionError), lock:
        _ = 1 / 0
    assert not lock.locked()


def test_what_is_not_held_cannot_be_released(other: Callable[..., Any]) -> None:
    lock = xshm.Lock("a")
    with pytest.raises(xshm.LockError, match=r"expected lock 'a' to be held exclusively"):
        lock.release()
    with lock, pytest.raises(xshm.LockError):
        other(lock.release)
    with lock, pytest.raises(xshm.LockError, match="as a reader"):
        lock.shared().release()
    with lock.shared(), pytest.raises(xshm.LockError, match="exclusively"):
        lock.release()


def test_what_a_thread_held_is_free_when_it_has_ended() -> None:
    lock = xshm.Lock("a")
    thread = threading.Thread(target=lock.acquire)
    thread.start()
    thread.join()
    assert lock.acquire(10)
    lock.release()


# ---- readers ----


def test_readers_hold_it_together_and_keep_writers_out(other: Callable[..., Any]) -> None:
    lock = xshm.Lock("a")
    together = threading.Barrier(5)

    def read() -> None:
        with lock.shared():
            together.wait(30)
            together.wait(30)

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read) for _ in range(4)]
        together.wait(30)
        assert not lock.acquire(0)
        assert lock.shared().acquire(0)
        lock.shared().release()
        together.wait(30)
        for reader in readers:
            reader.result(30)
    with lock:
        assert not other(lock.shared().acquire, 0)
    assert lock_files() == []


def test_readers_and_writers_see_what_this_thread_has() -> None:
    lock = xshm.Lock("a")
    with lock.shared() as shared:
        assert shared.locked()
        assert not lock.locked()
    with lock:
        assert lock.shared().locked()
    assert not shared.locked()


def test_a_writer_who_waits_goes_before_readers_who_come_later(other: Callable[..., Any]) -> None:
    lock = xshm.Lock("a")
    lock.shared().acquire()
    done = threading.Event()

    def write() -> None:
        with lock:
            done.wait(30)

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        wait_until(
            lambda: not other(_take_and_release, lock.shared(), 0), "a reader must wait for him"
        )
        lock.shared().release()
        assert not lock.acquire(0)  # nor is he overtaken by who had the lock before
        done.set()
        writer.result(30)


# ---- several times ----


def test_a_reentrant_lock_is_free_when_it_was_released_as_often(other: Callable[..., Any]) -> None:
    lock = xshm.Lock("a", reentrant=True)
    with lock:
        with lock, lock.shared(), pickle.loads(pickle.dumps(lock)):
            assert not other(lock.acquire, 0)
        assert lock.locked()
        assert not other(lock.shared().acquire, 0)
    assert not lock.locked()
    assert other(_take_and_release, lock)
    with pytest.raises(xshm.LockError):
        lock.release()


def test_what_was_taken_for_writing_stays_so_until_all_is_released(
    other: Callable[..., Any],
) -> None:
    lock = xshm.Lock("a", reentrant=True)
    lock.acquire()
    lock.shared().acquire()
    lock.release()
    assert not other(lock.shared().acquire, 0)
    lock.shared().release()
    assert other(_take_and_release, lock)


def test_a_reader_takes_it_again_even_if_a_writer_waits(other: Callable[..., Any]) -> None:
    lock = xshm.Lock("a", reentrant=True)
    with lock.shared(), ThreadPoolExecutor(1) as pool:
        writer = pool.submit(_take_and_release, lock)
        wait_until(lambda: not other(_take_and_release, lock.shared(), 0), "a writer waits")
        assert lock.shared().acquire(0)
        lock.shared().release()
        lock.shared().release()
        assert writer.result(30)
        lock.shared().acquire()


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_reader_cannot_become_a_writer(reentrant: bool) -> None:
    lock = xshm.Lock("a", reentrant=reentrant)
    with lock.shared(), pytest.raises(xshm.LockError, match="would wait for itself"):
        lock.acquire()
    with lock:
        pass


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("second", [True, False])
def test_another_lock_cannot_be_taken_twice(first: bool, second: bool) -> None:
    lock = xshm.Lock("a")
    sides: Any = {True: lock, False: lock.shared()}
    with sides[first], pytest.raises(xshm.LockError, match="found that it is"):
        sides[second].acquire()


# ---- processes ----


def _count(lock: Any, number: Path, times: int) -> None:
    for _ in range(times):
        with lock:
            before = int(number.read_text())
            time.sleep(0)  # give others their turn to do it wrong
            number.write_text(str(before + 1))


@pytest.mark.parametrize(
    "start", ["fork", "spawn", pytest.param("forkserver", marks=pytest.mark.slow)]
)
def test_it_passes_to_tasks_of_a_pool(start: str, tmp_path: Path) -> None:
    number = tmp_path / "number"
    number.write_text("0")
    # Not from here: a fork server that was started by another test knows its directory only.
    call = f"count_in_pool({start!r}, {str(number)!r})"
    program = f"from tests.test_lock import count_in_pool; {call}"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert number.read_text() == "300"


def count_in_pool(start: str, number: str) -> None:
    with multiprocessing.get_context(start).Pool(3) as pool:
        pool.starmap(_count, [(xshm.Lock("a"), Path(number), 100)] * 3)
        pool.close()
        pool.join()


def test_counts_are_right_while_files_of_locks_come_and_go(tmp_path: Path) -> None:
    number, here, done = tmp_path / "number", configured(), threading.Event()
    number.write_text("0")

    def clean() -> None:
        while not done.is_set():
            lock_file.remove_free(here)

    with (
        multiprocessing.get_context("fork").Pool(3) as processes,
        ThreadPoolExecutor(3) as threads,
    ):
        cleaner = threads.submit(clean)
        lock, shared = xshm.Lock("a"), xshm.Lock("a").shared()
        counting = processes.starmap_async(_count, [(lock, number, 300)] * 3)
        also = threads.submit(_count, lock, number, 300)
        while not (counting.ready() and also.done()):
            with shared:
                before = number.read_text()
                time.sleep(0)
                assert number.read_text() == before
        counting.get()
        also.result()
        done.set()
        cleaner.result()
        processes.close()
        processes.join()
    assert number.read_text() == "1200"


@pytest.mark.parametrize("reentrant", [False, True])
def test_it_is_pickled_by_name(reentrant: bool) -> None:
    lock = xshm.Lock("a" * 50, reentrant=reentrant)
    for side in (lock, lock.shared()):
        pickled = pickle.dumps(side)
        assert len(pickled) < 200
        again = pickle.loads(pickled)
        assert type(again) is type(side)
        assert repr(again) == repr(side)
        assert ("reentrant" in repr(again)) == reentrant


_HOLD = """
import os, sys, time, xshm
lock = xshm.Lock("a") if sys.argv[1] == "writer" else xshm.Lock("a").shared()
lock.acquire()
if "fork" in sys.argv and os.fork() == 0:
    print(os.getpid(), flush=True)
    sys.stdin.read()  # until the test is over
    os._exit(0)
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("side", ["writer", "reader"])
@pytest.mark.parametrize("forks", [[], ["fork"]], ids=["alone", "with a child"])
def test_the_lock_of_a_killed_process_is_free_at_once(
    side: str, forks: list[str], directory: Path
) -> None:
    lock = xshm.Lock("a")
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, side, *forks],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        for _ in range(1 + len(forks)):
            assert holder.stdout.readline()
        assert not lock.acquire(0.05)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(_take_and_release, lock)
            holder.send_signal(signal.SIGKILL)
            assert waiting.result(30)
    assert files_in(directory) == []


def test_a_forked_child_holds_nothing_and_takes_nothing_away() -> None:
    lock = xshm.Lock("a")
    lock.acquire()
    with Peer() as peer:
        assert not peer(lock.locked)
        assert not peer(lock.acquire, 0)
        assert lock_files() == ["a"]
        lock.release()
        assert peer(lock.acquire, 20)
        assert not lock.acquire(0)
        peer.kill()
    assert lock.acquire(20)
    lock.release()


_WAIT_AND_FORK = """
import os, sys, threading, time, xshm
lock = xshm.Lock("a")
def wait():
    lock.acquire()
    print("held", flush=True)
    time.sleep(60)
threading.Thread(target=wait, daemon=True).start()
while not any("locks/a" in os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
              if os.path.exists(f"/proc/self/fd/{fd}")):
    time.sleep(0.01)
if os.fork() == 0:
    print("forked", flush=True)
    sys.stdin.read()
    os._exit(0)
time.sleep(60)
"""


def test_a_child_forked_while_a_thread_waits_does_not_get_what_it_waits_for() -> None:
    lock = xshm.Lock("a")
    lock.acquire()
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _WAIT_AND_FORK],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"forked\n"
        lock.release()
        assert parent.stdout.readline() == b"held\n"
        assert not lock.acquire(0)
        parent.send_signal(signal.SIGKILL)
        assert lock.acquire(20)
        lock.release()


def test_a_child_forked_while_threads_take_locks_can_take_one() -> None:
    done = threading.Event()

    def take(name: str) -> None:
        while not done.is_set():
            with xshm.Lock(name):
                pass

    with ThreadPoolExecutor(3) as threads:
        taking = [threads.submit(take, name) for name in "abc"]
        try:
            for _ in range(50):
                with Peer() as peer:
                    assert peer(_take_and_release, xshm.Lock("d"))
        finally:
            done.set()
        for one in taking:
            one.result()


def test_waiting_can_be_interrupted(other: Callable[..., Any]) -> None:
    lock = xshm.Lock("a")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        other(lock.acquire)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt) as interrupted:
            lock.acquire()
        assert not lock.locked()
        other(lock.release)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert lock.acquire(0)
    lock.release()
    assert interrupted.traceback  # what was on its way is given back before this goes


# ---- files ----


def _gc() -> None:
    subprocess.run([sys.executable, "-m", "xshm", "gc"], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("clean", [process.current, _gc])
def test_what_the_killed_left_goes(clean: Callable[[], object]) -> None:
    with Peer() as killed:
        for name in ("left", "a"):
            killed(xshm.Lock(name).acquire)
        killed.kill()
    assert lock_files() == ["a", "left"]
    with xshm.Lock("a"):
        clean()
        assert lock_files() == ["a"]
    assert lock_files() == []


def test_who_removes_what_is_free_leaves_alone_what_has_come_in_its_place() -> None:
    path = configured().locks / "a"
    found = LockFile(path)
    path.unlink()
    with xshm.Lock("a"):
        found.remove_if_free()
        assert lock_files() == ["a"]
    found.close()


def test_what_is_no_file_of_a_lock_is_left_alone_and_refused(directory: Path) -> None:
    here = configured()
    (here.locks / "folder").mkdir()
    (here.locks / "link").symlink_to(here.locks / "nowhere")
    lock_file.remove_free(here)
    for name in ("folder", "link"):
        with pytest.raises(xshm.DirectoryError, match=f"cannot open .*{name} to lock it"):
            xshm.Lock(name).acquire()
    (here.locks / "folder").rmdir()
    (here.locks / "link").unlink()


@pytest.mark.parametrize("name", ["", "a/b", ".hidden", "..", "x" * 201, "new\nline", 3, None])
def test_names_that_files_cannot_have_are_refused(name: Any) -> None:
    with pytest.raises(xshm.ContainerNameError, match="expected the name of a lock, found"):
        xshm.Lock(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a tmpfs: only root may")
def test_a_directory_without_room_is_said_plainly(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=9,mode=700", "xshm-test"]
    subprocess.run([*mount, str(tmp_path)], check=True)
    try:
        with dask.config.set({"xshm.directory": str(tmp_path)}):
            here = configured()
            with pytest.raises(OSError, match="No space left"):  # noqa: PT012  # fills it up
                for number in range(9):
                    (here.segments / str(number)).touch()
            with pytest.raises(xshm.NoRoomError, match=r"found 0 of 9 files free.*nr_inodes"):
                xshm.Lock("a").acquire()
            assert not xshm.Lock("a").locked()
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


# ---- any order of steps ----

_WHO = st.integers(0, 2)
_SIDES = st.booleans()


class Locks(RuleBasedStateMachine):
    """Three threads take and release one lock, each step to its end before the next."""

    def __init__(self) -> None:
        super().__init__()
        self._own = own_directory()
        self._own.__enter__()
        self.here: Directory = configured()
        self.threads = [ThreadPoolExecutor(1) for _ in range(3)]
        self.taken: list[list[bool]] = [[], [], []]
        """What each thread has: for each time it took the lock, whether for writing."""

    @initialize(reentrant=st.booleans())
    def make(self, reentrant: bool) -> None:
        self.reentrant = reentrant
        lock = xshm.Lock("a", reentrant=reentrant)
        self.sides: dict[bool, Any] = {True: lock, False: lock.shared()}
        self.writing: int | None = None  # the thread that has it exclusively

    def call(self, who: int, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return self.threads[who].submit(function, *arguments).result(30)
        except xshm.LockError:
            return xshm.LockError

    @rule(who=_WHO, exclusive=_SIDES, timeout=st.sampled_from([0, 1e-3]))
    def acquire(self, who: int, exclusive: bool, timeout: float) -> None:
        found = self.call(who, self.sides[exclusive].acquire, timeout)
        others = any(taken for thread, taken in enumerate(self.taken) if thread != who)
        if self.taken[who]:
            upgrade = exclusive and self.writing != who
            expected: Any = True if self.reentrant and not upgrade else xshm.LockError
        else:
            expected = not others if exclusive else self.writing is None
        assert found is expected
        if found is True:
            if not self.taken[who] and exclusive:
                self.writing = who
            self.taken[who].append(exclusive)

    @rule(who=_WHO, exclusive=_SIDES)
    def release(self, who: int, exclusive: bool) -> None:
        held = exclusive in self.taken[who]
        found = self.call(who, self.sides[exclusive].release)
        assert found is (None if held else xshm.LockError)
        if held:
            self.taken[who].remove(exclusive)
            if not self.taken[who] and self.writing == who:
                self.writing = None

    @rule()
    def clean(self) -> None:
        lock_file.remove_free(self.here)

    @rule(who=_WHO)
    def end_thread(self, who: int) -> None:
        self.threads[who].shutdown()
        self.threads[who] = ThreadPoolExecutor(1)
        self.taken[who].clear()
        if self.writing == who:
            self.writing = None
        lock_file.remove_free(self.here)  # what it held is free, and its file remains

    @invariant()
    def there_is_a_file_as_long_as_somebody_holds_the_lock(self) -> None:
        assert os.listdir(self.here.locks) == (["a"] if any(self.taken) else [])

    @rule(who=_WHO)
    def locked(self, who: int) -> None:
        assert self.call(who, self.sides[True].locked) == (self.writing == who)
        assert self.call(who, self.sides[False].locked) == bool(self.taken[who])

    def teardown(self) -> None:
        for thread in self.threads:
            thread.shutdown()
        lock_file.remove_free(self.here)
        self._own.__exit__(None, None, None)


TestLocks = Locks.TestCase
TestLocks.settings = settings(max_examples=30, stateful_step_count=30)


@pytest.mark.parametrize("blocking", [True, False])
def test_other_locks_first_argument_is_not_taken_for_seconds(blocking: bool) -> None:
    with pytest.raises(xshm.UnsupportedError, match="timeout=0"):
        xshm.Lock("example").acquire(blocking)
