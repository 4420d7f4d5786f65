"""What encoders and decoders of arrays share: numbered raw buffers."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np


class Buffers:
    """The raw buffers that encoders asked for, numbered, before anything is written.

    Parameters
    ----------
    first : int, optional
        Number of the first one.

    Attributes
    ----------
    sources : list of ndarray or int
        For each buffer the array whose elements are to be written to it, in C order; or the
        number of bytes to reserve for somebody who writes them later.
    """

    def __init__(self, first: int = 0) -> None:
        self._first = first
        self.sources: list[np.ndarray[Any, Any] | int] = []

    def add(self, x: np.ndarray[Any, Any]) -> int:
        """Ask for the elements of an array, of a dtype without references, in C order.

        The array may have any strides: it is copied piece by piece when it is written. It must
        not change until then.
        """
        if x.dtype.hasobject or x.dtype.kind == "T":
            raise TypeError(f"expected a dtype without references, found {x.dtype}")
        self.sources.append(x)
        return self._first + len(self.sources) - 1

    def reserve(self, nbytes: int) -> int:
        """Ask for bytes that somebody writes later."""
        self.sources.append(nbytes)
        return self._first + len(self.sources) - 1

    def sizes(self) -> list[int]:
        """The bytes of each buffer."""
        return [s if isinstance(s, int) else s.size * s.itemsize for s in self.sources]


class Source(Protocol):
    """Where a decoder finds the buffers of a container."""

    def buffer(self, number: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The bytes of a buffer, one-dimensional, without a copy.

        Raises
        ------
        FormatError
            There is no buffer of that number.
        """
        ...
