"""Reading of specs, which are JSON values that nobody vouches for; and refusals."""

from __future__ import annotations

import base64
import reprlib
from typing import Any, TypeAlias, TypeVar

from xshm.errors import FormatError, UnsupportedError

#: What :mod:`json` reads and writes, without NaN.
Json: TypeAlias = Any

#: The JSON object that says how to decode an array.
Spec: TypeAlias = dict[str, Any]

T = TypeVar("T")


def malformed(expected: str, found: object) -> FormatError:
    """The error for a spec that is not what it has to be."""
    return FormatError(
        f"expected {expected}, found {reprlib.repr(found)[:300]}: the container is damaged, or was "
        "written by a newer version of xshm"
    )


def unsupported(where: str, expected: str, found: object, advice: str) -> UnsupportedError:
    """The error for a value that cannot be stored.

    Parameters
    ----------
    where : str
        What holds the value.
    expected : str
    found : object
        The value; the message names its type only.
    advice : str
        What to do about it.
    """
    name = f"{type(found).__module__}.{type(found).__qualname__}".removeprefix("builtins.")
    return UnsupportedError(f"{where}: expected {expected}, found {name}; {advice}")


def read(value: Json, kind: type[T], what: str) -> T:
    """A value of exactly this type: a bool is no int."""
    if type(value) is not kind:
        raise malformed(f"{what} as {kind.__name__}", value)
    return value


def field(spec: Json, key: str, kind: type[T]) -> T:
    """The value of a key, of exactly this type."""
    value = read(spec, dict, "a spec").get(key)
    if type(value) is not kind:
        raise malformed(f"a spec with {key!r} as {kind.__name__}", spec)
    return value


def items(value: Json, *kinds: type, what: str) -> list[Any]:
    """A list of as many values as there are types, each of exactly its type or `object`."""
    if (
        type(value) is not list
        or len(value) != len(kinds)
        or any(k is not object and type(v) is not k for v, k in zip(value, kinds, strict=True))
    ):
        raise malformed(f"{what} as a list of {', '.join(k.__name__ for k in kinds)}", value)
    return value


def size(value: Json, what: str) -> int:
    """A number of things or bytes: an int that is not negative and fits 63 bits."""
    if type(value) is not int or not 0 <= value < 2**63:
        raise malformed(f"{what} as an int from 0 to 2**63 - 1", value)
    return value


def sizes(spec: Json, key: str) -> tuple[int, ...]:
    """The value of a key: a list of sizes."""
    return tuple([size(n, key) for n in field(spec, key, list)])


def pack(data: bytes) -> str:
    """Bytes as base64."""
    return base64.b64encode(data).decode("ascii")


def unpack(value: Json) -> bytes:
    """The bytes of base64."""
    try:
        return base64.b64decode(read(value, str, "bytes"), validate=True)
    except ValueError:  # not ASCII, or not base64
        raise malformed("bytes in base64", value) from None
