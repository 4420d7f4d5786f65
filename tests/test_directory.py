"""Invariant 9, only this user: a folder that is not ours alone is refused, not mended."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import dask.config
import numpy as np
import pytest

import xshm
from tests.conftest import tmpfs
from tests.everything_in_use import everything_in_use, files_below
from tests.test_process import Peer, share_array, take
from xshm import directory as module
from xshm import process
from xshm.directory import Directory, configured
from xshm.errors import DirectoryError
from xshm.handover import Outbox

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

ME = os.geteuid()
only_root = pytest.mark.skipif(ME != 0, reason="gives away files and mounts: only root may")


def mode(path: Path) -> int:
    """Permissions of a file."""
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_whatever_is_made_is_for_this_user_only(umask: int) -> None:
    before = os.umask(umask)
    try:
        with everything_in_use() as folder:
            found = files_below(folder)
            kinds = {path.suffix or path.parent.name for path in found}
            assert kinds >= {
                *(".segment", ".token", ".message", ".array", ".draft", ".lifetime"),
                *("processes", "containers", "locks", "channels", "channel"),
            }
            for path in found:
                status = path.lstat()
                assert status.st_uid == os.geteuid()
                if not stat.S_ISLNK(status.st_mode):  # whose mode nobody looks at
                    wanted = 0o700 if path.is_dir() else 0o600
                    assert (stat.S_IMODE(status.st_mode), path) == (wanted, path)
    finally:
        os.umask(before)


def test_the_same_directory_is_the_same_domain(directory: Path) -> None:
    first, second = Directory(directory), Directory(str(directory))
    assert first.domain == second.domain
    assert len(first.domain) == 32
    (other := directory / "other").mkdir()
    assert Directory(other).domain != first.domain


def test_it_is_the_one_that_is_configured(directory: Path) -> None:
    (other := directory / "other").mkdir()
    with dask.config.set({"xshm.directory": str(other)}):
        assert configured().path == other / f"xshm-{ME}"


def _refuse(parent: Path, *patterns: str) -> None:
    with pytest.raises(DirectoryError) as caught:
        Directory(parent)
    message = str(caught.value)
    for pattern in (str(parent), *patterns):
        assert pattern in message
    assert caught.value.errno
    assert caught.value.filename


FOLDERS = pytest.mark.parametrize("folder", ["", "segments", "processes"])


@FOLDERS
def test_a_link_is_refused(folder: str, directory: Path, tmp_path: Path) -> None:
    """Even to a folder of ours: who made it may turn it elsewhere."""
    target = tmp_path / "target"
    target.mkdir(mode=0o700)
    path = directory / f"xshm-{ME}" / folder
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.symlink_to(target)
    _refuse(directory, "a link", "mode 700", "set xshm.directory")
    assert list(target.iterdir()) == []
    path.unlink()


@FOLDERS
def test_a_file_is_refused(folder: str, directory: Path) -> None:
    path = directory / f"xshm-{ME}" / folder
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.touch(0o700)
    _refuse(directory, "not a directory")
    path.unlink()


@FOLDERS
@pytest.mark.parametrize("bits", [0o701, 0o710, 0o750, 0o777, 0o1777, 0o740])
def test_one_that_lets_others_in_is_refused_and_left_as_it_is(
    folder: str, bits: int, directory: Path
) -> None:
    made = Directory(directory)
    (made.path / folder).chmod(bits)
    _refuse(directory, f"open to others (mode {bits:o})")
    assert mode(made.path / folder) == bits


@only_root
@FOLDERS
def test_another_users_is_refused(folder: str, directory: Path) -> None:
    made = Directory(directory)
    os.chown(made.path / folder, 65534, -1)
    _refuse(directory, "owned by user 65534", "user 0")


def test_a_parent_that_is_missing_is_said_plainly(directory: Path) -> None:
    _refuse(directory / "missing", "No such file", "set xshm.directory")


def test_a_parent_that_is_a_file_is_said_plainly(directory: Path) -> None:
    (directory / "file").touch()
    _refuse(directory / "file", "Not a directory", "set xshm.directory")
    (directory / "file").unlink()


def _be_nobody_and(function: Callable[..., object], *args: object) -> object:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    return function(*args)


def _error_of_directory(parent: str) -> str:
    try:
        return Directory(parent).domain
    except DirectoryError as error:
        return str(error)


@only_root
def test_a_parent_that_is_not_writable_is_said_plainly(directory: Path) -> None:
    directory.chmod(0o755)
    with Peer() as peer:
        message = peer(_be_nobody_and, _error_of_directory, str(directory))
    assert f"{directory}/xshm-65534" in message
    assert "Permission denied" in message
    assert "set xshm.directory" in message


@only_root
def test_a_parent_on_a_full_file_system_is_said_plainly(directory: Path, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "full", "size=1m,nr_inodes=2") as full:
        _refuse(full, "found 0 of 2 files free", "nr_inodes", "set xshm.directory")


# ---- Domain.


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        "x",
        "0" * 31,
        "0" * 33,
        "G" * 32,
        "A" * 32,
        "../../etc/passwd",
        "0" * 32 + "\n",
        "é" * 32,
    ],
)
def test_a_garbled_domain_is_refused(garbage: str, directory: Path) -> None:
    link = Directory(directory).path / "domain"
    link.unlink()
    if garbage:
        link.symlink_to(garbage)
        _refuse(directory, str(link), "32 hexadecimal digits", "remove it")
        assert os.readlink(link) == garbage
    else:
        link.write_text("0" * 32)  # a file, not a link
        _refuse(directory)
    link.unlink()
    assert len(Directory(directory).domain) == 32


@only_root
def test_the_domain_can_be_made_where_there_is_no_page_left(tmp_path: Path) -> None:
    (mounted := tmp_path / "full").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k,mode=700", "xshm-test", str(mounted)]
    subprocess.run(mount, check=True)
    try:
        (mounted / "filler").write_bytes(bytes(4096))
        assert Directory(mounted).domain == Directory(mounted).domain
    finally:
        subprocess.run(["umount", "--lazy", str(mounted)], check=True)


def _make(parent: str) -> str:
    return Directory(parent).domain


def test_all_who_make_it_at_once_read_one_domain(directory: Path) -> None:
    peers = [Peer() for _ in range(6)]
    try:
        for i in range(20):
            (parent := directory / str(i)).mkdir()
            for peer in peers:
                peer.start(_make, str(parent))
            assert len({peer.result() for peer in peers}) == 1
    finally:
        for peer in peers:
            peer.end()


# ---- What it knows of its file system.


def test_room_is_that_of_the_file_system(here: Directory) -> None:
    free, total = here.room()
    status = os.statvfs(here.path)
    assert total == status.f_blocks * status.f_frsize
    assert 0 < free <= total


@only_root
@pytest.mark.parametrize(
    ("option", "gives"),
    [("never", False), ("advise", True), ("always", True), ("within_size", False)],
)
def test_huge_pages_are_asked_for_where_they_are_given(
    option: str, gives: bool, tmp_path: Path
) -> None:
    (mounted := tmp_path / "mounted with space").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size=32m,mode=700,huge={option}", "xshm-test"]
    if subprocess.run([*mount, str(mounted)], capture_output=True).returncode != 0:
        pytest.skip("this kernel has no huge pages for tmpfs")
    try:
        assert Directory(mounted).gives_huge_pages() == gives
        with dask.config.set({"xshm.directory": str(mounted)}), xshm.allocator(), Peer() as peer:
            x = np.full(2**20, 1.0)  # 8 MiB
            assert xshm.is_shared(x)
            handle = Outbox().share(x) or Outbox().copy(x)
            assert handle is not None
            x[:] = 2
            assert peer(take, handle) == 1
            assert peer(share_array, 1).segment == handle.segment
            del x
            assert not xshm.is_shared(np.ones(2**22 + 2**20))  # 40 MiB of 32
            assert np.ones(2**21).all()
        process.close()
    finally:
        process.close()
        subprocess.run(["umount", "--lazy", str(mounted)], check=True)


def test_names_are_recognized_exactly() -> None:
    assert module.SEGMENT_NAME.fullmatch("0123456789abcdef.1.segment")
    assert not module.SEGMENT_NAME.fullmatch("0123456789abcdef.1.token")
    assert module.TOKEN_NAME.fullmatch("0123456789abcdef.ffffffffffffffff.token")
    assert not module.TOKEN_NAME.fullmatch("0123456789abcdef.fffffffffffffffff.token")


# ---- What is configured is looked at again whenever it may have changed.


@pytest.mark.parametrize("folder", ["", "containers", "processes", "segments"])
def test_a_folder_that_was_removed_is_made_again(folder: str) -> None:
    path = configured().path / folder
    shutil.rmtree(path)
    assert configured().containers.is_dir()
    assert path.is_dir()


def test_a_directory_that_was_replaced_is_another_domain() -> None:
    before = configured()
    before.path.rename(before.path.with_name("away"))
    after = configured()
    assert after.path == before.path
    assert after.domain != before.domain


def test_a_directory_that_was_opened_to_others_is_refused() -> None:
    path = configured().path
    path.chmod(0o750)
    with pytest.raises(DirectoryError, match="open to others"):
        configured()


def test_another_configuration_is_another_directory(tmp_path: Path) -> None:
    before = configured()
    with dask.config.set({"xshm.directory": str(tmp_path)}):
        assert configured().path.parent == tmp_path
    assert configured().path == before.path
