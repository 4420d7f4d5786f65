"""``shms://``: handles travel between ends that TLS has authenticated, and no others."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dask.distributed import Client, LocalCluster
from distributed.comm.core import Comm, CommClosedError, connect, listen
from distributed.protocol import to_serialize
from distributed.security import Security

import xshm
from tests.clusters import ITEMS, transfer, workers_of
from tests.conftest import files_in, same_bytes


@pytest.fixture(scope="module")
def security() -> Security:
    """A key and a certificate of its own, which both ends have."""
    return Security.temporary()


def listening(security: Security) -> dict[str, Any]:
    return dict(security.get_listen_args("worker"))


def connecting(security: Security) -> dict[str, Any]:
    return dict(security.get_connection_args("worker"))


def test_chunks_of_a_cluster_travel_as_handles(security: Security, directory: Path) -> None:
    with (
        LocalCluster(
            protocol="shms",
            security=security,
            n_workers=2,
            threads_per_worker=1,
            dashboard_address=":0",
        ) as cluster,
        Client(cluster, security=security) as client,
    ):
        assert cluster.scheduler_address.startswith("shms://")
        first, second = workers_of(client)
        x = client.submit(np.ones, ITEMS, workers=[first])
        total = client.submit(np.sum, x, workers=[second], allow_other_workers=False)
        assert total.result() == ITEMS
        sent = client.run(xshm.stats, workers=[first])[first]
        assert sent["handles_sent"] == 1
        assert sent["bytes_copied_in"] == sent["bytes_sent_inline"] == 0
        del x, total
    assert files_in(directory) == []


def test_an_array_goes_by_handle(security: Security) -> None:
    async def run() -> None:
        accepted: asyncio.Queue[Comm] = asyncio.Queue()
        async with listen("shms://127.0.0.1:0", accepted.put, **listening(security)) as listener:
            assert listener.contact_address.startswith("shms://")
            near = await connect(listener.contact_address, **connecting(security))
            far = await accepted.get()
            assert near.extra_info["cipher"]
            x = np.arange(float(ITEMS))
            before = xshm.stats()["handles_received"]
            assert same_bytes(await transfer(x, near, far), x)
            assert xshm.stats()["handles_received"] == before + 1
            await near.close()
            await far.close()

    asyncio.run(run())


@pytest.mark.parametrize("stranger", ["without a certificate", "with another", "without TLS"])
def test_a_stranger_gets_nothing(security: Security, stranger: str) -> None:
    before = xshm.stats()

    async def run() -> None:
        async def send(comm: Comm) -> None:
            await comm.write({"x": to_serialize(np.ones(ITEMS))})

        async with listen("shms://127.0.0.1:0", send, **listening(security)) as listener:
            address = listener.contact_address
            arguments: dict[str, Any] = {"ssl_context": ssl._create_unverified_context()}
            if stranger == "with another":
                arguments = connecting(Security.temporary())
            if stranger == "without TLS":
                address, arguments = address.replace("shms://", "shm://"), {}
            with pytest.raises((CommClosedError, OSError)):  # noqa: PT012  # now or at reading
                comm = await connect(address, timeout=2, **arguments)
                await comm.read()

    asyncio.run(run())
    assert xshm.stats()["handles_sent"] == before["handles_sent"]


def test_encryption_that_is_required_refuses_the_plain_scheme(security: Security) -> None:
    required = Security(require_encryption=True)

    async def run() -> None:
        with pytest.raises(RuntimeError, match=r"encryption required.*shm://"):
            await connect("shm://127.0.0.1:1", **connecting(required))
        with pytest.raises(RuntimeError, match=r"encryption required.*shm://"):
            async with listen("shm://127.0.0.1:0", print, **listening(required)):
                pass

    asyncio.run(run())
