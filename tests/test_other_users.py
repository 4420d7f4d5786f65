"""Invariant 9, only this user: what another user finds, tries and plants, as that user.

Each test runs in a directory as /dev/shm is: everybody may make files there.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import xshm
from tests.everything_in_use import everything_in_use, files_below
from tests.test_process import Peer, hold_array, is_all, share_array, take
from xshm import janitor, process
from xshm.directory import Directory, configured
from xshm.errors import DirectoryError
from xshm.handover import Outbox

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user: only root may"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]

NOBODY = 65534
STICKY, PLAIN = 0o1777, 0o777


def become_nobody() -> None:
    """Be another user from here on, without any of root's rights."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


@pytest.fixture
def nobody() -> Iterator[Peer]:
    """A process of another user."""
    with Peer() as peer:
        peer(become_nobody)
        yield peer


@pytest.fixture(autouse=True)
def everybodys(directory: Path) -> Path:
    """The test's directory, in which everybody may make files, and remove their own."""
    directory.chmod(STICKY)
    return directory


# ---- what another user tries ----


def _makes_another_name(path: str) -> None:
    os.link(path, f"/dev/shm/xshm-test-link-{secrets.token_hex(8)}")


ATTEMPTS: dict[str, Callable[[str], object]] = {
    "asks after": os.lstat,
    "lists": os.listdir,
    "reads": lambda path: os.open(path, os.O_RDONLY | os.O_NONBLOCK),
    "names": lambda path: os.open(path, os.O_PATH),
    "writes": lambda path: os.open(path, os.O_WRONLY | os.O_NONBLOCK),
    "shortens": lambda path: os.truncate(path, 0),
    "removes": os.unlink,
    "removes the folder": os.rmdir,
    "renames": lambda path: os.rename(path, f"{path}-away"),
    "replaces": lambda path: os.rename(tempfile.mkstemp(dir="/dev/shm")[1], path),
    "links": _makes_another_name,
    "opens to others": lambda path: os.chmod(path, 0o777),
    "takes over": lambda path: os.chown(path, NOBODY, NOBODY),
    "makes a file in": lambda path: os.open(f"{path}/planted", os.O_CREAT | os.O_WRONLY),
    "plants a link in": lambda path: os.symlink("/etc/passwd", f"{path}/planted"),
    "enters": os.chdir,
}


def what_succeeds(paths: list[str], refusal: type[OSError]) -> list[str]:
    """Which attempts the kernel does not refuse."""
    succeeded = []
    for what, attempt in ATTEMPTS.items():
        for path in paths:
            try:
                attempt(path)
            except refusal:
                continue
            succeeded.append(what)
    for left in Path("/dev/shm").glob("tmp*"):
        if left.stat().st_uid == NOBODY:
            left.unlink()
    return succeeded


def test_another_user_can_do_nothing_with_what_is_ours(nobody: Peer) -> None:
    with everything_in_use() as folder:
        inside = [str(path) for path in files_below(folder)[1:]]
        assert nobody(what_succeeds, inside, PermissionError) == []
        # The folder itself has a name that everybody sees, and is no file to be written to.
        assert nobody(what_succeeds, [str(folder)], OSError) == ["asks after", "names"]
        assert [str(path) for path in files_below(folder)[1:]] == inside


def read_memory(pid: int, address: int) -> str:
    """Read eight bytes of another process."""

    class Part(ctypes.Structure):
        _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))

    into = ctypes.create_string_buffer(8)
    local, remote = Part(ctypes.addressof(into), 8), Part(address, 8)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.process_vm_readv(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0) == 8:
        return str(into.raw)
    return errno.errorcode[ctypes.get_errno()]


def test_nor_by_the_descriptors_and_mappings_of_our_process(nobody: Peer) -> None:
    with xshm.allocator():
        x = np.ones(2**18)
    assert xshm.is_shared(x)
    for attempt in ("fd", "map_files"):
        with pytest.raises(PermissionError):
            nobody(os.listdir, f"/proc/{os.getpid()}/{attempt}")
    assert nobody(read_memory, os.getpid(), x.ctypes.data) == "EPERM"


def test_every_user_works_in_a_folder_of_their_own(nobody: Peer, directory: Path) -> None:
    mine = configured()
    theirs = nobody(domain_of, str(directory))
    assert theirs != mine.domain
    assert (directory / f"xshm-{NOBODY}").stat().st_uid == NOBODY
    nobody(hold_array, 1)
    assert nobody(is_all, 1)


def domain_of(parent: str) -> str:
    """The domain of the directory there, or why it is refused."""
    try:
        return Directory(parent).domain
    except DirectoryError as error:
        return str(error)


# ---- what another user plants, before or while we use it ----


def _folder(path: Path, _: Path) -> None:
    path.mkdir(0o700)


def _folder_for_all(path: Path, _: Path) -> None:
    path.mkdir()
    path.chmod(0o777)
    for name in ("segments", "processes", "containers", "locks"):
        (path / name).mkdir()
        (path / name).chmod(0o777)


def _link_to_own(path: Path, _: Path) -> None:
    (own := path.with_name("theirs")).mkdir(0o777)
    path.symlink_to(own)


PLANTED: dict[str, Callable[[Path, Path], object]] = {
    "a folder": _folder,
    "a folder for all": _folder_for_all,
    "a link to a folder of theirs": _link_to_own,
    "a link to a folder of ours": lambda path, prey: path.symlink_to(prey),
    "a link to nothing": lambda path, _: path.symlink_to("/dev/shm/xshm-nothing"),
    "a file": lambda path, _: path.touch(),
    "a FIFO": lambda path, _: os.mkfifo(path),
}


def plant(kind: str, path: str, prey: str) -> None:
    """Make something in the place of somebody's directory."""
    PLANTED[kind](Path(path), Path(prey))


@pytest.mark.parametrize("mode", [STICKY, PLAIN], ids=oct)
@pytest.mark.parametrize("kind", PLANTED)
def test_what_others_planted_is_refused(
    kind: str, mode: int, nobody: Peer, directory: Path, tmp_path: Path
) -> None:
    directory.chmod(mode)
    prey = Directory(tmp_path).path
    before = contents(prey)
    path = directory / f"xshm-{os.geteuid()}"
    nobody(plant, kind, str(path), str(prey))
    planted = contents(directory)
    for use in (configured, process.current, functools.partial(xshm.publish, np.ones(3), "x")):
        with pytest.raises(DirectoryError, match=f"{path} is .*set xshm.directory"):
            use()
    assert contents(prey) == before
    assert contents(directory) == planted
    remove(path)


def contents(folder: Path) -> dict[str, tuple[int, ...]]:
    """All that is in a folder, and what it is."""
    found = {path: path.lstat() for path in [folder, *folder.rglob("*")]}
    return {
        str(path): (s.st_ino, s.st_mode, s.st_uid, s.st_size, s.st_mtime_ns)
        for path, s in found.items()
    }


def remove(path: Path) -> None:
    """Remove what was planted."""
    if path.is_dir() and not path.is_symlink():
        for inner in path.iterdir():
            remove(inner)
        path.rmdir()
    else:
        path.unlink()


@pytest.mark.parametrize("kind", ["a folder for all", "a link to a folder of theirs"])
def test_a_directory_that_is_replaced_in_use(kind: str, nobody: Peer, directory: Path) -> None:
    """Where others may rename our folder, they can stop us, and neither read nor misuse."""
    directory.chmod(PLAIN)
    path = configured().path
    with Peer() as peer, xshm.allocator():
        x = np.ones(2**18)
        peer(hold_array, 2)
        nobody(os.rename, str(path), str(path.with_name("away")))
        nobody(plant, kind, str(path), str(path))
        planted = contents(path)
        # What is open goes on: segments are reached by a descriptor of their folder.
        outbox = Outbox()
        assert peer(take, outbox.share(x)) == 1
        assert peer(share_array, 2) is not None
        # What is looked up is refused.
        for use in (
            functools.partial(xshm.publish, np.ones(3), "published"),
            functools.partial(xshm.open, "published"),
            functools.partial(xshm.Channel, "channel"),
            xshm.Lock("lock").acquire,
            xshm.list,
        ):
            with pytest.raises(DirectoryError):
                use()
        assert contents(path) == planted
        # Who leaves does so without touching what is there.
        peer.end()
        process.close()
        assert contents(path) == planted
    remove(path)
    path.with_name("away").rename(path)
    assert len(janitor.clean(configured())) == 2  # who could not remove what they left
