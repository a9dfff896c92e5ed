"""The bench of busy streams sees what it is there to see."""

from __future__ import annotations

from array import array

import pytest
from modelmora.inference.v1 import inference_pb2 as pb

from bench.streams import Report, Streams


def answer(name: str, row: array[float]) -> pb.StreamEmbedResponse:
    response = pb.StreamEmbedResponse(id=name)
    response.response.vectors.data = row.tobytes()
    return response


def error(name: str, status: str) -> pb.StreamEmbedResponse:
    return pb.StreamEmbedResponse(id=name, error=pb.CallError(status=status, reason="Why", message="so"))


def test_each_call_of_a_stream_is_answered_once_with_its_own_vector_or_may_be_sent_again() -> None:
    side = Streams("nowhere", "m")
    waits = {"0.0": 7, "0.1": 8}
    side._check(0, answer("0.0", side._truth[7]), waits)
    side._check(0, error("0.1", "RESOURCE_EXHAUSTED"), waits)
    assert (side._answered, dict(side._refused), side._wrong, waits) == (1, {"Why": 1}, [], {})
    for wrong in (
        answer("0.0", side._truth[7]),
        answer("0.9", side._truth[7]),
        answer("0.2", side._truth[8]),
        answer("0.3", side._truth[7][:4]),
        error("0.4", "INTERNAL"),
    ):
        waits = {"0.2": 7, "0.3": 7, "0.4": 7}
        before = len(side._wrong)
        side._check(0, wrong, waits)
        assert len(side._wrong) == before + 1, wrong
    assert side._answered == 1


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (Report(10, 1.0, answered=10, beside=[0.1]), ""),
        (Report(10, 1.0, answered=9, beside=[0.1]), "not busy"),
        (Report(10, 1.0, answered=10), "no HIGH call"),
        (Report(10, 1.0, answered=10, beside=[0.1], wrong_things=["HIGH: DEADLINE_EXCEEDED"]), "DEADLINE"),
    ],
)
def test_it_is_passed_only_when_nothing_is_wrong(report: Report, words: str) -> None:
    assert len(report.wrong()) == (1 if words else 0)
    assert words in "".join(report.wrong())
