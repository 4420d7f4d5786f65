"""Dtypes of NumPy as JSON, and back.

Most are the text that NumPy gives them, ``"<f8"`` or ``"<M8[25s]"``. The others are objects:

========================================  ======================================================
``{"str": "<i8", "char": "q"}``           one of two types of C that have the same text
``{"fields": [...], "itemsize": 16,       a structure; each field is ``[name, dtype, offset]`` or
"aligned": false, "record": false}``      ``[name, dtype, offset, title]``
``{"base": "<i4", "shape": [2, 3]}``      a subarray
``{"string": {"coerce": true}}``          ``StringDType``; with ``"na_object"`` if it has one
========================================  ======================================================

Where a dtype has metadata, ``"metadata"`` is added, and a text becomes ``{"str": text}``.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import numpy as np

from xshm.codecs import scalars
from xshm.codecs.specs import Json, field, malformed, read, size, sizes, unsupported

Dtype = np.dtype[Any]

# A multiple of 0 would be divided by.
_UNIT = r"\[([1-9][0-9]{0,9})?(Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\]"
_FIXED_SIZE = re.compile(rf"[<>|]([biufcSUV][0-9]{{1,10}}|[mM]8({_UNIT})?)")
_SAME_TEXT = frozenset("lLqQc")  # long and long long; and "c", which is "S1"


def encode(dtype: Dtype, where: str = "a dtype") -> Json:
    """A dtype of fixed size.

    Parameters
    ----------
    dtype : dtype
    where : str, optional
        What it is the dtype of, for errors.

    Raises
    ------
    UnsupportedError
        It has references to objects, is of somebody else's making, or has metadata or titles
        that cannot be stored.
    """
    if dtype.hasobject or dtype.kind == "T" or (dtype.names is None and dtype.isbuiltin == 2):
        raise unsupported(where, "a dtype of fixed size", dtype, f"convert {dtype} first")
    spec = _encode_fields(dtype, where) if dtype.names is not None else _encode_text(dtype, where)
    return _with_metadata(spec, dtype, where)


def decode(spec: Json) -> Dtype:
    """The dtype of fixed size of a spec.

    Raises
    ------
    FormatError
    """
    if type(spec) is str:
        return _decode_text(spec)
    read(spec, dict, "a dtype")
    try:
        if "fields" in spec:
            dtype = _decode_fields(spec)
        elif "base" in spec:
            dtype = np.dtype((decode(spec["base"]), sizes(spec, "shape")))
        else:
            dtype = _decode_text(field(spec, "str", str))
            if "char" in spec:
                dtype = _decode_char(field(spec, "char", str), dtype)
        if "metadata" in spec:
            dtype = np.dtype(dtype, metadata=_decode_metadata(spec))
    except (TypeError, ValueError, OverflowError):  # what NumPy refuses: too large, for example
        raise malformed("a dtype", spec) from None
    except RecursionError:
        raise malformed("a dtype", "one that is nested too deeply") from None
    return dtype


def encode_any(dtype: Dtype, where: str = "a dtype") -> Json:
    """A dtype of fixed size, of objects, or of strings of any length."""
    if dtype.kind == "O" and dtype.names is None:
        return _with_metadata("|O", dtype, where)
    if isinstance(dtype, np.dtypes.StringDType):
        string: Json = {"coerce": dtype.coerce}
        if hasattr(dtype, "na_object"):
            string["na_object"] = scalars.encode(dtype.na_object, where)
        return {"string": string}
    return encode(dtype, where)


def decode_any(spec: Json) -> Dtype:
    """The dtype of fixed size, of objects, or of strings, of a spec.

    Raises
    ------
    FormatError
    """
    if spec == "|O":
        return np.dtype(object)
    if type(spec) is dict and spec.get("str") == "|O":
        return np.dtype(object, metadata=_decode_metadata(spec))
    if type(spec) is dict and "string" in spec:
        string = field(spec, "string", dict)
        coerce = field(string, "coerce", bool)
        if "na_object" not in string:
            return np.dtypes.StringDType(coerce=coerce)
        return np.dtypes.StringDType(coerce=coerce, na_object=scalars.decode(string["na_object"]))
    return decode(spec)


def _encode_text(dtype: Dtype, where: str) -> Json:
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return {"base": encode(base, where), "shape": list(shape)}
    if np.dtype(dtype.str).char == dtype.char:
        return dtype.str
    if dtype.char in _SAME_TEXT:
        return {"str": dtype.str, "char": dtype.char}
    raise unsupported(where, "a dtype of NumPy", dtype, f"convert {dtype} first")


def _encode_fields(dtype: Dtype, where: str) -> Json:
    if dtype.type not in (np.void, np.record):
        raise unsupported(where, "a structure of NumPy", dtype, "view it as a plain structure")
    fields: list[Json] = []
    for name in dtype.names or ():
        inner, offset, *titles = dtype.fields[name]  # type: ignore[index]
        fields.append(
            [
                scalars.encode(name, where),
                encode(inner, where),
                offset,
                *(scalars.encode(title, where) for title in titles),
            ]
        )
    return {
        "fields": fields,
        "itemsize": dtype.itemsize,
        "aligned": dtype.isalignedstruct,
        "record": dtype.type is np.record,
    }


def _with_metadata(spec: Json, dtype: Dtype, where: str) -> Json:
    if not dtype.metadata:
        return spec
    metadata = scalars.encode(dict(dtype.metadata), f"{where}, metadata of its dtype")
    return {**({"str": spec} if isinstance(spec, str) else spec), "metadata": metadata}


@functools.lru_cache(512)
def _decode_text(text: str) -> Dtype:
    if _FIXED_SIZE.fullmatch(text):
        try:
            dtype: Dtype = np.dtype(text)
        except TypeError:  # no such size
            pass
        else:
            if dtype.str == text:
                return dtype
    raise malformed("the text of a dtype of fixed size", text)


def _decode_char(char: str, like: Dtype) -> Dtype:
    if char in _SAME_TEXT:
        dtype: Dtype = np.dtype(char)
        if like.byteorder == ">":
            dtype = dtype.newbyteorder(">")
        if dtype.str == like.str:
            return dtype
    raise malformed(f"another character for the dtype {like}", char)


def _decode_fields(spec: Json) -> Dtype:
    itemsize = size(spec.get("itemsize"), "itemsize")
    names, formats, offsets, titles = [], [], [], []
    for entry in field(spec, "fields", list):
        if type(entry) is not list or len(entry) not in (3, 4):
            raise malformed("a field as [name, dtype, offset] or with a title", entry)
        names.append(read(scalars.decode(entry[0]), str, "the name of a field"))
        formats.append(decode(entry[1]))
        offsets.append(size(entry[2], "an offset"))
        titles.append(scalars.decode(entry[3]) if len(entry) == 4 else None)
        hash(titles[-1])
        # NumPy adds these as a C int, and does not see a sum that is too large for one.
        if offsets[-1] + formats[-1].itemsize > itemsize:
            raise malformed(f"a field within {itemsize} bytes", entry)
    description = {
        "names": names,
        "formats": formats,
        "offsets": offsets,
        "titles": titles,
        "itemsize": itemsize,
        "aligned": field(spec, "aligned", bool),
    }
    dtype: Dtype = np.dtype(description)  # type: ignore[call-overload]
    return np.dtype((np.record, dtype)) if field(spec, "record", bool) else dtype


def _decode_metadata(spec: Json) -> dict[Any, Any]:
    return read(scalars.decode(spec["metadata"]), dict, "metadata of a dtype")
