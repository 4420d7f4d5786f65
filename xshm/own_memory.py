"""The memory that a process keeps alive: its own, and that of its segments.

Resident memory has every page of shared memory that a process has touched, whoever keeps it
there. Counted here is what would be free if the process ended.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from xshm.directory import Directory

_STATUS = re.compile(rb"^(VmRSS|RssShmem):\s+(\d+) kB$", re.MULTILINE)


def own_resident(pid: int) -> int:
    """Resident bytes of a process that are not of shared memory.

    Raises
    ------
    FileNotFoundError, ProcessLookupError
        It has ended.
    """
    # proc(5). One that has just ended has a status without these lines.
    found = dict(_STATUS.findall(Path(f"/proc/{pid}/status").read_bytes()))
    return (int(found.get(b"VmRSS", 0)) - int(found.get(b"RssShmem", 0))) * 1024


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
