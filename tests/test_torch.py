"""Arrays from the workers of PyTorch: the programs are in torch_processes.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import files_in

ROOT = Path(__file__).parents[1]


def run(directory: Path, *arguments: str) -> None:
    """Run a program in an interpreter of its own; what it prints is an error."""
    # Imported there only: it is large, and changes what multiprocessing does. A build for
    # GPUs cannot be imported where CUDA is missing.
    found = subprocess.run([sys.executable, "-c", "import torch.utils.data"], capture_output=True)
    if found.returncode != 0:
        pytest.skip("needs PyTorch")
    command = [sys.executable, "-m", "tests.torch_processes", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    # PyTorch's tensors are in shared memory that the tracker sometimes misses.
    assert done.stderr == "" or (arguments[0] == "tensors" and "torch_" in done.stderr)
    assert files_in(directory) == []


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("program", ["numpy_batches", "tensors", "queue"])
def test_arrays_of_workers_come_as_handles(program: str, method: str, directory: Path) -> None:
    run(directory, program, method)
