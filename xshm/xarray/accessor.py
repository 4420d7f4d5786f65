"""The accessor ``.xshm`` of Datasets, DataArrays and DataTrees."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from xarray.core.indexing import NumpyIndexingAdapter

from xshm.container.mapped import lies_in_container
from xshm.labelled.adapter import ContainerArray, innermost
from xshm.publish import publish
from xshm.whereabouts import is_shared


@xr.register_dataset_accessor("xshm")
@xr.register_dataarray_accessor("xshm")
@xr.register_datatree_accessor("xshm")
class XshmAccessor:
    """Shared memory of a labelled object.

    Examples
    --------
    >>> import xarray as xr, xshm
    >>> ds = xr.Dataset({"t2m": ("time", [280.5, 281.0])})
    >>> with ds.xshm.publish("example") as shared:
    ...     ds.xshm.is_shared, shared.open().xshm.is_shared
    (False, True)
    """

    def __init__(self, obj: xr.Dataset | xr.DataArray | xr.DataTree) -> None:
        self._obj = obj

    @functools.wraps(publish, assigned=("__doc__",))
    def publish(self, name: str, **options: Any) -> Any:
        return publish(self._obj, name, **options)

    @property
    def nbytes_shared(self) -> int:
        """Bytes of its arrays that lie in shared memory, in a container or a segment."""
        return sum(v.nbytes for v in self._variables() if _is_shared(v))

    @property
    def is_shared(self) -> bool:
        """Whether all of its arrays, but for labels, objects and empty ones, are shared."""
        found = [
            _is_shared(v)
            for v in self._variables()
            if not isinstance(v, xr.IndexVariable) and v.dtype.kind not in "OT"
        ]
        return bool(found) and all(found)

    def _variables(self) -> list[xr.Variable]:
        match self._obj:
            case xr.DataTree():
                datasets = [node.to_dataset(inherit=False) for node in self._obj.subtree]
                found = [v for dataset in datasets for v in dataset.variables.values()]
            case xr.DataArray():
                found = [self._obj.variable, *(c.variable for c in self._obj.coords.values())]
            case _:
                found = [*self._obj.variables.values()]
        return [v for v in found if v.size]


def _is_shared(variable: xr.Variable) -> bool:
    data = innermost(variable._data)
    if isinstance(data, ContainerArray):
        return data.container() is not None
    if isinstance(data, NumpyIndexingAdapter):
        data = data.array
    elif isinstance(variable, xr.IndexVariable):
        index = variable.to_index()
        data = None if isinstance(index, pd.MultiIndex) else np.asarray(index)
    if not isinstance(data, np.ndarray) or data.dtype.hasobject:
        return False
    return lies_in_container(data) or is_shared(data)
