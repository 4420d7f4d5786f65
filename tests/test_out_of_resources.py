"""No file, no open file and no mapping is left: said plainly, and all works when there is again."""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import os
import pickle
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from multiprocessing.reduction import ForkingPickler
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import dask.config
import numpy as np
import psutil
import pytest
import xarray as xr

import xshm
from tests.conftest import files_in, same_bytes, tmpfs
from xshm import janitor, process
from xshm.cli import main
from xshm.directory import configured
from xshm.errors import HandleError, LimitError, NoRoomError
from xshm.handover import Outbox, receive

MIB = 2**20

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a tmpfs: only root may")


# ---- what is used up ----


@contextlib.contextmanager
def open_files_left(count: int) -> Iterator[None]:
    """This process can open that many more files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    held = [os.open("/dev/null", os.O_RDONLY)]
    while held[-1] <= highest:  # it is the number of a descriptor that is limited
        held.append(os.open("/dev/null", os.O_RDONLY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (held[-1] + 1 + count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in held:
            os.close(descriptor)


@contextlib.contextmanager
def files_left(count: int, parent: Path) -> Iterator[None]:
    """The file system can have that many more files."""
    folder = parent / "filler"
    folder.mkdir()
    xshm.trim()
    for number in range(os.statvfs(parent).f_favail - count):
        (folder / str(number)).touch()
    try:
        yield
    finally:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


@contextlib.contextmanager
def address_space_left(nbytes: int) -> Iterator[None]:
    """This process can map that many more bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


# ---- what users do ----


def enter() -> None:
    with xshm.allocator():
        pass


def publish() -> None:
    xshm.publish(xr.Dataset({"a": ("x", np.arange(9.0))}), "new").unlink()


def publish_for_life() -> None:
    xshm.publish(np.arange(9.0), "new", lifetime="process").unlink()


def publish_chunks() -> None:
    chunks = xr.Dataset({"a": ("x", np.arange(9.0))}).chunk(x=3)
    with dask.config.set(scheduler="synchronous"):
        xshm.publish(chunks, "new").unlink()


def replace() -> None:
    xshm.publish(xr.Dataset({"a": ("x", np.arange(9.0))}), "old", mode="w")


def add() -> None:
    xshm.publish(xr.Dataset({f"b{next(_numbers)}": ("x", np.arange(9.0))}), "old", mode="a")


_numbers = itertools.count()


def write_over() -> None:
    xshm.publish(xr.Dataset({"a": ("x", np.arange(9.0))}), "old", mode="r+")


def read() -> None:
    assert [shared.name for shared in xshm.list()] == ["old"]
    shared = xshm.SharedDataset("old")
    assert shared.exists
    assert shared.open().equals(xr.open_dataset("old", engine="xshm"))


def share() -> None:
    with xshm.SharedArray.zeros(9, name="new") as x, xshm.SharedArray("new") as same:
        same[0] = 1
        assert x[0] == 1


def share_without_a_name() -> None:
    with xshm.SharedArray.from_array(np.arange(9.0)) as x, pickle.loads(pickle.dumps(x)) as same:
        same[0] = 1
        assert x[0] == 1


def lock() -> None:
    with xshm.Lock("new"):
        pass
    with xshm.Lock("new").shared():
        pass


def write_to_a_channel() -> None:
    with xshm.Channel("new") as writer, contextlib.closing(xshm.Channel("new")) as reader:
        for value in 1, np.ones(MIB // 4):
            writer.write(value)
            snapshot = reader.read()
            assert snapshot is not None
            assert np.array_equal(snapshot.value, value)


VERBS = [
    enter,
    publish,
    publish_for_life,
    publish_chunks,
    replace,
    add,
    write_over,
    read,
    share,
    share_without_a_name,
    lock,
    write_to_a_channel,
]


@pytest.fixture
def _old() -> Iterator[None]:
    """A container that was there before."""
    xshm.publish(xr.Dataset({"a": ("x", np.arange(9.0))}), "old")
    yield
    xshm.unlink("old")


@pytest.fixture
def _multiprocessing() -> Iterator[None]:
    """Large arrays are born in segments, and pickled as handles."""
    import xshm.multiprocessing

    xshm.multiprocessing.enable()
    yield
    xshm.multiprocessing.disable()


def fails_until_there_is_enough(
    verb: Callable[[], None], left: Callable[[int], AbstractContextManager[None]]
) -> Iterator[OSError]:
    """The errors of a verb for which there is nothing, one thing, two, ... until it works.

    After each it is tried again, and has what it takes.
    """
    for count in itertools.count():
        process.close()
        try:
            with left(count):
                verb()
        except (LimitError, NoRoomError, HandleError) as error:
            yield error
        else:
            return
        gc.collect()
        verb()


# ---- open files ----


@pytest.mark.usefixtures("_old")
@pytest.mark.parametrize("verb", VERBS)
def test_without_another_open_file(verb: Callable[[], None]) -> None:
    verb()  # what is imported on the way
    errors = 0
    for error in fails_until_there_is_enough(verb, open_files_left):
        assert type(error) in (LimitError, HandleError)
        assert error.errno == errno.EMFILE
        assert "ulimit -n" in str(error)
        errors += 1
    assert errors > 0


@pytest.mark.usefixtures("_old")
@pytest.mark.parametrize("command", [["ls"], ["info", "old"], ["rm", "old"], ["df"], ["gc"]])
def test_a_command_without_another_open_file(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with open_files_left(0):
        assert main.run(command) == 1
    assert "ulimit -n" in capsys.readouterr().err


def test_attaching_without_another_open_file() -> None:
    memory = SharedMemory(create=True, size=8)
    for count in 0, 1:
        with open_files_left(count), pytest.raises(LimitError, match="ulimit -n"):
            xshm.asarray(memory.name)
    assert xshm.asarray(memory.name).size == 8
    memory.close()
    memory.unlink()


def test_a_writer_without_another_open_file() -> None:
    with xshm.Channel("new") as writer:
        writer.write(1)
        with open_files_left(0), pytest.raises(LimitError, match="ulimit -n"):
            writer.write(2)
        assert writer.write(2) == 2
        with open_files_left(0), pytest.raises(LimitError, match="ulimit -n"):
            writer.unlink()
        with open_files_left(1):
            writer.unlink()


@pytest.mark.usefixtures("_multiprocessing")
def test_arrays_without_another_open_file_are_ordinary_and_go_as_bytes() -> None:
    with open_files_left(0):
        x = np.ones(MIB // 4)
        received = ForkingPickler.loads(ForkingPickler.dumps(x))
    assert not xshm.is_shared(x)
    assert same_bytes(received, x)
    assert xshm.is_shared(np.ones(MIB // 4))


def test_segments_are_given_back_without_another_open_file() -> None:
    process.keep_open()
    xshm.enable()
    x = np.empty(MIB)
    del x  # its segment waits for the next array
    assert len(files_in(configured().segments)) == 1
    with open_files_left(0):
        assert not xshm.is_shared(np.empty(MIB - MIB // 4))  # which it would have to be cut for
    assert files_in(configured().segments) == []


def test_a_handle_is_refused_without_another_open_file() -> None:
    handle = Outbox().copy(np.ones(MIB // 4))
    assert handle is not None
    with open_files_left(0), pytest.raises(HandleError, match=r"cannot take .*ulimit -n"):
        receive(handle)
    assert receive(handle).nbytes == 2 * MIB


def test_a_process_leaves_without_another_open_file() -> None:
    with xshm.SharedArray.zeros(9):
        here, dead = configured(), "0" * 16
        shared = xshm.publish(np.zeros(9), "bound")
        janitor.bind_to_life(here, dead, "bound", (here.containers / "bound").stat().st_ino)
        (here.processes / dead).touch()
    with open_files_left(0):
        process.close()
    assert shared.exists  # for want of two descriptors
    with xshm.SharedArray.zeros(9):  # the next one removes it
        assert not shared.exists
        assert len(os.listdir(here.processes)) == 1


# ---- mappings ----


@pytest.mark.usefixtures("_old")
def test_without_another_mapping() -> None:
    with (
        xshm.publish(np.zeros(8 * MIB), "large") as shared,
        xshm.SharedArray.zeros(8 * MIB) as x,
        address_space_left(32 * MIB),
    ):
        for verb in (
            lambda: xshm.open("large"),
            shared.open,
            lambda: xshm.SharedArray("large"),
            lambda: pickle.loads(pickle.dumps(x)),
        ):
            with pytest.raises(LimitError, match=r"vm\.max_map_count"):
                verb()
        assert xshm.open("old").a.size == 9


# ---- files ----


@pytest.fixture
def few_files(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 200 files."""
    with tmpfs(tmp_path / "few", "size=64m,nr_inodes=200") as mounted:
        yield mounted


@only_root
@pytest.mark.parametrize("verb", VERBS)
def test_without_another_file(verb: Callable[[], None], few_files: Path) -> None:
    xshm.publish(xr.Dataset({"a": ("x", np.arange(9.0))}), "old")
    for error in fails_until_there_is_enough(verb, lambda count: files_left(count, few_files)):
        assert type(error) is NoRoomError
        assert error.errno == errno.ENOSPC
        assert str(few_files) in str(error)
        assert "of 200 files" in str(error)
        assert "nr_inodes" in str(error)
    xshm.unlink("old")


@only_root
@pytest.mark.usefixtures("few_files", "_multiprocessing")
def test_arrays_without_another_file_are_ordinary_and_go_as_bytes(few_files: Path) -> None:
    with files_left(0, few_files):
        x = np.ones(MIB // 4)
        received = ForkingPickler.loads(ForkingPickler.dumps(x))
    assert not xshm.is_shared(x)
    assert same_bytes(received, x)
    assert xshm.is_shared(np.ones(MIB // 4))


# ---- a tmpfs without a limit ----


@pytest.fixture
def unlimited(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs with no size of its own; nobody takes more than 1 GiB by mistake."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with tmpfs(tmp_path / "unlimited", "size=0,nr_inodes=0") as mounted:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * MIB, hard))
        yield mounted
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@only_root
def test_the_room_of_a_tmpfs_without_a_limit_is_the_memory(
    unlimited: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = psutil.virtual_memory()
    free, size = configured().room()
    assert size == memory.total
    assert 0 < free < size
    assert main.run(["df"]) == 0
    assert " 0 B free" not in capsys.readouterr().out


@only_root
def test_a_tmpfs_without_a_limit_takes_what_memory_can_hold(unlimited: Path) -> None:
    with xshm.allocator():
        x = np.ones(MIB)
        assert xshm.is_shared(x)
    assert xshm.publish(x, "x").open().sum() == MIB
    xshm.unlink("x")
    memory = psutil.virtual_memory().total
    for nbytes in memory - 64 * MIB, 2 * memory, 2**60:
        with pytest.raises(NoRoomError, match="MiB"):
            xshm.SharedArray.zeros(nbytes, "u1")
        refused = xshm.stats()["refused"]
        with xshm.allocator(), contextlib.suppress(MemoryError):
            assert not xshm.is_shared(np.empty(nbytes, "u1"))
        assert xshm.stats()["refused"] == refused + 1
