"""What the SDK sends and what it makes of the answer."""

from __future__ import annotations

import asyncio
import inspect
import struct
import sys
import time
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelmora import errors, requests
from modelmora.aio import AsyncClient
from modelmora.client import Client
from modelmora.common.v1 import common_pb2
from modelmora.inference.v1 import inference_pb2
from modelmora.registry.v1 import registry_pb2

_PLAIN = dict.fromkeys(("normalize", "truncate", "dimensions", "priority", "precision"))


def _answer(rows: list[list[float]], **fields: object) -> inference_pb2.EmbedResponse:
    width = len(rows[0])
    return inference_pb2.EmbedResponse(
        vectors=common_pb2.Tensor(
            data_type=common_pb2.DATA_TYPE_FP32,
            shape=[len(rows), width],
            data=struct.pack(f"<{len(rows) * width}f", *(value for row in rows for value in row)),
        ),
        embeddings=[inference_pb2.Embedding(input_tokens=3) for _ in rows],
        usage=common_pb2.TokenUsage(input_tokens=3 * len(rows)),
        **fields,  # type: ignore[arg-type]
    )


def test_absent_options_stay_absent() -> None:
    (request,) = requests.embed_requests("org/repo", ["a"], **_PLAIN)
    assert not request.HasField("normalize")
    assert not request.HasField("truncate")
    assert not request.HasField("dimensions")
    assert request.encoding == inference_pb2.VECTOR_ENCODING_BYTES


def test_false_and_zero_are_sent() -> None:
    (request,) = requests.embed_requests(
        "org/repo", ["a"], normalize=False, truncate=False, dimensions=0, priority="high", precision="exact"
    )
    assert request.HasField("normalize")
    assert not request.normalize
    assert request.HasField("truncate")
    assert request.HasField("dimensions")
    assert request.priority == common_pb2.PRIORITY_HIGH
    assert request.precision == "exact"


@settings(deadline=None)
@given(st.lists(st.integers(1, 5_000_000), max_size=12), st.integers(0, 5000))
def test_groups_keep_every_text_in_order_and_within_bounds(sizes: list[int], extra: int) -> None:
    texts = ["x" * size for size in sizes] + ["y"] * extra
    groups = [list(request.texts) for request in requests.embed_requests("m", texts, **_PLAIN)]
    assert [text for group in groups for text in group] == texts
    for group in groups:
        assert len(group) <= 2048
        assert len(group) <= 1 or sum(map(len, group)) <= 16 * 1024 * 1024


def test_no_texts_still_make_a_request_so_that_the_server_can_say_what_is_wrong() -> None:
    assert len(list(requests.embed_requests("m", [], **_PLAIN))) == 1


def test_vectors_are_a_writable_float32_matrix() -> None:
    vectors = requests.embeddings_of([_answer([[1.0, 2.0], [3.0, 4.0]])], single=False).vectors
    assert vectors.dtype == numpy.float32
    assert vectors.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    vectors *= 2


def test_one_plain_text_answers_with_one_vector() -> None:
    assert requests.embeddings_of([_answer([[1.0, 2.0]])], single=True).vectors.shape == (2,)


def test_without_numpy_rows_are_arrays_of_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)
    answer = requests.embeddings_of([_answer([[1.0, 2.0], [3.0, 4.0]])], single=False)
    assert [list(row) for row in answer.vectors] == [[1.0, 2.0], [3.0, 4.0]]
    assert answer.vectors[0].typecode == "f"
    assert list(requests.embeddings_of([_answer([[5.0, 6.0]])], single=True).vectors) == [5.0, 6.0]


def test_vectors_without_dimensions_are_as_many_as_their_texts() -> None:
    answer = requests.embeddings_of([_answer([[], []])], single=False)
    assert [list(row) for row in answer.rows()] == [[], []]
    assert answer.vectors.shape == (2, 0)


def test_answers_of_several_calls_are_put_together_in_order() -> None:
    first, second = _answer([[1.0], [2.0]], model_version="v"), _answer([[3.0]], model_version="v")
    first.timings.total.FromMilliseconds(1500)
    second.timings.total.FromMilliseconds(700)
    both = requests.embeddings_of([first, second], single=False)
    assert both.vectors.tolist() == [[1.0], [2.0], [3.0]]
    assert both.usage.input_tokens == 9
    assert both.input_tokens == (3, 3, 3)
    assert both.timings.total.ToMilliseconds() == 2200
    assert both.energy is None


@pytest.mark.parametrize("damage", ["data", "shape", "type"])
def test_a_tensor_that_contradicts_itself_is_refused(damage: str) -> None:
    answer = _answer([[1.0, 2.0]])
    if damage == "data":
        answer.vectors.data = answer.vectors.data[:-1]
    elif damage == "shape":
        answer.vectors.shape.append(1)
    else:
        answer.vectors.data_type = common_pb2.DATA_TYPE_FP64
    with pytest.raises(errors.InternalError):
        requests.embeddings_of([answer], single=False)


def test_enum_words_are_turned_into_values_and_unknown_ones_named() -> None:
    assert requests.task_type_value("txt2embed") == common_pb2.TASK_TYPE_TXT2EMBED
    assert requests.priority_value(None) == common_pb2.PRIORITY_UNSPECIFIED
    with pytest.raises(errors.InvalidArgument) as raised:
        requests.priority_value("urgent")
    assert raised.value.fields[0].field == "priority"
    assert "low, medium, high" in raised.value.message


@pytest.mark.parametrize(
    "given",
    [
        {"path": None, "hub": None, "revision": None, "empty": False},
        {"path": "/a", "hub": "o/r", "revision": None, "empty": False},
        {"path": "/a", "hub": None, "revision": "main", "empty": False},
    ],
)
def test_a_source_is_exactly_one_thing(given: dict[str, object]) -> None:
    with pytest.raises(errors.InvalidArgument):
        requests.source_of(**given)  # type: ignore[arg-type]


def test_a_failed_version_raises_its_named_error() -> None:
    error = requests.error_from_failure(registry_pb2.Failure(reason="ChecksumMismatch", message="model.bin differs"))
    assert isinstance(error, errors.ChecksumMismatch)
    assert error.message == "model.bin differs"
    unknown = requests.error_from_failure(registry_pb2.Failure(reason="FromTheFuture", message="?"))
    assert isinstance(unknown, errors.FailedPrecondition)


def test_both_clients_offer_the_same_methods_with_the_same_parameters() -> None:
    def face(cls: type) -> dict[str, list[inspect.Parameter]]:
        return {
            name: [p.replace(annotation=inspect.Parameter.empty) for p in inspect.signature(method).parameters.values()]
            for name, method in vars(cls).items()
            if not name.startswith("_") and callable(method)
        }

    assert face(Client) == face(AsyncClient)


def test_every_public_rpc_has_a_method_that_uses_it() -> None:
    import modelmora.aio
    import modelmora.client
    from modelmora.lifecycle.v1 import lifecycle_pb2
    from modelmora.observability.v1 import observability_pb2

    for module in (modelmora.client, modelmora.aio):
        source = inspect.getsource(module)
        for package in (registry_pb2, lifecycle_pb2, inference_pb2, observability_pb2):
            context = package.DESCRIPTOR.package.split(".")[1]
            service = package.DESCRIPTOR.services_by_name[f"{context.capitalize()}Service"]
            for method in service.methods:
                assert f"self.{context}.{method.name}" in source, f"{module.__name__} lacks {method.full_name}"


class Slow(dict[str, str]):
    """Inputs that take so many seconds to be made a message."""

    def __init__(self, seconds: float) -> None:
        super().__init__(texts="a")
        self._seconds = seconds

    def items(self) -> Any:
        until = time.monotonic() + self._seconds
        while time.monotonic() < until:
            pass
        return super().items()


async def test_the_time_of_a_call_runs_while_its_request_is_made() -> None:
    given: list[float] = []

    def answered(answer: Any, waits: bool) -> Any:
        def ask(request: Any, *, timeout: float, metadata: Any) -> Any:
            given.append(timeout)
            return asyncio.sleep(0, answer) if waits else answer

        return ask

    seconds = 0.05
    with Client("127.0.0.1:1") as client:
        client.inference.Predict = answered(inference_pb2.PredictResponse(), False)
        client.inference.CreateInferenceJob = answered(inference_pb2.CreateInferenceJobResponse(), False)
        client.predict("a/b", Slow(seconds), timeout=seconds)
        client.create_predict_job("a/b", [Slow(seconds)], timeout=seconds)
    async with AsyncClient("127.0.0.1:1") as aio:
        aio.inference.Predict = answered(inference_pb2.PredictResponse(), True)
        aio.inference.CreateInferenceJob = answered(inference_pb2.CreateInferenceJobResponse(), True)
        await aio.predict("a/b", Slow(seconds), timeout=seconds)
        await aio.create_predict_job("a/b", [Slow(seconds)], timeout=seconds)
    assert given == [0.0] * 4, "nothing of it was left"
