"""Labelled objects as the header and the buffers of a container."""

from __future__ import annotations

import datetime
import math
import warnings
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from xshm.array_proxy import ArrayProxy
from xshm.codecs import arrays, indexes, ndarrays, scalars
from xshm.codecs.buffers import Buffers
from xshm.codecs.specs import unsupported
from xshm.container.header import Header
from xshm.errors import UnsupportedError

#: What a DataArray without a name, or with that of one of its coordinates, is called in the
#: Dataset that ``open_dataset`` gives; xarray's own backends use the same.
DATA_ARRAY_NAME = "__xarray_dataarray_variable__"

Publishable = xr.Dataset | xr.DataArray | xr.DataTree | np.ndarray | ArrayProxy[Any]


class Encoded(NamedTuple):
    """All that a container needs.

    Attributes
    ----------
    header : dict
    buffers : Buffers
    sources : list of dask arrays
        What is to be computed into buffers that are reserved.
    layouts : list of Layout
        Where the values of each of them go.
    """

    header: Header
    buffers: Buffers
    sources: list[Any]
    layouts: list[ndarrays.Layout]


def encode(obj: Publishable) -> Encoded:
    """Take an object apart; nothing is computed or copied, but for what is not of fixed size.

    Raises
    ------
    UnsupportedError
        It holds something that a container cannot hold.
    """
    encoder = GroupEncoder(Buffers())
    header: Header = {"created": datetime.datetime.now(datetime.UTC).isoformat()}
    match obj:
        case xr.Dataset():
            header |= {"kind": "dataset", "groups": [encoder.group(obj)]}
        case xr.DataArray():
            header |= {
                "kind": "dataarray",
                "name": scalars.encode(obj.name, "the name of the DataArray"),
                "coordinate": _is_coordinate(obj),
                "groups": [encoder.group(as_dataset(obj))],
            }
        case xr.DataTree():
            header |= {
                "kind": "datatree",
                "name": scalars.encode(obj.name, "the name of the DataTree"),
                "groups": [
                    # What the top inherits from above the published part would be lost.
                    encoder.group(
                        node.to_dataset(inherit=node is obj), "/" if path == "." else f"/{path}"
                    )
                    for path, node in obj.subtree_with_keys
                ],
            }
        case np.ndarray() | ArrayProxy():
            spec = arrays.encode(obj, encoder.buffers, "the array")
            header |= {"kind": "ndarray", "array": spec, "groups": []}
        case _:
            raise UnsupportedError(
                "expected a Dataset, DataArray, DataTree or NumPy array to publish, found a "
                f"{type(obj).__name__}: lists fit after np.asarray(x), pandas objects after "
                "x.to_xarray()"
            )
    encoder.warn()
    return Encoded(header, encoder.buffers, encoder.sources, encoder.layouts)


def _is_coordinate(obj: xr.DataArray) -> bool:
    """Whether it is one of its own coordinates, and its index holds its values."""
    is_own = isinstance(obj.variable, xr.IndexVariable) and obj.name in obj.coords
    return is_own and obj.variable.identical(obj.coords[obj.name].variable)


def as_dataset(obj: xr.Dataset | xr.DataArray) -> xr.Dataset:
    """A DataArray as the Dataset that is stored for it."""
    if isinstance(obj, xr.Dataset):
        return obj
    name = obj.name
    return obj.to_dataset(name=DATA_ARRAY_NAME if name is None or name in obj.coords else name)


class GroupEncoder:
    """Makes the header's entries of groups and variables.

    Parameters
    ----------
    buffers : Buffers
        Where the bytes of arrays go.

    Attributes
    ----------
    sources : list of dask arrays
    layouts : list of Layout
    """

    def __init__(self, buffers: Buffers) -> None:
        self.buffers = buffers
        self.sources: list[Any] = []
        self.layouts: list[ndarrays.Layout] = []
        self._left_out: list[str] = []
        self._group = ""

    def group(self, dataset: xr.Dataset, path: str = "/") -> Header:
        """The entry of a Dataset, or of a node of a DataTree."""
        what = "the dataset" if path == "/" else f"group {path!r}"
        self._group = "" if path == "/" else f" of group {path!r}"
        return {
            "path": path,
            "attrs": scalars.encode(dataset.attrs, f"the attributes of {what}"),
            "encoding": self._encoding(dataset.encoding, what),
            **self.variables(dataset),
        }

    def extended(self, header: Header, dataset: xr.Dataset) -> Header:
        """A header with the variables of a Dataset added to its first group."""
        root, *others = header["groups"]
        new = self.variables(dataset, len(root["indexes"]))
        attrs = scalars.decode(root["attrs"]) | dataset.attrs
        root = {
            **root,
            "attrs": scalars.encode(attrs, "the attributes of the dataset"),
            "variables": root["variables"] + new["variables"],
            "indexes": root["indexes"] + new["indexes"],
        }
        return {**header, "groups": [root, *others]}

    def variables(self, dataset: xr.Dataset, first_index: int = 0) -> Header:
        """The entries of a Dataset's variables and indexes, these numbered from a first on."""
        owner: dict[Hashable, int] = {}
        specs: list[Header] = []
        for number, (index, variables) in enumerate(_indexes(dataset), first_index):
            where = "the index of " + ", ".join(map(repr, variables)) + self._group
            spec = indexes.encode(index, variables, self.buffers, where)
            names = [scalars.encode(name, where) for name in variables]
            specs.append({"names": names, **spec})
            if indexes.holds_values(spec):
                owner |= dict.fromkeys(variables, number)
        return {
            "variables": [
                self._variable(name, variable, name in dataset.coords, owner.get(name))
                for name, variable in dataset.variables.items()
            ],
            "indexes": specs,
        }

    def _variable(
        self, name: Hashable, variable: xr.Variable, is_coordinate: bool, index: int | None
    ) -> Header:
        what = f"variable {name!r}{self._group}"
        if any(math.isnan(size) for size in variable.shape):
            raise unsupported(
                what,
                "an array of known shape",
                variable.data,
                "call compute_chunk_sizes() of the array first",
            )
        entry = {
            "name": scalars.encode(name, f"the name of {what}"),
            "dims": [scalars.encode(dim, f"a dimension of {what}") for dim in variable.dims],
            "shape": list(variable.shape),
            "dtype": str(variable.dtype),
            "coordinate": is_coordinate,
            "attrs": scalars.encode(dict(variable.attrs), f"the attributes of {what}"),
            "encoding": self._encoding(variable.encoding, what),
        }
        if index is not None:
            return {**entry, "index": index}
        if variable.chunks is not None:
            entry["chunks"] = [list(sizes) for sizes in variable.chunks]
            if not variable.dtype.hasobject and variable.dtype.kind != "T":
                spec = ndarrays.reserve(variable.shape, variable.dtype, self.buffers)
                self.sources.append(variable.data)
                self.layouts.append(ndarrays.layout(spec))
                return {**entry, "data": spec}
            variable = variable.compute()  # its size is not known before
        return {**entry, "data": arrays.encode(variable.data, self.buffers, what)}

    def _encoding(self, encoding: Mapping[str, Any], what: str) -> Any:
        # It says how another format stored the variable: worth keeping, not worth refusing for.
        kept = {}
        for key, value in encoding.items():
            try:
                scalars.encode({key: value}, "")
            except UnsupportedError:
                self._left_out.append(f"{key!r} of {what}")
            else:
                kept[key] = value
        return scalars.encode(kept, f"the encoding of {what}")

    def warn(self) -> None:
        """Say what was left out."""
        if self._left_out:
            warnings.warn(
                "these encodings hold objects that a container cannot hold, and were left out: "
                f"{', '.join(self._left_out)}. They concern other formats only; "
                "ds.drop_encoding() before publishing avoids this warning",
                stacklevel=2,
            )


def _indexes(dataset: xr.Dataset) -> Iterator[tuple[xr.Index, dict[Hashable, xr.Variable]]]:
    yield from dataset.xindexes.group_by_index()
