"""Inference jobs against a real PostgreSQL and real echo workers."""

from __future__ import annotations

import asyncio
import uuid
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from integration.inference_rig import Rig, rig, version_of
from modelmora import errors
from modelmora.common.v1 import common_pb2
from modelmora.inference.v1 import inference_pb2 as pb
from modelmora_inference.domain import Aging, Priority
from modelmora_inference.job_service import JobNews, JobRpcs
from modelmora_inference.jobs import CHUNK_ENTRIES, Job
from modelmora_inference.predict import packed
from modelmora_inference.store import Chunk, JobStore, Limits
from modelmora_runtime.auth import Caller, Role, set_caller
from modelmora_runtime.db import Database
from modelmora_runtime.ids import uuid7
from modelmora_worker.engines.echo import vector

S = common_pb2.JobState


class Jobs:
    """What a test does with jobs."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.stub = rig.stub

    async def create(self, *texts: str, model: str = "acme/echo", embed: Any = None, **fields: Any) -> pb.InferenceJob:
        if not fields.keys() & {"classify", "rerank", "answer_question", "predict"}:
            fields["embed"] = pb.EmbedTask(texts=texts, **(embed or {}))
        request = pb.CreateInferenceJobRequest(model=model, **fields)
        return (await self.stub.CreateInferenceJob(request, timeout=30)).job

    async def get(self, job: pb.InferenceJob) -> pb.InferenceJob:
        return (await self.stub.GetInferenceJob(pb.GetInferenceJobRequest(name=job.name), timeout=30)).job

    async def cancel(self, job: pb.InferenceJob) -> pb.InferenceJob:
        return (await self.stub.CancelInferenceJob(pb.CancelInferenceJobRequest(name=job.name), timeout=30)).job

    async def until(self, job: pb.InferenceJob, *states: int, timeout: float = 60) -> pb.InferenceJob:
        """The job once it is in one of these states, or has ended. A database that stands still is asked again."""
        while True:
            try:
                request = pb.WatchInferenceJobRequest(name=job.name)
                async for told in self.stub.WatchInferenceJob(request, timeout=timeout):
                    if told.job.state in states:
                        break
            except errors.DatabaseUnavailable:
                continue
            return told.job  # type: ignore[no-any-return]

    async def end(self, job: pb.InferenceJob, timeout: float = 60) -> pb.InferenceJob:
        return await self.until(job, timeout=timeout)

    async def results(self, job: pb.InferenceJob, **fields: Any) -> list[pb.InferenceResult]:
        """All pages."""
        request = pb.GetInferenceResultRequest(name=job.name, **fields)
        found: list[pb.InferenceResult] = []
        while True:
            page = await self.stub.GetInferenceResult(request, timeout=30)
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


@asynccontextmanager
async def opened(database_url: str, limits: Limits) -> AsyncIterator[JobStore]:
    database = Database(database_url, "inference")
    store = JobStore(database, limits, Aging(medium_seconds=300, low_seconds=900))
    await store.migrate()
    yield store
    await database.close()


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[JobStore]:
    async with opened(database_url, Limits()) as found:
        yield found


async def migrated(there: Jobs) -> None:
    """The tables are made beside the start."""
    async with asyncio.timeout(60):
        while True:
            try:
                await there.stub.ListInferenceJobs(pb.ListInferenceJobsRequest(), timeout=30)
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


async def test_each_input_has_an_error_of_its_own(data_dir: Path, database_url: str) -> None:
    models = {"acme/echo": {"max_input_tokens": 3, "crash_on_text": "poison", "max_batch_entries": 4}}
    async with jobs(data_dir, database_url, models=models) as there:
        texts = ["a b", "a b c d", "some poison", "c", "d e f g h"]
        job = await there.create(*texts, embed={"truncate": False})
        ended = await there.end(job)
        assert ended.state == S.JOB_STATE_SUCCEEDED
        assert (ended.progress.succeeded, ended.progress.failed) == (2, 3)
        results = await there.results(job)
        assert [one.error.reason for one in results] == ["", "TextTooLong", "RequestCrashedWorker", "", "TextTooLong"]
        assert results[1].error.message == "the text has 4 tokens, the model takes 3"
        failed = await there.end(await there.create("a b c d", embed={"truncate": False}))
        assert (failed.state, failed.error.reason) == (S.JOB_STATE_FAILED, "TextTooLong")
        with pytest.raises(errors.ResultNotReady):
            await there.results(failed)
        assert len(await there.results(failed, partial=True)) == 1


TASKS = {
    "acme/echo": {"fail_on_text": "spoilt"},
    "acme/ranker": {"fail_on_text": "spoilt", "max_input_tokens": 50},
    "acme/sorter": {"fail_on_text": "spoilt", "labels": 4},
    "acme/reader": {"fail_on_text": "spoilt"},
}
TASK_TYPES = {
    "acme/ranker": common_pb2.TASK_TYPE_RERANKING,
    "acme/sorter": common_pb2.TASK_TYPE_CLASSIFICATION,
    "acme/reader": common_pb2.TASK_TYPE_QUESTION_ANSWERING,
}


def tensor(name: str, *elements: str) -> pb.NamedTensor:
    data = packed([element.encode() for element in elements])
    return pb.NamedTensor(
        name=name,
        tensor=common_pb2.Tensor(data_type=common_pb2.DATA_TYPE_BYTES, shape=[len(elements)], data=data),
    )


async def test_jobs_of_every_task_answer_as_the_calls_do_and_a_bad_input_fails_alone(
    data_dir: Path, database_url: str
) -> None:
    async with jobs(data_dir, database_url, models=TASKS) as there:
        there.rig.resolver.task_types.update({version_of(name): task for name, task in TASK_TYPES.items()})
        stub = there.stub
        texts = [f"text {n}" for n in range(70)]
        texts[66] = "spoilt"
        queries = [pb.RerankInput(query=f"q{n}", texts=[f"a{n}", f"b{n}", f"c{n}"]) for n in range(100)]
        queries[3].texts[1] = "spoilt"
        questions = [pb.QuestionInput(question=f"q{n}", context=f"one {n} two") for n in range(5)]
        questions[2].context = "spoilt"
        inputs = [pb.PredictInput(inputs=[tensor("texts", f"x{n}", f"y{n}")]) for n in range(40)]
        inputs[39].inputs[0].CopyFrom(tensor("texts", "fine", "spoilt"))
        made = [
            await there.create(model="acme/sorter", classify=pb.ClassifyTask(texts=texts, top_n=2)),
            await there.create(model="acme/ranker", rerank=pb.RerankTask(inputs=queries, raw_scores=True)),
            await there.create(model="acme/reader", answer_question=pb.AnswerQuestionTask(inputs=questions, top_n=2)),
            await there.create(model="acme/echo", predict=_predict_task(inputs, dimensions=3)),
        ]
        ended = [await there.end(job) for job in made]
        for job, count in zip(ended, (70, 100, 5, 40), strict=True):
            assert job.state == S.JOB_STATE_SUCCEEDED, job
            assert (job.progress.inputs, job.progress.failed) == (count, 1)
            assert job.progress.compute.ToNanoseconds() > 0
        classified, ranked, answered, predicted = [await there.results(job) for job in made]
        for results, at in ((classified, 66), (ranked, 3), (answered, 2), (predicted, 39)):
            assert [one.index for one in results] == list(range(len(results)))
            assert [one.index for one in results if one.WhichOneof("outcome") == "error"] == [at]
            assert results[at].error.reason == "InvalidArgument"
            for one in results[:at]:
                assert one.usage.input_tokens > 0
                assert one.timings.total.ToNanoseconds() >= one.timings.queue.ToNanoseconds() > 0
        assert ranked[3].error.message.startswith("texts[1]: ")
        assert predicted[39].error.message.startswith("inputs[0].tensor.data[1]: ")
        for job, results in zip(ended, (classified, ranked, answered, predicted), strict=True):
            assert job.progress.input_tokens == sum(one.usage.input_tokens for one in results)

        call = await stub.Classify(pb.ClassifyRequest(model="acme/sorter", texts=texts[:3], top_n=2), timeout=20)
        assert [one.classify for one in classified[:3]] == list(call.classifications)
        request = pb.RerankRequest(model="acme/ranker", query="q9", texts=queries[9].texts, raw_scores=True)
        assert list(ranked[9].rerank.ranked) == list((await stub.Rerank(request, timeout=20)).ranked)
        ask = pb.AnswerQuestionRequest(model="acme/reader", question="q4", context="one 4 two", top_n=2)
        assert list(answered[4].answer_question.answers) == list((await stub.AnswerQuestion(ask, timeout=20)).answers)
        one = pb.PredictRequest(model="acme/echo", inputs=inputs[7].inputs)
        one.parameters.update({"dimensions": 3})
        assert list(predicted[7].predict.outputs) == list((await stub.Predict(one, timeout=20)).outputs)


def _predict_task(inputs: list[pb.PredictInput], **parameters: Any) -> pb.PredictTask:
    task = pb.PredictTask(inputs=inputs)
    task.parameters.update(parameters)
    return task


BAD_TASKS: list[tuple[str, dict[str, Any], list[str]]] = [
    ("acme/sorter", {"classify": pb.ClassifyTask()}, ["classify.texts"]),
    (
        "acme/sorter",
        {"classify": pb.ClassifyTask(texts=["a", ""], pairs=["b"])},
        ["classify.texts[1]", "classify.pairs"],
    ),
    (
        "acme/sorter",
        {"classify": pb.ClassifyTask(texts=["a"], top_n=0, precision="x")},
        ["classify.top_n", "classify.precision"],
    ),
    ("acme/ranker", {"rerank": pb.RerankTask()}, ["rerank.inputs"]),
    (
        "acme/ranker",
        {"rerank": pb.RerankTask(inputs=[pb.RerankInput(query="q", texts=["a"])] * 101)},
        ["rerank.inputs"],
    ),
    (
        "acme/ranker",
        {"rerank": pb.RerankTask(inputs=[pb.RerankInput(query="q", texts=["a", ""]), pb.RerankInput()], top_n=-1)},
        ["rerank.inputs[0].texts[1]", "rerank.top_n", "rerank.inputs[1].query", "rerank.inputs[1].texts"],
    ),
    (
        "acme/ranker",
        {"rerank": pb.RerankTask(inputs=[pb.RerankInput(query="x" * 100_000, texts=["a"] * 100)] * 4)},
        ["rerank.inputs"],
    ),
    (
        "acme/reader",
        {"answer_question": pb.AnswerQuestionTask(inputs=[pb.QuestionInput(question="q")], top_n=21)},
        ["answer_question.inputs[0].context", "answer_question.top_n"],
    ),
    ("acme/echo", {"predict": pb.PredictTask()}, ["predict.inputs"]),
    (
        "acme/echo",
        {"predict": _predict_task([pb.PredictInput(), pb.PredictInput(inputs=[tensor("texts", "a", "")])], colour=1)},
        ["predict.inputs[0].inputs", "predict.parameters.colour", "predict.inputs[1].inputs[0].tensor.data[1]"],
    ),
    ("acme/echo", {"predict": pb.PredictTask(inputs=[pb.PredictInput()] * 2, outputs=["x"] * 65)}, ["predict.outputs"]),
]


async def test_a_bad_job_of_any_task_is_refused_at_its_field_and_nothing_is_kept(
    data_dir: Path, database_url: str
) -> None:
    async with jobs(data_dir, database_url, models=TASKS) as there:
        there.rig.resolver.task_types.update({version_of(name): task for name, task in TASK_TYPES.items()})
        for model, fields, paths in BAD_TASKS:
            with pytest.raises(errors.InvalidArgument) as caught:
                await there.create(model=model, **fields)
            assert [violation.field for violation in caught.value.fields] == paths, fields
        for fields in (
            {"classify": pb.ClassifyTask(texts=["a"])},
            {"rerank": pb.RerankTask(inputs=[pb.RerankInput(query="q", texts=["a"])])},
            {"answer_question": pb.AnswerQuestionTask(inputs=[pb.QuestionInput(question="q", context="c")])},
        ):
            with pytest.raises(errors.TaskNotSupported):
                await there.create(model="acme/echo", **fields)
        await there.rig.embed("a")  # From here on it is known which prompts the model has.
        some = [pb.PredictInput(inputs=[tensor("texts", "a")])]
        for fields, path in (
            ({"embed": {"prompt_name": "query"}}, "embed.prompt_name"),
            ({"predict": _predict_task(some, prompt_name="query")}, "predict.parameters.prompt_name"),
        ):
            with pytest.raises(errors.InvalidArgument) as caught:
                await there.create("a", **fields)
            assert [violation.field for violation in caught.value.fields] == [path]
        assert not (await there.stub.ListInferenceJobs(pb.ListInferenceJobsRequest(), timeout=30)).jobs


async def test_a_request_id_makes_one_job_and_another_content_is_refused(data_dir: Path, database_url: str) -> None:
    async with jobs(data_dir, database_url) as there:
        made = await asyncio.gather(*(there.create("a", "b", request_id="one") for _ in range(8)))
        assert len({job.uid for job in made}) == 1
        with pytest.raises(errors.RequestIdReused, match=made[0].name):
            await there.create("a", "c", request_id="one")
        assert (await there.create("a", "b", request_id="two")).uid != made[0].uid


async def test_a_queued_and_a_running_job_are_cancelled_and_leave_the_worker(data_dir: Path, database_url: str) -> None:
    models = {"acme/echo": {"delay_seconds": 0.2, "max_batch_entries": 8}}
    async with jobs(data_dir, database_url, models=models, max_jobs=1) as there:
        texts = [f"{n}" for n in range(500)]
        running, waiting = await there.create(*texts), await there.create("a")
        await there.until(running, S.JOB_STATE_RUNNING)
        assert (await there.get(waiting)).state == S.JOB_STATE_PENDING
        assert (await there.cancel(waiting)).state == S.JOB_STATE_CANCELLED
        assert (await there.cancel(running)).state == S.JOB_STATE_CANCELLING
        ended = await there.end(running)
        assert (ended.state, ended.HasField("error")) == (S.JOB_STATE_CANCELLED, False)
        assert not sum(level.entries for level in (await there.rig.queue()).levels)
        for job in (running, waiting):
            assert await there.cancel(job) == await there.get(job), "again, it changes nothing"
            with pytest.raises(errors.ResultNotReady):
                await there.results(job)
        # The slot is free again.
        succeeded = await there.end(await there.create("b"))
        assert succeeded.state == S.JOB_STATE_SUCCEEDED
        with pytest.raises(errors.IllegalTransition):
            await there.cancel(succeeded)


async def test_progress_is_watched_from_a_cursor_and_partial_results_are_there(
    data_dir: Path, database_url: str
) -> None:
    # It stands still in the middle until it is killed, so that nothing here is a matter of time.
    models: dict[str, dict[str, object]] = {"acme/echo": {"hang_after_batches": 10, "max_batch_entries": 32}}
    async with jobs(data_dir, database_url, models=models) as there:
        texts = [f"{n}" for n in range(400)]
        job = await there.create(*texts)
        seen: list[pb.WatchInferenceJobResponse] = []
        watch = there.stub.WatchInferenceJob(pb.WatchInferenceJobRequest(name=job.name), timeout=60)
        async for told in watch:
            seen.append(told)
            if told.job.progress.succeeded:
                break
        watch.cancel()
        partial = await there.results(job, partial=True)
        assert {one.index for one in partial} < set(range(400))
        assert partial
        with pytest.raises(errors.ResultNotReady):
            await there.results(job)
        models["acme/echo"].clear()
        there.rig.worker.kill()
        resume = pb.WatchInferenceJobRequest(name=job.name, cursor=seen[-1].cursor)
        async for told in there.stub.WatchInferenceJob(resume, timeout=60):
            assert (
                told.job.progress.succeeded > seen[-1].job.progress.succeeded or told.job.state != S.JOB_STATE_RUNNING
            )
            seen.append(told)
        counts = [told.job.progress.succeeded for told in seen]
        assert counts == sorted(counts)
        assert seen[-1].job.state == S.JOB_STATE_SUCCEEDED
        assert S.JOB_STATE_RUNNING in {told.job.state for told in seen}
        assert_vectors(await there.results(job), texts)


async def test_a_job_that_is_too_late_fails_and_keeps_what_was_computed(data_dir: Path, database_url: str) -> None:
    # It computes two batches of a chunk and then nothing more.
    models = {"acme/echo": {"hang_after_batches": 3, "max_batch_entries": 16}}
    async with jobs(data_dir, database_url, models=models, max_jobs=1) as there:
        await there.rig.right("loaded")
        long = pb.CreateInferenceJobRequest().timeout
        for seconds in (3, 9, 27):  # two batches are computed by then, if the machine lets it
            long.FromSeconds(seconds)
            job = await there.create(*[f"{n}" for n in range(2000)], timeout=long)
            behind = await there.create("a", timeout=long)
            ended, late = await asyncio.gather(there.end(job), there.end(behind))
            if ended.progress.succeeded:
                break
            there.rig.worker.kill()
        for one in (ended, late):
            assert (one.state, one.error.reason) == (S.JOB_STATE_FAILED, "DeadlineExceeded")
            assert one.end_time.ToDatetime() >= one.deadline.ToDatetime()
        results = await there.results(job, partial=True)
        assert 0 < len(results) == ended.progress.succeeded < CHUNK_ENTRIES
        assert ended.progress.input_tokens == sum(one.usage.input_tokens for one in results)
        for one in results:
            assert one.embed.values == pytest.approx(vector(0, f"{one.index}", 8), abs=1e-6)
        assert await there.results(job, partial=True, page_size=3) == results, "whatever is missing between them"
        with pytest.raises(errors.ResultNotReady):
            await there.results(behind, partial=True)


async def test_jobs_are_listed_newest_first_page_by_page(data_dir: Path, database_url: str) -> None:
    async with jobs(data_dir, database_url) as there:
        names = [(await there.create("b")).name for _ in range(5)]
        request = pb.ListInferenceJobsRequest(page_size=2)
        listed: list[str] = []
        while True:
            page = await there.stub.ListInferenceJobs(request, timeout=30)
            listed += [job.name for job in page.jobs]
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        assert listed == names[::-1]
        request.states.append(S.JOB_STATE_CANCELLED)  # a token belongs to its list
        for page_token in (request.page_token, "x", "e30"):
            request.page_token = page_token
            with pytest.raises(errors.InvalidArgument):
                await there.stub.ListInferenceJobs(request, timeout=30)
        found = await there.stub.ListInferenceJobs(pb.ListInferenceJobsRequest(tenant="nobody"), timeout=30)
        assert not found.jobs


class Rpcs(JobRpcs):
    """The RPCs without a server, so that a test says who calls."""

    def __init__(self, store: JobStore) -> None:
        self._jobs, self._job_news, self._stopping = store, JobNews(), asyncio.Event()


async def test_jobs_of_other_tenants_are_not_there(store: JobStore) -> None:
    await add(store, "mine", "a")
    await add(store, "theirs", "b")
    rpcs = Rpcs(store)

    async def listed(caller: Caller, **fields: Any) -> dict[str, str]:
        set_caller(caller)
        found = await rpcs.ListInferenceJobs(pb.ListInferenceJobsRequest(**fields), None)
        return {job.model: job.name for job in found.jobs}

    client = Caller("someone", "a", frozenset({Role.CLIENT}))
    operator = Caller("someone", "a", frozenset({Role.OPERATOR}))
    names = await listed(operator)
    assert set(names) == {"mine", "theirs"}
    assert set(await listed(operator, tenant="b")) == {"theirs"}
    assert set(await listed(client)) == {"mine"}
    assert await listed(client, tenant="b") == {}
    for name, absent in ((names["mine"], False), (names["theirs"], True)):
        for call in (
            lambda name=name: rpcs.GetInferenceJob(pb.GetInferenceJobRequest(name=name), None),
            lambda name=name: rpcs.GetInferenceResult(pb.GetInferenceResultRequest(name=name), None),
            lambda name=name: anext(rpcs.WatchInferenceJob(pb.WatchInferenceJobRequest(name=name), None)),
            lambda name=name: rpcs.CancelInferenceJob(pb.CancelInferenceJobRequest(name=name), None),
        ):
            try:
                await call()
                assert not absent
            except errors.JobNotFound:
                assert absent
            except errors.ResultNotReady:
                assert not absent


async def test_a_chunk_is_answered_once_however_often_its_results_come(store: JobStore) -> None:
    job = await add(store, "m", "a", inputs=(2, 1))
    token = await claim(store)

    async def publish(first: int, inputs: int, payload: bytes) -> Job:
        chunk = Chunk(first, inputs, payload)
        return await store.publish(job.uid, token, chunk, succeeded=inputs, failures=[], input_tokens=5)

    once = await publish(0, 2, b"first")
    again = await publish(0, 2, b"again")
    assert again == once
    assert (once.answered, once.input_tokens, await store.waiting_chunks(job.uid)) == (2, 5, [2])
    ended = await publish(2, 1, b"last")
    assert (ended.state, ended.stored_bytes) == ("succeeded", len(b"firstlast"))
    _, _, chunks = await store.results(job.uid, None, start=0, max_inputs=10, max_bytes=100)
    assert [chunk.payload for chunk in chunks] == [b"first", b"last"]


async def test_a_job_that_lasts_longer_than_a_claim_is_not_taken_over(
    data_dir: Path, database_url: str, store: JobStore
) -> None:
    for seconds in (3, 15):  # who stands still for as long as his claim lasts does lose it
        async with jobs(data_dir / str(seconds), database_url, job_claim_seconds=seconds) as there:
            await there.rig.right("loaded")
            with there.rig.held():
                job = await there.until(await there.create("a"), S.JOB_STATE_RUNNING)
                claim = first = (await store.get(job.uid, None))[0].claim
                async with asyncio.timeout(60):
                    # Until the first would have expired, had it not been renewed.
                    while first and claim and claim.expire_time < first.expire_time + timedelta(seconds=seconds):
                        claim = (await store.get(job.uid, None))[0].claim
                        if claim is not None and claim.token != first.token:
                            claim = None
                        await asyncio.sleep(0.05)
            ended = await there.end(job)
        if claim is not None and ended.attempt == 1:
            break
    assert claim is not None
    assert (ended.state, ended.attempt) == (S.JOB_STATE_SUCCEEDED, 1)


async def test_results_are_kept_for_their_time_and_the_job_a_while_longer(data_dir: Path, database_url: str) -> None:
    async with jobs(data_dir, database_url) as there:
        ttl = pb.CreateInferenceJobRequest().result_ttl
        ttl.FromMilliseconds(1)
        job = await there.end(await there.create("a", result_ttl=ttl))
        with pytest.raises(errors.ResultExpired):
            await there.results(job)
        assert (await there.get(job)).state == S.JOB_STATE_SUCCEEDED
        async with opened(database_url, Limits(job_keep=timedelta())) as store:
            assert await store.sweep() == 2
            assert await store.sweep() == 0
        with pytest.raises(errors.JobNotFound):
            await there.get(job)
        with pytest.raises(errors.JobNotFound):
            await there.cancel(job)


async def test_jobs_are_bounded_by_tenant_and_in_bytes(data_dir: Path, database_url: str) -> None:
    models = {"acme/echo": {"hang_after_batches": 0}}
    bounds = {"jobs_per_tenant": 2, "job_bytes": 2**20}
    async with jobs(data_dir, database_url, models=models, **bounds) as there:
        with pytest.raises(errors.QueueFull) as full:
            await there.create("a" * 100_000, *["b" * 99_999] * 11)
        assert full.value.retry_after_seconds
        made = await asyncio.gather(*(there.create("a") for _ in range(5)), return_exceptions=True)
        assert sum(isinstance(one, errors.QuotaExceeded) for one in made) == 3
        await there.cancel(next(one for one in made if isinstance(one, pb.InferenceJob)))


BAD: list[tuple[dict[str, Any], str]] = [
    ({"model": ""}, "model"),
    ({"embed": None}, "embed"),
    ({"embed": {"texts": []}}, "embed.texts"),
    ({"embed": {"texts": ["a", " "]}}, "embed.texts[1]"),
    ({"embed": {"texts": ["a"] * 2049}}, "embed.texts"),
    ({"embed": {"texts": ["a"], "dimensions": 0}}, "embed.dimensions"),
    ({"embed": {"texts": ["a"], "precision": "int1"}}, "embed.precision"),
    ({"priority": 7}, "priority"),
    ({"timeout": {"seconds": 0}}, "timeout"),
    ({"timeout": {"seconds": 7 * 86400, "nanos": 1}}, "timeout"),
    ({"timeout": {"seconds": -5}}, "timeout"),
    ({"result_ttl": {"seconds": 31 * 86400}}, "result_ttl"),
    ({"request_id": "x" * 201}, "request_id"),
    ({"request_id": "a\0b"}, "request_id"),
]


async def test_a_bad_job_is_refused_at_its_field(data_dir: Path, database_url: str) -> None:
    async with jobs(data_dir, database_url) as there:
        for change, field in BAD:
            fields = {"model": "acme/echo", "embed": {"texts": ["a"]}} | change
            request = pb.CreateInferenceJobRequest(
                **{name: value for name, value in fields.items() if value is not None}
            )
            with pytest.raises(errors.InvalidArgument) as wrong:
                await there.stub.CreateInferenceJob(request, timeout=30)
            assert [violation.field for violation in wrong.value.fields] == [field]


async def test_other_bad_requests_have_named_errors(data_dir: Path, database_url: str) -> None:
    async with jobs(data_dir, database_url, models={"acme/echo": {}, "acme/other": {}}) as there:
        there.rig.resolver.task_types["models/acme/other/versions/1"] = common_pb2.TASK_TYPE_TXT2TXT
        with pytest.raises(errors.ModelNotFound):
            await there.create("a", model="acme/none")
        with pytest.raises(errors.TaskNotSupported):
            await there.create("a", model="acme/other")
        absent = "jobs/01890a5d-ac96-774b-bcce-b302099a8057"
        for rpc, kind in (
            (there.stub.GetInferenceJob, pb.GetInferenceJobRequest),
            (there.stub.CancelInferenceJob, pb.CancelInferenceJobRequest),
            (there.stub.GetInferenceResult, pb.GetInferenceResultRequest),
        ):
            with pytest.raises(errors.JobNotFound):
                await rpc(kind(name=absent), timeout=30)
            for name in ("", "jobs/", "jobs/x", "models/a", "jobs/\0", absent + "\0"):
                with pytest.raises(errors.InvalidArgument):
                    await rpc(kind(name=name), timeout=30)
        job = await there.end(await there.create("a"))
        for field, value in (("page_size", -1), ("page_size", 3000), ("page_token", "zzz"), ("encoding", 9)):
            with pytest.raises(errors.InvalidArgument):
                await there.results(job, **{field: value})
        for cursor in ("x", "7", f"{job.uid}.-1", f"{job.uid}.x"):
            with pytest.raises(errors.InvalidArgument):
                async for _ in there.stub.WatchInferenceJob(
                    pb.WatchInferenceJobRequest(name=job.name, cursor=cursor), timeout=30
                ):
                    pass
        for fields in ({"model": "a\0"}, {"tenant": "x" * 500}, {"states": [99]}, {"page_size": 1001}):
            with pytest.raises(errors.InvalidArgument):
                await there.stub.ListInferenceJobs(pb.ListInferenceJobsRequest(**fields), timeout=30)


async def test_without_a_database_calls_are_answered_and_jobs_are_refused(data_dir: Path) -> None:
    async with jobs(data_dir, None) as there:
        await there.rig.right("a b")
        with pytest.raises(errors.DatabaseUnavailable):
            await there.create("a")


async def test_a_stop_gives_jobs_back_at_once_and_another_process_goes_on(
    data_dir: Path, database_url: str, store: JobStore
) -> None:
    # It stands still in the middle, so that the job is not done before the stop.
    models = {"acme/echo": {"hang_after_batches": 10, "max_batch_entries": 16}}
    texts = [f"{n}" for n in range(600)]
    async with jobs(data_dir, database_url, models=models) as there:
        job = await there.create(*texts)
        async for told in there.stub.WatchInferenceJob(pb.WatchInferenceJobRequest(name=job.name), timeout=60):
            if told.job.progress.succeeded:
                break
    left, _ = await store.get(job.uid, None)
    assert (left.state, left.claim, left.failures) == ("pending", None, 0)
    assert 0 < left.succeeded < 600
    async with jobs(data_dir.with_name("other"), database_url) as there:
        ended = await there.end(job)
        assert (ended.state, ended.attempt) == (S.JOB_STATE_SUCCEEDED, 2)
        assert_vectors(await there.results(job), texts)


async def test_a_claim_that_its_holder_lets_expire_is_taken_over_and_its_late_results_are_refused(
    data_dir: Path, database_url: str, store: JobStore
) -> None:
    # The place for one job is taken until the worker is killed.
    models: dict[str, dict[str, object]] = {"acme/echo": {"hang_after_batches": 0}}
    async with jobs(data_dir, database_url, max_jobs=1, models=models) as there:
        await there.create("first")
        await there.rig.running()
        job = await there.create("a", "b")
        # Somebody else, who will be slower than his claim.
        claimed = await store.claim(str(uuid.uuid4()), timedelta(seconds=1), with_work=True)
        assert claimed is not None
        mine, _ = claimed
        assert (mine.uid, mine.attempt) == (job.uid, 1)
        assert mine.claim is not None
        models["acme/echo"].clear()
        there.rig.worker.kill()
        ended = await there.end(job)
        assert (ended.state, ended.attempt) == (S.JOB_STATE_SUCCEEDED, 2)
        with pytest.raises(errors.ClaimLost):
            await store.start(job.uid, mine.claim.token)
        late = Chunk(0, 2, b"late")
        told = await store.publish(job.uid, mine.claim.token, late, succeeded=2, failures=[], input_tokens=0)
        assert told.state == "succeeded"  # there was nothing left to answer
        assert_vectors(await there.results(job), ["a", "b"])


async def test_a_claim_whose_answer_was_lost_is_given_back_and_counts_for_nothing(store: JobStore) -> None:
    """Else the job would lie as long as the claim holds, and count as one that its holder has died on."""
    job, other = await add(store, "m", "a"), await add(store, "m", "b")
    token = await claim(store)
    await store.forget(token)
    await store.forget(token)
    await store.forget(str(uuid.uuid4()))
    for uid in (job.uid, other.uid):
        left, _ = await store.get(uid, None)
        assert (left.state, left.claim, left.failures) == ("pending", None, 0)


async def test_tenants_with_fewer_jobs_at_work_go_first_then_age_and_priority(store: JobStore) -> None:
    await add(store, "a old low", "a", Priority.LOW, age_seconds=800)
    await add(store, "a low", "a", Priority.LOW, age_seconds=100)
    await add(store, "a medium", "a", Priority.MEDIUM, age_seconds=50)
    await add(store, "a high", "a", Priority.HIGH)
    await add(store, "b low", "b", Priority.LOW)
    order = []
    while (claimed := await store.claim(str(uuid.uuid4()), timedelta(minutes=1), with_work=True)) is not None:
        order.append(claimed[0].model)
    # HIGH counts from now, LOW of 800 s ago from in 100 s, MEDIUM from in 250 s, LOW of 100 s ago from in 800 s.
    assert order == ["a high", "b low", "a old low", "a medium", "a low"]


async def test_a_cancelled_job_whose_holder_died_is_ended_by_a_process_that_has_no_room(store: JobStore) -> None:
    job = await add(store, "m", "a")
    token = await claim(store)
    assert (await store.cancel(job.uid, None)).state == "cancelling"
    assert await store.claim(str(uuid.uuid4()), timedelta(minutes=1), with_work=False) is None
    # Looked for when its claim expires, not at its deadline.
    assert 500 < (await store.seconds_to_next(with_work=False) or 0) <= 600
    await store.extend([token], timedelta())
    assert (await store.seconds_to_next(with_work=False) or 0) <= 0
    found = await store.claim(str(uuid.uuid4()), timedelta(minutes=1), with_work=False)
    assert found is not None
    assert found[0].uid == job.uid


async def add(
    store: JobStore,
    model: str,
    tenant: str,
    priority: Priority = Priority.LOW,
    *,
    age_seconds: float = 0.0,
    inputs: tuple[int, ...] = (1,),
) -> Job:
    """A job of chunks with so many inputs each, as if it had been made some time ago."""

    def make(now: datetime) -> Job:
        then = now - timedelta(seconds=age_seconds)
        return Job(
            uid=str(uuid7()),
            tenant=tenant,
            subject="",
            model=model,
            model_version="",
            digest="",
            task_type=1,
            options=b"",
            priority=priority,
            inputs=sum(inputs),
            stored_bytes=len(inputs),
            create_time=then,
            update_time=then,
            deadline=now + timedelta(hours=1),
            result_ttl=timedelta(hours=1),
            not_before=then,
        )

    return await store.create(make, "", [(count, b"x") for count in inputs])


async def claim(store: JobStore) -> str:
    """The token of a claim on what is next."""
    token = str(uuid.uuid4())
    assert await store.claim(token, timedelta(minutes=10), with_work=True) is not None
    return token
