"""What is done in a process that another one has just started anew, and not by a fork."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask.config


def rebuild(
    settings: dict[str, Any] | None, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> Any:
    """Unpickle a pipe's end, and send large arrays as handles from here on.

    Parameters
    ----------
    settings : dict or None
        The section ``xshm`` of the configuration, as the starting process has it: a forked child
        would have inherited it. None if this process was not started just now.
    function, arguments
        What gives the pipe's end.
    """
    if settings is not None:
        dask.config.set({"xshm": settings})
    from xshm import multiprocessing  # noqa: F401  # importing it switches it on

    return function(*arguments)
