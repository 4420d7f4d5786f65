"""A Variable whose dask keys change when its container's name is published again."""

from __future__ import annotations

from typing import Any

import xarray as xr
from xarray.core.indexing import CopyOnWriteArray, MemoryCachedArray

from xshm.labelled.adapter import ContainerArray


class NamedContainerVariable(xr.Variable):
    """A variable of a container that was opened by its name.

    Notes
    -----
    ``xr.open_dataset(name, engine="xshm", chunks={})`` makes the keys of its dask graph from the
    name alone, and a cluster that still holds a result under such a key gives that, also when
    another container has the name by now. xarray asks backends for nothing that could change
    this, but it does call :meth:`chunk`: here the generation becomes part of the keys. What
    comes out is an ordinary Variable. A ``SharedDataset``, given in place of the name, needs
    none of this.
    """

    def chunk(self, *args: Any, **kwargs: Any) -> Any:
        """See `xarray.Variable.chunk`."""
        kwargs_of_array = dict(kwargs.get("from_array_kwargs") or {})
        name = kwargs_of_array.get("name")
        generation = _generation(self._data)
        if isinstance(name, str) and generation is not None:
            kwargs_of_array["name"] = f"{name}-{generation}"
        plain = xr.Variable(self._dims, self._data, self._attrs, self._encoding, fastpath=True)
        return plain.chunk(*args, **{**kwargs, "from_array_kwargs": kwargs_of_array})


def _generation(data: Any) -> str | None:
    while isinstance(data, CopyOnWriteArray | MemoryCachedArray):
        data = data.array
    return data.generation() if isinstance(data, ContainerArray) else None
