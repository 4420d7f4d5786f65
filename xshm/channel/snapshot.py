"""What is read from a channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """One version of what a channel holds. It stays as it is, whatever is written later.

    Attributes
    ----------
    value : object
        What was written. Its arrays are writable, and nobody else sees what is written to them.
    version : int
        1 for the first that was ever written to the channel, and one more for each.
    written_at : float
        When, in seconds since the epoch, by the clock of :func:`time.time`.
    age : float
        Seconds from when it was written to when it was read, by a clock that nobody sets.
    writer_alive : bool
        Whether the channel had a writer when this was read.
    missed : int
        How many versions were written since the channel object last gave one, or was made, that
        it did not give.
    """

    value: Any
    version: int
    written_at: float
    age: float
    writer_alive: bool
    missed: int
