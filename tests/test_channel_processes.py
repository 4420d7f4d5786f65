"""Channels between processes: whole versions whatever happens, waking, forks, many readers."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import xshm
from tests.test_cli import run, told
from tests.test_process import Peer, held
from xshm import Channel

# Python 3.12 and later warn of any fork while other threads run; ours are real forks.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

MIB = 2**20
SPAWN = multiprocessing.get_context("spawn")


# ---- what peers do ----


def open_channel() -> None:
    """Keep channel c open."""
    held["c"] = Channel("c")


def close_channel() -> None:
    held.pop("c").close()


def write(value: Any) -> int:
    """Write to the channel that is open."""
    return held["c"].write(value)


def write_frame(number: float, nbytes: int = 2 * MIB) -> int:
    return held["c"].write(np.full(nbytes // 8, float(number)))


def value_of(snapshot: xshm.Snapshot | None) -> Any:
    return None if snapshot is None else snapshot.value


def read() -> Any:
    return value_of(held["c"].read())


def wait(timeout: float | None = None) -> Any:
    return value_of(held["c"].wait(timeout))


def read_all() -> list[Any]:
    """Every value until iteration ends."""
    return [snapshot.value for snapshot in held["c"]]


def wait_until_removed() -> str:
    try:
        held["c"].wait()
    except xshm.ChannelNotFoundError as error:
        return str(error)
    return "not removed"


def stream(sizes: list[int]) -> None:
    """Write for ever: each version holds its number all over, in sizes that take turns."""
    channel = held["c"]
    before = channel.read()
    number = 0 if before is None else before.version
    while True:
        number = channel.write(np.full(sizes[number % len(sizes)], number + 1.0))


def check_stream(seconds: float) -> tuple[int, int]:
    """Read as fast as possible, and see that versions are whole and in order."""
    channel, last, count = held["c"], 0, 0
    end = time.monotonic() + seconds
    kept: list[xshm.Snapshot] = []
    while time.monotonic() < end:
        snapshot = channel.wait(0.1)
        if snapshot is None:
            continue
        assert snapshot.version > last
        assert snapshot.missed == snapshot.version - last - 1 or last == 0
        last, count = snapshot.version, count + 1
        kept = [*kept[-2:], snapshot]
        for one in kept:
            assert (one.value == one.version).all()
    return count, last


@contextlib.contextmanager
def writer_and_reader() -> Iterator[tuple[Peer, Peer]]:
    """Two processes with channel c open; it is removed in the end."""
    with Channel("c") as channel, Peer() as writer, Peer() as reader:
        writer(open_channel)
        reader(open_channel)
        yield writer, reader
        with contextlib.suppress(xshm.ChannelNotFoundError):
            channel.unlink()


# ---- from one to another ----


def test_what_one_process_writes_the_others_read() -> None:
    with writer_and_reader() as (writer, reader):
        assert reader(read) is None
        ds = xr.Dataset({"a": ("x", np.arange(2.0**18))}, {"x": np.arange(2**18)})
        for value in (ds, ds.a[::2]):
            writer(write, value)
            xr.testing.assert_identical(reader(read), value)
        writer(write, "text")
        assert reader(read) == "text"


def test_large_frames_are_read_without_a_copy() -> None:
    with writer_and_reader() as (writer, reader):
        received, copied = (  # a child's counters go on from its parent's
            reader(xshm.stats)["bytes_received_by_handle"],
            writer(xshm.stats)["bytes_copied_in"],
        )
        writer(write_frame, 1)
        assert (reader(read) == 1).all()
        assert reader(xshm.stats)["bytes_received_by_handle"] >= received + 2 * MIB
        assert writer(xshm.stats)["bytes_copied_in"] == copied


@pytest.mark.parametrize("nbytes", [800, 4 * MIB])
def test_a_steady_stream_to_another_process_allocates_nothing(nbytes: int) -> None:
    with writer_and_reader() as (writer, reader):
        for number in range(5):
            writer(write_frame, number, nbytes)
            reader(read)
        before = writer(xshm.stats)["created"]
        for number in range(30):
            writer(write_frame, number, nbytes)
            assert (reader(read) == number).all()
        assert writer(xshm.stats)["created"] == before


def test_readers_that_never_read_hold_nobody_up() -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(writer := Channel("c"))
        for _ in range(4):
            stack.enter_context(peer := Peer())
            peer(open_channel)
        before = xshm.stats()["created"]
        for number in range(200):
            writer.write(np.full(MIB // 8, float(number)))
        assert xshm.stats()["created"] <= before + 3


def test_several_readers_of_one_writer() -> None:
    with contextlib.ExitStack() as stack:
        channel = stack.enter_context(Channel("c"))
        writer, *readers = (stack.enter_context(Peer()) for _ in range(5))
        for peer in (writer, *readers):
            peer(open_channel)
        for reader in readers:
            reader.start(read_all)
        for number in range(100):
            writer(write, number)
        writer(close_channel)
        for reader in readers:
            values = reader.result()
            assert values == sorted(set(values))
            assert values[-1] == 99
        channel.unlink()


def test_a_child_of_multiprocessing_gets_a_channel_to_read() -> None:
    with Channel("c") as writer:
        here, there = SPAWN.Pipe()
        child = SPAWN.Process(target=_pass_on, args=(writer, there))
        child.start()
        for number in range(3):
            writer.write(number)
            assert here.recv() == number
        child.join()
        assert child.exitcode == 0
        here.close()
        there.close()


def _pass_on(channel: Channel, pipe: Any) -> None:
    with channel:
        for _ in range(3):
            pipe.send(value_of(channel.wait()))


# ---- waiting ----


def test_a_reader_that_waits_is_woken_by_each_version() -> None:
    with writer_and_reader() as (writer, reader):
        for number in range(20):
            reader.start(wait)
            writer(write, number)
            assert reader.result() == number


def test_iteration_waits_for_the_first_writer_and_ends_with_it() -> None:
    with writer_and_reader() as (writer, reader):
        reader.start(read_all)
        time.sleep(0.1)
        writer(write, "only")
        writer(close_channel)
        assert reader.result() == ["only"]


def test_iteration_ends_when_the_writer_is_killed() -> None:
    with writer_and_reader() as (writer, reader):
        writer(write, 1)
        reader.start(read_all)
        writer.kill()
        assert reader.result() == [1]
        assert reader(wait, 0) is None


def test_who_waits_for_a_removed_channel_is_told() -> None:
    with writer_and_reader() as (writer, reader):
        writer(write, 1)
        reader(read)
        reader.start(wait_until_removed)
        time.sleep(0.1)
        with Channel("c") as remover:
            remover.unlink()
        assert "was removed" in reader.result()
        with pytest.raises(xshm.ChannelNotFoundError):
            writer(write, 2)


def test_iteration_in_another_process_ends_when_the_channel_is_removed() -> None:
    with writer_and_reader() as (writer, reader):
        writer(write, 1)
        reader.start(read_all)
        time.sleep(0.1)
        with Channel("c") as remover:
            remover.unlink()
        assert reader.result() in ([1], [])


def test_a_wait_can_be_interrupted() -> None:
    with Channel("c") as reader:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            reader.wait()
        reader.unlink()


# ---- writers that die ----


def test_the_last_version_of_a_killed_writer_stays(directory: Path) -> None:
    with Peer() as writer:
        writer(open_channel)
        writer(write_frame, 7)
        writer.kill()
    xshm.process.close()
    with Channel("c") as reader:  # its janitor has removed what the writer left
        assert not list(directory.glob("*/segments/*.segment"))
        snapshot = reader.read()
        assert snapshot is not None
        assert (snapshot.value == 7).all()
        assert not snapshot.writer_alive
        with Channel("c") as successor:
            assert successor.write(8) == 2


@pytest.mark.parametrize("sizes", [[1000], [2**18], [100, 2**18, 2**17, 3 * 2**18]], ids=str)
def test_readers_see_whole_versions_whenever_the_writer_is_killed(sizes: list[int]) -> None:
    versions = 0
    with Channel("c") as channel, Peer() as one, Peer() as other:
        for reader in (one, other):
            reader(open_channel)
            reader.start(check_stream, 1.5)
        end = time.monotonic() + 1.2
        while time.monotonic() < end:
            with Peer() as writer:
                writer(open_channel)
                writer.start(stream, sizes)
                time.sleep(np.random.default_rng().uniform(0.01, 0.1))
                writer.kill()
            snapshot = channel.read()
            if snapshot is not None:
                assert snapshot.version >= versions
                versions = snapshot.version
                assert (snapshot.value == versions).all()
        for reader in (one, other):
            count, last = reader.result()
            assert 0 < count <= last <= versions
        channel.unlink()


def test_a_killed_reader_leaves_no_memory_behind() -> None:
    with Channel("c") as writer:
        for number in range(5):
            with Peer() as reader:
                reader(open_channel)
                writer.write(np.full(MIB, float(number)))
                reader(_hold)
                reader.kill()
        before = xshm.stats()["created"]
        for number in range(20):
            writer.write(np.full(MIB, float(number)))
        assert xshm.stats()["created"] <= before + 1


def _hold() -> None:
    held["snapshot"] = held["c"].read()


# ---- forks and threads ----


def use_as_child(expected: float) -> str:
    """In a child: it reads, and is no writer."""
    channel = held["parent's"]
    snapshot = channel.read()
    assert (snapshot.value == expected).all()
    assert snapshot.writer_alive
    try:
        channel.write(0)
    except xshm.WriterError:
        return "reads only"
    return "writes"


def test_a_forked_child_of_the_writer_reads() -> None:
    with Channel("c") as writer:
        writer.write(np.full(MIB, 1.0))
        held["parent's"] = writer
        try:
            with Peer() as child:
                assert child(use_as_child, 1.0) == "reads only"
                writer.write(np.full(MIB, 2.0))
                assert child(use_as_child, 2.0) == "reads only"
        finally:
            del held["parent's"]
        assert writer.write(3) == 3


def test_a_child_does_not_keep_the_lock_of_a_writer_that_was_killed() -> None:
    with Channel("c") as successor, Peer() as writer:
        writer(open_channel)
        writer(write, 1)
        child = writer(_fork_a_sleeper)
        try:
            writer.kill()
            assert successor.write(2) == 2
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_child_forked_while_writers_come_and_go_can_write() -> None:
    done = threading.Event()

    def come_and_go(name: str) -> None:
        while not done.is_set():
            with Channel(name) as channel:
                channel.write(1)

    with ThreadPoolExecutor(4) as pool:
        coming = [pool.submit(come_and_go, name) for name in "abcd"]
        try:
            for _ in range(100):
                with Peer() as child:
                    assert child(_write_in_a_thread, "c of a child") == 1
        finally:
            done.set()
        for one in coming:
            one.result()


def _write_in_a_thread(name: str) -> int | None:
    """The version, or None if that takes for ever."""
    versions: list[int] = []

    def write_one() -> None:
        with Channel(name) as channel:
            versions.append(channel.write(1))

    thread = threading.Thread(target=write_one, daemon=True)
    thread.start()
    thread.join(20)
    return versions[0] if versions else None


def _fork_a_sleeper() -> int:
    pid = os.fork()
    if pid == 0:
        signal.alarm(100)
        signal.pause()
        os._exit(0)
    return pid


def test_threads_may_write_through_one_object() -> None:
    versions: list[int] = []
    with Channel("c") as writer:

        def run() -> None:
            versions.extend(writer.write(np.full(MIB // 8, 1.0)) for _ in range(50))

        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(versions) == list(range(1, 201))


def test_processes_that_open_and_remove_at_once_meet() -> None:
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer()) for _ in range(4)]
        for peer in peers:
            peer.start(_open_write_and_remove)
        assert sum(peer.result() for peer in peers) > 0
    with Channel("c") as channel:
        channel.unlink()


def _open_write_and_remove() -> int:
    written = 0
    for _ in range(200):
        with (
            contextlib.suppress(xshm.WriterError, xshm.ChannelNotFoundError),
            Channel("c") as channel,
        ):
            version = channel.write(np.full(3, 1.0))
            snapshot = channel.read()
            assert snapshot is None or snapshot.version >= version
            written += 1
    return written


# ---- at the shell ----


def test_ls_lists_channels_and_rm_removes_them(directory: Path) -> None:
    with Channel("written") as written, Channel("empty"):
        written.write(np.zeros(1000))
        empty, full = told("ls")
        assert (empty["name"], empty["kind"], empty["nbytes"]) == ("empty", "channel", 4096)
        assert (full["name"], full["error"]) == ("written", None)
        assert 8000 < full["nbytes"] < 30_000
        assert [holder["pid"] for holder in full["holders"]] == [os.getpid()]
        assert run("ls").stdout.splitlines()[2].endswith(" channel")
        xshm.publish(np.zeros(3), "written")
        run("rm", "written", "empty")  # the container first
        assert [entry["name"] for entry in told("ls")] == ["written"]
        run("rm", "written")
        assert told("ls") == []
        with pytest.raises(xshm.ChannelNotFoundError):
            written.write(1)
        assert "no container 'written'" in run("rm", "written", code=1).stderr
        assert not list(directory.glob("*/channels/*"))


def test_df_counts_what_channels_hold() -> None:
    with Channel("c") as channel:
        assert told("df")["channels"] == {"files": 1, "nbytes": 4096}
        channel.write(np.ones(MIB))
        usage = told("df")
        assert usage["channels"]["files"] == 2
        assert 8 * MIB < usage["channels"]["nbytes"] < 10 * MIB
        assert usage["segments"]["files"] == 0
        assert "channels" in run("df").stdout
