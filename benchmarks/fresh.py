"""New processes and new folders to measure in."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dask

#: They inherit nothing, so that no system knows what another one did.
PROCESSES = multiprocessing.get_context("spawn")


def fresh(function: Callable[..., Any], *args: Any) -> Any:
    """What a function returns in a process that has just started."""
    with ProcessPoolExecutor(1, PROCESSES) as pool:
        return pool.submit(function, *args).result()


def installed(package: str) -> bool:
    """Whether a package is."""
    return importlib.util.find_spec(package) is not None


@contextmanager
def folder() -> Iterator[Path]:
    """A new folder in shared memory, which goes with all that is in it."""
    with TemporaryDirectory(prefix="xshm-benchmark-", dir="/dev/shm") as path:
        yield Path(path)


@contextmanager
def own_directory() -> Iterator[Path]:
    """A new folder, ``xshm.directory`` here and in the processes that start meanwhile."""
    variable = "DASK_XSHM__DIRECTORY"
    before = os.environ.get(variable)
    with folder() as place, dask.config.set({"xshm.directory": str(place)}):
        os.environ[variable] = str(place)
        try:
            yield place
        finally:
            del os.environ[variable]
            if before is not None:
                os.environ[variable] = before
