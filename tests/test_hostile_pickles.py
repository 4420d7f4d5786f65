"""Handles in pickles of plain processes are checked as those of connections are.

Who unpickles trusts the pickle: it may call anything. These checks find what was damaged, or was
not made by xshm, before it does harm.
"""

from __future__ import annotations

import contextlib
import gc
from typing import Any

import numpy as np
import pytest

import xshm
from tests.test_hostile_peers import SEGMENT, TOKEN, unharmed
from xshm import _core, message
from xshm.container import unnamed
from xshm.container.handle import ContainerHandle
from xshm.container.mapped import ArrayHandle
from xshm.directory import Directory
from xshm.errors import HandleError, LostHandleError, XshmError
from xshm.handover import receive


@pytest.mark.parametrize(
    "fields",
    [
        ("../../../etc/passwd", SEGMENT, 0, 8),
        (f"../{TOKEN}", SEGMENT, 0, 8),
        (TOKEN, SEGMENT, 0, 8),  # a token of a connection
        (TOKEN.replace("token", "message"), "../x", 0, 8),
        (TOKEN.replace("token", "message"), SEGMENT, -8, 8),
        (TOKEN.replace("token", "message"), SEGMENT, 2**62, 2**62),
        (TOKEN.replace("token", "message"), SEGMENT, 0, 8),  # not there
        None,
    ],
    ids=str,
)
def test_a_pickled_handle_is_checked_like_any(fields: Any, here: Directory) -> None:
    (here.segments / TOKEN).write_bytes(bytes(8))
    with unharmed(here.path), pytest.raises(HandleError):
        message._take(fields, here.domain, (1,), np.dtype("f8"), (8,))


@pytest.mark.parametrize(
    ("shape", "dtype", "strides"),
    [
        ((2**18 + 1,), "f8", (8,)),
        ((2**62,), "f8", (8,)),
        ((2,), "f8", (-8,)),
        ((2,), "f8", (2**40,)),
        ((2**18,), object, (8,)),
        ((2**17,), np.dtypes.StringDType(), (16,)),
    ],
    ids=str,
)
def test_a_pickled_array_lies_in_its_bytes_and_has_no_pointers(
    shape: Any, dtype: Any, strides: Any, here: Directory
) -> None:
    with xshm.allocator():
        x = np.ones(2**18)
    handle = message.reduce_array(x)[1][0]
    before = _core.count()["leased_segments"]
    with pytest.raises((HandleError, ValueError)):
        message._take(handle, here.domain, shape, np.dtype(dtype), strides)
    gc.collect()
    assert _core.count()["leased_segments"] == before
    with contextlib.suppress(LostHandleError):
        receive(handle)


@pytest.mark.parametrize("where", ["../containers/named", "x/../../containers/named", "a.message"])
def test_a_pickled_message_is_one(where: str, here: Directory) -> None:
    with xshm.SharedArray.from_shape(10, name="named") as named:
        container = named._place.container
        with unharmed(here.path), pytest.raises(XshmError, match="name of a message"):
            unnamed.receive(where, container)


@pytest.mark.parametrize(
    "path",
    [
        "../../../etc/passwd",
        "/etc/passwd",
        "containers/../x",
        "containers/..",
        "processes/x",
        "x\0",
    ],
)
def test_a_pickled_container_is_one(path: str, here: Directory) -> None:
    container = ContainerHandle(path, "0" * 32, here.domain)
    with unharmed(here.path), pytest.raises(XshmError, match="expected"):
        container.open_file()


@pytest.mark.parametrize(
    ("offset", "shape", "dtype"),
    [(2**40, (1,), "f8"), (-8, (1,), "f8"), (0, (2**40,), "f8"), (0, (1,), object)],
    ids=str,
)
def test_a_pickled_part_of_a_container_lies_in_it(
    offset: int, shape: Any, dtype: Any, here: Directory
) -> None:
    with xshm.SharedArray.from_shape(10, name="named") as named:
        container = named._place.container
        place = ArrayHandle(container, offset, shape, (8,), np.dtype(dtype))
        with unharmed(here.path), pytest.raises((XshmError, OSError)):
            place.open()
