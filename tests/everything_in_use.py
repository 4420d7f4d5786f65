"""A file of every kind that xshm makes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import dask.config
import numpy as np
import xarray as xr

import xshm
from xshm import process
from xshm.codecs import ndarrays
from xshm.codecs.buffers import Buffers
from xshm.container.draft import Draft
from xshm.directory import configured
from xshm.handover import Outbox
from xshm.message import reduce_array


@contextlib.contextmanager
def everything_in_use() -> Iterator[Path]:
    """A file of every kind, in the directory of this user; all go with the block."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set({"xshm.grace": "0s"}))
        stack.callback(process.close)
        stack.enter_context(xshm.allocator())
        number = np.ones(2**18)
        here = configured()
        held: list[Any] = [number + 1, number + 2]
        outbox = Outbox()
        held += [outbox.share(held[0]), outbox.copy(bytes(2**20)), reduce_array(held[1])]
        stack.callback(outbox.withdraw)
        stack.enter_context(xshm.publish(xr.Dataset({"v": ("x", number)}), "published"))
        stack.enter_context(xshm.SharedArray.from_shape(10, name="named"))
        unnamed = stack.enter_context(xshm.SharedArray.from_shape(10))
        held.append(ForkingPickler.dumps(unnamed))
        stack.enter_context(xshm.Lock("locked"))
        channel = stack.enter_context(xshm.Channel("channel"))
        channel.write(number)
        stack.enter_context(xshm.publish(number, "bound", lifetime="process"))
        buffers = Buffers()
        spec = ndarrays.encode(number, buffers, "the array", in_full=True)
        draft = Draft({"kind": "ndarray", "array": spec, "groups": []}, buffers)
        stack.callback(draft.discard)
        yield here.path


def files_below(folder: Path) -> list[Path]:
    """The folder and all that is in it."""
    return [folder, *sorted(folder.rglob("*"))]
