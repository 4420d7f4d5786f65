"""What type checkers refuse: each line that ends with ``# error`` is one, and no other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xshm import SharedArray


def made(x: NDArray[np.float32]) -> None:
    """With another dtype than it has."""
    of_floats = SharedArray.from_array(x)
    a: SharedArray[np.float64] = of_floats  # error
    of_ints = SharedArray.from_shape(3, np.int16)
    b: SharedArray[np.int8] = of_ints  # error
    c: SharedArray[np.int8] = SharedArray.zeros(3)  # error
    d: NDArray[np.int8] = SharedArray.full(3, 7, np.int16).get()  # error
    SharedArray.from_shape("three")  # error
    SharedArray.from_shape(1.5)  # error
    SharedArray.from_array(x, 7)  # error
    SharedArray(x)  # error
    _ = (a, b, c, d)


def of_texts(a: SharedArray[str]) -> None:  # error
    """Whose elements are no scalars of NumPy."""


def used(a: SharedArray[np.float64]) -> None:
    """As what it is not."""
    x: NDArray[np.int8] = a.get()  # error
    a.shape = (3,)  # error
    name: str = a.name  # error
    a.name = "another"  # error
    takes_ints(a)  # error
    _ = (x, name)


def takes_ints(a: SharedArray[np.integer]) -> None:
    """One of integers only."""
