"""A process's place in the directory, and `Peer`: another process to talk to."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import dask.config
import numpy as np
import pytest

import xshm
from tests.conftest import files_in, wait_until
from xshm import _core, process
from xshm.directory import PROCESS_ID
from xshm.errors import DirectoryError
from xshm.handle import Handle
from xshm.handover import Outbox, receive

# Python 3.12 and later warn of any fork while other threads run; ours are real forks.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


class Peer:
    """Another process of the same directory, forked from this one, that does what it is told.

    It starts without a place in the directory, as every child does, and takes one on use.
    """

    _living: list[Peer] = []  # noqa: RUF012  # of the class on purpose

    def __init__(self) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        self.pid = os.fork()
        if self.pid == 0:
            for other in [*self._living, self]:
                other._pipe.close()
            _serve(theirs)
        theirs.close()
        self._living.append(self)

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function (of a module, so that it can be named) there; what it returns."""
        self.start(function, *args)
        return self.result()

    def start(self, function: Callable[..., Any], *args: Any) -> None:
        """Have a function called there, and do not wait."""
        self._pipe.send((function, args))

    def result(self) -> Any:
        """What the started function returned, or raised."""
        assert self._pipe.poll(60), "the peer does not answer"
        failed, value = self._pipe.recv()
        if failed:
            raise value
        return value

    def kill(self) -> None:
        """End it as the kernel does when memory runs out."""
        os.kill(self.pid, signal.SIGKILL)
        self._wait()

    def end(self) -> None:
        """Let it end in order, if it still lives."""
        if self in self._living:
            self._pipe.send(None)
            self._wait()

    def _wait(self) -> None:
        self._living.remove(self)
        os.waitpid(self.pid, 0)
        self._pipe.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def _serve(pipe: Connection) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(100)  # whatever happens to the test, no peer outlives it for long
    status = 1
    try:
        while (message := pipe.recv()) is not None:
            function, args = message
            try:
                answer = (False, function(*args))
            except Exception as error:
                error.add_note(traceback.format_exc())
                answer = (True, error)
            pipe.send(answer)
        held.clear()
        process.close()
        status = 0
    except EOFError:
        process.close()
    finally:
        os._exit(status)


#: What a peer keeps between two calls.
held: dict[Any, Any] = {}


def hold_array(number: float, nbytes: int = 2 * 2**20) -> None:
    """Have an array of this number, in a segment if there is room."""
    with xshm.allocator():
        held[number] = np.full(nbytes // 8, float(number))


def share_array(number: float) -> Handle | None:
    """Send it as it is."""
    return held.setdefault("outbox", Outbox()).share(held[number])


def take(handle: Handle) -> float:
    """Receive an array that holds one number all over, keep it under that number."""
    x = np.frombuffer(receive(handle))
    number = float(x[0])
    assert (x == number).all()
    held[number] = x
    return number


def drop(number: float) -> None:
    """Forget an array."""
    del held[number]


def is_all(number: float) -> bool:
    """Whether the array of this number still holds it all over."""
    return bool((held[number] == number).all())


def own_id() -> str:
    """The id of this process in the directory; enters it."""
    return process.current().id


def counted() -> dict[str, int]:
    """What this process's pool holds."""
    return _core.count()


def run_python(code: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Run a program in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parent.parent,
        **kwargs,
    )


def test_nothing_is_made_before_it_is_needed(directory: Path) -> None:
    _core.count()
    assert not xshm.is_shared(np.ones(1_000_000))
    assert os.listdir(directory) == []


def test_a_process_enters_once_and_leaves_nothing(directory: Path) -> None:
    first = process.current()
    assert PROCESS_ID.fullmatch(first.id)
    assert process.current() is first
    assert files_in(directory) == [f"xshm-{os.geteuid()}/processes/{first.id}"]
    process.close()
    process.close()  # a second time does no harm
    assert files_in(directory) == []
    assert process.current().id != first.id


def test_the_last_holder_closes(directory: Path) -> None:
    class Holder:
        pass

    one, other = Holder(), Holder()
    process.hold(one)
    process.hold(other)
    process.release(one)
    assert len(files_in(directory)) == 1
    process.release(other)
    assert files_in(directory) == []


def test_who_could_not_enter_is_no_holder(directory: Path) -> None:
    class Holder:
        pass

    refused, holder = Holder(), Holder()
    with dask.config.set({"xshm.keep": "alot"}), pytest.raises(ValueError, match="alot"):
        process.hold(refused)
    process.hold(holder)
    process.release(holder)
    assert files_in(directory) == []


def test_what_is_kept_open_stays_when_holders_leave(directory: Path) -> None:
    class Holder:
        pass

    holder = Holder()
    with xshm.allocator():
        process.hold(holder)
        process.release(holder)
        assert xshm.is_shared(np.ones(1_000_000))
    assert len(files_in(directory)) > 0


def test_an_interpreter_that_ends_leaves_nothing(directory: Path) -> None:
    ended = run_python(
        "import xshm, numpy as np; xshm.enable(); x = np.ones(1_000_000);"
        "assert xshm.is_shared(x); 1 / 0"
    )
    assert "ZeroDivisionError" in ended.stderr
    assert files_in(directory) == []


def test_a_directory_that_somebody_removed_does_not_disturb_closing(directory: Path) -> None:
    with xshm.allocator():
        x = np.ones(1_000_000)
    subprocess.run(["rm", "-r", f"{directory}/xshm-{os.geteuid()}"], check=True)
    process.close()
    assert x.sum() == 1_000_000


def _fail_to_open_then_succeed(bad: str, good: str) -> None:
    for _ in range(3):
        with dask.config.set({"xshm.directory": bad}), pytest.raises(DirectoryError):
            process.current()
    with dask.config.set({"xshm.directory": good}):
        hold_array(1)
        assert _core.locate(held[1]) is not None


def test_after_a_directory_that_cannot_be_used_another_can(directory: Path) -> None:
    with Peer() as peer:
        peer(_fail_to_open_then_succeed, str(directory / "missing"), str(directory))


def _highest_descriptor() -> int:
    return max(int(fd) for fd in os.listdir("/proc/self/fd"))


def _enter_with_few_descriptors(spare: int) -> tuple[bool, set[str], set[str]]:
    before = set(os.listdir("/proc/self/fd"))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (_highest_descriptor() + 10, limits[1]))
    fillers = []
    with contextlib.suppress(OSError):
        while True:
            fillers.append(os.dup(0))
    for _ in range(spare):
        os.close(fillers.pop())
    try:
        process.current()
    except OSError:
        entered = False
    else:
        entered = True
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for filler in fillers:
            os.close(filler)
    process.close()
    after = set(os.listdir("/proc/self/fd"))
    hold_array(1)  # and now it can
    assert _core.locate(held[1]) is not None
    return entered, before, after


@pytest.mark.parametrize("spare", range(7))
def test_failing_to_enter_for_want_of_descriptors_keeps_none(spare: int, directory: Path) -> None:
    with Peer() as peer:
        entered, before, after = peer(_enter_with_few_descriptors, spare)
        assert before == after
        assert entered or spare < 6
        assert len(files_in(directory)) == 2


def _use_with_few_descriptors(limit: int) -> int:
    process.current()
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    outbox = Outbox()
    with xshm.allocator():
        arrays = [np.full(2**17 + 1, float(i)) for i in range(300)]
    handles = [outbox.share(x) for x in arrays]
    leases = [np.frombuffer(receive(h)) for h in handles if h is not None]
    assert all((x == i).all() for i, x in enumerate(leases))
    return len(leases)


def test_hundreds_of_arrays_and_leases_with_few_open_files(directory: Path) -> None:
    """A live array or lease keeps no descriptor."""
    with Peer() as peer:
        assert peer(_use_with_few_descriptors, peer(_highest_descriptor) + 12) == 300


def _kill_after_starting_a_program(close_fds: bool) -> int:
    hold_array(1)
    return subprocess.Popen(["sleep", "1000"], close_fds=close_fds).pid


@pytest.mark.parametrize("close_fds", [True, False])
def test_a_program_that_was_started_does_not_keep_its_parents_place(
    close_fds: bool, directory: Path
) -> None:
    peer = Peer()
    program = peer(_kill_after_starting_a_program, close_fds)
    try:
        peer.kill()
        assert len(files_in(directory)) == 2
        process.current()
        assert files_in(directory) == [f"xshm-{os.geteuid()}/processes/{own_id()}"]
    finally:
        os.kill(program, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{program}/cwd").exists(), "the program has ended")


def test_two_processes_that_enter_at_once_are_of_one_domain(directory: Path) -> None:
    peers = [Peer() for _ in range(8)]
    try:
        for peer in peers:
            peer.start(_domain)
        assert len({peer.result() for peer in peers}) == 1
    finally:
        for peer in peers:
            peer.end()


def _domain() -> str:
    return process.current().directory.domain
