"""A container that lies in memory, and not in a file of its own."""

from __future__ import annotations

from typing import Any

import numpy as np

from xshm.container.container import Contents, parse
from xshm.container.mapped import has_repeats


class Image:
    """The bytes of a container, with the interface of a ``MappedContainer``.

    Its arrays are ordinary ones: no name leads to them, so they have no handle.

    Parameters
    ----------
    memory : memoryview
        Writable; the arrays lie in it, and keep it.

    Raises
    ------
    FormatError
        It is no container, or a damaged one.
    """

    def __init__(self, memory: memoryview) -> None:
        self.container = Contents(
            *parse(lambda nbytes, offset: bytes(memory[offset : offset + nbytes]), len(memory))
        )
        self._whole = np.frombuffer(memory, np.uint8)

    def buffer(self, number: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The bytes of a buffer."""
        start = self.container.offset_of(number)
        return self._whole[start : start + self.container.buffers[number][1]]

    def array(
        self,
        number: int,
        offset: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        dtype: np.dtype[Any],
    ) -> np.ndarray[Any, Any]:
        """An array in a buffer; it was checked that it lies within."""
        array: np.ndarray[Any, Any] = np.ndarray(
            shape, dtype, self._whole, self.container.offset_of(number) + offset, strides
        )
        # Elements that share bytes are not to be written to one by one.
        array.flags.writeable = not has_repeats(shape, strides)
        return array
