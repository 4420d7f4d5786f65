"""A process that a signal ends leaves the directory as one that ends by itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import files_in
from xshm import janitor, process
from xshm.directory import configured

ENDING = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])


def run(body: str, number: signal.Signals) -> int:
    """Send a signal to a program that has arrays in segments, and runs `body`: its exit code."""
    program = f"""
        import os, signal, sys, time
        import numpy as np
        import xshm
        from xshm import process
        xshm.enable()
        kept = [np.ones(200_000) for _ in range(300)]
        del kept[::2]
        {body}
        print("ready", flush=True)
        time.sleep(60)
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(number)
        return child.wait()


@ENDING
def test_nothing_is_left(directory: Path, number: signal.Signals) -> None:
    assert run("", number) == -number
    assert files_in(directory) == []


def test_a_handler_of_the_program_has_its_way(directory: Path) -> None:
    handler = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))"
    assert run(handler, signal.SIGTERM) == 7
    assert files_in(directory) == []


def test_a_handler_from_before_stays(directory: Path) -> None:
    again = "process.close(); signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); xshm.enable()"
    assert run(again, signal.SIGTERM) == 7
    assert files_in(directory) == []


def test_an_ignored_signal_stays_ignored(directory: Path) -> None:
    ignored = "signal.signal(signal.SIGHUP, signal.SIG_IGN); os.kill(os.getpid(), signal.SIGHUP)"
    assert run(ignored, signal.SIGTERM) == -signal.SIGTERM


def test_python_sees_the_default(directory: Path) -> None:
    assert run("assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL", signal.SIGTERM) == -15


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a pid namespace: only root may")
def test_the_first_process_of_a_container_goes_on(directory: Path) -> None:
    program = (
        "import os, signal, numpy as np, xshm; xshm.enable(); x = np.ones(2**20);"
        "files = lambda: sorted(os.walk(os.environ['DASK_XSHM__DIRECTORY'])); before = files();"
        "assert os.getpid() == 1; os.kill(1, signal.SIGTERM); assert files() == before"
    )
    subprocess.run(["unshare", "--pid", "--fork", sys.executable, "-c", program], check=True)
    assert files_in(directory) == []


def test_who_left_the_directory_has_no_handler(directory: Path) -> None:
    def is_caught() -> bool:
        status = Path("/proc/self/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        return bool(caught >> (signal.SIGTERM - 1) & 1)

    assert not is_caught()
    process.current()
    assert is_caught()
    process.close()
    assert not is_caught()


@pytest.mark.parametrize("enters", [True, False])
def test_a_forked_child_does_not_take_its_parents_files(enters: bool, allocating: None) -> None:
    x = np.ones(200_000)
    before = files_in(configured().path.parent)
    assert before
    child = os.fork()
    if child == 0:
        try:
            if enters:
                process.current()
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGTERM
    assert files_in(configured().path.parent) == before
    assert x.sum() == 200_000


def test_messages_stay_to_be_read_and_notes_for_the_janitor(directory: Path) -> None:
    body = """
        me = process.current()
        xshm.publish(np.zeros(3), "bound", lifetime="process")
        message = me.new_message()
        os.link(me.directory.segments / f"{me.id}.1.segment", me.directory.segments / message)
    """
    assert run(textwrap.indent(textwrap.dedent(body), " " * 8).strip(), signal.SIGTERM) == -15
    kinds = sorted(Path(file).suffix for file in files_in(directory))
    assert kinds == ["", "", ".lifetime", ".message"]  # the container and the process's own
    janitor.clean(configured())
    assert [Path(file).suffix for file in files_in(directory)] == ["", ".message"]
    own_file = directory / files_in(directory)[0]
    os.utime(own_file, (1, 1))  # ended long ago
    janitor.clean(configured())
    assert files_in(directory) == []
