"""Windows of the C core: parts of a file, mapped for as long as somebody looks at them."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from xshm import _core

PAGE = mmap.PAGESIZE
BYTES = bytes(np.arange(3 * PAGE + 100, dtype=np.uint64).astype(np.uint8))


@pytest.fixture
def file(directory: Path) -> Iterator[int]:
    """An open file of three pages and a bit; it has no name."""
    path = directory / "file"
    path.write_bytes(BYTES)
    descriptor = os.open(path, os.O_RDWR)
    path.unlink()
    yield descriptor
    os.close(descriptor)


def window(file: int, offset: int, nbytes: int, shared: bool = False) -> np.ndarray:
    return np.frombuffer(memoryview(_core.map_window(file, offset, nbytes, shared)), np.uint8)


@pytest.mark.parametrize("offset", [0, 1, PAGE - 1, PAGE, PAGE + 7, 3 * PAGE + 99])
@pytest.mark.parametrize("nbytes", [1, 100, PAGE, 2 * PAGE])
def test_a_window_shows_the_bytes_that_were_asked_for(file: int, offset: int, nbytes: int) -> None:
    nbytes = min(nbytes, len(BYTES) - offset)
    assert window(file, offset, nbytes).tobytes() == BYTES[offset : offset + nbytes]


@pytest.mark.parametrize(
    ("offset", "nbytes"),
    [
        (0, len(BYTES) + 1),
        (len(BYTES), 1),
        (len(BYTES) + PAGE, 1),
        (1, len(BYTES)),
        (0, 0),
        (-1, 1),
        (-PAGE, PAGE),
        (0, 2**62),
        (2**62, 2**62),
    ],
)
def test_a_window_ends_where_the_file_does(file: int, offset: int, nbytes: int) -> None:
    with pytest.raises(OSError, match="map a part of a file") as caught:
        _core.map_window(file, offset, nbytes, False)
    assert caught.value.errno == errno.ERANGE


def test_what_is_written_to_a_private_window_stays_there(file: int) -> None:
    mine, theirs = window(file, 10, PAGE), window(file, 10, PAGE)
    assert not _core.was_written(mine.data)
    mine[5] = 200
    assert _core.was_written(mine.data)
    assert not _core.was_written(theirs.data)
    assert theirs.tobytes() == os.pread(file, PAGE, 10) == BYTES[10 : 10 + PAGE]


def test_what_is_written_to_a_shared_window_reaches_all(file: int) -> None:
    mine, theirs = window(file, 10, PAGE, shared=True), window(file, 0, PAGE)
    mine[5] = 200
    assert theirs[15] == 200
    assert os.pread(file, 1, 15) == b"\xc8"


def test_a_window_ends_with_the_last_array_that_looks_at_it(file: int) -> None:
    inode = os.fstat(file).st_ino

    def mappings() -> int:
        fields = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        return sum(f[4] == str(inode) for f in fields)

    whole = window(file, 0, len(BYTES))
    part = whole[10:20]
    del whole
    assert mappings() == 1
    assert part.tobytes() == BYTES[10:20]
    del part
    assert mappings() == 0


def test_a_window_needs_a_file() -> None:
    with pytest.raises(OSError, match="map a part of a file") as caught:
        _core.map_window(-1, 0, 1, False)
    assert caught.value.errno == errno.EBADF
