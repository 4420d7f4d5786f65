"""The latest value of something that changes: one process writes, any number read."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any, NamedTuple, Self

from xshm import names, process
from xshm.channel.control import Control
from xshm.channel.latest import put, take
from xshm.channel.message import Contents, Message, decode
from xshm.channel.snapshot import Snapshot
from xshm.errors import ChannelNotFoundError, ClosedError

#: Seconds after which who waits looks whether the writer and the channel are still there: a
#: process that is killed wakes nobody.
_LOOK_AGAIN = 1.0


class Channel:
    """The latest value of something that changes, under a name.

    One process writes, and never waits for those who read. Any number of processes read, each
    when it likes: the latest version, whole, without a copy. Versions in between that nobody
    read are gone. A frame of a camera, the state of a simulation, the weights of a model: their
    shape, dtype and coordinates may change from one version to the next.

    The channel is made if there is none of that name. It lives, with its latest version, until
    :meth:`unlink`, also when its writer ends or is killed.

    Parameters
    ----------
    name : str
        At most 200 bytes, without slashes, not starting with a dot.

    Attributes
    ----------
    name : str

    Raises
    ------
    ContainerNameError
    NoRoomError
    LimitError
    FormatError
        There is something else of that name, which xshm did not make.

    Notes
    -----
    Use one object in one thread at a time. In a child that was forked, and pickled to another
    process, it reads; only the object that wrote first goes on writing. As the context manager
    of a block, one that wrote removes the channel at the block's end, and one that read is closed.

    See Also
    --------
    publish : for what does not change, or changes in place.

    Examples
    --------
    >>> import numpy as np, xshm
    >>> with xshm.Channel("camera") as writer:
    ...     version = writer.write(np.zeros((480, 640)))
    ...     with xshm.Channel("camera") as reader:  # in any other process, as a rule
    ...         snapshot = reader.read()
    >>> snapshot.version, snapshot.value.shape
    (1, (480, 640))
    """

    def __init__(self, name: str) -> None:
        self.name = names.check(name, "channel")
        with contextlib.ExitStack() as undo:
            me = process.hold(self)
            undo.callback(process.release, self)
            self._control: Control | None = Control(me.directory, self.name)
            undo.pop_all()
        # The version given last. Of those before this object, only the latest can be had.
        self._last = max(self._control.version - 1, 0)

    def __reduce__(self) -> tuple[type[Channel], tuple[str]]:
        return Channel, (self.name,)

    def __repr__(self) -> str:
        if self._control is None:
            return f"<xshm.Channel {self.name!r}, closed>"
        return f"<xshm.Channel {self.name!r}, version {self._control.version}>"

    # ---- writing ----

    def write(self, obj: Any) -> int:
        """Write the next version; readers see it whole, or still the one before.

        The first call makes this object the channel's writer, until it is closed.

        Parameters
        ----------
        obj : ndarray, Dataset, DataArray, DataTree, or plain value
            Copied once. What dask is to compute is computed. Plain values are those that
            attributes may have: numbers, strings, bytes, lists, dicts.

        Returns
        -------
        int
            The version.

        Raises
        ------
        UnsupportedError
            It cannot be held. The version before stays.
        NoRoomError
            The directory has not that much room. The version before stays.
        WriterError
            Another object, or process, is the writer.
        ChannelNotFoundError
        ClosedError
        """
        control = self._open_control()
        with control.writing, contextlib.ExitStack() as undo:
            if not control.is_writer:
                control.become_writer()
            version = control.version + 1
            contents = Contents.of(obj)
            undo.callback(control.catch_up)  # what is interrupted may be in its place already
            put(control, contents, version)
            control.announce(version)
            undo.pop_all()
            return version

    # ---- reading ----

    def read(self) -> Snapshot | None:
        """The latest version.

        Returns
        -------
        Snapshot or None
            None if nothing was written yet.

        Raises
        ------
        ChannelNotFoundError
            The channel was removed.
        ClosedError
        FormatError
            What is there is no version of a channel, or is damaged.
        LimitError, HandleError
            The process has no more open files, or mappings.
        """
        control = self._open_control()
        taken = take(control)
        if taken is None:
            # It may have been removed just now.
            self._open_control()
            return None
        return self._snapshot(*taken, control.has_writer())

    def wait(self, timeout: float | None = None) -> Snapshot | None:
        """The next version: one that is newer than the last that this object gave.

        It does not wait if there is one already. A channel without a writer may get one, so
        without a timeout this waits for that, too; iterate to stop with the writer.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most.

        Returns
        -------
        Snapshot or None
            None if there was none in that time.

        Raises
        ------
        ChannelNotFoundError
            The channel was removed, perhaps meanwhile.
        ClosedError
        FormatError
        """
        return self._next(_until(timeout))

    async def wait_async(self, timeout: float | None = None) -> Snapshot | None:
        """As :meth:`wait`, for asyncio: other tasks go on meanwhile.

        It takes a thread of the loop's default executor for as long as it waits.
        """
        return await self._next_async(_until(timeout))

    def __iter__(self) -> Self:
        """Each next version, until the writer has closed or ended, or the channel is removed.

        Of the versions that are written while the loop's body runs, it gives the latest. On a
        channel without a version it waits for the first writer.
        """
        return self

    def __next__(self) -> Snapshot:
        with contextlib.suppress(ChannelNotFoundError):
            snapshot = self._next(None, until_end=True)
            if snapshot is not None:
                return snapshot
        raise StopIteration

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Snapshot:
        with contextlib.suppress(ChannelNotFoundError):
            snapshot = await self._next_async(None, until_end=True)
            if snapshot is not None:
                return snapshot
        raise StopAsyncIteration

    def _next(self, until: float | None, until_end: bool = False) -> Snapshot | None:
        while not (look := self._look(until, until_end)).is_last:
            look.control.wait(look.events, look.pause)
        return look.snapshot

    async def _next_async(self, until: float | None, until_end: bool = False) -> Snapshot | None:
        while not (look := self._look(until, until_end)).is_last:
            await asyncio.to_thread(look.control.wait, look.events, look.pause)
        return look.snapshot

    def _look(self, until: float | None, until_end: bool) -> _Look:
        control = self._open_control()
        # Asked before the version is looked at: an event after this ends the wait at once, and
        # a writer that has ended by now has written its last.
        events, has_writer = control.events, control.has_writer()
        snapshot = None
        if control.version > self._last or not has_writer:  # it may not have announced its last
            taken = take(control)
            if taken is not None and taken[0].version > self._last:
                snapshot = self._snapshot(*taken, has_writer)
        pause = _LOOK_AGAIN if until is None else min(until - time.monotonic(), _LOOK_AGAIN)
        has_ended = until_end and not has_writer and max(control.version, self._last) > 0
        is_last = snapshot is not None or has_ended or pause <= 0
        return _Look(control, events, snapshot, pause, is_last)

    def _snapshot(self, first: Message, memory: memoryview, has_writer: bool) -> Snapshot:
        missed = max(first.version - self._last - 1, 0)
        age = max(time.monotonic_ns() - first.monotonic, 0)
        value = decode(memory)
        self._last = first.version
        return Snapshot(
            value,
            first.version,
            first.written_at / 1e9,
            age / 1e9,
            has_writer,
            missed,
        )

    # ---- the end ----

    def unlink(self) -> None:
        """Remove the channel. Who waits for it is woken; snapshots stay.

        Raises
        ------
        ChannelNotFoundError
            It was removed before.
        ClosedError
        """
        self._open_control().remove()

    def close(self) -> None:
        """Be done with it: if this object wrote, others may write from now on.

        The channel stays, with its latest version.
        """
        control, self._control = self._control, None
        if control is not None:
            control.close()
            process.release(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            if self._control is not None and self._control.is_writer:
                with contextlib.suppress(ChannelNotFoundError):  # somebody else was faster
                    self._control.remove()
        finally:
            self.close()

    def _open_control(self) -> Control:
        if self._control is None:
            raise ClosedError(
                f"expected an open channel, found {self.name!r} closed: make the Channel anew"
            )
        if self._control.is_removed():
            raise self._control.not_found()
        return self._control


class _Look(NamedTuple):
    """What a look at a channel gave: a new version, or how long to wait for an event."""

    control: Control
    events: int
    snapshot: Snapshot | None
    pause: float
    is_last: bool


def _until(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout
