"""What a container says of itself, in values that JSON has; no array is opened."""

from __future__ import annotations

import datetime
import math
from typing import Any

import numpy as np

from xshm.codecs import arrays, scalars
from xshm.container.header import Header
from xshm.labelled.from_container import groups_of, reading
from xshm.shared_dataset import SharedDataset

Description = dict[str, Any]


def describe(shared: SharedDataset) -> Description:
    """What a container says of itself, as ``xshm info --json`` prints it.

    Names that are no texts, and attributes that JSON does not have, are written out.

    Raises
    ------
    ContainerNotFoundError
        It was removed or replaced.
    FormatError
        It is damaged.
    """
    container = shared.container  # read once: it may be changed meanwhile
    header, kind = container.header, str(container.header.get("kind"))
    with reading(f"container {shared.name!r}"):
        created = header.get("created")
        if created is not None:
            moment = datetime.datetime.fromisoformat(created).astimezone(datetime.UTC)
            created = moment.isoformat()
        if kind == "ndarray":
            groups = [_group_of_array(header["array"])]
        else:
            groups = [_group(group) for group in groups_of(header)]
    return {
        "name": shared.name,
        "kind": kind,
        "nbytes": container.preamble.nbytes,
        "created": created,
        "generation": shared.generation,
        "groups": groups,
    }


def dims_of(description: Description) -> dict[str, int]:
    """All dims; one that has another size in another group goes by its path there."""
    dims: dict[str, int] = {}
    for group in description["groups"]:
        for dim, size in group["dims"].items():
            dims[dim if dims.get(dim, size) == size else f"{group['path']}/{dim}"] = size
    return dims


def _group(group: Header) -> Description:
    variables = [_variable(entry) for entry in group["variables"]]
    return {
        "path": group["path"],
        "dims": {
            dim: size
            for variable in variables
            for dim, size in zip(variable["dims"], variable["shape"], strict=True)
        },
        "variables": variables,
        "indexes": [
            {"type": str(index["type"]), "names": _names(index["names"])}
            for index in group["indexes"]
        ],
        "attrs": _attrs(group),
    }


def _variable(entry: Header) -> Description:
    chunks = entry.get("chunks")
    return {
        "name": str(scalars.decode(entry["name"])),
        "dtype": str(entry["dtype"]),
        "dims": _names(entry["dims"]),
        "shape": [*map(int, entry["shape"])],
        "chunks": None if chunks is None else [[*map(int, sizes)] for sizes in chunks],
        "coordinate": entry["coordinate"] is True,
        "attrs": _attrs(entry),
    }


def _group_of_array(spec: Header) -> Description:
    shape, dtype = arrays.shape_and_dtype(spec)
    entry = {
        "name": "",
        "dtype": dtype,
        "dims": [f"dim_{i}" for i in range(len(shape))],  # as xarray calls them
        "shape": shape,
        "coordinate": False,
        "attrs": {"dict": []},
    }
    return _group({"path": "/", "variables": [entry], "indexes": [], "attrs": {"dict": []}})


def _names(encoded: list[Any]) -> list[str]:
    return [str(scalars.decode(name)) for name in encoded]


def _attrs(entry: Header) -> dict[str, Any]:
    return {str(name): _plain(value) for name, value in scalars.decode(entry["attrs"]).items()}


def _plain(value: Any) -> Any:
    match value:
        case np.generic() | np.ndarray() if value.dtype.kind in "biufUO":
            return _plain(value.tolist())
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case None | bool() | int() | str():
            return value
        case float() if math.isfinite(value):
            return value
    return str(value)
