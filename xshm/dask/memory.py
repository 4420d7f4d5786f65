"""The memory of a worker: what only it keeps alive.

Worker and nanny read the resident memory of the worker's process. That has every shared page
that the process has touched, also of another worker's segment, or of a published Dataset: it
would count once for each. Here a worker's memory is::

    resident memory - resident pages of shared memory + its own segments + its orphans

Orphans are segments that only leases keep, since their owner has gone: see
:func:`xshm.own_memory.orphans_of`.

Notes
-----
Three attributes of distributed's servers are set when they start to listen to ``shm://`` or
``shms://``. Its classes stay as they are.

- ``Worker.monitor.get_process_memory``: spilling, pausing, the scheduler and the dashboard all have
  their figure from it. distributed keeps this method apart so that it can be replaced.
- ``Nanny.memory_manager`` and its periodic callback, which end a worker that takes too much.
- Files and cache of ``Worker.data``, if that is distributed's own ``SpillBuffer``: see
  :mod:`xshm.dask.spill`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import Any

import numpy as np
from dask.sizeof import sizeof
from distributed import Nanny, Worker
from distributed.worker_memory import NannyMemoryManager

from xshm import _core
from xshm.dask.spill import SpilledLeases
from xshm.directory import configured
from xshm.own_memory import orphans_of, own_resident, segments_of
from xshm.whereabouts import is_leased


def _register_sizeof() -> None:
    # distributed spills by the sizes that it adds up, too; see dask.sizeof.
    sizeof(np.empty(0))  # dask registers its own when it is first asked
    of_owned = sizeof.dispatch(np.ndarray)

    @sizeof.register(np.ndarray)
    def sizeof_ndarray(x: np.ndarray[Any, Any]) -> int:
        """Bytes that go when an array goes: of a lease there are none, as others have them."""
        return sys.getsizeof(x) if is_leased(x) else int(of_owned(x))


_register_sizeof()


def account_for(server: Any) -> None:
    """Have a worker's memory counted as it is here, by itself and by its nanny.

    Parameters
    ----------
    server : object
        Whose listener starts: a worker or a nanny; of others nothing is counted.
    """
    if isinstance(server, Worker):
        server.monitor.get_process_memory = _WorkerMemory(server)
    elif isinstance(server, Nanny):
        server.memory_manager = _NannyMemoryManager(
            server, memory_limit=server.memory_manager.memory_limit
        )


#: What part of the memory that dask fills may be kept for the next arrays, whatever else.
_SPARE = 16


class _WorkerMemory:
    """What is called for the memory of a worker, in bytes."""

    def __init__(self, worker: Worker) -> None:
        manager = worker.memory_manager
        fraction = manager.memory_target_fraction or manager.memory_spill_fraction
        self._target = int((manager.memory_limit or 0) * (fraction or 0))
        self._orphans = _Orphans()
        self._spilled_leases = SpilledLeases(worker.data)

    def __call__(self) -> int:
        _core.give_room()  # if another process asks for some
        orphans = self._orphans.count(os.getpid())
        if orphans:
            self._spilled_leases.let_go()
        own = own_resident(os.getpid()) + orphans
        if self._target:
            # What is kept for the next arrays goes before anything is spilled, and what is
            # spilled is not kept: dask spills until this figure has fallen. But for a little,
            # or each new chunk would be made of cold pages while others are spilled.
            live = _core.count()["live_bytes"]
            _core.set_budget(max(self._target - own, live + self._target // _SPARE))
        pool = _core.count()
        return own + pool["live_bytes"] + pool["free_bytes"] + pool["waiting_bytes"]


class _NannyMemoryManager(NannyMemoryManager):
    """Ends a worker only for what that worker keeps alive."""

    def __init__(self, nanny: Nanny, *, memory_limit: Any) -> None:
        super().__init__(nanny, memory_limit=memory_limit)
        self._orphans = _Orphans()

    def memory_monitor(self, nanny: Nanny) -> None:
        process = nanny.process and nanny.process.process
        pid = process and process.pid
        if pid is not None and self._is_within_limit(pid):
            return
        super().memory_monitor(nanny)

    def _is_within_limit(self, pid: int) -> bool:
        limit = self.memory_limit * self.memory_terminate_fraction
        # It has just ended: distributed sees to that.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            own = own_resident(pid) + segments_of(pid, configured())
            return bool(own + self._orphans.count(pid) <= limit)
        return False


class _Orphans:
    """Orphans of a process, looked for once a second: the monitors ask ten times as often.

    As long as there are some, each look counts them: dask spills until they have gone.
    """

    def __init__(self) -> None:
        self._nbytes = 0
        self._good_until = 0.0

    def count(self, pid: int) -> int:
        if self._nbytes or time.monotonic() >= self._good_until:
            self._nbytes = orphans_of(pid, configured())
            self._good_until = time.monotonic() + 1
        return self._nbytes
