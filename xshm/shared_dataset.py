"""The handle of a published object: pass it to any process of the host."""

from __future__ import annotations

import builtins
import contextlib
import html
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from dask.utils import format_bytes

from xshm.codecs import scalars
from xshm.container import names
from xshm.container.container import Container, MappedContainer, Mode, opened
from xshm.container.handle import ContainerHandle
from xshm.directory import configured
from xshm.errors import ContainerNameError, ContainerNotFoundError, FormatError
from xshm.labelled.from_container import Decoder, Published, groups_of, reading
from xshm.lock import Lock

if TYPE_CHECKING:
    from xshm.container.header import Header


class VariableInfo(NamedTuple):
    """What is known of a variable without opening it.

    Attributes
    ----------
    dims : tuple of hashable
    dtype : str
        As NumPy or pandas writes it.
    shape : tuple of int
    chunks : tuple of tuple of int or None
        Of the dask array it was published from, along each dimension.
    is_coordinate : bool
    """

    dims: tuple[Any, ...]
    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[tuple[int, ...], ...] | None
    is_coordinate: bool


class SharedDataset:
    """A published Dataset, DataArray, DataTree or array, by its name.

    It holds none of the bytes, and travels to another process (pickled, in a queue, in a task)
    in a few hundred: there, :meth:`open` or ``xarray.open_dataset(shared)`` gives the object.

    Parameters
    ----------
    name : str
        Of a container that was published.

    Raises
    ------
    ContainerNotFoundError
        There is none of that name.
    ContainerNameError
    FormatError
        The file of that name is no container.

    Notes
    -----
    It stands for the container that had the name when it was made. When that is removed or
    replaced, `exists` says so and :meth:`open` raises; objects opened before stay usable.

    Examples
    --------
    >>> import xarray as xr, xshm
    >>> ds = xr.Dataset({"t2m": ("time", [280.5, 281.0])})
    >>> with xshm.publish(ds, "example") as shared:
    ...     xr.open_dataset(shared).identical(ds)
    True
    """

    def __init__(self, name: str) -> None:
        self._handle = Container.open(name).handle

    @classmethod
    def of(cls, handle: ContainerHandle) -> Self:
        """The one that a handle stands for, found or not."""
        self = cls.__new__(cls)
        self._handle = handle
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return SharedDataset.of, (self._handle,)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return SharedDataset, *self._handle, self._handle.version()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SharedDataset) and self._handle == other._handle

    def __hash__(self) -> int:
        return hash(self._handle)

    @property
    def container(self) -> Container:
        """What the container says of itself, now: variables may be added."""
        return Container.of(self._handle)

    @property
    def name(self) -> str:
        """Its name."""
        return self._handle.name

    @property
    def generation(self) -> str:
        """32 hexadecimal digits: another container of the same name has others."""
        return self._handle.generation

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the container takes."""
        return self.container.preamble.nbytes

    @property
    def kind(self) -> str:
        """What was published: ``"dataset"``, ``"dataarray"``, ``"datatree"`` or ``"ndarray"``."""
        return str(self.container.header.get("kind"))

    @property
    def variables(self) -> Mapping[Any, VariableInfo]:
        """What is known of each variable; those of a DataTree go by their paths."""
        described = {}
        with reading(f"a variable of {self.name!r}"):
            for group in groups_of(self.container.header):
                prefix = group["path"].lstrip("/")
                for entry in group["variables"]:
                    name = scalars.decode(entry["name"])
                    described[f"{prefix}/{name}" if prefix else name] = _info(entry)
        return described

    @property
    def lock(self) -> Lock:
        """A lock for those who write to it; another container of the name has another one."""
        return Lock(f"container-{self.generation}")

    @property
    def exists(self) -> bool:
        """Whether the container is still to be had by its name."""
        try:
            with opened(self._handle):
                return True
        except (ContainerNotFoundError, FormatError):
            return False

    def open(self, mode: Mode = "r") -> Published:
        """The object that was published; nothing is copied, and large arrays are not read.

        Parameters
        ----------
        mode : {"r", "r+"}
            In ``"r"`` arrays may be written to, and nobody else sees it. In ``"r+"`` everybody
            who has the container open sees it at once; what is not of a fixed size (strings,
            objects) is read-only then.

        Raises
        ------
        ContainerNotFoundError
            It was removed or replaced.
        FormatError
            It is damaged.
        LimitError
            The process can open no other file, or map no more memory.
        """
        return Decoder(self.map(mode)).published()

    def map(self, mode: Mode = "r") -> MappedContainer:
        """The container's bytes, for :class:`~xshm.labelled.from_container.Decoder`."""
        if mode not in ("r", "r+"):
            raise ValueError(f"expected mode 'r' or 'r+', found {mode!r}")
        return MappedContainer.open(self._handle._replace(writable=mode == "r+"))

    def unlink(self) -> None:
        """Remove the name. Who has it open keeps it; the last one frees the memory.

        Raises
        ------
        ContainerNotFoundError
            It was removed or replaced already.
        """
        with opened(self._handle) as (container, _):
            configured().remove_name(self.name, container.inode)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        # Somebody was faster; or damaged it, and then it is not ours to remove.
        with contextlib.suppress(ContainerNotFoundError, FormatError):
            self.unlink()

    def __repr__(self) -> str:
        if not self.exists:
            return f"<xshm.SharedDataset {self.name!r} (removed or replaced)>"
        title = f"<xshm.SharedDataset {self.name!r}> {self.kind}, {format_bytes(self.nbytes)}"
        if self.kind == "ndarray":
            return f"{title}\n{self.open()}"
        return "\n".join([title, *repr(self.open()).splitlines()[1:]])

    def _repr_html_(self) -> str:
        if not self.exists or self.kind == "ndarray":
            return f"<pre>{html.escape(repr(self))}</pre>"
        text: str = self.open()._repr_html_()  # type: ignore[union-attr]
        title = html.escape(f"xshm.SharedDataset {self.name!r}")
        return re.sub(r"xarray\.(Dataset|DataArray|DataTree)", lambda _: title, text, count=2)


def _info(entry: Header) -> VariableInfo:
    chunks = entry.get("chunks")
    return VariableInfo(
        tuple(scalars.decode(dim) for dim in entry["dims"]),
        str(entry["dtype"]),
        tuple(entry["shape"]),
        None if chunks is None else tuple(map(tuple, chunks)),
        entry["coordinate"] is True,
    )


def open(name: str, mode: Mode = "r") -> Published:
    """The Dataset, DataArray, DataTree or array that was published under a name.

    Nothing is copied: see :meth:`SharedDataset.open`, also for the parameters and errors.

    Examples
    --------
    >>> import numpy as np, xshm
    >>> with xshm.publish(np.arange(3), "three"):
    ...     xshm.open("three").tolist()
    [0, 1, 2]
    """
    return Decoder(MappedContainer.open(name, mode)).published()


def list() -> builtins.list[SharedDataset]:
    """All that is published, by name; what is no container is left out."""
    found = []
    for name in names.all_in(configured()):
        with contextlib.suppress(ContainerNotFoundError, ContainerNameError, FormatError):
            found.append(SharedDataset(name))
    return found


def unlink(name: str) -> None:
    """Remove a published name. Who has it open keeps it; the last one frees the memory.

    Raises
    ------
    ContainerNotFoundError
        There is none of that name.
    """
    names.remove(configured(), name)
