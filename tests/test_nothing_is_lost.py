"""What is published comes back as it was; what cannot is refused, before anything is written."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xshm
from tests.conftest import files_in
from tests.exactly import assert_same
from tests.kinds import KINDS
from tests.kinds_not_held import NOT_HELD, NotHeld, Thing
from tests.kinds_of_arrays import REPEATED

pytestmark = pytest.mark.usefixtures("dask_threads")

#: Some of each table, which another process opens too.
ELSEWHERE = [
    *("numbers >f2", "NaNs with a payload", "structured, nested", "StringDType, NA"),
    *("objects, mixed", "cftime, 360_day", "categories, ordered", "axes permuted", "masked"),
    *("broadcast", "index of month starts", "MultiIndex, missing labels", "NDPointIndex"),
    *("attributes, arrays", "tree, inherited coordinates", "dask, irregular chunks"),
]

#: Pairs of which one would be the other, were a little lost.
NEARLY_THE_SAME = [
    ("numbers f4", "numbers >f4"),
    ("numbers q", "numbers i8"),
    ("NaNs with a payload", "NaNs with a payload, big-endian"),
    ("objects, None", "objects, NaN"),
    ("StringDType", "StringDType, strict"),
    ("cftime, noleap", "cftime, 360_day"),
    ("masked", "masked, hard"),
    ("masked", "masked, fill value"),
    ("structured", "structured, aligned"),
    ("intervals, closed left", "intervals, closed right"),
    ("index of objects, str", "index of pandas strings"),
    ("index of days", "index of seconds"),
    ("DataArray", "DataArray, name of its coordinate"),
]


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_what_is_published_comes_back_as_it_was(make: Callable[[], Any]) -> None:
    with xshm.publish(make(), "kind") as shared:
        assert_same(make(), shared.open())


@pytest.mark.parametrize("make", REPEATED.values(), ids=REPEATED)
def test_what_is_repeated_is_stored_once(make: Callable[[], Any]) -> None:
    with xshm.publish(make(), "kind") as shared:
        assert make().nbytes > 5_000_000
        assert shared.nbytes < 100_000


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_was_opened_is_published_again(name: str) -> None:
    with xshm.publish(KINDS[name](), "kind") as shared:
        opened = shared.open()
    with xshm.publish(opened, "kind") as shared:
        again = shared.open()
        assert_same(opened, again)


def test_another_process_sees_the_same() -> None:
    for name in ELSEWHERE:
        xshm.publish(KINDS[name](), name)
    program = "from tests import test_nothing_is_lost as test; test.compare_all()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == sorted(ELSEWHERE)
    for shared in xshm.list():
        shared.unlink()


def compare_all() -> None:
    """Compare each container of this directory with the kind whose name it has."""
    for shared in sorted(xshm.list(), key=lambda shared: shared.name):
        assert_same(KINDS[shared.name](), shared.open())
        print(shared.name)


@pytest.mark.parametrize("kind", NOT_HELD.values(), ids=NOT_HELD)
def test_what_cannot_be_held_is_refused(kind: NotHeld, directory: Path) -> None:
    with pytest.raises(xshm.UnsupportedError) as error:
        xshm.publish(kind.make(), "kind")
    assert re.search(
        f"{re.escape(kind.where)}.*: expected .*found .*{kind.found}.*; ", str(error.value)
    )
    assert files_in(directory) == []


def test_encodings_that_cannot_be_held_are_left_out_and_named() -> None:
    ds = KINDS["encoding, compressed"]()
    ds.v.encoding["compressor"] = Thing()
    with (
        pytest.warns(UserWarning, match="'compressor' of variable 'v'"),
        xshm.publish(ds, "kind") as shared,
    ):
        assert_same(KINDS["encoding, compressed"](), shared.open())


@pytest.mark.parametrize(("a", "b"), NEARLY_THE_SAME)
def test_equality_is_strict(a: str, b: str) -> None:
    with pytest.raises(AssertionError):
        assert_same(KINDS[a](), KINDS[b]())


def test_memory_order_is_part_of_equality() -> None:
    x = np.zeros((2, 3))
    for y in (np.asfortranarray(x), np.broadcast_to(0.0, x.shape)):
        with pytest.raises(AssertionError):
            assert_same(x, y)


def test_how_many_kinds_there_are() -> None:
    assert len(KINDS) >= 161
    assert not KINDS.keys() & NOT_HELD.keys()
    assert all(kind.reason for kind in NOT_HELD.values())
