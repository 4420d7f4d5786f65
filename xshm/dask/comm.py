"""The comm ``shm://``: large frames travel as handles, all else over dask's own TCP comm.

Every message is serialized by distributed as usual. What goes over the wire is an envelope,
which distributed knows how to send as it is: a ``Serialized`` whose header lists the handles,
each with the place of its frame in the message, and whose frames are the remaining ones::

    Serialized({"handles": [(place, token, segment, offset, nbytes), ...], "quick": bool},
               [frame, ...])

``quick`` says that the message takes no time to deserialize, however large it is.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import sys
import weakref
from typing import Any, ClassVar

from distributed.comm.core import Comm, CommClosedError
from distributed.comm.tcp import TCP, TLS
from distributed.comm.utils import OFFLOAD_THRESHOLD, from_frames, to_frames
from distributed.protocol import Serialized
from distributed.utils import nbytes, offload

from xshm import _core, allocation, config, process
from xshm.dask.domain import share_directory, who_am_i
from xshm.dask.serialize import takes_no_time
from xshm.errors import HandleError
from xshm.handle import Handle
from xshm.handover import Outbox, counters, receive, sweep

Frame = bytes | bytearray | memoryview


class Shm(Comm):
    """A connection between two processes, which may or may not share a directory.

    Parameters
    ----------
    stream : tornado.iostream.IOStream
    local_addr, peer_addr : str
    deserialize : bool, optional
        Whether to deserialize what is read. The scheduler does not: it relays frames, which
        may be leases, and these travel on as handles.
    """

    wire_class: ClassVar[type[TCP]] = TCP

    def __init__(
        self, stream: Any, local_addr: str, peer_addr: str, deserialize: bool = True
    ) -> None:
        self._local_addr = local_addr
        self._peer_addr = peer_addr
        self._wire = self.wire_class(stream, local_addr, peer_addr, deserialize=False)
        self._wire.allow_offload = False  # an envelope's frames are bytes already
        super().__init__(deserialize=deserialize)
        self._threshold = config.get_bytes("threshold")
        self._outbox = Outbox()
        self._stream_closed = False
        # In place of the wire's own callback, which notes the same in the wire.
        stream.set_close_callback(functools.partial(_note_closed, weakref.ref(self)))
        # A connection that is dropped without being closed counts as aborted.
        weakref.finalize(self, _let_go, self._outbox).atexit = False
        process.hold(self._outbox)

    # ---- handshake ----

    def handshake_info(self) -> dict[str, Any]:
        return {**super().handshake_info(), "xshm": who_am_i()}

    @staticmethod
    def handshake_configuration(local: dict[str, Any], remote: dict[str, Any]) -> dict[str, Any]:
        options: dict[str, Any] = Comm.handshake_configuration(local, remote)
        options["handles"] = share_directory(local, remote)
        if options["handles"]:
            # Compressed bytes would have to be copied; two containers may share a directory
            # but not an address, so that distributed takes them for two hosts.
            options["compression"] = None
        return options

    # ---- writing ----

    async def write(
        self, msg: Any, serializers: list[str] | None = None, on_error: str = "message"
    ) -> int:
        _core.give_room()  # if asked for: a client that has nothing to do says so now and then
        by_handle = self.handshake_options.get("handles", False)  # not while they shake hands
        quick = by_handle and takes_no_time(msg)
        frames = await to_frames(
            msg,
            allow_offload=self.allow_offload and not quick,
            serializers=serializers,
            on_error=on_error,
            context={
                "sender": self.local_info,
                "recipient": self.remote_info,
                **self.handshake_options,
            },
            # A frame cut to pieces would need a lease for each, and a copy to join them.
            frame_split_size=sys.maxsize if by_handle else self._wire.max_shard_size,
        )
        sizes = [nbytes(frame) for frame in frames]
        large = [place for place, size in enumerate(sizes) if size >= self._threshold]
        counters["bytes_sent_small"] += sum(sizes) - sum([sizes[place] for place in large])
        handles: dict[int, Handle] = {}
        try:
            if large:
                handles = await self._hand_over(frames, large) if by_handle else {}
                why = "bytes_sent_without_room" if by_handle else "bytes_sent_to_other_domain"
                counters[why] += sum(sizes[place] for place in large if place not in handles)
                frames = [frame for place, frame in enumerate(frames) if place not in handles]
            listed = [(place, *handle) for place, handle in handles.items()]
            header = {"handles": listed, "quick": quick}
            sent: int = await self._wire.write(Serialized(header, frames))
        except BaseException:  # whatever it was, nobody will take what was handed over
            self.abort()
            raise
        return sent + sum(handle.nbytes for handle in handles.values())

    async def _hand_over(self, frames: list[Frame], large: list[int]) -> dict[int, Handle]:
        """Handles for the large frames, by their place in the message."""
        handles = {place: self._outbox.share(frames[place]) for place in large}
        foreign = [place for place, handle in handles.items() if handle is None]

        def copy(patient: bool) -> None:
            for place in foreign:
                handles[place] = self._outbox.copy(frames[place], patient=patient)

        if self.allow_offload and sum(nbytes(frames[p]) for p in foreign) > OFFLOAD_THRESHOLD:
            await offload(copy, True)
        else:
            copy(False)
        return {place: handle for place, handle in handles.items() if handle is not None}

    # ---- reading ----

    async def read(self, deserializers: Any = None) -> Any:
        envelope = await self._read_envelope()
        try:
            frames, quick = _open_envelope(envelope, self._threshold)
            return await from_frames(
                frames,
                deserialize=self.deserialize,
                deserializers=deserializers,
                allow_offload=self.allow_offload and not quick,
            )
        except EOFError as error:  # as in distributed's TCP comm: frames cut short
            self.abort()
            raise CommClosedError("aborted stream on truncated data") from error
        except HandleError as error:
            # Not as it is: a client that listens to its scheduler expects nothing but this, and
            # would hear nothing more.
            self.abort()
            raise CommClosedError(f"in {self}: {type(error).__name__}: {error}") from error

    async def _read_envelope(self) -> Any:
        if self.remote_info:
            return await self._wire.read()
        # Nobody has shaken hands yet: what any program says to a port may look like the length of
        # gigabytes, which in a segment would take memory before they arrive.
        with allocation.ordinary():
            return await self._wire.read()

    # ---- closing ----

    async def close(self) -> None:
        if not self.closed() and self._outbox.linger():
            asyncio.get_running_loop().call_later(config.get_seconds("grace") + 1, sweep)
        await self._wire.close()
        _let_go(self._outbox)

    def abort(self) -> None:
        self._wire.abort()
        _let_go(self._outbox)

    def closed(self) -> bool:
        return self._stream_closed or self._wire.closed()

    @property
    def name(self) -> str | None:
        """What distributed calls this connection; the wire's errors tell it."""
        name: str | None = self._wire.name
        return name

    @name.setter
    def name(self, name: str | None) -> None:
        self._wire.name = name

    @property
    def local_address(self) -> str:
        return self._local_addr

    @property
    def peer_address(self) -> str:
        return self._peer_addr

    @property
    def extra_info(self) -> dict[str, Any]:
        info: dict[str, Any] = self._wire.extra_info
        return info


class Shms(Shm):
    """The same over TLS: handles travel only between ends that have authenticated each other."""

    wire_class = TLS


def _note_closed(reference: weakref.ref[Shm]) -> None:
    """The stream was closed, by either end: nobody will take what was not taken."""
    comm = reference()
    if comm is not None:
        comm._stream_closed = True
        _let_go(comm._outbox)


def _let_go(outbox: Outbox) -> None:
    """The connection is over."""
    outbox.withdraw()
    sweep(ask=True)
    process.release(outbox)


def _open_envelope(envelope: Any, threshold: int) -> tuple[list[Frame], bool]:
    """All frames of a message, the large ones as leases; and whether it is quick to read.

    Raises
    ------
    HandleError
        The envelope is malformed, or one of its handles cannot be taken. Everything in it is
        checked before anything is opened.
    """
    match envelope:
        case Serialized(
            header={"handles": list() | tuple() as listed, "quick": bool(quick)}, frames=inline
        ):
            pass
        case _:
            found = type(envelope).__name__
            raise _malformed(f"an envelope of shm://, found {found} (a peer that uses tcp://?)")
    handles: dict[int, Handle] = {}
    count = len(listed) + len(inline)
    for entry in listed:
        match entry:
            case [int(place), *fields] if 0 <= place < count and place not in handles:
                handles[place] = Handle.parse(fields)
            case _:
                raise _malformed(f"a frame's place below {count}, found {str(entry)[:200]}")
    leases = {place: receive(handle) for place, handle in handles.items()}
    sizes = [nbytes(frame) for frame in inline]
    small = sum([size for size in sizes if size < threshold])
    counters["bytes_received_small"] += small
    counters["bytes_received_inline"] += sum(sizes) - small
    rest = iter(inline)
    frames = [leases[place] if place in leases else next(rest) for place in range(count)]
    return frames, quick


def _malformed(what: str) -> HandleError:
    return HandleError(errno.EBADMSG, f"expected {what}; the connection is given up")
