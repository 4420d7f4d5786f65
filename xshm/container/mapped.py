"""Arrays that lie in containers: they go to another process as a handle, not as their bytes."""

from __future__ import annotations

import contextlib
import mmap
import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.lib.stride_tricks import as_strided

from xshm import _core, shortage
from xshm.codecs.ndarrays import Layout
from xshm.container import unnamed
from xshm.container.handle import ContainerHandle
from xshm.errors import FormatError
from xshm.process import max_map_count
from xshm.whereabouts import bytes_spanned


@dataclass(frozen=True, slots=True)
class ArrayHandle:
    """Where an array lies in a container: what travels in place of its bytes.

    Attributes
    ----------
    container : ContainerHandle
    offset : int
        Of its first element, in bytes from the start of the file.
    shape, strides : tuple of int
        Strides in bytes.
    dtype : dtype
    """

    container: ContainerHandle
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, container: ContainerHandle, layout: Layout, offsets: Sequence[int]) -> Self:
        """Where an array of a container lies.

        Parameters
        ----------
        container : ContainerHandle
        layout : Layout
        offsets : sequence of int
            Of the buffers, in the file.
        """
        start = 0 if layout.buffer is None else offsets[layout.buffer]
        return cls(container, start + layout.offset, layout.shape, layout.strides, layout.dtype)

    def __getitem__(self, key: Any) -> ArrayHandle:
        """A part of it, by basic indexing; nothing is opened."""
        # NumPy does the arithmetic, on an array that is never looked at.
        whole = as_strided(np.empty(1, self.dtype), self.shape, self.strides)
        part = whole[key]
        offset = _address(part) - _address(whole)
        return replace(self, offset=self.offset + offset, shape=part.shape, strides=part.strides)

    def __setitem__(self, key: Any, values: Any) -> None:
        """Write to a part of the array, in a container opened to be written to."""
        self[(*key, ...)].open()[...] = values

    def open(self) -> np.ndarray[Any, Any]:
        """Map the array, and nothing else of its container."""
        if self.dtype.hasobject or self.dtype.kind == "T":  # invariant 8: these are pointers
            raise FormatError(f"expected a dtype of plain bytes, found {self.dtype}")
        low, high = self._span()
        if low == high:
            return np.empty(self.shape, self.dtype)
        file = self.container.open_file()
        try:
            return self._map(file, low, high)
        finally:
            os.close(file)

    def _span(self) -> tuple[int, int]:
        # Where its lowest byte is, and where its highest ends, from its first element.
        if 0 in self.shape or self.dtype.itemsize == 0:
            return 0, 0
        ways = [(n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True)]
        return sum(w for w in ways if w < 0), sum(w for w in ways if w > 0) + self.dtype.itemsize

    def _map(self, file: int, low: int, high: int) -> np.ndarray[Any, Any]:
        # A process may have so many mappings, and no more: then the bytes are read instead.
        if _core.windows() >= max_map_count() // 4 and not self.container.writable:
            own = _read(file, self.offset + low, high - low)
            return np.ndarray(self.shape, self.dtype, own, -low, self.strides)
        window = MappedArray.map(self.container, file, self.offset + low, high - low)
        return window.part(-low, self.shape, self.strides, self.dtype)


def _read(file: int, offset: int, nbytes: int) -> np.ndarray[Any, Any]:
    own = np.empty(nbytes, np.uint8)
    left = own.data
    while left:
        count = os.preadv(file, [left], offset)
        if count == 0:
            raise FormatError(f"expected {len(left)} more bytes at {offset}, found the file's end")
        left, offset = left[count:], offset + count
    return own


def has_repeats(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether elements of an array share their bytes, as in ``np.broadcast_to``."""
    return any(n > 1 and stride == 0 for n, stride in zip(shape, strides, strict=True))


def _address(x: np.ndarray[Any, Any]) -> int:
    return x.__array_interface__["data"][0]  # type: ignore[no-any-return]


class MappedArray(np.ndarray[Any, Any]):
    """An array that lies in a container, or a view of a part of it.

    It is an ndarray in every respect but one: pickled, it is a handle of a few hundred bytes,
    as long as its bytes are still those of the container. New arrays that are computed from it
    are ordinary ones.

    Notes
    -----
    Invariant 4, "a lease that has been written to is never handed on as the original", holds
    here too: an array whose pages this process has written to is pickled with its bytes.
    """

    _xshm_plain = True  # to be stored as if it were an ndarray itself
    _container: ContainerHandle | None = None
    _window: np.ndarray[Any, Any] | None = None  # all bytes of the mapping that this lies in
    _window_offset: int = 0  # of the window, in the file

    @classmethod
    @shortage.told
    def map(cls, container: ContainerHandle, file: int, offset: int, nbytes: int) -> Self:
        """Map bytes of a container's open file, as a one-dimensional array of uint8."""
        mapping = memoryview(_core.map_window(file, offset, nbytes, container.writable))
        window = np.frombuffer(mapping, np.uint8)
        self: Self = window.view(cls)
        self._container, self._window, self._window_offset = container, window, offset
        return self

    def part(
        self, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype[Any]
    ) -> np.ndarray[Any, Any]:
        """A view of these bytes as an array; it was checked that it lies in them."""
        array = np.ndarray(shape, dtype, self._window, offset, strides).view(type(self))
        # Elements that share bytes are not to be written to one by one.
        if dtype.itemsize and has_repeats(shape, strides):
            array.flags.writeable = False
        array._container, array._window = self._container, self._window
        array._window_offset = self._window_offset
        return array

    def at_end(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call a function when nobody looks at the mapping any more, unless the process ends."""
        weakref.finalize(self._window, function, *arguments).atexit = False

    def __array_finalize__(self, origin: object) -> None:
        # A copy must not keep the mapping. (One made by fancy indexing has a base, another copy.)
        if isinstance(origin, MappedArray) and lies_in_container(self):
            self._container, self._window = origin._container, origin._window
            self._window_offset = origin._window_offset

    def __array_wrap__(
        self, array: Any, context: Any = None, return_scalar: bool = False, /
    ) -> Any:
        if array is self:  # it was the output itself
            return self
        # Other results of computations lie in memory of their own.
        array = array.view(np.ndarray)
        return array[()] if return_scalar else array

    def handle(self) -> ArrayHandle | None:
        """What another process needs to see the same bytes; None if they are not the same."""
        if self._container is None or self._window is None or self.nbytes == 0:
            return None
        if not self._container.writable and _core.was_written(bytes_spanned(self)):
            return None
        first = _address(self)
        return ArrayHandle(
            unnamed.own(self._container),
            self._window_offset + first - _address(self._window),
            self.shape,
            self.strides,
            self.dtype,
        )

    def portable_handle(self) -> ArrayHandle | None:
        """What is pickled in place of the bytes; None if the bytes themselves have to be.

        Those of a container that has no name any more can be had from here only.
        """
        handle = self.handle()
        if handle is None or self.is_small() or not handle.container.can_be_opened():
            return None
        return handle

    def is_small(self) -> bool:
        """Whether its bytes are hardly more than a handle, and cost the receiver no mapping."""
        is_shared = self._container is not None and self._container.writable
        return self.nbytes < mmap.PAGESIZE and not is_shared

    def __reduce_ex__(self, protocol: Any) -> Any:
        handle = self.portable_handle()
        if handle is None:
            return self.view(np.ndarray).__reduce_ex__(protocol)
        if unnamed.is_unnamed(handle.container):
            return _receive, (handle, unnamed.send(handle.container))
        return ArrayHandle.open, (handle,)

    def __reduce__(self) -> Any:
        return self.__reduce_ex__(2)


def _receive(handle: ArrayHandle, message: str) -> np.ndarray[Any, Any]:
    container = unnamed.receive(message, handle.container)
    with contextlib.ExitStack() as undo:
        undo.callback(unnamed.drop, container)
        array = replace(handle, container=container).open()
        assert isinstance(array, MappedArray)  # it has elements, and others write to it
        array.at_end(unnamed.drop, container)
        undo.pop_all()
    return array


def lies_in_container(x: object) -> bool:
    """Whether it is an array whose bytes are mapped from a container, written to since or not."""
    owner: Any = x
    while isinstance(owner, np.ndarray):
        owner = owner.base
    return isinstance(owner, memoryview) and isinstance(owner.obj, _core.Window)
