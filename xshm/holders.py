"""Which processes have a file open or mapped, as the kernel tells."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from xshm import shortage

#: A file, whatever its name, or without one: device and inode.
FileId = tuple[int, int]


class Holder(NamedTuple):
    """A process that has a file open or mapped.

    Attributes
    ----------
    pid : int
    command : str
        The name of its command, of at most 15 characters.
    """

    pid: int
    command: str


def file_id(status: os.stat_result) -> FileId:
    """Which file it is that a status is of."""
    return status.st_dev, status.st_ino


@shortage.told
def holders_of(files: Collection[FileId]) -> dict[FileId, list[Holder]]:
    """The processes that have each of these files open or mapped, by process id.

    Notes
    -----
    Processes of other users, and those that another Docker container hides, are not found.
    """
    found: dict[FileId, list[Holder]] = {file: [] for file in files}
    for process in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        # Somebody else's; or it has ended meanwhile.
        with contextlib.suppress(PermissionError, FileNotFoundError, ProcessLookupError):
            held = found.keys() & {*_mapped_by(process), *_opened_by(process)}
            if held:
                command = (process / "comm").read_bytes().decode(errors="replace").strip()
                for file in held:
                    found[file].append(Holder(int(process.name), command))
    return found


def _mapped_by(process: Path) -> Iterator[FileId]:
    # proc(5): addresses, permissions, offset, device, inode, path
    for line in (process / "maps").read_bytes().splitlines():
        _, _, _, device, inode, *_ = line.split(maxsplit=5)
        if inode != b"0":
            major, _, minor = device.partition(b":")
            yield os.makedev(int(major, 16), int(minor, 16)), int(inode)


def _opened_by(process: Path) -> Iterator[FileId]:
    for descriptor in (process / "fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile; or its file system has gone
            yield file_id(descriptor.stat())
