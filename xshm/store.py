"""Dask arrays computed straight into a container, chunk by chunk, by whoever computes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import dask
from dask.base import get_scheduler

from xshm.container.mapped import ArrayHandle
from xshm.directory import configured
from xshm.errors import XshmError


def store(sources: Sequence[Any], targets: Sequence[ArrayHandle]) -> None:
    """Compute arrays into targets, with the scheduler or the cluster that is active."""
    if sources:
        _dask_array().store([*sources], [*targets], lock=False)


def store_later(
    sources: Sequence[Any], targets: Sequence[ArrayHandle], finish: Callable[..., Any], *args: Any
) -> Any:
    """A Delayed that computes arrays into targets, and then is ``finish(*args)``."""
    blocks = []
    if sources:
        stored = _dask_array().store([*sources], [*targets], lock=False, compute=False)
        # Optimized all at once, so that what several of them need is computed once.
        for array in dask.optimize(*(stored if isinstance(stored, tuple) else (stored,))):
            blocks += array.to_delayed(optimize_graph=False).ravel().tolist()
    return dask.delayed(_finish, pure=False)(blocks, finish, *args)


def _dask_array() -> Any:
    # It takes as long to import as all the rest of xshm, and children that are spawned for a
    # pool import xshm again.
    import dask.array

    return dask.array


def _finish(blocks: Any, finish: Callable[..., Any], *args: Any) -> Any:
    return finish(*args)


def check_workers(sources: Sequence[Any]) -> None:
    """Ask the workers of the active cluster, if there is one, whether they share this directory.

    Raises
    ------
    XshmError
        Some do not. Nothing was computed.
    """
    if not sources:
        return
    client: Any = getattr(get_scheduler(collections=[*sources]), "__self__", None)
    if not hasattr(client, "run"):
        return  # threads or processes of this host
    found = client.run(_domain, on_error="return")
    here = configured().domain
    elsewhere = {address: answer for address, answer in found.items() if answer != here}
    if elsewhere:
        raise XshmError(
            f"expected all workers in the directory of this process, found {len(elsewhere)} of "
            f"{len(found)} that are not ({_shown(elsewhere)}): a container is on one host. "
            "Publish from a program on the workers' host, or compute() the data first"
        )


def _domain() -> str:
    return configured().domain


def _shown(elsewhere: dict[str, Any]) -> str:
    address, answer = next(iter(elsewhere.items()))
    return f"{address}: {answer if isinstance(answer, Exception) else 'another directory'}"
