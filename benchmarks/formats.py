"""Ways to keep a Dataset where another process can open it, xshm among them.

All of them write to a folder of the same tmpfs, and none compresses, so that none is slow for
the sake of a disk.
"""

from __future__ import annotations

import functools
import importlib.util
import mmap
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import numpy as np
import xarray as xr

NAME = "benchmark"
VARIABLE = "v0"

Writer = Callable[[xr.Dataset, Path], Any]
Opener = Callable[[Path], Any]


def is_installed(name: str) -> bool:
    """Whether all that a system needs is."""
    return all(importlib.util.find_spec(package) for package in PACKAGES.get(name, ()))


# ---- xshm


def _publish(dataset: xr.Dataset, folder: Path) -> None:
    import xshm

    with dask.config.set({"xshm.directory": str(folder)}):
        xshm.publish(dataset, NAME)


def _open_published(folder: Path) -> Any:
    import xshm

    with dask.config.set({"xshm.directory": str(folder)}):
        return xshm.open(NAME)


# ---- the bytes alone, with nothing that describes them


def _pwrite(dataset: xr.Dataset, folder: Path, reserve: bool) -> None:
    left, offset = memoryview(dataset[VARIABLE].values).cast("B"), 0
    file = os.open(folder / "bytes", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        if reserve:
            os.posix_fallocate(file, 0, len(left))
        while left:
            written = os.pwrite(file, left, offset)
            left, offset = left[written:], offset + written
    finally:
        os.close(file)


def _container(folder: Path) -> tuple[Path, int]:
    # The file that xshm has published, and where the bytes of its one variable begin: what is
    # compared lies in the same pages.
    (path,) = folder.glob(f"xshm-*/containers/{NAME}")
    with path.open("rb") as file:
        return path, int.from_bytes(file.read(64)[48:56], "little")  # as docs/format.md says


def _mmap(folder: Path) -> Any:
    path, offset = _container(folder)
    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(mapping, np.float32, offset=offset)


def _memmap(folder: Path) -> Any:
    path, offset = _container(folder)
    return np.memmap(path, np.float32, mode="r", offset=offset)


# ---- files


def _write_netcdf(dataset: xr.Dataset, folder: Path, engine: Any) -> None:
    dataset.to_netcdf(folder / f"{engine}.nc", engine=engine)


def _open_netcdf(folder: Path, engine: str) -> Any:
    return xr.open_dataset(folder / f"{engine}.nc", engine=engine)


def _write_zarr(dataset: xr.Dataset, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # how it stores strings may change, it says
        dataset.to_zarr(
            folder / "zarr",
            zarr_format=3,
            consolidated=False,
            encoding={name: {"compressors": ()} for name in dataset.variables},
        )


def _open_zarr(folder: Path, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return xr.open_dataset(folder / "zarr", engine="zarr", consolidated=False, **options)


def _write_pickle(dataset: xr.Dataset, folder: Path) -> None:
    with (folder / "pickle").open("xb") as file:
        pickle.dump(dataset, file, protocol=5)


def _open_pickle(folder: Path) -> Any:
    with (folder / "pickle").open("rb") as file:
        return pickle.load(file)


#: What systems need that may be missing.
PACKAGES = {"netCDF4": ("netCDF4",), "h5netcdf": ("h5netcdf", "h5py"), "zarr": ("zarr",)}

WRITERS: dict[str, Writer] = {
    "xshm": _publish,
    "netCDF4": functools.partial(_write_netcdf, engine="netcdf4"),
    "h5netcdf": functools.partial(_write_netcdf, engine="h5netcdf"),
    "zarr": _write_zarr,
    "pickle": _write_pickle,
}
BARE_WRITERS: dict[str, Writer] = {
    "pwrite": functools.partial(_pwrite, reserve=False),
    "posix_fallocate, pwrite": functools.partial(_pwrite, reserve=True),
}
OPENERS: dict[str, Opener] = {
    "xshm": _open_published,
    "netCDF4": functools.partial(_open_netcdf, engine="netcdf4"),
    "h5netcdf": functools.partial(_open_netcdf, engine="h5netcdf"),
    "zarr": _open_zarr,
    "pickle": _open_pickle,
}
BARE_OPENERS: dict[str, Opener] = {"mmap": _mmap, "np.memmap": _memmap}
