"""Whatever lies in the folder of containers is read, or refused with a word about it."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cftime
import dask.config
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from xarray.indexes import NDPointIndex

import xshm
from tests.conftest import own_directory
from xshm.container.preamble import MAX_HEADER, NBYTES, VERSION, Preamble
from xshm.directory import configured
from xshm.errors import ContainerNameError, ContainerNotFoundError, FormatError, XshmError

# pandas and xarray warn of odd values, and of times in a zone.
pytestmark = pytest.mark.filterwarnings("ignore")

NAME = "example"


def tree() -> xr.DataTree:
    """Something of every kind."""
    structure = np.zeros(2, [("a", "<i4"), ("b", "<f8", (2,))])
    dates = [cftime.DatetimeNoLeap(2001, 2, 28), cftime.DatetimeNoLeap(2001, 3, 1)]
    root = xr.Dataset(
        {
            "float": (("x", "y"), np.arange(6.0).reshape(2, 3, order="F"), {"units": "K"}),
            "repeated": (("x", "y"), np.broadcast_to(np.int16(7), (2, 3))),
            "time": ("x", np.array(["2024-02-29", "NaT"], "M8[s]")),
            "fixed": ("x", np.array(["a", "straße"])),
            "strings": ("x", np.array(["straße", None], object)),
            "stringdtype": ("x", np.array(["a", "bc"], np.dtypes.StringDType(na_object=None))),
            "calendar": ("x", np.array([dates[0], None])),
            "objects": (("x", "z"), np.array([[1, (2, "b")], [1.5, None]], object)),
            "structure": ("x", structure),
            "scalar": ((), True),
            "labels": ("x", pd.Categorical(["b", None], ["b", "a"])),
            "nullable": ("x", pd.array([1, None], "Int16")),
        },
        {
            "x": pd.date_range("2024", periods=2, freq="D", unit="s"),
            "y": pd.RangeIndex(0, 6, 2),
            "lat": ("p", [1.0, 2.0, 3.0]),
            "lon": ("p", [4.0, 5.0, 6.0]),
        },
        {
            "masked": np.ma.MaskedArray([1, 2], [True, False]),
            "sparse": pd.arrays.SparseArray([0.0, 1.5, 0.0]),
            "values": [np.nan, b"", {1: 2}, 2**70, pd.Timestamp("2024", tz="Europe/Paris")],
        },
    ).set_xindex(("lat", "lon"), NDPointIndex)
    root["chunked"] = xr.Variable(("x", "y"), np.ones((2, 3))).chunk()
    levels = pd.MultiIndex.from_product([["a", "b"], [0.5, 1.5]], names=["one", "two"])
    child = xr.Dataset(
        {"v": ("m", np.arange(4, dtype=">i4"))},
        xr.Coordinates.from_pandas_multiindex(levels, "m"),
    )
    child = child.assign_coords(
        xr.Coordinates.from_xindex(xr.indexes.RangeIndex.arange(0.0, 1.0, 0.25, dim="r"))
    ).assign_coords(
        text=["a", "straße"],
        zone=pd.date_range("2024", periods=2, tz="Europe/Paris"),
        interval=pd.interval_range(0, 2),
        period=pd.period_range("2024-01", periods=2, freq="M"),
        date=np.array(dates),
    )
    return xr.DataTree.from_dict({"/": root, "/child": child}, name="root")


@pytest.fixture(scope="module")
def packed() -> bytes:
    """A container as it should be."""
    with (
        own_directory(),
        dask.config.set(scheduler="synchronous"),
        xshm.publish(tree(), NAME),
    ):
        return path_of(NAME).read_bytes()


@pytest.fixture(autouse=True)
def emptied() -> Iterator[None]:
    yield
    with contextlib.suppress(FileNotFoundError):
        path_of(NAME).unlink()


def path_of(name: str) -> Path:
    return configured().containers / name


def put(data: bytes) -> None:
    """Give the container these bytes. Who has an older one mapped keeps it."""
    path = path_of(NAME)
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)


def with_header(packed: bytes, header: Any) -> bytes:
    """A container with another header, and the checksum that goes with it."""
    if not isinstance(header, bytes):
        header = json.dumps(header).encode()
    start = Preamble.unpack(packed[:NBYTES], len(packed))._replace(
        header_offset=len(packed), header_nbytes=len(header), nbytes=len(packed) + len(header)
    )
    return start.pack(header) + packed[NBYTES:] + header


def header_of(packed: bytes) -> Any:
    start = Preamble.unpack(packed[:NBYTES], len(packed))
    return json.loads(packed[start.header_offset :][: start.header_nbytes])


def read() -> None:
    """Open the container, and look at all that is in it."""
    opened = xshm.open(NAME)
    if isinstance(opened, np.ndarray):
        look_at(opened)
        return
    nodes = opened.subtree if isinstance(opened, xr.DataTree) else [opened]
    for node in nodes:
        for variable in node.variables.values():
            # An array of a few bytes may repeat them without end: its corners will do.
            corners = {dim: [0, -1] for dim, n in variable.sizes.items() if n > 1000}
            look_at((variable.isel(corners) if corners else variable).values)
    assert len(xshm.SharedDataset(NAME).variables) >= 0


def look_at(x: np.ndarray) -> None:
    x.tolist() if x.dtype == object else x.tobytes()


def assert_says_what_is_wrong(error: BaseException) -> None:
    message = str(error)
    assert "expected" in message or "there is no" in message, message
    assert "found" in message or "there is no" in message, message
    assert len(message) < 2000


def assert_refused(data: bytes, match: str = "expected") -> None:
    put(data)
    with pytest.raises(FormatError, match=match) as caught:
        read()
    assert_says_what_is_wrong(caught.value)


def assert_read_or_refused(data: bytes) -> None:
    put(data)
    try:
        read()
    except XshmError as error:
        assert_says_what_is_wrong(error)


def test_what_is_damaged_here_can_be_read(packed: bytes) -> None:
    put(packed)
    read()
    put(with_header(packed, header_of(packed)))
    read()


# ---- damage by accident ----


def test_cut_off_anywhere(packed: bytes) -> None:
    start = Preamble.unpack(packed[:NBYTES], len(packed))
    header_end = start.header_offset + start.header_nbytes
    put(packed)
    path = path_of(NAME)
    # From the end, so that the same file can be made shorter and shorter.
    lengths = {*range(header_end + 2), *range(header_end, len(packed), 1009), len(packed) - 1}
    for length in sorted(lengths, reverse=True):
        os.truncate(path, length)
        with pytest.raises(FormatError) as caught:
            xshm.open(NAME)
        assert_says_what_is_wrong(caught.value)
    assert xshm.list() == []


def test_every_bit_of_the_preamble(packed: bytes) -> None:
    for place in range(NBYTES * 8):
        assert_refused(flipped(packed, place))


def test_bits_of_the_header(packed: bytes) -> None:
    start = Preamble.unpack(packed[:NBYTES], len(packed))
    chosen = random.Random(0)
    for _ in range(300):
        place = chosen.randrange(start.header_nbytes * 8) + 8 * start.header_offset
        assert_refused(flipped(packed, place), "checksum")


def flipped(packed: bytes, place: int) -> bytes:
    changed = bytearray(packed)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def test_a_newer_version(packed: bytes) -> None:
    newer = packed[:8] + (VERSION + 1).to_bytes(4, "little") + packed[12:]
    assert_refused(newer, f"expected version {VERSION} of the format, found {VERSION + 1}")


@pytest.mark.parametrize("data", [b"", b"\0" * 8192, b"\x89PNG\r\n\x1a\n" * 100, b"CDF\2" * 50])
def test_other_files(data: bytes) -> None:
    assert_refused(data, "expected a container")


def test_a_header_of_two_gigabytes(packed: bytes) -> None:
    """It is refused before it is read."""
    nbytes = 2**31
    for header_nbytes in (nbytes, MAX_HEADER + 1):
        put(Preamble("00" * 16, NBYTES, header_nbytes, NBYTES, nbytes + NBYTES).pack(b""))
        os.truncate(path_of(NAME), nbytes + NBYTES)
        with pytest.raises(FormatError, match=f"at most {MAX_HEADER} bytes, found {header_nbytes}"):
            read()


@pytest.mark.parametrize(
    "changes",
    [
        {"header_offset": 2**64 - 1},
        {"header_offset": 0},
        {"header_nbytes": 0},
        {"header_offset": 2**63, "nbytes": 2**64 - 1},
        {"data_offset": 0},
        {"data_offset": 2**64 - 4096},
        {"data_offset": 2**63},
        {"nbytes": 2**64 - 1},
        {"nbytes": 64},
        {"nbytes": 0},
    ],
    ids=str,
)
def test_a_preamble_that_lies(packed: bytes, changes: dict[str, int]) -> None:
    start = Preamble.unpack(packed[:NBYTES], len(packed))
    header = packed[start.header_offset :][: start.header_nbytes]
    if changes == {"header_nbytes": 0}:
        header = b""
    assert_refused(start._replace(**changes).pack(header) + packed[NBYTES:])


# ---- damage on purpose: the checksum is right ----

_DEEP = 100_000


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"buffers":{}}',
        b'{"buffers":null,"kind":"dataset"}',
        b'{"buffers":[],"kind":"dataset","groups":[',
        b'{"buffers":[]}\xff',
        b"[" * _DEEP,
        b'{"buffers":[],"a":' + b"[" * _DEEP + b"]" * _DEEP + b"}",
        b'{"buffers":[],"a":' + b'{"a":' * _DEEP + b"1" + b"}" * _DEEP + b"}",
        b'{"buffers":[[0,' + b"9" * 10_000 + b"]]}",
        b'{"buffers":[[0,1e999]]}',
        b'{"buffers":[[NaN,0]]}',
    ],
    ids=lambda text: repr(text[:30]),
)
def test_a_header_that_is_none(packed: bytes, text: bytes) -> None:
    assert_refused(with_header(packed, text))


@pytest.mark.parametrize("kind", [None, 1, "", "zarr", [], {}, "dataset\0"], ids=repr)
def test_a_kind_that_is_none(packed: bytes, kind: Any) -> None:
    assert_refused(with_header(packed, {**header_of(packed), "kind": kind}))


@pytest.mark.parametrize("groups", [None, 1, {}, [], [1], [{}], [{"path": 1}], [{"path": "/a"}]])
def test_groups_that_are_none(packed: bytes, groups: Any) -> None:
    assert_refused(with_header(packed, {**header_of(packed), "groups": groups}))


@pytest.mark.parametrize(
    "buffer",
    [
        None,
        0,
        [],
        [0],
        [0, 0, 0],
        ["0", 0],
        [0.0, 0],
        [False, 0],
        [0, True],
        [-4096, 4096],
        [4096, -1],
        [1, 1],
        [4095, 1],
        [2**63, 0],
        [0, 2**63],
        [2**64, 2**64],
        [4096 * 2**60, 1],
    ],
    ids=str,
)
def test_a_buffer_in_no_place(packed: bytes, buffer: Any) -> None:
    header = header_of(packed)
    assert_refused(with_header(packed, {**header, "buffers": [*header["buffers"], buffer]}))


def test_buffers_that_overlap(packed: bytes) -> None:
    header = header_of(packed)
    assert_refused(with_header(packed, {**header, "buffers": [[0, 4097], [4096, 1]]}), "overlaps")
    assert_refused(with_header(packed, {**header, "buffers": [[0, 1], [0, 1]]}), "overlaps")


def of_array(packed: bytes, **changes: Any) -> bytes:
    """A container of one array of 10 floats in a buffer of 80 bytes, or of something worse."""
    spec = {"kind": "ndarray", "dtype": "<f8", "shape": [10], "strides": [8], "buffer": 0}
    header = {"kind": "ndarray", "groups": [], "array": {**spec, "offset": 0, **changes}}
    return with_header(packed, {**header, "buffers": [[0, 80]]})


def test_an_array_that_repeats_its_elements_takes_no_room(packed: bytes) -> None:
    put(of_array(packed, shape=[2**50, 10], strides=[0, 8]))
    x = xshm.open(NAME)
    assert x.shape == (2**50, 10)
    assert x.strides == (0, 8)


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [11]},
        {"shape": [2**60]},
        {"shape": [2**63 - 1]},
        {"shape": [2**63]},
        {"shape": [2**32, 2**32], "strides": [0, 0]},
        {"shape": [0, 2**62], "strides": [0, 0]},
        {"shape": [-1]},
        {"shape": [10.0]},
        {"shape": [True]},
        {"shape": 10},
        {"shape": None},
        {"shape": [1] * 65, "strides": [0] * 65},
        {"strides": [9]},
        {"strides": [-8]},
        {"strides": [-8], "offset": 72},
        {"strides": [2**62]},
        {"strides": []},
        {"offset": 1},
        {"offset": -8},
        {"offset": 2**63},
        {"buffer": 1},
        {"buffer": -1},
        {"buffer": None},
        {"buffer": True},
        {"dtype": "|O"},
        {"dtype": "O"},
        {"dtype": "<f16"},
        {"dtype": "<U3"},
        {"dtype": "<U9999999999"},
        {"dtype": "f8,f8"},
        {"dtype": "<M8[0s]"},
        {"dtype": {"base": "<f8", "shape": [1]}},
        {"dtype": {"fields": [["a", "|O", 0]], "itemsize": 8, "aligned": False, "record": False}},
        {"dtype": {"fields": [["a", "<f8", 1]], "itemsize": 8, "aligned": False, "record": False}},
        {"kind": "pickle"},
        {"kind": None},
    ],
    ids=str,
)
def test_an_array_that_lies(packed: bytes, changes: dict[str, Any]) -> None:
    assert_refused(of_array(packed, **changes))


def huge(header: Any) -> list[dict[str, Any]]:
    """The specs of arrays that can be made to repeat a few bytes."""
    return [value for value, key in places(header) if key == "strides" and value["shape"]]


def test_few_bytes_that_are_repeated_without_end(packed: bytes) -> None:
    """Nothing makes so many elements of them, or looks at them all."""
    for number in range(len(huge(header_of(packed)))):
        header = header_of(packed)
        spec = huge(header)[number]
        spec["shape"] = [2**50] + [1] * (len(spec["shape"]) - 1)
        spec["strides"] = [0] * len(spec["shape"])
        assert_read_or_refused(with_header(packed, header))


_NESTED: Any = 1
for _ in range(300):
    _NESTED = [_NESTED]

_WRONG = [
    *(None, True, False, -1, 0, 1, 2, 3, 255, 2**31, 2**62, 2**63 - 1, 2**63, -(2**63), 10**300),
    *(1.5, -0.5, 1e308, "", "a", "/", "/child", "/child/x", "..", "\0", "\ud800", "x" * 300),
    *("|O", "|S0", "<f8", "<U1", "<M8[ns]", "<M8[0s]", "F", "ndarray", "strings", "objects"),
    *("Index", "RangeIndex", "MultiIndex", "PandasIndex", "NDPointIndex", "dataset", "dataarray"),
    *([], [[]], [0], [0, 0], [2**62, 2], {}, {"dict": []}, {"dict": [[[], 1]]}, {"tuple": []}),
    *({"float": "7ff8000000000000"}, {"numpy": ["|O", "AAAAAAAAAAA="]}, {"type": "eval"}),
    *({"array": [{"kind": "strings", "shape": [9], "order": "C"}, []]}, {"dtype": "|O"}, _NESTED),
]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Each container of a JSON value, with each of its keys."""
    keys = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    found = [(value, key) for key in keys]
    for key in keys:
        found += places(value[key])
    return found


@given(st.data())
@settings(
    max_examples=400,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_any_change_to_the_header_is_read_or_refused(packed: bytes, data: st.DataObject) -> None:
    header = header_of(packed)
    for _ in range(data.draw(st.integers(1, 3))):
        all_places = [(v, k) for v, k in places(header) if v is not header["groups"]]
        all_places = [(v, k) for v, k in all_places if k not in ("groups", "path")]
        value, key = all_places[data.draw(st.integers(0, len(all_places) - 1))]
        match data.draw(st.sampled_from(["replace", "replace", "move", "remove", "repeat"])):
            case "replace":
                value[key] = copy.deepcopy(data.draw(st.sampled_from(_WRONG)))
            case "move":
                other, at = all_places[data.draw(st.integers(0, len(all_places) - 1))]
                value[key] = copy.deepcopy(other[at])
            case "remove":
                del value[key]
            case "repeat" if isinstance(value, list):
                value.append(copy.deepcopy(value[key]))
    assert_read_or_refused(with_header(packed, header))


@pytest.mark.parametrize(("name", "code"), [("strings", 6), ("calendar", 5)])
def test_codes_of_elements_that_are_none(packed: bytes, name: str, code: int) -> None:
    header = header_of(packed)
    (spec,) = [v["data"] for v in header["groups"][0]["variables"] if v["name"] == name]
    start = Preamble.unpack(packed[:NBYTES], len(packed))
    changed = bytearray(packed)
    changed[start.data_offset + header["buffers"][spec["codes"]][0]] = code
    assert_refused(bytes(changed), "expected codes")


@given(st.data())
@settings(
    max_examples=200,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_any_change_to_the_buffers_is_read_or_refused(packed: bytes, data: st.DataObject) -> None:
    """What is not of fixed size is checked when it is decoded: nothing else covers it."""
    start = Preamble.unpack(packed[:NBYTES], len(packed))
    changed = bytearray(packed)
    buffers = [buffer for buffer in header_of(packed)["buffers"] if buffer[1]]
    for offset, nbytes in data.draw(st.lists(st.sampled_from(buffers), min_size=1, max_size=4)):
        at = start.data_offset + offset + data.draw(st.integers(0, nbytes - 1))
        changed[at] = data.draw(st.sampled_from([0, 1, 5, 6, 34, 91, 123, 127, 128, 255]))
    assert_read_or_refused(bytes(changed))


# ---- what is no file of ours ----

WRONG_NAMES = [
    *("", ".", "..", ".hidden", "/", "a/b", "../x", "/etc/passwd", "a/", "./a", "a\0b", "\0"),
    *("a\n", "a\tb", "\x7f", "\ud800", "x" * 300, "x" * 201, "é" * 101, "\u2028"),
]


@pytest.mark.parametrize("name", WRONG_NAMES, ids=lambda name: ascii(name)[:20])
def test_names_that_no_container_has(name: str, directory: Path) -> None:
    before = sorted(directory.rglob("*"))
    for use in (xshm.open, xshm.SharedDataset, xshm.unlink):
        with pytest.raises(ContainerNameError) as caught:
            use(name)
        assert_says_what_is_wrong(caught.value)
    with pytest.raises(ContainerNameError):
        xshm.publish(np.arange(3), name)
    with pytest.raises(ContainerNameError):
        xr.open_dataset(name, engine="xshm")
    assert sorted(p for p in directory.rglob("*") if p.is_file()) == [
        p for p in before if p.is_file()
    ]


@pytest.mark.parametrize("name", [None, 1, b"example", ["example"], Path("example")], ids=repr)
def test_what_is_no_name(name: Any) -> None:
    with pytest.raises(ContainerNameError):
        xshm.unlink(name)


@pytest.mark.parametrize(
    "kind", ["link", "dangling link", "folder", "fifo", "socket", "device", "empty"]
)
@pytest.mark.parametrize("mode", ["r", "r+"])
def test_what_is_no_file(kind: str, mode: Any, packed: bytes, tmp_path: Path) -> None:
    """No hang, no descriptor left, and what it is stays as it was."""
    path = path_of(NAME)
    target = tmp_path / "precious"
    target.write_bytes(packed)
    target.chmod(0o600)
    with contextlib.ExitStack() as stack:
        match kind:
            case "link":
                path.symlink_to(target)
            case "dangling link":
                path.symlink_to(tmp_path / "nothing")
            case "folder":
                path.mkdir()
                stack.callback(path.rmdir)
            case "fifo":
                os.mkfifo(path, 0o600)
            case "socket":
                listener = stack.enter_context(socket.socket(socket.AF_UNIX))
                listener.bind(str(path))
            case "device":
                if os.geteuid() != 0:
                    pytest.skip("only root makes devices")
                os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero
            case "empty":
                path.touch(0o600)
        before = sorted(os.listdir("/proc/self/fd"))
        with pytest.raises(FormatError) as caught:
            xshm.open(NAME, mode)
        assert_says_what_is_wrong(caught.value)
        assert str(path) in str(caught.value)
        assert xshm.list() == []
        assert sorted(os.listdir("/proc/self/fd")) == before
        assert path.is_symlink() or path.exists()
    assert target.read_bytes() == packed


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o660, 0o640, 0o604, 0o601, 0o777], ids=oct)
def test_a_file_that_others_may_use(packed: bytes, mode: int) -> None:
    put(packed)
    path_of(NAME).chmod(mode)
    with pytest.raises(FormatError, match=r"expected an ordinary file of user .* with mode 600"):
        read()


def test_a_file_of_another_user(packed: bytes) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    put(packed)
    os.chown(path_of(NAME), 65534, 65534)
    with pytest.raises(FormatError, match=r"found mode .* of user 65534"):
        read()


def test_a_container_in_place_of_another_is_not_taken_for_it(packed: bytes) -> None:
    put(packed)
    shared = xshm.SharedDataset(NAME)
    put(Preamble("00" * 16, NBYTES, 2, NBYTES, NBYTES + 2).pack(b"{}") + b"{}")
    with pytest.raises(ContainerNotFoundError, match="published again"):
        shared.open()
