"""``xshm.report``: what each worker has exchanged and holds, and why it tells nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import xml.etree.ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from dask.distributed import Client, LocalCluster, Nanny, Scheduler, SpecCluster, wait

import xshm
from tests import clusters
from tests.clusters import ITEMS, LARGE
from tests.conftest import wait_until
from tests.test_docs import ROOT, blocks_of
from xshm.dask.report import Report, Room, WorkerReport, _order
from xshm.directory import configured

directory = clusters.module_directory
module_client = clusters.module_client
client = clusters.client


@pytest.fixture
def exchanged(client: Client) -> Iterator[tuple[str, str]]:
    """The addresses of a worker that has made an array, and of one that has received it."""
    first, second = clusters.workers_of(client)[:2]
    made = client.submit(np.ones, ITEMS, workers=[first], pure=False)
    received = client.submit(
        lambda x: (x, x.sum()), made, workers=[second], allow_other_workers=False, pure=False
    )
    wait(received)
    yield first, second
    del made, received


def test_it_tells_of_each_worker_what_it_exchanged_and_holds(
    client: Client, exchanged: tuple[str, str]
) -> None:
    first, second = exchanged
    told = xshm.report(client)
    assert sorted(told.workers) == clusters.workers_of(client)
    assert [worker.name for worker in told.workers.values()] == ["0", "1", "2"]
    sender, receiver = told.workers[first].stats, told.workers[second].stats
    assert sender["bytes_sent_by_handle"] >= LARGE
    assert (sender["live_segments"], sender["leased_segments"]) == (1, 0)
    assert receiver["bytes_received_by_handle"] >= LARGE
    assert (receiver["live_segments"], receiver["leased_segments"]) == (0, 1)
    for address, known in clusters.known_of_workers(client).items():
        worker = told.workers[address]
        assert worker.stats.keys() == xshm.stats().keys()
        assert worker.memory_limit == known["memory_limit"]
        assert 0 < worker.memory < worker.memory_limit
        assert (worker.spilled, worker.remark) == (0, "")


def test_names_of_workers_may_be_of_any_type() -> None:
    names = ["b", 10, 2.5, 2, ("a", 1)]
    assert sorted(names, key=_order) == [2, 10, ("a", 1), 2.5, "b"]


def test_workers_that_share_a_directory_have_one_room(client: Client) -> None:
    told = xshm.report(client)
    here = configured()
    ((domain, room),) = told.rooms.items()
    assert (domain, room.directory) == (here.domain, str(here.path))
    assert sorted(room.workers) == clusters.workers_of(client)
    assert room.hosts == ["127.0.0.1"]
    assert room.size == here.room()[1]
    assert 0 <= room.free <= room.size
    assert {worker.domain for worker in told.workers.values()} == {domain}


def test_workers_of_two_directories_have_two_rooms_and_exchange_bytes(tmp_path: Path) -> None:
    options = {"nthreads": 1, "host": "127.0.0.1"}
    elsewhere = {**options, "config": {"xshm": {"directory": str(tmp_path)}}}
    with (
        SpecCluster(
            workers={
                "here": {"cls": Nanny, "options": options},
                "elsewhere": {"cls": Nanny, "options": elsewhere},
            },
            scheduler={
                "cls": Scheduler,
                "options": {"protocol": "shm", "host": "127.0.0.1", "dashboard_address": ":0"},
            },
        ) as cluster,
        Client(cluster) as other,
    ):
        other.wait_for_workers(2, timeout=60)
        made = other.submit(np.ones, ITEMS, workers="here")
        wait(other.submit(np.sum, made, workers="elsewhere"))
        told = xshm.report(other)
        workers = {worker.name: worker for worker in told.workers.values()}
        rooms = {name: told.rooms[str(worker.domain)] for name, worker in workers.items()}
        assert rooms["here"].directory == str(configured().path)
        assert rooms["elsewhere"].directory.startswith(str(tmp_path))
        assert [len(room.workers) for room in told.rooms.values()] == [1, 1]
        assert workers["here"].stats["bytes_sent_to_other_domain"] == LARGE
        assert workers["elsewhere"].stats["bytes_received_inline"] == LARGE
        assert str(tmp_path) in repr(told)


def test_it_shows_itself_as_the_same_tables_as_text_and_html(
    client: Client, exchanged: tuple[str, str]
) -> None:
    told = xshm.report(client)
    text = repr(told).split("\n\n")
    page = xml.etree.ElementTree.fromstring(f"<body>{told._repr_html_()}</body>")
    assert text[0] == page.findtext("p") == f"3 workers of {client.scheduler.address}"
    assert [table.split("\n")[0].split("  ")[0] for table in text[1:]] == [
        *("DIRECTORY", "MEMORY OF", "SEGMENTS OF", "SENT BY", "RECEIVED BY")
    ]
    shown = [
        [[cell.text or "" for cell in row] for row in table.iter("tr")]
        for table in page.findall("table")
    ]
    assert [[" ".join(row).split() for row in table] for table in shown] == [
        [line.split() for line in table.split("\n")] for table in text[1:]
    ]
    heads, *rows = shown[3]
    (row,) = (row for row in rows if row[0] == told.workers[exchanged[0]].name)
    sent = told.workers[exchanged[0]].stats["bytes_sent_by_handle"]
    assert row[heads.index("AS HANDLES")] == f"{sent / 2**20:.2f} MiB"


def test_the_page_shows_the_tables_as_they_are(client: Client) -> None:
    (shown,) = (
        block.text
        for block in blocks_of(ROOT / "docs" / "monitoring.md")
        if " workers of " in block.text and block.language == "text"
    )
    heads = [
        [re.split(r"  +", table.partition("\n")[0]) for table in text.strip().split("\n\n")[1:]]
        for text in (shown, repr(xshm.report(client)))
    ]
    assert heads[0] == heads[1]


def test_it_is_data_for_json(client: Client) -> None:
    told = xshm.report(client)
    (first, *_) = told.workers
    data = json.loads(json.dumps(told.to_dict()))
    assert data["workers"][first]["stats"] == told.workers[first].stats
    assert [room["size"] for room in data["rooms"].values()] == [configured().room()[1]]


def test_names_of_workers_are_texts_in_html_and_obeyed_by_no_terminal() -> None:
    name = "<b>\x1b[2J&"
    worker = WorkerReport(name, 1, 0, 0, xshm.stats(), "d", "<i>")
    told = Report("shm://h:1", {"shm://h:2": worker}, {"d": Room("<d>", ["h"], [], 1, 1)})
    page = told._repr_html_()
    assert "&lt;b&gt;\\x1b[2J&amp;" in page
    for tag in ("<b>", "<i>", "<d>"):
        assert tag not in page
    assert "\x1b" not in repr(told)


def test_an_asynchronous_client_awaits_it(client: Client) -> None:
    async def ask() -> Report:
        async with Client(client.scheduler.address, asynchronous=True) as other:
            told: Report = await xshm.report(other)  # type: ignore[misc]
            return told

    told = asyncio.run(ask())
    assert told.workers.keys() == set(clusters.workers_of(client))
    assert all(worker.stats for worker in told.workers.values())


def test_workers_of_another_protocol_have_a_remark() -> None:
    with (
        LocalCluster(
            protocol="tcp", processes=False, n_workers=1, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as other,
    ):
        told = xshm.report(other)
        (worker,) = told.workers.values()
        assert (worker.stats, worker.domain, worker.remark) == ({}, None, "not shm")
        assert worker.memory > 0
        assert told.rooms == {}
        assert "not shm" in repr(told)
        assert "not shm" in told._repr_html_()
        assert "SENT BY" not in repr(told)


def test_a_worker_of_an_older_version_has_a_remark_and_the_others_tell(client: Client) -> None:
    first, *others = clusters.workers_of(client)

    def tell_nothing(dask_worker: Any) -> None:
        dask_worker.kept = dask_worker.metrics.pop("xshm")

    def tell(dask_worker: Any) -> None:
        dask_worker.metrics["xshm"] = dask_worker.__dict__.pop("kept")

    def is_told() -> bool:
        return "xshm" in clusters.known_of_workers(client)[first]["metrics"]

    client.run(tell_nothing, workers=[first])
    try:
        wait_until(lambda: not is_told(), "a heartbeat without it")
        told = xshm.report(client)
    finally:
        client.run(tell, workers=[first])
        wait_until(is_told, "a heartbeat with it")
    assert "older version of xshm" in told.workers[first].remark
    assert told.workers[first].stats == {}
    assert all(told.workers[other].stats for other in others)
    assert "older version of xshm" in repr(told)


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process does nothing within."""
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, "stopped")
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_worker_that_hangs_has_a_remark_and_the_others_tell(client: Client) -> None:
    first, *others = clusters.workers_of(client)
    pid = client.run(os.getpid, workers=[first])[first]
    with stopped(pid):
        told = xshm.report(client, timeout=1)
    assert told.workers[first].remark.startswith("no answer in 1 s")
    assert told.workers[first].stats["bytes_received_small"] > 0
    assert all(told.workers[other].stats for other in others)


def test_importing_xshm_does_not_import_distributed() -> None:
    code = "import sys, xshm; assert xshm.report; assert 'distributed' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
