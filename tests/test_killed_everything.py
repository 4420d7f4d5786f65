"""After ``kill -9`` of everything the next process finds, and leaves, what the living have."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import dask.config
import numpy as np
import psutil
import pytest
from dask.distributed import wait

import xshm
from tests.clusters import cluster
from tests.conftest import files_in, wait_until
from tests.everything_in_use import everything_in_use
from tests.test_janitor import enter_and_leave
from tests.test_process import Peer, drop, hold_array, own_id, share_array, take
from xshm import janitor
from xshm.directory import configured
from xshm.handover import Outbox

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

TOKENS = 3000


def use_everything() -> None:
    """A script with a cluster, thousands of hand-overs, and a file of every kind."""
    with cluster() as client, everything_in_use():
        chunks = client.map(np.full, [2**17] * 60, range(60))
        wait(chunks)
        leased = client.gather(chunks[::2])
        outbox, x = Outbox(), np.ones(2**17)
        sent = [outbox.share(x) for _ in range(TOKENS)]
        assert all(sent)
        print(len(leased), flush=True)
        threading.Event().wait()


@contextlib.contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that has said that it is ready."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() != ""
            yield process
        finally:
            process.kill()


def kill_all(script: subprocess.Popen[str]) -> None:
    """Kill a script and all that it has started."""
    script.send_signal(signal.SIGSTOP)  # so that it starts no other
    for child in psutil.Process(script.pid).children(recursive=True):
        if "resource_tracker" not in str(child.cmdline()):  # Python's own, and ends by itself
            child.kill()
    script.kill()
    script.wait()


LIVING = """
import sys
import numpy as np, xshm
xshm.enable()
x, name = np.ones(2**20), sys.argv[1]
with xshm.publish(x, name, lifetime="process"), xshm.Lock(name):
    print("ready", flush=True)
    input()
    assert xshm.is_shared(x) and x.all() and xshm.open(name).all()
"""


def test_all_of_the_dead_goes_and_nothing_of_the_living(directory: Path) -> None:
    """Of one in another pid namespace, one that is stopped, and one that is just starting."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set({"xshm.grace": "0s"}))
        python = [sys.executable, "-c", LIVING]
        living = [stack.enter_context(started([*python, "here"]))]
        if os.geteuid() == 0:  # only root makes a pid namespace
            elsewhere = ["unshare", "--pid", "--fork", "--mount-proc", *python, "elsewhere"]
            living.append(stack.enter_context(started(elsewhere)))
        stopped, starting = stack.enter_context(Peer()), stack.enter_context(Peer())
        stopped(hold_array, 1)
        of_the_living = set(files_in(directory))
        os.kill(stopped.pid, signal.SIGSTOP)
        stack.callback(os.kill, stopped.pid, signal.SIGCONT)

        dead = killed_everything() - ids_in(of_the_living)
        here = configured()
        wait_until(lambda: {left.process for left in janitor.remains(here)} == dead, "all died")
        left = files_in(directory)
        for kind in ("segment", "token", "message", "array", "draft", "lifetime"):
            assert any(name.endswith(f".{kind}") for name in left), kind
        assert len(left) > TOKENS

        starting.start(enter_and_leave, 20)
        newcomer = stack.enter_context(Peer())
        own = f"processes/{newcomer(own_id)}"
        starting.result()
        published = ("containers/published", "containers/named")
        channel = ("channels/channel/control", "channels/channel/latest")
        expected = {f"{here.path.name}/{name}" for name in (own, *published, *channel)}
        assert set(files_in(directory)) == of_the_living | expected

        os.kill(stopped.pid, signal.SIGCONT)
        assert take(stopped(share_array, 1)) == 1
        drop(1)
        for process in living:
            process.communicate("\n", timeout=60)
            assert process.returncode == 0
    for name in ("published", "named"):
        assert xshm.open(name) is not None
        xshm.unlink(name)
    xshm.Channel("channel").unlink()


def killed_everything() -> set[str]:
    """The ids of all processes that were there when a script and all it had started was killed."""
    command = [sys.executable, "-c", f"import {__name__} as tests; tests.use_everything()"]
    with started(command) as script:
        ids = ids_in(files_in(configured().path.parent))
        kill_all(script)
    return ids


def ids_in(files: Iterable[str]) -> set[str]:
    """The processes of these files."""
    return {Path(file).name for file in files if "/processes/" in file}
