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
from xshm.views import is_with_gaps, is_worth, span_to_send
from xshm.whereabouts import bytes_spanned

Context = dict[str, Any]
Serialized = tuple[dict[str, Any], list[memoryview]]


@dask_serialize.register(np.ndarray)
def serialize_ndarray(x: np.ndarray[Any, Any], context: Context | None = None) -> Serialized:
    """Frames of an array, without a copy if it is a view worth sending as it is."""
    if (
        context is not None
        and is_with_gaps(x)  # first: most arrays have none
        and context.get("handles", False)  # see comm
        and x.nbytes >= config.get_bytes("threshold")
        and _has_plain_dtype(x)
        and (span := span_to_send(x)) is not None
    ):
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
    return (
        x.nbytes >= config.get_bytes("threshold")
        and _has_plain_dtype(x)
        and is_with_gaps(x)
        and is_worth(x, span)
        and _core.locate(span) is not None
    )


def _has_plain_dtype(x: np.ndarray[Any, Any]) -> bool:
    # V: distributed pickles the dtype; T: has a heap.
    return not x.dtype.hasobject and x.dtype.kind not in "VT"
