"""The kinds of things that xarray can hold: names, and functions that make one of each."""

from __future__ import annotations

from tests import kinds_of_arrays as arrays
from tests import kinds_of_labels as labels
from tests.kinds_of_arrays import Kinds

TABLES = (
    *(arrays.DTYPES, arrays.STRINGS, arrays.OBJECTS, arrays.CALENDARS, arrays.PANDAS),
    *(arrays.MEMORY, arrays.REPEATED),
    *(labels.INDEXES, labels.ATTRIBUTES, labels.NAMES, labels.TREES, labels.CHUNKED),
    labels.ENCODINGS,
)

#: Those that come back as they were.
KINDS: Kinds = {name: make for table in TABLES for name, make in table.items()}

assert len(KINDS) == sum(map(len, TABLES)), "two kinds have the same name"
