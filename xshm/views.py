"""Views with gaps, which are sent as all that they span instead of being made contiguous."""

from __future__ import annotations

from typing import Any

import numpy as np

from xshm import _core, config
from xshm.whereabouts import bytes_spanned


def span_to_send(x: np.ndarray[Any, Any]) -> memoryview | None:
    """All bytes that a view spans, if these can be handed over without a copy, and are worth it.

    The receiver makes the same view of them, with the same strides.
    """
    if not is_with_gaps(x):
        return None
    span = bytes_spanned(x)
    return span if is_worth(x, span) and can_be_handed_over(span) else None


def is_with_gaps(x: np.ndarray[Any, Any]) -> bool:
    """A view with gaps between its elements, whose first element is its lowest."""
    return (
        not x.flags.c_contiguous
        and not x.flags.f_contiguous
        and min(x.strides) > 0
        and _are_apart(x)
    )


def is_worth(x: np.ndarray[Any, Any], span: memoryview) -> bool:
    """While the receiver holds the view, all that it spans stays in memory."""
    worth: bool = x.nbytes >= span.nbytes * config.get("view-fraction")
    return worth


def _are_apart(x: np.ndarray[Any, Any]) -> bool:
    """Whether no two elements share bytes, so that a write to one changes that one only."""
    reach = x.itemsize
    for stride, length in sorted(zip(x.strides, x.shape, strict=True)):
        if length > 1:
            if stride < reach:
                return False
            reach += stride * (length - 1)
    return True


def can_be_handed_over(span: memoryview) -> bool:
    """Whether bytes lie in a segment, as they were when it was last handed out."""
    place = _core.locate(span)
    # In an open segment nothing was written since it was handed out, as it was not yet.
    return place is not None and (place[0] == "open" or not _core.was_written(span))
