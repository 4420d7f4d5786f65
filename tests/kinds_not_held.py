"""The kinds of things that xarray can hold and a container cannot, and why."""

from __future__ import annotations

import decimal
import enum
from collections.abc import Callable
from typing import Any, NamedTuple

import dask.array
import numpy as np
import pandas as pd
import xarray as xr
from pandas.tests.extension.decimal import DecimalArray
from xarray.indexes import PandasIndex
from xarray.tests.arrays import DuckArrayWrapper

from tests.kinds_of_arrays import DAYS, dataset, objects
from tests.kinds_of_labels import described, indexed


class NotHeld(NamedTuple):
    """A kind of thing that is refused.

    Attributes
    ----------
    make : callable
    where : str
        What the error says is the cause.
    found : str
        What the error says was found there.
    reason : str
    """

    make: Callable[[], Any]
    where: str
    found: str
    reason: str


class Thing:
    """An object that nobody knows."""


class Text(str):
    """A subclass may hold more than a string."""


class Colour(enum.IntEnum):
    """An int by inheritance."""

    RED = 1


class Quantity(np.ndarray):
    """Values with a unit."""


class MyIndex(PandasIndex):
    """A subclass may hold more than labels."""


def _contains_itself() -> np.ndarray:
    values: list[Any] = [1]
    values.append(values)
    return objects("-", values)


def _unknown_shape() -> dask.array.Array:
    x = dask.array.arange(6, chunks=3)
    return x[x > 2]


_OBJECT = "objects could only be pickled, and nothing is unpickled from a container"
_SUBCLASS = "what a subclass adds would be lost"
_FOREIGN = "only its own library can say what it consists of"

NOT_HELD = {
    "objects of any class": NotHeld(
        lambda: dataset(objects("a", Thing())), "variable 'v', element [1]", "Thing", _OBJECT
    ),
    "objects of any class, dask": NotHeld(
        lambda: dataset(dask.array.from_array(objects("a", Thing()), 1)),
        "variable 'v', element [1]",
        "Thing",
        _OBJECT,
    ),
    "objects that contain themselves": NotHeld(
        lambda: dataset(_contains_itself()), "variable 'v', element [1]", "list", "has no end"
    ),
    "functions in objects": NotHeld(
        lambda: dataset(objects(len)), "variable 'v', element [0]", "builtin", _OBJECT
    ),
    "structures with objects": NotHeld(
        lambda: dataset(np.zeros(2, [("a", "O")])), "variable 'v'", "VoidDType", _OBJECT
    ),
    "attribute of a Dataset, any class": NotHeld(
        lambda: described(a={"b": Thing()}), "attributes of the dataset, 'a', 'b'", "Thing", _OBJECT
    ),
    "attribute of a variable, any class": NotHeld(
        lambda: xr.Dataset({"v": ("x", [1], {"a": Thing()})}),
        "attributes of variable 'v', 'a'",
        "Thing",
        _OBJECT,
    ),
    "attribute of a group": NotHeld(
        lambda: xr.DataTree.from_dict({"/g": xr.Dataset(attrs={"a": Thing()})}),
        "attributes of group '/g', 'a'",
        "Thing",
        _OBJECT,
    ),
    "attribute, Dataset": NotHeld(
        lambda: dataset([1]).assign_attrs(a=xr.Dataset()),
        "attributes of the dataset, 'a'",
        "Dataset",
        "attributes are plain values",
    ),
    "attribute, subclass of str": NotHeld(
        lambda: dataset([1]).assign_attrs(a=Text("a")),
        "attributes of the dataset, 'a'",
        "Text",
        _SUBCLASS,
    ),
    "attribute, member of an enum": NotHeld(
        lambda: dataset([1]).assign_attrs(a=Colour.RED),
        "attributes of the dataset, 'a'",
        "Colour",
        _SUBCLASS,
    ),
    "name of any class": NotHeld(
        lambda: xr.Dataset({Thing: ("x", [1])}), "the name of variable <class", "type", _OBJECT
    ),
    "index of an unknown class": NotHeld(
        lambda: xr.Dataset(coords={"x": [1, 2]}).drop_indexes("x").set_xindex("x", MyIndex),
        "the index of 'x'",
        "MyIndex",
        _SUBCLASS,
    ),
    "index with a freq of holidays": NotHeld(
        lambda: indexed(
            pd.date_range(
                "2020", periods=3, freq=pd.offsets.CustomBusinessDay(holidays=["2020-01-02"])
            )
        ),
        "the index of 'x'",
        "CustomBusinessDay",
        "its text does not tell the holidays",
    ),
    "index of any objects": NotHeld(
        lambda: indexed(objects(Thing, 1)), "the index of 'x', element [0]", "type", _OBJECT
    ),
    "duck array": NotHeld(
        lambda: dataset(DuckArrayWrapper(np.arange(2))),
        "variable 'v'",
        "DuckArrayWrapper",
        _FOREIGN,
    ),
    "subclass of ndarray": NotHeld(
        lambda: np.arange(2).view(Quantity), "the array", "Quantity", _SUBCLASS
    ),
    "records": NotHeld(
        lambda: np.rec.array([(1, 2)]), "the array", "recarray", "a subclass of ndarray, too"
    ),
    "foreign ExtensionArray": NotHeld(
        lambda: dataset(DecimalArray([decimal.Decimal("1.5")])),
        "variable 'v'",
        "DecimalArray",
        _FOREIGN,
    ),
    "dask, unknown shape": NotHeld(
        lambda: xr.Dataset({"v": xr.Variable("x", _unknown_shape())}),
        "variable 'v'",
        "dask.array",
        "room is taken before anything is computed",
    ),
    "attribute, constant of NumPy": NotHeld(
        lambda: described(a=np.ma.masked),
        "the attributes of the dataset, 'a'",
        "MaskedConstant",
        _SUBCLASS,
    ),
    "time zone of another library": NotHeld(
        lambda: indexed(DAYS.tz_localize("dateutil/Europe/Berlin")),
        "the index of 'x'",
        "dateutil",
        _FOREIGN,
    ),
    "StringDType, any object for missing": NotHeld(
        lambda: dataset(np.array(["a"], np.dtypes.StringDType(na_object=Thing))),
        "variable 'v'",
        "type",
        _OBJECT,
    ),
}
