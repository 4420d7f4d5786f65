"""Masked arrays: two arrays, and what stands in for masked elements."""

from __future__ import annotations

from typing import Any

import numpy as np

from xshm.codecs import arrays, scalars
from xshm.codecs.buffers import Buffers, Source
from xshm.codecs.specs import Spec, field, malformed

MaskedArray = np.ma.MaskedArray[Any, Any]


def encode(x: MaskedArray, buffers: Buffers, where: str) -> Spec:
    """A masked array; what lies under the mask is kept.

    Raises
    ------
    UnsupportedError
        Its elements cannot be stored.
    """
    mask = None if x.mask is np.ma.nomask else arrays.encode(x.mask, buffers, f"{where}, its mask")
    # The public attribute sets the default for the dtype, where there was none before.
    fill_value = x._fill_value  # type: ignore[attr-defined]
    return {
        "kind": "masked",
        "data": arrays.encode(x.data, buffers, where),
        "mask": mask,
        "fill_value": None if fill_value is None else scalars.encode(fill_value, where),
        "hardmask": bool(x.hardmask),
    }


def decode(spec: Spec, source: Source) -> MaskedArray:
    """The masked array of a spec, on the buffers themselves.

    Raises
    ------
    FormatError
    """
    data = arrays.decode(field(spec, "data", dict), source)
    if type(data) is not np.ndarray:
        raise malformed("data of a masked array", data)
    mask: Any = np.ma.nomask
    if spec.get("mask") is not None:
        mask = arrays.decode(field(spec, "mask", dict), source)
        expected = np.ma.make_mask_descr(data.dtype)
        if type(mask) is not np.ndarray or mask.dtype != expected or mask.shape != data.shape:
            raise malformed(f"a mask of dtype {expected} and shape {data.shape}", spec)
    x: MaskedArray = np.ma.MaskedArray(data, mask, hard_mask=field(spec, "hardmask", bool))
    if spec.get("fill_value") is not None:
        fill_value = scalars.decode(spec["fill_value"])
        if type(fill_value) is not np.ndarray:
            raise malformed("a fill_value as an array", spec)
        x._fill_value = fill_value  # type: ignore[attr-defined]  # the public one would convert it
    return x
