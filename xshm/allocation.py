"""Arrays born in segments: NumPy's allocator (NEP 49), switched on for a context."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from xshm import _core, process


def enable() -> None:
    """Let large NumPy arrays be born in segments, from here on in this context.

    Arrays of ``xshm.threshold`` bytes and more (default 1 MiB) then need no copy when they
    are handed to another process. Smaller ones go to NumPy's own allocator as before. Where
    there is no room in the directory, arrays are ordinary ones.

    The workers of a ``shm`` cluster do this for themselves.

    Raises
    ------
    DirectoryError
        The directory that the configuration names cannot be used.
    NoRoomError, LimitError
        It has no room for another file, or this process can open no other.

    Notes
    -----
    NumPy keeps its allocator in a context variable, so this holds for the current thread or
    asyncio task, and for tasks started from it. A new thread starts without: call it there.

    See Also
    --------
    disable, allocator

    Examples
    --------
    >>> import numpy as np, xshm
    >>> xshm.enable()
    >>> x = np.ones(1_000_000)
    >>> xshm.is_shared(x)
    True
    >>> xshm.disable()
    """
    process.keep_open()
    use_here()


def use_here() -> None:
    """Set the allocator in this context, and leave it to others to keep the pool open."""
    _core.set_handler(_core.HANDLER)


def disable() -> None:
    """Give NumPy its own allocator back in this context; arrays that exist stay as they are."""
    _core.set_handler(_core.DEFAULT_HANDLER)


@contextlib.contextmanager
def allocator() -> Iterator[None]:
    """Let large NumPy arrays be born in segments within a ``with`` block.

    Examples
    --------
    >>> import numpy as np, xshm
    >>> with xshm.allocator():
    ...     x = np.ones(1_000_000)
    >>> xshm.is_shared(x)
    True
    """
    before = _core.get_handler()
    enable()
    try:
        yield
    finally:
        _core.set_handler(before)


@contextlib.contextmanager
def ordinary() -> Iterator[None]:
    """Let no NumPy array be born in a segment within a ``with`` block."""
    before = _core.get_handler()
    disable()
    try:
        yield
    finally:
        _core.set_handler(before)


def trim(keep: int = 0) -> int:
    """Give freed segments that are kept warm back to the system.

    Parameters
    ----------
    keep : int, optional
        How many bytes of them to keep.

    Returns
    -------
    int
        Bytes given back.
    """
    return _core.trim(keep)
