"""Variables of a container, where xarray's own would share what is to be apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from xshm.labelled.adapter import ContainerArray, innermost


class ContainerVariable(xr.Variable):
    """A variable of a container that was opened by :func:`xarray.open_dataset`.

    Notes
    -----
    ``xr.open_dataset(name, engine="xshm", chunks={})`` makes the keys of its dask graph from the
    name alone, and a cluster that still holds a result under such a key gives that, also when
    another container has the name by now, or other values were written to it. xarray asks
    backends for nothing that could change this, but it does call :meth:`chunk`: here the
    container's version becomes part of the keys. What comes out is an ordinary Variable.

    A deep copy of a variable that was not looked at shares its source with the original, since
    other backends read that anew, into memory of its own. Here it is a copy at once.
    """

    def chunk(self, *args: Any, **kwargs: Any) -> Any:
        """See `xarray.Variable.chunk`."""
        kwargs_of_array = dict(kwargs.get("from_array_kwargs") or {})
        name = kwargs_of_array.get("name")
        data = innermost(self._data)
        container = data.container() if isinstance(data, ContainerArray) else None
        if isinstance(name, str) and container is not None:
            kwargs_of_array["name"] = f"{name}-{container.version()}"
        plain = xr.Variable(self._dims, self._data, self._attrs, self._encoding, fastpath=True)
        return plain.chunk(*args, **{**kwargs, "from_array_kwargs": kwargs_of_array})

    def _copy(self, deep: bool = True, data: Any = None, memo: Any = None) -> Any:
        if deep and data is None and isinstance(innermost(self._data), ContainerArray):
            data = np.array(self.data)
        return super()._copy(deep, data, memo)
