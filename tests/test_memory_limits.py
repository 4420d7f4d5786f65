"""Workers compute over a published Dataset that is far larger than what they may take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da
import pytest
import xarray as xr
from dask.distributed import Client, LocalCluster

import xshm
from tests import clusters

MiB = 2**20
LIMIT = 400 * MiB
CHUNK = 8 * MiB  # a task takes several times that while it computes
NBYTES = 6 * LIMIT  # of the container
N_WORKERS = 4


def wants_of_memory(client: Client) -> dict[str, int]:
    """How often dask's workers did what they do when memory is short."""
    events: Any = client.get_events()
    spills = client.run(
        lambda dask_worker: dask_worker.data.cumulative_metrics.get(("disk-write", "count"), 0)
    )
    return {
        "pauses": sum(
            event.get("status") == "paused" for worker in spills for _, event in events[worker]
        ),
        "spills": sum(spills.values()),
        "restarts": len(events.get("worker-restart-memory", ())),
    }


@pytest.mark.parametrize("protocol", clusters.PROTOCOLS)
def test_what_is_published_does_not_count_as_memory_of_workers(
    protocol: str, directory: Path
) -> None:
    """Neither while they write it, nor while they compute with it."""
    side = 64
    shape = NBYTES // (4 * side**2), side, side
    values = da.ones(shape, "f4", chunks=(CHUNK // (4 * side**2), side, side))
    dataset = xr.Dataset({"t2m": (("time", "y", "x"), values)})
    with (
        LocalCluster(
            protocol=protocol,
            n_workers=N_WORKERS,
            threads_per_worker=1,
            memory_limit=LIMIT,
            dashboard_address=":0",
        ) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(N_WORKERS)
        with xshm.publish(dataset, "large") as shared:
            assert shared.nbytes > NBYTES
            opened = xr.open_dataset(shared, chunks={})
            assert client.compute(opened.t2m.mean()).result() == 1
            assert (client.compute(opened.t2m.var("time")).result() == 0).all()
        assert wants_of_memory(client) == {"pauses": 0, "spills": 0, "restarts": 0}
