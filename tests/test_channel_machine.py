"""Any order of opening, writing, reading, closing and removing does what a simple model says."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

import xshm
from tests.conftest import files_in, own_directory
from xshm import Channel

SIZES = (0, 1, 3000, 2**17, 2**18)  # read, leased; in a small segment, or in one of the pool's


class Model:
    """A channel between being made and being removed."""

    def __init__(self) -> None:
        self.values: list[np.ndarray] = []
        self.writer: Channel | None = None
        self.removed = False


class ChannelMachine(RuleBasedStateMachine):
    """Objects of one name, and the channel that each of them belongs to."""

    def __init__(self) -> None:
        super().__init__()
        self._stack = contextlib.ExitStack()
        self._directory = self._stack.enter_context(own_directory())
        self._current: Model | None = None
        self._model: dict[Channel, Model] = {}
        self._last: dict[Channel, int] = {}
        self._kept: list[tuple[Any, np.ndarray]] = []
        self._number = 0

    channels = Bundle("channels")

    @rule(target=channels)
    def make(self) -> Channel:
        channel = Channel("c")
        if self._current is None:
            self._current = Model()
        self._model[channel] = self._current
        self._last[channel] = max(len(self._current.values) - 1, 0)
        return channel

    @rule(channel=channels, size=st.sampled_from(SIZES), dtype=st.sampled_from(["f8", "i4", "S7"]))
    def write(self, channel: Channel, size: int, dtype: str) -> None:
        self._number += 1
        value = np.full(size, self._number).astype(dtype)
        model = self._model[channel]
        if model.removed:
            self._raises(xshm.ChannelNotFoundError, channel.write, value)
        elif model.writer not in (None, channel):
            self._raises(xshm.WriterError, channel.write, value)
        else:
            model.writer = channel
            model.values.append(value)
            assert channel.write(value) == len(model.values)

    @rule(channel=channels, waits=st.booleans())
    def read(self, channel: Channel, waits: bool) -> None:
        model, last = self._model[channel], self._last[channel]
        how = (lambda: channel.wait(0)) if waits else channel.read
        if model.removed:
            self._raises(xshm.ChannelNotFoundError, how)
            return
        snapshot, latest = how(), len(model.values)
        if latest == 0 or (waits and latest == last):
            assert snapshot is None
            return
        assert snapshot is not None
        assert snapshot.version == latest
        assert snapshot.missed == max(latest - last - 1, 0)
        assert snapshot.writer_alive == (model.writer is not None)
        self._last[channel] = latest
        self._kept.append((snapshot.value, model.values[-1]))

    @rule(channel=channels)
    def unlink(self, channel: Channel) -> None:
        model = self._model[channel]
        if model.removed:
            self._raises(xshm.ChannelNotFoundError, channel.unlink)
        else:
            channel.unlink()
            model.removed = True
            self._current = None

    @rule(channel=consumes(channels))
    def close(self, channel: Channel) -> None:
        channel.close()
        model = self._model.pop(channel)
        if model.writer is channel:
            model.writer = None
        self._raises(xshm.ClosedError, channel.read)

    @rule()
    def forget_snapshots(self) -> None:
        self._kept.clear()

    @invariant()
    def snapshots_stay(self) -> None:
        for value, expected in self._kept:
            assert value.dtype == expected.dtype
            np.testing.assert_array_equal(value, expected)

    def _raises(self, error: type[Exception], function: Any, *args: Any) -> None:
        try:
            function(*args)
        except error:
            return
        raise AssertionError(f"expected {error.__name__}")

    def teardown(self) -> None:
        for channel in self._model:
            channel.close()
        if self._current is not None:
            with Channel("c") as channel:
                channel.unlink()
        self._kept.clear()
        self._stack.close()
        assert not self._directory.exists() or files_in(self._directory) == []


TestChannelMachine = ChannelMachine.TestCase
TestChannelMachine.settings = settings(
    max_examples=30,
    stateful_step_count=40,
    suppress_health_check=[HealthCheck.too_slow],
)
