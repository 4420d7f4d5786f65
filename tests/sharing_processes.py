"""Programs that tests/test_shared_array.py runs: ``python -m tests.sharing_processes NAME METHOD``.

Each is a process of its own, so that what it and its children print, and leave, can be seen.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import sys
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.managers import SharedMemoryManager
from typing import Any

import numpy as np

from xshm import SharedArray


def add(x: Any, number: float) -> None:
    """Add to an array, or a part of one, in place."""
    if isinstance(x, SharedArray):
        with x.lock:
            x += number
    else:
        x += number


def make(number: float) -> SharedArray[np.float64]:
    """An array that its maker forgets at once."""
    return SharedArray.full(10, number)


def make_part(number: float) -> Any:
    """A part of such an array."""
    return make(number)[:2]


def put(queue: Any) -> None:
    """Put an array in a queue, and end."""
    queue.put(make(7))


def carriers(context: BaseContext) -> None:
    """Arrays as arguments, results, and in queues and pipes."""
    a = SharedArray.zeros(10)
    child = context.Process(target=add, args=(a, 1))
    child.start()
    child.join()
    assert (a == 1).all()
    with context.Pool(2) as pool:
        pool.starmap(add, [(a, 1)] * 50)
        assert (a == 51).all()
        pool.apply(add, (a[2:4], 9))
        assert a[1:5].tolist() == [51, 60, 60, 51]
        b = pool.apply(make, (7,))
        pool.apply(add, (b, 1))
        assert (b == 8).all()
        part = pool.map(make_part, [3])[0]
        pool.apply(add, (part, 1))
        assert part.tolist() == [4, 4]
    with concurrent.futures.ProcessPoolExecutor(2, context) as executor:
        executor.submit(add, b, 1).result()
        assert (b == 9).all()
        made = executor.submit(make, 3).result()
    assert (made == 3).all()
    with context.Manager() as manager:
        values = manager.dict(a=a)
        add(values["a"], 1)
        assert a[0] == 52


def producer_ends(context: BaseContext) -> None:
    """What is in a queue outlives who put it there."""
    for queue in (context.Queue(), context.SimpleQueue()):
        child = context.Process(target=put, args=(queue,))
        child.start()
        child.join()
        received = queue.get()
        assert (received == 7).all()
        add(received, 1)
        queue.put(received)
        assert (queue.get() == 8).all()


def parent_ends(context: BaseContext) -> None:
    """A child outlives its parent, and hands on the parent's array."""
    here, there = context.Pipe()
    parent = context.Process(target=be_parent, args=(context.get_start_method(), there))
    parent.start()
    there.close()
    parent.join()
    here.send("the parent has ended")
    received = here.recv()
    assert (received == 8).all()
    add(received, 1)
    here.send("seen")
    assert here.recv() == 9


def be_parent(method: str, pipe: Connection) -> None:
    """See :func:`parent_ends`."""
    a = SharedArray.full(10, 7.0)
    child = multiprocessing.get_context(method).Process(target=be_child, args=(a, pipe))
    child.start()
    if method != "fork":
        a.close()
    os._exit(0)  # else the child would be waited for


def be_child(a: SharedArray[np.float64], pipe: Connection) -> None:
    """See :func:`parent_ends`."""
    assert pipe.recv() == "the parent has ended"
    add(a, 1)
    pipe.send(a)
    pipe.recv()
    pipe.send(a[0])


def nobody_takes(context: BaseContext) -> None:
    """A pool is terminated with tasks that nobody ran, and results that nobody read."""
    with context.Pool(1) as pool:
        a = SharedArray.zeros(10)
        pool.map_async(make, range(100))
        pool.starmap_async(add, [(a, 1)] * 100)


def manager_ends(context: BaseContext) -> None:
    """A child keeps what it has of an array whose manager is shut down."""
    here, there = context.Pipe()
    with SharedMemoryManager(ctx=context) as manager:
        named = SharedArray.zeros(10, name="example")
        unnamed = SharedArray.from_array(np.ones(10), manager=manager)
        attached = SharedArray.from_array(np.ones(10), "another", manager=manager)
        child = context.Process(target=keep, args=(unnamed, attached, there))
        child.start()
        assert here.recv() == "has them"
    here.send("the manager has ended")
    assert here.recv() == 22
    child.join()
    assert child.exitcode == 0
    assert (named == 0).all()
    named.unlink()


def keep(a: SharedArray[np.float64], b: SharedArray[np.float64], pipe: Connection) -> None:
    """See :func:`manager_ends`."""
    pipe.send("has them")
    pipe.recv()
    a += 0.1
    b += 0.1
    pipe.send(round(float((a + b).sum()), 6))


if __name__ == "__main__":
    name, method = sys.argv[1:]
    globals()[name](multiprocessing.get_context(method))
