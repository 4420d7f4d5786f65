"""Works that several systems do in turn, and what is to be reached, as tables and JSON."""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from dask.utils import parse_bytes

from .measure import Results, Sample, Spread, machine, machine_text

#: What ``--size`` is by default.  Targets are judged at it.
FULL_SIZE = 2**30

#: Runs a system once, and gives what was measured.
Call = Callable[[], dict[str, float]]


@dataclass(frozen=True)
class Goal:
    """What the systems whose names begin with "xshm" must reach.

    Attributes
    ----------
    measure : str
    at_most : float
        The median.
    against : str, optional
        A system: the ratio to what that measured in the same round is judged.
    of : str
        Only systems whose names begin with this.
    """

    measure: str
    at_most: float
    against: str | None = None
    of: str = "xshm"

    def __str__(self) -> str:
        return f"{self.measure} <= {self.at_most:g}" + (
            f" times that of {self.against}" if self.against else ""
        )


@dataclass(frozen=True)
class Column:
    """A measure in a table.

    Attributes
    ----------
    measure : str
    heading : str
        Names the unit, if it is not seconds.
    unit : {"s", "x"}
        "s" for seconds, as in `measure.Row`.
    """

    measure: str
    heading: str
    unit: str = "s"


@dataclass(frozen=True)
class Work:
    """Something to do that takes each system one call.

    Attributes
    ----------
    prepare : callable
        Takes the size in bytes; a context manager of the calls, by the names of the systems.
    columns : tuple of Column
    goals : tuple of Goal
    baseline : str, optional
        A system: a column says how many times its figure in the first column the others'
        are.
    """

    prepare: Callable[[int], AbstractContextManager[dict[str, Call]]]
    columns: tuple[Column, ...]
    goals: tuple[Goal, ...] = ()
    baseline: str | None = None

    def description(self) -> str:
        """Docstring of what prepares it, in one line."""
        return " ".join((self.prepare.__doc__ or "").split())


def share(size: int, full: int) -> int:
    """Bytes of what takes ``full`` of them when all that is asked for is of its full size."""
    return max(1, full * size // FULL_SIZE)


def compare(results: Results, name: str, work: Work, size: int, repeats: int) -> None:
    """Let all systems do a work, one after the other, several times.

    Every other round takes the systems backwards, so that none is always the one after.
    """
    with work.prepare(size) as calls:
        for number in range(repeats):
            for system in list(calls)[:: -1 if number % 2 else 1]:
                if (name, system) in results.failures:
                    continue
                began = time.perf_counter()
                try:
                    measures = calls[system]()
                except Exception as error:
                    traceback.print_exc()
                    results.failures[name, system] = f"{type(error).__name__}: {error}"
                else:
                    results.samples.append(Sample(name, system, number, "first", measures))
                seconds = time.perf_counter() - began
                line = f"round {number + 1}: {name}, {system}, {seconds:.1f} s"
                print(line, file=sys.stderr, flush=True)


def systems_of(results: Results, name: str) -> list[str]:
    """The systems that did a work, or failed to, in their order."""
    did = [s.protocol for s in results.samples if s.work == name]
    return list(dict.fromkeys([*did, *(s for w, s in results.failures if w == name)]))


def ratio(results: Results, name: str, system: str, baseline: str, measure: str) -> Spread | None:
    """How many times that of a baseline a measure is, in each round."""
    own = results.by_round(name, measure, system, "first")
    other = results.by_round(name, measure, baseline, "first")
    return Spread.of(figure / other[number] for number, figure in own.items() if number in other)


def spread(results: Results, name: str, system: str, measure: str) -> Spread | None:
    """Median and range of a measure."""
    return Spread.of(results.by_round(name, measure, system, "first").values())


def verdicts(results: Results, name: str, work: Work, judge: bool) -> list[dict[str, str]]:
    """For each goal and system of xshm, whether it was reached."""
    found = []
    for system in systems_of(results, name):
        for goal in (goal for goal in work.goals if system.startswith(goal.of)):
            if goal.against:
                figure = ratio(results, name, system, goal.against, goal.measure)
            else:
                figure = spread(results, name, system, goal.measure)
            verdict = "failed"
            if figure is not None:
                verdict = (
                    "met"
                    if figure.median <= goal.at_most
                    else "missed (within spread)"
                    if figure.low <= goal.at_most
                    else "missed"
                )
            found.append(
                {
                    "system": system,
                    "goal": str(goal),
                    "figure": figure.text("x" if goal.against else goal_unit(work, goal))
                    if figure
                    else "-",
                    "verdict": verdict if judge else "not judged",
                }
            )
    return found


def goal_unit(work: Work, goal: Goal) -> str:
    """The unit of the measure that a goal is about."""
    return next(c.unit for c in work.columns if c.measure == goal.measure)


def table(results: Results, name: str, work: Work) -> str:
    """Lay out a work's figures as a Markdown table, one line for each system."""
    lines = [[name, *(column.heading for column in work.columns)]]
    if work.baseline:
        lines[0].append(f"times {work.baseline}")
    for system in systems_of(results, name):
        cells = [system]
        for column in work.columns:
            figure = spread(results, name, system, column.measure)
            failed = (name, system) in results.failures
            cells.append("failed" if failed else figure.text(column.unit) if figure else "-")
        if work.baseline:
            times = ratio(results, name, system, work.baseline, work.columns[0].measure)
            cells.append(times.text("x") if times else "-")
        lines.append(cells)
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(n) for cell, n in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def write_json(
    path: str,
    results: Results,
    works: dict[str, Work],
    description: dict[str, Any],
    settings: dict[str, Any],
    judge: bool,
) -> None:
    """Write the raw samples, the verdicts, the machine and the settings."""
    content = {
        "machine": description,
        "settings": settings,
        "goals": {name: verdicts(results, name, work, judge) for name, work in works.items()},
        "samples": [
            {"work": s.work, "system": s.protocol, "round": s.round, "measures": s.measures}
            for s in results.samples
        ],
        "failures": [
            {"work": work, "system": system, "error": error}
            for (work, system), error in results.failures.items()
        ],
    }
    with open(path, "w") as file:
        json.dump(content, file, indent=1)
        file.write("\n")


def add_options(
    parser: argparse.ArgumentParser, works: Collection[str], size: str, samples: str
) -> None:
    """Declare the options of a command that compares.

    Parameters
    ----------
    parser : argparse.ArgumentParser
    works : collection of str
        Their names.
    size : str
        What it is the size of.
    samples : str
        The file where they go by default.
    """
    add = parser.add_argument
    add("--size", type=parse_bytes, default=FULL_SIZE, metavar="BYTES", help=size)
    add("--repeats", type=int, default=5, metavar="N", help="rounds")
    add("--only", nargs="+", choices=works, metavar="NAME", help=f"of {', '.join(works)}")
    add("--json", default=samples, metavar="FILE", help="where to write all samples")


def run_works(
    args: argparse.Namespace,
    works: dict[str, Work],
    packages: Sequence[str],
    missing: Sequence[str],
    note: str = "",
) -> int:
    """Measure, print the tables, write the JSON.

    Parameters
    ----------
    args : argparse.Namespace
        Values of the options.
    works : dict of str to Work
    packages : sequence of str
        Those whose versions are told.
    missing : sequence of str
        Those that are not installed.
    note : str, optional
        What the tables must be read with.

    Returns
    -------
    int
        The exit status.
    """
    began = time.perf_counter()
    if missing:
        print(f"not installed, and left out: {', '.join(missing)}", file=sys.stderr)
    works = {name: work for name, work in works.items() if name in (args.only or works)}
    judge = args.size == FULL_SIZE
    description = machine(packages)
    results = Results()
    try:
        for name, work in works.items():
            compare(results, name, work, args.size, args.repeats)
            settings = {k: v for k, v in vars(args).items() if k != "run"}
            settings["seconds"] = time.perf_counter() - began
            write_json(args.json, results, works, description, settings, judge)
    except KeyboardInterrupt:
        print("interrupted: this is what there is", file=sys.stderr)

    print(machine_text(description))
    print(
        f"{args.repeats} rounds{note}.  Median [lowest..highest]; ratios are taken within a round."
    )
    if missing:
        print(f"Not installed: {', '.join(missing)}.")
    if not judge:
        print(f"The size is {args.size / 2**20:.0f} MiB: the descriptions give the full one.")
    for name, work in works.items():
        print(f"\n{name}: {work.description()}\n")
        print(table(results, name, work), end="\n\n")
        for verdict in verdicts(results, name, work, judge):
            print("- {system}: {goal}: {figure}: {verdict}".format(**verdict))
    print(f"\nTook {time.perf_counter() - began:.0f} s; all samples are in {args.json}.")
    return 1 if results.failures else 0
