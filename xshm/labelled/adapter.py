"""Arrays of containers as xarray indexes them: without a copy, and mapped when looked at."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from xarray.core.indexing import (
    BasicIndexer,
    ExplicitIndexer,
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
    of a variable maps that chunk only, and its mapping ends with the chunk. Such a task is known
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
        if all(isinstance(k, slice) for k in key):
            if isinstance(self._source, ArrayHandle):
                return ContainerArray(self._source[key])
            return self[BasicIndexer(key)]
        return _wrapped(super()._oindex_get(indexer))

    def _vindex_get(self, indexer: VectorizedIndexer) -> ContainerArray:
        return _wrapped(super()._vindex_get(indexer))

    def _portable(self) -> np.ndarray[Any, Any] | Unopened:
        # What another process can make the same array of.
        if isinstance(self._source, MappedArray):
            handle = self._source.handle()
            return np.asarray(self._source) if handle is None else handle
        return self._source

    def handle(self) -> ArrayHandle | None:
        """Where the array lies in a container; None if it lies in none any more."""
        source = self._portable()
        return source if isinstance(source, ArrayHandle) else None

    def generation(self) -> str | None:
        """Of the container that the array lies in; None if it lies in none any more."""
        container = getattr(self._portable(), "container", None)
        return container.generation if isinstance(container, ContainerHandle) else None

    def __reduce__(self) -> tuple[Any, ...]:
        return ContainerArray, (self._portable(),)

    def __deepcopy__(self, memo: Any) -> ContainerArray:
        return ContainerArray(np.array(self.array))

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return ContainerArray, self._portable()


def _wrapped(x: Any) -> ContainerArray:
    return ContainerArray(np.asanyarray(x))
