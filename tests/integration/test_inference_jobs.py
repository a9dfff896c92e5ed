"""Inference jobs against a real PostgreSQL and real echo workers."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from integration.inference_rig import Rig, rig
from modelmora import errors
from modelmora.common.v1 import common_pb2
from modelmora.inference.v1 import inference_pb2 as pb
from modelmora_worker.engines.echo import vector

S = common_pb2.JobState


class Jobs:
    """What a test does with jobs."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.stub = rig.stub

    async def create(self, *texts: str, model: str = "acme/echo", embed: Any = None, **fields: Any) -> pb.InferenceJob:
        task = pb.EmbedTask(texts=texts, **(embed or {}))
        request = pb.CreateInferenceJobRequest(model=model, embed=task, **fields)
        return (await self.stub.CreateInferenceJob(request, timeout=10)).job

    async def get(self, job: pb.InferenceJob) -> pb.InferenceJob:
        return (await self.stub.GetInferenceJob(pb.GetInferenceJobRequest(name=job.name), timeout=5)).job

    async def cancel(self, job: pb.InferenceJob) -> pb.InferenceJob:
        return (await self.stub.CancelInferenceJob(pb.CancelInferenceJobRequest(name=job.name), timeout=5)).job

    async def until(self, job: pb.InferenceJob, *states: int, timeout: float = 20) -> pb.InferenceJob:
        """The job once it is in one of these states, or has ended."""
        async for told in self.stub.WatchInferenceJob(pb.WatchInferenceJobRequest(name=job.name), timeout=timeout):
            if told.job.state in states:
                break
        return told.job  # type: ignore[no-any-return]

    async def end(self, job: pb.InferenceJob, timeout: float = 20) -> pb.InferenceJob:
        return await self.until(job, timeout=timeout)

    async def results(self, job: pb.InferenceJob, **fields: Any) -> list[pb.InferenceResult]:
        """All pages."""
        request = pb.GetInferenceResultRequest(name=job.name, **fields)
        found: list[pb.InferenceResult] = []
        while True:
            page = await self.stub.GetInferenceResult(request, timeout=10)
            found += page.results
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token


@asynccontextmanager
async def jobs(data_dir: Path, database_url: str | None, **settings: Any) -> AsyncIterator[Jobs]:
    async with rig(data_dir, database_url=database_url, **settings) as found:
        there = Jobs(found)
        if database_url is not None:
            await migrated(there)
        yield there


async def migrated(there: Jobs) -> None:
    """The tables are made beside the start."""
    async with asyncio.timeout(10):
        while True:
            try:
                await there.stub.ListInferenceJobs(pb.ListInferenceJobsRequest(), timeout=5)
                return
            except errors.DatabaseUnavailable:
                await asyncio.sleep(0.05)


def assert_vectors(results: list[pb.InferenceResult], texts: list[str]) -> None:
    assert [one.index for one in results] == list(range(len(texts)))
    for text, one in zip(texts, results, strict=True):
        values = one.embed.values or array("f", one.embed.vector)
        assert max(abs(a - b) for a, b in zip(values, vector(0, text, 8), strict=True)) < 1e-6, text


async def test_a_job_is_accepted_computed_and_its_vectors_are_those_of_its_texts(
    data_dir: Path, database_url: str
) -> None:
    texts = [f"text number {n}" for n in range(300)]
    async with jobs(data_dir, database_url) as there:
        job = await there.create(*texts)
        assert (job.state, job.priority) == (S.JOB_STATE_PENDING, common_pb2.PRIORITY_LOW)
        ended = await there.end(job)
        assert ended.state == S.JOB_STATE_SUCCEEDED, ended
        assert (ended.progress.inputs, ended.progress.succeeded, ended.progress.failed) == (300, 300, 0)
        assert (ended.attempt, ended.model_version) == (1, "models/acme/echo/versions/1")
        assert_vectors(await there.results(job, page_size=100), texts)
        assert_vectors(await there.results(job, encoding=pb.VECTOR_ENCODING_BYTES), texts)
