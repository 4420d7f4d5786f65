"""Hand-over between two views of one process: what arrives, who sees whose writes."""

from __future__ import annotations

import numpy as np
import pytest

import xshm
from tests.conftest import segment_names
from xshm.directory import Directory
from xshm.errors import LostHandleError
from xshm.handover import Outbox, receive


@pytest.mark.usefixtures("allocating")
def test_bytes_arrive_and_each_side_keeps_its_own_writes(here: Directory) -> None:
    sent = np.arange(1_000_000.0)
    handle = Outbox().share(sent)
    assert handle is not None

    sent[0] = -1  # after sending: reaches nobody
    received = np.frombuffer(receive(handle))
    assert received[0] == 0
    received[1] = -2
    assert sent[1] == 1
    np.testing.assert_array_equal(received[2:], sent[2:])


@pytest.mark.usefixtures("allocating")
def test_a_handle_can_be_taken_once(here: Directory) -> None:
    sent = np.ones(1_000_000)
    handle = Outbox().share(sent)
    assert handle is not None
    kept = receive(handle)
    with pytest.raises(LostHandleError, match="somebody else has taken it"):
        receive(handle)
    assert kept[0] == 0


def test_ordinary_memory_is_copied_in(here: Directory) -> None:
    sent = np.arange(1_000_000.0)
    outbox = Outbox()
    assert outbox.share(sent) is None
    handle = outbox.copy(sent)
    assert handle is not None
    np.testing.assert_array_equal(np.frombuffer(receive(handle)), sent)
    assert len(segment_names(here)) == 1  # kept for the next one
    xshm.trim()
    assert segment_names(here) == []
