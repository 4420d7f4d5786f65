"""Hand-over of bytes to another process: send a buffer as a handle, receive it as a lease.

Notes
-----
Who keeps what alive:

- the sender's array only until it has been sent: from then on the token, a hard link, keeps
  the file, and with it the bytes;
- from :func:`receive` on, the receiver's mapping, locked: the token is used up;
- a token that nobody takes, the outbox of its connection: withdrawn at once if that was
  aborted, after ``xshm.grace`` if it was closed in order, and when the process ends. A
  message, which has no outbox, stays until its process ends, and for ``xshm.grace`` then.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

from xshm import _core, config, process, shortage
from xshm.errors import HandleError, LostHandleError
from xshm.handle import Handle

if TYPE_CHECKING:
    from typing_extensions import Buffer

logger = logging.getLogger(__name__)

#: What this process exchanged since it started; see :func:`xshm.stats` for the keys.
counters: Counter[str] = Counter()

_PROBE_AT = 256  # tokens of one outbox before it is asked which have been taken


def share(buffer: Buffer, token: str) -> Handle | None:
    """Send bytes that lie in a segment, or in a clean lease, without a copy.

    Parameters
    ----------
    buffer : buffer
    token : str
        A new name of this process's.

    Returns
    -------
    Handle or None
        None if they lie in neither, or were written to since they were handed out.
    """
    place = _core.share(buffer, token)
    return None if place is None else _sent(token, place, memoryview(buffer).nbytes)


def copy(buffer: Buffer, token: str, *, patient: bool = False) -> Handle | None:
    """Send bytes by copying them into a segment.

    Parameters
    ----------
    buffer : buffer
    token : str
        A new name of this process's.
    patient : bool, optional
        Whether to wait, for half a second at most, for room that others are asked to give.

    Returns
    -------
    Handle or None
        None if there is no room: send them as ordinary bytes.
    """
    nbytes = memoryview(buffer).nbytes
    if nbytes == 0:
        return None
    try:
        place = _core.copy_in(buffer, token, patient)
    except OSError as error:  # no room, no mapping or no descriptor left
        _say_refused(process.current(), error)
        return None
    counters["bytes_copied_in"] += nbytes
    return _sent(token, place, nbytes)


def _sent(token: str, place: tuple[str, int], nbytes: int) -> Handle:
    counters["handles_sent"] += 1
    counters["bytes_sent_by_handle"] += nbytes
    sweep()
    return Handle(token, *place, nbytes)


class Outbox:
    """The tokens of one connection that may not have been taken yet."""

    def __init__(self) -> None:
        self._tokens: set[str] = set()
        self._probe_at = _PROBE_AT

    def share(self, buffer: Buffer) -> Handle | None:
        """As the function of that name."""
        return self._remembered(share(buffer, process.current().new_token()))

    def copy(self, buffer: Buffer, *, patient: bool = False) -> Handle | None:
        """As the function of that name."""
        return self._remembered(copy(buffer, process.current().new_token(), patient=patient))

    def _remembered(self, handle: Handle | None) -> Handle | None:
        if handle is not None:
            self._tokens.add(handle.token)
            if len(self._tokens) >= self._probe_at:
                self._tokens = set(filter(process.current().exists, self._tokens))
                self._probe_at = max(_PROBE_AT, 2 * len(self._tokens))
        return handle

    def withdraw(self) -> None:
        """The connection was aborted: nobody is to take what was sent over it."""
        tokens, self._tokens = self._tokens, set()
        _withdraw(tokens)

    def linger(self) -> bool:
        """The connection was closed in order: its other end may still be reading.

        Returns
        -------
        bool
            Whether there is anything left to take; then call :func:`sweep` after
            ``xshm.grace``.
        """
        tokens, self._tokens = self._tokens, set()
        left = set(filter(process.current().exists, tokens)) if tokens else set()
        if left:
            batch = _Batch(time.monotonic() + config.get_seconds("grace"), left)
            process.hold(batch)
            _lingering.append(batch)
        return bool(left)


class _Batch:
    """Tokens of a connection that was closed in order, and when its grace period is over."""

    def __init__(self, until: float, tokens: set[str]) -> None:
        self.until = until
        self.tokens = tokens


_lingering: list[_Batch] = []
_sweeping = threading.Lock()


def sweep(ask: bool = False) -> None:
    """Withdraw what nobody took within the grace period.

    Parameters
    ----------
    ask : bool, optional
        Whether to look too for what has been taken meanwhile, and not wait for it any more.
    """
    if _lingering and _sweeping.acquire(blocking=False):
        try:
            me, now = process.current(), time.monotonic()
            for batch in tuple(_lingering):
                if batch.until <= now:
                    _withdraw(batch.tokens)
                elif not ask or any(map(me.exists, batch.tokens)):
                    continue
                _lingering.remove(batch)
                process.release(batch)
        finally:
            _sweeping.release()


def _withdraw(tokens: set[str]) -> None:
    if tokens:
        me = process.current()
        for token in tokens:
            me.withdraw(token)


def receive(handle: Handle) -> memoryview:
    """Take a hand-over: the bytes, writable, and nobody else sees what is written.

    Raises
    ------
    LostHandleError
        The token is gone: taken by somebody else, withdrawn, or its sender has died.
    HandleError
        It points outside the segment, or at something that is not one.
    """
    process.current()
    try:
        lease = _core.lease(*handle)
    except FileNotFoundError as error:
        raise LostHandleError(
            errno.ENOENT,
            f"the segment of {handle} is gone: it was withdrawn when its sender closed the "
            "connection or ended, or somebody else has taken it. Send it again, and raise "
            "xshm.grace if readers come late",
        ) from error
    except OSError as error:  # out of range, a link, no descriptor or memory left
        found = shortage.error_for(error) or error
        raise HandleError(
            error.errno, f"cannot take {handle}: {found.strerror or error}"
        ) from error
    counters["handles_received"] += 1
    counters["bytes_received_by_handle"] += handle.nbytes
    return memoryview(lease)


_refusal_said = False


def _say_refused(me: process.Process, error: OSError) -> None:
    global _refusal_said
    counters["refused"] += 1
    if _refusal_said:
        return
    _refusal_said = True
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free, total = me.directory.room()
        logger.warning(
            "no room for arrays in %s (%.0f MiB in all, %.0f MiB free, and %s): they go as "
            "ordinary bytes where it is full, which is slower. Make it larger (mount -o "
            "remount,size=8g; docker run --shm-size=8g; an emptyDir with medium: Memory), or set "
            "xshm.directory to a larger tmpfs.",
            me.directory.path.parent,
            total / 2**20,
            free / 2**20,
            shortage.files_in(me.directory.path.parent),
        )
    elif error.errno == errno.ENOENT:
        logger.warning(
            "%s was removed while this process was using it: arrays go as ordinary bytes, which "
            "is slower, until it starts anew.",
            me.directory.path,
        )
    else:
        logger.warning(
            "no more segments in this process (%s): further arrays go as ordinary bytes, "
            "which is slower. Larger chunks, or more mappings (sysctl vm.max_map_count) and "
            "open files (ulimit -n), help.",
            error.strerror,
        )
