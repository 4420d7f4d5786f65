"""Every value arrives over shm:// as it does over tcp://."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.config
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from numpy.lib.stride_tricks import as_strided, sliding_window_view

import xshm
from tests import clusters
from tests.clusters import Make, assert_same, exchange, growth

N = 6000  # items: more than the threshold of 4 KiB even of one byte each

_RNG = np.random.default_rng(1)


def noise(dtype: Any) -> np.ndarray:
    """Random bits: NaNs with payloads, denormals, dates far away."""
    dtype = np.dtype(dtype)
    return np.frombuffer(_RNG.bytes(N * dtype.itemsize), dtype).copy()


def dates(unit: str) -> np.ndarray:
    x = np.arange(N).astype(f"M8[{unit}]")
    x[::7] = "NaT"
    return x


NESTED = np.dtype(
    [("a", "i4"), ("b", [("x", ">f8"), ("y", "S5", (2, 3))]), ("c", "M8[s]"), ("d", "?")]
)

DTYPES: dict[str, Make] = {
    "bool": lambda: _RNG.integers(0, 2, N).astype(bool),
    **{d: lambda d=d: noise(d) for d in np.typecodes["AllInteger"] + "efdgFDG"},
    **{d: lambda d=d: noise(d) for d in (">i2", ">u8", ">f2", ">f4", ">f8", ">c16", ">M8[ms]")},
    **{f"M8[{unit}]": lambda unit=unit: dates(unit) for unit in ("Y", "D", "s", "ns", "25us")},
    "M8": lambda: noise("i8").view("M8"),
    **{f"m8[{unit}]": lambda unit=unit: noise(f"m8[{unit}]") for unit in ("W", "h", "as")},
    "S": lambda: np.array([b"grey", b"", b"a\0b"] * N),
    "U": lambda: np.array(["grün", "", "雪"] * N),
    ">U": lambda: np.array(["grün", "", "雪"] * N).astype(">U4"),
    "void": lambda: noise("V13"),
    "structured": lambda: noise([("x", "f4"), ("y", "i8")]),
    "nested": lambda: noise(NESTED),
    "aligned": lambda: noise(np.dtype([("x", "i1"), ("y", "f8")], align=True)),
    "with metadata": lambda: noise("f8").astype(np.dtype("f8", metadata={"unit": "K"})),
    "object": lambda: np.array([1, "two", None, (3.0,)] * N, dtype=object),
    "StringDType": lambda: np.array(["a", "longer than what fits in line", ""] * N, dtype="T"),
}

SHAPES: dict[str, Make] = {
    "0-d": lambda: np.array(1.5),
    "0-d and large": lambda: np.array(b"x" * N),
    "empty": lambda: np.empty((0, 3)),
    "empty of no size": lambda: np.empty(3, "V0"),
    "Fortran order": lambda: np.asfortranarray(noise("f8").reshape(100, 60)),
    "transposed": lambda: noise("f8").reshape(10, 20, 30).transpose(2, 0, 1),
    "many axes": lambda: noise("u1")[:4096].reshape((2,) * 12 + (1,) * 20).T,
    "rows": lambda: noise("f8").reshape(100, 60)[10:90],
    "columns": lambda: noise("f8").reshape(100, 60)[:, 5:55],
    "columns in Fortran order": lambda: np.asfortranarray(noise("f8").reshape(60, 100))[5:55],
    "block": lambda: noise("f4").reshape(10, 20, 30)[1:9, 2:19, 3:29],
    "transposed block": lambda: noise("f8").reshape(10, 20, 30)[1:9, 2:19, 3:29].T,
    "every third": lambda: noise("f8")[1::3],
    "backwards": lambda: noise("f8")[::-1],
    "backwards in one axis": lambda: noise("f8").reshape(100, 60)[::2, ::-1],
    "every hundredth": lambda: np.arange(600_000.0)[::100],
    "one of a large one": lambda: np.arange(600_000.0)[1234:1235],
    "one column": lambda: noise("f8").reshape(60, 100)[:, 3:4],
    "field": lambda: noise([("x", "f4"), ("y", "i8")])["y"],
    "block of structured": lambda: noise(NESTED).reshape(60, 100)[:, 5:55],
    "imaginary part": lambda: noise("D").imag,
    "misaligned": lambda: noise("u1")[1:-7].view("f8"),
    "windows": lambda: sliding_window_view(noise("f8"), 3),
    "writable windows": lambda: as_strided(noise("f8"), (N - 1, 2), (8, 8)),
    "read-only": lambda: frozen(noise("f8")),
    "read-only columns": lambda: frozen(noise("f8")).reshape(100, 60)[:, 5:55],
    "bool block": lambda: (noise("f8") > 0).reshape(60, 100)[:, 10:90],
    "block of dates": lambda: dates("ns").reshape(60, 100)[:, 10:90],
    "block of strings": lambda: np.array(["grün"] * N).reshape(60, 100)[:, 10:90],
    "broadcast": lambda: np.broadcast_to(noise("f8"), (1000, N)),
    "broadcast inside": lambda: np.broadcast_to(noise("f8").reshape(60, 1, 100), (60, 9, 100)),
    "broadcast of a slice": lambda: np.broadcast_to(noise("f8")[::2, None], (N // 2, 9)),
}


def frozen(x: np.ndarray) -> np.ndarray:
    x.flags.writeable = False
    return x


def masked(**options: Any) -> np.ma.MaskedArray:
    return np.ma.masked_array(noise("i4"), **options)


def labelled() -> xr.Dataset:
    return xr.Dataset(
        {
            "t": (("time", "x"), noise("f4").reshape(60, 100), {"units": "K"}),
            "n": ("time", np.arange(60)),
        },
        coords={
            "time": pd.date_range("2000-01-01", periods=60),
            "x": np.linspace(0, 1, 100),
            "name": ("x", [f"station {i}" for i in range(100)]),
        },
        attrs={"title": "of a test"},
    )


def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "f": noise("f8"),
            "i": noise("i8"),
            "category": pd.Categorical(["a", "b", "c"] * (N // 3)),
            "text": ["grün", None, "x"] * (N // 3),
            "object": [(1,), None, "x"] * (N // 3),
            "when": pd.date_range("2000-01-01", periods=N, tz="Europe/Zurich"),
            "nullable": pd.array([1, None, 3] * (N // 3), dtype="Int32"),
        },
        index=pd.Index(np.arange(N)[::-1], name="backwards"),
    )


class Track:
    """A class of somebody's, with arrays in it."""

    def __init__(self) -> None:
        self.name = "track"
        self.points = noise("f8").reshape(-1, 2)
        self.parts = [self.points[::2], {"mask": self.points > 0}]


class Sparse:
    """As sparse arrays do, it gives its buffers away out of band (pickle protocol 5)."""

    def __init__(self, places: np.ndarray, values: Any) -> None:
        self.places = places
        self.values = bytes(values)

    def __reduce_ex__(self, protocol: Any) -> Any:
        values = pickle.PickleBuffer(self.values) if protocol >= 5 else self.values
        return Sparse, (self.places, values)


class Labelled(np.ndarray):
    """A subclass of ndarray."""


OBJECTS: dict[str, Make] = {
    "masked": lambda: masked(mask=noise("u1") > 99),
    "masked, hard": lambda: masked(mask=noise("u1") > 99, hard_mask=True, fill_value=7),
    "masked, nowhere": lambda: masked(),
    "matrix": lambda: np.asmatrix(noise("f8").reshape(60, 100)),
    "recarray": lambda: noise([("x", "f4"), ("y", "i8")]).view(np.recarray),
    "subclass": lambda: noise("f8").view(Labelled),
    "Dataset": labelled,
    "DataArray": lambda: labelled()["t"],
    "DataArray, sliced": lambda: labelled()["t"][::2, 3:],
    "DataFrame": frame,
    "Series": lambda: frame()["category"],
    "Index": lambda: pd.Index(noise("f8")),
    "MultiIndex": lambda: pd.MultiIndex.from_product([range(N), list("abc")]),
    "dict": lambda: {"a": noise("f8"), "b": {"c": noise("i2"), "d": None}},
    "list": lambda: [noise("f8"), [noise("i2")[::2]], (1, "two"), np.ma.masked],
    "the same one twice": lambda: [noise("f8")] * 2,
    "object": Track,
    "out of band": lambda: Sparse(noise("i8"), noise("f4")),
    "bytes": lambda: _RNG.bytes(3 * 2**20),
    "bytearray": lambda: bytearray(_RNG.bytes(3 * 2**20)),
    "memoryview": lambda: memoryview(_RNG.bytes(3 * 2**20)),
    "memoryview of an array": lambda: memoryview(noise("f8")),
    "str": lambda: "grün" * N,
}

#: Values of which nothing is large, or which travel within a few small frames.
_SMALL = {"0-d", "empty", "empty of no size", "one of a large one", "one column"}


directory = clusters.module_directory


@pytest.fixture(scope="module", autouse=True)
def small_threshold(directory: Path) -> Iterator[None]:
    """4 KiB is large in these tests."""
    with dask.config.set({"xshm.threshold": "4 KiB"}):
        yield


@pytest.fixture(params=["born in a segment", "born elsewhere"])
def where(request: pytest.FixtureRequest) -> Iterator[None]:
    """Where the arrays of the test come from."""
    with xshm.allocator() if request.param == "born in a segment" else contextlib.nullcontext():
        yield


def _assert_as_on_tcp(by_shm: Any, by_tcp: Any, sent: Any) -> None:
    if isinstance(sent, np.ndarray):
        assert by_shm.strides in (by_tcp.strides, sent.strides)
    assert_same(by_shm, by_tcp)


def _check_arrives_as_on_tcp(make: Make, name: str) -> tuple[Any, Any]:
    """What was sent and what arrived, by handle if it is large."""
    sent = make()
    by_tcp = exchange(sent, "tcp")
    before = xshm.stats()
    by_shm = exchange(sent, "shm")
    grown = growth(before)
    _assert_as_on_tcp(by_shm, by_tcp, sent)
    if name not in _SMALL:
        assert grown["handles_sent"] == grown["handles_received"] > 0
    assert grown["bytes_sent_inline"] == 0
    return sent, by_shm


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize("name", DTYPES)
def test_dtypes(name: str) -> None:
    sent, received = _check_arrives_as_on_tcp(DTYPES[name], name)
    assert_same(received, sent)


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize("name", SHAPES)
def test_shapes_and_strides(name: str) -> None:
    sent, received = _check_arrives_as_on_tcp(SHAPES[name], name)
    if not sent.flags.writeable:  # as on tcp, a slice of it arrives writable, like any copy
        sent.flags.writeable = received.flags.writeable = False
    assert_same(received, sent)


@pytest.mark.usefixtures("where")
@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("name", OBJECTS)
def test_objects(name: str) -> None:
    _check_arrives_as_on_tcp(OBJECTS[name], name)


def identity(x: Any) -> Any:
    """A task that hands its input on."""
    return x


def _pass_through_workers(values: list[Any], protocol: str) -> list[Any]:
    """What comes back to the client from the second worker, which had it from the first."""
    before = xshm.stats()
    with clusters.cluster(protocol=protocol) as client:
        first, second = clusters.workers_of(client)
        at_first = client.scatter(values, workers=[first], hash=False)
        at_second = client.map(identity, at_first, workers=[second], pure=False)
        received: list[Any] = client.gather(at_second)
        if protocol == "shm":
            # The scheduler and the client of this process, and the workers, which are new.
            for grown in (growth(before), *client.run(xshm.stats).values()):
                assert grown["handles_received"] > 80
                assert grown["bytes_sent_inline"] == 0
        return received


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_all_values_pass_through_two_workers_as_on_tcp(directory: Path) -> None:
    sent = [make() for make in (DTYPES | SHAPES | OBJECTS).values()]
    by_tcp = _pass_through_workers(sent, "tcp")
    with clusters.leaving_nothing(directory):
        by_shm = _pass_through_workers(sent, "shm")
    for x, y, expected in zip(sent, by_shm, by_tcp, strict=True):
        _assert_as_on_tcp(y, expected, x)


@pytest.mark.usefixtures("where")
def test_a_broadcast_array_stays_small() -> None:
    before = xshm.stats()
    received = exchange(np.broadcast_to(np.arange(float(N)), (10_000, N)), "shm")
    assert growth(before)["bytes_sent_by_handle"] == N * 8
    assert received.strides == (0, 8)


@pytest.mark.usefixtures("where")
def test_items_that_share_memory_arrive_apart_as_on_tcp() -> None:
    windows = as_strided(np.zeros(N), (N - 1, 2), (8, 8))
    for protocol in clusters.PROTOCOLS:
        received = exchange(windows, protocol)
        received[0, 1] = 1
        assert received[1, 0] == 0, protocol


@pytest.mark.parametrize("items", [0, 1, 511, 512, 513, 1024, 5000])
def test_sizes_around_the_threshold_and_pages(items: int) -> None:
    with xshm.allocator():
        sent = np.arange(float(items))
    before = xshm.stats()
    assert_same(exchange(sent, "shm"), sent)
    assert growth(before)["handles_sent"] == (sent.nbytes >= 4096)
