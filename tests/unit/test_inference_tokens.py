"""An answer of tokens, text by text."""

from __future__ import annotations

import asyncio
from array import array
from types import SimpleNamespace
from typing import Any

import pytest
from modelmora import errors
from modelmora_inference import task_service
from modelmora_inference.domain import VersionFacts
from modelmora_inference.task_service import _tokenized

FACTS = VersionFacts("models/a/b/versions/1", "sha256:0", 3)
ROW = array("i", [number for n in range(5000) for number in (7, n, n + 1, 0)]).tobytes()


def call(rows: int) -> Any:
    return SimpleNamespace(
        rows=[ROW] * rows,
        profile=None,
        operation=1,
        input_tokens=[5000] * rows,
        cached=0,
        started=0.0,
        arrival=0.0,
        tokenise_seconds=0.0,
        compute_seconds=0.0,
    )


async def test_tokens_that_no_answer_holds_are_refused_before_all_are_written() -> None:
    one = (await _tokenized(call(1), FACTS, 1 << 20)).texts[0].ByteSize()
    with pytest.raises(errors.MessageTooLarge, match="the tokens of the first 3 texts"):
        await _tokenized(call(100), FACTS, 2 * one)
    assert len((await _tokenized(call(2), FACTS, 2 * one)).texts) == 2


async def test_others_go_on_between_the_texts_of_a_long_answer() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    going = asyncio.create_task(other())
    await _tokenized(call(10), FACTS, 1 << 30)
    going.cancel()
    assert turns >= 9
    assert len(ROW) > task_service._LONG_ROW_BYTES
