"""What this process has exchanged, and what it holds."""

from __future__ import annotations

from typing import Any

from xshm import _core, process
from xshm.handover import counters

_COUNTED = (
    "handles_sent",
    "bytes_sent_by_handle",
    "bytes_copied_in",
    "bytes_sent_to_other_domain",
    "bytes_sent_without_room",
    "bytes_sent_small",
    "handles_received",
    "bytes_received_by_handle",
    "bytes_received_inline",
    "bytes_received_small",
    "refused",
)


def stats() -> dict[str, int]:
    """Numbers of this process since it started.

    Returns
    -------
    dict of str to int
        ``handles_sent``, ``bytes_sent_by_handle``
            Hand-overs, and the bytes they stood for.
        ``bytes_copied_in``
            Bytes of these that were copied into a segment first.
        ``bytes_sent_inline``
            Bytes of frames of ``xshm.threshold`` and more that went through a socket all the
            same.
        ``bytes_sent_to_other_domain``, ``bytes_sent_without_room``
            Why they did: the peer does not see this process's directory; there was no room
            there, or no mapping or open file left.
        ``bytes_sent_small``
            Bytes of smaller frames. They always go through the socket.
        ``handles_received``, ``bytes_received_by_handle``
            Likewise, taken from others.
        ``bytes_received_inline``, ``bytes_received_small``
            Likewise, from others through sockets.
        ``refused``
            How often an array or a frame got no segment for want of room or mappings.
        ``live_segments``, ``live_bytes``
            Segments with an array of this process.
        ``leased_segments``, ``leased_bytes``
            Segments of others that this process holds.
        ``free_segments``, ``free_bytes``
            Segments kept warm for the next arrays.
        ``waiting_segments``, ``waiting_bytes``
            Freed segments of which others may still hold leases.
        ``mappings``
            Memory mappings in use for all of these, at most.
        ``created``, ``recycled``, ``sealed``
            How often a segment was made, used again, handed out.
        ``given_bytes``
            Bytes that were kept for the next arrays and were given back because room was short.

    Examples
    --------
    On every worker of a cluster::

        client.run(xshm.stats)
    """
    pool = _core.count()
    pool.pop("refused_because")
    exchanged = {key: counters[key] for key in _COUNTED}
    exchanged["refused"] += pool.pop("refused")
    exchanged["bytes_sent_inline"] = (
        exchanged["bytes_sent_to_other_domain"] + exchanged["bytes_sent_without_room"]
    )
    return exchanged | pool


def stats_and_room() -> dict[str, Any]:
    """Those numbers, and the directory that this process uses and the room in it.

    Returns
    -------
    dict
        As :func:`stats`, and ``directory``, its ``domain``, and in bytes ``directory_size`` and
        ``directory_free``; both are 0 if somebody has removed it.
    """
    directory = process.current().directory
    try:
        free, size = directory.room()
    except FileNotFoundError:
        free = size = 0
    return {
        "directory": str(directory.path),
        "domain": directory.domain,
        "directory_size": size,
        "directory_free": free,
        **stats(),
    }
