"""Whether two ends of a connection share a directory, told in the handshake.

Equal addresses prove nothing: containers of one host may each have their own ``/dev/shm``.
So each end tells the id that it reads in its own directory. Nor does that prove it: who starts a
virtual machine from another one's snapshot has a copy of the directory, with the same id. So
each end tells its process's id too, whose file the other one must find.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xshm import process
from xshm.directory import PROCESS_ID

#: Of the envelope and the handles; two ends that differ exchange ordinary bytes.
PROTOCOL_VERSION = 1


def who_am_i() -> dict[str, Any]:
    """What this end tells of itself."""
    me = process.current()
    return {"version": PROTOCOL_VERSION, "domain": me.directory.domain, "process": me.id}


def share_directory(local: Mapping[str, Any], remote: Mapping[str, Any]) -> bool:
    """Whether two ends, by what they told, may exchange handles."""
    match local.get("xshm"), remote.get("xshm"):
        case (
            {"version": version, "domain": domain},
            {"version": its_version, "domain": its_domain, "process": str(its_process)},
        ) if (version, domain) == (its_version, its_domain) and PROCESS_ID.fullmatch(its_process):
            return (process.current().directory.processes / its_process).exists()
    return False
