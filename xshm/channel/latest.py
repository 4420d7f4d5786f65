"""The latest message of a channel: put in its place, and taken from there."""

from __future__ import annotations

import errno
import os
import time

import numpy as np

from xshm import _core, process, shortage
from xshm.channel.control import LATEST, Control
from xshm.channel.message import START, Contents, Message, allocate
from xshm.container.names import open_file
from xshm.container.room import no_room
from xshm.errors import FormatError, LostHandleError
from xshm.handle import Handle
from xshm.handover import receive

_SMALL = 2**16
_TRIES = 1000  # each fails only if the writer replaces the message in these microseconds


@shortage.told
def put(control: Control, contents: Contents, version: int) -> None:
    """Make a message the latest.

    Raises
    ------
    NoRoomError
    ChannelNotFoundError
    """
    me = process.current()
    token = me.new_token()
    nbytes = START + contents.plan.nbytes
    memory = allocate(nbytes)
    contents.fill(memory[START:])
    place = _core.locate(memory.data)
    first = Message(
        version,
        time.time_ns(),
        time.monotonic_ns(),
        contents.plan.nbytes,
        "" if place is None else place[1],
    )
    memory[:START] = np.frombuffer(first.pack(), np.uint8)
    try:
        if _core.share(memory.data, token) is None:  # it is small
            _core.copy_in(memory.data, token, True)
        # One step of the kernel's: who is killed before or after leaves a whole message.
        os.rename(token, LATEST, src_dir_fd=me.segments_descriptor, dst_dir_fd=control.folder)
    except FileNotFoundError as error:
        raise control.not_found() from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise no_room(me.directory, nbytes, "this version") from error
    finally:
        me.withdraw(token)


@shortage.told
def take(control: Control) -> tuple[Message, memoryview] | None:
    """The latest message and the bytes of its container, as a lease; None if there is none.

    Those of a small one are read: mapping them, with one page fault, takes longer.

    Raises
    ------
    FormatError
        It is no message, or a damaged one.
    HandleError
        The process has no descriptor or memory left, or its directory was removed.

    Notes
    -----
    Its link is replaced by the writer at any time. That it can be linked does not say that it is
    still the latest: it may have been replaced, and recycled, in the middle of the call. So it
    is looked at once more: if it has its place *after* it was linked, it is whole, and by
    invariant 2 it stays so.
    """
    me = process.current()
    for _ in range(_TRIES):
        token = me.new_token()
        try:
            os.link(
                LATEST,
                token,
                src_dir_fd=control.folder,
                dst_dir_fd=me.segments_descriptor,
                follow_symlinks=False,
            )
            now = os.stat(LATEST, dir_fd=control.folder, follow_symlinks=False)
        except FileNotFoundError:  # it was just replaced, and its writer had no use for it
            me.withdraw(token)
            if not control.has_latest():
                return None
            continue
        except PermissionError as error:
            raise FormatError(
                f"expected the latest version of {control.name!r} to be a file, found a folder"
            ) from error
        try:
            file = open_file(f"{me.directory.segments}/{token}")
            try:
                found = os.fstat(file)
                if os.path.samestat(found, now):
                    first = Message.unpack(os.pread(file, START, 0), found.st_size)
                    if first.nbytes <= _SMALL:
                        memory = np.empty(first.nbytes, np.uint8).data
                        os.preadv(file, [memory], START)
                        return first, memory
                    return first, receive(Handle(token, first.segment, START, first.nbytes))
            finally:
                os.close(file)
        finally:
            me.withdraw(token)
    raise LostHandleError(
        errno.ENOENT,
        f"expected the latest version of {control.name!r} to stay for a moment, found another one "
        f"{_TRIES} times: was {me.directory.segments} removed?",
    )
