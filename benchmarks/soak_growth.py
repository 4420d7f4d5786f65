"""What a soak's processes and its directory hold, minute by minute, and how much it grew."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .memory import own_memory

#: How much more there may be in the end than after two minutes.
ALLOWED = 0.05

MIB = 2**20


@dataclass(frozen=True)
class Held:
    """What one process holds.

    Attributes
    ----------
    open_files, mappings : int
    own_memory : int
        Bytes of memory that are no file's.
    """

    open_files: int
    mappings: int
    own_memory: int

    @classmethod
    def by(cls, pid: int) -> Held:
        """Of a process, as the kernel tells."""
        maps = Path(f"/proc/{pid}/maps").read_bytes()
        return cls(len(os.listdir(f"/proc/{pid}/fd")), maps.count(b"\n"), own_memory(pid))


@dataclass(frozen=True)
class Sample:
    """What there was when the cluster had nothing to do.

    Attributes
    ----------
    seconds : float
        Since the start.
    processes : dict of str to Held
        Those that live from the start to the end.
    files, nbytes : int
        In the directory.
    """

    seconds: float
    processes: dict[str, Held]
    files: int
    nbytes: int


def files_in(folder: Path) -> list[Path]:
    """All files in a folder and those below it."""
    return [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]


def grown(samples: Sequence[Sample]) -> list[str]:
    """What grew by more than is allowed between the sample after two minutes and the last."""
    first = next((sample for sample in samples if sample.seconds >= 120), samples[-1])
    return [
        f"{key} of {name} grew from {before} to {after}"
        for name, held in first.processes.items()
        for key, before in asdict(held).items()
        if (after := getattr(samples[-1].processes[name], key)) > (1 + ALLOWED) * before
    ]


def table(samples: Sequence[Sample]) -> str:
    """All samples, as a table in Markdown."""
    names = list(samples[0].processes)
    head = ["minute", *(f"{name}: open files, mappings, MiB" for name in names), "files, MiB"]
    lines = [head, ["---:"] * len(head)]
    for sample in samples:
        held = [
            f"{h.open_files}, {h.mappings}, {h.own_memory / MIB:.0f}"
            for h in sample.processes.values()
        ]
        directory = f"{sample.files}, {sample.nbytes / MIB:.0f}"
        lines.append([f"{sample.seconds / 60:.1f}", *held, directory])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
