"""Arrays through queues, pipes, pools and managers: the programs are in plain_processes.py."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import dask.config
import numpy as np
import pytest

import xshm
from tests.conftest import files_in, same_bytes, wait_until
from tests.namespaces import (
    mount_tmpfs,
    needs_namespaces,
    run_in_namespace,
)
from xshm import janitor, process
from xshm.directory import configured
from xshm.errors import LostHandleError

METHODS = pytest.mark.parametrize(
    "method", ["fork", "spawn", pytest.param("forkserver", marks=pytest.mark.slow)]
)
#: How children end. A spawned one does so as a forked one, but for what it does in order.
ENDS = {
    "fork": ["normal", "exit", "terminate", "kill", "os._exit"],
    "spawn": ["normal", "kill"],
    "forkserver": ["normal", "kill"],
}
N = 200_000


def run(*arguments: str, code: int = 0, says: str = "") -> None:
    """Run a program in an interpreter of its own; what it prints is an error."""
    command = [sys.executable, "-W", "error", "-m", "tests.plain_processes", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert says in done.stderr if says else done.stderr == ""


@METHODS
def test_everything_carries_handles_both_ways(method: str, directory: Path) -> None:
    run("carriers", method)
    assert files_in(directory) == []


@METHODS
def test_children_have_the_settings_of_their_parent(
    method: str, directory: Path, tmp_path: Path
) -> None:
    run("settings", method, str(tmp_path))
    assert files_in(tmp_path) == files_in(directory) == []


@METHODS
def test_a_producer_may_end_before_its_consumer_reads(method: str, directory: Path) -> None:
    run("producers_end", method, *ENDS[method])
    assert files_in(directory) == []


@METHODS
def test_who_holds_an_array_keeps_it_when_its_maker_ends(method: str, directory: Path) -> None:
    run("children_end", method, *ENDS[method])
    assert files_in(directory) == []


@METHODS
def test_a_child_outlives_its_parent(method: str, directory: Path, tmp_path: Path) -> None:
    result = tmp_path / "result"
    run("parent_ends", method, str(result))
    wait_until(lambda: result.exists() and result.read_text() != "", "the child is done", 30)
    assert result.read_text() == "200000.0 400000.0"
    # Where the parent was not quite dead when the child ended, the next process cleans up.
    wait_until(lambda: not janitor.clean(configured()) and not left(directory), "clean")


@METHODS
@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("normal", 0),
        ("exception", 1),
        ("terminate", -signal.SIGTERM),
        ("kill", -signal.SIGKILL),
        pytest.param("exit", 3, marks=pytest.mark.slow),
        pytest.param("os._exit", 4, marks=pytest.mark.slow),
    ],
)
def test_a_parent_that_ends_leaves_nothing(
    method: str, how: str, code: int, directory: Path
) -> None:
    # Who is not asked to leave cannot: then the next process cleans up.
    killed = how in ("terminate", "kill", "os._exit")
    with dask.config.set({"xshm.grace": 0}):
        run("parent_with_pool_ends", method, how, code=code, says="on purpose" * (code == 1))
        if killed:
            wait_until(lambda: not janitor.clean(configured()) and not left(directory), "clean")
    assert files_in(directory) == []


def left(directory: Path) -> list[str]:
    """What is there, of processes that may still be about to end."""
    return files_in(directory)


# ---- what is pickled ----


@pytest.fixture
def enabled() -> Iterator[None]:
    """Large arrays are pickled as handles in this process, for the length of a test."""
    import xshm.multiprocessing

    xshm.multiprocessing.enable()
    yield
    xshm.multiprocessing.disable()


def sent(x: Any) -> Any:
    """An object as it arrives at the other end of a pipe."""
    return pickle.loads(ForkingPickler.dumps(x))


VALUES = np.random.default_rng(0).integers(0, 255, 24 * 10**5, np.uint8)


@pytest.mark.parametrize(
    "x",
    [
        VALUES.view("f8"),
        VALUES.view("f8").reshape(3, -1),
        VALUES.view("f8").reshape(3, -1).T,
        VALUES.view("f8").reshape(3, -1)[:, ::-1],
        VALUES.view("f8").reshape(3, -1)[:, 1:-1],
        VALUES.view("f8").reshape(3, 10, -1).transpose(1, 2, 0)[::2],
        np.broadcast_to(VALUES[:1000], (2000, 1000)),
        VALUES.view("M8[ns]"),
        VALUES.view(">i4"),
        VALUES.view("c16"),
        VALUES.view("U3"),
        VALUES.view("S8"),
        VALUES.view([("a", "f8"), ("b", "i4", (2,))]),
        VALUES.view("V8"),
        VALUES,
    ],
    ids=lambda x: f"{x.dtype} {x.shape} {x.strides}",
)
@pytest.mark.parametrize("in_segment", [True, False])
def test_arrays_arrive_as_they_were(x: np.ndarray, in_segment: bool, enabled: None) -> None:
    if in_segment:
        segment = x.base[...].copy() if isinstance(x.base, np.ndarray) else x.copy()
        assert xshm.is_shared(segment)
        if isinstance(x.base, np.ndarray) and x.base is VALUES and x.flags.c_contiguous:
            x = segment.view(x.dtype).reshape(x.shape)
    message = ForkingPickler.dumps(x)
    assert message.nbytes < 2000
    arrived = pickle.loads(message)
    assert same_bytes(arrived, x)
    assert type(arrived) is np.ndarray
    assert arrived.flags.writeable
    assert arrived.flags.f_contiguous == x.flags.f_contiguous


def test_nobody_sees_what_another_writes(enabled: None) -> None:
    x = np.zeros(N)
    first, second = sent(x), sent(x)
    x[0], first[0] = 1, 2
    third = sent(x)
    assert (x[0], first[0], second[0], third[0]) == (1, 2, 0, 1)
    assert sent(first)[0] == 2


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_masked_arrays_go_by_handle_too(masked: bool, hard: bool, enabled: None) -> None:
    data = np.arange(float(N))
    mask = data % 3 == 0 if masked else np.ma.nomask
    x = np.ma.MaskedArray(data, mask, fill_value=-9.0, hard_mask=hard)
    message = ForkingPickler.dumps(x)
    assert message.nbytes < 1.1 * N  # the mask is below the threshold
    arrived = pickle.loads(message)
    assert type(arrived) is np.ma.MaskedArray
    assert same_bytes(arrived.data, data)
    assert (arrived.mask is np.ma.nomask) == (not masked)
    np.testing.assert_array_equal(arrived.mask, x.mask)
    assert (arrived.fill_value, arrived.hardmask) == (-9.0, hard)
    small = np.ma.MaskedArray([1, 2], [True, False])
    assert sent(small).tolist() == [None, 2]


def test_a_view_in_a_segment_is_not_copied(enabled: None) -> None:
    x = np.ones((1000, 1000))[:, 10:]
    before = xshm.stats()["bytes_copied_in"]
    assert same_bytes(sent(x), x)
    assert same_bytes(sent(sent(x)), x)  # handed on
    assert xshm.stats()["bytes_copied_in"] == before


def test_a_sparse_view_does_not_keep_what_it_spans(enabled: None) -> None:
    x = np.ones((1000, 1000))[:, ::4]
    with dask.config.set({"xshm.view-fraction": 0.5}):
        arrived = sent(x)
    assert same_bytes(arrived, x)
    assert arrived.flags.c_contiguous


@pytest.mark.parametrize(
    "x",
    [np.arange(3), np.arange(131_071.0), np.array(["a", None] * N), np.empty((0, 5)), np.array(1)],
    ids=["small", "below the threshold", "objects", "empty", "no dimensions"],
)
def test_others_go_as_before(x: np.ndarray, enabled: None, directory: Path) -> None:
    message = ForkingPickler.dumps(x)
    assert bytes(message) == pickle.dumps(x, protocol=pickle.DEFAULT_PROTOCOL)
    np.testing.assert_array_equal(pickle.loads(message), x)
    assert ".message" not in [Path(file).suffix for file in files_in(directory)]


def test_strings_of_any_length_go_as_before(enabled: None) -> None:
    x = np.array(["Red", "Orange"] * N, np.dtypes.StringDType())
    np.testing.assert_array_equal(sent(x), x)


def test_disabled_again_arrays_are_pickled(enabled: None) -> None:
    xshm.multiprocessing.disable()
    x = np.ones(N)
    assert not xshm.is_shared(x)
    assert bytes(ForkingPickler.dumps(x)) == pickle.dumps(x, protocol=pickle.DEFAULT_PROTOCOL)


def test_a_message_is_read_once(enabled: None) -> None:
    message = bytes(ForkingPickler.dumps(np.ones(N)))
    pickle.loads(message)
    with pytest.raises(LostHandleError, match="somebody else has taken it"):
        pickle.loads(message)


def test_a_message_for_another_directory_says_so(
    enabled: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = bytes(ForkingPickler.dumps(np.ones(N)))
    process.close()
    (tmp_path / "elsewhere").mkdir()
    with dask.config.set({"xshm.directory": str(tmp_path / "elsewhere")}):
        with pytest.raises(LostHandleError, match="DASK_XSHM__DIRECTORY"):
            pickle.loads(message)
        process.close()
    expire(configured())
    janitor.clean(configured())


def expire(here: Any) -> None:
    """Let the grace period of who has ended be over."""
    for file in here.processes.iterdir():
        if file.stat().st_mtime > 0:
            os.utime(file, (1, 1))


def test_an_unread_message_goes_after_the_grace_period(enabled: None, directory: Path) -> None:
    message = bytes(ForkingPickler.dumps(np.ones(N)))
    process.close()
    kinds = [Path(file).suffix for file in files_in(directory)]
    assert kinds == ["", ".message"]
    assert xshm.stats()["live_segments"] == 0
    arrived = pickle.loads(message)  # this enters the directory anew
    assert arrived.sum() == N
    ForkingPickler.dumps(arrived)  # never read
    process.close()
    assert ".message" in [Path(file).suffix for file in files_in(directory)]
    expire(configured())
    janitor.clean(configured())
    assert files_in(directory) == []


def test_without_a_directory_arrays_go_as_bytes(enabled: None, tmp_path: Path) -> None:
    x = np.ones(N)
    process.close()
    before = xshm.stats()["refused"]
    with dask.config.set({"xshm.directory": str(tmp_path / "missing")}):
        message = ForkingPickler.dumps(x)
    assert same_bytes(pickle.loads(message), x)
    assert xshm.stats()["refused"] == before + 1


@needs_namespaces
def test_without_room_arrays_go_as_bytes(directory: Path) -> None:
    run_in_namespace(send_from_a_small_directory, directory)


def send_from_a_small_directory(directory: str) -> None:
    """Send more than the directory has room for."""
    mount_tmpfs(directory, "1m")
    import xshm.multiprocessing

    x = np.ones(N)
    message = ForkingPickler.dumps(x)
    assert message.nbytes > x.nbytes
    assert same_bytes(pickle.loads(message), x)
    assert xshm.stats()["refused"] > 0
