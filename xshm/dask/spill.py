"""What dask spills to the disk, and reads back.

distributed reads a spilled chunk into a ``bytearray``: sent to another worker, it would have to
be copied into a segment first. Here it comes back into a segment, as if it had just been
computed.

distributed spills leases too, though their memory is another worker's and none is gained. Here
they stay, for as long as that worker keeps them.
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from distributed.protocol.compression import decompress
from distributed.protocol.serialize import merge_and_deserialize
from distributed.spill import AnyKeyFile, SpillBuffer
from distributed.utils import nbytes
from zict import LRU

from xshm import process
from xshm.whereabouts import segment_leased


def attend_to(data: MutableMapping[Any, Any], is_enough: Callable[[], bool]) -> None:
    """See to what a worker spills.

    Parameters
    ----------
    data : MutableMapping
        Of a worker that has not spilled anything yet. If it is not distributed's own
        ``SpillBuffer``, whoever made it sees to what is spilled, and how.
    is_enough : callable
        Whether enough is spilled. Its memory may be kept for the next chunks, while dask's monitor
        would go on until it was given back.
    """
    if isinstance(data, SpillBuffer):
        values = data.slow.data
        values.d = _Files(values.d.directory)
        values.load = _load
        # Who sets an item takes this one, dask's monitor of memory the one below.
        data.fast.evict = functools.partial(_evict, data.fast)
    if hasattr(data, "fast") and hasattr(data, "evict"):  # distributed.spill.ManualEvictProto
        data.evict = functools.partial(_evict_if_any, data.evict, is_enough)


class _Files(AnyKeyFile):
    """The files of spilled values: zict's, but for the memory that they are read into.

    Notes
    -----
    In the file each frame begins at a multiple of ``_ALIGNMENT``. An array begins with a page; one
    that is copied to a few bytes behind the start of another page takes twice as long, as the
    processor takes what it loads for what it has just stored, 4 KiB before.
    """

    def __setitem__(self, key: Any, frames: list[Any]) -> None:
        padded = [part for frame in frames for part in (frame, bytes(-nbytes(frame) % _ALIGNMENT))]
        super().__setitem__(key, padded)

    def __getitem__(self, key: Any) -> _Content:
        with self.lock:
            return _Content(Path(self.directory, self.filenames[key]))


class _Content:
    """What is in such a file, frame by frame: so that an array is where arrays begin.

    Its length is in bytes.
    """

    def __init__(self, path: Path) -> None:
        with open(path, "rb") as file:
            # As distributed.protocol.utils.pack_frames_prelude writes them.
            (count,) = _LENGTH.unpack(file.read(_LENGTH.size))
            lengths = [_LENGTH.unpack(file.read(_LENGTH.size))[0] for _ in range(count)]
            self.frames = []
            for length in lengths:
                file.seek(-file.tell() % _ALIGNMENT, os.SEEK_CUR)
                self.frames.append(np.fromfile(file, "u1", length).data)

    def __len__(self) -> int:
        return sum(frame.nbytes for frame in self.frames)


_LENGTH = struct.Struct("Q")
_ALIGNMENT = 64


def _load(content: _Content) -> Any:
    """As distributed.protocol.serialize.deserialize_bytes, of frames."""
    head, *frames = content.frames
    header = msgpack.loads(head, raw=False, use_list=False)
    return merge_and_deserialize(header, decompress(header, frames))


def _evict(fast: LRU[Any, Any]) -> tuple[Any, Any, float]:
    """As ``LRU.evict``, but leases count as used just now.

    Raises
    ------
    KeyError
        There is nothing else.
    """
    for _ in range(len(fast)):
        key = next(iter(fast.order))
        if not _is_kept_by_another(fast.d[key]):
            return LRU.evict(fast)
        fast[key]  # is the one that was used last now
    raise KeyError("expected a value that only this worker keeps, found none")


def _evict_if_any(evict: Callable[[], int], is_enough: Callable[[], bool]) -> int:
    """As what dask's monitor calls: the bytes that the value had, or -1 if none was spilled."""
    if is_enough():
        return -1
    try:
        return int(evict())
    except KeyError:  # of _evict
        return -1


def _is_kept_by_another(value: Any) -> bool:
    segment = segment_leased(value) if type(value) is np.ndarray else None
    return segment is not None and process.current().exists(segment)
