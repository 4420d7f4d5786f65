"""Dask arrays computed straight into a container, chunk by chunk, by whoever computes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import dask
import dask.array
from dask.base import get_scheduler

from xshm.container.mapped import ArrayHandle
from xshm.errors import XshmError


def store(sources: Sequence[Any], targets: Sequence[ArrayHandle]) -> None:
    """Compute arrays into targets, with the scheduler or the cluster that is active.

    Raises
    ------
    XshmError
        A worker cannot write there. Nothing was computed.
    """
    if sources:
        _check_workers(sources, targets[0].container.domain)
        dask.array.store([*sources], [*targets], lock=False)


def store_later(
    sources: Sequence[Any], targets: Sequence[ArrayHandle], finish: Callable[..., Any], *args: Any
) -> Any:
    """A Delayed that computes arrays into targets, and then is ``finish(*args)``."""
    blocks = []
    if sources:
        _check_workers(sources, targets[0].container.domain)
        stored = dask.array.store([*sources], [*targets], lock=False, compute=False)
        # Optimized all at once, so that what several of them need is computed once.
        for array in dask.optimize(*(stored if isinstance(stored, tuple) else (stored,))):
            blocks += array.to_delayed(optimize_graph=False).ravel().tolist()
    return dask.delayed(_finish, pure=False)(blocks, finish, *args)


def _finish(blocks: Any, finish: Callable[..., Any], *args: Any) -> Any:
    return finish(*args)


def _check_workers(sources: Sequence[Any], domain: str) -> None:
    client = getattr(get_scheduler(collections=[*sources]), "__self__", None)
    if not hasattr(client, "run"):
        return  # threads or processes of this host
    found = client.run(_domain, on_error="return")
    elsewhere = {address: answer for address, answer in found.items() if answer != domain}
    if elsewhere:
        raise XshmError(
            f"expected all workers in the directory of this process, found {len(elsewhere)} of "
            f"{len(found)} that are not ({_shown(elsewhere)}): a container is on one host. "
            "Publish from a program on the workers' host, or compute() the data first"
        )


def _domain() -> str:
    from xshm.directory import configured  # a worker may have no xshm, or no /dev/shm

    return configured().domain


def _shown(elsewhere: dict[str, Any]) -> str:
    address, answer = next(iter(elsewhere.items()))
    return f"{address}: {answer if isinstance(answer, Exception) else 'another directory'}"
