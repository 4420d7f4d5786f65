"""Arrays in messages: pickled as handles, which are read once.

A message goes to a queue, a pipe, or a task of a pool. Nobody tells whether it will be read,
or when: so its token stays as long as its sender lives, and for ``xshm.grace`` after that.
"""

from __future__ import annotations

import errno
from typing import Any

import numpy as np

from xshm import allocation, config, process
from xshm.directory import MESSAGE_NAME
from xshm.errors import HandleError, LostHandleError
from xshm.handle import Handle
from xshm.handover import copy, counters, receive, share
from xshm.views import span_to_send
from xshm.whereabouts import bytes_spanned

Array = np.ndarray[Any, Any]


def reduce_array(x: Array) -> Any:
    """What is pickled of an array: a handle if it is large, else its bytes as ever.

    Notes
    -----
    What arrives is writable, and nobody else sees what is written to it, as with any pickle.
    """
    if x.nbytes < config.get_bytes("threshold") or _has_pointers(x.dtype):
        return x.__reduce__()
    try:
        me = process.current()
    except OSError:  # it is full, or cannot be used: its bytes can be sent all the same
        counters["refused"] += 1
        return x.__reduce__()
    span = bytes_spanned(x) if _is_contiguous(x) else span_to_send(x)
    if span is None:
        with allocation.allocator():  # in a segment, so that it is not copied once more
            x = x.copy()
        span = bytes_spanned(x)
    handle = share(span, me.new_message()) or copy(span, me.new_message(), patient=True)
    if handle is None:
        return x.__reduce__()
    return _take, (handle, me.directory.domain, x.shape, x.dtype, x.strides)


def reduce_masked_array(x: np.ma.MaskedArray[Any, Any]) -> Any:
    """What is pickled of a masked array: by itself it would be its bytes, whatever its size."""
    if x.nbytes < config.get_bytes("threshold") or x.baseclass is not np.ndarray:
        return x.__reduce__()
    mask = None if x.mask is np.ma.nomask else x.mask
    return _mask, (x.data, mask, x.fill_value, x.hardmask)


def _mask(data: Array, mask: Array | None, fill_value: Any, hard: bool) -> Any:
    shown = np.ma.nomask if mask is None else mask
    return np.ma.MaskedArray(data, shown, fill_value=fill_value, hard_mask=hard)


def _take(
    handle: Handle,
    domain: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    strides: tuple[int, ...],
) -> Array:
    here = process.current().directory
    if here.domain != domain:
        raise LostHandleError(
            errno.ENOENT,
            f"expected an array from the directory of this process, {here.path}, found one from "
            "another: both processes need the same xshm.directory (the environment variable "
            "DASK_XSHM__DIRECTORY reaches every child)",
        )
    handle = Handle.parse(handle, MESSAGE_NAME)
    if _has_pointers(dtype):
        raise HandleError(errno.EBADMSG, f"expected a dtype of plain bytes, found {dtype}")
    lease = receive(handle)
    return np.ndarray(shape, dtype, lease, strides=strides)


def _is_contiguous(x: Array) -> bool:
    return x.flags.c_contiguous or x.flags.f_contiguous


def _has_pointers(dtype: np.dtype[Any]) -> bool:
    return dtype.hasobject or dtype.kind == "T"  # strings of any length lie on a heap
