"""What workers tell of shared memory: to dask's scheduler with each heartbeat, and to Prometheus.

Notes
-----
Both are hooks of distributed: ``Worker.metrics`` is a mapping of functions, whose results are
``client.scheduler_info()["workers"][address]["metrics"]``; and a worker's page ``/metrics`` has
what is registered with ``prometheus_client``, if that is installed.
"""

from __future__ import annotations

import contextlib
from typing import Any

from distributed import Worker

from xshm.statistics import stats_and_room


def tell_of(server: Any) -> None:
    """Have a server, if it is a worker, tell the numbers of its process."""
    if isinstance(server, Worker):
        server.metrics["xshm"] = lambda _: stats_and_room()
        with contextlib.suppress(ModuleNotFoundError):  # without prometheus_client
            from xshm.dask import prometheus

            prometheus.register()
