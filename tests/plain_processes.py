"""Programs that tests/test_multiprocessing.py runs: ``python -m tests.plain_processes NAME ...``.

Each is a process of its own, so that what it and its children print, and leave, can be seen.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import dask.config
import numpy as np
import pandas as pd
import xarray as xr

import xshm
from xshm import process

N = 200_000  # of float64: larger than the threshold


class Own:
    """An object of the user's own."""

    def __init__(self, data: Any) -> None:
        self.data = data


def example() -> dict[str, Any]:
    """Arrays wherever they may sit."""
    values = np.arange(2 * N, dtype="f8").reshape(2, N)
    ds = xr.Dataset({"a": (("y", "x"), values)}, {"x": np.arange(N)}, {"title": "two rows"})
    return {
        "dataset": ds,
        "frame": pd.DataFrame({"a": values[0], "b": values[1]}),
        "own": Own([values.T, values[:, ::2]]),
        "small": np.arange(3),
        "text": np.array(["Red", "Orange"] * N),
    }


def check(found: dict[str, Any], added: float = 0) -> None:
    """Raise if something else than :func:`example` arrived, with `added` to the Dataset."""
    expected = example()
    xr.testing.assert_identical(
        found["dataset"], expected["dataset"].assign(a=lambda d: d.a + added)
    )
    pd.testing.assert_frame_equal(found["frame"], expected["frame"])
    for one, other in zip(found["own"].data, expected["own"].data, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(found["small"], expected["small"])
    np.testing.assert_array_equal(found["text"], expected["text"])


def answer(message: dict[str, Any]) -> tuple[dict[str, Any], dict[str, int]]:
    """What a worker does: look, change what it got, send it back and say how it was received."""
    check(message)
    message["dataset"].a.values += 1
    return message, xshm.stats()


def check_answer(message: dict[str, Any], stats: dict[str, int]) -> None:
    """Both ways were by handle."""
    check(message, added=1)
    assert stats["handles_received"] >= 6, stats  # by the worker
    assert xshm.stats()["handles_received"] >= 6, xshm.stats()


def work(receive: Callable[[], Any], send: Callable[[Any], None]) -> None:
    """A worker at a pipe or at two queues."""
    send(answer(receive()))


def carriers(context: BaseContext) -> None:
    """Send the example through everything, there and back."""
    message = example()
    for make in (context.Queue, context.SimpleQueue):
        there, back = make(), make()
        worker = context.Process(target=work, args=(there.get, back.put))
        worker.start()
        there.put(message)
        check_answer(*back.get())
        worker.join()
    here, there = context.Pipe()
    worker = context.Process(target=work, args=(there.recv, there.send))
    worker.start()
    here.send(message)
    check_answer(*here.recv())
    worker.join()
    with context.Pool(2) as pool:
        check_answer(*pool.apply(answer, (message,)))
        for result in pool.imap_unordered(answer, [message, message]):
            check_answer(*result)
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as executor:
        check_answer(*executor.submit(answer, message).result())
    with context.Manager() as manager:
        shared, queue = manager.dict(), manager.Queue()
        shared["message"] = message
        check(shared["message"])
        check(shared["message"])  # again: the manager keeps it
        queue.put(message)
        check(queue.get())
    check(message)  # nobody changed ours


def settings(context: BaseContext, directory: str) -> None:
    """What the parent set in its own program holds for its children."""
    xshm.multiprocessing.disable()
    process.close()
    dask.config.set({"xshm.directory": directory, "xshm.threshold": 80})
    xshm.multiprocessing.enable()
    with context.Pool(1) as pool:
        assert pool.apply(np.cumsum, (np.ones(10),)).tolist() == [*range(1, 11)]
    assert xshm.stats()["handles_received"] == 1


def put(queue: Any, how: str) -> None:
    """A producer that ends before anybody reads."""
    queue.put(np.arange(float(N)))
    end(how)


def end(how: str) -> None:
    """End this process in one of the ways that there are."""
    match how:
        case "exception":
            raise RuntimeError("on purpose")
        case "exit":
            sys.exit(3)
        case "os._exit":
            os._exit(4)
        case "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)


def producers_end(context: BaseContext, *ways: str) -> None:
    """What a child has sent can be read when the child has ended."""
    queue = context.SimpleQueue()  # no thread: what was put is in the pipe
    children = [context.Process(target=put, args=(queue, how)) for how in ways]
    for child in children:
        child.start()
    for child in children:
        child.join()
    for _ in ways:
        np.testing.assert_array_equal(queue.get(), np.arange(float(N)))


def hold(queue: Any, pipe: Any, how: str) -> None:
    """A child that has an array of its own and one it was given, and ends when it is told to."""
    held, own = queue.get(), np.ones(N)
    pipe.send(own)
    pipe.recv()
    assert held.sum() == own.sum() == N
    end(how)


def children_end(context: BaseContext, *ways: str) -> None:
    """A parent has arrays of its children, which end."""
    for how in ways:
        child_ends(context, how)


def child_ends(context: BaseContext, how: str) -> None:
    """A parent has an array of its child, which ends."""
    queue = context.SimpleQueue()
    here, there = context.Pipe()
    child = context.Process(target=hold, args=(queue, there, how))
    child.start()
    own = np.ones(N)
    queue.put(own)
    held = here.recv()
    here.send(None)
    child.join()
    assert held.sum() == own.sum() == N
    held += 1
    queue.put(held)  # it can be handed on
    assert queue.get().sum() == 2 * N


def parent_with_pool_ends(context: BaseContext, how: str) -> None:
    """A parent ends while it and the workers of its pool hold arrays."""
    with context.Pool(2) as pool:
        results = pool.map(np.sqrt, [np.ones(N), np.ones(N)])
        assert sum(result.sum() for result in results) == 2 * N
        end(how)


def parent_ends(context: BaseContext, result: str) -> None:
    """What a child got, and what was sent to it, outlive the parent."""
    here, there = context.Pipe()
    child = context.Process(target=outlive_with, args=(there, result))
    child.start()
    here.send(np.ones(N))
    here.send(np.full(N, 2.0))
    here.recv()  # it has the first one
    os._exit(0)  # else the child would be waited for


def outlive_with(pipe: Any, result: str) -> None:
    """See :func:`parent_ends`."""
    parent = os.getppid()
    held = pipe.recv()
    pipe.send(None)
    while multiprocessing.parent_process().is_alive() and os.getppid() == parent:
        time.sleep(0.01)
    unread = pipe.recv()
    Path(result).write_text(f"{held.sum()} {unread.sum()}")


if __name__ == "__main__":
    import xshm.multiprocessing

    name, method, *arguments = sys.argv[1:]
    globals()[name](multiprocessing.get_context(method), *arguments)
