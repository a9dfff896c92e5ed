"""Inference jobs in the caller's hands: a handle for each of the two clients, and what came out of a job."""

from __future__ import annotations

import sys
import uuid
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypedDict

from google.protobuf.message import Message

from modelmora import errors, requests, tensors
from modelmora.common.v1 import common_pb2
from modelmora.inference.v1 import inference_pb2

if TYPE_CHECKING:
    from modelmora.aio import AsyncClient
    from modelmora.client import Client
    from modelmora.requests import FloatArray

_FINAL = (common_pb2.JOB_STATE_SUCCEEDED, common_pb2.JOB_STATE_FAILED, common_pb2.JOB_STATE_CANCELLED)


def is_final(job: inference_pb2.InferenceJob) -> bool:
    """Whether it has ended."""
    return job.state in _FINAL


def check_succeeded(job: inference_pb2.InferenceJob) -> inference_pb2.InferenceJob:
    """The job. Raises what made it fail, Cancelled, or ResultNotReady when it has not ended."""
    if job.state == common_pb2.JOB_STATE_FAILED:
        raise requests.error_from_failure(job.error)
    if job.state == common_pb2.JOB_STATE_CANCELLED:
        raise errors.Cancelled(f"{job.name} was cancelled")
    if not is_final(job):
        raise errors.ResultNotReady(f"the server ended the watch of {job.name} before it had ended")
    return job


@dataclass(frozen=True)
class JobResult:
    """What is answered of a job."""

    job: inference_pb2.InferenceJob
    results: Sequence[inference_pb2.InferenceResult]
    """By index; of a partial result some are left out. Each has `embed`, `classify`, `rerank`, `answer_question`,
    `predict` or `error`, with `usage` and `timings`. Vectors are bytes, see `rows`; tensors too, see `predictions`."""

    @cached_property
    def errors(self) -> dict[int, errors.ModelMoraError]:
        """The errors of single inputs, by index."""
        return {
            one.index: requests.error_from_failure(one.error)
            for one in self.results
            if one.WhichOneof("outcome") == "error"
        }

    def rows(self) -> dict[int, array[float]]:
        """One `array('f')` for each input that has one, by index."""
        found = {}
        for one in self.results:
            if one.WhichOneof("outcome") == "embed":
                found[one.index] = row = array("f", one.embed.vector)
                if sys.byteorder == "big":
                    row.byteswap()
        return found

    def predictions(self) -> dict[int, dict[str, Any]]:
        """Of a job that predicts: the outputs of each input that has them by name, as in `Prediction.outputs`."""
        return {
            one.index: {output.name: tensors.value_of(output.tensor) for output in one.predict.outputs}
            for one in self.results
            if one.WhichOneof("outcome") == "predict"
        }

    @property
    def vectors(self) -> FloatArray:
        """float32 [inputs, dimensions], see `FloatArray`. Raises the first input's error when one has failed, and
        ResultNotReady when one is not answered."""
        if self.errors:
            raise self.errors[min(self.errors)]
        if len(self.results) < self.job.progress.inputs:
            raise errors.ResultNotReady(f"{len(self.results)} of {self.job.progress.inputs} inputs are answered")
        rows = self.rows()
        try:
            import numpy
        except ImportError:
            return list(rows.values())  # type: ignore[return-value]
        return numpy.array([rows[index] for index in sorted(rows)], dtype=numpy.float32)


class Job:
    """A job of `Client`. `message` is what is known of it."""

    def __init__(self, client: Client, message: inference_pb2.InferenceJob) -> None:
        self._client = client
        self.message = message

    @property
    def name(self) -> str:
        return self.message.name

    def refresh(self, *, timeout: float | None = None) -> inference_pb2.InferenceJob:
        """How it is now."""
        self.message = self._client.get_job(self.name, timeout=timeout)
        return self.message

    def wait(
        self, *, on_change: Callable[[inference_pb2.InferenceJob], object] | None = None, timeout: float | None = None
    ) -> inference_pb2.InferenceJob:
        """Returns when it has succeeded. Raises what made it fail, or Cancelled; DeadlineExceeded after `timeout`,
        without which it waits as long as the job takes."""
        for event in self._client.watch_job(self.name, timeout=timeout):
            self.message = event.job
            if on_change is not None:
                on_change(event.job)
        return check_succeeded(self.message)

    def result(self, *, partial: bool = False, timeout: float | None = None) -> JobResult:
        """All results, or those there are. ResultNotReady, ResultExpired."""
        return self._client.job_result(self.name, partial=partial, timeout=timeout)

    def cancel(self, *, timeout: float | None = None) -> inference_pb2.InferenceJob:
        """Again it changes nothing. IllegalTransition when it has SUCCEEDED or FAILED."""
        self.message = self._client.cancel_job(self.name, timeout=timeout)
        return self.message


class AsyncJob:
    """A job of `AsyncClient`: the methods of `Job`, awaited."""

    def __init__(self, client: AsyncClient, message: inference_pb2.InferenceJob) -> None:
        self._client = client
        self.message = message

    @property
    def name(self) -> str:
        return self.message.name

    async def refresh(self, *, timeout: float | None = None) -> inference_pb2.InferenceJob:
        self.message = await self._client.get_job(self.name, timeout=timeout)
        return self.message

    async def wait(
        self, *, on_change: Callable[[inference_pb2.InferenceJob], object] | None = None, timeout: float | None = None
    ) -> inference_pb2.InferenceJob:
        async for event in self._client.watch_job(self.name, timeout=timeout):
            self.message = event.job
            if on_change is not None:
                on_change(event.job)
        return check_succeeded(self.message)

    async def result(self, *, partial: bool = False, timeout: float | None = None) -> JobResult:
        return await self._client.job_result(self.name, partial=partial, timeout=timeout)

    async def cancel(self, *, timeout: float | None = None) -> inference_pb2.InferenceJob:
        self.message = await self._client.cancel_job(self.name, timeout=timeout)
        return self.message


class JobOptions(TypedDict, total=False):
    """How a job is done; what is absent or None is left to the server."""

    precision: str | None
    """`exact` demands the engine's exact profile."""
    priority: str | int | None
    """low (the default for jobs), medium or high."""
    job_timeout: float | None
    """Seconds until it fails if it has not ended. Default: 24 h."""
    result_ttl: float | None
    """Seconds that its results are kept after its end. Default: 24 h."""
    request_id: str | None
    """Makes the call safe to repeat; by default one is made up."""


def create_request(
    model: str,
    task: str,
    cls: type[Message],
    *,
    precision: str | None = None,
    priority: str | int | None = None,
    job_timeout: float | None = None,
    result_ttl: float | None = None,
    request_id: str | None = None,
    **fields: Any,
) -> inference_pb2.CreateInferenceJobRequest:
    """A job of one task, the field of the request with this name, from the task's own fields and JobOptions."""
    content: dict[str, Any] = {task: requests.build(cls, _at=task, precision=precision or "", **fields)}
    request = requests.build(
        inference_pb2.CreateInferenceJobRequest,
        model=model,
        priority=requests.priority_value(priority),
        request_id=request_id or str(uuid.uuid4()),
        **content,
    )
    for field, seconds in (("timeout", job_timeout), ("result_ttl", result_ttl)):
        if seconds is not None:
            _set_seconds(request, field, seconds)
    return request


def rerank_inputs(inputs: Sequence[tuple[str, Sequence[str]]]) -> list[inference_pb2.RerankInput]:
    return [
        requests.build(inference_pb2.RerankInput, _at=f"rerank.inputs[{n}]", query=query, texts=texts)
        for n, (query, texts) in enumerate(inputs)
    ]


def question_inputs(inputs: Sequence[tuple[str, str]]) -> list[inference_pb2.QuestionInput]:
    return [
        requests.build(inference_pb2.QuestionInput, _at=f"answer_question.inputs[{n}]", question=one, context=other)
        for n, (one, other) in enumerate(inputs)
    ]


def predict_inputs(inputs: Sequence[Mapping[str, Any]]) -> list[inference_pb2.PredictInput]:
    return [inference_pb2.PredictInput(inputs=tensors.named_tensors(one)) for one in inputs]


def list_request(
    states: Sequence[str | int], model: str, tenant: str, page_size: int
) -> inference_pb2.ListInferenceJobsRequest:
    return requests.build(
        inference_pb2.ListInferenceJobsRequest,
        states=[requests.job_state_value(state) for state in states],
        model=model,
        tenant=tenant,
        page_size=page_size,
    )


def result_request(name: str, partial: bool) -> inference_pb2.GetInferenceResultRequest:
    return requests.build(
        inference_pb2.GetInferenceResultRequest,
        name=name,
        partial=partial,
        encoding=inference_pb2.VECTOR_ENCODING_BYTES,
    )


def result_of(pages: Sequence[inference_pb2.GetInferenceResultResponse]) -> JobResult:
    """Pages in order, put together."""
    return JobResult(pages[-1].job, [one for page in pages for one in page.results])


def _set_seconds(message: Any, field: str, seconds: float) -> None:
    try:
        getattr(message, field).FromNanoseconds(round(seconds * 1e9))
    except (ValueError, OverflowError, TypeError) as error:
        raise errors.InvalidArgument.at(field, str(error)) from None
