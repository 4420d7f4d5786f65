"""What dask spills to the disk, and reads back.

distributed reads a spilled chunk into a ``bytearray``: sent to another worker, it would have to
be copied into a segment first. Here it comes back into a segment, as if it had just been
computed.

distributed spills leases too, though the memory is another's and none is gained. They are
written, as it wants, but held on to: when they are needed again, nothing is read.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import numpy as np
from distributed.spill import AnyKeyFile, SpillBuffer
from zict.cache import WeakValueMapping

from xshm.whereabouts import is_leased


class SpilledLeases(WeakValueMapping[Any, Any]):
    """Spilled values that are still in memory: because somebody uses them, or as leases.

    Parameters
    ----------
    data : MutableMapping
        Of a worker that has not spilled anything yet. If it is not distributed's own
        ``SpillBuffer``, whoever made it sees to what is spilled.
    """

    def __init__(self, data: MutableMapping[Any, Any]) -> None:
        super().__init__()
        self._held: dict[Any, np.ndarray[Any, Any]] = {}
        if isinstance(data, SpillBuffer):
            data.slow.cache = self
            values = data.slow.data
            values.d = _Files(values.d.directory)

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        if type(value) is np.ndarray and is_leased(value):
            self._held[key] = value

    def __delitem__(self, key: Any) -> None:
        self._held.pop(key, None)
        super().__delitem__(key)

    def let_go(self) -> None:
        """Hold on to leases no longer: some are all that keeps their memory."""
        self._held.clear()


class _Files(AnyKeyFile):
    """The files of spilled values: zict's, but for the memory that they are read into."""

    def __getitem__(self, key: Any) -> memoryview:
        with self.lock:
            path = Path(self.directory, self.filenames[key])
            return np.fromfile(path, "u1").data
