"""How NumPy arrays become frames: strided views in segments as they are, others as ever.

A rechunk sends slices of chunks. distributed copies each to make it contiguous. Where the
receiver shares the directory there is no need: the frame is all that the slice spans, sent as
a handle, and the receiver makes the same view of it. distributed's own deserializer does
that already, given the strides.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from distributed.protocol import dask_serialize
from distributed.protocol.numpy import serialize_numpy_ndarray

from xshm import _core, config
from xshm.dask.domain import same_domain
from xshm.whereabouts import bytes_spanned

Context = dict[str, Any]
Serialized = tuple[dict[str, Any], list[memoryview]]


@dask_serialize.register(np.ndarray)
def serialize_ndarray(x: np.ndarray[Any, Any], context: Context | None = None) -> Serialized:
    """Frames of an array, without a copy if it is a view worth sending as it is."""
    if context is not None and _is_plain_view(x) and _shares_domain(context):
        span = bytes_spanned(x)
        worth = x.nbytes >= span.nbytes * config.get("view-fraction")
        if worth and _can_be_handed_over(span):
            header = {
                "dtype": (0, x.dtype.str),
                "shape": x.shape,
                "strides": x.strides,
                "writeable": [x.flags.writeable],
            }
            return header, [span]
    serialized: Serialized = serialize_numpy_ndarray(x, context)
    return serialized


def _is_plain_view(x: np.ndarray[Any, Any]) -> bool:
    """A large view with gaps, whose first element is its lowest, of a dtype with a name."""
    return (
        not x.flags.c_contiguous
        and not x.flags.f_contiguous
        and min(x.strides) > 0
        and x.nbytes >= config.get_bytes("threshold")
        and not x.dtype.hasobject
        and x.dtype.kind not in "VT"  # V: distributed pickles the dtype; T: has a heap
    )


def _shares_domain(context: Context) -> bool:
    return same_domain(context.get("sender", {}), context.get("recipient", {}))


def _can_be_handed_over(span: memoryview) -> bool:
    place = _core.locate(span)
    # In an open segment nothing was written since it was handed out, as it was not yet.
    return place is not None and (place[0] == "open" or not _core.was_written(span))
