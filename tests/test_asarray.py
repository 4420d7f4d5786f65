"""Arrays over what other tools share: the same bytes, the right layout, for as long as needed."""

from __future__ import annotations

import array
import ctypes
import gc
import mmap
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing import sharedctypes
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xshm
from xshm.errors import (
    ClosedError,
    LayoutError,
    SharedMemoryNotFoundError,
    UnsupportedError,
    XshmError,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


class Point(ctypes.Structure):
    """With padding: 7 bytes after `kind`, 2 at the end."""

    _fields_ = (("kind", ctypes.c_char), ("x", ctypes.c_double), ("cell", ctypes.c_short * 3))


class Named(Point):
    _fields_ = (("name", ctypes.c_wchar * 4),)


class Renamed(Point):
    """One of its fields hides another."""

    _fields_ = (("kind", ctypes.c_int64),)


class Packed(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("kind", ctypes.c_char), ("x", ctypes.c_double))


class Either(ctypes.Union):
    _fields_ = (("whole", ctypes.c_int64), ("real", ctypes.c_double))


class Tagged(ctypes.Structure):
    _fields_ = (("tag", ctypes.c_int32), ("value", Either))


class BigEndian(ctypes.BigEndianStructure):
    _fields_ = (("n", ctypes.c_int32), ("x", ctypes.c_double))


class Flags(ctypes.Structure):
    _fields_ = (("low", ctypes.c_int, 3), ("high", ctypes.c_int, 5))


class Linked(ctypes.Structure):
    _fields_ = (("next", ctypes.POINTER(ctypes.c_int)),)


class Nothing(ctypes.Structure):
    _fields_ = ()


@pytest.fixture(autouse=True, scope="module")
def _heap() -> None:
    """multiprocessing keeps its memory for small arrays open until the process ends."""
    sharedctypes.RawArray("b", 2**20)


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    """64 bytes of SharedMemory, with no view left in the end."""
    memory = SharedMemory(create=True, size=64)
    yield memory
    gc.collect()
    memory.close()
    memory.unlink()


# ---- The layout is the buffer's own.


@pytest.mark.parametrize("lock", [True, False])
def test_an_array_of_multiprocessing_and_its_view_are_the_same_bytes(lock: bool) -> None:
    shared = multiprocessing.Array("d", [1, 2, 3], lock=lock)
    x = xshm.asarray(shared)
    assert (x.dtype, x.shape) == (np.float64, (3,))
    x[0] = 10
    shared[2] = 30
    assert shared[:] == x.tolist() == [10, 2, 30]
    assert x.flags.writeable


def test_a_value_gives_an_array_without_dimensions() -> None:
    shared = multiprocessing.Value("i", 3)
    x = xshm.asarray(shared)
    assert (x.dtype, x.shape) == (np.int32, ())
    x[...] += 1
    assert shared.value == 4
    raw = sharedctypes.RawValue(Point, b"a", 0.5, (1, 2, 3))
    xshm.asarray(raw)["x"] = 1.5
    assert raw.x == 1.5


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (ctypes.c_bool, "?"),
        (ctypes.c_ubyte, "u1"),
        (ctypes.c_char, "S1"),
        (ctypes.c_wchar, "U1"),
        (ctypes.c_short, "i2"),
        (ctypes.c_size_t, "u8"),
        (ctypes.c_float, "f4"),
        (ctypes.c_longdouble, "g"),
        (ctypes.c_double.__ctype_be__, ">f8"),
    ],
)
def test_the_dtype_is_that_of_the_ctypes_type(kind: Any, dtype: str) -> None:
    for shared in (multiprocessing.Array(kind, 5), sharedctypes.RawArray(kind, 5), (kind * 5)()):
        x = xshm.asarray(shared)
        assert (x.dtype, x.shape) == (np.dtype(dtype), (5,))
        assert x.dtype.char == np.dtype(dtype).char
    assert xshm.asarray(multiprocessing.Value(kind)).dtype == np.dtype(dtype)


def test_text_is_read_and_written() -> None:
    wide = multiprocessing.Array("u", "añ€𝄞")
    x = xshm.asarray(wide)
    assert x.tolist() == ["a", "ñ", "€", "𝄞"]
    x[0] = "z"
    assert wide[:] == "zñ€𝄞"
    narrow = multiprocessing.Array("c", b"abc")
    xshm.asarray(narrow)[1] = b"x"
    assert narrow.value == b"axc"
    assert xshm.asarray(narrow, "S3", ())[()] == b"axc"


def test_nested_arrays_are_dimensions() -> None:
    nested = sharedctypes.RawArray(ctypes.c_double * 3, 4)
    x = xshm.asarray(nested)
    assert (x.dtype, x.shape) == (np.float64, (4, 3))
    x[:] = np.arange(12).reshape(4, 3)
    assert list(nested[1]) == [3, 4, 5]
    assert xshm.asarray(((ctypes.c_short * 2 * 3) * 4)()).shape == (4, 3, 2)
    assert xshm.asarray(multiprocessing.Array(Point * 2, 3)).shape == (3, 2)
    assert xshm.asarray((ctypes.c_double * 3 * 0)()).shape == (0, 3)


@pytest.mark.parametrize("kind", [Point, Named, Renamed, Packed, Either, Tagged, BigEndian])
def test_the_fields_of_a_structure_lie_where_ctypes_has_them(kind: Any) -> None:
    """Padding, inherited fields, no padding, unions, unions in structures, byte order."""
    shared = sharedctypes.RawArray(kind, 3)
    x = xshm.asarray(shared)
    assert x.shape == (3,)
    assert x.dtype.itemsize == ctypes.sizeof(kind)
    assert x.dtype.fields is not None
    for name, (_, offset) in x.dtype.fields.items():
        field = getattr(kind, name)
        assert (offset, x.dtype[name].itemsize) == (field.offset, field.size)


def test_the_fields_of_a_structure_have_their_values() -> None:
    shared = multiprocessing.Array(Named, 2)
    x = xshm.asarray(shared)
    assert x.dtype.names == ("kind", "x", "cell", "name")
    shared[1].kind, shared[1].x, shared[1].name = b"k", 0.25, "abcd"
    x["cell"][1] = [1, 2, 3]
    assert (x["kind"][1], x["x"][1], "".join(x["name"][1])) == (b"k", 0.25, "abcd")
    assert list(shared[1].cell) == [1, 2, 3]

    tagged = xshm.asarray(multiprocessing.Value(Tagged, 1))
    tagged["value"]["real"] = 1.0
    assert tagged["value"]["whole"] == 0x3FF0_0000_0000_0000

    big = BigEndian(1, 2.0)
    assert bytes(big)[:4] == b"\0\0\0\1"
    xshm.asarray(big)["n"] += 1
    assert (big.n, big.x) == (2, 2.0)


def test_a_memoryview_of_a_structure_has_its_fields_too() -> None:
    shared = (Named * 3)()
    x = xshm.asarray(memoryview(shared)[1:])
    x["x"] = 7
    assert [item.x for item in shared] == [0, 7, 7]
    plain = memoryview((ctypes.c_ubyte * 8)()).cast("B").cast("d")
    assert xshm.asarray(plain).dtype == np.float64


@pytest.mark.parametrize(
    ("buffer", "dtype", "shape"),
    [
        (bytearray(6), "u1", (6,)),
        (array.array("f", [1, 2]), "f4", (2,)),
        (memoryview(bytearray(48)).cast("d", [2, 3]), "f8", (2, 3)),
        (memoryview(bytearray(8))[2:5], "u1", (3,)),
        (np.zeros((2, 3), ">i2"), ">i2", (2, 3)),
        (bytearray(), "u1", (0,)),
    ],
)
def test_any_buffer_has_a_view(buffer: Any, dtype: str, shape: tuple[int, ...]) -> None:
    x = xshm.asarray(buffer)
    assert (x.dtype, x.shape) == (np.dtype(dtype), shape)
    before = memoryview(buffer).tobytes()
    x.view(np.uint8)[...] += 1
    assert memoryview(buffer).tobytes() == bytes(b + 1 for b in before)


def test_a_view_of_what_is_read_only_is_read_only() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(bytes(16))
        file.flush()
        mapped = mmap.mmap(file.fileno(), 16, access=mmap.ACCESS_READ)
    for buffer in (bytes(16), memoryview(bytearray(16)).toreadonly(), mapped):
        x = xshm.asarray(buffer, np.int64)
        assert not x.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            x[0] = 1
    del x, buffer
    mapped.close()


# ---- Or another one, over the same bytes.


def test_another_dtype_reads_the_same_bytes() -> None:
    shared = sharedctypes.RawArray(ctypes.c_double * 3, 4)
    assert xshm.asarray(shared, np.int64).shape == (4, 3)  # items of the same size
    assert xshm.asarray(shared, np.float32).shape == (24,)
    assert xshm.asarray(shared, "c16").shape == (6,)
    assert xshm.asarray(multiprocessing.Value("d"), np.uint8).shape == (8,)
    shared[0][0] = 1.0
    assert xshm.asarray(shared, np.uint64)[0, 0] == 0x3FF0_0000_0000_0000
    assert xshm.asarray(shared, [("a", "f8"), ("b", "f8", 2)])["b"].shape == (4, 2)
    assert xshm.asarray(shared, ("f8", 6)).shape == (2, 6)


def test_a_ctypes_type_can_be_the_dtype(memory: SharedMemory) -> None:
    x = xshm.asarray(memory, Point, 2)
    x["x"] = 3
    assert Point.from_buffer_copy(memory.buf, ctypes.sizeof(Point)).x == 3
    assert xshm.asarray(memory, ctypes.c_wchar).dtype == "U1"
    assert xshm.asarray(memory, ctypes.c_double * 2).shape == (4, 2)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (8, (8,)),
        (np.int16(3), (3,)),
        ((), ()),
        ([2, 2], (2, 2)),
        ((2, -1), (2, 4)),
        (-1, (8,)),
        ((2, 0), (2, 0)),
        (0, (0,)),
    ],
)
def test_a_shape_is_of_as_many_items_or_fewer(
    memory: SharedMemory, shape: Any, expected: tuple[int, ...]
) -> None:
    x = xshm.asarray(memory, np.float64, shape)
    assert (x.dtype, x.shape) == (np.float64, expected)
    x[...] = 1
    ones = np.ones(x.size).tobytes()
    assert memory.buf.tobytes() == ones + bytes(64 - len(ones))


def test_a_shape_alone_keeps_the_dtype() -> None:
    shared = multiprocessing.Array("i", range(6))
    assert xshm.asarray(shared, shape=(2, 3)).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert xshm.asarray(shared, shape=()) == 0


# ---- SharedMemory and mmap.


def test_shared_memory_is_bytes_unless_told_otherwise(memory: SharedMemory) -> None:
    assert xshm.asarray(memory).dtype == np.uint8
    assert xshm.asarray(memory).shape == (64,)
    x = xshm.asarray(memory, np.float64, (2, 4))
    x[1] = [1, 2, 3, 4]
    for name in (memory.name, f"/{memory.name}"):
        assert (xshm.asarray(name, np.float64, (2, 4)) == x).all()
    y = xshm.asarray(memory.name, np.float64)
    y[0] = 9
    assert x[0, 0] == 9


def test_a_file_can_be_mapped(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    path.write_bytes(bytes(32))
    with path.open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
    x = xshm.asarray(mapped, "<i4", (2, 4))
    x[1, 3] = 258
    assert path.read_bytes() == bytes(28) + b"\2\1\0\0"
    with pytest.raises(BufferError):
        mapped.close()
    del x
    mapped.close()


def test_a_name_that_is_none_is_not_found(tmp_path: Path, directory: Path) -> None:
    assert issubclass(SharedMemoryNotFoundError, (XshmError, FileNotFoundError))
    secret = directory / "secret"
    secret.write_bytes(bytes(8))
    paths = (str(secret), str(secret.relative_to("/dev/shm")), directory.name, f"../{tmp_path}")
    for name in ("psm_there_is_none", "", "/", ".", "..", "a\0b", "\ud800", *paths):
        with pytest.raises(SharedMemoryNotFoundError, match="name of a SharedMemory"):
            xshm.asarray(name)
    secret.unlink()


def test_a_name_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(bytes(8))
    link = Path(tempfile.mktemp(prefix="xshm-test-link-", dir="/dev/shm"))
    link.symlink_to(tmp_path / "target")
    try:
        with pytest.raises(OSError, match="symbolic links"):
            xshm.asarray(link.name)
    finally:
        link.unlink()


def test_shared_memory_without_bytes_is_refused() -> None:
    with (
        tempfile.NamedTemporaryFile(prefix="xshm-test-empty-", dir="/dev/shm") as file,
        pytest.raises(LayoutError, match="found none"),
    ):
        xshm.asarray(Path(file.name).name)


def test_what_is_closed_is_refused() -> None:
    memory = SharedMemory(create=True, size=8)
    memory.close()
    memory.unlink()
    mapped = mmap.mmap(-1, 8)
    mapped.close()
    for closed in (memory, mapped):
        with pytest.raises(ClosedError, match="open it again"):
            xshm.asarray(closed)


# ---- A view keeps what it needs.


def test_a_view_keeps_shared_memory_open() -> None:
    memory = SharedMemory(create=True, size=2**20)
    memory.unlink()
    x = xshm.asarray(memory, np.float64)
    with pytest.raises(BufferError):
        memory.close()
    del memory
    gc.collect()
    part = x[5:10].reshape(5, 1)
    del x
    gc.collect()
    part += 1
    assert part.sum() == 5
    del part
    gc.collect()
    assert "psm_" not in " ".join(os.readlink(f.path) for f in os.scandir("/proc/self/fd") if f)


@pytest.mark.parametrize(
    "end",
    [
        "del memory; gc.collect(); x += 1; del x; gc.collect()",
        "del memory; gc.collect(); x += 1",
        "del x",
        "pass",
        "both = [memory, x]; both.append(both)",
        "both = [x, memory]; both.append(both); del x, memory; gc.collect()",
        "keep = sys; keep.x = x; keep.memory = memory",
        "sys.x = x; del x, memory",
        "memory = x = x[1:]; del memory, x",
    ],
)
def test_nothing_is_said_in_whatever_order_things_go(end: str) -> None:
    code = f"""
import gc, sys
from multiprocessing.shared_memory import SharedMemory
import xshm
memory = SharedMemory(create=True, size=64)
memory.unlink()
x = xshm.asarray(memory)
{end}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("lock", [True, False])
def test_a_view_keeps_the_memory_of_multiprocessing(lock: bool) -> None:
    """Else the next array would be made in the same place."""
    shared = multiprocessing.Array("d", [1, 2, 3], lock=lock)
    x = xshm.asarray(shared)[1:]
    del shared
    gc.collect()
    others = [multiprocessing.Array("d", [9, 9, 9], lock=lock) for _ in range(50)]
    assert x.tolist() == [2, 3]
    x[:] = 5
    assert all(other[:] == [9, 9, 9] for other in others)


def test_a_buffer_cannot_be_resized_under_a_view() -> None:
    for buffer in (bytearray(8), array.array("d", [1])):
        x = xshm.asarray(buffer)
        with pytest.raises(BufferError):
            buffer.extend(buffer[:1] * 1000)
        del x
        buffer.extend(buffer[:1])


# ---- Processes.


def add(number: float, *shared: Any) -> None:
    """Add a number to arrays of doubles that another process shares, which outlive their owners."""
    views = [xshm.asarray(s, np.float64) for s in shared]
    del shared
    gc.collect()
    for x in views:
        x += number


def add_in_child(context: Any, number: float, *shared: Any) -> None:
    child = context.Process(target=add, args=(number, *shared))
    child.start()
    child.join(100)
    assert child.exitcode == 0
    child.close()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_what_either_writes_is_seen_by_the_other(method: str, memory: SharedMemory) -> None:
    context = multiprocessing.get_context(method)
    shared = [context.Array("d", 3), context.RawArray("d", 3), context.Value("d"), memory]
    views = [xshm.asarray(s, np.float64) for s in shared]
    for i, x in enumerate(views):
        x[...] = i
    add_in_child(context, 10, *shared)
    for i, x in enumerate(views):
        assert (x == i + 10).all()


def test_what_a_forked_child_writes_to_inherited_memory_is_seen_here() -> None:
    mapped = mmap.mmap(-1, 64)
    nested = sharedctypes.RawArray(ctypes.c_double * 2, 3)
    add_in_child(multiprocessing.get_context("fork"), 3, mapped, nested)
    assert (xshm.asarray(mapped, np.float64) == 3).all()
    assert (xshm.asarray(nested) == 3).all()


def test_who_attaches_by_name_leaves_it_there_and_says_nothing(memory: SharedMemory) -> None:
    """Python's own SharedMemory(name) would have it removed when the process ends."""
    code = "import sys, xshm; xshm.asarray(sys.argv[1], 'i8')[:] = 7"
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code, memory.name], capture_output=True, text=True, timeout=100
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert Path("/dev/shm", memory.name).exists()
    assert (xshm.asarray(memory, "i8") == 7).all()


# ---- What does not fit is refused.


@pytest.mark.parametrize(
    ("dtype", "shape", "told"),
    [
        (np.float64, 9, "at least 72 bytes .* found 64"),
        (np.float64, (3, 3), r"at least 72 bytes .*\(3, 3\) .*float64 of 8 bytes, found 64"),
        ("S65", (), "at least 65 bytes"),
        (np.uint8, 2**40, "at least 1099511627776 bytes"),
        ("S48", None, "a multiple of 48 bytes .* found 64"),
        (np.float64, (3, -1), "a multiple of 24 bytes .* found 64"),
        (np.float64, (16, -1), "a multiple of 128 bytes .* found 64"),
        (np.float64, -2, "found .-2,"),
        (np.float64, (-1, -1), "one -1 at most"),
        (np.float64, (0, -1), "one -1 at most"),
        (np.float64, (-3, 2), "0 or more"),
        (np.float64, 2**60, "that an array can have"),
        (np.float64, 2**63, "that an array can have"),
        (np.float64, 10**5000, "that an array can have"),
        (np.float64, -(10**5000), "that an array can have"),
        (np.float64, (2**32, 2**32), "that an array can have"),
        (np.float64, (0, 2**62), "that an array can have"),
        (np.float64, (0, 10**5000), "that an array can have"),
        (np.float64, (2**62,) * 1000, "that an array can have"),
        (np.uint8, (1,) * 65, "65 dimensions"),
        (("u1", 1), (1,) * 64, "65 dimensions"),
        ("S", 3, "a dtype with a size"),
        ("V0", 3, "a dtype with a size"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_no_array_here_can_have_is_refused(
    memory: SharedMemory, dtype: Any, shape: Any, told: str
) -> None:
    with pytest.raises(LayoutError, match=told):
        xshm.asarray(memory, dtype, shape)


def test_as_many_dimensions_as_numpy_has(memory: SharedMemory) -> None:
    assert xshm.asarray(memory, np.uint8, (1,) * 64).ndim == 64


@pytest.mark.parametrize("shape", [1.5, (2, 1.5), "3", (None,)])
def test_a_shape_is_of_whole_numbers(memory: SharedMemory, shape: Any) -> None:
    with pytest.raises(TypeError, match="integer"):
        xshm.asarray(memory, np.float64, shape)


def test_too_few_bytes_are_refused_whatever_they_come_from() -> None:
    for buffer in (multiprocessing.Array("d", 3), bytearray(24), (ctypes.c_double * 3)()):
        with pytest.raises(LayoutError, match=r"at least 32 bytes .* found 24"):
            xshm.asarray(buffer, np.float64, 4)


def test_numbers_that_lie_askew_are_refused() -> None:
    buffer = memoryview(bytearray(17))[1:]
    with pytest.raises(LayoutError, match="aligned to 8 bytes for dtype float64"):
        xshm.asarray(buffer, np.float64)
    assert xshm.asarray(buffer, np.uint8).shape == (16,)
    half = memoryview(bytearray(24))[8:]  # as multiprocessing may place them
    assert xshm.asarray(half, np.longdouble).shape == (1,)


def test_what_is_not_in_one_piece_is_refused() -> None:
    for buffer in (memoryview(bytearray(8))[::2], np.zeros((2, 3), order="F")):
        with pytest.raises(LayoutError, match="in one piece"):
            xshm.asarray(buffer)


@pytest.mark.parametrize("dtype", [object, "O", np.dtypes.StringDType(), [("a", "O")]])
def test_objects_are_refused(memory: SharedMemory, dtype: Any) -> None:
    with pytest.raises(UnsupportedError, match="mean nothing in another process"):
        xshm.asarray(memory, dtype)


@pytest.mark.parametrize(
    ("buffer", "told"),
    [
        (np.array([1, "a"], object), "mean nothing in another process"),
        ((ctypes.py_object * 2)(), "mean nothing in another process"),
        ((Flags * 2)(), "bit fields in Flags"),
        ((Linked * 2)(), "pointers"),
        ((ctypes.c_char_p * 2)(), "c_char_p"),
        ((ctypes.c_void_p * 2)(), "a pointer"),
        ((ctypes.CFUNCTYPE(None) * 2)(), "give a dtype"),
    ],
)
def test_what_numpy_has_no_dtype_for_is_refused(buffer: Any, told: str) -> None:
    with pytest.raises(UnsupportedError, match=told):
        xshm.asarray(buffer)


def test_but_its_bytes_can_be_had() -> None:
    flags = (Flags * 2)()
    flags[1].high = 1
    assert xshm.asarray(flags, np.int32).tolist() == [0, 8]
    assert xshm.asarray(Nothing(), np.uint8).shape == (0,)
    with pytest.raises(LayoutError, match="a dtype with a size"):
        xshm.asarray(Nothing())


@pytest.mark.parametrize("dtype", [None, np.float64])
def test_a_pointer_is_not_what_it_points_to(dtype: Any) -> None:
    target = (ctypes.c_double * 3)()
    for pointer in (
        ctypes.cast(target, ctypes.POINTER(ctypes.c_double)),
        ctypes.c_void_p(ctypes.addressof(target)),
    ):
        with pytest.raises(UnsupportedError, match="as_array"):
            xshm.asarray(pointer, dtype)


@pytest.mark.parametrize("thing", [None, 7, [1.0, 2.0], object(), np.zeros(2, "M8[s]")])
def test_what_has_no_buffer_is_refused(thing: Any) -> None:
    with pytest.raises(UnsupportedError, match="expected shared memory or another buffer"):
        xshm.asarray(thing)
