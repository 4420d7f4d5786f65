"""What can be read in a segment is what was meant to be sent, and nothing else of the process.

Every test fills memory with a secret, frees it, hands out something else from the same memory,
and looks for the secret in every byte of every file of the directory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import dask.config
import numpy as np
import pytest
import xarray as xr
from distributed.protocol import to_serialize

import xshm
from tests.clusters import connected
from tests.test_pool import name_of
from tests.test_process import Peer, held, share_array
from xshm import _core, process
from xshm.handover import Outbox, receive
from xshm.message import reduce_array

pytestmark = [
    pytest.mark.usefixtures("allocating"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]

MIB = 2**20
SIZE = 2 * MIB  # of which an array fills its segment

#: Bytes of which an array takes the segment of one of 2 MiB: as it is, or cut to size.
SMALLER = [SIZE - 1, SIZE - 4096, SIZE - 5000, SIZE - 100_000, SIZE * 3 // 4, SIZE // 2 + 1]

SECRET = b"\xc5\x3e\xc7"


def secret(nbytes: int = SIZE) -> np.ndarray:
    """An array of it: in a segment, if it is large."""
    x = np.empty(nbytes, np.uint8)
    x[:] = np.frombuffer(SECRET * (nbytes // 3 + 1), np.uint8, nbytes)
    return x


def leave_idle(nbytes: int = SIZE, count: int = 1) -> None:
    """Have idle segments that are full of the secret."""
    arrays = [secret(nbytes) for _ in range(count)]
    assert all(map(xshm.is_shared, arrays))


def revealing(directory: Path) -> list[str]:
    """The files in which the secret is found."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return [path.name for path in files if SECRET * 2 in path.read_bytes()]


def test_the_secret_is_found_where_it_is(directory: Path) -> None:
    x = secret()
    assert revealing(directory) == [name_of(x)]


# ---- arrays ----


@pytest.mark.parametrize("nbytes", SMALLER)
def test_a_smaller_array_in_the_place_of_a_larger(nbytes: int, directory: Path) -> None:
    leave_idle()
    x = np.ones(nbytes, np.uint8)
    handle = Outbox().share(x)
    assert handle is not None
    assert revealing(directory) == []
    assert (_core.count()["free_segments"], bytes(receive(handle))) == (0, x.tobytes())


def test_zeros_in_the_place_of_a_larger_array(directory: Path) -> None:
    leave_idle()
    x = np.zeros(SIZE - 5000, np.uint8)
    assert Outbox().share(x) is not None
    assert revealing(directory) == []


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("nbytes", SMALLER)
def test_what_is_copied_in_the_place_of_a_larger_array(
    nbytes: int, mapped: bool, directory: Path
) -> None:
    if mapped:
        leave_idle()
    else:  # a segment that only others are to read is not mapped here
        handle = Outbox().copy((SECRET * SIZE)[:SIZE])
        assert handle is not None
        receive(handle)
    assert len(revealing(directory)) == 1
    handle = Outbox().copy(b"1" * nbytes)
    assert handle is not None
    assert revealing(directory) == []
    assert receive(handle) == b"1" * nbytes


def test_one_smaller_array_after_the_other(directory: Path) -> None:
    leave_idle()
    for nbytes in SIZE - 5000, SIZE - 9000, SIZE - 7000, SIZE - 100_000, SIZE - 6000:
        x = np.full(nbytes, 7, np.uint8)
        handle = Outbox().share(x)
        assert handle is not None
        found = np.fromfile(process.current().directory.segments / handle.token, np.uint8)
        assert (found[:nbytes] == 7).all()
        assert (found[nbytes:] == 0).all()
        receive(handle)
        del x


@pytest.mark.parametrize("nbytes", [SIZE - 5000, SIZE * 3 // 4, MIB + 1])
def test_an_array_that_was_made_shorter(nbytes: int, directory: Path) -> None:
    x = secret()
    x[:nbytes] = 1
    x.resize(nbytes, refcheck=False)
    assert Outbox().share(x) is not None
    assert revealing(directory) == []
    assert (x == 1).all()


def test_an_array_that_was_made_shorter_after_a_fork(directory: Path) -> None:
    """The fork has sealed it, and nobody has been handed it."""
    x = secret()
    with Peer():
        x[: SIZE - 5000] = 1
        x.resize(SIZE - 5000, refcheck=False)
        assert (x == 1).all()
        handle = Outbox().share(x)
    assert handle is not None
    path = process.current().directory.segments / handle.token
    assert SECRET * 2 not in path.read_bytes()


def test_an_array_that_grew_in_its_place(directory: Path) -> None:
    leave_idle()
    x = np.ones(SIZE - 100_000, np.uint8)
    name = name_of(x)
    x.resize(SIZE - 50_000, refcheck=False)
    assert name_of(x) == name
    assert Outbox().share(x) is not None
    assert revealing(directory) == []
    assert (x[: SIZE - 100_000] == 1).all()


def test_what_a_child_hands_on(directory: Path) -> None:
    leave_idle()
    held[1.0] = np.ones((SIZE - 5000) // 8)
    with Peer() as child:
        handle = child(share_array, 1.0)
        assert handle is not None
        assert revealing(directory) == []
        assert (np.frombuffer(receive(handle)) == 1).all()
    held.clear()


def test_messages_of_processes_and_of_dask(directory: Path) -> None:
    leave_idle(count=3)
    x = np.ones(SIZE - 5000, np.uint8)
    take, arguments = reduce_array(x)

    async def send() -> None:
        async with connected("shm") as (near, far):
            y = np.ones(SIZE - 6000, np.uint8)
            foreign = b"1" * (SIZE - 7000)
            message = [to_serialize(y), to_serialize(foreign)]
            _, received = await asyncio.gather(near.write(message), far.read())
            assert revealing(directory) == []
            assert bytes(received[1]) == foreign

    asyncio.run(send())
    assert (take(*arguments) == 1).all()


# ---- containers ----


def labelled() -> xr.Dataset:
    """Variables and labels, most of which end in the midst of a page."""
    return xr.Dataset(
        {
            "a": (("x", "y"), np.ones((101, 300))),
            "b": ("x", np.arange(101.0)),
            "c": ((), "text"),
        },
        {"x": np.arange(101), "name": ("x", [str(i) for i in range(101)])},
    )


@pytest.fixture(params=["64 KiB", "1 MiB"], ids=["segments", "copies"])
def threshold(request: pytest.FixtureRequest, directory: Path) -> Iterator[None]:
    """A version of a channel is made in a segment, or in ordinary memory."""
    with dask.config.set({"xshm.threshold": request.param}):
        process.set_limits()
        yield
    process.set_limits()


@pytest.mark.usefixtures("threshold")
def test_versions_of_a_channel(directory: Path) -> None:
    ds = labelled()
    with xshm.Channel("camera") as channel:
        for _ in range(3):
            xshm.trim()
            secrets = [secret(size) for size in range(260_000, 320_000, 4096)]
            del secrets
            channel.write(ds)
            xshm.trim()
            assert revealing(directory) == []
            snapshot = channel.read()
            assert snapshot is not None
            xr.testing.assert_identical(snapshot.value, ds)
            del snapshot


def test_containers_and_shared_arrays(directory: Path) -> None:
    leave_idle(count=3)
    xshm.trim()
    ds = labelled()
    xshm.publish(ds, "labelled")
    xshm.publish(ds[["b"]].rename(b="d"), "labelled", mode="a")
    arrays = [
        xshm.SharedArray.from_array(np.ones(5000), "array"),
        xshm.SharedArray.from_array(np.ones(5001)),
        xshm.SharedArray.empty(7000),
    ]
    assert revealing(directory) == []
    for name in "labelled", "array":
        xshm.unlink(name)
    arrays.clear()


# ---- what can be read, and is no secret ----


def test_who_is_handed_a_part_can_read_the_whole_array() -> None:
    x = np.ones((2, SIZE // 2), np.uint8)
    handle = Outbox().share(x[0])
    assert handle is not None
    path = process.current().directory.segments / handle.token
    assert path.read_bytes() == x.tobytes()
