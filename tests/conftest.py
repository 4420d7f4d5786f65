"""Every test has a directory of its own, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import gc
import os
import secrets
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dask.config
import numpy as np
import pytest
from hypothesis import settings

import xshm
from xshm import _core, process
from xshm.directory import Directory

#: Threads that distributed starts once and keeps until the interpreter ends.
_KEPT_THREADS = ("IO loop", "Profile", "asyncio_", "Dask-Offload", "Dask-Default", "AsyncProcess")


def pytest_configure(config: pytest.Config) -> None:
    """Make tests pass in the background, and on a busy machine, and the run end."""
    # xdist would run a test that ended its process once more, in a new one, and when that ends
    # too may wait for ever.
    if config.pluginmanager.hasplugin("xdist"):
        config.option.maxworkerrestart = "0"
    # Else this process and all its children would ignore these there.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    settings.register_profile("busy", settings(), deadline=None)
    settings.load_profile("busy")


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 10) -> None:
    """Wait for something that happens in another thread or process."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"did not happen in {seconds} s: {what}"
        time.sleep(0.01)


@contextlib.contextmanager
def tmpfs(folder: Path, options: str) -> Iterator[Path]:
    """A tmpfs that is the directory, and that nothing is left in."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"mode=700,{options}", "xshm-test", str(folder)]
    subprocess.run(mount, check=True)
    try:
        with dask.config.set({"xshm.directory": str(folder)}):
            yield folder
            process.close()
            assert files_in(folder) == []
    finally:
        process.close()
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def own_directory() -> Iterator[Path]:
    """A tmpfs directory: ``xshm.directory`` is set to it, and nothing may be left in the end.

    Notes
    -----
    It is set in the environment too, for processes that a test starts by itself.
    """
    # Hexadecimal: dask tries to read the variable as Python, which warns of names such as "1if".
    parent = Path(f"/dev/shm/xshm-test-{secrets.token_hex(8)}")
    parent.mkdir(mode=0o700)
    before = _possessions()
    with pytest.MonkeyPatch.context() as patch, dask.config.set({"xshm.directory": str(parent)}):
        patch.setenv("DASK_XSHM__DIRECTORY", str(parent))
        try:
            yield parent
            gc.collect()
            process.close()
            _assert_nothing_left(before, parent)
        finally:
            process.close()
            shutil.rmtree(parent)


@pytest.fixture(autouse=True, scope="module")
def _what_is_kept() -> None:
    """What imports and the modules before have left need not be searched after each test."""
    gc.unfreeze()  # of what was kept for the module before, some has become garbage
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def directory() -> Iterator[Path]:
    """A directory that only this test uses."""
    with own_directory() as parent:
        yield parent


def files_in(parent: Path) -> list[str]:
    """What is in the directory, but for what stays: segments, tokens and process files."""
    return sorted(
        str(Path(folder, name).relative_to(parent))
        for folder, _, names in os.walk(parent)
        for name in names
        if name not in ("domain", "wanted")
    )


def _possessions() -> dict[str, set[str]]:
    return {
        "open files": {f"{fd}: {_target(fd)}" for fd in os.listdir("/proc/self/fd")},
        "threads": {
            f"{t.name} ({t.ident})"
            for t in threading.enumerate()
            if not t.name.startswith(_KEPT_THREADS)
        },
        "children": {
            child
            for child in _descendants("self")
            if "resource_tracker" not in child and "forkserver" not in child
        },
        "signals": {
            f"{number!r}: {signal.getsignal(number)}"
            for number in signal.valid_signals() - {signal.SIGALRM}  # pytest-timeout's
        },
        "dask's scheduler": {str(dask.config.get("scheduler", None))},
    }


def _descendants(pid: str) -> Iterator[str]:
    """Number and command of each process that this one started, and of those they started."""
    # Not by psutil: it reads the parent of every process of the computer.
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in _text(listing).split():
            yield f"{child} {_text(Path(f'/proc/{child}/cmdline'))}".replace("\0", " ")
            yield from _descendants(child)


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except (FileNotFoundError, ProcessLookupError):  # of a thread or process that has ended
        return ""


def _target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:  # the descriptor that listed the others is closed by now
        return ""


def _is_kept(possession: str) -> bool:
    """Of what the interpreter, distributed or the core open once and keep."""
    kept = ("/proc/self/fd", "pagemap", "pipe:", "socket:", "anon_inode:", "/dev/null")
    return possession.endswith(": ") or any(k in possession for k in kept)


def _assert_nothing_left(before: dict[str, set[str]], parent: Path) -> None:
    assert files_in(parent) == []

    def new() -> dict[str, list[str]]:
        now = _possessions()
        return {
            kind: left
            for kind in now
            if (left := [p for p in now[kind] - before[kind] if not _is_kept(p)])
        }

    try:
        wait_until(lambda: not new(), "everything given back")
    except AssertionError:
        pytest.fail(f"the test left {new()}")


@pytest.fixture
def here(directory: Path) -> Directory:
    """The directory as xshm sees it, entered by this process."""
    return process.current().directory


@pytest.fixture
def allocating() -> Iterator[None]:
    """Large arrays of the test are born in segments."""
    with xshm.allocator():
        yield


@pytest.fixture
def dask_threads() -> Iterator[None]:
    """What dask computes without a cluster is computed by threads that end with the test."""
    with ThreadPoolExecutor(2) as pool, dask.config.set(pool=pool):
        yield


def segment_names(here: Directory) -> list[str]:
    """Segments and tokens in the directory."""
    return sorted(os.listdir(here.segments))


def same_bytes(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal dtype, shape and bits."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


__all__ = ["_core", "files_in", "same_bytes", "segment_names", "wait_until"]
