"""Strings of pandas: UTF-8 with offsets, as Arrow has them, and which are missing.

Which storage they had is kept, and used again where pyarrow is installed; elsewhere they come
back as Python's strings.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from xshm.codecs import flat, strings
from xshm.codecs.buffers import Buffers, Source
from xshm.codecs.specs import Spec, field, malformed, unsupported

_MISSING = {"NA": pd.NA, "NaN": np.nan}


def encode(x: Any, buffers: Buffers, where: str) -> Spec:
    """An array of strings, with either storage.

    Raises
    ------
    UnsupportedError
        A string is not to be had in UTF-8 (lone surrogates).
    """
    missing = np.asarray(x.isna(), bool)
    if x.dtype.storage == "pyarrow":
        parts = _encode_arrow(x, buffers)
    else:
        values = np.where(missing, "", np.asarray(x, object))
        try:
            parts = strings.add_parts(list(map(str.encode, values.tolist())), buffers)
        except UnicodeEncodeError:
            raise unsupported(
                where, "strings without lone surrogates", x, "convert it to dtype object first"
            ) from None
    return {
        "storage": x.dtype.storage,
        "missing_value": "NA" if x.dtype.na_value is pd.NA else "NaN",
        **parts,
        "missing": flat.add(missing, buffers) if missing.any() else None,
    }


def _encode_arrow(x: Any, buffers: Buffers) -> Spec:
    chunks = x.__arrow_array__()
    array = chunks.combine_chunks()
    if not len(array):
        return strings.add_parts([], buffers)
    _, offsets_buffer, data_buffer = array.buffers()
    offsets = np.frombuffer(offsets_buffer, "<i8")[array.offset :][: len(array) + 1]
    start, end = offsets[[0, -1]].tolist()
    data = np.frombuffer(data_buffer or b"", "u1")[start:end]
    return {"offsets": buffers.add(offsets - start), "bytes": flat.add(data, buffers)}


def decode(spec: Spec, source: Source, length: int) -> Any:
    """The array of so many strings of a spec.

    Raises
    ------
    FormatError
    """
    name, storage = field(spec, "missing_value", str), field(spec, "storage", str)
    if name not in _MISSING or storage not in ("python", "pyarrow"):
        raise malformed("a storage of strings, and a value for missing ones", spec)
    missing = None
    if spec.get("missing") is not None:
        missing = flat.column(spec, "missing", source, "u1", length) != 0
    if storage == "pyarrow":
        try:
            dtype = pd.StringDtype("pyarrow", na_value=_MISSING[name])
        except ImportError:  # no pyarrow, or one that is too old for pandas
            pass
        else:
            return _decode_arrow(spec, source, missing, length, dtype)
    text = strings.text(strings.read_parts(spec, source, length))  # the length is checked here
    values = np.empty(length, object)
    values[:] = text
    if missing is not None:
        values[missing] = _MISSING[name]
    return pd.arrays.StringArray(values, dtype=pd.StringDtype("python", na_value=_MISSING[name]))


def _decode_arrow(
    spec: Spec, source: Source, missing: flat.Array | None, length: int, dtype: Any
) -> Any:
    import pyarrow as pa

    offsets, data = strings.read_offsets(spec, source, length)
    valid = None if missing is None else pa.py_buffer(np.packbits(~missing, bitorder="little"))
    array = pa.LargeStringArray.from_buffers(
        length, pa.py_buffer(offsets), pa.py_buffer(data), valid
    )
    is_ascii = not data.size or data.max() < 0x80  # UTF-8 then, wherever it is cut
    try:
        array.validate(full=not is_ascii)  # which takes ten times longer
    except pa.ArrowInvalid as error:
        raise malformed("strings in UTF-8", error) from None
    return pd.arrays.ArrowStringArray(array, dtype=dtype)
