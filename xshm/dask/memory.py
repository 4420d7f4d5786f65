"""The memory of a worker: what only it keeps alive.

Worker and nanny read the resident memory of the worker's process. That has every shared page
that the process has touched, also of another worker's segment, or of a published Dataset: it
would count once for each. Here a worker's memory is::

    resident memory - resident pages of shared memory + its own segments + its orphans

Orphans are segments that only leases keep, since their owner has gone: see
:func:`xshm.own_memory.orphans_of`. Of its own segments those that are kept for the next arrays
count as far as they make it neither spill nor pause.

Notes
-----
Three attributes of distributed's servers are set when they start to listen to ``shm://`` or
``shms://``. Its classes stay as they are.

- ``Worker.monitor.get_process_memory``: spilling, pausing, the scheduler and the dashboard all have
  their figure from it. distributed keeps this method apart so that it can be replaced.
- ``Nanny.memory_manager`` and its periodic callback, which end a worker that takes too much.
- ``evict`` of ``Worker.data``, and files and ``load`` of distributed's own ``SpillBuffer``: see
  :mod:`xshm.dask.spill`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import dask.config
import numpy as np
from dask.sizeof import sizeof
from distributed import Nanny, Worker
from distributed.worker_memory import NannyMemoryManager

from xshm import _core, process
from xshm.dask.spill import attend_to
from xshm.directory import Directory
from xshm.own_memory import counted_by_others, idle_of, orphans_of, resident, segments_of
from xshm.whereabouts import segment_leased

T = TypeVar("T")


def _register_sizeof() -> None:
    # distributed spills by the sizes that it adds up, too; see dask.sizeof.
    sizeof(np.empty(0))  # dask registers its own when it is first asked
    of_owned = sizeof.dispatch(np.ndarray)

    @sizeof.register(np.ndarray)
    def sizeof_ndarray(x: np.ndarray[Any, Any]) -> int:
        """Bytes that go when an array goes: of a lease there are none, as others have them."""
        return int(of_owned(x)) if segment_leased(x) is None else sys.getsizeof(x)


_register_sizeof()


def account_for(server: Any) -> None:
    """Have a worker's memory counted as it is here, by itself and by its nanny.

    Parameters
    ----------
    server : object
        Whose listener starts: a worker or a nanny; of others nothing is counted.
    """
    if isinstance(server, Worker):
        memory = _WorkerMemory(server)
        server.monitor.get_process_memory = memory
        attend_to(server.data, memory.is_enough_spilled)
    elif isinstance(server, Nanny):
        server.memory_manager = _NannyMemoryManager(
            server, memory_limit=server.memory_manager.memory_limit
        )


def account_no_more_for(server: Any) -> None:
    """Let this process keep what it is configured to, as a worker in it has ended."""
    if isinstance(server, Worker):
        _core.set_budget(sys.maxsize)  # another worker in it sets its own again


#: Where dask spills nothing, this part of the limit stands for where it would.
_FILLED = 0.6
#: Where much is in use, memory may be kept for the next arrays to this part of the limit beyond
#: where dask spills, so that what was spilled is there for them, warm; dask pauses a worker
#: somewhat later. It stays as far from where the nanny ends the worker.
_BEYOND = 0.05
#: In how many looks of the nanny a worker is to give back what it keeps for its next arrays.
_PATIENCE = 10


class _WorkerMemory:
    """What is called for the memory of a worker, in bytes.

    It asks for the limit and its parts each time, as dask does: they may be set at any time.
    """

    def __init__(self, worker: Worker) -> None:
        self._manager = worker.memory_manager
        terminate = dask.config.get("distributed.worker.memory.terminate") or 1
        self._most_kept = terminate - _BEYOND
        self._counted_by_others = _Seldom(counted_by_others)

    def __call__(self) -> int:
        taken = self._of_arrays_and_others()
        with_kept = taken + _core.count()["free_bytes"]
        if not self._manager.memory_limit:
            return with_kept
        # What is kept for the next arrays is no reason to spill, or to pause: a worker without any
        # array could not do anything about it.
        pause = self._manager.memory_pause_fraction or self._spill_fraction
        return max(taken, min(with_kept, self._part(min(self._spill_fraction, pause))))

    def is_enough_spilled(self) -> bool:
        """Whether it is no more than dask spills to, beside what is kept for the next arrays."""
        return self._of_arrays_and_others() <= self._target()

    def _target(self) -> int:
        return self._part(self._manager.memory_target_fraction or self._spill_fraction)

    @property
    def _spill_fraction(self) -> float:
        return self._manager.memory_spill_fraction or _FILLED

    def _part(self, fraction: float) -> int:
        return int((self._manager.memory_limit or 0) * fraction)

    def _of_arrays_and_others(self) -> int:
        _core.give_room()  # if another process asks for some
        own = resident(os.getpid())[0] + self._orphans()
        pool = _core.count()
        taken = own + pool["live_bytes"] + pool["waiting_bytes"]
        if self._manager.memory_limit:
            most = self._part(min(self._spill_fraction + _BEYOND, self._most_kept))
            _core.set_budget(self._target() - own, most - own)
        return taken

    def _orphans(self) -> int:
        # Looked for each time, since a worker that takes many chunks whose owners spill them
        # gets as many in no time; and all count until it is known that others count them.
        orphans = dict(_core.orphans())
        others = self._counted_by_others(os.getpid()) if orphans else set()
        return sum(nbytes for inode, nbytes in orphans.items() if inode not in others)


class _NannyMemoryManager(NannyMemoryManager):
    """Ends a worker only for what that worker keeps alive."""

    def __init__(self, nanny: Nanny, *, memory_limit: Any) -> None:
        super().__init__(nanny, memory_limit=memory_limit)
        self._orphans = _Seldom(orphans_of)
        self._beyond = 0

    def memory_monitor(self, nanny: Nanny) -> None:
        started = nanny.process and nanny.process.process
        pid = started and started.pid
        if pid is None or not self._is_tolerated(pid):
            super().memory_monitor(nanny)

    def _is_tolerated(self, pid: int) -> bool:
        limit = self.memory_limit * self.memory_terminate_fraction
        # It has just ended: distributed sees to that.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            directory = process.current().directory
            own, shared = resident(pid)
            # Up to the limit distributed would not end it either.
            if own + shared > limit:
                own += segments_of(pid, directory) + self._orphans(pid)
            if own <= limit:
                self._beyond = 0
                return True
            self._beyond += 1
            if self._beyond == 1:  # what was on its way from one of these figures to another?
                self._orphans.look_again()
                return True
            # What it keeps for its next arrays it gives back when it looks itself, as often as
            # here; but not while a task lets no other thread run.
            return self._beyond <= _PATIENCE and own - idle_of(pid, directory) <= limit
        return False


class _Seldom(Generic[T]):
    """A function that takes long, called a tenth of the time at most: monitors ask without end.

    Parameters
    ----------
    function : callable
        Called with a pid and the directory.
    """

    def __init__(self, function: Callable[[int, Directory], T]) -> None:
        self._function = function
        self._call_again = 0.0

    def __call__(self, pid: int) -> T:
        start = time.monotonic()
        if start >= self._call_again:
            self._last = self._function(pid, process.current().directory)
            end = time.monotonic()
            self._call_again = end + 9 * (end - start)
        return self._last

    def look_again(self) -> None:
        """Have it called the next time."""
        self._call_again = 0.0
