"""A handle is checked before anything is opened, and what it names before it is used."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import xshm
from tests.conftest import segment_names
from tests.test_pool import array, send
from xshm import _core, process
from xshm.directory import Directory
from xshm.errors import HandleError, LostHandleError
from xshm.handle import Handle
from xshm.handover import Outbox, receive

TOKEN = "0123456789abcdef.1f.token"
SEGMENT = "fedcba9876543210.2.segment"


@pytest.mark.parametrize("kind", [tuple, list])
def test_a_handle_survives_the_journey(kind: Any) -> None:
    handle = Handle(TOKEN, SEGMENT, 4096, 2**40)
    assert Handle.parse(msgpack.loads(msgpack.dumps(kind(handle)))) == handle
    assert Handle.parse(handle) == handle
    assert len(msgpack.dumps(handle)) < 100


WRONG_TOKENS = [
    "",
    "token",
    SEGMENT,
    "/" + TOKEN,
    "../" + TOKEN,
    "../../../../etc/passwd",
    f"{TOKEN}/",
    f"{TOKEN}/../x",
    f"./{TOKEN}",
    "..token",
    ".1f.token",
    "0123456789abcdef..token",
    "0123456789abcde.1f.token",
    "0123456789abcdef0.1f.token",
    "0123456789ABCDEF.1f.token",
    "0123456789abcdeg.1f.token",
    "\u0660123456789abcdef.1f.token",
    "0123456789abcdef.1f.tok\u0117n",
    "0123456789abcdef.1f.token\n",
    "0123456789abcdef.1f.token\0",
    "0123456789abcdef\0.1f.token",
    "0123456789abcdef.11112222333344445.token",
    "0123456789abcdef.-1.token",
    "0123456789abcdef.1f.token.token",
    " 0123456789abcdef.1f.token",
    "\ud800",
    TOKEN.encode(),
    None,
    7,
    [TOKEN],
]


@pytest.mark.parametrize("token", WRONG_TOKENS, ids=ascii)
def test_a_token_that_is_none_is_refused(token: Any) -> None:
    with pytest.raises(HandleError, match="expected a handle"):
        Handle.parse([token, SEGMENT, 0, 1])


@pytest.mark.parametrize("name", ["", TOKEN, "/" + SEGMENT, "../x.segment", SEGMENT + "\0", b"", 1])
def test_a_segment_that_is_none_is_refused(name: Any) -> None:
    with pytest.raises(HandleError):
        Handle.parse([TOKEN, name, 0, 1])


@pytest.mark.parametrize(
    ("offset", "nbytes"),
    [
        (-1, 1),
        (0, 0),
        (0, -1),
        (2**63, 1),
        (0, 2**63),
        (2**63 - 1, 1),
        (2**62, 2**62),
        (2**64, 1),
        (10**5000, 1),
        (0, 10**5000),
        (True, 1),
        (0, True),
        (0.0, 1),
        (0, 1.0),
        ("0", 1),
        (None, 1),
        (0, None),
        (float("nan"), 1),
    ],
    ids=lambda value: ascii(value) if not isinstance(value, int) or value < 2**65 else "huge",
)
def test_numbers_out_of_range_are_refused(offset: Any, nbytes: Any) -> None:
    with pytest.raises(HandleError):
        Handle.parse([TOKEN, SEGMENT, offset, nbytes])


@pytest.mark.parametrize(
    "fields",
    [
        None,
        7,
        "",
        TOKEN,
        b"abcd",
        [],
        {},
        [TOKEN],
        [TOKEN, SEGMENT, 0],
        [TOKEN, SEGMENT, 0, 1, 2],
        {"token": TOKEN, "segment": SEGMENT, "offset": 0, "nbytes": 1},
        {TOKEN: 1, SEGMENT: 2, 0: 3, 1: 4},
        {TOKEN, SEGMENT, 0, 1},
        [[TOKEN, SEGMENT, 0, 1]],
        [SEGMENT, TOKEN, 0, 1],
        [0, 1, TOKEN, SEGMENT],
        iter([TOKEN, SEGMENT, 0, 1]),
    ],
)
def test_what_is_not_four_fields_is_refused(fields: Any) -> None:
    with pytest.raises(HandleError):
        Handle.parse(fields)


def test_something_nested_deeply_is_refused() -> None:
    """As deep as msgpack goes."""
    packed = b"\x91" * 1000 + b"\x90"
    with pytest.raises(HandleError):
        Handle.parse(msgpack.loads(packed))


_PACKABLE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=50)
    | st.binary(max_size=50)
    | st.sampled_from([TOKEN, SEGMENT, *(t for t in WRONG_TOKENS if isinstance(t, str))]),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=9), inner),
)


@given(_PACKABLE | st.tuples(_PACKABLE, _PACKABLE, _PACKABLE, _PACKABLE))
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_comes_is_a_handle_or_refused(fields: Any) -> None:
    try:
        token, segment, offset, nbytes = Handle.parse(fields)
    except HandleError:
        return
    for name in (token, segment):
        assert "/" not in name
        assert name.isascii()
        assert name.isprintable()
    assert type(offset) is type(nbytes) is int
    assert 0 <= offset < offset + nbytes < 2**63


def test_refusing_opens_and_makes_nothing(directory: Path) -> None:
    with pytest.raises(HandleError):
        Handle.parse(["../" + TOKEN, SEGMENT, 0, 1])
    assert list(directory.iterdir()) == []


def test_errors_are_both_of_xshm_and_of_the_system() -> None:
    assert issubclass(LostHandleError, HandleError)
    assert issubclass(HandleError, OSError)


# ---- What a well-formed handle may name.


@pytest.fixture
def sent(allocating: None, here: Directory) -> Iterator[Handle]:
    """A hand-over in flight, of 2 MiB."""
    outbox, x = Outbox(), array(1)
    handle = outbox.share(x)
    assert handle is not None
    yield handle
    outbox.withdraw()


def _descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    ("offset", "nbytes"),
    [
        (2 * 2**20, 1),
        (2 * 2**20 + 1, 1),
        (0, 2 * 2**20 + 1),
        (1, 2 * 2**20),
        (2**62, 1),
        (2**63 - 2, 1),
        (1, 2**63 - 2),
        (0, 2**63 - 1),
    ],
)
def test_bytes_past_the_end_are_refused(sent: Handle, offset: int, nbytes: int) -> None:
    before, counts = _descriptors(), _core.count()
    wrong = Handle.parse(sent._replace(offset=offset, nbytes=nbytes))
    with pytest.raises(HandleError, match="cannot take") as caught:
        receive(wrong)
    assert not isinstance(caught.value, LostHandleError)
    assert _descriptors() == before
    assert _core.count() == counts
    assert (np.frombuffer(receive(sent)) == 1).all()  # it was not used up


@pytest.mark.parametrize(("offset", "nbytes"), [(0, 1), (4095, 2), (12_345, 77), (2**21 - 1, 1)])
def test_any_part_can_be_taken(sent: Handle, offset: int, nbytes: int) -> None:
    expected = np.ones(2**18).tobytes()[offset : offset + nbytes]
    assert receive(sent._replace(offset=offset, nbytes=nbytes)) == expected


def test_a_token_that_never_was_is_lost(here: Directory) -> None:
    before = _descriptors()
    with pytest.raises(LostHandleError, match=TOKEN):
        receive(Handle(TOKEN, SEGMENT, 0, 1))
    assert _descriptors() == before


@pytest.mark.parametrize("kind", ["link", "dangling link", "fifo", "directory", "device", "empty"])
def test_a_token_that_is_no_file_of_bytes_is_refused(
    kind: str, here: Directory, tmp_path: Path
) -> None:
    """No hang, nothing opened stays so, and what it is stays untouched."""
    path = here.segments / TOKEN
    target = tmp_path / "precious"
    target.write_bytes(bytes(100))
    match kind:
        case "link":
            path.symlink_to(target)
        case "dangling link":
            path.symlink_to(tmp_path / "nothing")
        case "fifo":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case "device":
            if os.geteuid() != 0:
                pytest.skip("only root makes devices")
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero
        case "empty":
            path.touch(0o600)
    before = _descriptors()
    for offset in (0, 50):
        with pytest.raises(HandleError, match="cannot take"):
            receive(Handle(TOKEN, SEGMENT, offset, 1))
    assert _descriptors() == before
    assert path.is_symlink() or path.exists()
    assert target.read_bytes() == bytes(100)
    path.rmdir() if kind == "directory" else path.unlink()


def test_another_users_file_is_refused(here: Directory) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    path = here.segments / TOKEN
    path.write_bytes(bytes(100))
    os.chown(path, 65534, 65534)
    with pytest.raises(HandleError, match="cannot take"):
        receive(Handle(TOKEN, SEGMENT, 0, 1))
    path.unlink()


def test_a_segment_name_that_lies_is_not_handed_on(sent: Handle, here: Directory) -> None:
    """The token says which bytes; the other name only how to hand them on."""
    other = array(2)
    name = send(other).segment
    lease = np.frombuffer(receive(sent._replace(segment=name)))
    assert (lease == 1).all()
    before = segment_names(here)
    assert Outbox().share(lease) is None
    assert segment_names(here) == before
    handle = Outbox().copy(lease)
    assert handle is not None
    assert (np.frombuffer(receive(handle)) == 1).all()


@pytest.mark.parametrize(
    "arguments",
    [
        ("a/b", SEGMENT, 0, 1),
        ("../x", SEGMENT, 0, 1),
        (TOKEN, "s" * 64, 0, 1),
        (TOKEN, SEGMENT, -1, 1),
        (TOKEN, SEGMENT, 0, 0),
        (TOKEN, SEGMENT, 0, -1),
    ],
)
def test_the_core_refuses_what_slipped_through(here: Directory, arguments: Any) -> None:
    with pytest.raises(OSError, match="not a handle"):
        _core.lease(*arguments)


def test_the_core_refuses_names_with_a_zero(here: Directory) -> None:
    with pytest.raises(ValueError, match="null"):
        _core.lease("a\0b", SEGMENT, 0, 1)


def test_without_a_place_in_the_directory_the_core_leases_nothing() -> None:
    process.close()
    with pytest.raises(FileNotFoundError):
        _core.lease(TOKEN, SEGMENT, 0, 1)


def test_nothing_can_be_sent_of_nothing(here: Directory) -> None:
    """No bytes, no handle: there would be nothing to take."""
    x = np.ones(2**18)
    outbox = Outbox()
    assert outbox.share(x[:0]) is None
    assert outbox.share(b"") is None
    before = xshm.stats()["refused"]
    assert outbox.copy(b"") is None
    assert xshm.stats()["refused"] == before  # there was no want of room


@pytest.mark.usefixtures("allocating")
def test_nor_of_an_empty_part_of_a_segment(here: Directory) -> None:
    x = array(1)
    assert Outbox().share(x[5:5]) is None
    assert Outbox().share(x[-1:][1:]) is None
