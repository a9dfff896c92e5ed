"""What the runner does about a claim of which nobody knows whether it holds."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from modelmora import errors
from modelmora_inference.job_runner import JobRunner, RunnerRules


class LosingStore:
    """Whose answer to the first claim is lost."""

    def __init__(self) -> None:
        self.claimed: list[str] = []
        self.forgotten: list[str] = []
        self.hangs = False
        self.entered = asyncio.Event()

    async def claim(self, token: str, *_: Any, **__: Any) -> None:
        self.claimed.append(token)
        self.entered.set()
        if self.hangs:
            await asyncio.Event().wait()
        if len(self.claimed) == 1:
            raise errors.DatabaseUnavailable

    async def forget(self, token: str) -> None:
        assert len(self.claimed) == 1, "before the next claim"
        self.forgotten.append(token)


async def test_a_claim_whose_answer_was_lost_is_given_back_before_the_next() -> None:
    store: Any = LosingStore()
    runner = JobRunner(store, None, RunnerRules())  # type: ignore[arg-type]
    with pytest.raises(errors.DatabaseUnavailable):
        await runner._take_up()
    assert not await runner._take_up()
    assert store.forgotten == store.claimed[:1]
    await runner.close()
    assert store.forgotten == store.claimed[:1]


async def test_a_claim_that_a_stop_has_cut_off_is_given_back() -> None:
    store: Any = LosingStore()
    store.hangs = True
    runner = JobRunner(store, None, RunnerRules())  # type: ignore[arg-type]
    running = asyncio.create_task(runner.run())
    await store.entered.wait()
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    await runner.close()
    assert store.forgotten == store.claimed
