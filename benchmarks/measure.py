"""Samples, their medians and ratios, the tables of them, and the machine they are from."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import mmap
import os
import platform
import shutil
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import psutil

Phase = Literal["first", "warm"]


@dataclass(frozen=True)
class Sample:
    """What one run of one work measured.

    Attributes
    ----------
    work, protocol : str
    round : int
        Runs of one round are close in time; ratios are taken within a round.
    phase : {"first", "warm"}
        "first" is the first run on a new cluster.
    measures : dict of str to float
    """

    work: str
    protocol: str
    round: int
    phase: Phase
    measures: dict[str, float]


@dataclass(frozen=True)
class Target:
    """What a row must reach.

    Attributes
    ----------
    kind : {"faster", "at most"}
        "faster": the baseline's time is at least ``value`` times the time of shm.
        "at most": the figure of shm itself is at most ``value``.
    value : float
    """

    kind: Literal["faster", "at most"]
    value: float

    def __str__(self) -> str:
        if self.kind == "at most":
            return f"<= {self.value:g}"
        return "not slower" if self.value == 1 else f">= {self.value:g}x"

    def met(self, figure: float) -> bool:
        """Whether a ratio ("faster") or a value ("at most") reaches the target."""
        return figure <= self.value if self.kind == "at most" else figure >= self.value


NOT_SLOWER = Target("faster", 1)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes
    ----------
    name : str
    work : str
        The work whose samples are shown.
    measure : str
        Which of the work's measures.
    target : Target, optional
        What the warm runs must reach.
    first : Target, optional
        What the first run on a new cluster must reach.
    against : tuple of str
        Works whose time over tcp is the baseline, the best of them counting; by default
        the work itself.
    unit : {"s", "x"}
        Seconds, or a number of times.
    """

    name: str
    work: str
    measure: str = "seconds"
    target: Target | None = None
    first: Target | None = NOT_SLOWER
    against: tuple[str, ...] = ()
    unit: str = "s"


@dataclass(frozen=True)
class Spread:
    """Median and range of some figures, one per round."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, figures: Iterable[float]) -> Spread | None:
        """Summarise; None if there are no figures."""
        values = sorted(figures)
        if not values:
            return None
        return cls(statistics.median(values), values[0], values[-1], len(values))

    def text(self, unit: str) -> str:
        """Write as ``median [low..high]``."""
        texts = [_number(value, unit) for value in (self.median, self.low, self.high)]
        return "{} [{}..{}]".format(*texts)


def _number(value: float, unit: str) -> str:
    if unit == "s":
        return (
            f"{value:.3f}" if value >= 0.1 else f"{value:.2g}" if value < 1e-3 else f"{value:.4f}"
        )
    if 0 < value < 0.1:
        return f"{value:.2g}"
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}"


@dataclass
class Results:
    """All samples of a benchmark, and what failed."""

    samples: list[Sample] = field(default_factory=list)
    failures: dict[tuple[str, str], str] = field(default_factory=dict)

    def by_round(self, work: str, measure: str, protocol: str, phase: Phase) -> dict[int, float]:
        """Median of a measure over the runs of each round."""
        found: dict[int, list[float]] = {}
        for s in self.samples:
            if (s.work, s.protocol, s.phase) == (work, protocol, phase) and measure in s.measures:
                found.setdefault(s.round, []).append(s.measures[measure])
        return {number: statistics.median(values) for number, values in found.items()}

    def spread(self, row: Row, protocol: str, phase: Phase) -> Spread | None:
        """Median and range of a row's figures, over all runs."""
        return Spread.of(
            s.measures[row.measure]
            for s in self.samples
            if (s.work, s.protocol, s.phase) == (row.work, protocol, phase)
            and row.measure in s.measures
        )

    def ratio(self, row: Row, protocol: str, phase: Phase) -> Spread | None:
        """Time over tcp divided by that over ``protocol``, within each round.

        There is none for rows that are not seconds.
        """
        if row.unit != "s":
            return None
        own = self.by_round(row.work, row.measure, protocol, phase)
        baselines = [
            self.by_round(work, row.measure, "tcp", phase) for work in row.against or (row.work,)
        ]
        ratios = []
        for number, figure in own.items():
            if all(number in baseline for baseline in baselines) and figure:
                ratios.append(min(baseline[number] for baseline in baselines) / figure)
        return Spread.of(ratios)

    def verdict(self, row: Row, phase: Phase) -> str:
        """Whether shm reaches the target of a row: met, missed, or nothing to judge.

        The median is judged.  Where it misses a target that some rounds reached, that is
        said too.
        """
        target = row.target if phase == "warm" else row.first
        if (row.work, "shm") in self.failures:
            return "failed"
        if target is None:
            return ""
        if target.kind == "at most":
            spread = self.spread(row, "shm", phase)
        else:
            spread = self.ratio(row, "shm", phase)
        if spread is None:
            return ""
        if target.met(spread.median):
            return "met"
        reached = target.met(spread.low) or target.met(spread.high)
        return "missed (within spread)" if reached else "missed"


def table(
    results: Results, rows: Sequence[Row], protocols: Sequence[str], phase: Phase, judge: bool
) -> str:
    """Lay out the rows as a Markdown table.

    Parameters
    ----------
    results : Results
    rows : sequence of Row
    protocols : sequence of str
        One column each.
    phase : {"first", "warm"}
        Which runs to show.
    judge : bool
        Whether to compare with the targets.
    """
    compared = [name for name in protocols if name != "tcp"]
    lines = [["work", *protocols, *(f"tcp/{name}" for name in compared), "target for shm", "shm"]]
    for row in rows:
        cells = [f"{row.name}, {row.unit}"]
        for name in protocols:
            spread = results.spread(row, name, phase)
            failed = (row.work, name) in results.failures
            cells.append("failed" if failed else spread.text(row.unit) if spread else "-")
        for name in compared:
            spread = results.ratio(row, name, phase)
            cells.append(spread.text("x") if spread else "-")
        target = row.target if phase == "warm" else row.first
        cells.append(str(target) if target else "-")
        cells.append(results.verdict(row, phase) if judge else "not judged")
        lines.append(cells)
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    padded = (
        [cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines
    )
    return "\n".join("| " + " | ".join(line) + " |" for line in padded)


def touch_seconds(nbytes: int = 2**28) -> dict[str, float]:
    """Seconds to write 1 GiB of new pages, and of the same pages again.

    A virtual machine may have to ask its host for a new page; then figures depend on
    whether memory was in use lately.
    """
    with mmap.mmap(-1, nbytes) as pages:
        array = np.frombuffer(pages, np.uint8)
        seconds = []
        for value in (1, 2):
            start = time.perf_counter()
            array.fill(value)
            seconds.append((time.perf_counter() - start) * 2**30 / nbytes)
        del array
    return {"new": seconds[0], "again": seconds[1]}


def machine(more: Sequence[str] = ()) -> dict[str, Any]:
    """Describe the machine and the versions of what runs on it, and of more packages."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("numpy", "dask", "distributed", "xarray", "xshm", *more):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    shm = "/dev/shm"
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "system": platform.system(),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "memory_bytes": psutil.virtual_memory().total,
        "dev_shm_bytes": shutil.disk_usage(shm).total if os.path.isdir(shm) else None,
        "touch_seconds_per_gib": touch_seconds(),
        "versions": versions,
    }


def machine_text(description: dict[str, Any]) -> str:
    """Write what `machine` returns in one line."""
    versions = ", ".join(f"{k} {v}" for k, v in description["versions"].items() if v)
    shm, touch = description["dev_shm_bytes"], description["touch_seconds_per_gib"]
    return (
        f"{description['date']}: {description['cores']} cores, "
        f"load average {description['load_average']:.1f} at the start, "
        f"{description['memory_bytes'] / 2**30:.1f} GiB of memory, "
        f"{f'{shm / 2**30:.1f} GiB' if shm else 'no'} /dev/shm, "
        f"{touch['new']:.2f} s to write 1 GiB of new pages ({touch['again']:.2f} s again), "
        f"{description['system']} {description['kernel']}, {versions}"
    )


def write_json(
    path: str,
    results: Results,
    rows: Sequence[Row],
    protocols: Sequence[str],
    description: dict[str, Any],
    settings: dict[str, Any],
    judge: bool,
) -> None:
    """Write the raw samples, the table's figures, the machine and the settings."""
    phases: tuple[Phase, ...] = ("warm", "first")
    summary = []
    for row in rows:
        for phase in phases:
            target = row.target if phase == "warm" else row.first
            spreads = {name: results.spread(row, name, phase) for name in protocols}
            ratios = {name: results.ratio(row, name, phase) for name in protocols if name != "tcp"}
            summary.append(
                {
                    "name": row.name,
                    "work": row.work,
                    "measure": row.measure,
                    "unit": row.unit,
                    "phase": phase,
                    "figures": {k: asdict(v) for k, v in spreads.items() if v},
                    "tcp_ratio": {k: asdict(v) for k, v in ratios.items() if v},
                    "target": str(target) if target else None,
                    "verdict": results.verdict(row, phase) if judge else None,
                }
            )
    content = {
        "machine": description,
        "settings": settings,
        "rows": summary,
        "samples": [asdict(sample) for sample in results.samples],
        "failures": [
            {"work": work, "protocol": protocol, "error": error}
            for (work, protocol), error in results.failures.items()
        ],
    }
    with open(path, "w") as file:
        json.dump(content, file, indent=1)
        file.write("\n")
