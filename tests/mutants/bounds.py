"""A pytest plugin for mutant runs: an async test that hangs is cancelled in its own loop; who fails is told at once.

pytest's timeout is a signal, which may come in the middle of gRPC's part of the loop and end the interpreter, and then
nobody knows any more that the test had noticed.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

SECONDS = 25.0
"""Longer than what tests give themselves to wait for one thing: their own words say best what is missing."""
NOTICED = "noticed"
"""A file in the tree, there once a test has failed in its call, however the run ends."""


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.failed:
        (Path(__file__).parents[2] / NOTICED).touch()


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            item.obj = _bounded(item.obj)


def _bounded(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @functools.wraps(test)
    async def bounded(*args: Any, **kwargs: Any) -> None:
        async with asyncio.timeout(SECONDS) as limit:
            await test(*args, **kwargs)
        assert not limit.expired(), "it went on although it was cancelled"

    return bounded
