"""How NumPy arrays become frames: strided views in segments as they are, others as ever.

A rechunk sends slices of chunks. distributed copies each to make it contiguous. Where the
receiver shares the directory there is no need: the frame is all that the slice spans, sent as
a handle, and the receiver makes the same view of it. distributed's own deserializer does
that already, given the strides.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from distributed.protocol import Serialize, dask_serialize
from distributed.protocol.numpy import serialize_numpy_ndarray

from xshm import _core, config
from xshm.dask.domain import same_domain
from xshm.whereabouts import bytes_spanned

Context = dict[str, Any]
Serialized = tuple[dict[str, Any], list[memoryview]]


@dask_serialize.register(np.ndarray)
def serialize_ndarray(x: np.ndarray[Any, Any], context: Context | None = None) -> Serialized:
    """Frames of an array, without a copy if it is a view worth sending as it is."""
    if context is not None and _shares_domain(context) and _is_plain_view(x):
        span = bytes_spanned(x)
        if _is_worth(x, span) and _can_be_handed_over(span):
            header = {
                "dtype": (0, x.dtype.str),
                "shape": x.shape,
                "strides": x.strides,
                "writeable": [True],  # as the copy that distributed makes of a slice
            }
            return header, [span]
    serialized: Serialized = serialize_numpy_ndarray(x, context)
    return serialized


def takes_no_time(message: Any) -> bool:
    """Whether a message holds only arrays that go as they are, however large they are.

    distributed (de)serializes large messages in a thread of their own, so that the event loop
    goes on; for these, the way to that thread and back would be most of the work.

    Parameters
    ----------
    message : object
        What is to be sent, such as a worker's answer to ``get_data``:
        ``{"status": "OK", "data": {key: Serialize(x), ...}}``.
    """
    data = message.get("data") if type(message) is dict else None
    return (
        type(data) is dict
        and len(data) <= _FEW
        and all(type(v) is Serialize and _goes_as_it_is(v.data) for v in data.values())
    )


_FEW = 100  # each takes some microseconds after all


def _goes_as_it_is(x: Any) -> bool:
    if type(x) is not np.ndarray or x.dtype.hasobject or x.size == 0:
        return False
    span = bytes_spanned(x)
    if x.flags.c_contiguous or x.flags.f_contiguous:
        return _core.locate(span) is not None
    return _is_plain_view(x) and _is_worth(x, span) and _core.locate(span) is not None


def _is_worth(x: np.ndarray[Any, Any], span: memoryview) -> bool:
    """While the receiver holds the view, all that it spans stays in memory."""
    worth: bool = x.nbytes >= span.nbytes * config.get("view-fraction")
    return worth


def _is_plain_view(x: np.ndarray[Any, Any]) -> bool:
    """A large view with gaps, whose first element is its lowest, of a dtype with a name."""
    return (
        not x.flags.c_contiguous
        and not x.flags.f_contiguous
        and min(x.strides) > 0
        and _are_apart(x)
        and x.nbytes >= config.get_bytes("threshold")
        and not x.dtype.hasobject
        and x.dtype.kind not in "VT"  # V: distributed pickles the dtype; T: has a heap
    )


def _are_apart(x: np.ndarray[Any, Any]) -> bool:
    """Whether no two elements share bytes, so that a write to one changes that one only."""
    reach = x.itemsize
    for stride, length in sorted(zip(x.strides, x.shape, strict=True)):
        if length > 1:
            if stride < reach:
                return False
            reach += stride * (length - 1)
    return True


def _shares_domain(context: Context) -> bool:
    return same_domain(context.get("sender", {}), context.get("recipient", {}))


def _can_be_handed_over(span: memoryview) -> bool:
    place = _core.locate(span)
    # In an open segment nothing was written since it was handed out, as it was not yet.
    return place is not None and (place[0] == "open" or not _core.was_written(span))
