"""What is freed with a ``SharedMemoryManager`` of :mod:`multiprocessing`."""

from __future__ import annotations

import contextlib
import weakref
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.managers import SharedMemoryManager

_stacks: weakref.WeakKeyDictionary[SharedMemoryManager, contextlib.ExitStack] = (
    weakref.WeakKeyDictionary()
)


def freed_with(manager: SharedMemoryManager) -> contextlib.ExitStack:
    """What is left when a manager is shut down, or gone, or this process ends.

    Raises
    ------
    ValueError
        The manager is not running.
    """
    shutdown = getattr(manager, "shutdown", None)
    if shutdown is None or not shutdown.still_active():
        raise ValueError(
            "expected a SharedMemoryManager that is running, found one that is not: call its "
            "start(), or use it as the context manager of a block"
        )
    if manager not in _stacks:
        stack = contextlib.ExitStack()
        stack.callback(shutdown)
        # It does nothing in a child that inherited the manager by fork.
        manager.shutdown = Finalize(manager, stack.close, exitpriority=0)
        _stacks[manager] = stack
    return _stacks[manager]
