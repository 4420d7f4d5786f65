"""The numbers of this process as Prometheus metrics; needs ``prometheus_client``."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from distributed.http.prometheus import PrometheusCollector
from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from xshm import _core
from xshm.statistics import stats_and_room


@functools.cache
def register() -> None:
    """From here on the page ``/metrics`` of this process's servers has them."""
    REGISTRY.register(_Collector())


class _Collector(PrometheusCollector):
    def __init__(self) -> None:
        # They are the process's, whichever of its workers is asked.
        super().__init__(server=None)
        self.subsystem = "worker"

    def collect(self) -> Iterator[Metric]:
        if not _core.is_open():  # the workers have ended: looking would enter the directory anew
            return
        now = stats_and_room()

        sent = CounterMetricFamily(
            self.build_name("xshm_sent_bytes"),
            "Bytes sent over shm connections, as handles and otherwise, and why",
            labels=["how"],
        )
        copied = now["bytes_copied_in"]
        sent.add_metric(["handle"], now["bytes_sent_by_handle"] - copied)
        sent.add_metric(["handle_after_copy"], copied)
        sent.add_metric(["other_domain"], now["bytes_sent_to_other_domain"])
        sent.add_metric(["no_room"], now["bytes_sent_without_room"])
        sent.add_metric(["small"], now["bytes_sent_small"])
        yield sent

        received = CounterMetricFamily(
            self.build_name("xshm_received_bytes"),
            "Bytes received over shm connections, as handles and otherwise",
            labels=["how"],
        )
        received.add_metric(["handle"], now["bytes_received_by_handle"])
        received.add_metric(["inline"], now["bytes_received_inline"])
        received.add_metric(["small"], now["bytes_received_small"])
        yield received

        yield CounterMetricFamily(
            self.build_name("xshm_refused"),
            "How often an array or a frame got no segment for want of room or mappings",
            value=now["refused"],
        )

        segments = GaugeMetricFamily(
            self.build_name("xshm_segments"), "Number of segments", labels=["state"]
        )
        nbytes = GaugeMetricFamily(
            self.build_name("xshm_segments_bytes"), "Size of segments", labels=["state"]
        )
        for state in ("live", "leased", "free", "waiting"):
            segments.add_metric([state], now[f"{state}_segments"])
            nbytes.add_metric([state], now[f"{state}_bytes"])
        yield segments
        yield nbytes

        yield GaugeMetricFamily(
            self.build_name("xshm_directory_size_bytes"),
            "Size of the file system that holds the directory",
            value=now["directory_size"],
        )
        yield GaugeMetricFamily(
            self.build_name("xshm_directory_free_bytes"),
            "Room in the file system that holds the directory",
            value=now["directory_free"],
        )
