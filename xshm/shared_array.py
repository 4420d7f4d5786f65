"""Arrays that several processes write to and read at once."""

from __future__ import annotations

import contextlib
import datetime
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from xshm.array_layout import Shape, check, new_layout
from xshm.array_proxy import ArrayProxy, Scalar_co
from xshm.codecs import arrays, ndarrays
from xshm.codecs.buffers import Buffers
from xshm.codecs.specs import Spec, malformed
from xshm.container import draft as drafts
from xshm.container import unnamed
from xshm.container.container import Container, opened
from xshm.container.draft import Draft
from xshm.container.mapped import ArrayHandle, MappedArray
from xshm.errors import (
    ClosedError,
    ContainerNotFoundError,
    FormatError,
    LayoutError,
    UnsupportedError,
)
from xshm.labelled.from_container import reading
from xshm.lock import Lock
from xshm.managers import freed_with
from xshm.shared_dataset import SharedDataset

if TYPE_CHECKING:
    from multiprocessing.managers import SharedMemoryManager

ScalarT = TypeVar("ScalarT", bound=np.generic)


class SharedArray(ArrayProxy[Scalar_co]):
    """An array in shared memory: what one process writes, all see at once.

    It is used like an ndarray. Passed to another process (as an argument, in a queue, as the
    result of a task) it is the same array there: only a handle of some hundred bytes travels.

    ``SharedArray(name)`` attaches to the array of that name; dtype, shape and memory order are
    stored with it. New ones are made by :meth:`from_array`, :meth:`from_shape`, :meth:`empty`,
    :meth:`zeros` and :meth:`full`.

    Parameters
    ----------
    name : str

    Raises
    ------
    ContainerNotFoundError
        There is none of that name.
    ContainerNameError
    UnsupportedError
        What has that name is no plain array: a Dataset, for example.
    FormatError
        What has that name is no container, or damaged.

    Notes
    -----
    One with a name lives until :meth:`unlink`, as anything that is published: ``xshm ls`` shows
    it. One without lives for as long as any process has it open, or is being sent it.

    As the context manager of a block it is closed at the block's end; and the name is removed
    if it was made by this object.

    Nobody waits for anybody: whoever changes what others change too, takes the :attr:`lock`.

    A Dataset or DataArray over one stays shared, also when it is passed to another process.

    Examples
    --------
    >>> import numpy as np, xshm
    >>> with xshm.SharedArray.from_array(np.arange(3.0), "example") as a:
    ...     b = xshm.SharedArray("example")
    ...     b += 1
    ...     a.sum().item()
    6.0
    """

    __slots__ = ("__weakref__", "_lost", "_maker", "_place")

    _place: ArrayHandle
    _lost: ContainerNotFoundError  # if it was gone before this object could be unpickled
    _maker: int | None  # the process that made it by this object; a child of that is not

    def __init__(self, name: str) -> None:
        if isinstance(name, np.ndarray | ArrayProxy):
            raise UnsupportedError(
                "expected the name of a shared array, found an array: SharedArray.from_array(x) "
                "makes one of it"
            )
        with opened(name, "r+") as (container, file):
            self._map(_place_of(container), file)

    @staticmethod
    def _at(place: ArrayHandle) -> SharedArray[Any]:
        self = SharedArray.__new__(SharedArray)
        with contextlib.ExitStack() as undo:
            undo.callback(unnamed.drop, place.container)
            file = place.container.open_file()
            try:
                mapped = self._map(place, file)
            finally:
                os.close(file)
            undo.pop_all()
        if unnamed.is_unnamed(place.container):
            mapped.at_end(unnamed.drop, place.container)
        return self

    def _map(self, place: ArrayHandle, file: int) -> MappedArray:
        # All of the file, since an array may have no bytes; what is not looked at costs nothing.
        whole = MappedArray.map(place.container, file, 0, os.fstat(file).st_size)
        self._array = whole.part(place.offset, place.shape, place.strides, place.dtype)
        self._place, self._maker = place, None
        return whole

    # ---- made anew ----

    @overload
    @staticmethod
    def from_array(
        x: NDArray[ScalarT] | ArrayProxy[ScalarT],
        name: str | None = None,
        *,
        manager: SharedMemoryManager | None = None,
    ) -> SharedArray[ScalarT]: ...
    @overload
    @staticmethod
    def from_array(
        x: ArrayLike, name: str | None = None, *, manager: SharedMemoryManager | None = None
    ) -> SharedArray[Any]: ...
    @staticmethod
    def from_array(
        x: Any, name: str | None = None, *, manager: SharedMemoryManager | None = None
    ) -> SharedArray[Any]:
        """Copy an array into shared memory.

        Parameters
        ----------
        x : array_like
            Of any dtype of fixed size, any shape and strides. C and Fortran order are kept.
        name : str, optional
            By which any process of this user can attach to it.
        manager : SharedMemoryManager, optional
            Frees it when it is shut down.

        Raises
        ------
        UnsupportedError
            It holds Python objects, or strings without a fixed size.
        ContainerExistsError
            The name exists.
        ContainerNameError
        NoRoomError
            The directory has not that much room. Nothing was left behind.
        LimitError
            The process can open no other file, or map no more memory.
        """
        if isinstance(x, np.ma.MaskedArray):
            raise UnsupportedError(
                "expected an array without a mask, found a MaskedArray: share x.data and x.mask "
                "each by itself, or x.filled()"
            )
        x = np.asarray(x)
        check(x.shape, x.dtype)
        buffers = Buffers()
        spec = ndarrays.encode(x, buffers, "the array", in_full=True)
        return _make(spec, buffers, name, manager)

    @overload
    @staticmethod
    def from_shape(
        shape: Shape,
        dtype: type[np.float64] = ...,
        name: str | None = None,
        *,
        manager: SharedMemoryManager | None = None,
    ) -> SharedArray[np.float64]: ...
    @overload
    @staticmethod
    def from_shape(
        shape: Shape,
        dtype: type[ScalarT] | np.dtype[ScalarT],
        name: str | None = None,
        *,
        manager: SharedMemoryManager | None = None,
    ) -> SharedArray[ScalarT]: ...
    @overload
    @staticmethod
    def from_shape(
        shape: Shape,
        dtype: DTypeLike,
        name: str | None = None,
        *,
        manager: SharedMemoryManager | None = None,
    ) -> SharedArray[Any]: ...
    @staticmethod
    def from_shape(
        shape: Shape,
        dtype: Any = np.float64,
        name: str | None = None,
        *,
        manager: SharedMemoryManager | None = None,
    ) -> SharedArray[Any]:
        """Make an array of zeros, in C order.

        Parameters
        ----------
        shape : int or iterable of int
        dtype : dtype_like, optional
        name, manager
            As in :meth:`from_array`, also for the errors.

        Raises
        ------
        LayoutError
            No array can have that shape; or the dtype has no size, as ``"U"``.
        """
        shape, dtype = new_layout(shape, dtype)
        buffers = Buffers()
        return _make(ndarrays.reserve(shape, dtype, buffers), buffers, name, manager)

    # New pages of a tmpfs are zero: nothing is gained by leaving them as they are.
    empty = zeros = from_shape

    @overload
    @staticmethod
    def full(
        shape: Shape,
        fill_value: Any,
        dtype: type[ScalarT] | np.dtype[ScalarT],
        name: str | None = None,
    ) -> SharedArray[ScalarT]: ...
    @overload
    @staticmethod
    def full(
        shape: Shape, fill_value: Any, dtype: DTypeLike | None = None, name: str | None = None
    ) -> SharedArray[Any]: ...
    @staticmethod
    def full(
        shape: Shape, fill_value: Any, dtype: Any = None, name: str | None = None
    ) -> SharedArray[Any]:
        """Make an array of one value, in C order.

        Parameters
        ----------
        shape : int or iterable of int
        fill_value : scalar or array_like
        dtype : dtype_like, optional
            That of the value, if not given.
        name : str, optional
            As in :meth:`from_shape`, also for the errors.
        """
        value = np.asarray(fill_value, dtype)
        shape, _ = new_layout(shape, value.dtype)
        return SharedArray.from_array(np.broadcast_to(value, shape), name)

    # ---- its life ----

    @property
    def name(self) -> str | None:
        """By which any process of this user can attach to it; None if it has none."""
        container = self._place.container
        return None if unnamed.is_unnamed(container) else container.name

    @property
    def lock(self) -> Lock:
        """A lock for those who write to it, which passes to other processes with it."""
        _ = self._array  # it is open
        return Lock(f"container-{self._place.container.generation}")

    def close(self) -> None:
        """Give up this object; ndarrays that were got from it stay usable.

        The memory is freed when no process has it open, and it has no name.
        """
        if self._is_open():
            del self._array

    def unlink(self) -> None:
        """Remove the name. Who has the array open keeps it; the last one frees the memory.

        One without a name needs nothing of this, and is left alone.

        Raises
        ------
        ContainerNotFoundError
            It was removed or replaced already.
        """
        if self.name is not None:
            SharedDataset.of(self._place.container).unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            if self._maker == os.getpid():
                # Somebody was faster; or damaged it, and then it is not ours to remove.
                with contextlib.suppress(ContainerNotFoundError, FormatError):
                    self.unlink()
        finally:
            self.close()

    def _is_open(self) -> bool:
        try:
            _ = self._array
        except (ClosedError, ContainerNotFoundError):
            return False
        return True

    def __getattr__(self, name: str) -> Any:
        if name == "_array":  # its slot is empty
            with contextlib.suppress(AttributeError):
                raise self._lost
            raise ClosedError(
                f"expected a SharedArray that is open, found that {self._title} is closed: close "
                "it later, or attach to it again if it has a name"
            )
        return super().__getattr__(name)

    # ---- others like it ----

    @overload
    def view(self, dtype: type[ScalarT] | np.dtype[ScalarT]) -> SharedArray[ScalarT]: ...
    @overload
    def view(self, dtype: DTypeLike | None = None) -> SharedArray[Any]: ...
    def view(self, dtype: Any = None) -> SharedArray[Any]:
        """The same bytes, as elements of another dtype: writes to one are seen in the other.

        Raises
        ------
        LayoutError
            The elements do not fit the shape, as with :meth:`numpy.ndarray.view`.
        UnsupportedError
            The dtype has no fixed size.
        """
        dtype = self.dtype if dtype is None else np.dtype(dtype)
        check((), dtype)
        try:
            array = self._array.view(dtype)
        except ValueError as error:
            raise LayoutError(
                f"expected a dtype that fits {self.dtype} of shape {self.shape}, found {dtype}: "
                f"{error}"
            ) from error
        other = SharedArray.__new__(SharedArray)
        other._array, other._maker = array, None
        other._place = replace(
            self._place, shape=array.shape, strides=array.strides, dtype=array.dtype
        )
        return other

    def __copy__(self) -> SharedArray[Scalar_co]:
        """An array of its own, without a name."""
        return SharedArray.from_array(self._array)

    def __deepcopy__(self, memo: object) -> SharedArray[Scalar_co]:
        return self.__copy__()

    def __reduce__(self) -> tuple[Any, ...]:
        _ = self._array  # it is open
        container = self._place.container
        if unnamed.is_unnamed(container):
            place = replace(self._place, container=unnamed.own(container))
            return _receive, (place, unnamed.send(container))
        os.close(container.open_file())  # or an error here, rather than where it is unpickled
        return _receive, (self._place, None)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return SharedArray, self._place.container.version()

    def __repr__(self) -> str:
        if not self._is_open():
            return f"<{self._title} ({'gone' if hasattr(self, '_lost') else 'closed'})>"
        return f"<{self._title} shape={self.shape} dtype={self.dtype}>"

    def __str__(self) -> str:
        return str(self._array) if self._is_open() else repr(self)

    @property
    def _title(self) -> str:
        return "xshm.SharedArray" if self.name is None else f"xshm.SharedArray {self.name!r}"


def _place_of(container: Container) -> ArrayHandle:
    """Where the array of a container that was opened by its name lies, checked."""
    with reading("the array"):
        kind = container.header.get("kind")
        layout = None
        if kind == "ndarray":
            spec = container.header["array"]
            kind, layout = f"an array of kind {spec['kind']!r}", arrays.layout(spec)
        elif kind not in ("dataset", "dataarray", "datatree"):
            raise malformed("a container of a known kind", kind)
        else:
            kind = f"a {kind}"
    if layout is None:
        name = container.handle.name
        raise UnsupportedError(
            f"expected {name!r} to be an array of a dtype of fixed size, found {kind}: open it "
            f"with xshm.open({name!r})"
        )
    dtype, shape, strides, number, offset = layout
    nbytes = 0
    if number is not None:
        offset += container.offset_of(number)
        nbytes = container.sizes()[number]
    ndarrays.check(layout, nbytes)
    return ArrayHandle(container.handle, offset, shape, strides, dtype)


def _receive(place: ArrayHandle, message: str | None) -> SharedArray[Any]:
    try:
        if message is not None:
            place = replace(place, container=unnamed.receive(message, place.container))
        return SharedArray._at(place)
    except ContainerNotFoundError as error:
        # Raised when it is used: a worker of a multiprocessing.Pool that cannot unpickle its task
        # ends without a word, and whoever waits for the result waits for ever.
        lost: SharedArray[Any] = SharedArray.__new__(SharedArray)
        lost._place, lost._maker, lost._lost = place, None, error
        return lost


def _make(
    spec: Spec, buffers: Buffers, name: str | None, manager: SharedMemoryManager | None
) -> SharedArray[Any]:
    left_later = None if manager is None else freed_with(manager)
    if name is not None:
        drafts.check_is_free(name)
    created = datetime.datetime.now(datetime.UTC).isoformat()
    draft = Draft({"created": created, "kind": "ndarray", "array": spec, "groups": []}, buffers)
    try:
        if name is None:
            container = unnamed.keep(draft.handle)
        else:
            container = drafts.publish(draft.handle, name, replace=False)._replace(writable=True)
    finally:
        draft.discard()
    made = SharedArray._at(ArrayHandle.of(container, ndarrays.layout(spec), draft.offsets))
    made._maker = os.getpid()
    if left_later is not None:
        left_later.push(made)
    return made
