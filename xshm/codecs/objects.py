"""Arrays of objects that are neither strings nor dates of cftime, as JSON text."""

from __future__ import annotations

import json
from typing import Any, NoReturn

import numpy as np

from xshm.codecs import calendars, dtypes, flat, scalars, strings
from xshm.codecs.buffers import Buffers, Source
from xshm.codecs.specs import Json, Spec, malformed, size
from xshm.errors import UnsupportedError


def encode(x: flat.Array, buffers: Buffers, where: str) -> Spec:
    """An array of objects, in the most compact of the kinds that can hold it.

    Raises
    ------
    UnsupportedError
        An element is of a type that is not known.
    """
    values = flat.elements(x)
    spec = strings.encode_objects(values, buffers) or calendars.encode(values, buffers)
    if spec is None:
        text = json.dumps(_encode_each(values, x, where), allow_nan=False).encode()
        spec = {"kind": "objects", "json": buffers.add(np.frombuffer(text, "u1"))}
    dtype = {"dtype": dtypes.encode_any(x.dtype, where)} if x.dtype.metadata else {}
    return {**spec, **dtype, **flat.outline(x)}


def decode(spec: Spec, source: Source) -> flat.Array:
    """The array of objects of a spec.

    Raises
    ------
    FormatError
    """
    data = source.buffer(size(spec.get("json"), "the buffer of 'json'"))
    try:
        encoded = json.loads(data.tobytes(), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:  # no JSON or UTF-8; nested too deeply
        raise malformed("elements in JSON", error) from None
    if type(encoded) is not list or len(encoded) != flat.count(spec):
        raise malformed("as many elements as the shape has", spec)
    return flat.objects(map(scalars.decode, encoded), spec)


def _encode_each(values: list[Any], x: flat.Array, where: str) -> list[Json]:
    encoded: list[Json] = []
    try:
        for value in values:
            encoded.append(scalars.encode(value, where))
    except UnsupportedError as error:
        # To name each position beforehand would take longer than all else.
        position = np.unravel_index(len(encoded), x.shape, flat.outline(x)["order"])
        index = ", ".join(map(str, position))
        reason = str(error).removeprefix(where)
        raise UnsupportedError(f"{where}, element [{index}]{reason}") from None
    return encoded


def _refuse(constant: str) -> NoReturn:
    raise malformed("finite numbers in JSON", constant)
