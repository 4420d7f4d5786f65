"""``engine="xshm"``: containers through ``xarray.open_dataset`` and ``open_datatree``."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from typing import Any

import xarray as xr
from xarray.backends import BackendEntrypoint
from xarray.backends.api import DATAARRAY_NAME

from xshm.container.container import MappedContainer
from xshm.labelled.from_container import Decoder
from xshm.shared_dataset import SharedDataset
from xshm.xarray.variable import ContainerVariable


class XshmBackend(BackendEntrypoint):
    """Opens containers by name, or a :class:`xshm.SharedDataset`.

    Nothing in a container is encoded, so the options that say what to decode have no effect.
    """

    description = "Open labelled arrays in shared memory, without a copy"
    open_dataset_parameters = (
        "filename_or_obj",
        "drop_variables",
        "group",
        "mask_and_scale",
        "decode_times",
        "concat_characters",
        "decode_coords",
        "use_cftime",
        "decode_timedelta",
    )
    supports_groups = True

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Whether it is a handle; a name alone could be that of any file."""
        return isinstance(filename_or_obj, SharedDataset)

    def open_dataset(  # the options are those that xarray.open_dataset passes on
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        group: str | None = None,
        mask_and_scale: Any = None,
        decode_times: Any = None,
        concat_characters: Any = None,
        decode_coords: Any = None,
        use_cftime: Any = None,
        decode_timedelta: Any = None,
    ) -> xr.Dataset:
        """The Dataset of a container, or of one group of it."""
        decoder = _decoder(filename_or_obj)
        dataset = decoder.dataset(_absolute(group), _names(drop_variables))
        if decoder.array_name in dataset.coords:  # the array itself is stored under another
            dataset.attrs[DATAARRAY_NAME] = decoder.array_name
        dataset.set_close(_nothing_to_close)  # open_mfdataset calls it
        return dataset

    def open_groups_as_dict(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        group: str | None = None,
        mask_and_scale: Any = None,
        decode_times: Any = None,
        concat_characters: Any = None,
        decode_coords: Any = None,
        use_cftime: Any = None,
        decode_timedelta: Any = None,
    ) -> dict[str, xr.Dataset]:
        """The Datasets of all groups at and below one, by their paths from there."""
        decoder = _decoder(filename_or_obj)
        return decoder.datasets(_absolute(group), _names(drop_variables))

    def open_datatree(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        group: str | None = None,
        **decoders: Any,
    ) -> xr.DataTree:
        """The groups at and below one, as a DataTree."""
        if unknown := decoders.keys() - {*self.open_dataset_parameters}:
            raise TypeError(f"open_datatree() got unexpected options: {', '.join(sorted(unknown))}")
        decoder = _decoder(filename_or_obj)
        return decoder.data_tree(_absolute(group), _names(drop_variables))


def _decoder(which: Any) -> Decoder:
    if isinstance(which, SharedDataset):
        return Decoder(which.map(), ContainerVariable)
    return Decoder(MappedContainer.open(_name(os.fspath(which))), ContainerVariable)


def _name(name: str) -> str:
    # open_mfdataset takes names for files of the current folder, and makes absolute paths of them.
    folder, _, last = name.rpartition("/")
    return last if folder and folder == os.getcwd() else name


def _nothing_to_close() -> None:
    """A mapping ends with the last array that lies in it."""


def _absolute(group: str | None) -> str:
    return "/" + (group or "").strip("/")


def _names(drop_variables: str | Iterable[str] | None) -> Collection[str]:
    if drop_variables is None:
        return ()
    return {drop_variables} if isinstance(drop_variables, str) else set(drop_variables)
