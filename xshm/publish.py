"""Publishing: labelled objects put into containers."""

from __future__ import annotations

import contextlib
from typing import Any, Literal

import xarray as xr

from xshm import janitor, process
from xshm.container import draft as drafts
from xshm.container.draft import Draft
from xshm.container.handle import ContainerHandle
from xshm.container.mapped import ArrayHandle
from xshm.directory import configured
from xshm.errors import UnsupportedError
from xshm.labelled.to_container import Publishable, encode
from xshm.names import check as check_name
from xshm.shared_dataset import SharedDataset
from xshm.store import check_workers, store, store_later
from xshm.update import Region, add, write_over


def publish(
    obj: Publishable,
    name: str,
    *,
    mode: Literal["w-", "w", "a", "r+"] = "w-",
    region: Region | None = None,
    compute: bool = True,
    lifetime: Literal["boot", "process"] = "boot",
) -> Any:
    """Put an object into a named container, which any process of this host can open.

    Variables backed by dask are computed straight into the container, chunk by chunk, by
    whatever computes them: threads, or the workers of a cluster on this host. The others are
    copied once.

    Parameters
    ----------
    obj : Dataset, DataArray, DataTree or ndarray
    name : str
        At most 200 bytes, without slashes, not starting with a dot.
    mode : {"w-", "w", "a", "r+"}, optional
        ``"w-"`` refuses a name that exists. ``"w"`` replaces it: those who have the old one open
        keep it, and see nothing of the new one. ``"a"`` adds variables to a Dataset. ``"r+"``
        writes over values, in place: everybody who has the container open sees it.
    region : dict or "auto", optional
        Which part to write over, with ``mode="r+"``: a slice, or ``"auto"``, for dimensions;
        others are whole. ``"auto"`` finds where the object's labels are among the container's.
        As in ``Dataset.to_zarr``.
    compute : bool, optional
        False gives a ``Delayed``, which publishes when it is computed. Room is taken at once.
    lifetime : {"boot", "process"}, optional
        ``"boot"``: until it is removed, or the machine restarts. ``"process"``: until this
        process ends; if it is killed, until the next process that uses xshm starts or ends.

    Returns
    -------
    SharedDataset or Delayed
        As the context manager of a block, the former is removed at the block's end.

    Raises
    ------
    ContainerExistsError
        The name exists (``"w-"``), or a variable does (``"a"``).
    ContainerNotFoundError
        There is nothing of that name to add to or to write over.
    ContainerNameError
    UnsupportedError
        The object holds something that a container cannot hold. Nothing was written.
    NoRoomError
        The directory has not that much room. Nothing was left behind.
    LimitError
        The process can open no other file, or map no more memory.
    XshmError
        A worker of the cluster cannot write here. Nothing was computed.

    Examples
    --------
    >>> import xarray as xr, xshm
    >>> ds = xr.Dataset({"t2m": ("time", [280.5, 281.0])})
    >>> with xshm.publish(ds, "example") as shared:
    ...     shared.open().t2m.mean().item()
    280.75
    """
    if mode not in ("w-", "w", "a", "r+"):
        raise ValueError(f"expected mode 'w-', 'w', 'a' or 'r+', found {mode!r}")
    if lifetime not in ("boot", "process"):
        raise ValueError(f"expected lifetime 'boot' or 'process', found {lifetime!r}")
    if region is not None and mode != "r+":
        raise ValueError(f"expected mode 'r+' with a region, found {mode!r}")
    check_name(name, "container")
    if mode == "w-":
        drafts.check_is_free(name)
    if mode in ("w-", "w"):
        return _create(obj, name, mode == "w", compute, lifetime == "process")
    if lifetime != "boot":
        raise ValueError(f"expected mode 'w-' or 'w' with lifetime='process', found {mode!r}")
    if not isinstance(obj, xr.Dataset | xr.DataArray):
        raise UnsupportedError(
            f"expected a Dataset or DataArray with mode {mode!r}, found a {type(obj).__name__}"
        )
    if mode == "a":
        return add(obj, name, compute)
    return write_over(obj, name, region, compute)


def _create(obj: Publishable, name: str, replace: bool, compute: bool, bound: bool) -> Any:
    encoded = encode(obj)
    check_workers(encoded.sources)
    draft = Draft(encoded.header, encoded.buffers)
    targets = [ArrayHandle.of(draft.handle, layout, draft.offsets) for layout in encoded.layouts]
    if bound or not compute:
        process.keep_open()
    finish = (draft.handle, name, replace, draft.process.id if bound else None)
    with contextlib.ExitStack() as undo:
        undo.callback(draft.discard)
        if not compute:
            later = store_later(encoded.sources, targets, _publish, *finish)
            undo.pop_all()
            return later
        store(encoded.sources, targets)
        return _publish(*finish)


def _publish(draft: ContainerHandle, name: str, replace: bool, owner: str | None) -> SharedDataset:
    # With compute=False this runs in a worker.
    if owner is None:
        return SharedDataset.of(drafts.publish(draft, name, replace=replace))
    here = configured()
    try:
        inode = (here.path / draft.path).stat().st_ino
    except FileNotFoundError as error:
        raise draft.not_found() from error
    # Beforehand: a process that is killed in between leaves a note, and no container.
    note = janitor.bind_to_life(here, owner, name, inode)
    try:
        return SharedDataset.of(drafts.publish(draft, name, replace=replace))
    except BaseException:
        note.unlink(missing_ok=True)
        raise
