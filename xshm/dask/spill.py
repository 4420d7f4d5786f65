"""What dask spilled to the disk comes back into a segment, as if it had just been computed.

distributed reads a spilled chunk into a ``bytearray``. To be sent to another worker it would
have to be copied into a segment first.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import numpy as np
from distributed.spill import AnyKeyFile, SpillBuffer


def read_into_segments(data: MutableMapping[Any, Any]) -> None:
    """Have a worker's data, when they are read back, be where NumPy's arrays are born.

    Parameters
    ----------
    data : MutableMapping
        Of a worker that has not spilled anything yet. If it is not distributed's own
        ``SpillBuffer``, whoever made it sees to that.
    """
    if isinstance(data, SpillBuffer):
        values = data._slow_uncached
        values.d = _Files(values.d.directory)


class _Files(AnyKeyFile):
    """The files of spilled values: zict's, but for the memory that they are read into."""

    def __getitem__(self, key: Any) -> memoryview:
        with self.lock:
            path = Path(self.directory, self.filenames[key])
            return np.fromfile(path, "u1").data
