"""Type checkers know the dtypes of shared arrays, and find the mistakes of tests/typing_samples."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SAMPLES = Path("tests", "typing_samples")

#: A file, and a number of a line, counted from 1.
Place = tuple[str, int]


def run(command: list[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode in (0, 1), f"{done.stdout}\n{done.stderr}"
    return done.stdout


def errors_of_mypy() -> set[Place]:
    told = run([sys.executable, "-m", "mypy", "--strict", str(SAMPLES)])
    return {(file, int(line)) for file, line in re.findall(r"^(.*?):(\d+): error:", told, re.M)}


def errors_of_pyright() -> set[Place]:
    if importlib.util.find_spec("basedpyright") is None:
        pytest.skip("basedpyright is not installed")
    command = [sys.executable, "-m", "basedpyright", "--level", "error", "--outputjson"]
    told = json.loads(run([*command, "--pythonpath", sys.executable, str(SAMPLES)]))
    return {
        (str(Path(error["file"]).relative_to(ROOT)), error["range"]["start"]["line"] + 1)
        for error in told["generalDiagnostics"]
    }


@pytest.mark.parametrize("errors", [errors_of_mypy, errors_of_pyright])
def test_type_checkers_find_the_mistakes_and_no_others(errors: Callable[[], set[Place]]) -> None:
    expected = {
        (str(SAMPLES / path.name), number)
        for path in (ROOT / SAMPLES).glob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if line.endswith("# error")
    }
    assert expected
    assert errors() == expected
