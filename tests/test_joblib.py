"""Arrays to joblib's workers and back: the programs are in joblib_processes.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import files_in

ROOT = Path(__file__).parents[1]
BACKENDS = pytest.mark.parametrize("backend", ["loky", "multiprocessing"])


def run(directory: Path, program: str, *arguments: str, **environment: str) -> None:
    """Run a program in an interpreter of its own; what it prints is an error."""
    pytest.importorskip("joblib")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.joblib_processes", program, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    # joblib itself prints an error now and then where it maps files, or gives jobs up.
    if program not in ("off", "writes_shared", "failing"):
        assert done.stderr == ""
    assert files_in(directory) == []


@BACKENDS
@pytest.mark.parametrize("when", ["before", "after", "later"])
def test_arrays_go_and_come_as_handles_and_are_the_workers_own(
    backend: str, when: str, directory: Path
) -> None:
    run(directory, "there_and_back", backend, when)


@pytest.mark.slow
@BACKENDS
def test_results_are_born_in_shared_memory(backend: str, directory: Path) -> None:
    run(directory, "made_there", backend)


@pytest.mark.slow
@BACKENDS
def test_an_array_for_many_jobs_is_copied_once_a_call(backend: str, directory: Path) -> None:
    run(directory, "copied_once", backend)


@pytest.mark.slow
@BACKENDS
def test_an_array_that_was_written_to_is_copied_once_a_call(backend: str, directory: Path) -> None:
    run(directory, "written_since", backend)


@pytest.mark.slow
@BACKENDS
def test_a_streamed_array_goes_with_its_job(backend: str, directory: Path) -> None:
    run(directory, "streamed", backend)


@pytest.mark.slow
@BACKENDS
def test_what_workers_write_to_a_file_reaches_it(
    backend: str, directory: Path, tmp_path: Path
) -> None:
    run(directory, "files", backend, str(tmp_path / "data"))


@pytest.mark.slow
@BACKENDS
def test_who_wants_workers_to_see_each_others_writes_gets_that(
    backend: str, directory: Path
) -> None:
    run(directory, "writes_shared", backend)


@BACKENDS
def test_a_failing_job_leaves_no_message_unread(backend: str, directory: Path) -> None:
    run(directory, "failing", backend)


@pytest.mark.slow
@BACKENDS
def test_disabled_again_arrays_go_as_before(backend: str, directory: Path) -> None:
    run(directory, "off", backend)


def test_joblib_without_processes_stays_so(directory: Path) -> None:
    run(directory, "without_processes", JOBLIB_MULTIPROCESSING="0")


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("package", ["loky", "joblib.externals.loky"])
def test_loky_without_joblib(package: str, when: str, directory: Path) -> None:
    pytest.importorskip(package.partition(".")[0])
    run(directory, "executor", package, when)
