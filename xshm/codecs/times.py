"""Dates, times and durations of Python and pandas as JSON, and back."""

from __future__ import annotations

import datetime
import zoneinfo
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from xshm.codecs.specs import Json, field, items, malformed, read, unsupported

#: Units of time that pandas has.
UNITS = ("s", "ms", "us", "ns")
_MICROSECOND = datetime.timedelta(microseconds=1)


def encode_zone(zone: datetime.tzinfo | None, where: str) -> Json:
    """A time zone: None, ``{"offset": microseconds}``, with ``"name"``, or ``{"key": name}``.

    Raises
    ------
    UnsupportedError
        It is of another class than `datetime.timezone` and `zoneinfo.ZoneInfo`.
    """
    if zone is None:
        return None
    if type(zone) is datetime.timezone:
        offset = zone.utcoffset(None)
        spec: Json = {"offset": offset // _MICROSECOND}
        name = zone.tzname(None)
        return spec if name == datetime.timezone(offset).tzname(None) else {**spec, "name": name}
    if type(zone) is zoneinfo.ZoneInfo and zone.key is not None:
        return {"key": zone.key}
    raise unsupported(
        where,
        "a time zone as datetime.timezone, or as zoneinfo.ZoneInfo with a key",
        zone,
        "convert to one of these first",
    )


def decode_zone(spec: Json) -> datetime.tzinfo | None:
    """The time zone of a spec.

    Raises
    ------
    FormatError
        It is malformed, or not known on this machine.
    """
    if spec is None:
        return None
    try:
        if "key" in read(spec, dict, "a time zone"):
            return zoneinfo.ZoneInfo(field(spec, "key", str))
        offset = datetime.timedelta(microseconds=field(spec, "offset", int))
        if "name" in spec:
            return datetime.timezone(offset, field(spec, "name", str))
        return datetime.timezone(offset)
    except (KeyError, ValueError, OSError, OverflowError):
        # No such zone; not a name of one; a name that no file can have; more than a day
        raise malformed("a time zone that this machine knows", spec) from None


def _encode_datetime(value: datetime.datetime, where: str) -> Json:
    naive = value.replace(tzinfo=None, fold=0)
    return [naive.isoformat(), encode_zone(value.tzinfo, where), value.fold]


def _decode_datetime(spec: Json) -> datetime.datetime:
    text, zone, fold = items(spec, str, object, int, what="a datetime")
    naive = datetime.datetime.fromisoformat(text)
    return naive.replace(tzinfo=decode_zone(zone), fold=fold)


def _encode_time(value: datetime.time, where: str) -> Json:
    naive = value.replace(tzinfo=None, fold=0)
    return [naive.isoformat(), encode_zone(value.tzinfo, where), value.fold]


def _decode_time(spec: Json) -> datetime.time:
    text, zone, fold = items(spec, str, object, int, what="a time")
    naive = datetime.time.fromisoformat(text)
    return naive.replace(tzinfo=decode_zone(zone), fold=fold)


def _encode_date(value: datetime.date, where: str) -> Json:
    return value.isoformat()


def _decode_date(spec: Json) -> datetime.date:
    return datetime.date.fromisoformat(read(spec, str, "a date"))


def _encode_timedelta(value: datetime.timedelta, where: str) -> Json:
    return value // _MICROSECOND


def _decode_timedelta(spec: Json) -> datetime.timedelta:
    # A multiple would go by way of a float.
    return datetime.timedelta(microseconds=read(spec, int, "microseconds"))


def _encode_timestamp(value: Any, where: str) -> Json:
    ticks = value.asm8.view("i8").item()
    return [ticks, value.unit, encode_zone(value.tzinfo, where), value.fold]


def _decode_timestamp(spec: Json) -> Any:
    ticks, unit, zone, fold = items(spec, int, str, object, int, what="a Timestamp")
    value = pd.Timestamp(np.datetime64(ticks, _unit(unit)))
    if zone is not None:
        value = value.tz_localize("UTC").tz_convert(decode_zone(zone))
    return value if value.fold == fold else value.replace(fold=fold)


def _encode_pandas_timedelta(value: Any, where: str) -> Json:
    return [value.asm8.view("i8").item(), value.unit]


def _decode_pandas_timedelta(spec: Json) -> Any:
    ticks, unit = items(spec, int, str, what="a Timedelta")
    return pd.Timedelta(np.timedelta64(ticks, _unit(unit)))


def _unit(unit: str) -> Any:
    if unit not in UNITS:
        raise malformed(f"a unit of pandas, one of {', '.join(UNITS)}", unit)
    return unit


def _encode_period(value: Any, where: str) -> Json:
    return [value.ordinal, value.freqstr]


def _decode_period(spec: Json) -> Any:
    ordinal, freq = items(spec, int, str, what="a Period")
    return pd.Period(ordinal=ordinal, freq=decode_period_dtype(freq).freq)


def decode_period_dtype(freq: Json) -> Any:
    """The dtype of periods of a frequency.

    Raises
    ------
    FormatError
    """
    try:
        return pd.PeriodDtype(read(freq, str, "a frequency"))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, FutureWarning):
        # No frequency, or none of periods; one that pandas warns of, where warnings are errors
        raise malformed("a frequency of periods", freq) from None


#: For each type its tag, and what encodes it.
ENCODERS: dict[type, tuple[str, Callable[[Any, str], Json]]] = {
    datetime.datetime: ("datetime", _encode_datetime),
    datetime.date: ("date", _encode_date),
    datetime.time: ("time", _encode_time),
    datetime.timedelta: ("timedelta", _encode_timedelta),
    datetime.timezone: ("timezone", encode_zone),
    zoneinfo.ZoneInfo: ("timezone", encode_zone),
    pd.Timestamp: ("Timestamp", _encode_timestamp),
    pd.Timedelta: ("Timedelta", _encode_pandas_timedelta),
    pd.Period: ("Period", _encode_period),
}

#: For each tag what decodes it; a ValueError or OverflowError says that it cannot.
DECODERS: dict[str, Callable[[Json], Any]] = {
    "datetime": _decode_datetime,
    "date": _decode_date,
    "time": _decode_time,
    "timedelta": _decode_timedelta,
    "timezone": decode_zone,
    "Timestamp": _decode_timestamp,
    "Timedelta": _decode_pandas_timedelta,
    "Period": _decode_period,
}
