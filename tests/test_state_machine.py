"""Any order of steps, in several processes: bytes are those that were sent, nothing is left.

What an array must hold is kept beside it, in ordinary memory of the test's process.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.config
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import xshm
from tests.conftest import files_in
from tests.test_process import Peer
from xshm import _core, janitor, process
from xshm.directory import configured
from xshm.errors import LostHandleError
from xshm.handle import Handle
from xshm.handover import Outbox, receive

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

KIB = 2**10
HERE = "here"  # the actor that is this process; all others are its children
SETTINGS = settings(
    max_examples=80,
    stateful_step_count=40,
    suppress_health_check=list(HealthCheck),
)

# ---- What an actor does; each process has its own of these.

arrays: dict[int, np.ndarray] = {}
outboxes: list[tuple[int, Outbox]] = []  # at most one, with the process whose it is


def create(key: int, size: int, number: int) -> None:
    """Make an array, in a segment if there is room."""
    with xshm.allocator():
        arrays[key] = np.full(size, number)


def write(key: int, at: int, number: int) -> None:
    """Store one number."""
    arrays[key][at] = number


def send(key: int, start: int, stop: int) -> Handle | None:
    """Send a part: as it is, else by copy; None if there is no room."""
    if not outboxes or outboxes[0][0] != os.getpid():
        outboxes[:] = [(os.getpid(), Outbox())]
    outbox = outboxes[0][1]
    part = arrays[key][start:stop]
    return outbox.share(part) or outbox.copy(part)


def withdraw() -> None:
    """Withdraw all that was sent and not taken."""
    if outboxes and outboxes[0][0] == os.getpid():
        outboxes[0][1].withdraw()


def take(handle: Handle, key: int) -> bool:
    """Receive an array; False if the hand-over is lost."""
    try:
        arrays[key] = np.frombuffer(receive(handle), int)
    except LostHandleError:
        return False
    return True


def drop(key: int) -> None:
    """Forget an array."""
    del arrays[key]


def contents(key: int) -> bytes:
    """All of an array's bytes."""
    return arrays[key].tobytes()


def trim() -> None:
    """Give warm segments back."""
    xshm.trim()


@dataclass
class InFlight:
    """A hand-over that nobody has taken yet."""

    handle: Handle
    sender: str
    expected: np.ndarray
    lost: bool | None = False  # None: its sender was killed, so it may be


class Exchange(RuleBasedStateMachine):
    """Actors with arrays, and hand-overs between them."""

    parent: Path

    def __init__(self) -> None:
        super().__init__()
        self.actors: dict[str, Peer | None] = {HERE: None}
        self.expected: dict[str, dict[int, np.ndarray]] = {HERE: {}}
        self.in_flight: list[InFlight] = []
        self.filler: Path | None = None
        self.last = 0

    def do(self, actor: str, function: Callable[..., Any], *args: Any) -> Any:
        peer = self.actors[actor]
        return function(*args) if peer is None else peer(function, *args)

    def new(self) -> int:
        self.last += 1
        return self.last

    def an_actor(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.actors)))

    def an_array(self, data: st.DataObject) -> tuple[str, int]:
        every = [(actor, key) for actor, its in sorted(self.expected.items()) for key in its]
        return data.draw(st.sampled_from(every))

    def any_arrays(self) -> bool:
        return any(self.expected.values())

    @rule(data=st.data(), size=st.integers(6 * KIB, 40 * KIB), number=st.integers(0, 9))
    def create(self, data: st.DataObject, size: int, number: int) -> None:
        actor, key = self.an_actor(data), self.new()
        self.do(actor, create, key, size, number)
        self.expected[actor][key] = np.full(size, number)

    @precondition(any_arrays)
    @rule(data=st.data(), number=st.integers(10, 99))
    def write(self, data: st.DataObject, number: int) -> None:
        actor, key = self.an_array(data)
        at = data.draw(st.integers(0, self.expected[actor][key].size - 1))
        self.do(actor, write, key, at, number)
        self.expected[actor][key][at] = number

    @precondition(any_arrays)
    @rule(data=st.data(), whole=st.booleans())
    def send(self, data: st.DataObject, whole: bool) -> None:
        actor, key = self.an_array(data)
        expected = self.expected[actor][key]
        start, stop = 0, expected.size
        if not whole:
            start = data.draw(st.integers(0, expected.size - 1))
            stop = data.draw(st.integers(start + 1, expected.size))
        handle = self.do(actor, send, key, start, stop)
        if handle is None:
            assert self.filler is not None, "refused, and there is room"
        else:
            self.in_flight.append(InFlight(handle, actor, expected[start:stop].copy()))

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.in_flight) - 1))
        flight, actor, key = self.in_flight.pop(at), self.an_actor(data), self.new()
        taken = self.do(actor, take, flight.handle, key)
        if flight.lost is not None:
            assert taken is not flight.lost
        if taken:
            self.expected[actor][key] = flight.expected
        assert not self.do(actor, take, flight.handle, -1)  # it is used up

    @precondition(any_arrays)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        actor, key = self.an_array(data)
        self.do(actor, drop, key)
        del self.expected[actor][key]

    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        actor = self.an_actor(data)
        self.do(actor, withdraw)
        for flight in self.in_flight:
            if flight.sender == actor:
                flight.lost = True

    @precondition(lambda self: len(self.actors) < 4)
    @rule()
    def fork(self) -> None:
        actor = f"child {self.new()}"
        self.actors[actor] = Peer()
        self.expected[actor] = {key: x.copy() for key, x in self.expected[HERE].items()}

    @precondition(lambda self: len(self.actors) > 1)
    @rule(data=st.data(), kill=st.booleans())
    def end(self, data: st.DataObject, kill: bool) -> None:
        actor = data.draw(st.sampled_from(sorted(set(self.actors) - {HERE})))
        peer = self.actors.pop(actor)
        assert peer is not None
        del self.expected[actor]
        peer.kill() if kill else peer.end()
        for flight in self.in_flight:
            if flight.sender == actor and not flight.lost:
                flight.lost = None if kill else True

    @rule()
    def clean(self) -> None:
        janitor.clean(configured())
        for flight in self.in_flight:
            if flight.lost is None:
                flight.lost = True

    @rule(data=st.data())
    def trim(self, data: st.DataObject) -> None:
        self.do(self.an_actor(data), trim)

    @precondition(lambda self: self.filler is None and os.path.ismount(self.parent))
    @rule()
    def fill_up(self) -> None:
        self.filler = self.parent / "filler"
        with open(self.filler, "wb", buffering=0) as file:
            while True:
                try:
                    file.write(bytes(4 * KIB))
                except OSError:
                    return

    @precondition(lambda self: self.filler is not None)
    @rule()
    def make_room(self) -> None:
        assert self.filler is not None
        self.filler.unlink()
        self.filler = None

    @precondition(any_arrays)
    @rule(data=st.data())
    def look(self, data: st.DataObject) -> None:
        self.compare(*self.an_array(data))

    def compare(self, actor: str, key: int) -> None:
        assert self.do(actor, contents, key) == self.expected[actor][key].tobytes()

    @invariant()
    def counts_are_of_what_is_here(self) -> None:
        counts = _core.count()
        assert counts["live_segments"] + counts["leased_segments"] <= len(arrays)

    def teardown(self) -> None:
        try:
            for actor, its in self.expected.items():
                for key in its:
                    self.compare(actor, key)
        finally:
            for peer in self.actors.values():
                if peer is not None:
                    peer.end()
            arrays.clear()
            outboxes.clear()
            process.close()
            if self.filler is not None:
                self.filler.unlink()
        janitor.clean(configured())  # after a kill, if nobody has entered or left since
        assert files_in(self.parent) == []
        assert _core.count()["mappings"] == 0


@pytest.fixture
def small(tmp_path: Path, directory: Path) -> Iterator[Path]:
    """A directory that can be filled up, if we may mount one."""
    if os.geteuid() != 0:
        yield directory
        return
    (mounted := tmp_path / "small").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m,mode=700", "xshm-test", str(mounted)]
    subprocess.run(mount, check=True)
    try:
        with dask.config.set({"xshm.directory": str(mounted)}):
            yield mounted
    finally:
        process.close()
        subprocess.run(["umount", "--lazy", str(mounted)], check=True)


def test_in_any_order_bytes_are_those_that_were_sent_and_nothing_is_left(small: Path) -> None:
    Exchange.parent = small
    limits = {"xshm.threshold": "64 KiB", "xshm.waiting": 2, "xshm.keep": "1 MiB"}
    with dask.config.set(limits):
        run_state_machine_as_test(Exchange, settings=SETTINGS)
