"""Channels, as one process sees them: what comes back, versions, waiting, errors."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import struct
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr

import xshm
from tests import exactly
from tests.conftest import files_in
from tests.kinds import KINDS
from tests.kinds_not_held import NOT_HELD
from tests.namespaces import (
    mount_tmpfs,
    needs_namespaces,
    run_in_namespace,
)
from xshm import Channel, _core
from xshm.channel.control import all_in
from xshm.directory import Directory, configured
from xshm.handover import Outbox

MIB = 2**20


def frame(number: float, nbytes: int = 2 * MIB) -> np.ndarray:
    """An array of one number, of a size that has a segment of its own."""
    return np.full(nbytes // 8, float(number))


def read(channel: Channel) -> xshm.Snapshot:
    """What there is; there must be something."""
    snapshot = channel.read()
    assert snapshot is not None
    return snapshot


# ---- what comes back ----


@pytest.mark.parametrize("kind", KINDS)
def test_everything_that_can_be_published_comes_back(kind: str, dask_threads: None) -> None:
    obj = KINDS[kind]()
    with Channel("c") as channel:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "these encodings")
            channel.write(obj)
        if dask.is_dask_collection(obj) or isinstance(obj, xr.DataTree):
            obj = obj.compute()
        exactly.assert_same(obj, read(channel).value)


@pytest.mark.parametrize(
    "array",
    [
        frame(1),
        np.arange(6.0).reshape(2, 3).T,
        np.arange(10)[::-2],
        np.array(5),
        np.zeros((0, 3)),
        np.broadcast_to(np.arange(3), (4, 3)),
        np.array([b"red", b"orange"]),
        np.array(["rot", "grün"]),
        np.array([(1, 2.5, b"x")], [("a", "i1"), ("b", ">f8"), ("c", "S3")]),
        np.array(["2020-02-29", "NaT"], "M8[s]"),
        np.array(["of any", "length"], "T"),
    ],
    ids=lambda x: f"{x.dtype}{x.shape}",
)
def test_arrays_come_back(array: np.ndarray) -> None:
    with Channel("c") as channel:
        channel.write(array)
        value = read(channel).value
        assert (value.dtype, value.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(value, array)


@pytest.mark.parametrize(
    "value", [1, 1.5, True, None, "text", b"bytes", [1, "a"], {"loss": 0.5, 3: (1, None)}], ids=repr
)
def test_plain_values_come_back(value: Any) -> None:
    with Channel("c") as channel:
        channel.write(value)
        back = read(channel).value
        assert back == value
        assert type(back) is type(value)


def test_shape_dtype_and_kind_change_on_the_way() -> None:
    values: list[Any] = [
        frame(1),
        frame(2, 7 * MIB).astype("f4"),
        xr.Dataset({"a": ("x", frame(3))}, {"x": np.arange(MIB // 4)}, {"step": 1}),
        xr.Dataset({"b": ("y", [1, 2])}, {"y": ["a", "b"]}),
        "the end",
        np.array(["a"]),
    ]
    with Channel("c") as writer, Channel("c") as reader:
        for version, value in enumerate(values, 1):
            assert writer.write(value) == version
            back = read(reader).value
            if isinstance(value, str):
                assert back == value
            else:
                exactly.assert_same(value, back)


def test_what_dask_is_to_compute_is_computed(dask_threads: None) -> None:
    with Channel("c") as channel:
        channel.write(da.arange(10, chunks=3))
        np.testing.assert_array_equal(read(channel).value, np.arange(10))


def test_a_snapshot_stays_as_it_is_and_is_the_readers_own() -> None:
    with Channel("c") as writer, Channel("c") as reader:
        source = xr.DataArray(frame(1), dims="x", name="a")
        writer.write(source)
        source[:] = -1
        kept = read(reader).value
        kept[0] = 100
        assert float(read(reader).value[0]) == 1
        for number in range(2, 20):
            writer.write(source * 0 + number)
        assert kept[0] == 100
        assert (kept[1:] == 1).all()
        assert (read(reader).value == 19).all()
    assert (kept[1:] == 1).all()  # also without the channel


def test_a_pickled_value_does_not_lead_back_to_the_channel() -> None:
    ds = xr.Dataset({"a": ("x", frame(1)), "b": ("y", ["a", "b"])}, {"y": ["c", "d"]})
    with Channel("c") as channel:
        channel.write(ds)
        pickled = pickle.dumps(read(channel).value)
    xr.testing.assert_identical(pickle.loads(pickled), ds)


def test_values_are_plain_and_go_on_to_others_without_a_copy(allocating: None) -> None:
    with Channel("c") as writer, Channel("c") as reader:
        writer.write(xr.Dataset({"a": ("x", frame(1))}))
        before = xshm.stats()
        x = read(reader).value["a"].variable.data
        assert type(x) is np.ndarray
        assert xshm.is_shared(x)
        outbox = Outbox()
        assert outbox.share(x) is not None
        assert xshm.stats()["bytes_copied_in"] == before["bytes_copied_in"]
        outbox.withdraw()


@pytest.mark.parametrize("nbytes", [1000, 4 * MIB])
def test_a_steady_stream_allocates_nothing(nbytes: int) -> None:
    with Channel("c") as writer, Channel("c") as reader:
        for number in range(5):
            writer.write(frame(number, nbytes))
            read(reader)
        before = xshm.stats()["created"]
        for number in range(50):
            writer.write(frame(number, nbytes))
            assert (read(reader).value == number).all()
        assert xshm.stats()["created"] == before


def test_readers_that_keep_versions_keep_their_own_memory_only(here: Directory) -> None:
    with Channel("c") as writer, Channel("c") as reader:
        kept = []
        for number in range(10):
            writer.write(frame(number))
            kept.append(read(reader).value)
        before = xshm.stats()["created"]
        for number in range(10):
            assert (kept[number] == number).all()
        kept.clear()
        for number in range(50):
            writer.write(frame(number))
        assert xshm.stats()["created"] <= before + 1


# ---- versions ----


def test_versions_times_and_what_was_missed() -> None:
    with Channel("c") as writer, Channel("c") as reader:
        assert reader.read() is None
        assert writer.write(0.0) == 1
        first = read(reader)
        assert (first.version, first.missed, first.writer_alive) == (1, 0, True)
        assert read(reader).missed == 0
        for _ in range(3):
            writer.write(1.0)
        second = read(reader)
        assert (second.version, second.missed) == (4, 2)
        assert second.written_at >= first.written_at > 1.6e9
        assert 0 <= second.age < 3600
        assert read(Channel("c")).missed == 0  # it was not there then


def test_what_was_missed_since_the_object_was_made() -> None:
    with Channel("c") as writer:
        writer.write(1)
        reader = Channel("c")
        for _ in range(3):
            writer.write(2)
        snapshot = read(reader)
        assert (snapshot.version, snapshot.missed) == (4, 3)


def test_a_closed_channel_stays_and_its_versions_go_on(directory: Path) -> None:
    writer = Channel("c")
    writer.write(frame(1))
    writer.close()
    with Channel("c") as reader:
        snapshot = read(reader)
        assert (snapshot.value == 1).all()
        assert not snapshot.writer_alive
        with Channel("c") as other:
            assert other.write(frame(2)) == 2
            assert read(reader).writer_alive
    assert files_in(directory) == [f for f in files_in(directory) if "processes" in f]


def test_a_channel_that_nobody_refers_to_writes_no_more() -> None:
    first = Channel("c")
    first.write(1)
    del first
    gc.collect()
    with Channel("c") as second:
        assert second.write(2) == 2


# ---- who writes ----


def test_a_second_writer_is_refused_while_the_first_lives() -> None:
    with Channel("c") as first, Channel("c") as second:
        first.write(1)
        with pytest.raises(xshm.WriterError, match=r"'c' to have no writer.*one may write until"):
            second.write(2)
        assert read(second).value == 1
        first.close()
        assert second.write(2) == 2
        second.close()
        with Channel("c") as third:
            third.write(3)


def test_a_pickled_channel_reads() -> None:
    with Channel("c") as writer:
        writer.write(1)
        with pickle.loads(pickle.dumps(writer)) as other:
            assert read(other).value == 1
            with pytest.raises(xshm.WriterError):
                other.write(2)


@pytest.mark.parametrize("kind", [kind for kind in NOT_HELD if kind != "dask, unknown shape"])
def test_what_cannot_be_held_is_refused_and_nothing_is_lost(
    kind: str, directory: Path, dask_threads: None
) -> None:
    case = NOT_HELD[kind]
    with Channel("c") as channel:
        channel.write(1)
        before = files_in(directory)
        with pytest.raises(xshm.UnsupportedError):
            channel.write(case.make())
        assert files_in(directory) == before
        snapshot = read(channel)
        assert (snapshot.version, snapshot.value) == (1, 1)
        assert channel.write(2) == 2


@needs_namespaces
@pytest.mark.parametrize("nbytes", [8, 2 * MIB])
def test_a_write_that_is_interrupted_anywhere_loses_nothing(nbytes: int, here: Directory) -> None:
    """As by Ctrl-C: the next one has a version of its own, and nothing is left in between."""
    with Channel("c") as writer, Channel("c") as reader:
        values = {writer.write(np.zeros(nbytes // 8)): 0}
        for moment in range(1, 100):
            was_interrupted = write_interrupted(writer, np.full(nbytes // 8, moment), moment)
            snapshot = reader.read()
            assert snapshot is not None
            value = snapshot.value[0]
            assert values.setdefault(snapshot.version, value) == value
            assert list(here.segments.glob("*.token")) == []
            if not was_interrupted:
                break
        assert value == moment
        assert moment > 3
        assert sorted(values) == [*range(1, len(values) + 1)]


def write_interrupted(channel: Channel, value: np.ndarray, moment: int) -> bool:
    """Write, and raise when one of these functions returns, the first or a later one."""
    functions = (_core.share, _core.copy_in, os.rename, os.unlink, _core.tell_event)
    left = moment

    def interrupt(_: object, event: str, function: object) -> None:
        nonlocal left
        if event == "c_return" and function in functions:
            left -= 1
            if left == 0:
                raise KeyboardInterrupt

    sys.setprofile(interrupt)
    try:
        channel.write(value)
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
    return False


def test_no_room_for_a_version_leaves_the_one_before(directory: Path) -> None:
    run_in_namespace(write_in_a_small_directory, directory)


def write_in_a_small_directory(directory: str) -> None:
    """A channel in a tmpfs of 4 MiB."""
    mount_tmpfs(directory, "4m")
    with dask.config.set({"xshm.directory": directory}):
        with Channel("c") as channel:
            channel.write(frame(1, MIB))
            for nbytes in (5 * MIB, 100 * MIB):
                with pytest.raises(
                    xshm.NoRoomError, match=r"this version needs .* of 4.0 MiB free"
                ):
                    channel.write(frame(2, nbytes))
                assert (read(channel).value == 1).all()
            assert channel.write(frame(3, MIB)) == 2
        filler = Path(directory, "filler")
        filler.write_bytes(bytes(os.statvfs(directory).f_bavail * 4096))
        with pytest.raises(xshm.NoRoomError, match="the channel needs"):
            Channel("d")
        assert all_in(configured()) == []
        filler.unlink()
        with Channel("d") as channel:
            assert channel.write(1) == 1


# ---- waiting ----


def test_waiting_gives_what_is_newer_or_nothing_in_time() -> None:
    with Channel("c") as writer, Channel("c") as reader:
        assert reader.wait(0) is None
        assert reader.wait(0.01) is None
        writer.write(1)
        writer.write(2)
        snapshot = reader.wait()
        assert snapshot is not None
        assert (snapshot.value, snapshot.missed) == (2, 1)
        assert reader.wait(0.01) is None
        read(reader)
        assert reader.wait(0) is None
        writer.write(3)
        assert read(reader).value == 3
        assert reader.wait(0) is None  # it was given already
        assert reader.wait(-1) is None


def test_waiting_without_a_writer_does_not_give_the_same_twice() -> None:
    writer = Channel("c")
    writer.write(1)
    writer.close()
    with Channel("c") as reader:
        assert reader.wait(0) is not None
        assert reader.wait(0) is None
        with Channel("c") as writer:
            writer.write(2)
            assert reader.wait().value == 2


def test_iteration_ends_with_the_writer() -> None:
    writer, reader = Channel("c"), Channel("c")
    writer.write(1)
    given = []
    for snapshot in reader:
        given.append(snapshot.value)
        if snapshot.value < 4:
            writer.write(snapshot.value + 1)
        elif snapshot.value == 4:
            writer.write(5)
            writer.write(6)
            writer.close()  # the last is read all the same
    assert given == [1, 2, 3, 4, 6]
    assert list(reader) == []
    reader.unlink()
    reader.close()


def test_iteration_ends_when_the_channel_is_removed() -> None:
    with Channel("c") as writer, Channel("c") as reader:
        writer.write(1)
        given = []
        for snapshot in reader:
            given.append(snapshot.value)
            reader.unlink()
        assert given == [1]


def test_async_readers_wait_together_while_others_work() -> None:
    async def read_all(reader: Channel) -> list[int]:
        return [snapshot.version async for snapshot in reader]

    async def main(writer: Channel, readers: list[Channel]) -> None:
        assert await readers[0].wait_async(0.01) is None
        reading = [asyncio.create_task(read_all(reader)) for reader in readers]
        seen = Channel("c")
        for number in range(5):
            await asyncio.sleep(0)
            writer.write(number)
            snapshot = await seen.wait_async()
            assert snapshot is not None
            assert snapshot.value == number
        seen.close()
        writer.close()
        for versions in await asyncio.gather(*reading):
            assert versions == sorted(set(versions))
            assert versions[-1] == 5

    readers = [Channel("c") for _ in range(3)]
    asyncio.run(main(Channel("c"), readers))
    readers[0].unlink()
    for reader in readers:
        reader.close()


def test_a_wait_that_is_cancelled_loses_nothing() -> None:
    async def main(writer: Channel, reader: Channel) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.wait_async(), 0.01)
        writer.write(1)
        snapshot = await reader.wait_async()
        assert snapshot is not None
        assert snapshot.value == 1

    with Channel("c") as writer, Channel("c") as reader:
        asyncio.run(main(writer, reader))


# ---- the end ----


USES: dict[str, Callable[[Channel], Any]] = {
    "read": lambda c: c.read(),
    "write": lambda c: c.write(1),
    "wait": lambda c: c.wait(0),
    "wait_async": lambda c: asyncio.run(c.wait_async(0)),
    "unlink": lambda c: c.unlink(),
}


@pytest.mark.parametrize("use", USES)
def test_a_closed_channel_says_so(use: str) -> None:
    with Channel("c") as channel:
        channel.write(1)
    channel.close()  # twice is as good
    with pytest.raises(xshm.ClosedError, match="'c' closed: make the Channel anew"):
        USES[use](channel)
    assert "closed" in repr(channel)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("successor", [False, True])
def test_a_removed_channel_is_not_taken_for_its_successor(use: str, successor: bool) -> None:
    with Channel("c") as old, Channel("c") as remover:
        old.write(frame(1))
        remover.unlink()
        new = Channel("c") if successor else None
        if new is not None:
            new.write(frame(2))
        with pytest.raises(xshm.ChannelNotFoundError, match="'c' was removed since"):
            USES[use](old)
        if new is not None:
            assert (read(new).value == 2).all()
            new.unlink()
            new.close()


def test_the_block_of_a_writer_removes_the_channel_and_that_of_a_reader_does_not(
    directory: Path,
) -> None:
    with Channel("c") as writer:
        writer.write(1)
        with Channel("c") as reader:
            assert read(reader).value == 1
        assert read(writer).value == 1
    assert not list(directory.glob("*/channels/*"))


@pytest.mark.parametrize("name", ["", "a/b", "..", ".c", "a\0", "x" * 201, None, 7, b"c"], ids=repr)
def test_names_are_checked(name: Any) -> None:
    with pytest.raises(xshm.ContainerNameError, match="name of a channel"):
        Channel(name)


# ---- what is in the directory is not trusted ----


@pytest.fixture
def folder(here: Directory) -> Path:
    """Where channel c is; it has one version, and goes at the test's end."""
    with Channel("c") as channel:
        channel.write(frame(1))
        channel.close()
    return here.path / "channels" / "c"


def remove(folder: Path) -> None:
    with Channel("c") as channel:
        channel.unlink()
    assert not folder.exists()


@pytest.mark.parametrize("left", ["nothing", "empty", "a page", "a version"])
def test_a_channel_half_made_is_made(left: str, folder: Path) -> None:
    """Somebody was killed between two steps of making, or removing, it."""
    (folder / "control").unlink()
    if left != "a version":
        (folder / "latest").unlink()
    if left == "empty":
        (folder / "control").touch(0o600)
    if left == "a page":
        (folder / "control").write_bytes(bytes(4096))
    with Channel("c") as channel:
        assert channel.write(frame(2)) == (2 if left == "a version" else 1)
        assert (read(channel).value == 2).all()


def test_a_version_that_was_not_announced_is_found(folder: Path) -> None:
    """The writer was killed in between: who waits finds it, and the next writer goes on."""
    control = bytearray((folder / "control").read_bytes())
    control[16:24] = bytes(8)
    (folder / "control").write_bytes(control)
    with Channel("c") as reader:
        assert [snapshot.version for snapshot in reader] == [1]
    with Channel("c") as writer:
        assert writer.write(frame(2)) == 2


@pytest.mark.parametrize("found", ["text", "file", "link"])
def test_what_is_no_channel_is_refused(found: str, folder: Path, tmp_path: Path) -> None:
    remove(folder)
    match found:
        case "text":
            folder.mkdir()
            (folder / "control").write_text("x" * 5000)
        case "file":
            folder.write_text("")
        case "link":
            folder.symlink_to(tmp_path)
    with pytest.raises(
        xshm.FormatError, match=r"expected a channel at .*not made by xshm|it is none"
    ):
        Channel("c")
    assert list(tmp_path.iterdir()) == []
    if found == "text":
        (folder / "control").unlink()
        folder.rmdir()
    else:
        folder.unlink()


_FIRST = struct.Struct("<8sQQQQQ64s")


def _message(**changed: Any) -> bytes:
    fields = {"magic": b"\x93xshmmsg", "layout": 1, "version": 1, "at": 1, "monotonic": 1}
    fields |= {"nbytes": 4096, "segment": b"", **changed}
    return _FIRST.pack(*fields.values()).ljust(4096, b"\0") + bytes(4096)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"short",
        bytes(9000),
        _message(magic=b"another."),
        _message(layout=2),
        _message(nbytes=0),
        _message(nbytes=4097),
        _message(nbytes=2**64 - 1),
        _message(segment=b"../../../../etc/passwd"),
        _message(segment=b"\xff"),
        _message(),  # no container
    ],
    ids=range(11),
)
def test_what_is_no_version_is_refused_and_replaced(message: bytes, folder: Path) -> None:
    (folder / "latest").unlink()
    (folder / "latest").write_bytes(message)
    (folder / "latest").chmod(0o600)
    with Channel("c") as channel:
        with pytest.raises(xshm.FormatError):
            channel.read()
        assert os.listdir(folder.parents[1] / "segments") == []
        channel.write(frame(2))
        assert (read(channel).value == 2).all()


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_a_version_that_is_no_file_is_refused(kind: str, folder: Path, tmp_path: Path) -> None:
    latest = folder / "latest"
    latest.unlink()
    target = tmp_path / "precious"
    target.write_bytes(bytes(9000))
    latest.mkdir() if kind == "folder" else latest.symlink_to(target)
    with Channel("c") as channel, pytest.raises(xshm.FormatError):
        channel.read()
    latest.rmdir() if kind == "folder" else latest.unlink()
    assert target.read_bytes() == bytes(9000)
    remove(folder)


@pytest.mark.parametrize("place", range(0, 4096 + 512, 64))
def test_damage_anywhere_at_the_start_is_found_or_harmless(place: int, folder: Path) -> None:
    latest = folder / "latest"
    whole = latest.read_bytes()
    latest.unlink()
    latest.write_bytes(
        whole[:place] + bytes(b ^ 0x55 for b in whole[place:][:8]) + whole[place + 8 :]
    )
    latest.chmod(0o600)
    with Channel("c") as channel:
        try:
            value = read(channel).value
        except xshm.FormatError:
            assert place < 80 or place >= 4096
        else:
            np.testing.assert_array_equal(value, frame(1))
        channel.unlink()


def test_who_takes_a_channel_for_a_container_is_told() -> None:
    with xshm.Channel("camera") as channel:
        channel.write(1)
        for use in (xshm.open, xshm.unlink, xshm.SharedArray):
            with pytest.raises(xshm.ContainerNotFoundError, match=r"xshm\.Channel\('camera'\)"):
                use("camera")
