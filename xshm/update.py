"""Containers changed in place: variables added, and values written over."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Hashable, Mapping
from typing import Any, Literal

import numpy as np
import xarray as xr

from xshm.codecs.buffers import Buffers
from xshm.container.addition import Addition, begin
from xshm.container.handle import ContainerHandle
from xshm.container.mapped import ArrayHandle, has_repeats, lies_in_container
from xshm.errors import ContainerExistsError, UnsupportedError
from xshm.labelled.adapter import ContainerArray
from xshm.labelled.from_container import Decoder
from xshm.labelled.to_container import GroupEncoder, as_dataset
from xshm.shared_dataset import SharedDataset
from xshm.store import check_workers, store, store_later

Region = Mapping[Hashable, "slice | Literal['auto']"] | Literal["auto"]


def add(obj: xr.Dataset | xr.DataArray, name: str, compute: bool) -> Any:
    """Add variables to the Dataset of a container; coordinates may be there already.

    The parameters, and what is given, are those of :func:`xshm.publish`.
    """
    shared = SharedDataset(name)
    container = shared.container
    old, new = _dataset(shared, "dataset"), as_dataset(obj)
    for known, variable in new.variables.items():
        if known not in old.variables or (
            known in new.coords and old[known].variable.equals(variable)
        ):
            continue
        if known in new.coords and known in old.coords:
            raise ValueError(
                f"expected coordinate {known!r} as it is in container {name!r}, found other "
                "values: variables are added on the labels that are there"
            )
        raise ContainerExistsError(
            errno.EEXIST,
            f"container {name!r} has a variable {known!r} already: write over it with "
            "mode='r+', or replace the whole with mode='w'",
        )
    _check_sizes(new, old)
    encoder = GroupEncoder(Buffers(len(container.buffers)))
    header = encoder.extended(container.header, new.drop_vars(old.variables, errors="ignore"))
    encoder.warn()
    check_workers(encoder.sources)
    addition = begin(container, header, encoder.buffers)
    targets = [
        ArrayHandle.of(addition.handle, layout, addition.offsets) for layout in encoder.layouts
    ]
    if not compute:
        return store_later(encoder.sources, targets, _finish, addition)
    try:
        store(encoder.sources, targets)
    except BaseException:
        addition.discard()
        raise
    return _finish(addition)


def _finish(addition: Addition) -> SharedDataset:
    try:
        addition.publish()
    except BaseException:
        addition.discard()
        raise
    return SharedDataset.of(addition.handle._replace(writable=False))


def write_over(
    obj: xr.Dataset | xr.DataArray, name: str, region: Region | None, compute: bool
) -> Any:
    """Write over values of a container, in place.

    The parameters, and what is given, are those of :func:`xshm.publish`.
    """
    shared = SharedDataset(name)
    old, new = _dataset(shared, "dataset", "dataarray"), as_dataset(obj)
    slices = _slices(new, old, region)
    part = old.isel(slices)
    _check_sizes(new, part)
    sources, targets = [], []
    arrays: list[tuple[ArrayHandle, Any]] = []
    handle = shared.container.handle
    for label, variable in new.variables.items():
        if label not in old.variables:
            raise ValueError(
                f"expected variables of container {name!r}, found {label!r}: add it with mode='a'"
            )
        if variable.size == 0 or (label in old.coords and part[label].variable.equals(variable)):
            continue
        target = _target(label, old[label], part[label], variable)
        variable = variable.transpose(*part[label].dims)
        if region is not None and not set(variable.dims) & set(slices):
            raise ValueError(
                f"expected variables with a dimension of the region {[*slices]}, found {label!r} "
                f"with {variable.dims}: drop it, or write it without a region"
            )
        if variable.chunks is not None or not compute:
            sources.append(variable.chunk().data if variable.chunks is None else variable.data)
            targets.append(target)
        else:
            arrays.append((target, variable.data))
    check_workers(sources)
    for target, data in arrays:
        # Values of the container itself would change while they are read.
        target.open()[...] = np.array(data) if lies_in_container(data) else data
    if not compute:
        return store_later(sources, targets, _written_over, handle)
    store(sources, targets)
    return _written_over(handle)


def _written_over(handle: ContainerHandle) -> SharedDataset:
    file = handle._replace(writable=True).open_file()
    try:
        # Results that dask holds of the old values have other keys then.
        os.utime(file, ns=(time.time_ns(),) * 2)
    finally:
        os.close(file)
    return SharedDataset.of(handle)


def _dataset(shared: SharedDataset, *kinds: str) -> xr.Dataset:
    if shared.kind not in kinds:
        raise UnsupportedError(
            f"expected container {shared.name!r} to hold a {' or '.join(kinds)}, found a "
            f"{shared.kind}: replace the whole with mode='w'"
        )
    return Decoder(shared.map("r+")).dataset()


def _check_sizes(new: xr.Dataset, old: xr.Dataset) -> None:
    for dim, size in new.sizes.items():
        if old.sizes.get(dim, size) != size:
            raise ValueError(f"expected {old.sizes[dim]} along dimension {dim!r}, found {size}")


def _slices(new: xr.Dataset, old: xr.Dataset, region: Region | None) -> dict[Hashable, slice]:
    if region is None:
        return {}
    if region == "auto":  # a dimension without labels is whole
        region = dict.fromkeys((dim for dim in new.dims if dim in new.indexes), "auto")
    elif isinstance(region, str):
        raise ValueError(f"expected a region as a dict, or 'auto', found {region!r}")
    slices = {}
    for dim, where in region.items():
        if dim not in old.dims:
            raise ValueError(f"expected a region of dimensions {[*old.dims]}, found {dim!r}")
        if dim not in new.dims:
            raise ValueError(
                f"expected values with the dimension {dim!r} of the region, found {[*new.dims]}: "
                "select with a list, isel(time=[3]), to keep a dimension of length 1"
            )
        if where == "auto":
            slices[dim] = _found(new, old, dim)
        elif isinstance(where, slice) and where.step in (None, 1):
            if (where.stop or 0) > old.sizes[dim]:
                raise ValueError(
                    f"expected a region within {old.sizes[dim]} along dimension {dim!r}, found "
                    f"{where}: a container does not grow"
                )
            slices[dim] = slice(*where.indices(old.sizes[dim])[:2])
        else:
            raise ValueError(f"expected a slice with step 1, or 'auto', for {dim!r}, found {where}")
    return slices


def _found(new: xr.Dataset, old: xr.Dataset, dim: Hashable) -> slice:
    # Where the labels of `new` are among those of `old`.
    if dim not in new.indexes or dim not in old.indexes:
        raise ValueError(
            f"expected labels along dimension {dim!r} to find the region by, found none"
        )
    if not old.indexes[dim].is_unique:
        raise ValueError(
            f"expected labels along dimension {dim!r} that are unique, found some that are not: "
            "give the region as slices"
        )
    positions = old.indexes[dim].get_indexer(new.indexes[dim])
    if len(positions) == 0:
        return slice(0, 0)
    first = int(positions[0])
    if (positions < 0).any():
        raise ValueError(
            f"expected labels along dimension {dim!r} that are in the container, found others"
        )
    if not np.array_equal(positions, np.arange(first, first + len(positions))):
        raise ValueError(
            f"expected labels along dimension {dim!r} in the container's order, one after the "
            "other, found others: write each contiguous part by itself"
        )
    return slice(first, first + len(positions))


def _target(
    label: Hashable, whole: xr.DataArray, part: xr.DataArray, new: xr.Variable
) -> ArrayHandle:
    all_of_it, handle = _place_of(whole), _place_of(part)
    if all_of_it is None or handle is None:
        raise UnsupportedError(
            f"variable {label!r} cannot be written over: labels of an index, strings and objects "
            "stay as they were published; publish all again with mode='w'"
        )
    if has_repeats(all_of_it.shape, all_of_it.strides):
        raise UnsupportedError(
            f"variable {label!r} cannot be written over: its values were repeated along a "
            "dimension, and stored once; publish all again with mode='w'"
        )
    if {*part.dims} != {*new.dims} or not _fits(new.dtype, handle.dtype):
        raise ValueError(
            f"expected variable {label!r} with {part.dims} of {handle.dtype}, found "
            f"{new.dims} of {new.dtype}: nothing is converted that could lose values, see astype"
        )
    return handle


def _place_of(x: xr.DataArray) -> ArrayHandle | None:
    data = x.variable._data
    return data.handle() if isinstance(data, ContainerArray) else None


def _fits(new: np.dtype[Any], old: np.dtype[Any]) -> bool:
    # Of floats only precision is lost, as users expect.
    casting: Literal["same_kind", "safe"] = "same_kind" if old.kind in "fc" else "safe"
    return np.can_cast(new, old, casting)
