"""Large arrays cross queues, pipes and pools as handles, from the import of this on.

::

    import xshm.multiprocessing

With it, NumPy arrays of ``xshm.threshold`` bytes and more (default 1 MiB), wherever they sit
in what is sent (a Dataset, a DataFrame, a dict, an object of your own), need no pickling and
no copying through a pipe: by ``multiprocessing``'s ``Queue``, ``SimpleQueue``, ``Pipe``,
``Pool`` and ``Manager``, and by ``concurrent.futures.ProcessPoolExecutor``, in both
directions and with every start method; so too by joblib, loky and PyTorch's ``DataLoader``
where they are installed. Arrays that this thread makes are born in shared
memory (as after :func:`xshm.enable`), so that these are not copied at all.

What arrives is writable, and is the receiver's own: nobody else sees what is written to it.

Notes
-----
``multiprocessing`` pickles with its ``ForkingPickler``, where reducers for types can be
registered. It is used for three:

- ``numpy.ndarray`` and ``numpy.ma.MaskedArray``: see :mod:`xshm.message`;
- ``Connection``, the end of a pipe. Every queue, pool and manager passes some to its processes,
  before anything else. A process that is given one by a process where this is switched on has
  it switched on too, with the same settings, so that its answers are handles as well.

PyTorch pickles with the same one. loky has a pickler with reducers of its own: the same are
registered there. For joblib see :mod:`xshm.joblib`. It is imported here if it is installed
(10 ms), since it could not tell us if it were imported later.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from multiprocessing import connection, util
from multiprocessing.context import get_spawning_popen
from multiprocessing.reduction import ForkingPickler
from typing import Any

import dask.config
import numpy as np

from xshm import allocation
from xshm.message import reduce_array, reduce_masked_array
from xshm.spawned import rebuild

_enabled = False


def enable() -> None:
    """Send large arrays as handles, from here on; importing this module does it.

    Raises
    ------
    DirectoryError
        The directory that the configuration names cannot be used.
    """
    global _enabled
    allocation.enable()
    for register, reduce_connection in _registers():
        register(np.ndarray, reduce_array)
        register(np.ma.MaskedArray, reduce_masked_array)
        register(connection.Connection, functools.partial(_switch_on, reduce_connection))
    if _is_installed("joblib"):
        from xshm import joblib

        joblib.enable()
    _enabled = True


def disable() -> None:
    """Send arrays as ``multiprocessing`` does by itself; children that exist stay as they are."""
    global _enabled
    allocation.disable()
    for register, reduce_connection in _registers():
        register(np.ndarray, np.ndarray.__reduce__)
        register(np.ma.MaskedArray, np.ma.MaskedArray.__reduce__)
        register(connection.Connection, reduce_connection)
    if _is_installed("joblib"):
        from xshm import joblib

        joblib.disable()
    _enabled = False


def _registers() -> Iterator[tuple[Callable[[Any, Any], None], Callable[[Any], Any]]]:
    """Where reducers are registered, and what is registered there for connections."""
    yield ForkingPickler.register, connection.reduce_connection  # type: ignore[attr-defined]
    for loky in ("joblib.externals.loky", "loky"):  # a copy of it, which may start its workers
        if _is_installed(loky.partition(".")[0]):
            backend = f"{loky}.backend"
            register = importlib.import_module(f"{backend}.reduction").register
            posix = importlib.import_module(f"{backend}._posix_reduction")
            yield register, posix.reduce_connection


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _switch_on(reduce_connection: Callable[[Any], Any], end: connection.Connection) -> Any:
    settings = None if get_spawning_popen() is None else dask.config.get("xshm")
    return rebuild, (settings, *reduce_connection(end))


def _enable_in_child(module: Any) -> None:
    # Forked: what is registered is there. But the child is not in the directory yet, and NumPy
    # has another allocator if it was not forked by the thread that has ours.
    if _enabled:
        allocation.enable()


enable()
util.register_after_fork(sys.modules[__name__], _enable_in_child)
