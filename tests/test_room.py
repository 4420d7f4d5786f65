"""How many bytes go where: next to none through sockets, or all that find no room elsewhere."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest

from tests.clusters import cluster, total, workers_of
from tests.conftest import files_in
from tests.namespaces import (
    mount_tmpfs,
    needs_namespaces,
    run_in_namespace,
    running,
)

MIB = 2**20


@needs_namespaces
def test_next_to_nothing_crosses_the_loopback_interface() -> None:
    run_in_namespace(exchange_one_gibibyte)


@pytest.mark.slow
@needs_namespaces
def test_two_gibibytes_of_work_in_a_directory_of_64_mebibytes(tmp_path: Path) -> None:
    log = run_in_namespace(work_in_a_small_directory, tmp_path)
    lines = [line for line in log.splitlines() if "xshm.directory" in line]
    assert 1 <= len(lines) <= 3  # at most one for each process: two workers and this one
    for line in lines:
        assert f"no room for arrays in {tmp_path} (64 MiB in all" in line
        for remedy in "remount,size=", "--shm-size=", "emptyDir":
            assert remedy in line


# ---- what runs in the namespace ----


def exchange_one_gibibyte() -> None:
    """Each of two workers fetches 512 MiB from the other."""
    with cluster() as client:
        workers = workers_of(client)
        before = _bytes_over_loopback()
        totals = []
        for i in range(64):
            home, away = workers[i % 2], workers[(i + 1) % 2]
            x = client.submit(np.full, 16 * MIB // 8, float(i), workers=[home])
            totals.append(client.submit(np.sum, x, workers=[away], allow_other_workers=False))
        assert client.gather(totals) == [16 * MIB // 8 * i for i in range(64)]
        assert total(client, "bytes_received_by_handle") >= 1024 * MIB
        assert 0 < _bytes_over_loopback() - before < 20 * MIB


def _bytes_over_loopback() -> int:
    for line in Path("/proc/net/dev").read_text().splitlines():
        interface, _, numbers = line.partition(":")
        if interface.strip() == "lo":
            return int(numbers.split()[0])
    raise AssertionError("no loopback interface")


def work_in_a_small_directory(directory: str) -> None:
    """Add 2 GiB to its transpose, while another program fills the directory and empties it."""
    mount_tmpfs(directory, "64m")
    other = Path(directory, "other")
    fill_and_empty = f"while :; do cat /dev/zero > {other}; rm {other}; sleep 0.1; done"
    with (
        dask.config.set({"xshm.directory": directory}),
        cluster() as client,
        running(["sh", "-c", fill_and_empty], stderr=subprocess.DEVNULL),
    ):
        before = client.run(os.getpid)
        n = 16 * 1024
        line = da.arange(n, chunks=n // 16, dtype=float)  # so 256 chunks of 8 MiB
        x = 2 * line[:, None] + line
        total_of_columns = (x + x.T).sum(axis=0).compute()
        np.testing.assert_allclose(total_of_columns, 3 * n * ((n - 1) / 2 + np.arange(n)))
        assert client.run(os.getpid) == before  # nobody was ended, by a SIGBUS or otherwise
        assert total(client, "bytes_sent_inline") > 0
        assert total(client, "bytes_sent_by_handle") > 0
    other.unlink(missing_ok=True)
    assert files_in(Path(directory)) == []
