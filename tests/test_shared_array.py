"""A SharedArray is one array, in whichever process it is, for as long as somebody has it."""

from __future__ import annotations

import copy
import gc
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing.managers import SharedMemoryManager
from pathlib import Path
from typing import Any

import cloudpickle
import dask.config
import numpy as np
import pytest
import xarray as xr

import xshm
from tests.conftest import files_in, same_bytes, wait_until
from tests.kinds_of_arrays import DTYPES, MEMORY
from tests.test_container_damage import header_of, with_header
from tests.test_process import Peer
from xshm import SharedArray, janitor, process
from xshm.directory import configured
from xshm.errors import (
    ClosedError,
    ContainerExistsError,
    ContainerNameError,
    ContainerNotFoundError,
    FormatError,
    LayoutError,
    NoRoomError,
    UnsupportedError,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

DUMPS = pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps])


@pytest.fixture(params=["a name", None], ids=["named", "unnamed"])
def a(request: pytest.FixtureRequest) -> Iterator[SharedArray[np.float64]]:
    """0, 1, ... 11 in three rows."""
    x = np.arange(12.0).reshape(3, 4)
    with SharedArray.from_array(x, request.param) as shared:
        yield shared


def sent(x: Any) -> Any:
    """As it arrives in another process; here it is this one."""
    return pickle.loads(pickle.dumps(x))


# ---- values, dtypes, shapes ----


def plain_arrays() -> dict[str, np.ndarray]:
    """Every kind of array that a Dataset can hold, and in which order it may lie."""
    x = np.arange(24, dtype="i4").reshape(2, 3, 4)
    made = {name: make() for name, make in (DTYPES | MEMORY).items()}
    arrays = {
        name: obj.v.values if isinstance(obj, xr.Dataset) else obj for name, obj in made.items()
    }
    colours = np.array([["Red", "Green"], ["Purple", "Orange"]])
    return {name: array for name, array in arrays.items() if type(array) is np.ndarray} | {
        "C order": x,
        "Fortran order": np.asfortranarray(x),
        "transposed": x.transpose(1, 2, 0),
        "transposed text": colours.T,
        "sliced": x[:, ::2, 1:],
        "reversed": x[::-1, :, ::-1],
        "broadcast": np.broadcast_to(x[0, 0], (3, 4)),
        "0-d": np.array(1.5),
        "0-d text": np.array("Orange"),
        "no rows": np.zeros((0, 3)),
        "no columns": np.zeros((3, 0), "U5"),
        "bool": x > 5,
    }


@pytest.mark.parametrize("name", [None, "example"])
@pytest.mark.parametrize("kind", plain_arrays())
def test_an_array_comes_back_as_it_was(kind: str, name: str | None) -> None:
    x = plain_arrays()[kind]
    with SharedArray.from_array(x, name) as made:
        attached = sent(made) if name is None else SharedArray(name)
        for shared in (made, attached, sent(attached)):
            assert same_bytes(shared.get(), x)
            assert same_bytes(sent(shared.get()), x)
            assert shared.dtype.metadata == x.dtype.metadata
            assert shared.get().flags.writeable
            if x.flags.forc:
                assert shared.get().flags.c_contiguous == x.flags.c_contiguous
                assert shared.get().flags.f_contiguous == x.flags.f_contiguous
        del attached, shared


def test_each_element_of_what_was_repeated_is_its_own() -> None:
    a = SharedArray.from_array(np.broadcast_to(np.arange(3.0), (2, 3)))
    a[0, 0] = 99
    assert a.get().tolist() == [[99, 1, 2], [0, 1, 2]]


@pytest.mark.parametrize("x", [[[1, 2], [3, 4]], 1.5, "abc", (True, False), range(3)])
def test_what_is_like_an_array_is_made_one(x: Any) -> None:
    assert same_bytes(SharedArray.from_array(x).get(), np.asarray(x))


def test_of_labelled_and_shared_arrays_it_takes_the_values(a: Any) -> None:
    assert same_bytes(SharedArray.from_array(a).get(), a.get())
    assert same_bytes(SharedArray.from_array(xr.DataArray(a.get())).get(), a.get())


@pytest.mark.parametrize("make", [SharedArray.from_shape, SharedArray.zeros, SharedArray.empty])
def test_new_ones_are_zero(make: Callable[..., Any]) -> None:
    assert same_bytes(make((2, 3)).get(), np.zeros((2, 3)))
    assert same_bytes(make(4, "U3").get(), np.zeros(4, "U3"))
    assert same_bytes(make([], np.int16).get(), np.zeros((), np.int16))
    assert same_bytes(make((3,), "2i4").get(), np.zeros(3, "2i4"))
    with make(np.int64(3), "M8[s]", "example") as named:
        assert same_bytes(SharedArray("example").get(), np.zeros(3, "M8[s]"))
    assert named.name == "example"


@pytest.mark.parametrize(
    "arguments",
    [((2, 3), 7), (3, 1.5, "i2"), ((2, 3), [1, 2, 3]), (2, "abc"), ((), 1j), ((0, 2), 1)],
    ids=str,
)
def test_full_ones_are_as_numpy_makes_them(arguments: Any) -> None:
    full = SharedArray.full(*arguments)
    assert same_bytes(full.get(), np.full(*arguments))
    full[...] = full.get()[..., ::-1].copy() if full.ndim else 0  # each element is its own


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        (-1, "f8"),
        ((2, -3), "f8"),
        ((1,) * 65, "i1"),
        (2**62, "f8"),
        ((2**32, 2**32), "i1"),
        ((0, 2**62, 2**62), "i1"),
        (10**30, "f8"),
        (3, "U"),
        (3, "S"),
        (3, "V"),
    ],
    ids=str,
)
def test_what_no_array_can_be_is_refused(shape: Any, dtype: str, directory: Path) -> None:
    with pytest.raises(LayoutError, match="expected"):
        SharedArray.from_shape(shape, dtype)
    with pytest.raises(LayoutError, match="expected"):
        SharedArray.from_shape(shape, dtype, "example")
    assert files_in(directory) == []


@pytest.mark.parametrize(
    "x",
    [
        np.array(["a", None], object),
        np.zeros(2, [("a", "O")]),
        np.array(["a", "bc"], np.dtypes.StringDType()),
        np.ma.MaskedArray([1, 2], [True, False]),
    ],
    ids=["objects", "structure of objects", "StringDType", "masked"],
)
def test_what_cannot_be_shared_is_refused(x: Any, directory: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"expected .*(x, 'U'|x\.filled)"):
        SharedArray.from_array(x, "example")
    assert files_in(directory) == []


@pytest.mark.parametrize("dtype", ["O", [("a", "O")], np.dtypes.StringDType()], ids=str)
def test_dtypes_that_cannot_be_shared_are_refused(dtype: Any) -> None:
    with pytest.raises(UnsupportedError, match="fixed size"):
        SharedArray.from_shape(3, dtype)
    with pytest.raises(UnsupportedError, match="fixed size"):
        SharedArray.zeros(2).view(dtype)


@pytest.mark.parametrize("name", [None, "example"])
def test_no_room_leaves_nothing(name: str | None, directory: Path) -> None:
    with pytest.raises(NoRoomError):
        SharedArray.zeros(2**50, "i1", name)
    process.close()
    assert files_in(directory) == []


# ---- writes ----


def add_one(x: Any) -> None:
    x += 1


def test_writes_of_any_process_are_seen_by_all(a: Any) -> None:
    with Peer() as peer:
        peer(add_one, a)
        assert (a == np.arange(1, 13).reshape(3, 4)).all()
        a[:] = 5
        assert peer(np.mean, a) == 5


@pytest.mark.parametrize("key", [np.s_[1:], np.s_[:, 2], np.s_[::-1, ::-2], np.s_[..., None], ()])
def test_a_part_in_another_process_is_the_same_memory(a: Any, key: Any) -> None:
    expected = a.copy()
    expected[key] += 1
    with Peer() as peer:
        peer(add_one, a[key])
    assert (a == expected).all()


def test_writes_after_a_fork_are_seen_on_both_sides(a: Any) -> None:
    child = os.fork()
    if child == 0:
        a[0, 0] = 99
        os._exit(0)
    os.waitpid(child, 0)
    assert a[0, 0] == 99


def test_attached_by_name_it_is_the_same_memory() -> None:
    with SharedArray.zeros(3, "i4", "example") as a:
        b = SharedArray[np.int32]("example")
        b[1] = 7
        assert a.tolist() == xshm.open("example").tolist() == [0, 7, 0]


def test_what_is_opened_by_xshm_open_is_ones_own() -> None:
    with SharedArray.zeros(3, name="example") as a:
        xshm.open("example")[0] = 1
        assert a[0] == 0
        xshm.open("example", mode="r+")[0] = 1
        assert a[0] == 1


# ---- names ----


def test_names_are_those_of_all_that_is_published(a: Any) -> None:
    named = [] if a.name is None else [a.name]
    assert [shared.name for shared in xshm.list()] == named
    if named:
        assert xshm.list()[0].kind == "ndarray"
        xshm.unlink(a.name)
        assert xshm.list() == []


def test_a_name_is_given_once() -> None:
    with SharedArray.zeros(3, name="example") as a:
        with pytest.raises(ContainerExistsError, match=r"xshm.unlink\('example'\)"):
            SharedArray.zeros(4, name="example")
        assert SharedArray("example").shape == a.shape


def test_a_name_that_there_is_not() -> None:
    with pytest.raises(ContainerNotFoundError, match="example"):
        SharedArray("example")


@pytest.mark.parametrize("name", ["", "a/b", ".hidden", "x" * 201, "a\nb"])
def test_a_name_that_cannot_be(name: str, directory: Path) -> None:
    for make in (SharedArray, lambda n: SharedArray.zeros(3, name=n)):
        with pytest.raises(ContainerNameError):
            make(name)
    assert files_in(directory) == []


def test_the_name_of_something_else_is_refused() -> None:
    with (
        xshm.publish(xr.Dataset({"v": 1}), "dataset"),
        xshm.publish(np.array(["a", None], object), "objects"),
    ):
        for name, found in ("dataset", "dataset"), ("objects", "strings"):
            with pytest.raises(UnsupportedError, match=rf"{found}.*xshm.open\('{name}'\)"):
                SharedArray(name)


def test_a_published_array_is_one() -> None:
    with xshm.publish(np.zeros((2, 3)), "example"):
        SharedArray("example")[1, 2] = 5
        assert xshm.open("example")[1, 2] == 5


def test_after_unlink_it_stays_usable_and_cannot_be_sent() -> None:
    a: Any = SharedArray.zeros(3, name="example")
    part = a[1:]
    a.unlink()
    with pytest.raises(ContainerNotFoundError, match="example"):
        SharedArray("example")
    a += 1
    assert a.sum() == 3
    with pytest.raises(ContainerNotFoundError, match="'example' was removed"):
        pickle.dumps(a)
    with pytest.raises(ContainerNotFoundError):
        a.unlink()
    assert (sent(part) == [1, 1]).all()  # as values: nobody else can have the memory


def test_a_name_given_again_is_not_taken_for_the_old_one() -> None:
    a: Any = SharedArray.zeros(3, name="example")
    pickled = pickle.dumps(a)
    a.unlink()
    with SharedArray.zeros(3, name="example") as other:
        with pytest.raises(ContainerNotFoundError, match="published again"):
            _ = pickle.loads(pickled).size
        with pytest.raises(ContainerNotFoundError):
            a.unlink()
        assert SharedArray("example").name == other.name


def test_one_that_is_gone_says_so_when_it_is_used(directory: Path) -> None:
    """A worker of a Pool that fails to unpickle ends, and its caller would wait for ever."""
    a: Any = SharedArray.zeros(3, name="example")
    pickled = pickle.dumps(a)
    a.unlink()
    lost = pickle.loads(pickled)
    assert "example" in repr(lost) == str(lost)
    for use in (len, np.sum, pickle.dumps, lambda x: x.lock, lambda x: x.__enter__()[0]):
        with pytest.raises(ContainerNotFoundError, match="'example' was removed"):
            use(lost)
    lost.close()


def test_it_can_be_published() -> None:
    a: Any = SharedArray.from_array(np.arange(6.0).reshape(2, 3))
    with xshm.publish(a, "array"), xshm.publish(xr.Dataset({"v": (("y", "x"), a)}), "dataset"):
        assert xshm.open("array").tolist() == xshm.open("dataset").v.values.tolist() == a.tolist()
    with xshm.Channel("example") as channel:
        channel.write(a)
        assert channel.read().value.tolist() == a.tolist()


# ---- closing ----

USES: dict[str, Callable[[Any], Any]] = {
    "get": lambda a: a.get(),
    "index": lambda a: a[0],
    "assign": lambda a: a.__setitem__(0, 1),
    "operator": lambda a: a + 1,
    "in place": lambda a: a.__iadd__(1),
    "reflected": lambda a: np.ones(3) + a,
    "function": lambda a: np.mean(a),
    "asarray": lambda a: np.asarray(a),
    "shape": lambda a: a.shape,
    "method": lambda a: a.mean(),
    "len": len,
    "iter": list,
    "in": lambda a: 1 in a,
    "bool": bool,
    "view": lambda a: a.view("i8"),
    "lock": lambda a: a.lock,
    "copy": copy.copy,
    "pickle": pickle.dumps,
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_what_is_closed_says_so(a: Any, use: Callable[[Any], Any]) -> None:
    part = a.get()[1:]
    a.close()
    a.close()
    with pytest.raises(ClosedError, match="closed"):
        use(a)
    assert "closed" in repr(a)
    part[:] = 5  # it has the memory
    assert part.sum() == 40


def test_the_one_that_made_it_removes_it_at_the_end_of_a_block() -> None:
    with SharedArray.zeros(3, name="example"):
        with SharedArray("example") as attached:
            pass
        with SharedArray("example").view("u1"):
            pass
        assert "closed" in repr(attached)
        assert SharedArray("example").size == 3
    with pytest.raises(ContainerNotFoundError):
        SharedArray("example")


def test_a_child_that_leaves_the_block_removes_nothing() -> None:
    with SharedArray.zeros(3, name="example") as a:
        child = os.fork()
        if child == 0:
            a.__exit__()
            os._exit(0)
        os.waitpid(child, 0)
        assert SharedArray("example").size == 3


def test_the_end_of_a_block_does_not_mind_who_was_faster() -> None:
    with SharedArray.zeros(3, name="example") as a:
        a.unlink()
    with SharedArray.zeros(3) as b:
        b.unlink()  # there is no name
        b.close()


def test_closed_it_can_still_be_unlinked() -> None:
    a = SharedArray.zeros(3, name="example")
    a.close()
    a.unlink()
    with pytest.raises(ContainerNotFoundError):
        SharedArray("example")


# ---- without a name ----


def links() -> list[str]:
    """What there is of arrays without a name."""
    return [n.rpartition(".")[2] for n in sorted(os.listdir(configured().segments))]


def test_it_is_freed_with_the_last_that_has_it() -> None:
    a: Any = SharedArray.zeros(3)
    part, view = a.get()[1:], a.view("u1")
    assert links() == ["array"]
    a.close()
    del a
    view.close()
    del view
    assert links() == ["array"]  # the part can still be sent
    assert sent(part).base is not None
    del part
    assert links() == []


def test_a_pickle_keeps_it_until_it_is_read() -> None:
    a: Any = SharedArray.full(3, 7)
    pickled = pickle.dumps(a)
    a.close()
    assert links() == ["message"]
    b = pickle.loads(pickled)
    assert links() == ["array"]
    assert b.tolist() == [7, 7, 7]
    late = pickle.loads(pickled)
    assert "gone" in repr(late)
    with pytest.raises(ContainerNotFoundError, match="closed it, or has ended"):
        _ = late.size
    del b
    assert links() == []


def test_a_pickle_can_be_read_again_while_its_sender_has_the_array() -> None:
    a: Any = SharedArray.zeros(3)
    pickled = pickle.dumps(a)
    copies = [pickle.loads(pickled) for _ in range(3)]
    copies[2][:] = 7
    assert all((x == 7).all() for x in [a, *copies])
    del copies
    assert links() == ["array"]


def make(n: int) -> SharedArray[np.float64]:
    return SharedArray.full(n, 7.0)


def part_of_one(n: int) -> Any:
    return SharedArray.full(n, 7.0)[1:]


def test_a_part_keeps_it_as_the_whole_does() -> None:
    """The task of a pool returns it, and drops the whole before it is received."""
    with Peer() as peer:
        part = peer(part_of_one, 3)
        peer(add_one, part)
    assert part.tolist() == [8, 8]
    assert links() == ["array"]
    pickled = pickle.dumps(part)
    del part
    assert links() == ["message"]
    assert pickle.loads(pickled).tolist() == [8, 8]
    with pytest.raises(ContainerNotFoundError, match="closed it, or has ended"):
        pickle.loads(pickled)


def test_one_that_a_peer_made_is_kept_by_who_got_it() -> None:
    with Peer() as peer:
        a: Any = peer(make, 3)
    gc.collect()
    assert a.tolist() == [7, 7, 7]
    with Peer() as other:
        other(add_one, a)
    assert a.tolist() == [8, 8, 8]


kept: list[Any] = []


def keep(x: Any) -> None:
    kept.append(x)


def kept_one() -> Any:
    return kept[0]


@pytest.mark.parametrize("end", [Peer.end, Peer.kill])
def test_a_child_hands_on_what_it_inherited(end: Callable[[Peer], None]) -> None:
    """By a link of its own: its parent may be gone, or have closed the array."""
    kept.append(SharedArray.full(3, 7.0))
    peer = Peer()
    kept.clear()
    gc.collect()
    a = peer(kept_one)
    assert links() == ["array", "array"]
    part = peer(first_two)
    end(peer)
    assert a.tolist() == [7, 7, 7]
    assert part.tolist() == [7, 7]


def first_two() -> Any:
    return kept[0][:2]


def test_a_link_that_is_gone_does_not_keep_a_child_from_others() -> None:
    """Threads drop arrays while another one forks."""
    gone = SharedArray.zeros(3)
    for link in configured().segments.glob("*.array"):
        link.unlink()
    kept.append(SharedArray.full(3, 7.0))
    with Peer() as peer:
        del gone
        kept.clear()
        gc.collect()
        assert peer(kept_one).tolist() == [7, 7, 7]


def test_a_fork_without_open_arrays_leaves_the_child_outside(directory: Path) -> None:
    a = SharedArray.zeros(3)
    a.close()
    del a
    before = files_in(directory)
    with Peer() as peer:
        assert peer(has_no_place)
        assert files_in(directory) == before


def has_no_place() -> bool:
    return process._current is None


def test_in_another_directory_it_is_not_found(tmp_path: Path) -> None:
    a = SharedArray.zeros(3)
    pickled = pickle.dumps(a)
    with (
        dask.config.set({"xshm.directory": str(tmp_path)}),
        pytest.raises(ContainerNotFoundError, match="another host"),
    ):
        _ = pickle.loads(pickled).size
    assert pickle.loads(pickled).size == 3


def test_a_directory_that_was_removed_takes_the_links_with_it() -> None:
    a: Any = SharedArray.zeros(3)
    shutil.rmtree(configured().path)
    a[0] = 1
    with pytest.raises(ContainerNotFoundError):
        pickle.dumps(a)
    a.close()
    process.close()


# ---- copies, views, locks ----


@pytest.mark.parametrize("copy_of", [copy.copy, copy.deepcopy])
def test_a_copy_is_an_array_of_its_own(a: Any, copy_of: Callable[[Any], Any]) -> None:
    other = copy_of(a)
    assert type(other) is SharedArray
    assert other.name is None
    assert same_bytes(other.get(), a.get())
    other[:] = -1
    assert (a >= 0).all()


def test_views_are_the_same_bytes(a: Any) -> None:
    a[:] = 1.0
    bits = a.view(np.uint64)
    halves = bits.view("u4")
    for x in (bits, halves, sent(bits), sent(halves)):
        assert type(x) is SharedArray
        assert x.name == a.name
    assert halves.shape == (3, 8)
    assert (bits == 0x3FF0000000000000).all()
    sent(halves)[0] = 0
    assert (a[0] == 0).all()
    a.close()
    assert halves.size == 24


@pytest.mark.parametrize("dtype", ["i8", "U3", "3u1", [("a", "i1"), ("b", "i2")]], ids=str)
def test_views_that_do_not_fit_are_refused(dtype: Any) -> None:
    with pytest.raises(LayoutError, match="expected a dtype that fits"):
        SharedArray.zeros((2, 5), "i2").view(dtype)
    with pytest.raises(LayoutError, match="contiguous"):
        SharedArray.from_array(np.zeros((4, 2), order="F")).view("u1")


def try_lock(lock: Any) -> bool:
    taken: bool = lock.acquire(timeout=0)
    if taken:
        lock.release()
    return taken


def test_all_that_is_the_same_array_has_the_same_lock(a: Any) -> None:
    same = [a, a.view("u1"), sent(a), sent(a.view("u1"))]
    with Peer() as peer:
        for one in same:
            with one.lock:
                assert not any(peer(try_lock, x.lock) for x in same)
        with a.lock.shared():
            assert not peer(try_lock, a.lock)
            assert peer(try_lock, a.lock.shared())
        with SharedArray.zeros(3).lock:
            assert peer(try_lock, a.lock)


def test_the_lock_of_a_published_array_is_the_same() -> None:
    with SharedArray.zeros(3, name="example") as a, Peer() as peer, a.lock:
        assert not peer(try_lock, xshm.SharedDataset("example").lock)


# ---- how it looks, and travels ----


def test_repr_says_name_shape_and_dtype(a: Any) -> None:
    named = "" if a.name is None else " 'a name'"
    assert repr(a) == f"<xshm.SharedArray{named} shape=(3, 4) dtype=float64>"


@DUMPS
def test_only_a_handle_travels(dumps: Callable[[Any], bytes]) -> None:
    a = SharedArray.zeros(10**6)
    for x in (a, a.view("u1"), a[1:-1]):
        pickled = dumps(x)
        assert len(pickled) < 600
        assert len(pickle.loads(pickled)) == len(x)


# ---- what a file says is checked ----


def path_of(name: str) -> Path:
    return configured().containers / name


def test_damage_is_found() -> None:
    with SharedArray.zeros(3, name="example"):
        path = path_of("example")
        whole = path.read_bytes()
        for damaged in (b"", whole[:100], whole[:-1], whole.replace(b'"<f8"', b'"<f9"')):
            path.write_bytes(damaged)
            with pytest.raises(FormatError, match="example"):
                SharedArray("example")
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<f8", "<f9"),
        ("<f8", "|O"),
        ('"shape":[3]', '"shape":[4]'),
        ('"shape":[3]', '"shape":[-1]'),
        ('"shape":[3]', '"shape":[3,3]'),
        ('"strides":[8]', '"strides":[-8]'),
        ('"strides":[8]', '"strides":[9223372036854775807]'),
        ('"buffer":0', '"buffer":1'),
        ('"buffer":0', '"buffer":null'),
        ('"offset":0', '"offset":8'),
        ('"offset":0', '"offset":-8'),
        ('"kind":"ndarray","array"', '"kind":"nonsense","array"'),
        ('"kind":"ndarray","array"', '"kind":["ndarray"],"array"'),
        ('"array":{', '"other":{'),
        ('"array":{"kind":"ndarray"', '"array":{"kind":"nonsense"'),
        ('"array":{"kind":"ndarray"', '"array":{"kind":7'),
    ],
)
def test_what_a_header_says_is_checked(old: str, new: str) -> None:
    with SharedArray.zeros(3, name="example"):
        path = path_of("example")
        whole = path.read_bytes()
        header = json.dumps(header_of(whole), separators=(",", ":"))
        assert old in header
        path.write_bytes(with_header(whole, header.replace(old, new, 1).encode()))
        with pytest.raises((FormatError, UnsupportedError), match="expected"):
            SharedArray("example")


# ---- managers ----


def test_a_manager_frees_what_was_made_with_it() -> None:
    with SharedMemoryManager() as manager:
        named: Any = SharedArray.zeros(3, name="example", manager=manager)
        unnamed: Any = SharedArray.from_array([1, 2], manager=manager)
        part = unnamed.get()[1:]
        SharedArray.zeros(3, manager=manager)
        assert links() == ["array", "array"]
        assert SharedArray("example").tolist() == named.tolist()
    for a in (named, unnamed):
        with pytest.raises(ClosedError):
            a.get()
    assert xshm.list() == []
    assert part.tolist() == [2]
    del part
    assert links() == []
    manager.shutdown()  # once more does no harm


def test_a_manager_that_is_gone_frees_them_too() -> None:
    manager = SharedMemoryManager()
    manager.start()
    SharedArray.zeros(3, name="example", manager=manager)
    del manager
    gc.collect()
    assert xshm.list() == []


def test_a_manager_does_not_mind_what_is_gone_already() -> None:
    with SharedMemoryManager() as manager:
        SharedArray.zeros(3, name="example", manager=manager).unlink()
        SharedArray.zeros(3, manager=manager).close()


def test_a_manager_that_is_not_running_is_refused() -> None:
    manager = SharedMemoryManager()
    with pytest.raises(ValueError, match="running"):
        SharedArray.zeros(3, manager=manager)
    with manager:
        SharedArray.zeros(3, manager=manager)
    with pytest.raises(ValueError, match="running"):
        SharedArray.zeros(3, name="example", manager=manager)
    assert links() == xshm.list() == []


# ---- programs: tests/sharing_processes.py ----

METHODS = pytest.mark.parametrize(
    "method", ["fork", "spawn", pytest.param("forkserver", marks=pytest.mark.slow)]
)


def run(*arguments: str) -> None:
    """Run a program in an interpreter of its own; whatever it prints is an error."""
    command = [sys.executable, "-W", "error", "-m", "tests.sharing_processes", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@METHODS
@pytest.mark.parametrize("program", ["carriers", "producer_ends", "parent_ends", "manager_ends"])
def test_programs_of_several_processes(program: str, method: str, directory: Path) -> None:
    run(program, method)
    assert files_in(directory) == []


@METHODS
def test_what_nobody_took_goes_after_the_grace_period(method: str, directory: Path) -> None:
    with dask.config.set({"xshm.grace": 0}):
        run("nobody_takes", method)
        wait_until(lambda: not janitor.clean(configured()) and not files_in(directory), "clean")
