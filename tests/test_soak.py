"""Clusters that work while they are harmed: no wrong result, no error of ours, nothing left."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import weakref
from collections.abc import AsyncGenerator, Generator
from contextvars import ContextVar, copy_context
from pathlib import Path

import numpy as np
import pytest

from benchmarks.soak_forgetting import close_idle_connections, forget_errors
from benchmarks.soak_growth import Held, Sample, grown

ROOT = Path(__file__).parents[1]


def soak(minutes: float, *options: str) -> dict[str, int]:
    """Run a soak; what was done how often, as its table tells."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "soak", "--minutes", str(minutes), *options],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return {
        what: int(times) for what, times in re.findall(r"^\| (.+) \| (\d+) \|$", done.stdout, re.M)
    }


def test_soaked_for_some_seconds() -> None:
    survived = soak(0.1, "--seed", "1", "--pause", "1", "--workers", "2")
    assert survived["graphs with the right result"] > 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_soaked_for_two_minutes() -> None:
    survived = soak(2)
    assert survived["graphs with the right result"] > 0
    assert survived["workers killed"] > 0


def _sample(seconds: float, open_files: int, own_memory: int) -> Sample:
    return Sample(seconds, {"worker 0": Held(open_files, 800, own_memory)}, files=7, nbytes=0)


def test_growth_of_more_than_five_percent_after_two_minutes_is_told() -> None:
    samples = [_sample(60, 20, 500), _sample(121, 40, 1000), _sample(181, 60, 1000)]
    assert grown([*samples, _sample(600, 42, 1050)]) == []
    assert grown([*samples, _sample(600, 42, 1051)]) == [
        "own_memory of worker 0 grew from 1000 to 1051"
    ]
    assert grown([*samples, _sample(600, 43, 1000)]) == [
        "open_files of worker 0 grew from 40 to 43"
    ]


def test_what_was_known_where_a_timer_was_set_is_forgotten() -> None:
    async def run() -> None:
        x = np.zeros(8)
        there = weakref.ref(x)
        context = copy_context()
        context.run(ContextVar[object]("known").set, x)
        loop = asyncio.get_running_loop()
        before = loop.call_later(60, bool)
        loop.call_later(61, bool, context=context).cancel()
        del x, context
        await asyncio.sleep(0)
        assert there() is not None
        close_idle_connections()
        await asyncio.sleep(0)
        assert there() is None
        before.cancel()

    asyncio.run(run())


def test_an_array_of_a_function_that_failed_is_forgotten() -> None:
    x = np.zeros(8)
    there = weakref.ref(x)
    with pytest.raises(ZeroDivisionError) as kept:
        _fail(x)
    del x
    assert there() is not None
    forget_errors()
    assert there() is None
    assert kept.type is ZeroDivisionError


def _fail(x: object) -> None:
    raise ZeroDivisionError


def test_forgetting_errors_ends_nothing_that_goes_on_later() -> None:
    async def run() -> None:
        errors: list[Exception] = []
        ways = _generator(errors), _async_generator(errors), _coroutine(errors)
        generator, async_generator, task = *ways[:2], asyncio.create_task(ways[2])
        assert next(generator) == "begun"
        assert await anext(async_generator) == "begun"
        await asyncio.sleep(0)
        assert len(errors) == 3
        forget_errors()
        assert next(generator) == "gone on"
        assert await anext(async_generator) == "gone on"
        assert await task == "gone on"
        await async_generator.aclose()

    asyncio.run(run())


def _generator(errors: list[Exception]) -> Generator[str, None, None]:
    try:
        _fail(None)
    except ZeroDivisionError as error:
        errors.append(error)
    yield "begun"
    yield "gone on"


async def _async_generator(errors: list[Exception]) -> AsyncGenerator[str, None]:
    try:
        _fail(None)
    except ZeroDivisionError as error:
        errors.append(error)
    yield "begun"
    yield "gone on"


async def _coroutine(errors: list[Exception]) -> str:
    try:
        _fail(None)
    except ZeroDivisionError as error:
        errors.append(error)
    await asyncio.sleep(0.01)
    return "gone on"
