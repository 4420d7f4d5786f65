"""joblib: large arrays go to its workers, and their results come back, as handles.

:mod:`xshm.multiprocessing` switches it on where joblib (1.5 or later) is installed.

Notes
-----
joblib has backends registered by name. Its own two that start processes, "loky" and
"multiprocessing", are registered again with one thing changed: what they submit pickles
itself, and what it returns does so too. Workers need not know, nor start anew.

Arrays that lie in a ``numpy.memmap`` go as joblib sends them, by the name of the file, so that
writes reach the file. joblib has the reducer for that in a module of its own which it does
not document, ``joblib.pool``, as is the pickler of its "multiprocessing" backend.
"""

from __future__ import annotations

import io
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import joblib.parallel  # type: ignore[import-untyped]
import numpy as np
from joblib.externals.loky.backend.reduction import (  # type: ignore[import-untyped]
    get_loky_pickler,
)
from joblib.pool import (  # type: ignore[import-untyped]
    CustomizablePickler,
    get_memmapping_reducers,
)

from xshm import allocation, config, process
from xshm.handle import Handle
from xshm.message import reduce_array, reduce_masked_array
from xshm.views import can_be_handed_over, span_to_send
from xshm.whereabouts import bytes_spanned

Array = np.ndarray[Any, Any]
Reducer = Callable[[Array], Any]

_, _MEMMAP_REDUCERS = get_memmapping_reducers(max_nbytes=None)


def enable() -> None:
    """Send large arrays as handles, from the next ``joblib.Parallel`` that is made."""
    _register(LokyBackend, MultiprocessingBackend)


def disable() -> None:
    """Send arrays as joblib does by itself, from the next ``joblib.Parallel`` that is made."""
    _register(joblib.parallel.LokyBackend, joblib.parallel.MultiprocessingBackend)


def _register(loky: Any, multiprocessing: Any) -> None:
    if joblib.parallel.mp is not None:  # it is if JOBLIB_MULTIPROCESSING=0: threads only
        joblib.register_parallel_backend("loky", loky)
        joblib.register_parallel_backend("multiprocessing", multiprocessing)


def _get_pool_pickler() -> Any:
    return CustomizablePickler


class _ByHandle:
    """A change to a backend of joblib's that starts processes."""

    get_pickler: Callable[[], Any]

    def configure(self, n_jobs: int = 1, parallel: Any = None, **options: Any) -> Any:
        # These ask for arrays in which workers see what others write.
        self._is_off = options.get("mmap_mode") in ("r+", "w+")
        return super().configure(n_jobs, parallel, **options)  # type: ignore[misc]

    def start_call(self) -> None:
        self._call = _Call()
        super().start_call()  # type: ignore[misc]

    def submit(self, function: Any, callback: Any = None) -> Any:
        if not self._is_off:
            function = _Job(function, self.get_pickler, self._call.reduce)
        return super().submit(function, callback)  # type: ignore[misc]

    def stop_call(self) -> None:
        super().stop_call()  # type: ignore[misc]
        self._call.end()


class LokyBackend(_ByHandle, joblib.parallel.LokyBackend):  # type: ignore[misc]
    """joblib's own, with handles."""

    get_pickler = staticmethod(get_loky_pickler)


class MultiprocessingBackend(
    _ByHandle,
    joblib.parallel.MultiprocessingBackend,  # type: ignore[misc]
):
    """joblib's own, with handles."""

    get_pickler = staticmethod(_get_pool_pickler)


class _Call:
    """What one call of a ``Parallel`` has sent."""

    def __init__(self) -> None:
        self._copies: dict[int, tuple[weakref.ref[Array], Array]] = {}
        self._tokens: list[str] = []
        self._is_over = False

    def reduce(self, x: Array) -> Any:
        if x.nbytes >= config.get_bytes("threshold") and not x.dtype.hasobject:
            x = self._copy(x) if _has_to_be_copied(x) else x
        reduced = reduce_array(x)
        if isinstance(reduced[1][0], Handle):
            self._tokens.append(reduced[1][0].token)
            if self._is_over:  # the thread that sends jobs may be late
                self.end()
        return reduced

    def _copy(self, x: Array) -> Array:
        """A copy that later jobs of the same call are sent too: often all get the same array."""
        key = id(x)
        if key not in self._copies:
            with allocation.allocator():
                copy = x.copy(order="K")
            self._copies[key] = weakref.ref(x, lambda _: self._copies.pop(key, None)), copy
        return self._copies[key][1]

    def end(self) -> None:
        """Nobody will read what has not been read: another job has failed."""
        self._is_over = True
        self._copies.clear()
        for token in tuple(self._tokens):
            process.current().withdraw(token)


def _has_to_be_copied(x: Array) -> bool:
    contiguous = x.flags.c_contiguous or x.flags.f_contiguous
    return not can_be_handed_over(bytes_spanned(x)) if contiguous else span_to_send(x) is None


class _Job:
    """Calls for a worker, which pickle themselves; and so does what they return."""

    def __init__(
        self, function: Any, get_pickler: Callable[[], Any], reduce: Reducer = reduce_array
    ) -> None:
        self._function = function
        self._get_pickler = get_pickler
        self._reduce = reduce

    def __call__(self) -> Any:
        with allocation.allocator():
            return _Result(self._function(), self._get_pickler)

    def __reduce__(self) -> Any:
        function = _dumps(self._function, self._get_pickler, self._reduce)
        return _load_job, (function, self._get_pickler)


def _load_job(function: bytes, get_pickler: Callable[[], Any]) -> _Job:
    return _Job(pickle.loads(function), get_pickler)


class _Result:
    """What a job returned; it arrives as it was."""

    def __init__(self, value: Any, get_pickler: Callable[[], Any]) -> None:
        self._value = value
        self._get_pickler = get_pickler

    def __reduce__(self) -> Any:
        return pickle.loads, (_dumps(self._value, self._get_pickler, reduce_array),)


def _dumps(value: Any, get_pickler: Callable[[], Any], reduce: Reducer) -> bytes:
    def reduce_unless_mapped(x: Array) -> Any:
        return _MEMMAP_REDUCERS[np.memmap](x) if _lies_in_memmap(x) else reduce(x)

    buffer = io.BytesIO()
    reducers = {
        **_MEMMAP_REDUCERS,
        np.ndarray: reduce_unless_mapped,
        np.ma.MaskedArray: reduce_masked_array,
    }
    get_pickler()(buffer, reducers).dump(value)
    return buffer.getvalue()


def _lies_in_memmap(x: Any) -> bool:
    while x is not None and not isinstance(x, np.memmap):
        x = getattr(x, "base", None)
    return x is not None
