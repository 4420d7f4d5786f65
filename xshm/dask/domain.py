"""Whether two ends of a connection share a directory, told in the handshake.

Equal addresses prove nothing: containers of one host may each have their own ``/dev/shm``.
So each end tells the id that it reads in its own directory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xshm import process

#: Of the envelope and the handles; two ends that differ exchange ordinary bytes.
PROTOCOL_VERSION = 1


def who_am_i() -> dict[str, Any]:
    """What this end tells of itself."""
    return {"version": PROTOCOL_VERSION, "domain": process.current().directory.domain}


def same_domain(local: Mapping[str, Any], remote: Mapping[str, Any]) -> bool:
    """Whether two ends, by what they told, may exchange handles."""
    mine = local.get("xshm")
    return mine is not None and mine == remote.get("xshm")
