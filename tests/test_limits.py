"""Limits: of an ordinary system (65,530 mappings, 1,024 open files), and of a container."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dask
import numpy as np
import pytest
from dask.distributed import Client, wait
from dask.system import CPU_COUNT

import xshm
from tests.clusters import cluster, workers_of
from tests.namespaces import mount_tmpfs, needs_namespaces, run_in_namespace
from xshm import _core, process

ORDINARY_MAPPINGS = 65_530
ORDINARY_OPEN_FILES = 1_024

CHUNKS = 20_000  # of which a worker's share of the mappings is enough for 16,382
CHUNK_LENGTH = 2_048  # of float64: 16 KiB


@pytest.fixture
def client() -> Iterator[Client]:
    """Two workers with the open files of an ordinary system; small arrays get segments too."""
    with (
        dask.config.set(
            {
                "xshm.threshold": "16 KiB",
                # It would drop one of two copies of a result: these tests count them.
                "distributed.scheduler.active-memory-manager.start": False,
            }
        ),
        cluster(dashboard_address=":0") as client,
    ):
        client.run(_lower_open_files, ORDINARY_OPEN_FILES)
        yield client


@pytest.mark.slow
def test_twenty_thousand_live_chunks(client: Client) -> None:
    first, second = workers_of(client)
    held = client.submit(_many_chunks, CHUNKS, workers=[first])
    fetched = client.submit(_pass_on, held, workers=[second])
    wait(fetched)

    def usage(address: str) -> dict[str, int]:
        return client.run(_usage, workers=[address])[address]

    expected = CHUNK_LENGTH * CHUNKS * (CHUNKS - 1) / 2
    assert client.submit(_total, held, workers=[first]).result() == expected
    assert client.submit(_total, fetched, workers=[second]).result() == expected
    sender, receiver = usage(first), usage(second)
    assert CHUNKS / 2 <= sender["live_segments"] < CHUNKS
    assert CHUNKS / 2 <= receiver["leased_segments"] <= CHUNKS
    for worker in sender, receiver:
        assert worker["real mappings"] < ORDINARY_MAPPINGS
        assert worker["real open files"] < ORDINARY_OPEN_FILES


def test_chunks_beyond_the_bound_on_mappings_are_ordinary_memory(client: Client) -> None:
    first, second = workers_of(client)
    client.run(_bound_mappings, 400, workers=[first])
    client.run(_bound_mappings, 100, workers=[second])
    held = client.submit(_many_chunks, 1_000, workers=[first])
    fetched = client.submit(_pass_on, held, workers=[second])
    assert client.submit(_total, fetched).result() == CHUNK_LENGTH * 1_000 * 999 / 2
    usage = client.run(_usage)
    assert 100 <= usage[first]["live_segments"] <= 200
    assert usage[first]["bytes_sent_inline"] >= 800 * 8 * CHUNK_LENGTH
    assert usage[first]["refused"] > 0
    assert usage[second]["handles_received"] >= 100
    assert usage[first]["mappings"] <= 400
    assert usage[second]["mappings"] <= 100


def test_chunks_are_sent_as_bytes_when_no_file_can_be_opened(client: Client) -> None:
    first, second = workers_of(client)
    one = client.submit(_many_chunks, 1, workers=[first])
    client.submit(_total, one, workers=[second]).result()  # they are connected from here on
    held = client.submit(_many_chunks, 100, workers=[first])
    wait(held)
    descriptors = client.run(_use_up_open_files, workers=[first])[first]
    total = client.submit(_total, held, workers=[second]).result()
    client.run(_close, descriptors, workers=[first])
    assert total == CHUNK_LENGTH * 100 * 99 / 2
    assert client.run(xshm.stats, workers=[first])[first]["bytes_sent_inline"] > 0


# ---- what the workers run ----


def _many_chunks(count: int) -> list[np.ndarray]:
    return [np.full(CHUNK_LENGTH, float(i)) for i in range(count)]


def _pass_on(chunks: list[np.ndarray]) -> list[np.ndarray]:
    return list(chunks)


def _total(chunks: list[np.ndarray]) -> float:
    return float(sum(chunk.sum() for chunk in chunks))


def _lower_open_files(count: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))


def _bound_mappings(count: int) -> None:
    _core.set_limits(2**14, 2**30, 64, count, False)


def _usage() -> dict[str, int]:
    return {
        **xshm.stats(),
        "real mappings": len(Path("/proc/self/maps").read_text().splitlines()),
        "real open files": len(os.listdir("/proc/self/fd")),
    }


def _use_up_open_files() -> list[int]:
    descriptors = []
    while True:
        try:
            descriptors.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            return descriptors


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


_OPEN_MANY = """
import xshm
x = xshm.open("x")
handle = x.handle()
parts = [handle[1:1025].open() for _ in range(70_000)]
assert all(part[0] == 1.0 and part[-1] == 1024.0 for part in parts)
parts[-1][0] = 7.0
assert x[1] == 1.0
print(sum(1 for _ in open("/proc/self/maps")))
"""


def test_more_parts_of_a_container_than_a_process_can_map() -> None:
    with xshm.publish(np.arange(2000.0), "x"):
        done = subprocess.run(
            [sys.executable, "-c", _OPEN_MANY], capture_output=True, text=True, timeout=100
        )
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) < ORDINARY_MAPPINGS / 2


# ---- the memory of a container ----


@needs_namespaces
@pytest.mark.parametrize(
    "file", ["memory.max", "memory/memory.limit_in_bytes"], ids=["version 2", "version 1"]
)
def test_in_a_small_container_little_is_kept_for_next_arrays(file: str) -> None:
    run_in_namespace(keep_in_container, file)


def keep_in_container(file: str) -> None:
    """As much as four arrays of 4 MiB, by the limit of the container."""
    mount_tmpfs("/sys/fs/cgroup", "1m")
    limit = Path("/sys/fs/cgroup", file)
    limit.parent.mkdir(exist_ok=True)
    limit.write_text(f"{16 * 2**20 * 4 * CPU_COUNT}\n")
    with xshm.allocator():
        arrays = [np.ones(2**19) for _ in range(8)]
        del arrays
    assert xshm.stats()["free_bytes"] == 16 * 2**20
    process.close()
