"""The latest value of something that changes: frames to one reader and more, and waking up."""

from __future__ import annotations

import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from .comparison import Call, Column, Goal, Work, share
from .fresh import PROCESSES, folder, fresh, installed

#: Frames, or signals, of one sample.
TIMES = 200

#: Not counted: memory is made, and code is run for the first time.
WARM_UP = 10


# ---- frames


@contextmanager
def frames(size: int) -> Iterator[dict[str, Call]]:
    """A frame of 8 MB is written, and one reader, or each of four, reads it.

    "until read" is from the start of the write until the last reader has looked at every page.
    A reader is told over a pipe that a frame is written, and reads once: ndsharray has nothing
    that waits. "write" is the writer's call, and "read" a reader's, with that look. Medians of
    200 frames.
    """
    systems = [name for name in CHANNELS if name == "xshm" or installed(name)]
    with folder() as place:
        yield {
            f"{system}, {text}": functools.partial(
                fresh, exchange, system, place, share(size, 8_000_000), readers
            )
            for system in systems
            for readers, text in ((1, "1 reader"), (4, "4 readers"))
        }


def exchange(system: str, place: Path, nbytes: int, readers: int) -> dict[str, float]:
    """Write frames, and have as many processes read each of them."""
    make, _ = CHANNELS[system]
    shape = (max(nbytes // 4096, 1), 4096)
    until_read, write, read = [], [], []
    with ExitStack() as stack:
        writes = stack.enter_context(make(place))
        writes(np.zeros(shape, np.uint8))
        pipes = []
        for _ in range(readers):
            here, there = PROCESSES.Pipe()
            process = PROCESSES.Process(
                target=read_frames, args=(system, place, there), daemon=True
            )
            process.start()
            there.close()
            stack.callback(process.join)
            stack.enter_context(here)
            pipes.append(here)
        for pipe in pipes:
            pipe.recv()
        for number in range(1, WARM_UP + TIMES + 1):
            frame = np.full(shape, number % 256, np.uint8)
            start = time.perf_counter()
            writes(frame)
            written = time.perf_counter()
            for pipe in pipes:
                pipe.send(number % 256)
            ends, seconds = zip(*(pipe.recv() for pipe in pipes), strict=True)
            until_read.append(max(ends) - start)
            write.append(written - start)
            read.append(statistics.median(seconds))
    return {
        "until read": 1e3 * statistics.median(until_read[WARM_UP:]),
        "write": 1e3 * statistics.median(write[WARM_UP:]),
        "read": 1e3 * statistics.median(read[WARM_UP:]),
    }


def read_frames(system: str, place: Path, pipe: Connection) -> None:
    """Read a frame for each number that comes, and tell when that was done and what it took."""
    with CHANNELS[system][1](place) as reads:
        reads()
        pipe.send(None)
        while True:
            try:
                number = pipe.recv()
            except EOFError:
                return
            start = time.perf_counter()
            frame = reads()
            assert frame[:, 0].min() == frame[:, 0].max() == number
            end = time.perf_counter()
            pipe.send((end, end - start))


@contextmanager
def _write_xshm(place: Path) -> Iterator[Callable[[Any], Any]]:
    import xshm

    with xshm.Channel("frames") as channel:
        yield channel.write


@contextmanager
def _read_xshm(place: Path) -> Iterator[Callable[[], Any]]:
    import xshm

    with xshm.Channel("frames") as channel:
        yield lambda: channel.read().value


@contextmanager
def _write_ndsharray(place: Path) -> Iterator[Callable[[Any], Any]]:
    from ndsharray import NdShArray

    yield NdShArray(f"{place.name}/frames", r_w="w").write


@contextmanager
def _read_ndsharray(place: Path) -> Iterator[Callable[[], Any]]:
    from ndsharray import NdShArray

    # It takes its name for one in /dev/shm, where the folder is.
    shared = NdShArray(f"{place.name}/frames", r_w="r")

    def read() -> Any:
        whole, frame = shared.read()
        assert whole
        return frame

    yield read


CHANNELS = {
    "xshm": (_write_xshm, _read_xshm),
    "ndsharray": (_write_ndsharray, _read_ndsharray),
}


# ---- waking up


@contextmanager
def waking(size: int) -> Iterator[dict[str, Call]]:
    """A process that sleeps until something new is there wakes up.

    From the start of the call that wakes it until it goes on, "after the call" from the end of
    that call. A channel and a pipe bring it an array of one number, the others nothing. Medians
    of 200, with a pause of 2 ms before each.
    """
    yield {system: functools.partial(fresh, wake, system) for system in SIGNALS}


def wake(system: str) -> dict[str, float]:
    """Wake a process again and again."""
    make, receive = SIGNALS[system]
    answers, there = PROCESSES.Pipe(duplex=False)
    starts, ends = [], []
    with make() as (signal, arguments):
        process = PROCESSES.Process(target=sleep, args=(receive, arguments, there), daemon=True)
        process.start()
        there.close()
        for number in range(WARM_UP + TIMES):
            answers.recv()
            value = np.array([number])
            time.sleep(0.002)  # it sleeps by then
            starts.append(time.perf_counter())
            signal(value)
            ends.append(time.perf_counter())
        woken = answers.recv()
        process.join()
    delays = np.subtract(woken, starts)[WARM_UP:] * 1e6
    return {
        "median": float(np.median(delays)),
        "slowest tenth": float(np.quantile(delays, 0.9)),
        "after": float(np.median(np.subtract(woken, ends)[WARM_UP:])) * 1e6,
    }


def sleep(
    receive: Callable[..., Iterator[object]], arguments: tuple[Any, ...], pipe: Connection
) -> None:
    """Sleep until woken, note when that was, say so, and sleep again."""
    received = receive(*arguments)
    woken = []
    for _ in range(WARM_UP + TIMES):
        pipe.send(None)
        next(received)
        woken.append(time.perf_counter())
    pipe.send(woken)


#: Wakes a process; and what the process is given.
Signal = tuple[Callable[[Any], Any], tuple[Any, ...]]


@contextmanager
def _signal_by_channel() -> Iterator[Signal]:
    import xshm

    with xshm.Channel("signals") as channel:
        yield channel.write, ("signals",)


def _receive_by_channel(name: str) -> Iterator[object]:
    import xshm

    with xshm.Channel(name) as channel:
        while True:
            yield channel.wait()


@contextmanager
def _signal_by_pipe() -> Iterator[Signal]:
    there, here = PROCESSES.Pipe(duplex=False)
    with here, there:
        yield here.send, (there,)


def _receive_by_pipe(pipe: Connection) -> Iterator[object]:
    while True:
        yield pipe.recv()


@contextmanager
def _signal_by_event() -> Iterator[Signal]:
    event = PROCESSES.Event()
    yield lambda value: event.set(), (event,)


def _receive_by_event(event: Any) -> Iterator[object]:
    while True:
        event.wait()
        event.clear()
        yield None


@contextmanager
def _signal_by_condition() -> Iterator[Signal]:
    condition, count = PROCESSES.Condition(), PROCESSES.RawValue("q")

    def signal(value: Any) -> None:
        with condition:
            count.value += 1
            condition.notify()

    yield signal, (condition, count)


def _receive_by_condition(condition: Any, count: Any) -> Iterator[object]:
    # It may be notified before it waits, if it had to wait for a core.
    for seen in itertools.count():
        with condition:
            condition.wait_for(lambda seen=seen: count.value > seen)
        yield None


SIGNALS = {
    "xshm": (_signal_by_channel, _receive_by_channel),
    "Pipe": (_signal_by_pipe, _receive_by_pipe),
    "Event": (_signal_by_event, _receive_by_event),
    "Condition": (_signal_by_condition, _receive_by_condition),
}


WORKS = {
    "frames": Work(
        frames,
        (
            Column("until read", "until read, ms", "x"),
            Column("write", "write, ms", "x"),
            Column("read", "read, ms", "x"),
        ),
        (
            Goal("until read", 1, against="ndsharray, 1 reader", of="xshm, 1"),
            Goal("until read", 1, against="xshm, 1 reader", of="xshm, 4"),
            Goal("read", 1, against="xshm, 1 reader", of="xshm, 4"),
        ),
        baseline="xshm, 1 reader",
    ),
    "wake": Work(
        waking,
        (
            Column("median", "from the call, µs", "x"),
            Column("slowest tenth", "slowest tenth, µs", "x"),
            Column("after", "after the call, µs", "x"),
        ),
        (Goal("median", 200), Goal("after", 200)),
        baseline="Pipe",
    ),
}
