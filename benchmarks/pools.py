"""Data that cross pools and queues of processes: bytes through pipes, or handles."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import xarray as xr

from .comparison import Call, Column, Goal, Work, share
from .fresh import PROCESSES, fresh, installed

#: Arrays that lie in shared memory from the beginning.
BORN = "xshm, born in segments"

#: End of a system's name: what is sent was made outside of shared memory.
ORDINARY = ", ordinary arrays"

#: Times that something is done for one sample.
CALLS = 4

#: Calls a function with an argument in another process, and returns its result.
Apply = Callable[[Callable[[Any], Any], Any], Any]


def enable(system: str) -> Callable[[], AbstractContextManager[None]]:
    """Have this process send as a system does.

    Returns
    -------
    callable
        It returns a context manager: what is sent is made in its block.
    """
    if system.startswith("xshm"):
        import xshm.multiprocessing  # noqa: F401  # sends arrays as handles

        if system.endswith(ORDINARY):
            return ordinary
    return nullcontext


@contextmanager
def ordinary() -> Iterator[None]:
    """NumPy's own allocator in place of xshm's."""
    import xshm

    xshm.disable()
    try:
        yield
    finally:
        xshm.enable()


# ---- pools


@contextmanager
def pool(size: int) -> Iterator[dict[str, Call]]:
    """A Dataset of 160 MB goes to a process of a pool and comes back.

    From the call to its result. "there and back" returns its argument, "ds + 1" a new Dataset,
    whose means are taken here. The process runs already, and every call sends a new Dataset:
    "first" is the first call, the others are medians of three more. "no pool" calls the
    functions in the same process. From ``import xshm.multiprocessing`` on, arrays are born in
    segments; "ordinary arrays" were made by NumPy's own allocator.
    """
    nbytes = share(size, 160_000_000)
    yield {name: functools.partial(fresh, there_and_back, name, nbytes) for name in systems(POOLS)}


def systems(pools: dict[str, Any]) -> list[str]:
    """Names of those that are installed."""
    return [name for name in pools if "joblib" not in name or installed("joblib")]


def there_and_back(system: str, nbytes: int) -> dict[str, float]:
    """Send new Datasets there and back."""
    making = enable(system)
    seconds, computed = [], []
    with POOLS[system]() as apply:
        apply(same, one_dataset(0))  # the other process starts, and imports what it needs
        for _ in range(CALLS):
            with making():
                dataset = one_dataset(nbytes)
            start = time.perf_counter()
            result = apply(same, dataset)
            seconds.append(time.perf_counter() - start)
            assert result.equals(dataset)
            with making():
                dataset = one_dataset(nbytes)
            start = time.perf_counter()
            result = apply(plus_one, dataset)
            means = result.mean()
            computed.append(time.perf_counter() - start)
            assert result.equals(dataset + 1)
            del dataset, result, means
    return {
        "first": seconds[0],
        "seconds": statistics.median(seconds[1:]),
        "computed": statistics.median(computed[1:]),
    }


def one_dataset(nbytes: int) -> xr.Dataset:
    """A Dataset of four variables, of about so many bytes together."""
    rows = max(nbytes // 16_000, 1)
    values = np.arange(rows * 1000, dtype=np.float32).reshape(rows, 1000)
    return xr.Dataset({name: (("time", "x"), values + i) for i, name in enumerate("tuvw")})


def same(dataset: xr.Dataset) -> xr.Dataset:
    """Give back what was sent."""
    return dataset


def plus_one(dataset: xr.Dataset) -> xr.Dataset:
    """Read all that was sent, and send as much back."""
    return dataset + 1


@contextmanager
def _no_pool() -> Iterator[Apply]:
    yield lambda function, argument: function(argument)


@contextmanager
def _pool() -> Iterator[Apply]:
    with PROCESSES.Pool(1) as pool:
        yield lambda function, argument: pool.apply(function, (argument,))


@contextmanager
def _executor() -> Iterator[Apply]:
    with ProcessPoolExecutor(1, PROCESSES) as executor:
        yield lambda function, argument: executor.submit(function, argument).result()


@contextmanager
def _joblib() -> Iterator[Apply]:
    import joblib
    from joblib.externals.loky import get_reusable_executor

    # With one process it would call the function in this one.  Arrays are written to files in
    # /dev/shm and mapped, as is its default; what comes back goes through a pipe.
    with joblib.Parallel(n_jobs=2, backend="loky") as parallel:
        yield lambda function, argument: parallel([joblib.delayed(function)(argument)])[0]
    get_reusable_executor().shutdown()  # it would keep this process for five minutes


POOLS: dict[str, Callable[[], AbstractContextManager[Apply]]] = {
    "no pool": _no_pool,
    "Pool": _pool,
    "ProcessPoolExecutor": _executor,
    "joblib": _joblib,
    "xshm, Pool": _pool,
    f"xshm, Pool{ORDINARY}": _pool,
    "xshm, ProcessPoolExecutor": _executor,
    "xshm, joblib": _joblib,
}


# ---- queues


@contextmanager
def queue(size: int) -> Iterator[dict[str, Call]]:
    """An array of 1 GiB goes through a ``multiprocessing.Queue``.

    From ``put`` to the return of ``get`` in another process, and until that has summed it. The
    process runs already, and every array is a new one: "first" is the first, the others are
    medians of three more.
    """
    yield {
        name: functools.partial(fresh, through_queue, name, share(size, 2**30))
        for name in ("Queue", BORN, f"xshm{ORDINARY}")
    }


def through_queue(system: str, nbytes: int) -> dict[str, float]:
    """Send new arrays through a queue."""
    making = enable(system)
    arrived, read = [], []
    arrays, answers = PROCESSES.Queue(), PROCESSES.SimpleQueue()
    process = PROCESSES.Process(target=take, args=(arrays, answers), daemon=True)
    process.start()
    arrays.put(np.zeros(1))  # the other process starts, and imports what it needs
    answers.get()
    for number in range(1, CALLS + 1):
        with making():
            values = np.full(nbytes // 8, number, np.int64)
        start = time.perf_counter()
        arrays.put(values)
        got, summed, total = answers.get()
        assert total == number * values.size
        arrived.append(got - start)
        read.append(summed - start)
        del values
    arrays.put(None)
    process.join()
    return {
        "first": 1e3 * arrived[0],
        "arrived": 1e3 * statistics.median(arrived[1:]),
        "read": 1e3 * statistics.median(read[1:]),
    }


def take(arrays: Any, answers: Any) -> None:
    """Sum what comes through a queue, and tell when it came and when that was done."""
    while (values := arrays.get()) is not None:
        got = time.perf_counter()
        total = values.sum()
        answers.put((got, time.perf_counter(), total))
        del values


WORKS = {
    "pool": Work(
        pool,
        (
            Column("seconds", "there and back, s"),
            Column("first", "first, s"),
            Column("computed", "ds + 1, s"),
        ),
        (Goal("seconds", 1 / 20, against="Pool"),),
        baseline="Pool",
    ),
    "queue": Work(
        queue,
        (
            Column("arrived", "put to get, ms", "x"),
            Column("first", "first, ms", "x"),
            Column("read", "and summed, ms", "x"),
        ),
        (Goal("arrived", 2, of=BORN),),
        baseline="Queue",
    ),
}
