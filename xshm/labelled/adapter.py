"""Arrays of containers as xarray indexes them: without a copy, and mapped when looked at."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from xarray.core.indexing import (
    BasicIndexer,
    CopyOnWriteArray,
    ExplicitIndexer,
    MemoryCachedArray,
    NumpyIndexingAdapter,
    OuterIndexer,
    VectorizedIndexer,
)

from xshm.container.handle import ContainerHandle
from xshm.container.mapped import ArrayHandle, MappedArray


class Unopened(Protocol):
    """Says where an array is; :class:`~xshm.container.mapped.ArrayHandle` is one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def open(self) -> np.ndarray[Any, Any]:
        """The array itself."""
        ...


class ContainerArray(NumpyIndexingAdapter):
    """An array of a container, under an xarray Variable.

    Parameters
    ----------
    source : MappedArray, ndarray or Unopened
        The array; or what gives it when it is first looked at.

    Notes
    -----
    Indexing and transposing give adapters again, of views: nothing is copied, and what is
    derived from a variable is pickled as a handle like the variable itself.

    The resident memory of a process counts the pages that it has looked at for as long as they
    are mapped, and dask kills workers that have too much of it. So a task that takes one chunk
    of a variable maps that chunk only, and its mapping ends with the chunk: what the task writes
    to it reaches nobody, as if it had read the chunk from a file. Such a task is known
    by its key: dask graphs index with ``oindex`` and slices, where xarray itself would use a
    basic key for slices.
    """

    __slots__ = ("_source",)

    def __init__(self, source: np.ndarray[Any, Any] | Unopened) -> None:
        self._source = source

    @property
    def array(self) -> np.ndarray[Any, Any]:  # type: ignore[override]  # it is only read there
        """The array, opened."""
        if not isinstance(self._source, np.ndarray):
            self._source = self._source.open()
        return self._source

    @property
    def shape(self) -> tuple[int, ...]:
        return self._source.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._source.dtype

    def get_duck_array(self) -> np.ndarray[Any, Any]:
        return self.array

    def transpose(self, order: Any) -> ContainerArray:
        return ContainerArray(self.array.transpose(order))

    def __getitem__(self, indexer: ExplicitIndexer) -> ContainerArray:
        return _wrapped(super().__getitem__(indexer))

    def _oindex_get(self, indexer: OuterIndexer) -> ContainerArray:
        key = indexer.tuple
        if not all(isinstance(k, slice) for k in key):
            return _wrapped(super()._oindex_get(indexer))
        source = self._source
        handle = source.portable_handle() if isinstance(source, MappedArray) else self.handle()
        if handle is None:
            return ContainerArray(np.array(self[BasicIndexer(key)].array))
        container = handle.container._replace(writable=False)
        return ContainerArray(replace(handle, container=container)[key])

    def _vindex_get(self, indexer: VectorizedIndexer) -> ContainerArray:
        return _wrapped(super()._vindex_get(indexer))

    def handle(self) -> ArrayHandle | None:
        """Where the array lies in a container; None if it lies in none, or not any more."""
        place = self._place()
        return place if isinstance(place, ArrayHandle) else None

    def container(self) -> ContainerHandle | None:
        """The container that the array lies in, as it is there; None if it lies in none."""
        container = getattr(self._place(), "container", None)
        return container if isinstance(container, ContainerHandle) else None

    def _place(self) -> np.ndarray[Any, Any] | Unopened | None:
        source = self._source
        return source.handle() if isinstance(source, MappedArray) else source

    def __reduce__(self) -> tuple[Any, ...]:
        # Also without a name, when it leads nowhere: a graph is not to hold gigabytes of bytes.
        source = self._source
        if isinstance(source, MappedArray):
            handle = source.handle()
            by_bytes = handle is None or source.is_small()
            return ContainerArray, (np.asarray(source) if by_bytes else handle,)
        return ContainerArray, (source,)

    def __deepcopy__(self, memo: Any) -> ContainerArray:
        return ContainerArray(np.array(self.array))

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        container = self.container()
        if container is None:
            return ContainerArray, np.asarray(self.array)
        return ContainerArray, self._place(), container.version()


def innermost(data: Any) -> Any:
    """What xarray's own wrappers hold."""
    while isinstance(data, CopyOnWriteArray | MemoryCachedArray):
        data = data.array
    return data


def _wrapped(x: Any) -> ContainerArray:
    return ContainerArray(np.asanyarray(x))
