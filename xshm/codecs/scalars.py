"""Attributes, encodings and names as JSON, and back.

None, bools, ints of up to 64 bits, finite floats, strings and lists are themselves. Every other
value is an object with one key, its tag, which says how to read the rest.
"""

from __future__ import annotations

import decimal
import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from xshm.codecs import arrays, calendars, dtypes, times
from xshm.codecs.buffers import Buffers
from xshm.codecs.specs import Json, items, malformed, pack, read, unpack, unsupported
from xshm.errors import FormatError

_MAX_DEPTH = 64  # of containers in containers; each takes up to three levels of JSON

_TYPES = {t.__name__: t for t in (str, bytes, int, float, bool, complex, object)}
_MISSING = {"NA": pd.NA, "NaT": pd.NaT}
_ADVICE = "convert it to a plain value (a number, a string, a list, a dict, an array), or remove it"


def encode(value: Any, where: str) -> Json:
    """A value as JSON.

    Parameters
    ----------
    value : object
    where : str
        What holds the value, for errors: ``"attribute 'units' of variable 't2m'"``.

    Raises
    ------
    UnsupportedError
        It is of a type that is not known, a subclass of a known one among them; or it
        contains itself.
    """
    try:
        return _encode(value, where, 0)
    except RecursionError:  # an array of objects that contains itself
        raise _too_deep(value, where) from None


def decode(spec: Json) -> Any:
    """The value of a spec.

    Raises
    ------
    FormatError
    """
    try:
        return _decode(spec)
    except RecursionError:
        raise malformed("a value", "one that is nested too deeply") from None


def _encode(value: Any, where: str, depth: int) -> Json:
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is str:
        return _encode_text(value)
    if kind is int:
        return value if -(2**63) <= value < 2**64 else {"int": hex(value)}
    if kind is float:
        return _encode_float(value)
    if kind in (list, tuple, set, frozenset, dict, slice, pd.Interval):
        if depth == _MAX_DEPTH:
            raise _too_deep(value, where)
        return _encode_container(value, kind, where, depth + 1)
    if kind in _ENCODERS:
        tag, encoder = _ENCODERS[kind]
        return {tag: encoder(value, where)}
    if kind is type and value in _TYPES.values():
        return {"type": value.__name__}
    if isinstance(value, np.generic) and kind is value.dtype.type:
        return {"numpy": [dtypes.encode(value.dtype, where), pack(value.tobytes())]}
    if isinstance(value, np.dtype):
        return {"dtype": dtypes.encode_any(value, where)}
    if isinstance(value, (np.ndarray, pd.api.extensions.ExtensionArray)):
        return {"array": _encode_array(value, where)}
    if calendars.is_date(value):
        return {"cftime": calendars.encode_date(value)}
    raise unsupported(where, "a value that JSON can hold or that xshm knows", value, _ADVICE)


def _too_deep(value: Any, where: str) -> Exception:
    expected = f"values nested at most {_MAX_DEPTH} deep"
    return unsupported(where, expected, value, "does it contain itself? Flatten it, or remove it")


def _encode_container(value: Any, kind: type, where: str, depth: int) -> Json:
    if kind is dict:
        return {
            "dict": [
                [_encode(k, where, depth), _encode(v, f"{where}, {k!r}", depth)]
                for k, v in value.items()
            ]
        }
    if kind is slice:
        value = [value.start, value.stop, value.step]
    elif kind is pd.Interval:
        value = [value.left, value.right, value.closed]
    encoded = [_encode(v, where, depth) for v in value]
    return encoded if kind is list else {kind.__name__: encoded}


def _encode_text(value: str) -> Json:
    try:
        value.encode()
    except UnicodeEncodeError:  # lone surrogates, as file names may have
        return {"str": pack(value.encode("utf-8", "surrogatepass"))}
    return value


def _decode_text(spec: Json) -> str:
    return unpack(spec).decode("utf-8", "surrogatepass")


def _encode_float(value: float) -> Json:
    return value if math.isfinite(value) else {"float": struct.pack(">d", value).hex()}


def _decode_float(spec: Json) -> float:
    data = bytes.fromhex(read(spec, str, "the bits of a float"))
    if len(data) != 8:
        raise malformed("the bits of a float as 16 hexadecimal digits", spec)
    value: float = struct.unpack(">d", data)[0]
    return value


def _decode_complex(spec: Json) -> complex:
    parts = items(spec, object, object, what="the parts of a complex")
    return complex(*(read(_decode(part), float, "a part of a complex") for part in parts))


def _encode_array(value: Any, where: str) -> Json:
    buffers = Buffers()
    spec = arrays.encode(value, buffers, where)
    return [spec, [pack(np.asarray(source).tobytes()) for source in buffers.sources]]


def _decode_array(spec: Json) -> Any:
    inner, packed = items(spec, dict, list, what="an array with its buffers")
    return arrays.decode(inner, _Unpacked(packed))


class _Unpacked:
    """Buffers that stand in the JSON itself."""

    def __init__(self, packed: list[Json]) -> None:
        self._packed = packed

    def buffer(self, number: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        if number >= len(self._packed):
            raise malformed(f"a number of one of {len(self._packed)} buffers", number)
        # A bytearray, so that what is decoded can be written to.
        return np.frombuffer(bytearray(unpack(self._packed[number])), np.uint8)


def _decode_numpy(spec: Json) -> Any:
    dtype = dtypes.decode(items(spec, object, str, what="a scalar of NumPy")[0])
    data = bytearray(unpack(spec[1]))
    if len(data) != dtype.itemsize or dtype.kind in "SU" or dtype.subdtype is not None:
        raise malformed("the dtype of a scalar of NumPy, and its bytes", spec)
    return np.ndarray((), dtype, data)[()]


def _decode(spec: Json) -> Any:
    kind = type(spec)
    if spec is None or kind in (bool, int, str) or (kind is float and math.isfinite(spec)):
        return spec
    if kind is list:
        return [_decode(v) for v in spec]
    if kind is not dict or len(spec) != 1:
        raise malformed("a plain value, or an object with one tag", spec)
    ((tag, inner),) = spec.items()
    if tag not in _DECODERS:
        raise malformed("a tag that is known", tag)
    try:
        return _DECODERS[tag](inner)
    except FormatError:
        raise
    except (LookupError, ValueError, TypeError, ArithmeticError, Warning) as error:
        # No such name; not to be parsed, or hashed; out of range; warned of, where warnings are
        # errors.
        raise malformed(f"what is tagged {tag!r}", inner) from error


def _decode_all(spec: Json) -> list[Any]:
    return [_decode(v) for v in read(spec, list, "values")]


def _decode_dict(spec: Json) -> dict[Any, Any]:
    pairs = [
        items(p, object, object, what="a key and its value") for p in read(spec, list, "pairs")
    ]
    return {_decode(k): _decode(v) for k, v in pairs}


def _decode_slice(spec: Json) -> slice:
    return slice(*map(_decode, items(spec, object, object, object, what="a slice")))


def _decode_interval(spec: Json) -> Any:
    left, right, closed = items(spec, object, object, str, what="an Interval")
    return pd.Interval(_decode(left), _decode(right), closed)


_ENCODERS: dict[type, tuple[str, Callable[[Any, str], Json]]] = {
    bytes: ("bytes", lambda value, where: pack(value)),
    complex: (
        "complex",
        lambda value, where: [_encode_float(value.real), _encode_float(value.imag)],
    ),
    decimal.Decimal: ("decimal", lambda value, where: str(value)),
    np.str_: ("numpy.str", lambda value, where: _encode_text(str.__str__(value))),
    np.bytes_: ("numpy.bytes", lambda value, where: pack(value)),
    type(pd.NA): ("missing", lambda value, where: "NA"),
    type(pd.NaT): ("missing", lambda value, where: "NaT"),
    **times.ENCODERS,
}

# For each tag what decodes it. The modules that import this one are looked into no
# sooner than needed.
_DECODERS: dict[str, Callable[[Json], Any]] = {
    "int": lambda spec: int(read(spec, str, "a large int"), 16),
    "str": _decode_text,
    "float": _decode_float,
    "bytes": unpack,
    "complex": _decode_complex,
    "decimal": lambda spec: decimal.Decimal(read(spec, str, "a decimal number")),
    "type": lambda spec: _TYPES[spec],
    "missing": lambda spec: _MISSING[spec],
    "tuple": lambda spec: tuple(_decode_all(spec)),
    "set": lambda spec: set(_decode_all(spec)),
    "frozenset": lambda spec: frozenset(_decode_all(spec)),
    "dict": _decode_dict,
    "slice": _decode_slice,
    "Interval": _decode_interval,
    "numpy": _decode_numpy,
    "numpy.str": lambda spec: np.str_(read(_decode(spec), str, "a string")),
    "numpy.bytes": lambda spec: np.bytes_(unpack(spec)),
    "dtype": lambda spec: dtypes.decode_any(spec),
    "array": _decode_array,
    "cftime": lambda spec: calendars.decode_date(spec),
    **times.DECODERS,
}
