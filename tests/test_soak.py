"""Clusters that work while they are harmed: no wrong result, no error of ours, nothing left."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def soak(minutes: float, *options: str) -> dict[str, int]:
    """Run a soak; what was done how often, as its table tells."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "soak", "--minutes", str(minutes), *options],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return {
        what: int(times) for what, times in re.findall(r"^\| (.+) \| (\d+) \|$", done.stdout, re.M)
    }


def test_soaked_for_some_seconds() -> None:
    survived = soak(0.1, "--seed", "1", "--pause", "1", "--workers", "2")
    assert survived["graphs with the right result"] > 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_soaked_for_two_minutes() -> None:
    survived = soak(2)
    assert survived["graphs with the right result"] > 0
    assert survived["workers killed"] > 0
