"""One word changes how chunks travel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from dask.distributed import Client, LocalCluster, wait

import xshm
from tests.clusters import workers_of
from tests.conftest import files_in


def test_chunks_travel_as_handles_and_nothing_is_left(directory: Path) -> None:
    with (
        LocalCluster(
            protocol="shm", n_workers=2, threads_per_worker=1, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        assert cluster.scheduler_address.startswith("shm://")
        first, second = workers_of(client)
        x = client.submit(np.ones, 10_000_000, workers=[first])
        wait(x)
        total = client.submit(np.sum, x, workers=[second], allow_other_workers=False)
        assert total.result() == 10_000_000
        sent = client.run(xshm.stats, workers=[first])[first]
        assert sent["bytes_sent_by_handle"] >= 80_000_000
        assert sent["bytes_copied_in"] == sent["bytes_sent_inline"] == 0
        assert client.gather(x)[-1] == 1
        del x, total
    assert files_in(directory) == []
