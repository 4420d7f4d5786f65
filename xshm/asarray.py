"""Arrays over memory that other tools share: ``multiprocessing``, ``mmap``, ``ctypes``, buffers."""

from __future__ import annotations

import ctypes
import errno
import math
import mmap
import operator
import os
import sys
from collections.abc import Iterable, Sequence
from multiprocessing.shared_memory import SharedMemory
from multiprocessing.sharedctypes import SynchronizedBase
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeVar, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray

from xshm import shortage
from xshm.errors import ClosedError, LayoutError, SharedMemoryNotFoundError, UnsupportedError

if TYPE_CHECKING:
    from typing_extensions import Buffer

    Memory = Buffer | SharedMemory | SynchronizedBase[Any] | str

Shape = SupportsIndex | Sequence[SupportsIndex]

_Scalar = TypeVar("_Scalar", bound=np.generic)

_CTYPES = (ctypes._SimpleCData, ctypes.Array, ctypes.Structure, ctypes.Union)
_POINTERS = (ctypes._Pointer, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_wchar_p)
_MAX_NDIM = 64  # of NumPy 2
_ALIGNMENT = 8  # multiprocessing gives no more, even where a dtype's is 16; NumPy needs no more


@overload
def asarray(buffer: Memory, dtype: None = None, shape: Shape | None = None) -> NDArray[Any]: ...
@overload
def asarray(
    buffer: Memory,
    dtype: type[_Scalar] | np.dtype[_Scalar],
    shape: Shape | None = None,
) -> NDArray[_Scalar]: ...
@overload
def asarray(buffer: Memory, dtype: DTypeLike, shape: Shape | None = None) -> NDArray[Any]: ...
def asarray(
    buffer: Memory, dtype: DTypeLike | None = None, shape: Shape | None = None
) -> NDArray[Any]:
    """View memory that another tool shares as a NumPy array, without a copy.

    Parameters
    ----------
    buffer : object or str
        A ``multiprocessing`` ``Array``, ``Value``, ``RawArray``, ``RawValue`` or
        ``SharedMemory``, an ``mmap``, a ``ctypes`` array, structure or number, or anything with
        a contiguous buffer (``bytearray``, ``memoryview``, ``array.array``). A text is the name
        of a ``SharedMemory``, and attaches to it.
    dtype : dtype or ctypes type, optional
        By default the buffer's own; of bytes, as in a ``SharedMemory`` or an ``mmap``, ``uint8``.
        Another one reads the same bytes in another way.
    shape : int or tuple of ints, optional
        One length may be -1: as many as the buffer's bytes give. A smaller array lies at the
        beginning of the buffer. By default the buffer's own if the items keep their size, so
        that a ``Value`` gives an array without dimensions; else one dimension, of all the bytes.

    Returns
    -------
    ndarray
        Writes go to the shared memory, whoever else has it sees them, and no lock is taken. It is
        read-only if the buffer is. It keeps the buffer alive: until it and all views of it are
        gone, ``SharedMemory.close()`` and ``mmap.close()`` raise ``BufferError``.

    Raises
    ------
    LayoutError
        The buffer is too small for dtype and shape, is not aligned for the dtype, or is not
        contiguous; or no array can have this dtype or shape.
    UnsupportedError
        There is no buffer, or no dtype for what is in it: Python objects, pointers, bit fields.
    SharedMemoryNotFoundError
        No ``SharedMemory`` has this name.
    LimitError
        The process has no more open files, or mappings.
    ClosedError
        The ``SharedMemory`` or ``mmap`` is closed.

    Examples
    --------
    >>> from multiprocessing.shared_memory import SharedMemory
    >>> import numpy as np, xshm
    >>> memory = SharedMemory(create=True, size=32)
    >>> x = xshm.asarray(memory, np.float64, (2, 2))
    >>> x[:] = 1
    >>> xshm.asarray(memory.name, np.float64).sum()
    np.float64(4.0)
    >>> del x
    >>> memory.close()
    >>> memory.unlink()
    """
    view = _buffer_of(_attach(buffer) if isinstance(buffer, str) else buffer)
    wanted = _own_dtype(view) if dtype is None else _dtype_of(dtype)
    if wanted.hasobject:
        raise UnsupportedError(
            f"expected a dtype whose items are all there is, found {wanted}: its items are "
            "pointers, which mean nothing in another process. Use numbers, text of a fixed length "
            "('U10') or a structured dtype"
        )
    if shape is None:
        shape = (view.shape or ()) if wanted.itemsize == view.itemsize else -1
    lengths = _lengths(shape, wanted, view.nbytes)
    items = np.frombuffer(view, np.uint8)
    if items.ctypes.data % min(wanted.alignment, _ALIGNMENT):
        raise LayoutError(
            f"expected a buffer aligned to {min(wanted.alignment, _ALIGNMENT)} bytes for dtype "
            f"{wanted}, found one at address {items.ctypes.data:#x}: begin elsewhere, or copy it"
        )
    if isinstance(buffer, SharedMemory):
        items = np.asarray(_Held(items, buffer))
    return np.ndarray(lengths, wanted, items)


class _Held:
    """The bytes of a SharedMemory, which is closed when it goes, and cannot be while they are."""

    def __init__(self, items: NDArray[np.uint8], memory: SharedMemory) -> None:
        self.__array_interface__ = items.__array_interface__
        self._items = items
        self._memory = memory

    def __del__(self) -> None:
        del self._items  # before the memory


@shortage.told
def _attach(name: str) -> mmap.mmap:
    # Not by SharedMemory(name): it tells the resource tracker, which removes the memory when
    # this process ends, whoever else uses it. Only from Python 3.13 on can it be told not to.
    path = f"/dev/shm/{name.removeprefix('/')}"
    try:
        if "/" in name[1:]:  # a path would lead anywhere
            raise FileNotFoundError(name)
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, IsADirectoryError, ValueError) as error:  # or no file's name
        raise SharedMemoryNotFoundError(
            errno.ENOENT,
            "expected the name of a SharedMemory, found none of this name: its maker has not made "
            "it yet, or it was unlinked (what xshm made: xshm.SharedArray(name), xshm.open(name))",
            name,
        ) from error
    try:
        if os.fstat(descriptor).st_size == 0:
            raise LayoutError(f"expected bytes in {path}, found none: its maker is not ready yet")
        return mmap.mmap(descriptor, 0)
    finally:
        os.close(descriptor)


def _buffer_of(memory: Buffer | SharedMemory | SynchronizedBase[Any]) -> memoryview:
    owner: Any = memory
    closed = False
    if isinstance(memory, SynchronizedBase):
        owner = memory.get_obj()
    elif isinstance(memory, SharedMemory):
        owner, closed = memory.buf, memory.buf is None
    elif isinstance(memory, mmap.mmap):
        closed = memory.closed
    if closed:
        raise ClosedError("expected shared memory that is open, found it closed: open it again")
    if isinstance(owner, _POINTERS):
        raise UnsupportedError(
            f"expected memory, found a pointer to it ({type(owner).__name__}), which does not tell "
            "how much there is: use numpy.ctypeslib.as_array(pointer, shape)"
        )
    try:
        view = memoryview(owner)
    except (TypeError, ValueError) as error:  # no buffer; a released one, or one of no format
        raise UnsupportedError(
            f"expected shared memory or another buffer, found {type(owner).__name__} ({error}): "
            "xshm.SharedArray.from_array(x) shares arrays and lists; its get() is the ndarray"
        ) from error
    if not view.c_contiguous:
        raise LayoutError(
            f"expected bytes in one piece, found shape {view.shape} with strides {view.strides}: "
            "pass the whole buffer, and take the part from the array"
        )
    return view


def _own_dtype(view: memoryview) -> np.dtype[Any]:
    owner = view.obj
    # A memoryview of a ctypes object may have been cast to another format.
    if isinstance(owner, _CTYPES) and memoryview(owner).format == view.format:
        kind: Any = type(owner)
        while issubclass(kind, ctypes.Array):
            kind = kind._type_  # the view has the lengths
        return _dtype_of(kind)
    try:
        return np.asarray(view).dtype
    except ValueError as error:
        raise UnsupportedError(
            f"expected items for which NumPy has a dtype, found the format {view.format!r}: give "
            "a dtype"
        ) from error


def _dtype_of(kind: Any) -> np.dtype[Any]:
    """A dtype; of a ctypes type the one with its offsets and its size."""
    # NumPy itself lacks wide characters, and errs about inherited fields and unions in structures.
    if kind is ctypes.c_wchar:
        return np.dtype("U1")
    if kind is ctypes.c_char:
        return np.dtype("S1")  # NumPy's is an old kind of its own, "c"
    if isinstance(kind, type) and issubclass(kind, ctypes.Array):
        return np.dtype((_dtype_of(kind._type_), (kind._length_,)))
    if isinstance(kind, type) and issubclass(kind, (ctypes.Structure, ctypes.Union)):
        return _dtype_of_structure(kind)
    try:
        if kind is ctypes.c_void_p:
            raise TypeError("a pointer")  # NumPy takes it for a number
        dtype: np.dtype[Any] = np.dtype(kind)
    except (TypeError, NotImplementedError) as error:
        raise UnsupportedError(
            f"expected a type for which NumPy has a dtype, found {kind!r} ({error}): give a dtype "
            "of the same size, as uint8 for each byte"
        ) from error
    return dtype


def _dtype_of_structure(kind: type[ctypes.Structure | ctypes.Union]) -> np.dtype[Any]:
    fields = [f for base in reversed(kind.__mro__) for f in vars(base).get("_fields_", ())]
    if any(len(field) > 2 for field in fields):
        raise UnsupportedError(
            f"expected fields of whole bytes, found bit fields in {kind.__name__}: give an integer "
            "dtype of the same size, and mask the bits"
        )
    types = dict(fields)  # a name that is inherited may be given again, and hides the other
    dtype: np.dtype[Any] = np.dtype(
        {
            "names": [*types],
            "formats": [_dtype_of(type_) for type_ in types.values()],
            "offsets": [getattr(kind, name).offset for name in types],
            "itemsize": ctypes.sizeof(kind),
        }
    )
    return dtype


def _lengths(shape: Shape, dtype: np.dtype[Any], nbytes: int) -> tuple[int, ...]:
    """The shape, with -1 replaced, once it is known to fit into so many bytes."""
    lengths = [operator.index(n) for n in (shape if isinstance(shape, Iterable) else (shape,))]
    if dtype.itemsize == 0:
        raise LayoutError(f"expected a dtype with a size, found {dtype!r}: give it, as in 'S8'")
    least = math.prod(n for n in lengths if n > 0) * dtype.itemsize
    ndim = len(lengths) + dtype.ndim
    if ndim > _MAX_NDIM or least > sys.maxsize or any(n < -sys.maxsize for n in lengths):
        # Not told as it is: it may be too long to be printed.
        raise LayoutError(
            f"expected a shape that an array can have, of {_MAX_NDIM} dimensions and "
            f"{sys.maxsize} bytes at most, found {ndim} dimensions"
            + (" of more bytes" if ndim <= _MAX_NDIM else "")
        )
    told = f"for shape {tuple(lengths)} and dtype {dtype} of {dtype.itemsize} bytes"
    if min(lengths, default=0) < 0:
        if lengths.count(-1) > 1 or min(lengths) < -1 or 0 in lengths:
            raise LayoutError(
                "expected lengths of 0 or more, and one -1 at most that can be told from the "
                f"others, found {tuple(lengths)}"
            )
        if nbytes % least:
            raise LayoutError(f"expected a multiple of {least} bytes {told}, found {nbytes}")
        lengths[lengths.index(-1)] = nbytes // least
    elif 0 not in lengths and least > nbytes:
        raise LayoutError(f"expected at least {least} bytes {told}, found {nbytes}")
    return tuple(lengths)
