"""Streams of foreign protocols: what is left of one."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator

from modelmora import errors
from modelmora_inference.protocols.common import in_order


async def test_a_stream_that_is_left_leaves_nothing_to_the_collector() -> None:
    """What only the collector finds stays for long: it looks seldom."""
    kept: list[weakref.ref[object]] = []

    async def leave_one() -> None:
        async def requests() -> AsyncIterator[str]:
            yield "one"
            await asyncio.Event().wait()

        async def answer(request: str) -> str:
            return request

        kept.append(weakref.ref(answer))
        answers = in_order(requests(), answer, stopping=asyncio.Event())
        assert await anext(aiter(answers)) == "one"
        await answers.aclose()  # type: ignore[attr-defined]

    gc.disable()
    try:
        async with asyncio.timeout(60):
            await leave_one()
            while kept[0]() is not None:  # noqa: ASYNC110 - its tasks are just being ended
                await asyncio.sleep(0.01)
    finally:
        gc.enable()


async def test_an_error_behind_the_one_that_ended_a_stream_is_not_logged() -> None:
    """Not either when the stream is cancelled while it waits for what it withdraws, as at its deadline."""
    logged: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: logged.append(what["message"]))
    begun, first_ends, leaving, left = asyncio.Event(), asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def requests() -> AsyncIterator[str]:
        for request in ("first", "second", "third"):
            yield request

    async def answer(request: str) -> str:
        if request == "third":
            begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                leaving.set()
                await left.wait()
        elif request == "first":
            await first_ends.wait()
        raise errors.InvalidArgument(request)

    async def read() -> None:
        async for _ in in_order(requests(), answer, stopping=asyncio.Event()):
            pass

    async with asyncio.timeout(60):
        reading = asyncio.create_task(read())
        await begun.wait()
        first_ends.set()
        await leaving.wait()
        reading.cancel()
        await asyncio.wait([reading])
        left.set()
        while len(asyncio.all_tasks()) > 1:  # noqa: ASYNC110 - they are just being ended
            await asyncio.sleep(0)
        assert reading.cancelled()
    del reading
    gc.collect()
    assert logged == []
