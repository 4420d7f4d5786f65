"""Invariant 7: after a fork the child owns nothing, and neither side's writes reach the other."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

import xshm
from tests.conftest import files_in, segment_names
from tests.test_pool import array, name_of, send, state_of, taken
from tests.test_process import (
    Peer,
    counted,
    drop,
    held,
    hold_array,
    is_all,
    own_id,
    share_array,
    take,
)
from xshm import _core, process
from xshm.directory import Directory
from xshm.errors import LostHandleError
from xshm.handover import Outbox, receive

pytestmark = [
    pytest.mark.usefixtures("allocating"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]

MIB = 2**20


def write(number: float, value: float) -> None:
    """Overwrite the array of this number."""
    held[number][:] = value


def value_of(number: float) -> float:
    """What the array of this number holds all over."""
    (value,) = np.unique(held[number])
    return float(value)


@pytest.fixture(autouse=True)
def nothing_held() -> None:
    """What a test holds for its peers to inherit goes with it."""
    held.clear()


def test_writes_of_either_side_do_not_reach_the_other() -> None:
    held[1] = array(1)
    with Peer() as peer:
        held[1][:] = 2
        assert peer(value_of, 1) == 1
        peer(write, 1, 3)
        assert (held[1] == 2).all()
        assert peer(value_of, 1) == 3
    held.clear()


@pytest.mark.parametrize("state", ["sealed", "leased"])
def test_nor_if_it_was_handed_out_before(state: str) -> None:
    x = array(1)
    held[1] = taken(send(x)) if state == "leased" else x
    send(x)
    assert state_of(held[1]) == state
    with Peer() as peer:
        held[1][:] = 2
        assert peer(value_of, 1) == 1
        peer(write, 1, 3)
        assert (held[1] == 2).all()
    held.clear()


def test_what_was_written_before_the_fork_is_on_both_sides() -> None:
    x = array(1)
    send(x)
    x[5] = 2
    held[1] = x
    with Peer() as peer:
        np.testing.assert_array_equal(peer(held.get, 1), x)
    held.clear()


def test_the_child_owns_nothing(directory: Path) -> None:
    held[1] = array(1)
    free = array(2)
    del free
    outbox = Outbox()
    handle = outbox.share(held[1])
    assert handle is not None
    before = files_in(directory)
    with Peer() as peer:
        counts = peer(counted)
        assert counts["live_segments"] == counts["free_segments"] == counts["waiting_segments"] == 0
        assert counts["leased_segments"] == 1
        peer(drop, 1)
        assert peer(counted)["mappings"] == 0
    assert files_in(directory) == before
    assert (taken(handle) == 1).all()
    held.clear()


def test_the_child_starts_its_own_pool_on_use(directory: Path) -> None:
    mine = own_id()
    held[1] = array(1)
    before = files_in(directory)
    with Peer() as peer:
        peer(hold_array, 2)
        handle = peer(share_array, 2)
        assert peer(own_id) != mine
        assert handle.segment.startswith(peer(own_id))
        assert (taken(handle) == 2).all()
        assert own_id() == mine
    assert files_in(directory) == before
    held.clear()


def test_an_inherited_array_can_be_handed_on_by_the_child() -> None:
    held[1] = array(1)
    with Peer() as peer:
        handle = peer(share_array, 1)
        assert handle.segment == name_of(held[1])
        assert (taken(handle) == 1).all()
        peer(write, 1, 2)
        assert peer(share_array, 1) is None
    held.clear()


def test_the_parent_does_not_use_again_what_the_child_still_sees() -> None:
    held[1] = array(1)
    name = name_of(held[1])
    with Peer() as peer:
        held.clear()
        new = [array(2) for _ in range(5)]
        assert name not in map(name_of, new)
        assert peer(value_of, 1) == 1
        peer(drop, 1)
        assert name_of(array(3)) == name  # and then it does


def test_a_lease_lives_on_in_the_child_alone() -> None:
    x = array(1)
    name = name_of(x)
    held[1] = taken(send(x))
    with Peer() as peer:
        held.clear()
        del x
        y = array(2)
        assert name_of(y) != name
        assert peer(value_of, 1) == 1
    assert name_of(array(3)) == name


def test_tokens_of_the_parent_are_not_the_childs_to_withdraw() -> None:
    outbox = held["outbox"] = Outbox()
    handle = outbox.share(array(1))
    assert handle is not None
    with Peer() as peer:
        peer(_withdraw_and_close)
    assert (taken(handle) == 1).all()
    held.clear()


def _withdraw_and_close() -> None:
    process.current()
    held["outbox"].withdraw()
    process.close()


def test_a_child_that_just_ends_leaves_the_parents_files(directory: Path) -> None:
    held[1] = array(1)
    before = files_in(directory)
    child = os.fork()
    if child == 0:
        held.clear()
        os._exit(0)
    os.waitpid(child, 0)
    assert files_in(directory) == before
    with Peer() as peer:
        peer.kill()
    assert files_in(directory) == before
    assert (taken(send(held[1])) == 1).all()
    held.clear()


def test_a_child_keeps_the_bytes_when_its_parent_is_killed(directory: Path) -> None:
    go, answer = os.pipe(), os.pipe()
    middle = Peer()
    middle(hold_array, 1)
    middle(_fork_and_report, go[0], answer[1])
    assert os.read(answer[0], 10) == b"forked"
    middle.kill()
    process.close()
    process.current()  # a janitor removes what the killed one left
    assert files_in(directory) == [f"xshm-{os.geteuid()}/processes/{own_id()}"]
    os.write(go[1], b"go")
    assert os.read(answer[0], 10) == b"1.0"
    for descriptor in (*go, *answer):
        os.close(descriptor)


def _fork_and_report(go: int, answer: int) -> None:
    if os.fork() == 0:
        signal.alarm(100)
        os.write(answer, b"forked")  # and has closed the lock of its parent's file
        os.read(go, 2)
        os.write(answer, str(value_of(1)).encode())
        os._exit(0)


def test_generations() -> None:
    """Each generation adds an array, and all of them keep their bytes in all."""
    held[1] = array(1)
    with Peer() as peer:
        assert peer(_generations, 2) == [float(i) for i in range(1, 6)]
    assert value_of(1) == 1
    held.clear()


def _generations(number: int) -> list[float]:
    hold_array(number)
    if number == 5:
        return [value_of(i) for i in range(1, 6)]
    with Peer() as peer:
        result = peer(_generations, number + 1)
        peer(write, 1, 99)
    assert value_of(1) == 1
    assert value_of(number) == number
    return result


def _use_in_worker(number: float) -> float:
    xshm.enable()
    x = np.full(MIB, number)
    assert xshm.is_shared(x)
    handle = Outbox().share(x)
    assert handle is not None
    return float(np.frombuffer(receive(handle))[-1])


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_of_multiprocessing_leave_nothing(method: str, directory: Path) -> None:
    x = array(1)
    before = files_in(directory)
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(_use_in_worker, [1.0, 2.0, 3.0]) == [1, 2, 3]
        pool.close()
        pool.join()
    assert files_in(directory) == before
    assert (x == 1).all()


def test_a_program_started_meanwhile_changes_nothing() -> None:
    x = array(1)
    subprocess.run(["true"], check=True)
    assert state_of(x) == "open"  # it was not forked, but spawned
    subprocess.run(["true"], check=True, preexec_fn=os.getpid)
    assert (x == 1).all()
    x[:] = 2
    assert (x == 2).all()


def test_after_the_directory_is_gone_a_fork_still_separates(here: Directory) -> None:
    """Sealing needs the file's name; without it the bytes move to ordinary memory."""
    held[1] = array(1)
    (here.segments / name_of(held[1])).unlink()
    address = held[1].ctypes.data
    with Peer() as peer:
        held[1][:] = 2
        assert peer(value_of, 1) == 1
        peer(write, 1, 3)
        assert (held[1] == 2).all()
    assert held[1].ctypes.data == address
    assert Outbox().share(held[1]) is None
    held.clear()
    assert (array(4) == 4).all()


def test_after_leaving_the_directory_a_fork_still_separates() -> None:
    held[1] = array(1)
    process.close()
    with Peer() as peer:
        held[1][:] = 2
        assert peer(value_of, 1) == 1
        peer(write, 1, 3)
        assert (held[1] == 2).all()
    held.clear()


def test_forks_while_other_threads_allocate_and_exchange(here: Directory) -> None:
    stop = threading.Event()
    failures: list[BaseException] = []

    def work(number: float) -> None:
        try:
            xshm.enable()
            outbox = Outbox()
            while not stop.is_set():
                x = np.full(MIB // 8 + 1, number)
                # A fork in the midst of np.full seals it, and what follows is written privately.
                handle = outbox.share(x) or outbox.copy(x)
                assert handle is not None
                x[:] = -1
                assert (taken(handle) == number).all()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(float(i),)) for i in range(3)]
    mine = held["mine"] = array(7)
    for thread in threads:
        thread.start()
    try:
        for i in range(20):
            child = os.fork()
            if child == 0:
                os._exit(_child_of_threads(float(i)))
            mine[:] = -2
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            mine[:] = 7
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    held.clear()
    del mine
    assert failures == []
    assert _core.count()["live_segments"] == 0
    xshm.trim()
    assert segment_names(here) == []


def test_forks_while_another_thread_enters_and_leaves() -> None:
    stop = threading.Event()

    def enter_and_leave() -> None:
        while not stop.is_set():
            process.current()
            process.close()

    thread = threading.Thread(target=enter_and_leave)
    thread.start()
    try:
        for _ in range(20):
            child = os.fork()
            if child == 0:
                os._exit(_has_a_process_file_open())
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        stop.set()
        thread.join()


def _has_a_process_file_open() -> bool:
    try:
        with os.scandir("/proc/self/fd") as entries:
            return any("/processes/" in os.readlink(entry.path) for entry in entries)
    except OSError:
        return True


def _child_of_threads(number: float) -> int:
    try:
        assert value_of("mine") == 7
        held["mine"][:] = number
        hold_array(number, MIB)
        handle = share_array(number)
        assert handle is not None
        assert take(handle) == number
        assert value_of("mine") == number
        process.close()
    except BaseException:
        import traceback

        traceback.print_exc()
        return 1
    return 0


def test_a_handle_is_taken_by_one_of_parent_and_child() -> None:
    handle = send(array(1))
    with Peer() as peer:
        assert peer(take, handle) == 1
        with pytest.raises(LostHandleError):
            receive(handle)
        assert peer(is_all, 1)


def test_what_was_written_after_a_fork_is_copied_and_its_segment_used_again() -> None:
    x = array(1)
    name = name_of(x)
    with Peer():
        assert state_of(x) == "sealed"
    x[:] = 2
    assert Outbox().share(x) is None
    handle = Outbox().copy(x)
    assert handle is not None
    assert (taken(handle) == 2).all()
    del x
    xshm.trim(0)
    assert name not in map(name_of, [array(3), array(4)])  # its name went with trim
