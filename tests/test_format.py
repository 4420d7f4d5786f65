"""The page about the format is complete and right: a reader made from it alone reads containers."""

from __future__ import annotations

import ast
import datetime
import decimal
import inspect
import itertools
import json
import math
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cftime
import dask.config
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from xarray.indexes import NDPointIndex

import xshm
from tests import format_reader
from tests.format_reader import Array, Group, RefusedError, Tagged
from xshm.codecs import (
    arrays,
    calendars,
    dtypes,
    flat,
    indexes,
    pandas_arrays,
    pandas_indexes,
    scalars,
)
from xshm.container import header, preamble
from xshm.directory import configured

PAGE = (Path(__file__).parents[1] / "docs" / "format.md").read_text()


def section(title: str) -> str:
    """From a heading to the next one of its level or above."""
    (level,) = re.findall(rf"^(#+) {title}$", PAGE, re.MULTILINE)
    text = PAGE.partition(f"\n{level} {title}\n")[2]
    return re.split(rf"^#{{1,{len(level)}}} ", text, maxsplit=1, flags=re.MULTILINE)[0]


def first_cells(text: str) -> set[str]:
    """What stands in code in the first column of a section's tables."""
    cells = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    return {word for cell in cells for word in re.findall(r"`([^`]*)`", cell)}


def cases(module: ModuleType) -> set[str]:
    """The texts that a module's `match` statements tell apart."""
    nodes = ast.walk(ast.parse(inspect.getsource(module)))
    return {
        node.value.value
        for node in nodes
        if isinstance(node, ast.MatchValue) and isinstance(node.value, ast.Constant)
    }


# ---- what the page lists is what the code knows ----


def test_every_kind_of_array_has_a_section_and_no_other() -> None:
    titles = set(re.findall(r"^### (\w+)$", section("Arrays"), re.MULTILINE))
    assert titles == cases(arrays)


def test_every_type_of_pandas_arrays_is_listed_and_no_other() -> None:
    assert first_cells(section("pandas")) == cases(pandas_arrays)


def test_every_tag_is_listed_and_no_other() -> None:
    assert first_cells(section("Values")) == set(scalars._DECODERS)


@pytest.mark.parametrize("name", sorted([*calendars._CLASSES, *scalars._TYPES]))
def test_every_class_of_dates_and_every_type_is_listed(name: str) -> None:
    assert re.search(rf"`\"?{name}\"?`", section("Values"))


def test_every_index_is_listed_and_no_other() -> None:
    of_xarray, of_pandas = section("Indexes").split("### Indexes of pandas")
    assert first_cells(of_xarray) == cases(indexes)
    plain = {"RangeIndex", "MultiIndex", "CFTimeIndex"}
    assert first_cells(of_pandas) == {*pandas_indexes._CHOSEN_BY_DTYPE, *plain}


def test_every_code_of_a_missing_element_is_listed() -> None:
    rows = re.findall(r"^\| (\d) \| (.*) \|$", section("Elements in a row"), re.MULTILINE)
    assert [int(code) for code, _ in rows] == [0, *flat.MISSING, 5]
    for code, value in flat.MISSING.items():
        assert str(value).strip("<>").lower() in dict(rows)[str(code)].lower()


@pytest.mark.parametrize("text", re.findall(r"`((?:\\\||<)\w+(?:\[\w+\])?)`", section("Dtypes")))
def test_dtypes_of_the_page_are_dtypes(text: str) -> None:
    text = text.replace("\\", "")
    assert dtypes.decode(text).str == text


def test_the_preamble_is_as_the_table_says() -> None:
    rows = re.findall(r"^\| (\d+) \| (\d+) \| `(\w+)` \|", section("Preamble"), re.MULTILINE)
    sizes = [int(size) for _, size, _ in rows]
    assert [int(offset) for offset, _, _ in rows] == [0, *itertools.accumulate(sizes)][:-1]
    assert sum(sizes) == preamble.NBYTES
    values = [preamble.MAGIC, 1, 2, b"g" * 16, 3, 4, 5, 6]
    packed = preamble._FIELDS.pack(*values)
    for (offset, size, name), value in zip(rows, values, strict=True):
        found = packed[int(offset) :][: int(size)]
        wanted = value if isinstance(value, bytes) else value.to_bytes(int(size), "little")
        assert found == wanted, name
    assert preamble.Preamble._fields[1:] == tuple(name for *_, name in rows[4:])


def test_the_limits_are_those_of_the_page() -> None:
    assert preamble.MAX_HEADER == 2**28
    assert "at most 2^28" in section("Preamble")
    assert header.ALIGNMENT == 4096
    assert "multiple of 4096" in section("Buffers")
    assert f"version {preamble.VERSION}." in PAGE


# ---- the worked example ----


def worked_example() -> tuple[bytes, bytes]:
    """The header and the preamble that the page shows."""
    text = section("Checksum")
    (packed_header,) = re.findall(r"^```json\n(.*)\n```$", text, re.MULTILINE)
    lines = re.findall(r"^[0-3]0  ((?:[0-9a-f]{2} ?){16})$", text, re.MULTILINE)
    return packed_header.encode(), bytes.fromhex(" ".join(lines))


def test_the_worked_example_is_what_the_code_writes() -> None:
    packed_header, packed = worked_example()
    assert header.pack(json.loads(packed_header)) == packed_header
    start = preamble.Preamble.unpack(packed, 8192)
    assert start.pack(packed_header) == packed
    text = section("Checksum")
    assert f"`{start.generation}`" in text
    assert f"of {len(packed_header)} bytes" in " ".join(text.split())
    (checksum,) = struct.unpack("<I", packed[12:16])
    assert f"checksum is `{checksum:08x}`" in text


def test_the_worked_example_is_what_the_code_reads() -> None:
    packed_header, packed = worked_example()
    (values,) = re.findall(r"At 4096 stand `([0-9a-f ]*)`", section("Checksum"))
    file = (packed + packed_header).ljust(4096, b"\0") + bytes.fromhex(values)
    path = configured().containers / "example"
    path.touch(0o600)
    path.write_bytes(file.ljust(8192, b"\0"))
    np.testing.assert_array_equal(xshm.open("example"), np.array([1, 2, 3], "<i2"))
    assert read("example").array().values == [1, 2, 3]
    xshm.unlink("example")


# ---- what the reader gives is what xarray gives ----


class Read:
    """What the independent reader finds in a container."""

    def __init__(self, name: str) -> None:
        container = format_reader.Container(configured().containers / name)
        try:
            self.header = container.header
            self.groups = container.groups()
            self._array = container.array() if "array" in self.header else None
            self.name = container.name if "name" in self.header else None
        finally:
            container.close()

    def array(self) -> Array:
        assert self._array is not None
        return self._array

    @property
    def root(self) -> Group:
        return self.groups["/"]


def read(name: str) -> Read:
    return Read(name)


@pytest.fixture(autouse=True)
def emptied() -> Iterator[None]:
    yield
    for name in os.listdir(configured().containers):
        xshm.unlink(name)


def plain(value: Any) -> Any:
    """A value as the reader gives it; one that can be compared, NaN too."""
    match value:
        case bool() | str() | bytes() | None:
            return value
        case float() | np.floating():
            return ("float", struct.pack("<d", value)) if math.isnan(value) else float(value)
        case np.datetime64() | np.timedelta64():
            return None if np.isnat(value) else value.view("i8").item()
        case np.void() if value.dtype.names:
            return {name: plain(value[name]) for name in value.dtype.names}
        case np.generic():
            return plain(value.item())
        case np.ndarray():
            return [plain(x) for x in value.reshape(-1)]
        case pd.Timestamp() | pd.Timedelta():
            return value.asm8.view("i8").item()
        case pd.Interval():
            return "Interval", plain(value.left), plain(value.right), value.closed
        case pd.Period():
            return value.ordinal
        case cftime.datetime():
            fields = [*value.timetuple()[:6], value.microsecond]
            return type(value).__name__, value.calendar, value.has_year_zero, fields
        case Tagged("cftime", (name, calendar, has_year_zero, fields)):
            return name, calendar, has_year_zero, fields
        case Tagged("Timestamp", (ticks, *_)):
            return ticks
        case Tagged("missing", name):
            return ("missing", name)
        case Tagged("Interval", (left, right, closed)):
            return "Interval", plain(left), plain(right), closed
        case list() | tuple():
            return [plain(x) for x in value]
        case dict():
            return {key: plain(x) for key, x in value.items()}
    if value is pd.NA or value is pd.NaT:
        return ("missing", "NA" if value is pd.NA else "NaT")
    return value


def assert_same(group: Group, ds: xr.Dataset) -> None:
    """The reader's group and xarray's Dataset say the same."""
    assert list(group.variables) == list(ds.variables)
    assert plain(group.attrs) == plain(ds.attrs)
    for name, found in group.variables.items():
        variable = ds.variables[name]
        assert found.dims == variable.dims
        assert found.array.shape == variable.shape
        assert found.is_coordinate == (name in ds.coords)
        assert plain(found.attrs) == plain(variable.attrs)
        assert plain(found.array.values) == plain(variable.values), name


def assert_is_read(ds: xr.Dataset) -> Read:
    """Publish a Dataset, and have it read by both."""
    shared = xshm.publish(ds, "example", mode="w")
    found = read("example")
    assert_same(found.root, ds)
    assert_same(found.root, shared.open())
    return found


NUMBERS = [
    *("?", "i1", "<i2", "<i4", "<i8", "u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8"),
    *("<c8", "<c16", ">i2", ">u4", ">f8", ">c16"),
]


@pytest.mark.parametrize("dtype", NUMBERS)
def test_numbers(dtype: str) -> None:
    x = np.array([[0, 1, 2], [100, 126, 127]]).astype(dtype)
    found = assert_is_read(xr.Dataset({"x": (("a", "b"), x), "zero": x[0, 1], "one": ("c", x[1])}))
    assert found.root.variables["x"].array.dtype == x.dtype.str


@pytest.mark.parametrize(
    "x",
    [
        np.arange(24.0).reshape(2, 3, 4, order="F"),
        np.arange(24.0).reshape(2, 3, 4).transpose(1, 2, 0),
        np.arange(24.0).reshape(2, 3, 4)[::-1, :, ::-2],
        np.broadcast_to(np.arange(4.0), (2, 3, 4)),
        np.broadcast_to(7, (2, 3, 4)),
        np.empty((2, 0, 4)),
        np.full((1, 1, 1), np.nan),
    ],
    ids=["Fortran", "permuted", "backwards", "rows repeated", "all one", "none", "one"],
)
def test_memory_orders(x: np.ndarray) -> None:
    assert_is_read(xr.Dataset({"x": (("a", "b", "c"), x)}))


@pytest.mark.parametrize("unit", ["D", "h", "s", "ms", "us", "ns"])
def test_times(unit: str) -> None:
    x = np.array(["2024-02-29", "NaT", "1969-12-31"], f"M8[{unit}]")
    found = assert_is_read(xr.Dataset({"t": ("x", x), "d": ("x", x - x[0])}))
    values = found.root.variables["t"].array.values
    assert values[1] is None
    assert values[2] < 0


def test_strings_of_fixed_size() -> None:
    u = np.array(["", "straße", "日本", "\U0001f30d"])
    assert_is_read(xr.Dataset({"u": ("x", u), "s": ("x", np.array([b"", b"ab", b"a\0b", b"c"]))}))
    assert_is_read(xr.Dataset({"u": ("x", u.astype(">U9")), "0": ("x", np.zeros(4, "U0"))}))


@pytest.mark.parametrize("order", ["C", "F"])
def test_strings_of_any_length(order: Any) -> None:
    x = np.array([["a", "straße", None], ["", np.nan, b"\xff"]], object, order=order)
    some = np.array([["a", pd.NA, pd.NaT], ["日本" * 1000, "", "b"]], object, order=order)
    ds = xr.Dataset({"x": (("a", "b"), x), "some": (("a", "b"), some)})
    found = assert_is_read(ds)
    assert {v["data"]["kind"] for v in found.header["groups"][0]["variables"]} == {"strings"}


@pytest.mark.parametrize("options", [{}, {"na_object": None}, {"na_object": np.nan}], ids=str)
def test_strings_of_numpy(options: dict[str, Any]) -> None:
    x = np.array(["a", "straße", "", "b"], np.dtypes.StringDType(**options))
    if options:
        x[2] = options["na_object"]
    assert_is_read(xr.Dataset({"x": ("a", x)}))


def test_dates_of_a_calendar() -> None:
    x = xr.date_range("2000-02-29", periods=3, calendar="360_day", use_cftime=True).values
    ds = xr.Dataset({"x": ("a", x), "y": ("a", np.array([x[0], None, x[1]], object))})
    found = assert_is_read(ds)
    assert {v["data"]["kind"] for v in found.header["groups"][0]["variables"]} == {"cftime"}


def test_objects() -> None:
    x = np.empty((2, 2), object)
    x[:] = [[1, 2**70], [decimal.Decimal("1.10"), datetime.date(2024, 2, 29)]]
    assert_is_read(xr.Dataset({"x": (("a", "b"), x), "t": ("c", np.array([1.5, "a"], object))}))


def test_structures() -> None:
    dtype = np.dtype(
        {"names": ["a", "b"], "formats": ["<i2", ("<f4", (2,))], "offsets": [4, 8], "itemsize": 20}
    )
    x = np.zeros(3, dtype)
    x["a"], x["b"] = [1, 2, 3], [[1, 2], [3, 4], [5, 6]]
    assert_is_read(xr.Dataset({"x": ("a", x)}))


def test_masked_arrays() -> None:
    x = np.ma.MaskedArray([1, 2, 3], [False, True, False])
    xshm.publish(xr.Dataset(attrs={"m": x, "n": np.ma.MaskedArray([1.5])}), "example")
    attrs = read("example").root.attrs
    assert attrs["m"].values == [1, None, 3]
    assert attrs["n"].values == [1.5]


ATTRIBUTES = {
    "title": "straße",
    "none": None,
    "numbers": [1, -(2**63), 2**64 - 1, 1.5, -0.0, 1e300, True],
    "large": 2**64,
    "negative": -(2**63) - 1,
    "floats": [math.inf, -math.inf, math.nan],
    "complex": complex(1, math.inf),
    "bytes": b"\0\xff",
    "surrogate": "a\ud800",
    "tuple": (1, (2, [])),
    "sets": [{1, 2}, frozenset({"a"})],
    "nested": {"a": {"b": 1}, 3: None},
    "slice": slice(None, 3),
    "decimal": decimal.Decimal("1.10"),
    "scalars": [np.int16(-3), np.float32(0.5), np.datetime64("2024-02-29", "s"), np.bool_(True)],
    "texts": [np.str_("a"), np.bytes_(b"b")],
    "array": np.arange(6, dtype=">i4").reshape(2, 3).T,
    "types": [str, object],
    "moment": datetime.datetime(2024, 2, 29, 12, 30, 0, 1, tzinfo=datetime.UTC),
    "day": datetime.date(2024, 2, 29),
    "time": datetime.time(12, 30, fold=1),
    "duration": datetime.timedelta(-1, 1),
    "zone": datetime.timezone(datetime.timedelta(hours=1), "CET"),
    "missing": [pd.NA, pd.NaT],
    "interval": pd.Interval(0, 1.5),
    "date": cftime.DatetimeNoLeap(2001, 2, 28),
}


@pytest.mark.parametrize("key", ATTRIBUTES)
def test_attributes(key: str) -> None:
    value = ATTRIBUTES[key]
    xshm.publish(xr.Dataset({"x": ((), 0, {"v": value})}, attrs={"v": value}), "example")
    root = read("example").root
    for attrs in (root.attrs, root.variables["x"].attrs):
        found = attrs["v"]
        if isinstance(found, Array):
            assert (found.shape, found.dtype) == (value.shape, value.dtype.str)
            found = found.values
        assert plain(found) == plain(value)
        assert type(plain(found)) is type(plain(value))


def test_values_that_only_pandas_has() -> None:
    attrs = {
        "t": pd.Timestamp("2024-02-29 12:00", tz="Europe/Paris").as_unit("ms"),
        "d": pd.Timedelta(3, "s").as_unit("s"),
        "p": pd.Period("2024-01", "M"),
        "dtype": np.dtype(">i4"),
    }
    xshm.publish(xr.Dataset(attrs=attrs), "example")
    assert read("example").root.attrs == {
        "t": Tagged("Timestamp", [attrs["t"].value // 10**6, "ms", {"key": "Europe/Paris"}, 0]),
        "d": Tagged("Timedelta", [3, "s"]),
        "p": Tagged("Period", [648, "M"]),
        "dtype": Tagged("dtype", ">i4"),
    }


EXTENSIONS = {
    "labels": pd.Categorical(["b", "a", None], ["b", "a", "c"]),
    "labels that are times": pd.Categorical(pd.date_range("2024", periods=3, unit="s")),
    "integers": pd.array([1, None, 3], "Int16"),
    "booleans": pd.array([True, None, False], "boolean"),
    "floats": pd.array([0.5, None, 1.5], "Float32"),
    "strings": pd.array(["straße", None, ""], pd.StringDtype("python", na_value=pd.NA)),
    "strings with NaN": pd.array(["a", None, "b"], pd.StringDtype("python", na_value=np.nan)),
    "times in a zone": pd.date_range("2024", periods=3, tz="Europe/Paris", unit="s").array,
    "periods": pd.period_range("2024-01", periods=3, freq="M").array,
    "intervals": pd.interval_range(0, 3).array,
    "sparse": pd.arrays.SparseArray([0.0, 1.5, 0.0]),
}


@pytest.mark.parametrize("key", EXTENSIONS)
def test_arrays_of_pandas(key: str) -> None:
    x = EXTENSIONS[key]
    shared = xshm.publish(xr.Dataset(attrs={"x": x}), "example")
    assert type(shared.open().attrs["x"]) is type(x)
    found = read("example").root.attrs["x"]
    assert found.shape == x.shape
    assert plain(found.values) == plain(list(x))


@pytest.mark.parametrize("key", ["labels", "integers", "times in a zone", "intervals", "periods"])
def test_variables_and_indexes_of_pandas(key: str) -> None:
    x = EXTENSIONS[key]
    xshm.publish(xr.Dataset({"v": ("x", x)}, {"x": pd.Index(x)}), "example")
    variables = read("example").root.variables
    assert plain(variables["v"].array.values) == plain(list(x))
    assert plain(variables["x"].array.values) == plain(list(x))


INDEXES = {
    "numbers": [3, 1, 2],
    "floats": [0.5, np.nan, 2.5],
    "booleans": [True, False, True],
    "texts": ["a", "straße", ""],
    "objects": np.array(["a", 1, None], object),
    "times": pd.date_range("2024-01-31", periods=3, freq="MS", unit="s"),
    "durations": pd.timedelta_range(0, periods=3, freq="h"),
    "dates": xr.date_range("2000", periods=3, calendar="noleap", use_cftime=True),
    "range": pd.RangeIndex(10, 4, -2),
}


@pytest.mark.parametrize("key", INDEXES)
def test_indexes(key: str) -> None:
    ds = xr.Dataset({"y": ("x", [1.0, 2.0, 3.0])}, {"x": ("x", INDEXES[key], {"a": 1})})
    found = assert_is_read(ds)
    assert [index["type"] for index in found.root.indexes] == ["PandasIndex"]


def test_an_index_of_several_levels() -> None:
    levels = [pd.Index(["b", "a"]), pd.date_range("2024", periods=2, unit="s")]
    index = pd.MultiIndex.from_product(levels, names=["letter", "day"])
    coords = xr.Coordinates.from_pandas_multiindex(index[[3, 0, 1]], "x")
    xshm.publish(xr.Dataset(coords=coords), "example")
    variables = read("example").root.variables
    assert variables["letter"].array.values == ["a", "b", "b"]
    assert variables["day"].array.values == [plain(index[i][1]) for i in (3, 0, 1)]
    assert variables["x"].array.values == list(
        zip(variables["letter"].array.values, variables["day"].array.values, strict=True)
    )


@pytest.mark.parametrize(
    "index",
    [
        xr.indexes.RangeIndex.arange(0.0, 1.0, 0.1, dim="x"),
        xr.indexes.RangeIndex.linspace(0.0, 1.0, 5, dim="x"),
    ],
    ids=["arange", "linspace"],
)
def test_a_range_of_xarray(index: xr.indexes.RangeIndex) -> None:
    assert_is_read(xr.Dataset(coords=xr.Coordinates.from_xindex(index)))


def test_an_index_beside_its_coordinates() -> None:
    ds = xr.Dataset(coords={"lat": ("p", [1.0, 2.0, 3.0]), "lon": ("p", [4.0, 5.0, 6.0])})
    assert_is_read(ds.set_xindex(("lat", "lon"), NDPointIndex))


def test_groups() -> None:
    tree = xr.DataTree.from_dict(
        {
            "/": xr.Dataset({"a": ("x", [1, 2])}, {"x": [10, 20]}, {"n": 1}),
            "/b": xr.Dataset({"c": ("x", [3.0, 4.0])}),
            "/b/d": xr.Dataset(attrs={"n": 2}),
        },
        name="root",
    )
    shared = xshm.publish(tree, "example")
    found = read("example")
    assert found.name == "root"
    assert list(found.groups) == ["/", "/b", "/b/d"]
    for path, group in found.groups.items():
        assert_same(group, shared.open()[path].to_dataset(inherit=False))


@pytest.mark.parametrize("name", ["t2m", None, "x", ("a", 1)], ids=str)
def test_a_data_array(name: Any) -> None:
    xshm.publish(xr.DataArray([1, 2], {"x": [3, 4]}, ["x"], name), "example")
    found = read("example")
    assert found.name == name
    (array,) = (v for v in found.root.variables.values() if not v.is_coordinate)
    assert array.array.values == [1, 2]


def test_an_array() -> None:
    xshm.publish(np.arange(6.0).reshape(2, 3), "example")
    assert read("example").array() == Array((2, 3), [0, 1, 2, 3, 4, 5], "<f8")
    assert read("example").groups == {}


def test_chunks_computed_in_place() -> None:
    ds = xr.Dataset({"x": (("a", "b"), np.arange(12).reshape(3, 4))})
    with dask.config.set(scheduler="synchronous"):
        shared = xshm.publish(ds.chunk({"a": 2, "b": 3}), "example")
    found = read("example")
    assert_same(found.root, shared.open())
    (entry,) = found.header["groups"][0]["variables"]
    assert entry["chunks"] == [[2, 1], [3, 1]]


def test_variables_that_were_added() -> None:
    ds = xr.Dataset({"a": ("x", [1, 2])}, {"x": [10, 20]})
    xshm.publish(ds, "example")
    before = format_reader.Container(configured().containers / "example")
    xshm.publish(xr.Dataset({"b": ("x", ["c", "d"])}), "example", mode="a")
    found = read("example")
    assert_same(found.root, xshm.open("example"))
    assert list(found.root.variables) == ["a", "x", "b"]
    # Who has it open goes on with the header it read.
    assert list(before.groups()["/"].variables) == ["a", "x"]
    after = format_reader.Container(configured().containers / "example")
    assert after.generation == before.generation
    before.close()
    after.close()


@pytest.mark.parametrize("place", [0, 8, 12, 16, 35, 43, 51, 60, 70], ids=str)
def test_a_damaged_file_is_refused_by_the_page_too(place: int) -> None:
    xshm.publish(np.arange(3), "example")
    path = configured().containers / "example"
    packed = bytearray(path.read_bytes())
    packed[place] ^= 0x20
    path.write_bytes(packed)
    with pytest.raises(RefusedError):
        read("example")
    with pytest.raises(xshm.FormatError):
        xshm.open("example")
