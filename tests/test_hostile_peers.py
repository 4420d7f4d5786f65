"""Who sends handles that are none gets an error, and nothing else: others go on being served.

Invariant 8, "nothing in it is trusted": a peer may have shaken hands and may know the domain.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import gc
import os
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed.comm.core import Comm, CommClosedError, connect, listen
from distributed.comm.tcp import TCP, TCPConnector
from distributed.protocol import Serialized, dumps, to_serialize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.clusters import ITEMS, LARGE, cluster, workers_of
from tests.everything_in_use import everything_in_use, files_below
from xshm import _core, process
from xshm.dask.domain import who_am_i
from xshm.directory import Directory
from xshm.errors import HandleError, LostHandleError
from xshm.handle import Handle
from xshm.handover import Outbox

TOKEN, SEGMENT = f"{'0' * 16}.1.token", f"{'0' * 16}.1.segment"


# ---- an attack, and what must be as before ----


@contextlib.asynccontextmanager
async def raw_connection(address: str) -> AsyncIterator[TCP]:
    """A peer that shook hands as one of our domain, and now writes envelopes as it likes."""
    comm = await TCPConnector().connect(address.removeprefix("shm://"), deserialize=False)
    try:
        await comm.read()
        hello = {**comm.handshake_info(), "xshm": who_am_i()}
        await comm.write(Serialized({"handles": [], "quick": False}, dumps(hello)))
        yield comm
    finally:
        comm.abort()


@contextlib.asynccontextmanager
async def served() -> AsyncIterator[tuple[str, list[Exception]]]:
    """A server's address, and what ended its connections; another client is served as ever."""
    errors: list[Exception] = []

    async def serve(comm: Comm) -> None:
        try:
            while True:
                message = await comm.read()
                await comm.write({"x": to_serialize(message["x"])})
        except CommClosedError as closed:
            assert comm.closed()
            if isinstance(error := closed.__cause__, HandleError):
                errors.append(error.with_traceback(None))
        except Exception as error:
            errors.append(error.with_traceback(None))
        finally:
            comm.abort()

    async with listen("shm://127.0.0.1:0", serve) as listener:
        honest = await connect(listener.contact_address)
        yield listener.contact_address, errors
        await honest.write({"x": to_serialize(np.ones(ITEMS))})
        assert (await honest.read())["x"].sum() == ITEMS
        await honest.close()


async def is_given_up(comm: TCP) -> None:
    """The other end closes the connection, without a word."""
    with pytest.raises(CommClosedError):
        await asyncio.wait_for(comm.read(), 10)


def _contents(folder: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in files_below(folder):
        status = path.lstat()
        is_file = path.is_file() and not path.is_symlink()
        found[str(path)] = (
            (status.st_ino, status.st_mode, status.st_uid),
            (status.st_nlink, status.st_mtime_ns, path.read_bytes()) if is_file else None,
        )
    return found


@contextlib.contextmanager
def unharmed(folder: Path) -> Iterator[None]:
    """Within, no file is changed or taken, and nothing stays open, mapped or held."""

    def possessions() -> dict[str, object]:
        gc.collect()
        held = {key: n for key, n in _core.count().items() if key.endswith("segments")}
        mapped = Path("/proc/self/maps").read_text().count(str(folder))
        return {"files": _contents(folder), "held": held, "mapped": mapped}

    before = possessions()
    yield
    assert possessions() == before


# ---- envelopes ----


def _frames(handle: Handle) -> tuple[list[bytes], int]:
    """The small frames of a message, and the place of its only large one."""
    frames = dumps(
        {"x": to_serialize(np.zeros(handle.nbytes, "u1"))}, context={"compression": None}
    )
    return [bytes(frame) for frame in frames[:-1]], len(frames) - 1


def _listing(*entries: Any) -> Callable[[Handle], Any]:
    def envelope(handle: Handle) -> Serialized:
        small, place = _frames(handle)
        filled = [entry(place, handle) if callable(entry) else entry for entry in entries]
        return Serialized({"handles": filled, "quick": False}, small)

    return envelope


def _changed(**fields: Any) -> Callable[[Handle], Any]:
    return _listing(lambda place, handle: (place, *handle._replace(**fields)))


def _nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


HOSTILE: dict[str, Callable[[Handle], Any]] = {
    "no envelope": lambda handle: {"op": "identity"},
    "another header": lambda handle: Serialized({"serializer": "pickle"}, [b"x"]),
    "handles not a list": lambda handle: Serialized({"handles": {"a": 1}, "quick": False}, []),
    "an entry not a list": _listing("abc"),
    "an empty entry": _listing(()),
    "an entry nested deeply": _listing(_nested(400)),
    "too few fields": _listing(lambda place, handle: (place, *handle[:3])),
    "too many fields": _listing(lambda place, handle: (place, *handle, 1)),
    "a place too large": _listing(lambda place, handle: (place + 1, *handle)),
    "a place below zero": _listing(lambda place, handle: (-1, *handle)),
    "a place twice": _listing(*[lambda place, handle: (place, *handle)] * 2),
    "a good one, then a bad one": _listing(lambda place, handle: (place, *handle), (0, 1)),
    "thousands of a token that is not there": _listing(
        *[(place, TOKEN, SEGMENT, 0, 1) for place in range(5000)]
    ),
    "a token elsewhere": _changed(token="../../../../etc/passwd"),
    "a token elsewhere, well-named": _changed(token=f"../{TOKEN}"),
    "a token from the root": _changed(token=f"/{TOKEN}"),
    "a token with a zero": _changed(token=f"{TOKEN}\0"),
    "a token with an end of line": _changed(token=f"{TOKEN}\n"),
    "a token in other letters": _changed(token=TOKEN.replace("0", "\u0660")),
    "a token that is very long": _changed(token="0" * 100_000),
    "a token of bytes": _changed(token=b"x"),
    "a segment elsewhere": _changed(segment=f"../{SEGMENT}"),
    "a token that is not there": _changed(token=TOKEN),
    "a segment as token": lambda handle: _changed(token=handle.segment)(handle),
    "an offset below zero": _changed(offset=-4096),
    "an offset past the end": _changed(offset=2**40),
    "an offset near the largest": _changed(offset=2**63 - 1),
    "an offset beyond the largest": _changed(offset=2**64 - 1),
    "an offset not a number": _changed(offset=0.5),
    "a sum beyond the largest": _changed(offset=2**62, nbytes=2**62),
    "no bytes": _changed(nbytes=0),
    "bytes below zero": _changed(nbytes=-1),
    "bytes past the end": _changed(nbytes=2 * LARGE),
    "very many bytes": _changed(nbytes=2**63 - 1),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_envelope_ends_its_connection_and_nothing_else(
    name: str, here: Directory
) -> None:
    async def run() -> None:
        async with served() as (address, errors), raw_connection(address) as hostile:
            handle = Outbox().copy(np.zeros(LARGE, "u1"))
            assert handle is not None
            with unharmed(here.path):
                await hostile.write(HOSTILE[name](handle))
                await is_given_up(hostile)
        (error,) = errors
        assert isinstance(error, HandleError)

    asyncio.run(run())


def test_nothing_that_is_there_can_be_taken_but_what_was_sent(directory: Path) -> None:
    """Containers, messages of queues, locks, process files: none is a token."""

    async def run(folder: Path) -> None:
        files = [path for path in files_below(folder) if path.suffix != ".token"]
        names = [path.name for path in files]
        names += [f"../{path.relative_to(folder)}" for path in files]
        async with served() as (address, errors):
            with unharmed(folder):
                for name in names:
                    async with raw_connection(address) as hostile:
                        sent = Handle(name, SEGMENT, 0, 1)
                        await hostile.write(_listing((0, *sent))(sent))
                        await is_given_up(hostile)
        assert len(errors) == len(names) > 20
        assert {getattr(error, "errno", None) for error in errors} == {errno.EBADMSG}

    with everything_in_use() as folder:
        asyncio.run(run(folder))


@pytest.mark.parametrize("kind", ["a link", "a FIFO", "a folder", "another user's, and locked"])
def test_what_lies_under_a_tokens_name_and_is_none(
    kind: str, here: Directory, tmp_path: Path
) -> None:
    path = here.segments / TOKEN
    (secret := tmp_path / "secret").write_bytes(b"secret" * LARGE)

    async def run() -> None:
        async with served() as (address, errors):
            with unharmed(here.path):
                async with raw_connection(address) as hostile:
                    sent = Handle(TOKEN, SEGMENT, 0, LARGE)
                    await hostile.write(_listing(lambda place, _: (place, *sent))(sent))
                    await is_given_up(hostile)
        (error,) = errors
        assert isinstance(error, HandleError)

    with contextlib.ExitStack() as stack:
        match kind:
            case "a link":
                path.symlink_to(secret)
            case "a FIFO":
                os.mkfifo(path, 0o600)
            case "a folder":
                path.mkdir()
                stack.callback(path.rmdir)
            case _:
                if os.geteuid() != 0:
                    pytest.skip("gives a file away: only root may")
                os.link(secret, path) if _same_device(secret, path) else path.write_bytes(b"x")
                os.chown(path, 65534, 65534)
                # Its owner could let us wait for ever.
                theirs = stack.enter_context(path.open())
                fcntl.flock(theirs, fcntl.LOCK_EX)
        asyncio.run(run())
    path.unlink(missing_ok=True)
    assert secret.read_bytes() == b"secret" * LARGE


def _same_device(one: Path, other: Path) -> bool:
    return one.stat().st_dev == other.parent.stat().st_dev


def test_a_token_twice_is_taken_once_and_given_back(here: Directory) -> None:
    async def run() -> None:
        async with served() as (address, errors), raw_connection(address) as hostile:
            handle = Outbox().copy(np.zeros(LARGE, "u1"))
            assert handle is not None
            before = _core.count()["leased_segments"]
            both = [lambda place, handle, more=more: (place + more, *handle) for more in (0, 1)]
            await hostile.write(_listing(*both)(handle))
            await is_given_up(hostile)
            gc.collect()
            assert _core.count()["leased_segments"] == before
        (error,) = errors
        assert isinstance(error, LostHandleError)

    asyncio.run(run())


def test_who_knows_one_token_cannot_guess_another(here: Directory) -> None:
    """What is on its way to others has other names, which are not counted up."""
    outbox = Outbox()
    handles = [outbox.copy(bytes(2**20)) for _ in range(10)]
    numbers = sorted(int(handle.token.split(".")[1], 16) for handle in handles if handle)
    assert len(numbers) == 10
    assert min(np.diff(numbers)) > 2**20
    outbox.withdraw()


def test_who_knows_the_domain_but_not_the_directory_gets_no_bytes() -> None:
    """Names only, and these are withdrawn when the connection ends."""
    secret = np.frombuffer(b"secret" * LARGE, "u1")

    async def run() -> None:
        sent = asyncio.Event()

        async def send(comm: Comm) -> None:
            await comm.write({"x": to_serialize(secret)})
            sent.set()
            with contextlib.suppress(CommClosedError):
                await comm.read()

        async with listen("shm://127.0.0.1:0", send) as listener:
            async with raw_connection(listener.contact_address) as hostile:
                envelope = await hostile.read()
                await sent.wait()
                ((_, token, *_),) = envelope.header["handles"]
                assert process.current().exists(token)
                assert not any(b"secret" in bytes(frame) for frame in envelope.frames)
            async with asyncio.timeout(10):
                while process.current().exists(token):
                    await asyncio.sleep(0.01)

    asyncio.run(run())


# ---- whatever comes ----

_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.sampled_from([TOKEN, SEGMENT, "..", "/"]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)
_NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.integers(-1, 8) | _VALUES
_ENTRIES = st.tuples(
    st.integers(-1, 5) | _VALUES, st.just(TOKEN) | _VALUES, st.just(SEGMENT), _NUMBERS, _NUMBERS
)
_HEADERS = (
    st.fixed_dictionaries(
        {"handles": st.lists(_ENTRIES | _VALUES, min_size=1, max_size=4), "quick": st.booleans()}
    )
    | st.fixed_dictionaries({"handles": _VALUES, "quick": _VALUES})
    | st.dictionaries(st.text(max_size=9), _VALUES)
)


@given(st.lists(st.tuples(_HEADERS, st.lists(st.binary(max_size=50), max_size=3)), min_size=1))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_envelope_is_a_message_or_ends_its_connection(
    envelopes: list[tuple[dict[str, Any], list[bytes]]],
) -> None:
    async def run() -> None:
        async with served() as (address, errors):
            with unharmed(process.current().directory.path):
                for header, frames in envelopes:
                    async with raw_connection(address) as hostile:
                        await hostile.write(Serialized(header, frames))
                        await is_given_up(hostile)
        assert not any(isinstance(error, AssertionError) for error in errors)

    asyncio.run(run())


# ---- before the handshake ----

STRANGERS = {
    "nothing": b"",
    "half a length": b"\1\0",
    "a browser": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "TLS": bytes.fromhex("16030100f8010000f40303") + bytes(range(200)),
    "zeros": bytes(100),
    "a length of 1 GiB": struct.pack("Q", 2**30) + b"x",
    "the largest length": b"\xff" * 8,
    "frames that are none": struct.pack("QQ", 100, 2) + bytes(92),
    "more frames than bytes": struct.pack("QQ", 24, 2**60) + bytes(16),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_who_does_not_shake_hands_takes_no_memory_and_disturbs_nobody(
    name: str, here: Directory
) -> None:
    async def run() -> None:
        async with served() as (address, _):
            host, port = address.removeprefix("shm://").split(":")
            before = _core.count()["live_segments"]
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(STRANGERS[name])
            await writer.drain()
            async with raw_connection(address):  # by now the other was read
                assert _core.count()["live_segments"] == before
            writer.close()

    asyncio.run(run())


def test_a_cluster_goes_on_whatever_its_servers_are_told() -> None:
    async def attack(address: str) -> None:
        for name in ("no envelope", "a token that is not there", "a token elsewhere"):
            async with raw_connection(address) as hostile:
                sent = Handle(TOKEN, SEGMENT, 0, LARGE)
                await hostile.write(HOSTILE[name](sent))
                await is_given_up(hostile)

    with cluster(n_workers=1) as client:
        for address in (client.scheduler.address, *workers_of(client)):
            asyncio.run(attack(address))
        assert client.submit(np.sum, np.ones(ITEMS)).result() == ITEMS
