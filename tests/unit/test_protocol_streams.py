"""Streams of foreign protocols: what is left of one."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator

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
