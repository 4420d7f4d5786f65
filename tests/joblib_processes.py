"""Programs that tests/test_joblib.py runs: ``python -m tests.joblib_processes NAME ...``."""

from __future__ import annotations

import importlib
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import xshm
from xshm import process

N = 200_000  # of float64: larger than the threshold


def switch_on(when: str) -> None:
    """Import xshm.multiprocessing before or after joblib, or when workers run already."""
    if when != "before":
        importlib.import_module("joblib")
    if when == "later":
        parallel(os.getpid, [()] * 4)
    importlib.import_module("xshm.multiprocessing")


def parallel(function: Any, arguments: Iterable[tuple[Any, ...]], **options: Any) -> list[Any]:
    """``function(*a)`` for each of the arguments, by joblib, one at a time."""
    import joblib

    calls = (joblib.delayed(function)(*a) for a in arguments)
    result: list[Any] = joblib.Parallel(n_jobs=2, batch_size=1, **options)(calls)
    return result


def change(data: dict[str, Any], i: int) -> tuple[dict[str, Any], dict[str, int], int]:
    """What a worker does: write to what it got, send it back and say how it was received."""
    assert type(data["large"]) is np.ndarray
    data["large"] += i
    data["strided"] += i
    data["small"] += i
    return data, xshm.stats(), os.getpid()


def there_and_back(backend: str, when: str) -> None:
    """Both ways by handle; each worker's writes are its own."""
    switch_on(when)
    values = np.zeros((4, N))
    data = {"large": values[0], "strided": values[:, ::2], "small": np.zeros(3), "text": ["a"]}
    data["objects"] = np.array(["a", None] * N)
    results = parallel(change, ((data, i) for i in range(4)), backend=backend)
    for i, (changed, stats, pid) in enumerate(results):
        for name in ("large", "strided", "small"):
            assert changed[name].shape == data[name].shape
            assert (changed[name] == i).all()
            assert changed[name].flags.writeable
        assert changed["text"] == ["a"]
        np.testing.assert_array_equal(changed["objects"], data["objects"])
        assert pid != os.getpid()
        assert stats["handles_received"] >= 2, stats
    assert (values == 0).all()
    assert xshm.stats()["handles_received"] == 2 * len(results)


def make(i: int) -> np.ndarray:
    """What a worker makes itself."""
    return np.full(N, float(i))


def made_there(backend: str) -> None:
    """Results are born in shared memory, of workers that run already too: nobody copies them."""
    switch_on("later")
    results = parallel(make, [(1,), (2,)], backend=backend)
    assert [x[0] for x in results] == [1, 2]
    assert all(xshm.is_shared(x) for x in results)
    stats = parallel(xshm.stats, [(), ()], backend=backend)
    assert all(worker["bytes_copied_in"] == 0 for worker in stats)


def total(x: np.ndarray) -> float:
    """Something to be done with an array."""
    return float(x.sum())


def copied_once(backend: str) -> None:
    """An array that lies elsewhere is copied once in a call, and anew in the next."""
    x = np.ones(N)
    switch_on("before")
    assert not xshm.is_shared(x)
    for value in (1, 2):
        x[:] = value
        before = xshm.stats()
        assert parallel(total, [(x,)] * 8, backend=backend) == [value * N] * 8
        after = xshm.stats()
        assert after["handles_sent"] - before["handles_sent"] == 8
        assert after["created"] + after["recycled"] == before["created"] + before["recycled"] + 1
        assert after["live_segments"] == before["live_segments"]


def written_since(backend: str) -> None:
    """The same for one that was written to after it had been sent."""
    switch_on("before")
    x = np.ones(N)
    assert parallel(total, [(x,)] * 2, backend=backend) == [N] * 2
    x[:] = 2
    before = xshm.stats()
    assert parallel(total, [(x,)] * 8, backend=backend) == [2 * N] * 8
    after = xshm.stats()
    assert after["created"] + after["recycled"] == before["created"] + before["recycled"] + 1


def streamed(backend: str) -> None:
    """Copies for jobs that are done do not pile up until the call is."""
    source = [np.ones(N) for _ in range(20)]
    switch_on("before")
    live = []

    def arguments() -> Iterator[tuple[np.ndarray]]:
        while source:
            live.append(xshm.stats()["live_segments"])
            yield (source.pop(),)

    assert parallel(total, arguments(), backend=backend) == [N] * 20
    assert max(live) < 12, live


def write(x: np.ndarray, i: int) -> None:
    """Write to an element."""
    x[i] = i


def files(backend: str, path: str) -> None:
    """Arrays in a file stay there, and so do views of them."""
    switch_on("before")
    for part in (slice(None), slice(5, None)):
        x = np.memmap(path, "f8", "w+", shape=2 * N)
        parallel(write, ((x[part], i) for i in range(4)), backend=backend)
        parallel(write, ((np.asarray(x)[part], i) for i in range(4, 8)), backend=backend)
        assert x[part][:8].tolist() == list(range(8))
    (x,) = parallel(np.memmap, [(path, "f8", "r+")], backend=backend)  # and back
    x[7] = -1
    assert np.fromfile(path)[7] == -1


def write_and_sum(x: np.ndarray, i: int) -> float:
    """Write to an element, and see what others have written."""
    x[i] = 1
    return float(x.sum())


def writes_shared(backend: str) -> None:
    """Arrays that workers are to share, writes included: joblib does that."""
    switch_on("before")
    x = np.zeros(N)
    sums = parallel(write_and_sum, ((x, i) for i in range(4)), backend=backend, mmap_mode="r+")
    assert max(sums) == 4
    assert xshm.stats()["handles_sent"] == 0


def fail(x: np.ndarray, i: int) -> None:
    """The first fails, the others take long."""
    if i == 0:
        raise ZeroDivisionError("on purpose")
    time.sleep(0.5)


def failing(backend: str) -> None:
    """What was sent and will never be read is withdrawn at once."""
    switch_on("before")
    x = np.ones(N)
    try:
        parallel(fail, ((x, i) for i in range(20)), backend=backend, pre_dispatch="all")
    except ZeroDivisionError:
        pass
    else:
        raise AssertionError("the error was lost")
    me = process.current()
    left = {name for name in os.listdir(me.directory.segments) if name.startswith(me.id)}
    assert {Path(name).suffix for name in left} == {".segment"}


def kind_of(x: np.ndarray) -> str:
    """What a worker got."""
    return type(x).__name__


def off(backend: str) -> None:
    """Switched off again, arrays go as joblib sends them; workers that exist still work."""
    switch_on("before")
    x = np.zeros(N)
    assert parallel(kind_of, [(x,)], backend=backend) == ["ndarray"]
    xshm.multiprocessing.disable()
    assert parallel(kind_of, [(x,)], backend=backend) == ["memmap"]
    assert xshm.stats()["handles_sent"] == 1


def without_processes() -> None:
    """Here joblib says so when processes are asked for, and uses threads."""
    switch_on("before")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert parallel(total, [(np.zeros(N),)] * 2, backend="loky") == [0, 0]
    assert "not available" in str(caught[0].message)
    assert xshm.stats()["handles_sent"] == 0


def executor(package: str, when: str) -> None:
    """loky without joblib."""
    if when == "after":
        importlib.import_module(package)
    switch_on("before")
    loky = importlib.import_module(package)
    workers = loky.get_reusable_executor(max_workers=1)
    data = {"large": np.zeros(N), "strided": np.zeros((4, N))[:, ::2], "small": np.zeros(3)}
    changed, stats, _ = workers.submit(change, data, 1).result()
    assert all((x == 1).all() for x in changed.values())
    assert all((x == 0).all() for x in data.values())
    assert stats["handles_received"] == xshm.stats()["handles_received"] == 2
    before = workers.submit(xshm.stats).result()["bytes_copied_in"]
    assert xshm.is_shared(workers.submit(make, 1).result())
    assert workers.submit(xshm.stats).result()["bytes_copied_in"] == before


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    globals()[name](*arguments)
