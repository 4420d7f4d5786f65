"""Labelled arrays in shared memory: processes of one host pass handles instead of bytes.

``dask.distributed.LocalCluster(protocol="shm")`` is all that a dask program needs, and
``import xshm.multiprocessing`` one of plain processes. See the README and ``docs/`` for the rest.
"""

import importlib.metadata
import sys

if sys.platform != "linux":
    raise ImportError(
        f"xshm needs Linux (this is {sys.platform}): it keeps arrays in a tmpfs and relies on "
        "Linux's memory mappings and file locks."
    )

from xshm import _core, config

if not hasattr(_core, "HANDLER"):  # the folder of its sources, which Python takes for a package
    raise ImportError("the C core of xshm is not built here: pip install -e . builds it in place")

from xshm.allocation import allocator, disable, enable, trim
from xshm.asarray import asarray
from xshm.channel import Channel, Snapshot
from xshm.dask.report import report
from xshm.errors import (
    ChannelNotFoundError,
    ClosedError,
    ContainerExistsError,
    ContainerNameError,
    ContainerNotFoundError,
    DirectoryError,
    FormatError,
    HandleError,
    LayoutError,
    LimitError,
    LockError,
    LostHandleError,
    NoRoomError,
    SharedMemoryNotFoundError,
    UnsupportedError,
    WriterError,
    XshmError,
)
from xshm.lock import Lock
from xshm.publish import publish
from xshm.shared_array import SharedArray
from xshm.shared_dataset import SharedDataset, list, open, unlink
from xshm.statistics import stats
from xshm.whereabouts import is_shared
from xshm.xarray import accessor as _accessor  # noqa: F401  # registers .xshm

config.install_defaults()

__version__ = importlib.metadata.version("xshm")

__all__ = [
    "Channel",
    "ChannelNotFoundError",
    "ClosedError",
    "ContainerExistsError",
    "ContainerNameError",
    "ContainerNotFoundError",
    "DirectoryError",
    "FormatError",
    "HandleError",
    "LayoutError",
    "LimitError",
    "Lock",
    "LockError",
    "LostHandleError",
    "NoRoomError",
    "SharedArray",
    "SharedDataset",
    "SharedMemoryNotFoundError",
    "Snapshot",
    "UnsupportedError",
    "WriterError",
    "XshmError",
    "allocator",
    "asarray",
    "disable",
    "enable",
    "is_shared",
    "list",
    "open",
    "publish",
    "report",
    "stats",
    "trim",
    "unlink",
]
