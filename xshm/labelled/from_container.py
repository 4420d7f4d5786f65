"""Labelled objects made of a container; their large arrays are not looked at."""

from __future__ import annotations

import contextlib
import reprlib
from collections.abc import Collection, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
import xarray as xr

from xshm.codecs import arrays, indexes, scalars
from xshm.container.container import MappedContainer
from xshm.container.handle import ContainerHandle
from xshm.container.header import Header
from xshm.container.image import Image
from xshm.errors import FormatError, UnsupportedError
from xshm.labelled.adapter import ContainerArray

Published = xr.Dataset | xr.DataArray | xr.DataTree | np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class EncodedArray:
    """An array that has to be decoded, strings for one, and where it lies.

    Attributes
    ----------
    container : ContainerHandle
    spec : dict
        Its entry in the header.
    shape : tuple of int
    dtype : dtype
    mapped : MappedContainer or None
        The container's bytes, which stay when its name goes; not in another process.
    """

    container: ContainerHandle
    spec: Header
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    mapped: MappedContainer | None = None

    def open(self) -> np.ndarray[Any, Any]:
        """Decode it. What others cannot see, nobody can write."""
        mapped = self.mapped or MappedContainer.open(self.container)
        array: np.ndarray[Any, Any] = arrays.decode(self.spec, mapped)
        array.flags.writeable = not self.container.writable
        return array

    def __reduce__(self) -> tuple[Any, ...]:
        return EncodedArray, (self.container, self.spec, self.shape, self.dtype)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return self.__reduce__()


class Labels(NamedTuple):
    """What a variable has that its index does not know of."""

    dims: tuple[Hashable, ...]
    attrs: dict[Any, Any]
    encoding: dict[Any, Any]

    @classmethod
    def of(cls, entry: Header) -> Self:
        """Read the entry of a variable."""
        return cls(
            tuple(scalars.decode(dim) for dim in entry["dims"]),
            scalars.decode(entry["attrs"]),
            scalars.decode(entry["encoding"]),
        )


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Entries of a header are as the specification says, or a FormatError is raised."""
    try:
        yield
    except FormatError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise FormatError(
            f"expected the entry of {what} to be as docs/format.md says, found otherwise: {error!r}"
        ) from error


class Decoder:
    """Makes xarray objects of a container.

    Parameters
    ----------
    mapped : MappedContainer or Image
        Of an image everything is decoded at once, into ordinary arrays.
    variable : type, optional
        Of the variables that are made, but for those of indexes.
    """

    def __init__(
        self, mapped: MappedContainer | Image, variable: type[xr.Variable] = xr.Variable
    ) -> None:
        self._mapped = mapped
        self._header = mapped.container.header
        self._sizes = mapped.container.sizes()
        self._new_variable = variable

    def published(self) -> Published:
        """What was published, of whatever kind it is."""
        match self._header.get("kind"):
            case "dataset":
                return self.dataset()
            case "dataarray":
                return self.data_array()
            case "datatree":
                return self.data_tree()
            case "ndarray":
                return self.array()
            case kind:
                raise FormatError(
                    "expected a container of a dataset, dataarray, datatree or ndarray, found "
                    f"{reprlib.repr(kind)}"
                )

    def dataset(self, path: str = "/", drop: Collection[Hashable] = ()) -> xr.Dataset:
        """The Dataset of a group.

        Parameters
        ----------
        path : str
            From the root, which is ``"/"``.
        drop : collection of hashable
            Names of variables to leave out.

        Raises
        ------
        KeyError
            There is no such group.
        """
        for group in groups_of(self._header):
            if group["path"] == path:
                with reading(f"group {path!r}"):
                    return self._dataset(group, drop)
        paths = reprlib.repr([group["path"] for group in groups_of(self._header)])
        mapped, kind = self._mapped, self._header.get("kind")
        if path == "/" and kind == "ndarray" and isinstance(mapped, MappedContainer):
            name = mapped.container.handle.name
            raise UnsupportedError(
                f"expected a container of labelled arrays, found a plain array in {name!r}: open "
                f"it with xshm.open({name!r})"
            )
        if path == "/":
            raise FormatError(f"expected a container with the group '/', found groups {paths}")
        raise KeyError(f"there is no group {path!r}: expected one of {paths}")

    @property
    def array_name(self) -> Hashable | None:
        """The name of the DataArray, if that was published and has one."""
        if self._header.get("kind") != "dataarray":
            return None
        with reading("the name of the DataArray"):
            name: Hashable | None = scalars.decode(self._header["name"])
            return name

    def data_array(self) -> xr.DataArray:
        """The DataArray, if that was published."""
        dataset = self.dataset()
        with reading("the DataArray"):
            (array,) = dataset.data_vars.values()
            name = self.array_name
            return dataset[name] if self._header.get("coordinate") is True else array.rename(name)

    def datasets(self, root: str = "/", drop: Collection[Hashable] = ()) -> dict[str, xr.Dataset]:
        """The Datasets of all groups at and below one, by their paths from there."""
        prefix = "/" if root == "/" else root + "/"
        found = {root: self.dataset(root, drop)}
        for group in groups_of(self._header):
            if group["path"].startswith(prefix) and group["path"] != root:
                found[group["path"]] = self.dataset(group["path"], drop)
        return {"/" + path[len(prefix) :]: dataset for path, dataset in found.items()}

    def data_tree(self, root: str = "/", drop: Collection[Hashable] = ()) -> xr.DataTree:
        """The groups at and below one."""
        datasets = self.datasets(root, drop)
        with reading("the DataTree"):
            name = (
                scalars.decode(self._header.get("name")) if root == "/" else root.rpartition("/")[2]
            )
            return xr.DataTree.from_dict(datasets, name=name)

    def array(self) -> np.ndarray[Any, Any]:
        """The NumPy array, if that was published."""
        with reading("the array"):
            data = self._data(self._header["array"])
            return data.array if isinstance(data, ContainerArray) else data

    def _dataset(self, group: Header, drop: Collection[Hashable]) -> xr.Dataset:
        entries = {scalars.decode(entry["name"]): entry for entry in group["variables"]}
        plain = {
            name: self._variable(entry)
            for name, entry in entries.items()
            if "index" not in entry and name not in drop
        }
        made: dict[Hashable, xr.Variable] = {}
        of_name: dict[Hashable, xr.Index] = {}
        for spec in group["indexes"]:
            names = [scalars.decode(name) for name in spec["names"]]
            if not drop or not set(names) & set(drop):
                index = indexes.decode(
                    spec, {n: plain[n] for n in names if n in plain}, self._mapped
                )
                of_name |= dict.fromkeys(names, index)
                if indexes.holds_values(spec):
                    labels = {name: Labels.of(entries[name]) for name in names}
                    made |= indexes.create_variables(index, labels)
        variables = {**plain, **made}
        kept = [name for name in entries if name in variables]
        is_coordinate = {name for name in kept if entries[name]["coordinate"] is True}
        coordinates = xr.Coordinates(
            {name: variables[name] for name in kept if name in is_coordinate}, of_name
        )
        dataset = xr.Dataset(
            {name: variables[name] for name in kept if name not in is_coordinate},
            coordinates,
            scalars.decode(group["attrs"]),
        )
        dataset.encoding = scalars.decode(group["encoding"])
        return dataset[kept]  # in the order of old

    def _variable(self, entry: Header) -> xr.Variable:
        dims, attrs, encoding = Labels.of(entry)
        if "chunks" in entry:
            encoding["preferred_chunks"] = dict(
                zip(dims, map(_chunk_size, entry["chunks"]), strict=True)
            )
        data = self._data(entry["data"])
        if len(dims) != data.ndim:
            raise FormatError(f"expected {data.ndim} dims, found {reprlib.repr(dims)}")
        # xarray does not look at the data then: arrays of pandas have to be wrapped by it.
        is_numpy = isinstance(data, np.ndarray | ContainerArray)
        return self._new_variable(dims, data, attrs, encoding, fastpath=is_numpy)

    def _data(self, spec: Header) -> Any:
        mapped, layout = self._mapped, arrays.layout(spec)
        if layout is not None:
            arrays.check(spec, self._sizes)
            if layout.buffer is None or 0 in layout.shape:
                return np.empty(layout.shape, layout.dtype)
            array = mapped.array(
                layout.buffer, layout.offset, layout.shape, layout.strides, layout.dtype
            )
            return ContainerArray(array) if isinstance(mapped, MappedContainer) else array
        shape, dtype = arrays.shape_and_dtype(spec)
        if isinstance(dtype, np.dtype) and isinstance(mapped, MappedContainer):
            handle = mapped.container.handle
            return ContainerArray(EncodedArray(handle, spec, shape, dtype, mapped))
        data = arrays.decode(spec, mapped)
        # Of the array of times in a zone xarray makes objects, of an index it does not.
        return pd.Index(data, copy=False) if isinstance(data.dtype, pd.DatetimeTZDtype) else data


def _chunk_size(sizes: list[int]) -> int | tuple[int, ...]:
    # As xarray gives it: one number where all chunks are equal, but for a smaller last one.
    if all(type(n) is int and n >= 0 for n in sizes):
        is_regular = set(sizes[:-1]) <= {sizes[0]} and sizes[-1] <= sizes[0]
        return sizes[0] if is_regular else tuple(sizes)
    raise FormatError(f"expected sizes of chunks, found {reprlib.repr(sizes)}")


def groups_of(header: Header) -> list[Header]:
    """The entries of the groups, the root first.

    Raises
    ------
    FormatError
    """
    groups = header.get("groups")
    if not isinstance(groups, list) or not all(
        isinstance(g, dict) and isinstance(g.get("path"), str) for g in groups
    ):
        raise FormatError(
            "expected a header with a list of groups, each with a path, found "
            f"{reprlib.repr(groups)}"
        )
    return groups
