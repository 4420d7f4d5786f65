"""What was exchanged is counted: as handles, as bytes, and why as these."""

from __future__ import annotations

import asyncio
import shutil
from typing import Any

import numpy as np
import pytest

import xshm
from tests.clusters import ITEMS, LARGE, connected, growth, transfer
from xshm import process
from xshm.directory import Directory
from xshm.statistics import stats_and_room


def sent_and_received(value: Any, **overrides: Any) -> dict[str, int]:
    """The numbers of bytes that grew with a message, but for those of small frames."""

    async def run() -> dict[str, int]:
        async with connected("shm", **overrides) as (near, far):
            before = xshm.stats()
            await transfer(value, near, far)
            grown = growth(before)
        # Every message has small frames, and in this process they come from and go to ourselves.
        assert 0 < grown["bytes_sent_small"] == grown["bytes_received_small"] < LARGE
        names = [key for key in grown if key.startswith("bytes_") and not key.endswith("_small")]
        return {key: grown[key] for key in names if grown[key]}

    return asyncio.run(run())


@pytest.mark.usefixtures("allocating")
def test_what_lies_in_a_segment_goes_as_a_handle() -> None:
    assert sent_and_received(np.ones(ITEMS)) == {
        "bytes_sent_by_handle": LARGE,
        "bytes_received_by_handle": LARGE,
    }


def test_what_does_not_is_copied_first() -> None:
    assert sent_and_received(np.ones(ITEMS)) == {
        "bytes_sent_by_handle": LARGE,
        "bytes_copied_in": LARGE,
        "bytes_received_by_handle": LARGE,
    }


def test_what_is_small_goes_as_bytes() -> None:
    assert sent_and_received(np.ones(1000)) == {}


def test_small_bytes_are_counted_as_they_are() -> None:
    async def run() -> int:
        async with connected("shm") as (near, far):
            grown = []
            for length in (1, 1001):
                before = xshm.stats()
                await transfer(np.ones(length, "u1"), near, far)
                grown.append(growth(before)["bytes_sent_small"])
            return grown[1] - grown[0]

    # What says how long it is may be some bytes longer.
    assert 1000 <= asyncio.run(run()) < 1010


@pytest.mark.usefixtures("allocating")
def test_to_another_domain_go_bytes() -> None:
    assert sent_and_received(np.ones(ITEMS), xshm={"version": 1, "domain": "0" * 32}) == {
        "bytes_sent_inline": LARGE,
        "bytes_sent_to_other_domain": LARGE,
        "bytes_received_inline": LARGE,
    }


def test_without_room_go_bytes(here: Directory) -> None:
    process.keep_open()
    shutil.rmtree(here.segments)  # as good as full, and for everybody else as it was
    assert sent_and_received(np.ones(ITEMS)) == {
        "bytes_sent_inline": LARGE,
        "bytes_sent_without_room": LARGE,
        "bytes_received_inline": LARGE,
    }
    shutil.rmtree(here.path)
    told = stats_and_room()
    assert (told["directory"], told["domain"]) == (str(here.path), here.domain)
    assert told["directory_size"] == told["directory_free"] == 0
