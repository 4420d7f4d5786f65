"""What workers tell of shared memory: dask's scheduler with each heartbeat, and Prometheus."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import urllib.request
from typing import Any

import numpy as np
import pytest
from dask.distributed import Client, Future, wait

import xshm
from tests import clusters
from tests.clusters import ITEMS, LARGE
from tests.conftest import wait_until
from tests.test_docs import ROOT
from xshm.directory import configured

directory = clusters.module_directory
module_client = clusters.module_client
client = clusters.client

needs_prometheus = pytest.mark.skipif(
    importlib.util.find_spec("prometheus_client") is None,
    reason="prometheus_client is not installed",
)


def exchange(client: Client) -> Future:
    """An array that the first worker has sent, and that the second has received."""
    first, second = clusters.workers_of(client)[:2]
    made = client.submit(np.ones, ITEMS, workers=[first], pure=False)
    wait(client.submit(np.sum, made, workers=[second], allow_other_workers=False, pure=False))
    return made


def test_the_scheduler_knows_what_workers_exchanged_and_hold(client: Client) -> None:
    def metrics_of(worker: str) -> Any:
        return clusters.known_of_workers(client)[worker]["metrics"]["xshm"]

    first, second = clusters.workers_of(client)[:2]
    sent = metrics_of(first)["bytes_sent_by_handle"]
    received = metrics_of(second)["bytes_received_by_handle"]
    exchange(client)
    wait_until(
        lambda: (
            metrics_of(first)["bytes_sent_by_handle"] >= sent + LARGE
            and metrics_of(second)["bytes_received_by_handle"] >= received + LARGE
        ),
        "told with a heartbeat",
    )
    told = metrics_of(first)
    here = configured()
    room = {key: told.pop(key) for key in ("directory", "domain", "directory_size")}
    assert room == {
        "directory": str(here.path),
        "domain": here.domain,
        "directory_size": here.room()[1],
    }
    assert 0 <= told.pop("directory_free") <= room["directory_size"]
    assert told.keys() == xshm.stats().keys()


def page_of(client: Client, worker: str) -> str:
    """The page ``/metrics`` of a worker."""
    port = clusters.known_of_workers(client)[worker]["services"]["dashboard"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as page:
        text: str = page.read().decode()
        return text


@needs_prometheus
def test_prometheus_is_told_the_same_numbers(client: Client) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    exchanged = exchange(client)  # both hold it as long as this future is there
    for worker in clusters.workers_of(client)[:2]:
        told = {
            (sample.name.removeprefix("dask_worker_xshm_"), *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(page_of(client, worker))
            for sample in family.samples
            if sample.name.startswith("dask_worker_xshm_")
        }
        stats = client.run(xshm.stats, workers=[worker])[worker]
        assert told["sent_bytes_total", "handle"] == (
            stats["bytes_sent_by_handle"] - stats["bytes_copied_in"]
        )
        assert told["sent_bytes_total", "handle_after_copy"] == stats["bytes_copied_in"]
        assert told["sent_bytes_total", "no_room"] == 0
        assert told["sent_bytes_total", "other_domain"] == 0
        assert told["received_bytes_total", "handle"] == stats["bytes_received_by_handle"]
        assert told["received_bytes_total", "inline"] == 0
        for way in "sent", "received":
            # Heartbeats go on.
            assert 0 < told[f"{way}_bytes_total", "small"] <= stats[f"bytes_{way}_small"]
        assert told["refused_total",] == stats["refused"]
        for state in "live", "leased", "free", "waiting":
            assert told["segments", state] == stats[f"{state}_segments"]
            assert told["segments_bytes", state] == stats[f"{state}_bytes"]
        assert told["directory_size_bytes",] == configured().room()[1]
        assert 0 <= told["directory_free_bytes",] <= told["directory_size_bytes",]
    assert told["received_bytes_total", "handle"] >= LARGE
    assert told["segments", "leased"] == 1
    del exchanged

    page = (ROOT / "docs" / "monitoring.md").read_text()
    assert set(re.findall(r"`dask_worker_xshm_(\w+)`", page)) == {name for name, *_ in told}
    assert {label for _, *labels in told for label in labels} <= set(re.findall(r"`(\w+)`", page))


_AFTER_ITS_WORKERS = """
from dask.distributed import LocalCluster
from prometheus_client import REGISTRY, generate_latest
from tests.conftest import wait_until
from xshm import _core

def told():
    return generate_latest(REGISTRY.restricted_registry(["dask_worker_xshm_segments"]))

with LocalCluster(protocol="shm", n_workers=1, processes=False, dashboard_address=":0"):
    assert b"dask_worker_xshm_segments" in told()
wait_until(lambda: not _core.is_open(), "left the directory")
assert told() == b""
assert not _core.is_open()
"""


@needs_prometheus
def test_after_its_workers_a_process_tells_nothing_and_stays_out_of_the_directory() -> None:
    subprocess.run([sys.executable, "-c", _AFTER_ITS_WORKERS], check=True, timeout=100)


_WITHOUT_PROMETHEUS = """
import sys
sys.modules["prometheus_client"] = None  # as if it were not installed
from dask.distributed import Client, LocalCluster
import xshm
from tests.clusters import known_of_workers
from tests.test_metrics import page_of

options = dict(protocol="shm", n_workers=1, processes=False, dashboard_address=":0")
with LocalCluster(**options) as cluster, Client(cluster) as client:
    ((address, worker),) = known_of_workers(client).items()
    assert worker["metrics"]["xshm"].keys() > xshm.stats().keys()
    assert "not available" in page_of(client, address)
assert "xshm.dask.prometheus" not in sys.modules
"""


def test_without_prometheus_all_else_is_told() -> None:
    subprocess.run([sys.executable, "-c", _WITHOUT_PROMETHEUS], check=True, timeout=100)
