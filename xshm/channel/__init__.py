"""Channels: the latest value of something that changes, for any number of processes."""

from xshm.channel.channel import Channel
from xshm.channel.snapshot import Snapshot

__all__ = ["Channel", "Snapshot"]
