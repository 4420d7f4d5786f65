"""Dates of cftime, which is optional: single ones as JSON, and arrays of them as integers."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import numpy as np

from xshm.codecs import flat
from xshm.codecs.buffers import Buffers, Source
from xshm.codecs.specs import Json, Spec, field, items, malformed

_CLASSES = frozenset(
    {
        "datetime",
        "DatetimeNoLeap",
        "DatetimeAllLeap",
        "Datetime360Day",
        "DatetimeJulian",
        "DatetimeTAI",
        "DatetimeGregorian",
        "DatetimeProlepticGregorian",
    }
)


def is_date(value: Any) -> bool:
    """Whether it is a date of cftime, of a class that is known here."""
    cftime = sys.modules.get("cftime")
    name = type(value).__name__
    return cftime is not None and name in _CLASSES and type(value) is getattr(cftime, name, None)


def encode_date(value: Any) -> Json:
    """A date as ``[class, calendar, has_year_zero, [year, ..., microsecond]]``."""
    return [*_kind(value), list(_fields(value))]


def decode_date(spec: Json) -> Any:
    """The date of a spec.

    Raises
    ------
    FormatError
    ImportError
        cftime is not installed.
    """
    name, calendar, has_year_zero, fields = items(spec, str, str, bool, list, what="a date")
    if len(fields) != 7 or any(type(number) is not int for number in fields):
        raise malformed("year, month, day, hour, minute, second, microsecond", fields)
    return _dates(name, calendar, has_year_zero, [fields])[0]


def encode(values: list[Any], buffers: Buffers) -> Spec | None:
    """Dates of one calendar, among which there may be missing values.

    Returns
    -------
    dict or None
        None if there are other values, or dates of more than one calendar.
    """
    classes = {kind for kind in set(map(type, values)) if kind.__name__ in _CLASSES}
    codes = flat.codes(values, dict.fromkeys(classes, 0)) if len(classes) == 1 else None
    if codes is None:
        return None
    dates = [values[position] for position in np.flatnonzero(codes == 0).tolist()]
    kinds = set(map(_kind, dates)) if is_date(dates[0]) else set()
    if len(kinds) != 1:
        return None
    ((name, calendar, has_year_zero),) = kinds
    fields = np.zeros((len(values), 7), "<i4")
    fields[codes == 0] = [_fields(date) for date in dates]
    return {
        "kind": "cftime",
        "class": name,
        "calendar": calendar,
        "has_year_zero": has_year_zero,
        "fields": buffers.add(fields),
        "codes": flat.add(codes, buffers) if codes.any() else None,
    }


def decode(spec: Spec, source: Source) -> np.ndarray[Any, Any]:
    """The array of dates of a spec.

    Raises
    ------
    FormatError
    ImportError
        cftime is not installed.
    """
    length = flat.count(spec)
    fields = flat.column(spec, "fields", source, "<i4", 7 * length).reshape(length, 7)
    kind = (
        field(spec, "class", str),
        field(spec, "calendar", str),
        field(spec, "has_year_zero", bool),
    )
    if spec.get("codes") is None:
        return flat.objects(_dates(*kind, fields.tolist()), spec)
    codes = flat.column(spec, "codes", source, "u1", length)
    if length and codes.max() > max(flat.MISSING):
        raise malformed(f"codes from 0 to {max(flat.MISSING)}", int(codes.max()))
    filled = np.full(length, None)
    filled[codes == 0] = _dates(*kind, fields[codes == 0].tolist())
    values = filled.tolist()
    flat.put_missing(values, codes)
    return flat.objects(values, spec)


def _kind(value: Any) -> tuple[str, str, bool]:
    return type(value).__name__, value.calendar, bool(value.has_year_zero)


def _fields(d: Any) -> tuple[int, ...]:
    return d.year, d.month, d.day, d.hour, d.minute, d.second, d.microsecond


def _dates(name: str, calendar: str, has_year_zero: bool, rows: list[list[int]]) -> list[Any]:
    if name not in _CLASSES:
        raise malformed("a class of dates", name)
    cls = getattr(importlib.import_module("cftime"), name)
    try:
        dates = [cls(*row, calendar=calendar, has_year_zero=has_year_zero) for row in rows]
    except (ValueError, OverflowError, UserWarning) as error:  # where warnings are errors
        raise malformed("dates that their calendar has", error) from None
    if dates and _kind(dates[0]) != (name, calendar, has_year_zero):
        raise malformed("the calendar of a class of dates", [name, calendar, has_year_zero])
    return dates
