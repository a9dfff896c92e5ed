"""What an engine may answer, and what it is told when it cannot be."""

from __future__ import annotations

import struct
import sys
from dataclasses import replace
from typing import Any

import pytest
from modelmora import errors
from modelmora_worker.answers import check_prepared, check_rows, nonsense
from modelmora_worker.engines import base

FOOTPRINT = base.Footprint({"host": 10}, base.Profile("theirs", "fp32"), 512, 4, 1024, 32)


def test_figures_that_can_be_are_taken() -> None:
    assert nonsense(FOOTPRINT, embeds=True) == ""
    assert nonsense(replace(FOOTPRINT, memory_bytes={}, labels=("a", "b"), prompts={"query": "q: "})) == ""


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"memory_bytes": {"host": 2**70}}, f"{2**70} bytes on host"),
        ({"memory_bytes": {"host": float("nan")}}, "nan bytes on host"),
        ({"memory_bytes": {"host": 1.5}}, "1.5 bytes on host"),
        ({"memory_bytes": {"host": -1}}, "-1 bytes on host"),
        ({"memory_bytes": {"host": "many"}}, "'many' bytes on host"),
        ({"memory_bytes": {"host": True}}, "True bytes on host"),
        ({"memory_bytes": {"": 10}}, "10 bytes on a device without a name ('')"),
        ({"memory_bytes": {3: 10}}, "10 bytes on a device without a name (3)"),
        ({"memory_bytes": [10]}, "memory_bytes [10], which are not bytes by device"),
        ({"max_batch_tokens": 2**40}, f"max_batch_tokens {2**40}"),
        ({"max_input_tokens": -1}, "max_input_tokens -1"),
        ({"max_batch_entries": None}, "max_batch_entries None"),
        ({"embedding_dimensions": 0}, "embedding_dimensions 0, though it embeds"),
        ({"profile": None}, "the profile None"),
        ({"max_image_bytes": -1}, "max_image_bytes -1"),
        ({"max_resized_pixels": 2**63}, f"max_resized_pixels {2**63}"),
        ({"labels": "abc"}, "labels 'abc'"),
        ({"labels": [1]}, "labels [1]"),
        ({"default_prompt": "\udc80"}, "default_prompt ['\\udc80']"),
        ({"prompts": {"query": None}}, "prompts {'query': None}"),
    ],
)
def test_figures_that_cannot_be_are_told(changed: dict[str, Any], said: str) -> None:
    assert nonsense(replace(FOOTPRINT, **changed), embeds=True) == said


def rows_of(*rows: tuple[float, ...]) -> base.Rows:
    return base.Rows(b"".join(struct.pack(f"<{len(row)}f", *row) for row in rows), [len(row) for row in rows])


@pytest.mark.parametrize("numpy", [True, False])
def test_rows_that_are_not_finite_or_too_long_fail_alone(numpy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not numpy:
        monkeypatch.delitem(sys.modules, "numpy", raising=False)
    told = rows_of((1, 2), (float("nan"), 1), (3.4e38, 3.4e38), (1, 2, 3), (1, float("-inf")), (5, 6))
    told.failed.append((9, errors.TextTooLong()))
    made = check_rows(told, [4, 5, 6, 7, 8, 9], [2] * 6)
    assert made.data == rows_of((1, 2), (3.4e38, 3.4e38)).data
    assert made.dimensions == [2, 0, 2, 0, 0, 0]
    assert [(position, error.reason) for position, error in made.failed] == [
        (9, "TextTooLong"),
        (5, "InternalError"),
        (7, "InternalError"),
        (8, "InternalError"),
    ]
    fine = rows_of((3.4e38, 3.4e38), (1, 2))
    assert check_rows(fine, [0, 1], [2, 2]) is fine


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (None, "None instead of Rows"),
        (base.Rows(b"1234", [1]), "2 texts with rows of \\[1\\] numbers"),
        (base.Rows(b"1234", [1, 1]), "in 4 bytes"),
        (base.Rows(b"1234", [2, -1]), "rows of \\[2, -1\\] numbers"),
        (base.Rows(b"", [0, 0], [(7, errors.TextTooLong())]), "of which not all were asked"),
        (base.Rows(b"", [0, 0], [(1, ValueError())]), "instead of a named error"),  # type: ignore[list-item]
    ],
)
def test_rows_that_cannot_be_told_apart_fail_whole(rows: object, said: str) -> None:
    with pytest.raises(errors.InternalError, match=said):
        check_rows(rows, [0, 1])


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        (base.MicroBatch([0, 1], [3, -1], [False] * 2, [None] * 2), "the engine counts [3, -1] tokens"),
        (base.MicroBatch([0, 1], [3], [False] * 2, [None] * 2), "differ in length"),
        (base.MicroBatch([0, 0], [3, 3], [False] * 2, [None] * 2), "of 2 rows the engine has prepared [0, 0]"),
    ],
)
def test_what_cannot_have_been_prepared_fails_whole(batch: base.MicroBatch, said: str) -> None:
    with pytest.raises(errors.InternalError) as raised:
        check_prepared(base.Prepared([batch]), 2)
    assert said in raised.value.message
