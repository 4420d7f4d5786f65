"""What the directory holds, in bytes, and which processes it belongs to."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from xshm import janitor, shortage
from xshm.channel import control
from xshm.directory import Directory
from xshm.holders import file_id, holders_of

#: What takes room, as it is told apart.
KINDS = ("containers", "channels", "arrays", "segments", "drafts")

_OF_SUFFIX = {
    ".array": "arrays",
    ".draft": "drafts",
    ".segment": "segments",
    ".message": "segments",
    ".token": "segments",
}


def total(statuses: Iterable[os.stat_result]) -> dict[str, int]:
    """Count files, and the bytes of memory they take; one that has several names counts once."""
    files = {file_id(status): status for status in statuses}.values()
    # Not st_size: files may have holes.
    return {"files": len(files), "nbytes": sum(status.st_blocks * 512 for status in files)}


@shortage.told
def measure(directory: Directory) -> dict[str, Any]:
    """What the directory holds, in all and of each process, as ``xshm df --json`` prints it.

    Notes
    -----
    A file with several names is counted as a container rather than as the draft it was, as a
    channel's rather than as a segment, and as a segment of the process that made it rather than
    of one that hands it on. An array without a name that several processes have open is counted
    for one of them.
    """
    dead = {left.process for left in janitor.remains(directory)}
    living = {
        file.name: file_id(status)
        for file, status in _files_in(directory.processes)
        if file.name not in dead
    }
    by_inode: dict[int, tuple[str, str, os.stat_result]] = {}
    for _, status in _files_in(directory.containers):
        by_inode[status.st_ino] = "containers", "", status
    for name in control.all_in(directory):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # removed; no channel
            for _, status in _files_in(control.path_of(directory, name)):
                by_inode[status.st_ino] = "channels", "", status
    # Tokens, which are but other names of segments, come after these.
    for file, status in sorted(_files_in(directory.segments), key=lambda found: found[0].suffix):
        if kind := _OF_SUFFIX.get(file.suffix):
            by_inode.setdefault(status.st_ino, (kind, file.name.partition(".")[0], status))

    def count(kind: str, process: str | None = None) -> dict[str, int]:
        return total(s for k, p, s in by_inode.values() if k == kind and process in (None, p))

    holders, processes = holders_of(living.values()), []
    for process in sorted({*living, *dead}):
        own_file = living.get(process)
        # The process file is open in its process only; in another Docker container it is hidden.
        found = holders[own_file] if own_file else []
        pid, command = found[0] if found else (None, None)
        processes.append(
            {
                "id": process,
                "alive": process in living,
                "pid": pid,
                "command": command,
                "arrays": count("arrays", process),
                "segments": count("segments", process),
                "drafts": count("drafts", process),
            }
        )
    free, size = directory.room()
    room = {"directory": str(directory.path), "size": size, "used": size - free, "free": free}
    kinds = {kind: count(kind) for kind in KINDS}
    return {**room, **kinds, "processes": processes}


def _files_in(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for file in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            yield file, file.lstat()
