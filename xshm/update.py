"""Containers changed in place: variables added, and values written over."""

from __future__ import annotations

import errno
from collections.abc import Hashable, Mapping
from typing import Any, Literal

import numpy as np
import xarray as xr

from xshm.codecs.buffers import Buffers
from xshm.container.addition import Addition, begin
from xshm.container.mapped import ArrayHandle
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
    old, new = _dataset(shared, "dataset"), as_dataset(obj)
    for known, variable in new.variables.items():
        if known in old.variables and not (
            known in new.coords and old[known].variable.equals(variable)
        ):
            raise ContainerExistsError(
                errno.EEXIST,
                f"container {name!r} has a variable {known!r} already: write over it with "
                "mode='r+', or replace the whole with mode='w'",
                name,
            )
    _check_sizes(new, old)
    encoder = GroupEncoder(Buffers(len(shared.container.buffers)))
    header = encoder.extended(
        shared.container.header, new.drop_vars(old.variables, errors="ignore")
    )
    encoder.warn()
    check_workers(encoder.sources)
    addition = begin(shared.container, header, encoder.buffers)
    targets = [
        ArrayHandle.of(addition.handle, layout, addition.offsets) for layout in encoder.layouts
    ]
    if not compute:
        return store_later(encoder.sources, targets, _finish, addition)
    try:
        store(encoder.sources, targets)
        return _finish(addition)
    except BaseException:
        addition.discard()
        raise


def _finish(addition: Addition) -> SharedDataset:
    addition.publish()
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
    for label, variable in new.variables.items():
        if label not in old.variables:
            raise ValueError(
                f"expected variables of container {name!r}, found {label!r}: add it with mode='a'"
            )
        if variable.size == 0 or (label in old.coords and part[label].variable.equals(variable)):
            continue
        target = _target(label, part[label], variable)
        variable = variable.transpose(*part[label].dims)
        if region is not None and not set(variable.dims) & set(slices):
            raise ValueError(
                f"expected variables with a dimension of the region {[*slices]}, found {label!r} "
                f"with {variable.dims}: drop it, or write it without a region"
            )
        if variable.chunks is not None:
            sources.append(variable.data)
            targets.append(target)
        else:
            arrays.append((target, variable.data))
    check_workers(sources)
    for target, data in arrays:
        target.open()[...] = data
    if not compute:
        return store_later(sources, targets, SharedDataset.of, shared.container.handle)
    store(sources, targets)
    return shared


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
    slices = {}
    for dim, where in region.items():
        if dim not in old.dims or dim not in new.dims:
            raise ValueError(f"expected a region of dimensions {[*old.dims]}, found {dim!r}")
        if where == "auto":
            slices[dim] = _found(new, old, dim)
        elif isinstance(where, slice) and where.step in (None, 1):
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
    positions = old.indexes[dim].get_indexer(new.indexes[dim])
    if len(positions) == 0:
        return slice(0, 0)
    first = int(positions[0])
    if first < 0 or not np.array_equal(positions, np.arange(first, first + len(positions))):
        raise ValueError(
            f"expected labels along dimension {dim!r} that are in the container, one after the "
            "other, found others: write each contiguous part by itself"
        )
    return slice(first, first + len(positions))


def _target(label: Hashable, old: xr.DataArray, new: xr.Variable) -> ArrayHandle:
    data = old.variable._data
    handle = data.handle() if isinstance(data, ContainerArray) else None
    if handle is None:
        raise UnsupportedError(
            f"variable {label!r} cannot be written over: labels of an index, strings and objects "
            "stay as they were published; publish all again with mode='w'"
        )
    if {*old.dims} != {*new.dims} or not np.can_cast(new.dtype, handle.dtype, "same_kind"):
        raise ValueError(
            f"expected variable {label!r} with {old.dims} of {handle.dtype}, found "
            f"{new.dims} of {new.dtype}"
        )
    return handle
