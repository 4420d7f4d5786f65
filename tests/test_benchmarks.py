"""The benchmarks run, at a small scale: nothing is said of time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.comparison import Column, Goal, Work, share, table, verdicts
from benchmarks.measure import Results, Sample
from benchmarks.processes import PACKAGES, WORKS

ROOT = Path(__file__).parents[1]


def run(tmp_path: Path, command: str, *options: str) -> tuple[dict[str, Any], str, str]:
    """The samples of a command, run once, and what it printed and complained of."""
    samples = tmp_path / "samples.json"
    always = ["--repeats", "1", "--json", samples]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", command, *options, *always],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    content = json.loads(samples.read_text())
    assert content["failures"] == []
    return content, done.stdout, done.stderr


QUICK = ("attach", "element")


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in WORKS],
)
def test_processes(name: str, tmp_path: Path) -> None:
    """Every system does the work once, and every figure of the table is measured."""
    content, shown, complaints = run(tmp_path, "processes", "--only", name, "--size", "16MiB")
    measures = {sample["system"]: sample["measures"] for sample in content["samples"]}
    assert any(system.startswith("xshm") for system in measures)
    for system, found in measures.items():
        assert f"| {system} " in shown
        assert set(found) == {column.measure for column in WORKS[name].columns}
    assert {goal["verdict"] for goal in content["goals"][name]} <= {"not judged"}
    for package, module in PACKAGES.items():
        if content["machine"]["versions"][package] is None:
            assert package in complaints
            assert not any(module in system for system in measures)


@pytest.mark.slow
def test_spilling(tmp_path: Path) -> None:
    content, _, _ = run(tmp_path, "spilling", "--only", "deviation", "--size", "320MiB")
    assert {sample["system"] for sample in content["samples"]} == {"tcp", "shm"}


def test_a_goal_of_some_systems_is_asked_of_no_others() -> None:
    work = Work(
        lambda size: pytest.fail("nothing is run"),
        (Column("a", "a, ms", "x"), Column("b", "b, ms", "x")),
        (Goal("b", 2, of="xshm, new"), Goal("a", 0.5, against="other")),
        baseline="other",
    )
    figures = {"other": (8, 1), "xshm, new": (2, 3), "xshm, old": (6, 9)}
    results = Results(
        [Sample("work", system, 0, "first", {"a": a, "b": b}) for system, (a, b) in figures.items()]
    )
    found = [(v["system"], v["goal"], v["verdict"]) for v in verdicts(results, "work", work, True)]
    assert found == [
        ("xshm, new", "b <= 2", "missed"),
        ("xshm, new", "a <= 0.5 times that of other", "met"),
        ("xshm, old", "a <= 0.5 times that of other", "missed"),
    ]
    ratios = [line.split("|")[-2].strip() for line in table(results, "work", work).splitlines()]
    assert ratios[2:] == ["1.00 [1.00..1.00]", "0.25 [0.25..0.25]", "0.75 [0.75..0.75]"]


def test_what_is_smaller_than_all_shrinks_with_it() -> None:
    assert share(2**30, 8_000_000) == 8_000_000
    assert share(2**29, 8_000_000) == 4_000_000
    assert share(1, 8_000_000) == 1
