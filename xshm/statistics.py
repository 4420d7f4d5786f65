"""What this process has exchanged, and what it holds."""

from __future__ import annotations

from xshm import _core
from xshm.handover import counters

_COUNTED = (
    "handles_sent",
    "bytes_sent_by_handle",
    "bytes_copied_in",
    "bytes_sent_inline",
    "handles_received",
    "bytes_received_by_handle",
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
            Bytes of large frames that went through a socket: to a peer of another domain, or
            for want of room.
        ``handles_received``, ``bytes_received_by_handle``
            Likewise, taken from others.
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

    Examples
    --------
    On every worker of a cluster::

        client.run(xshm.stats)
    """
    pool = _core.count()
    pool.pop("refused_because")
    exchanged = {key: counters[key] for key in _COUNTED}
    exchanged["refused"] += pool.pop("refused")
    return exchanged | pool
