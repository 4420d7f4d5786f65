"""What dask spills to the disk, and reads back.

distributed reads a spilled chunk into a ``bytearray``: sent to another worker, it would have to
be copied into a segment first. Here it comes back into a segment, as if it had just been
computed.

distributed spills leases too, though their memory is another worker's and none is gained. Here
they stay, for as long as that worker keeps them.
"""

from __future__ import annotations

import functools
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import numpy as np
from distributed.spill import AnyKeyFile, SpillBuffer

from xshm import _core, process
from xshm.whereabouts import bytes_spanned, is_leased


def attend_to(data: MutableMapping[Any, Any]) -> None:
    """See to what a worker spills.

    Parameters
    ----------
    data : MutableMapping
        Of a worker that has not spilled anything yet. If it is not distributed's own
        ``SpillBuffer``, whoever made it sees to that.
    """
    if isinstance(data, SpillBuffer):
        values = data.slow.data
        values.d = _Files(values.d.directory)
        data.evict = functools.partial(_evict, data)


class _Files(AnyKeyFile):
    """The files of spilled values: zict's, but for the memory that they are read into."""

    def __getitem__(self, key: Any) -> memoryview:
        with self.lock:
            path = Path(self.directory, self.filenames[key])
            return np.fromfile(path, "u1").data


def _evict(data: SpillBuffer) -> int:
    """As ``SpillBuffer.evict``, but leases count as used just now.

    Returns
    -------
    int
        Bytes that the value had, or -1 if none was spilled.
    """
    for _ in range(len(data.fast)):
        key = next(iter(data.fast.order))
        if not _is_kept_by_another(data.fast.d[key]):
            return int(SpillBuffer.evict(data))
        data.fast[key]  # is the one that was used last now
    return -1


def _is_kept_by_another(value: Any) -> bool:
    if type(value) is not np.ndarray or not is_leased(value):
        return False
    place = _core.locate(bytes_spanned(value))
    return place is not None and process.current().exists(place[1])
