"""Invariant 6, a dead process holds nothing: what it left goes, and nothing else does."""

from __future__ import annotations

import fcntl
import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import dask.config
import numpy as np
import pytest

from tests.conftest import files_in, segment_names
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
from xshm import janitor, process
from xshm.directory import Directory, configured
from xshm.errors import LostHandleError
from xshm.handle import Handle
from xshm.handover import Outbox, copy, receive

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@pytest.fixture
def peer() -> Iterator[Peer]:
    """Another process of the same directory."""
    with Peer() as other:
        yield other


def copy_in(number: float) -> object:
    """Send an array of this number by copying it into a segment."""
    return held.setdefault("outbox", Outbox()).copy(np.full(2**18, float(number)))


def keep_warm() -> None:
    """Have a free segment."""
    hold_array(99)
    drop(99)


def test_all_that_a_killed_process_left_goes_with_the_next_that_starts(
    directory: Path, peer: Peer
) -> None:
    dead = Peer()
    dead(keep_warm)
    dead(hold_array, 1)
    assert dead(share_array, 1) is not None
    assert dead(copy_in, 2) is not None
    dead(hold_array, 3)
    dead(hold_array, 4)
    dead.kill()
    assert len(files_in(directory)) == 1 + 4 + 2  # its own, segments, tokens
    survivor = peer(own_id)
    assert files_in(directory) == [f"xshm-{os.geteuid()}/processes/{survivor}"]


def test_nothing_of_the_living_is_touched(directory: Path, peer: Peer) -> None:
    dead = Peer()
    dead(hold_array, 1)
    leased = dead(share_array, 1)
    in_flight = dead(share_array, 1)
    peer(take, leased)
    peer(hold_array, 2)
    mine = peer(share_array, 2)
    peer(hold_array, 3)
    before = set(files_in(directory))
    gone = {name for name in before if dead(own_id) in name}
    dead.kill()

    assert len(janitor.clean(configured())) == 1
    assert set(files_in(directory)) == before - gone
    assert peer(is_all, 1)  # the lease on a segment of the dead one
    assert peer(share_array, 1) is None  # which can only be copied now
    assert peer(is_all, 2)
    assert (np.frombuffer(receive(mine)) == 2).all()
    with pytest.raises(LostHandleError):
        receive(in_flight)
    assert peer(counted)["live_segments"] == 2


def test_a_lease_on_the_deads_segment_that_was_handed_on_arrives(peer: Peer) -> None:
    dead = Peer()
    dead(hold_array, 1)
    peer(take, dead(share_array, 1))
    handle = peer(share_array, 1)  # a token of the living, on a segment of the dead
    dead.kill()
    process.current()
    assert (np.frombuffer(receive(handle)) == 1).all()


def test_a_stopped_process_is_not_dead(directory: Path, peer: Peer) -> None:
    peer(hold_array, 1)
    before = files_in(directory)
    os.kill(peer.pid, signal.SIGSTOP)
    try:
        assert janitor.clean(configured()) == []
        assert files_in(directory) == before
    finally:
        os.kill(peer.pid, signal.SIGCONT)
    assert peer(is_all, 1)


def test_a_process_that_ended_in_order_left_nothing_to_clean(directory: Path) -> None:
    with Peer() as other:
        other(hold_array, 1)
        other(share_array, 1)
    assert files_in(directory) == []
    assert janitor.clean(configured()) == []


def test_one_that_ends_cleans_up_after_the_dead(directory: Path, peer: Peer) -> None:
    peer(own_id)
    dead = Peer()
    dead(hold_array, 1)
    dead.kill()
    assert len(files_in(directory)) == 3
    peer.end()
    assert files_in(directory) == []


def _leave(here: Directory, processes: int, segments: int) -> None:
    for _ in range(processes):
        dead = secrets.token_hex(8)
        (here.processes / dead).touch(0o600)
        for i in range(segments):
            kind = "token" if i % 2 else "segment"
            (here.segments / f"{dead}.{i:x}.{kind}").touch(0o600)


def test_ten_thousand_files_of_the_dead(here: Directory) -> None:
    _leave(here, 100, 99)
    assert len(janitor.clean(here)) == 100
    assert segment_names(here) == []
    assert os.listdir(here.processes) == [own_id()]
    assert janitor.clean(here) == []


def test_segments_whose_process_file_is_gone_are_the_deads(here: Directory) -> None:
    dead = secrets.token_hex(8)
    (here.segments / f"{dead}.1.segment").touch()
    assert janitor.clean(here) == [dead]
    assert segment_names(here) == []


def test_foreign_names_are_left_alone(here: Directory) -> None:
    names = ["README", "a.segment", "0" * 15 + ".1.segment", "g" * 16 + ".1.token", ".hidden"]
    for name in names:
        (here.segments / name).touch()
        (here.processes / name).touch()
    (here.segments / "folder").mkdir()
    assert janitor.clean(here) == []
    assert sorted(os.listdir(here.segments)) == sorted([*names, "folder"])
    assert sorted(os.listdir(here.processes)) == sorted([*names, own_id()])
    for name in names:
        (here.segments / name).unlink()
        (here.processes / name).unlink()


@pytest.mark.parametrize("where", ["processes", "segments"])
@pytest.mark.parametrize("kind", ["folder", "link", "dangling link", "fifo"])
def test_foreign_things_under_names_of_the_dead_keep_nobody_out(
    kind: str, where: str, directory: Path, tmp_path: Path
) -> None:
    """They are removed or left alone, but a process enters and the rest is cleaned up."""
    with Peer() as first:
        first(own_id)
        folder = directory / f"xshm-{os.geteuid()}" / where
        path = folder / ("0" * 16 + (".1.segment" if where == "segments" else ""))
        (precious := tmp_path / "precious").touch()
        match kind:
            case "folder":
                (path / "inside").mkdir(parents=True)
            case "link":
                path.symlink_to(precious)
            case "dangling link":
                path.symlink_to("/nowhere")
            case "fifo":
                os.mkfifo(path)
        dead = Peer()
        dead(hold_array, 1)
        dead.kill()
        try:
            with Peer() as newcomer:
                newcomer(hold_array, 2)
                assert newcomer(is_all, 2)
                assert newcomer(counted)["live_segments"] == 1
        finally:
            if path.is_dir():
                (path / "inside").rmdir()
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
        assert precious.exists()
    assert files_in(directory) == []


def _clean() -> int:
    return len(janitor.clean(configured()))


def test_janitors_at_once_do_not_disturb_each_other(directory: Path, peer: Peer) -> None:
    here = configured()
    others = [Peer() for _ in range(3)]
    peer(hold_array, 1)
    try:
        for _ in range(10):
            _leave(here, 20, 10)
            for other in others:
                other.start(_clean)
            assert sum(other.result() for other in others) >= 20
            assert len(files_in(directory)) == 2
    finally:
        for other in others:
            other.end()
    assert peer(is_all, 1)


def enter_and_leave(times: int) -> None:
    """Be in the directory for a moment, again and again."""
    for i in range(times):
        hold_array(i)
        handle = share_array(i)
        assert handle is not None
        assert take(handle) == i
        held.clear()
        process.close()


def test_processes_that_come_and_go_are_not_taken_for_dead(directory: Path) -> None:
    """A process file is made and then locked: a janitor may look in between."""
    others = [Peer() for _ in range(4)]
    try:
        for other in others:
            other.start(enter_and_leave, 60)
        for _ in range(100):
            janitor.clean(configured())
        for other in others:
            other.result()
    finally:
        for other in others:
            other.end()
    assert files_in(directory) == []


def send_message(number: float) -> Handle | None:
    """Send an array of this number as a queue does."""
    return copy(np.full(2**18, float(number)), process.current().new_message())


def test_a_message_sent_while_a_janitor_looks_stays(here: Directory) -> None:
    sender = Peer()
    sender(own_id)
    (here.processes / ("0" * 16)).touch()  # found first
    looking = janitor.remains(here)
    next(looking).remove(here)
    message = sender(send_message, 1)
    sender.kill()
    for found in looking:
        found.remove(here)
    janitor.clean(here)
    assert (np.frombuffer(receive(message)) == 1).all()


def test_a_process_holds_the_lock_of_its_file(here: Directory) -> None:
    with open(here.processes / own_id()) as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("is_done", [True, False])
def test_a_janitor_between_the_making_of_a_process_file_and_its_lock(
    is_done: bool, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it has removed the file or is about to, the process makes itself another."""
    here, really_lock = configured(), fcntl.flock
    looked = []

    def look_first(descriptor: int, operation: int) -> None:
        monkeypatch.undo()
        (made,) = here.processes.iterdir()
        if is_done:
            assert janitor.clean(here) == [made.name]
        else:
            looked.append(os.open(made, os.O_RDWR))
            really_lock(looked[0], fcntl.LOCK_EX)
        looked.append(made)
        really_lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", look_first)
    with dask.config.set({"xshm.directory": str(directory)}):
        mine = own_id()
    if not is_done:
        os.close(looked[0])
        janitor.clean(here)
    assert looked[-1].name != mine
    assert [file.name for file in here.processes.iterdir()] == [mine]
