"""What dask keeps of what is over, and how a soak has it forgotten: what still grows is a leak.

All that dask is known to keep for long, or for ever, is named here.  It is not begun with where
that can be set, and else forgotten whenever the cluster is at rest.
"""

from __future__ import annotations

import asyncio
import gc
import linecache
import sys
import traceback
from contextlib import suppress
from types import AsyncGeneratorType, CoroutineType, GeneratorType

from dask.utils import key_split
from distributed import Scheduler
from distributed.core import ConnectionPool
from distributed.scheduler import DEFAULT_EXTENSIONS

#: Memory that is free goes back to the kernel as a whole: CPython's own allocator would keep a
#: mebibyte for each object that is left in it, and each thread might have a heap of its own.
ENVIRONMENT = {"PYTHONMALLOC": "malloc", "MALLOC_ARENA_MAX": "1"}

#: Of dask's settings: it finds out soon that a worker has gone; it gives no task up because others
#: killed its workers, and no nanny because its worker was killed twice; it does not collect figures
#: for an hour, nor graphs in its logs, nor the errors that it logs, with all arrays that their
#: functions had, nor a task of the event loop for each worker that has ended.
SETTINGS = {
    "distributed.comm.timeouts.connect": "5s",
    "distributed.scheduler.allowed-failures": 10,
    "distributed.scheduler.events-cleanup-delay": "1s",
    "distributed.deploy.lost-worker-timeout": "1h",
    "distributed.admin.system-monitor.log-length": 100,
    "distributed.admin.log-length": 0,
    "distributed.admin.low-level-log-length": 0,
    "distributed.diagnostics.computations.max-history": 0,
    "distributed.diagnostics.erred-tasks.max-history": 0,
    "distributed.worker.profile.enabled": False,
    "xshm.grace": "5s",
}

#: Of the scheduler's: not the spans, of which it would keep one for each graph for ever, with all
#: groups of tasks, and each worker some figures.
EXTENSIONS = {name: kind for name, kind in DEFAULT_EXTENSIONS.items() if name != "spans"}


def forget_ended(dask_scheduler: Scheduler) -> None:
    """Clients, workers and tasks that have ended go: dask would know some of them for ever."""
    # Those that were killed while they scattered, with their data.
    for name in [*dask_scheduler.clients.keys() - dask_scheduler.client_comms.keys()]:
        if name != "fire-and-forget":
            dask_scheduler.remove_client(name, stimulus_id="soak")
    # Workers that tasks were to move to or from, and tasks of which none of their kind was ever
    # done; and what these know: their groups, and other tasks.
    stealing = dask_scheduler.extensions["stealing"]
    if not stealing.in_flight:
        stealing.in_flight_tasks.clear()
        stealing.unknown_durations.clear()
    close_idle_connections()


def close_idle_connections() -> None:
    """Close what this process has in its pools: how many there are is a matter of chance."""
    for pool in [*ConnectionPool._instances]:
        pool.collect()
    # asyncio has a timer for each that was opened. It keeps those that were cancelled, with all
    # that was known where they were set, until they are many, and more than half of all.
    loop = asyncio.get_running_loop()
    for _ in range(1000):
        loop.call_later(60, bool).cancel()


def clear_caches() -> None:
    """Names of keys, of which dask caches 100000, and sources of all that was in a traceback."""
    key_split.cache_clear()
    linecache.clearcache()
    # Python's table of interned strings doubles, some minute, by two mebibytes: now, then.
    for number in range(200_000):
        sys.intern(f"soak {number}")


#: What may be suspended, and the name of its frame.
_FRAMES = {CoroutineType: "cr_frame", GeneratorType: "gi_frame", AsyncGeneratorType: "ag_frame"}


def forget_errors() -> None:
    """Arrays of functions that failed go: dask keeps some errors, such as those of shuffles."""
    gc.collect()
    things = gc.get_objects()
    # To clear the frame of one of these would end it, and with it a connection, say.
    suspended = {getattr(thing, _FRAMES[type(thing)]) for thing in things if type(thing) in _FRAMES}
    for thing in things:
        # Not isinstance, which would ask proxies for what they stand for.
        if issubclass(type(thing), BaseException):
            for frame, _ in traceback.walk_tb(thing.__traceback__):
                if frame not in suspended:
                    with suppress(RuntimeError):  # it is being run
                        frame.clear()
    del things
    gc.collect()
