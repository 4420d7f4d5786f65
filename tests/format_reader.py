"""A reader of containers that was written from ``docs/format.md`` alone.

It needs nothing but the standard library, and gives plain values of Python, so that it shows
what a reader in another language has to do. It is not fast.
"""

from __future__ import annotations

import base64
import datetime
import decimal
import itertools
import json
import math
import mmap
import os
import stat
import struct
import zlib
import zoneinfo
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

MAGIC = bytes.fromhex("93 78 73 68 6d 0d 0a 1a")
NOT_A_TIME = -(2**63)


class RefusedError(Exception):
    """It is no container, or one that this reader does not understand."""


class Array(NamedTuple):
    """An array: its elements in C order. Times are ticks, or None; `dtype` has the unit."""

    shape: tuple[int, ...]
    values: list[Any]
    dtype: Any = None


class Tagged(NamedTuple):
    """A value for which Python itself has no type."""

    tag: str
    content: Any


class Variable(NamedTuple):
    dims: tuple[Any, ...]
    array: Array
    attrs: dict[Any, Any]
    is_coordinate: bool


class Group(NamedTuple):
    attrs: dict[Any, Any]
    variables: dict[Any, Variable]
    indexes: list[dict[str, Any]]


class Container:
    """A container, mapped; call `close` in the end."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(file)
            if (
                not stat.S_ISREG(status.st_mode)
                or status.st_uid != os.geteuid()
                or stat.S_IMODE(status.st_mode) & 0o077
            ):
                raise RefusedError("not a file of this user only")
            self._read_preamble(os.pread(file, 64, 0), status.st_size)
            self._bytes = memoryview(mmap.mmap(file, self.nbytes, prot=mmap.PROT_READ))
        finally:
            os.close(file)
        try:
            self._read_header()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        mapping = self._bytes.obj
        self._bytes.release()
        mapping.close()

    def _read_preamble(self, packed: bytes, size: int) -> None:
        if len(packed) != 64 or packed[:8] != MAGIC:
            raise RefusedError("no container")
        version, self._checksum = struct.unpack_from("<II", packed, 8)
        if version != 1:
            raise RefusedError(f"version {version}")
        self.generation = packed[16:32].hex()
        offset, nbytes, self._data_offset, self.nbytes = struct.unpack_from("<QQQQ", packed, 32)
        if (
            nbytes > 2**28
            or not 64 <= offset <= self.nbytes - nbytes
            or not 64 <= self._data_offset <= self.nbytes <= size
        ):
            raise RefusedError("cut off")
        self._preamble, self._header_place = packed, slice(offset, offset + nbytes)

    def _read_header(self) -> None:
        packed = bytes(self._bytes[self._header_place])
        blank = self._preamble[:12] + bytes(4) + self._preamble[16:]
        if zlib.crc32(blank + packed) != self._checksum:
            raise RefusedError("damaged")
        self.header = json.loads(packed, parse_constant=_no_constant)
        places = self.header["buffers"]
        for offset, nbytes in places:
            if offset % 4096 or min(offset, nbytes) < 0:
                raise RefusedError("a buffer in no place")
            if self._data_offset + offset + nbytes > self.nbytes:
                raise RefusedError("a buffer past the end")
        for (offset, nbytes), (following, _) in itertools.pairwise(
            sorted(place for place in places if place[1])
        ):
            if offset + nbytes > following:
                raise RefusedError("buffers that overlap")

    def buffer(self, number: int) -> memoryview:
        offset, nbytes = self.header["buffers"][number]
        start = self._data_offset + offset
        return self._bytes[start : start + nbytes]

    @property
    def name(self) -> Any:
        return decode_value(self.header["name"])

    def array(self) -> Array:
        """The array, if that was published."""
        return decode_array(self.header["array"], self.buffer)

    def groups(self) -> dict[str, Group]:
        return {group["path"]: self._group(group) for group in self.header["groups"]}

    def _group(self, group: dict[str, Any]) -> Group:
        held = [decode_index(index, self.buffer) for index in group["indexes"]]
        variables = {}
        for entry in group["variables"]:
            name = decode_value(entry["name"])
            array = (
                held[entry["index"]][name]
                if "index" in entry
                else decode_array(entry["data"], self.buffer)
            )
            variables[name] = Variable(
                tuple(map(decode_value, entry["dims"])),
                array,
                decode_value(entry["attrs"]),
                entry["coordinate"],
            )
        return Group(decode_value(group["attrs"]), variables, group["indexes"])


Buffer = Callable[[int], memoryview]


def _no_constant(constant: str) -> NoReturn:
    raise RefusedError(f"{constant} in JSON")


# ---- values ----


def decode_value(spec: Any) -> Any:
    if isinstance(spec, list):
        return [decode_value(item) for item in spec]
    if not isinstance(spec, dict):
        return spec
    ((tag, content),) = spec.items()
    if tag in _VALUES:
        return _VALUES[tag](content)
    if tag in ("dtype", "missing", "Timestamp", "Timedelta", "Period", "cftime"):
        return Tagged(tag, content)
    raise RefusedError(f"tag {tag}")


def _decode_array_value(content: Any) -> Array:
    spec, packed = content
    return decode_array(spec, lambda number: memoryview(base64.b64decode(packed[number])))


def _decode_numpy(content: Any) -> Any:
    _, read = _element(content[0])
    return read(memoryview(base64.b64decode(content[1])))


def _decode_text(content: Any) -> str:
    return base64.b64decode(content).decode("utf-8", "surrogatepass")


def _decode_zone(content: Any) -> datetime.tzinfo | None:
    if content is None:
        return None
    if "key" in content:
        return zoneinfo.ZoneInfo(content["key"])
    offset = datetime.timedelta(microseconds=content["offset"])
    return datetime.timezone(offset, *([content["name"]] if "name" in content else []))


def _decode_datetime(content: Any) -> datetime.datetime:
    text, zone, fold = content
    naive = datetime.datetime.fromisoformat(text)
    return naive.replace(tzinfo=_decode_zone(zone), fold=fold)


def _decode_time(content: Any) -> datetime.time:
    text, zone, fold = content
    return datetime.time.fromisoformat(text).replace(tzinfo=_decode_zone(zone), fold=fold)


_VALUES: dict[str, Callable[[Any], Any]] = {
    "dict": lambda pairs: {decode_value(key): decode_value(value) for key, value in pairs},
    "tuple": lambda items: tuple(map(decode_value, items)),
    "set": lambda items: set(map(decode_value, items)),
    "frozenset": lambda items: frozenset(map(decode_value, items)),
    "slice": lambda items: slice(*map(decode_value, items)),
    "int": lambda text: int(text, 16),
    "float": lambda text: struct.unpack(">d", bytes.fromhex(text))[0],
    "complex": lambda parts: complex(*map(decode_value, parts)),
    "decimal": decimal.Decimal,
    "str": _decode_text,
    "bytes": base64.b64decode,
    "numpy": _decode_numpy,
    "numpy.str": decode_value,
    "numpy.bytes": base64.b64decode,
    "array": _decode_array_value,
    "type": {t.__name__: t for t in (str, bytes, int, float, bool, complex, object)}.__getitem__,
    "datetime": _decode_datetime,
    "date": datetime.date.fromisoformat,
    "time": _decode_time,
    "timedelta": lambda count: datetime.timedelta(microseconds=count),
    "timezone": _decode_zone,
    "Interval": lambda items: Tagged("Interval", [*map(decode_value, items[:2]), items[2]]),
}


# ---- elements of fixed size ----

_INTEGERS = {"i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q"}
_NUMBERS = {"b1": "?", "f2": "e", "f4": "f", "f8": "d"} | _INTEGERS


def _element(dtype: Any) -> tuple[int, Callable[[memoryview], Any]]:
    """The size of an element, and what makes a value of its bytes."""
    if isinstance(dtype, dict):
        if "fields" in dtype:
            return dtype["itemsize"], _structure(dtype)
        if "base" in dtype:
            inner, read = _element(dtype["base"])
            n = math.prod(dtype["shape"])
            return n * inner, lambda b: [read(b[i * inner : (i + 1) * inner]) for i in range(n)]
        return _element(dtype["str"])
    order, kind = "<" if dtype[0] == "|" else dtype[0], dtype[1:]
    if kind in _NUMBERS:
        number = struct.Struct(order + _NUMBERS[kind])
        return number.size, lambda b: number.unpack(b)[0]
    if kind in ("c8", "c16"):
        parts = struct.Struct(order + ("ff" if kind == "c8" else "dd"))
        return parts.size, lambda b: complex(*parts.unpack(b))
    if kind[:2] in ("M8", "m8"):
        ticks = struct.Struct(order + "q")
        return 8, lambda b: None if (n := ticks.unpack(b)[0]) == NOT_A_TIME else n
    size = int(kind[1:])
    if kind[0] == "U":
        encoding = "utf-32-le" if order == "<" else "utf-32-be"
        return 4 * size, lambda b: str(b, encoding, "surrogatepass").rstrip("\0")
    if kind[0] == "S":
        return size, lambda b: bytes(b).rstrip(b"\0")
    if kind[0] == "V":
        return size, bytes
    raise RefusedError(f"dtype {dtype}")


def _structure(dtype: dict[str, Any]) -> Callable[[memoryview], Any]:
    fields = []
    for name, inner, offset, *_ in dtype["fields"]:
        itemsize, read = _element(inner)
        fields.append((decode_value(name), slice(offset, offset + itemsize), read))
    return lambda b: {name: read(b[place]) for name, place, read in fields}


# ---- arrays ----


def decode_array(spec: dict[str, Any], buffer: Buffer) -> Array:
    if spec["kind"] not in _KINDS:
        raise RefusedError(f"kind {spec['kind']}")
    return _KINDS[spec["kind"]](spec, buffer)


def _ndarray(spec: dict[str, Any], buffer: Buffer) -> Array:
    shape, strides = tuple(spec["shape"]), spec["strides"]
    if 0 in shape:
        return Array(shape, [], spec["dtype"])
    itemsize, read = _element(spec["dtype"])
    data, start = buffer(spec["buffer"]), spec["offset"]
    last = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if min(start, *strides, 0) < 0 or start + last + itemsize > len(data):
        raise RefusedError("elements outside their buffer")
    values = []
    for index in itertools.product(*map(range, shape)):
        at = start + sum(i * stride for i, stride in zip(index, strides, strict=True))
        values.append(read(data[at : at + itemsize]))
    return Array(shape, values, spec["dtype"])


def _masked(spec: dict[str, Any], buffer: Buffer) -> Array:
    data = decode_array(spec["data"], buffer)
    if spec["mask"] is None:
        return data
    mask = decode_array(spec["mask"], buffer)
    values = [None if m else x for x, m in zip(data.values, mask.values, strict=True)]
    return data._replace(values=values)


def _column(number: int | None, character: str, n: int, buffer: Buffer) -> list[Any]:
    if number is None:
        return [0] * n
    return list(struct.unpack_from(f"<{n}{character}", buffer(number)))


def _in_c_order(spec: dict[str, Any], row: list[Any], dtype: Any = None) -> Array:
    shape = tuple(spec["shape"])
    if spec["order"] == "F":
        strides = [math.prod(shape[:axis]) for axis in range(len(shape))]
        places = itertools.product(*map(range, shape))
        row = [row[sum(map(int.__mul__, place, strides))] for place in places]
    return Array(shape, row, dtype)


def _parts(spec: dict[str, Any], n: int, buffer: Buffer) -> list[bytes]:
    offsets = _column(spec["offsets"], "q", n + 1, buffer)
    data = bytes(buffer(spec["bytes"])) if spec["bytes"] is not None else b""
    if offsets[0] < 0 or offsets != sorted(offsets) or offsets[-1] > len(data):
        raise RefusedError("offsets that do not ascend")
    return [data[start:end] for start, end in itertools.pairwise(offsets)]


MISSING = {1: None, 2: math.nan, 3: Tagged("missing", "NA"), 4: Tagged("missing", "NaT")}


def _strings(spec: dict[str, Any], buffer: Buffer) -> Array:
    parts = _parts(spec, math.prod(spec["shape"]), buffer)
    codes = _column(spec["codes"], "B", len(parts), buffer)
    row = [
        MISSING[code] if code in MISSING else part if code == 5 else part.decode()
        for part, code in zip(parts, codes, strict=True)
    ]
    return _in_c_order(spec, row)


def _stringdtype(spec: dict[str, Any], buffer: Buffer) -> Array:
    parts = _parts(spec, math.prod(spec["shape"]), buffer)
    missing = _column(spec["missing"], "?", len(parts), buffer)
    substitute = decode_value(spec["dtype"]["string"].get("na_object"))
    row = [substitute if m else part.decode() for part, m in zip(parts, missing, strict=True)]
    return _in_c_order(spec, row, spec["dtype"])


def _cftime(spec: dict[str, Any], buffer: Buffer) -> Array:
    n = math.prod(spec["shape"])
    fields = iter(_column(spec["fields"], "i", 7 * n, buffer))
    row: list[Any] = []
    for code in _column(spec["codes"], "B", n, buffer):
        date = list(itertools.islice(fields, 7))
        content = [spec["class"], spec["calendar"], spec["has_year_zero"], date]
        row.append(MISSING[code] if code else Tagged("cftime", content))
    return _in_c_order(spec, row)


def _objects(spec: dict[str, Any], buffer: Buffer) -> Array:
    row = json.loads(bytes(buffer(spec["json"])), parse_constant=_no_constant)
    return _in_c_order(spec, list(map(decode_value, row)))


def _pandas(spec: dict[str, Any], buffer: Buffer) -> Array:
    def part(key: str) -> list[Any]:
        return decode_array(spec[key], buffer).values

    n, dtype = spec["length"], None
    match spec["type"]:
        case "Categorical":
            labels = _pandas_index(spec["categories"], buffer).values
            row = [math.nan if code == -1 else labels[code] for code in part("codes")]
        case "Nullable":
            row = [
                MISSING[3] if m else x for x, m in zip(part("values"), part("mask"), strict=True)
            ]
        case "String":
            missing = _column(spec["missing"], "?", n, buffer)
            substitute = MISSING[3] if spec["missing_value"] == "NA" else math.nan
            row = [
                substitute if m else text.decode()
                for text, m in zip(_parts(spec, n, buffer), missing, strict=True)
            ]
        case "Times":
            row, dtype = part("values"), spec["values"]["dtype"]
        case "Period" | "Numpy":
            row = part("values")
        case "Interval":
            sides = zip(part("left"), part("right"), strict=True)
            row = [Tagged("Interval", [left, right, spec["closed"]]) for left, right in sides]
        case "Sparse":
            row = [decode_value(spec["fill_value"])] * n
            for position, value in zip(part("indices"), part("values"), strict=True):
                row[position] = value
        case kind:
            raise RefusedError(f"type {kind}")
    return Array((n,), row, dtype)


_KINDS: dict[str, Callable[[dict[str, Any], Buffer], Array]] = {
    "ndarray": _ndarray,
    "masked": _masked,
    "strings": _strings,
    "stringdtype": _stringdtype,
    "cftime": _cftime,
    "objects": _objects,
    "pandas": _pandas,
}


# ---- indexes ----


def decode_index(spec: dict[str, Any], buffer: Buffer) -> dict[Any, Array]:
    """The elements of the variables that an index holds."""
    names = list(map(decode_value, spec["names"]))
    match spec["type"]:
        case "PandasIndex":
            return {names[0]: _pandas_index(spec["index"], buffer)}
        case "PandasMultiIndex":
            index = spec["index"]
            columns = {
                decode_value(level["name"]): _labels(level, codes, buffer)
                for level, codes in zip(index["levels"], index["codes"], strict=True)
            }
            tuples = list(zip(*(column.values for column in columns.values()), strict=True))
            return {decode_value(spec["dim"]): Array((len(tuples),), tuples), **columns}
        case "RangeIndex":
            start, stop, step = (decode_value(spec[key]) for key in ("start", "stop", "step"))
            step = (stop - start) / spec["size"] if step is None else step
            values = [start + k * step for k in range(spec["size"])]
            return {decode_value(spec["coord_name"]): Array((len(values),), values)}
        case "NDPointIndex":
            return {}  # made of variables that have their own elements
    raise RefusedError(f"index {spec['type']}")


def _pandas_index(spec: dict[str, Any], buffer: Buffer) -> Array:
    if spec["type"] == "RangeIndex":
        values = list(range(spec["start"], spec["stop"], spec["step"]))
        return Array((len(values),), values, "<i8")
    return decode_array(spec["values"], buffer)


def _labels(level: dict[str, Any], codes: dict[str, Any], buffer: Buffer) -> Array:
    labels = _pandas_index(level, buffer).values
    numbers = decode_array(codes, buffer).values
    return Array((len(numbers),), [None if n == -1 else labels[n] for n in numbers])
