"""The memory that a process keeps alive: its own, that of its segments, and that of orphans.

Resident memory has every page of shared memory that a process has touched, whoever keeps it
there. Counted here is what would be free if the process ended.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from xshm.directory import Directory

_STATUS = re.compile(rb"^(VmRSS|RssShmem):\s+(\d+) kB$", re.MULTILINE)
# proc_pid_maps(5): address, permissions, offset, device, inode, path.
_LEASE = rb"^([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) \S+ (\d+) +%s/\S+\.(?:token|message)\b"
# proc_locks(5): kind, manner, access, process, device and inode.
_HOLDER = re.compile(rb"^\d+: FLOCK +ADVISORY +READ +(\d+) (\S+):(\d+) ", re.MULTILINE)


def resident(pid: int) -> tuple[int, int]:
    """Resident bytes of a process: those that are not of shared memory, and those that are.

    Raises
    ------
    FileNotFoundError, ProcessLookupError
        It has ended.
    """
    # proc(5). One that has just ended has a status without these lines.
    found = dict(_STATUS.findall(Path(f"/proc/{pid}/status").read_bytes()))
    shared = int(found.get(b"RssShmem", 0))
    return (int(found.get(b"VmRSS", 0)) - shared) * 1024, shared * 1024


def segments_of(pid: int, directory: Directory) -> int:
    """Bytes of memory that the segments of a process take, as the directory tells.

    Raises
    ------
    FileNotFoundError, ProcessLookupError, PermissionError
        It has ended, or is another user's.
    """
    ids = _ids_of(pid, directory)
    nbytes = 0
    if ids:
        with os.scandir(directory.segments) as entries:
            for entry in entries:
                owner, _, kind = entry.name.partition(".")
                if owner in ids and kind.endswith(".segment"):
                    try:
                        # Not st_size: a segment may be shorter than what was reserved for it.
                        nbytes += entry.stat(follow_symlinks=False).st_blocks * 512
                    except FileNotFoundError:  # removed meanwhile
                        continue
    return nbytes


def idle_of(pid: int, directory: Directory) -> int:
    """Bytes of a worker's segments that it keeps for its next arrays, give or take 16 MiB.

    Raises
    ------
    FileNotFoundError, ProcessLookupError, PermissionError
        It has ended, or is another user's.

    Notes
    -----
    It tells them by the size of its file in ``processes``, which has no pages (_core/room.c). A
    process that is no worker tells nothing.
    """
    nbytes = 0
    for process in _ids_of(pid, directory):
        with contextlib.suppress(FileNotFoundError):  # it has just left the directory
            nbytes += (directory.processes / process).lstat().st_size
    return nbytes


def orphans_of(pid: int, directory: Directory) -> int:
    """Bytes of memory that only leases keep, as far as they are this process's to count.

    A segment whose owner has ended, or has given it up, has no name any more: it is there
    until the last lease ends. It counts for one of the holders, the one with the lowest pid.

    Raises
    ------
    FileNotFoundError, ProcessLookupError, PermissionError
        The process has ended, or is another user's.

    Notes
    -----
    The kernel tells who holds a lease, as it is a lock. It tells it of processes that can be
    seen from here: in each pid namespace one of the holders counts. Counted is what leases
    reach: up to the end of the part of the segment that is mapped.
    """
    leased = _leased(pid, directory)
    if leased:
        with os.scandir(directory.segments) as entries:
            named = {entry.inode() for entry in entries}
        leased = {inode: nbytes for inode, nbytes in leased.items() if inode not in named}
    if not leased:
        return 0
    others = counted_by_others(pid, directory)
    return sum(nbytes for inode, nbytes in leased.items() if inode not in others)


def counted_by_others(pid: int, directory: Directory) -> set[int]:
    """Inodes of what is leased by a process with a lower pid."""
    device = os.stat(directory.segments).st_dev
    ours = f"{os.major(device):02x}:{os.minor(device):02x}".encode()
    # Without a list of locks (some sandboxes) each holder counts them: too much is safe.
    with contextlib.suppress(FileNotFoundError, PermissionError):
        locks = _HOLDER.findall(Path("/proc/locks").read_bytes())
        return {int(inode) for holder, where, inode in locks if where == ours and int(holder) < pid}
    return set()


def _leased(pid: int, directory: Directory) -> dict[int, int]:
    """How many bytes a process reaches of each segment it has a lease of, by inode."""
    # Its own segments, opened by another name, come and go while their names are listed.
    lease = re.compile(_LEASE % re.escape(os.fsencode(directory.segments)), re.MULTILINE)
    reached: dict[int, int] = {}
    maps = Path(f"/proc/{pid}/maps").read_bytes()
    for start, end, offset, inode in lease.findall(maps):
        until = int(offset, 16) + int(end, 16) - int(start, 16)
        reached[int(inode)] = max(reached.get(int(inode), 0), until)
    return reached


def _ids_of(pid: int, directory: Directory) -> set[str]:
    # A process has its own file in `processes` open for as long as it is in the directory.
    prefix = f"{directory.processes}/"
    ids = set()
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{descriptor}")
        except FileNotFoundError:  # closed meanwhile
            continue
        if target.startswith(prefix):
            ids.add(target.removeprefix(prefix))
    return ids
