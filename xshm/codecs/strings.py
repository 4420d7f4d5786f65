"""Arrays of strings of any length, as UTF-8 with offsets.

Two kinds of arrays: of NumPy's ``StringDType``, and of objects that are str, bytes or missing.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from xshm.codecs import dtypes, flat
from xshm.codecs.buffers import Buffers, Source
from xshm.codecs.specs import Spec, malformed

_STR, _BYTES = 0, 5  # codes beside those of flat.MISSING


def encode_fixed(x: flat.Array, buffers: Buffers, where: str) -> Spec:
    """An array of ``StringDType``.

    Raises
    ------
    UnsupportedError
        Its dtype has an ``na_object`` that cannot be stored.
    """
    dtype = dtypes.encode_any(x.dtype, where)
    values = flat.elements(x)
    missing = np.fromiter((type(v) is not str for v in values), bool, len(values))
    for position in np.flatnonzero(missing).tolist():
        values[position] = ""
    return {
        "kind": "stringdtype",
        "dtype": dtype,
        **flat.outline(x),
        **add_parts(list(map(str.encode, values)), buffers),
        "missing": flat.add(missing, buffers) if missing.any() else None,
    }


def decode_fixed(spec: Spec, source: Source) -> flat.Array:
    """The array of ``StringDType`` of a spec.

    Raises
    ------
    FormatError
    """
    dtype, length = dtype_of(spec), flat.count(spec)
    x = np.array(text(read_parts(spec, source, length)), dtype)
    if spec.get("missing") is not None:
        if not hasattr(dtype, "na_object"):
            raise malformed("a dtype with a value for missing strings", spec)
        na_object = np.empty((), object)  # one object, if it is a sequence too
        na_object[()] = dtype.na_object
        x[flat.column(spec, "missing", source, "u1", length) != 0] = na_object
    return flat.restore(x, spec)


def dtype_of(spec: Spec) -> np.dtypes.StringDType:
    """The dtype in the spec of an array of ``StringDType``."""
    dtype = dtypes.decode_any(spec.get("dtype"))
    if not isinstance(dtype, np.dtypes.StringDType):
        raise malformed("a StringDType", spec)
    return dtype


def encode_objects(values: list[Any], buffers: Buffers) -> Spec | None:
    """Objects that are str, bytes, None, NaN, NA or NaT.

    Returns
    -------
    dict or None
        None if there are others, or strings that UTF-8 does not have (lone surrogates).
    """
    codes = flat.codes(values, {str: _STR, bytes: _BYTES})
    if codes is None:
        return None
    try:
        if codes.any():
            parts = [
                v.encode() if c == _STR else v if c == _BYTES else b""
                for v, c in zip(values, codes.tolist(), strict=True)
            ]
        else:
            parts = list(map(str.encode, values))
    except UnicodeEncodeError:
        return None
    return {
        "kind": "strings",
        **add_parts(parts, buffers),
        "codes": flat.add(codes, buffers) if codes.any() else None,
    }


def decode_objects(spec: Spec, source: Source) -> flat.Array:
    """The array of objects of a spec.

    Raises
    ------
    FormatError
    """
    length = flat.count(spec)
    parts = read_parts(spec, source, length)
    if spec.get("codes") is None:
        return flat.objects(text(parts), spec)
    codes = flat.column(spec, "codes", source, "u1", length)
    if length and codes.max() > _BYTES:
        raise malformed(f"codes from 0 to {_BYTES}", int(codes.max()))
    is_bytes = codes == _BYTES
    values: list[Any] = text([b"" if b else part for part, b in zip(parts, is_bytes, strict=True)])
    for position in np.flatnonzero(is_bytes).tolist():
        values[position] = parts[position]
    flat.put_missing(values, codes)
    return flat.objects(values, spec)


def add_parts(parts: list[bytes], buffers: Buffers) -> Spec:
    """Add bytes in a row, and the offsets at which each begins and the last one ends."""
    offsets = np.zeros(len(parts) + 1, "<i8")
    np.cumsum(np.fromiter(map(len, parts), "<i8", len(parts)), out=offsets[1:])
    joined = np.frombuffer(b"".join(parts), "u1")
    return {"offsets": buffers.add(offsets), "bytes": flat.add(joined, buffers)}


def read_offsets(spec: Spec, source: Source, length: int) -> tuple[flat.Array, flat.Array]:
    """The offsets of so many strings, and the bytes of all of them.

    Raises
    ------
    FormatError
        The offsets do not ascend, or lie outside the bytes.
    """
    offsets = flat.column(spec, "offsets", source, "<i8", length + 1)
    if offsets[0] < 0 or (offsets[1:] < offsets[:-1]).any():
        raise malformed("offsets that ascend from 0 or above", offsets[:5].tolist())
    return offsets, flat.column(spec, "bytes", source, "u1", int(offsets[-1]))


def read_parts(spec: Spec, source: Source, length: int) -> list[bytes]:
    """So many strings, each by itself, as bytes."""
    offsets, data = read_offsets(spec, source, length)
    joined = data.tobytes()
    return [joined[start:end] for start, end in pairwise(offsets.tolist())]


def text(parts: list[bytes]) -> list[str]:
    """The strings of UTF-8."""
    try:
        return list(map(bytes.decode, parts))
    except UnicodeDecodeError as error:
        raise malformed("strings in UTF-8", error.object[:20]) from None
