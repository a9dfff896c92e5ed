"""The client for asyncio: `modelmora.client` with `await`."""

# The generated stubs carry no types; what a method answers is declared here.
# mypy: disable-error-code="no-untyped-call, no-any-return"

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack

import grpc
import grpc.aio

from modelmora import bulk, errors, jobs, requests, tensors
from modelmora.client import CONNECTED_SECONDS, LONG_SECONDS, WATCH_SECONDS, Connection
from modelmora.inference.v1 import inference_pb2, inference_pb2_grpc
from modelmora.jobs import AsyncJob, JobOptions, JobResult
from modelmora.lifecycle.v1 import lifecycle_pb2, lifecycle_pb2_grpc
from modelmora.observability.v1 import observability_pb2, observability_pb2_grpc
from modelmora.registry.v1 import registry_pb2, registry_pb2_grpc
from modelmora.requests import Embeddings, EmbedOptions, TaskOptions
from modelmora.status import error_from_rpc
from modelmora.tensors import Prediction

if TYPE_CHECKING:
    from modelmora.requests import FloatArray
    from modelmora.tensors import TensorLike

__all__ = ["AsyncClient"]

T = TypeVar("T")


class AsyncClient(Connection):
    """`modelmora.Client` for asyncio: the same methods, awaited; lists and watches are asynchronous iterators.

        async with modelmora.AsyncClient() as client:
            vectors = await client.embed("sentence-transformers/all-MiniLM-L6-v2", ["one text", "another"])

    Make and use it in one event loop. A cancelled call leaves the server's queue at once.
    """

    def _open(self) -> None:
        if self._credentials is None:
            self.channel = grpc.aio.insecure_channel(self.target, options=self._options)
        else:
            self.channel = grpc.aio.secure_channel(self.target, self._credentials, options=self._options)
        self.registry = registry_pb2_grpc.RegistryServiceStub(self.channel)
        """Raw stub: pass `metadata=client.metadata` and `timeout` yourself; it raises grpc.RpcError."""
        self.lifecycle = lifecycle_pb2_grpc.LifecycleServiceStub(self.channel)
        self.inference = inference_pb2_grpc.InferenceServiceStub(self.channel)
        self.observability = observability_pb2_grpc.ObservabilityServiceStub(self.channel)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connection and every call on it. May be called twice."""
        await self.channel.close()

    # Inference.

    async def embed(
        self,
        model: str,
        texts: str | Sequence[str],
        *,
        timeout: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> FloatArray:
        """One vector for each text, in order: float32 [texts, dimensions]; [dimensions] when `texts` is a plain string.

        Where numpy is not installed: a list of `array('f')`, or one. Any number of texts; more than 2048 go in several
        calls, all to the same version. The options are those of `modelmora.requests.EmbedOptions`: `normalize`,
        `truncate`, `dimensions`, `priority`, `precision`, `cold`, `fallback`, `request_id`, `prompt`.
        """
        return (await self.embed_detailed(model, texts, timeout=timeout, **options)).vectors

    async def embed_detailed(
        self,
        model: str,
        texts: str | Sequence[str],
        *,
        timeout: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Embeddings:
        """`embed` with tokens, timings, the version and engine profile that answered, and the energy estimate."""
        deadline = self._deadline(timeout)
        answers: list[inference_pb2.EmbedResponse] = []
        single = isinstance(texts, str)
        for request in requests.embed_requests(model, [texts] if isinstance(texts, str) else texts, **options):
            if answers:
                requests.follow(request, answers[0])
            answers.append(await self._until(deadline, self.inference.Embed, request))
        return requests.embeddings_of(answers, single=single)

    async def stream_embed(
        self,
        model: str,
        inputs: Iterable[str | Sequence[str]] | AsyncIterable[str | Sequence[str]],
        *,
        timeout: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> AsyncIterator[FloatArray]:
        """Vectors for any number of inputs, in their order, over one stream that is kept full: so a corpus is embedded.

        An input is a text, which becomes a vector float32 [dimensions], or up to 2048 texts, which become float32
        [texts, dimensions] (without numpy as in `embed`). `inputs` may go on for ever, and is taken by a
        task of its own.
        All are answered by one version, the one that answers first. A stream that breaks is opened again and what was
        not answered is sent again; a full queue is waited for. `timeout` is what one input may take, at most and by
        default 600 s. The first input that cannot be answered raises its error. The options are those of `embed`.
        """
        answers = self.stream_embed_detailed(model, inputs, timeout=timeout, **options)
        async with aclosing(answers):
            async for _, answer in answers:
                assert isinstance(answer, Embeddings)
                yield answer.vectors

    async def stream_embed_detailed(
        self,
        model: str,
        inputs: Iterable[str | Sequence[str]] | AsyncIterable[str | Sequence[str]],
        *,
        as_completed: bool = False,
        return_errors: bool = False,
        timeout: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> AsyncGenerator[tuple[int, Embeddings | errors.ModelMoraError], None]:
        """`stream_embed` with everything that is known of each input, and with its position, from 0. `as_completed`: in
        the order of the answers. `return_errors`: an input that cannot be answered comes as its error, and the others
        follow.
        """
        pipeline = self._pipeline(model, timeout, options, in_order=not as_completed)
        answers = bulk.run_async(self._open_embeds, self._bulk_pause_seconds, pipeline, bulk.checked(inputs))
        async with aclosing(answers):
            async for index, answer in answers:
                if isinstance(answer, errors.ModelMoraError) and not return_errors:
                    raise answer
                yield index, answer

    def _open_embeds(self) -> Any:
        try:
            return self.inference.StreamEmbed(metadata=self.metadata)
        except grpc.aio.UsageError as error:  # the channel was closed
            raise errors.ClientClosed() from error

    async def rerank(
        self,
        model: str,
        query: str,
        texts: Sequence[str],
        *,
        return_texts: bool = False,
        timeout: float | None = None,
        **options: Unpack[TaskOptions],
    ) -> inference_pb2.RerankResponse:
        """How well each of up to 2048 texts answers the query: `ranked` with `index` and `score`, best first, and its
        cost. The options are those of `modelmora.requests.TaskOptions`: `truncate`, `raw_scores`, `top_n`, `priority`,
        `precision`, `cold`, `fallback`, `request_id`. TaskNotSupported unless the model is a reranker."""
        request = requests.task_request(
            inference_pb2.RerankRequest, model=model, query=query, texts=texts, return_texts=return_texts, **options
        )
        return await self._call(self.inference.Rerank, request, timeout)

    async def classify(
        self,
        model: str,
        texts: str | Sequence[str],
        *,
        pairs: str | Sequence[str] = (),
        timeout: float | None = None,
        **options: Unpack[TaskOptions],
    ) -> inference_pb2.ClassifyResponse:
        """Labels with scores, best first, for each of up to 2048 texts: `classifications[i].labels`. `pairs`: the
        second texts, for models that judge two together. The options are those of `modelmora.requests.TaskOptions`."""
        request = requests.task_request(
            inference_pb2.ClassifyRequest,
            model=model,
            texts=requests.texts_of(texts),
            pairs=requests.texts_of(pairs),
            **options,
        )
        return await self._call(self.inference.Classify, request, timeout)

    async def answer_question(
        self,
        model: str,
        question: str,
        context: str,
        *,
        top_n: int | None = None,
        max_answer_tokens: int | None = None,
        priority: str | int | None = None,
        precision: str | None = None,
        cold: str | int | None = None,
        fallback: str | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> inference_pb2.AnswerQuestionResponse:
        """Where in the context the answer stands: `answers` with `text`, `score`, `start` and `end` in characters, the
        best first; one unless `top_n` says more. The context may be longer than the model reads."""
        request = requests.task_request(
            inference_pb2.AnswerQuestionRequest,
            model=model,
            question=question,
            context=context,
            top_n=top_n,
            max_answer_tokens=max_answer_tokens,
            priority=priority,
            precision=precision,
            cold=cold,
            fallback=fallback,
            request_id=request_id,
        )
        return await self._call(self.inference.AnswerQuestion, request, timeout)

    async def predict(
        self,
        model: str,
        inputs: Mapping[str, TensorLike],
        *,
        parameters: Mapping[str, Any] | None = None,
        outputs: Sequence[str] = (),
        priority: str | int | None = None,
        precision: str | None = None,
        cold: str | int | None = None,
        fallback: str | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Prediction:
        """Does the task of any model with named tensors, as `describe_model` tells them: `inputs` by name, each a text,
        the bytes of a file, several of them, or an array of numpy; `outputs` of the answer by name. `parameters`: those
        of the task, such as `raw_scores`; `outputs`: only these."""
        deadline = self._deadline(timeout)  # before the request is made: large tensors take a while
        request = requests.task_request(
            inference_pb2.PredictRequest,
            model=model,
            inputs=tensors.named_tensors(inputs),
            parameters=requests.options_of(parameters, "parameters"),
            outputs=outputs,
            priority=priority,
            precision=precision,
            cold=cold,
            fallback=fallback,
            request_id=request_id,
        )
        return Prediction(await self._until(deadline, self.inference.Predict, request))

    async def tokenize(
        self,
        model: str,
        texts: str | Sequence[str],
        *,
        add_special_tokens: bool = True,
        priority: str | int | None = None,
        timeout: float | None = None,
    ) -> inference_pb2.TokenizeResponse:
        """What the model's tokenizer makes of each of up to 2048 texts: `texts[i].tokens` with ids and offsets in
        characters. It loads the model."""
        request = requests.build(
            inference_pb2.TokenizeRequest,
            model=model,
            texts=requests.texts_of(texts),
            add_special_tokens=add_special_tokens,
            priority=requests.priority_value(priority),
        )
        return await self._call(self.inference.Tokenize, request, timeout)

    async def describe_model(self, model: str, *, timeout: float | None = None) -> inference_pb2.DescribeModelResponse:
        """What a model takes and gives, and its limits. It loads nothing."""
        request = requests.build(inference_pb2.DescribeModelRequest, model=model)
        return await self._call(self.inference.DescribeModel, request, timeout)

    async def queue(self, model: str = "", *, timeout: float | None = None) -> list[inference_pb2.Queue]:
        """What waits for each version, or for one."""
        request = requests.build(inference_pb2.GetQueueRequest, model=model)
        return list((await self._call(self.inference.GetQueue, request, timeout)).queues)

    async def explain_request(
        self, request_id: str, *, timeout: float | None = None
    ) -> inference_pb2.ExplainRequestResponse:
        """Where the call with this `request_id` is now, and what it waits for. RequestNotFound once it ended."""
        request = requests.build(inference_pb2.ExplainRequestRequest, request_id=request_id)
        return await self._call(self.inference.ExplainRequest, request, timeout)

    async def set_tenant_weight(
        self, tenant: str, weight: float | None = None, *, timeout: float | None = None
    ) -> inference_pb2.SetTenantWeightResponse:
        """Changes a tenant's share against the others, for good; None: back to 1."""
        request = requests.build(inference_pb2.SetTenantWeightRequest, tenant=tenant, weight=weight)
        return await self._call(self.inference.SetTenantWeight, request, timeout)

    async def list_tenant_weights(self, *, timeout: float | None = None) -> list[inference_pb2.TenantWeight]:
        """The weights that somebody has set, by tenant; every other tenant has 1."""
        request = inference_pb2.ListTenantWeightsRequest()
        return list((await self._call(self.inference.ListTenantWeights, request, timeout)).weights)

    # Jobs.

    async def create_embed_job(
        self,
        model: str,
        texts: Sequence[str],
        *,
        normalize: bool | None = None,
        truncate: bool | None = None,
        dimensions: int | None = None,
        prompt: str | None = None,
        timeout: float | None = None,
        **options: Unpack[JobOptions],
    ) -> AsyncJob:
        """Turns up to 2048 texts into vectors without anybody waiting on the line: see `wait` and `result` of what it
        returns. The options are those of `modelmora.jobs.JobOptions`: `precision`, `priority` (low by default),
        `job_timeout` and `result_ttl` in seconds (24 h each), `request_id`. QuotaExceeded, QueueFull."""
        request = jobs.create_request(
            model,
            "embed",
            inference_pb2.EmbedTask,
            texts=texts,
            normalize=normalize,
            truncate=truncate,
            dimensions=dimensions,
            prompt_name=prompt,
            **options,
        )
        return AsyncJob(self, (await self._call(self.inference.CreateInferenceJob, request, timeout)).job)

    async def create_classify_job(
        self,
        model: str,
        texts: Sequence[str],
        *,
        pairs: Sequence[str] = (),
        truncate: bool | None = None,
        raw_scores: bool | None = None,
        top_n: int | None = None,
        timeout: float | None = None,
        **options: Unpack[JobOptions],
    ) -> AsyncJob:
        """Gives up to 2048 texts labels in the background, as `classify` does; the rest as in `create_embed_job`."""
        request = jobs.create_request(
            model,
            "classify",
            inference_pb2.ClassifyTask,
            texts=texts,
            pairs=pairs,
            truncate=truncate,
            raw_scores=raw_scores,
            top_n=top_n,
            **options,
        )
        return AsyncJob(self, (await self._call(self.inference.CreateInferenceJob, request, timeout)).job)

    async def create_rerank_job(
        self,
        model: str,
        inputs: Sequence[tuple[str, Sequence[str]]],
        *,
        truncate: bool | None = None,
        raw_scores: bool | None = None,
        top_n: int | None = None,
        timeout: float | None = None,
        **options: Unpack[JobOptions],
    ) -> AsyncJob:
        """Sorts texts for up to 100 queries in the background: `inputs` are (query, texts), each done as `rerank` does;
        the rest as in `create_embed_job`."""
        request = jobs.create_request(
            model,
            "rerank",
            inference_pb2.RerankTask,
            inputs=jobs.rerank_inputs(inputs),
            truncate=truncate,
            raw_scores=raw_scores,
            top_n=top_n,
            **options,
        )
        return AsyncJob(self, (await self._call(self.inference.CreateInferenceJob, request, timeout)).job)

    async def create_answer_question_job(
        self,
        model: str,
        inputs: Sequence[tuple[str, str]],
        *,
        top_n: int | None = None,
        max_answer_tokens: int | None = None,
        timeout: float | None = None,
        **options: Unpack[JobOptions],
    ) -> AsyncJob:
        """Answers up to 100 questions in the background: `inputs` are (question, context), each done as
        `answer_question` does; the rest as in `create_embed_job`."""
        request = jobs.create_request(
            model,
            "answer_question",
            inference_pb2.AnswerQuestionTask,
            inputs=jobs.question_inputs(inputs),
            top_n=top_n,
            max_answer_tokens=max_answer_tokens,
            **options,
        )
        return AsyncJob(self, (await self._call(self.inference.CreateInferenceJob, request, timeout)).job)

    async def create_predict_job(
        self,
        model: str,
        inputs: Sequence[Mapping[str, TensorLike]],
        *,
        parameters: Mapping[str, Any] | None = None,
        outputs: Sequence[str] = (),
        timeout: float | None = None,
        **options: Unpack[JobOptions],
    ) -> AsyncJob:
        """Does a model's task for up to 100 sets of named inputs in the background, each as `predict` does; the rest
        as in `create_embed_job`."""
        deadline = self._deadline(timeout)
        request = jobs.create_request(
            model,
            "predict",
            inference_pb2.PredictTask,
            inputs=jobs.predict_inputs(inputs),
            parameters=requests.options_of(parameters, "predict.parameters"),
            outputs=outputs,
            **options,
        )
        return AsyncJob(self, (await self._until(deadline, self.inference.CreateInferenceJob, request)).job)

    async def job(self, name: str, *, timeout: float | None = None) -> AsyncJob:
        """A job that was made earlier, by its name `jobs/{uid}`. JobNotFound."""
        return AsyncJob(self, await self.get_job(name, timeout=timeout))

    async def get_job(self, name: str, *, timeout: float | None = None) -> inference_pb2.InferenceJob:
        """JobNotFound."""
        request = requests.build(inference_pb2.GetInferenceJobRequest, name=name)
        return (await self._call(self.inference.GetInferenceJob, request, timeout)).job

    async def list_jobs(
        self,
        *,
        states: Sequence[str | int] = (),
        model: str = "",
        tenant: str = "",
        page_size: int = 100,
        timeout: float | None = None,
    ) -> AsyncIterator[inference_pb2.InferenceJob]:
        """Newest first, fetched page by page; `states` are words such as `running`."""
        request = jobs.list_request(states, model, tenant, page_size)
        async for page in self._pages(self.inference.ListInferenceJobs, request, timeout):
            for item in page.jobs:
                yield item

    async def cancel_job(self, name: str, *, timeout: float | None = None) -> inference_pb2.InferenceJob:
        """Ends a job; it may be CANCELLING for a moment. Again it changes nothing. IllegalTransition when it has
        SUCCEEDED or FAILED."""
        request = requests.build(inference_pb2.CancelInferenceJobRequest, name=name)
        return (await self._call(self.inference.CancelInferenceJob, request, timeout)).job

    def watch_job(
        self, name: str, *, cursor: str = "", timeout: float | None = None
    ) -> AsyncIterator[inference_pb2.WatchInferenceJobResponse]:
        """The job as it is now and after every change, until it has ended. Without `timeout` as long as it takes."""
        return self._watch(
            self.inference.WatchInferenceJob,
            lambda cursor: requests.build(inference_pb2.WatchInferenceJobRequest, name=name, cursor=cursor),
            cursor,
            timeout,
        )

    async def job_result(self, name: str, *, partial: bool = False, timeout: float | None = None) -> JobResult:
        """All results of a job, fetched page by page; with `partial` those there are. ResultNotReady, ResultExpired."""
        pages = self._pages(self.inference.GetInferenceResult, jobs.result_request(name, partial), timeout)
        return jobs.result_of([page async for page in pages])

    # Registry: models.

    async def create_model(
        self,
        model_id: str,
        *,
        task_type: str | int | None = None,
        display_name: str = "",
        description: str = "",
        labels: Mapping[str, str] | None = None,
        request_id: str | None = None,
        validate_only: bool = False,
        timeout: float | None = None,
    ) -> registry_pb2.Model:
        """Registers `org/repo` without any version. ModelExists."""
        request = requests.build(
            registry_pb2.CreateModelRequest,
            model_id=model_id,
            model=requests.build(
                registry_pb2.Model,
                _at="model",
                display_name=display_name,
                description=description,
                task_type=requests.task_type_value(task_type),
                labels=labels or {},
            ),
            request_id=request_id or str(uuid.uuid4()),
            validate_only=validate_only,
        )
        return (await self._call(self.registry.CreateModel, request, timeout)).model

    async def get_model(self, name: str, *, timeout: float | None = None) -> registry_pb2.Model:
        """ModelNotFound."""
        return (
            await self._call(self.registry.GetModel, requests.build(registry_pb2.GetModelRequest, name=name), timeout)
        ).model

    async def list_models(
        self,
        *,
        filter: str = "",
        order_by: str = "",
        query: str = "",
        page_size: int = 100,
        timeout: float | None = None,
    ) -> AsyncIterator[registry_pb2.Model]:
        """All models, fetched page by page; `timeout` is that of one page. With a `query` (words of name, family
        and description) the best come first.
        """
        request = requests.build(
            registry_pb2.ListModelsRequest, page_size=page_size, filter=filter, order_by=order_by, query=query
        )
        async for page in self._pages(self.registry.ListModels, request, timeout):
            for item in page.models:
                yield item

    async def update_model(
        self,
        name: str,
        *,
        task_type: str | int | None = None,
        display_name: str | None = None,
        description: str | None = None,
        labels: Mapping[str, str] | None = None,
        etag: str = "",
        timeout: float | None = None,
    ) -> registry_pb2.Model:
        """Changes what is given. Conflict when `etag` is stale."""
        changes = {"task_type": task_type, "display_name": display_name, "description": description, "labels": labels}
        request = requests.build(
            registry_pb2.UpdateModelRequest,
            model=requests.build(
                registry_pb2.Model,
                _at="model",
                name=name,
                task_type=requests.task_type_value(task_type),
                display_name=display_name or "",
                description=description or "",
                labels=labels or {},
            ),
            update_mask={"paths": [field for field, value in changes.items() if value is not None]},
            etag=etag,
        )
        # With an etag a repetition would meet its own first attempt as a conflict.
        return (await self._call(self.registry.UpdateModel, request, timeout, idempotent=not etag)).model

    async def delete_model(
        self, name: str, *, force: bool = False, etag: str = "", timeout: float | None = None
    ) -> None:
        """Deletes a model; with `force` its versions too. VersionInUse while any of them is loaded."""
        request = requests.build(registry_pb2.DeleteModelRequest, name=name, etag=etag, force=force)
        await self._call(self.registry.DeleteModel, request, timeout, idempotent=False)

    async def set_alias(
        self,
        name: str,
        alias: str,
        version: str,
        *,
        require_verified: bool = False,
        etag: str = "",
        timeout: float | None = None,
    ) -> registry_pb2.Model:
        """Points an alias at a version; an empty `version` removes it. `require_verified` hashes the version's files
        first: ChecksumMismatch."""
        request = requests.build(
            registry_pb2.SetAliasRequest,
            name=name,
            alias=alias,
            version=version,
            etag=etag,
            require_verified=require_verified,
        )
        return (await self._call(self.registry.SetAlias, request, timeout, idempotent=not etag)).model

    async def alias_changes(
        self, model: str, *, alias: str = "", page_size: int = 100, timeout: float | None = None
    ) -> AsyncIterator[registry_pb2.AliasChange]:
        """Every move of a model's aliases, newest first, also after it was deleted; of one alias, or of all."""
        request = requests.build(registry_pb2.ListAliasChangesRequest, parent=model, alias=alias, page_size=page_size)
        async for page in self._pages(self.registry.ListAliasChanges, request, timeout):
            for item in page.changes:
                yield item

    async def audit_entries(
        self, *, filter: str = "", page_size: int = 100, timeout: float | None = None
    ) -> AsyncIterator[registry_pb2.AuditEntry]:
        """Who did which admin RPC on what, newest first. For admins."""
        request = requests.build(registry_pb2.ListAuditEntriesRequest, filter=filter, page_size=page_size)
        async for page in self._pages(self.registry.ListAuditEntries, request, timeout):
            for item in page.entries:
                yield item

    async def storage_use(self, *, timeout: float | None = None) -> registry_pb2.GetStorageUseResponse:
        """How many models and versions there are, and what their files take."""
        return await self._call(self.registry.GetStorageUse, registry_pb2.GetStorageUseRequest(), timeout)

    async def resolve(self, reference: str, *, timeout: float | None = None) -> registry_pb2.ModelVersion:
        """The immutable version that a reference means now. VersionNotReady."""
        request = requests.build(registry_pb2.ResolveModelRequest, reference=reference)
        return (await self._call(self.registry.ResolveModel, request, timeout)).model_version

    # Registry: versions.

    async def create_version(
        self,
        model: str,
        version: str,
        *,
        path: str | None = None,
        hub: str | None = None,
        revision: str | None = None,
        empty: bool = False,
        engine: str = "",
        task_type: str | int | None = None,
        engine_options: Mapping[str, Any] | None = None,
        memory_bytes: int | None = None,
        accelerator_memory_bytes: int | None = None,
        cpu_threads: int | None = None,
        expected_checksums: Mapping[str, str] | None = None,
        request_id: str | None = None,
        validate_only: bool = False,
        timeout: float | None = None,
    ) -> registry_pb2.ModelVersion:
        """Registers a version of a model that exists; answers at once, in CREATING. See `wait_ready`. VersionExists."""
        request = requests.build(
            registry_pb2.CreateModelVersionRequest,
            parent=model,
            model_version=requests.build(
                registry_pb2.ModelVersion,
                _at="model_version",
                version=version,
                engine=engine,
                task_type=requests.task_type_value(task_type),
                source=requests.source_of(path=path, hub=hub, revision=revision, empty=empty),
                engine_options=requests.options_of(engine_options),
                resource_requirements=requests.requirements_of(memory_bytes, accelerator_memory_bytes, cpu_threads),
            ),
            expected_checksums=expected_checksums or {},
            request_id=request_id or str(uuid.uuid4()),
            validate_only=validate_only,
        )
        return (await self._call(self.registry.CreateModelVersion, request, timeout)).model_version

    async def import_model(
        self,
        model_id: str = "",
        version: str = "",
        *,
        path: str | None = None,
        hub: str | None = None,
        revision: str | None = None,
        url: str | None = None,
        files: Sequence[str] = (),
        empty: bool = False,
        engine: str = "",
        task_type: str | int | None = None,
        engine_options: Mapping[str, Any] | None = None,
        memory_bytes: int | None = None,
        accelerator_memory_bytes: int | None = None,
        cpu_threads: int | None = None,
        expected_checksums: Mapping[str, str] | None = None,
        request_id: str | None = None,
        validate_only: bool = False,
        left_out: list[str] | None = None,
        timeout: float | None = None,
    ) -> registry_pb2.ModelVersion:
        """Registers the model if it is new and a version from a folder of the server (`path`), the Hub (`hub`,
        `revision`), a folder at a URL (`url`, s3:// or https://, `files` below it) or without files (`empty`).
        Answers at once, in CREATING; see `wait_ready` and `watch_version`.
        """
        request = requests.build(
            registry_pb2.ImportModelRequest,
            model_id=model_id,
            version=version,
            source=requests.source_of(path=path, hub=hub, revision=revision, empty=empty, url=url, files=files),
            engine=engine,
            task_type=requests.task_type_value(task_type),
            engine_options=requests.options_of(engine_options),
            resource_requirements=requests.requirements_of(memory_bytes, accelerator_memory_bytes, cpu_threads),
            expected_checksums=expected_checksums or {},
            request_id=request_id or str(uuid.uuid4()),
            validate_only=validate_only,
        )
        response = await self._call(self.registry.ImportModel, request, timeout)
        if left_out is not None:
            left_out += response.left_out_files
        return response.model_version

    async def get_version(self, name: str, *, timeout: float | None = None) -> registry_pb2.ModelVersion:
        """ModelNotFound, VersionNotFound."""
        request = requests.build(registry_pb2.GetModelVersionRequest, name=name)
        return (await self._call(self.registry.GetModelVersion, request, timeout)).model_version

    async def list_versions(
        self, model: str, *, filter: str = "", order_by: str = "", page_size: int = 100, timeout: float | None = None
    ) -> AsyncIterator[registry_pb2.ModelVersion]:
        """All versions of a model, newest first, fetched page by page; `timeout` is that of one page."""
        request = requests.build(
            registry_pb2.ListModelVersionsRequest, parent=model, page_size=page_size, filter=filter, order_by=order_by
        )
        async for page in self._pages(self.registry.ListModelVersions, request, timeout):
            for item in page.model_versions:
                yield item

    def watch_version(
        self, name: str, *, cursor: str = "", timeout: float | None = None
    ) -> AsyncIterator[registry_pb2.WatchModelVersionResponse]:
        """The version now and after every change, until it is READY, FAILED or deleted. Without `timeout` for ever."""
        return self._watch(
            self.registry.WatchModelVersion,
            lambda cursor: requests.build(registry_pb2.WatchModelVersionRequest, name=name, cursor=cursor),
            cursor,
            timeout,
        )

    async def wait_ready(
        self,
        name: str,
        *,
        on_change: Callable[[registry_pb2.ModelVersion], object] | None = None,
        timeout: float | None = None,
    ) -> registry_pb2.ModelVersion:
        """Waits until a version is READY. Raises what made it fail, for example ChecksumMismatch. Without `timeout` it
        waits as long as the import takes.
        """
        async for event in self.watch_version(name, timeout=timeout):
            if event.deleted:
                raise errors.VersionNotFound(f"{name} was deleted")
            if on_change is not None:
                on_change(event.model_version)
            if event.model_version.state == registry_pb2.MODEL_VERSION_STATE_READY:
                return event.model_version
            if event.model_version.state == registry_pb2.MODEL_VERSION_STATE_FAILED:
                raise requests.error_from_failure(event.model_version.failure)
        raise errors.VersionNotReady(f"the server ended the watch of {name} before it was ready")

    async def update_version(
        self,
        name: str,
        *,
        labels: Mapping[str, str] | None = None,
        metrics: Mapping[str, float] | None = None,
        archived: bool | None = None,
        etag: str = "",
        timeout: float | None = None,
    ) -> registry_pb2.ModelVersion:
        """Changes what is given. What is archived is neither `latest` nor selected. Conflict when `etag` is stale."""
        changes = {"labels": labels, "metrics": metrics, "archive_time": archived}
        request = requests.build(
            registry_pb2.UpdateModelVersionRequest,
            model_version=requests.build(
                registry_pb2.ModelVersion, _at="model_version", name=name, labels=labels or {}, metrics=metrics or {}
            ),
            update_mask={"paths": [field for field, value in changes.items() if value is not None]},
            archived=bool(archived),
            etag=etag,
        )
        return (await self._call(self.registry.UpdateModelVersion, request, timeout, idempotent=not etag)).model_version

    async def select_version(
        self,
        model: str,
        *,
        metric: str = "",
        threshold: float | None = None,
        secondary: Mapping[str, float] | None = None,
        max_size_bytes: int = 0,
        prefer_latest: bool = True,
        lower_is_better: bool = False,
        timeout: float | None = None,
    ) -> registry_pb2.SelectModelVersionResponse:
        """The version that meets the criteria best, and why each other one does not."""
        request = requests.build(
            registry_pb2.SelectModelVersionRequest,
            name=model,
            primary_metric=metric,
            metric_threshold=threshold,
            secondary_metrics=secondary or {},
            max_size_bytes=max_size_bytes,
            prefer_latest=prefer_latest,
            lower_is_better=lower_is_better,
        )
        return await self._call(self.registry.SelectModelVersion, request, timeout)

    async def delete_version(
        self, name: str, *, force: bool = False, etag: str = "", timeout: float | None = None
    ) -> None:
        """VersionIsCurrent unless `force`; VersionInUse while it is loaded."""
        request = requests.build(registry_pb2.DeleteModelVersionRequest, name=name, etag=etag, force=force)
        await self._call(self.registry.DeleteModelVersion, request, timeout, idempotent=False)

    async def verify_version(
        self, name: str, *, full: bool = False, timeout: float | None = None
    ) -> AsyncIterator[registry_pb2.VerifyModelVersionResponse]:
        """What was found of each file of a version, then one answer with `done`. `full` hashes every file. Without
        `timeout` it takes what it takes.
        """
        request = requests.build(registry_pb2.VerifyModelVersionRequest, name=name, full=full)
        async for answer in self._stream(self.registry.VerifyModelVersion, request, timeout or LONG_SECONDS):
            yield answer

    # Locks. A lock is given by its name or by its YAML.

    async def create_lock(
        self,
        *models: str,
        lock_id: str = "",
        yaml: str = "",
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> registry_pb2.CreateModelLockResponse:
        """The lock of these models (none: all current versions), or one from YAML, with its text. LockExists."""
        request = requests.build(
            registry_pb2.CreateModelLockRequest,
            models=models,
            lock_id=lock_id,
            yaml=yaml,
            request_id=request_id or str(uuid.uuid4()),
        )
        return await self._call(self.registry.CreateModelLock, request, timeout)

    async def get_lock(self, name: str, *, timeout: float | None = None) -> registry_pb2.ModelLock:
        """LockNotFound."""
        request = requests.build(registry_pb2.GetModelLockRequest, name=name)
        return (await self._call(self.registry.GetModelLock, request, timeout)).model_lock

    async def render_lock(self, name: str, *, timeout: float | None = None) -> str:
        """The lock as YAML. LockNotFound."""
        request = requests.build(registry_pb2.RenderModelLockRequest, name=name)
        return (await self._call(self.registry.RenderModelLock, request, timeout)).yaml

    async def list_locks(
        self, *, page_size: int = 100, timeout: float | None = None
    ) -> AsyncIterator[registry_pb2.ModelLock]:
        """All locks by name, without their models, fetched page by page."""
        request = requests.build(registry_pb2.ListModelLocksRequest, page_size=page_size)
        async for page in self._pages(self.registry.ListModelLocks, request, timeout):
            for item in page.model_locks:
                yield item

    async def delete_lock(self, name: str, *, timeout: float | None = None) -> None:
        """LockNotFound."""
        request = requests.build(registry_pb2.DeleteModelLockRequest, name=name)
        await self._call(self.registry.DeleteModelLock, request, timeout, idempotent=False)

    async def verify_lock(
        self, lock: str, *, full: bool = False, timeout: float | None = None
    ) -> AsyncIterator[registry_pb2.VerifyModelLockResponse]:
        """What drifted of each model, then one answer with `done`. Without `timeout` it takes what it takes."""
        fields = requests.lock_fields(lock, "name", "yaml")
        request = requests.build(registry_pb2.VerifyModelLockRequest, full=full, **fields)
        async for answer in self._stream(self.registry.VerifyModelLock, request, timeout or LONG_SECONDS):
            yield answer

    async def diff_locks(self, left: str, right: str, *, timeout: float | None = None) -> list[registry_pb2.Drift]:
        """What differs between two locks."""
        fields = requests.lock_fields(left, "left_name", "left_yaml")
        fields |= requests.lock_fields(right, "right_name", "right_yaml")
        request = requests.build(registry_pb2.DiffModelLocksRequest, **fields)
        return list((await self._call(self.registry.DiffModelLocks, request, timeout)).drifts)

    async def apply_lock(
        self, lock: str, *, mirror: str = "", promote: bool = False, timeout: float | None = None
    ) -> AsyncIterator[registry_pb2.ApplyModelLockResponse]:
        """Imports what is missing; tells how far it is, what became of each model, then one answer with `done`."""
        fields = requests.lock_fields(lock, "name", "yaml")
        request = requests.build(registry_pb2.ApplyModelLockRequest, mirror=mirror, promote=promote, **fields)
        async for answer in self._stream(self.registry.ApplyModelLock, request, timeout or LONG_SECONDS):
            yield answer

    # Links to other registries.

    async def create_link(
        self, model: str, registry_type: str, external_id: str, *, timeout: float | None = None
    ) -> registry_pb2.ExternalLink:
        """`registry_type` is `huggingface` (`external_id` org/repo) or `folder` (a path of the server). LinkExists."""
        wanted = requests.build(
            registry_pb2.ExternalLink, _at="external_link", registry_type=registry_type, external_id=external_id
        )
        request = requests.build(registry_pb2.CreateExternalLinkRequest, parent=model, external_link=wanted)
        return (await self._call(self.registry.CreateExternalLink, request, timeout, idempotent=False)).external_link

    async def get_link(self, name: str, *, timeout: float | None = None) -> registry_pb2.ExternalLink:
        """LinkNotFound."""
        request = requests.build(registry_pb2.GetExternalLinkRequest, name=name)
        return (await self._call(self.registry.GetExternalLink, request, timeout)).external_link

    async def list_links(
        self, model: str, *, page_size: int = 100, timeout: float | None = None
    ) -> AsyncIterator[registry_pb2.ExternalLink]:
        """All links of a model, oldest first, fetched page by page."""
        request = requests.build(registry_pb2.ListExternalLinksRequest, parent=model, page_size=page_size)
        async for page in self._pages(self.registry.ListExternalLinks, request, timeout):
            for link in page.external_links:
                yield link

    async def delete_link(self, name: str, *, etag: str = "", timeout: float | None = None) -> None:
        """LinkNotFound, Conflict."""
        request = requests.build(registry_pb2.DeleteExternalLinkRequest, name=name, etag=etag)
        await self._call(self.registry.DeleteExternalLink, request, timeout, idempotent=False)

    async def check_link(self, name: str, *, timeout: float | None = None) -> registry_pb2.ExternalLink:
        """Compares the other side with what is here. SourceUnavailable."""
        request = requests.build(registry_pb2.CheckExternalLinkRequest, name=name)
        return (await self._call(self.registry.CheckExternalLink, request, timeout)).external_link

    async def export_version(
        self, version: str, link: str, *, overwrite: bool = False, timeout: float | None = None
    ) -> registry_pb2.ExternalLink:
        """Copies a version to the other side, whole or not at all. After `timeout` it still runs to its end there.
        `overwrite`: also over files that are not as an export left them."""
        request = requests.build(
            registry_pb2.ExportModelVersionRequest, name=version, external_link=link, overwrite=overwrite
        )
        return (await self._call(self.registry.ExportModelVersion, request, timeout)).external_link

    async def cancel_import(self, name: str, *, timeout: float | None = None) -> registry_pb2.ModelVersion:
        """Ends an import; nothing of its files stays. IllegalTransition when it is not CREATING."""
        request = requests.build(registry_pb2.CancelImportRequest, name=name)
        return (await self._call(self.registry.CancelImport, request, timeout, idempotent=False)).model_version

    # Lifecycle.

    async def load(
        self, model: str, *, wait: bool = True, pin: bool = False, timeout: float | None = None
    ) -> lifecycle_pb2.Replica:
        """Brings a version into memory. NeverFits, MemoryBusy, LoadFailed. Embed loads by itself when it must."""
        request = requests.build(lifecycle_pb2.LoadModelRequest, model=model, wait=wait, pin=pin)
        return (await self._call(self.lifecycle.LoadModel, request, timeout)).replica

    async def unload(
        self, model: str, *, force: bool = False, wait: bool = True, timeout: float | None = None
    ) -> list[lifecycle_pb2.Replica]:
        """Ends the processes of a version. VersionInUse while it is busy, unless `force`. ReplicaNotFound."""
        request = requests.build(lifecycle_pb2.UnloadModelRequest, model=model, force=force, wait=wait)
        return list((await self._call(self.lifecycle.UnloadModel, request, timeout, idempotent=False)).replicas)

    async def get_replica(self, name: str, *, timeout: float | None = None) -> lifecycle_pb2.Replica:
        """ReplicaNotFound."""
        return (
            await self._call(
                self.lifecycle.GetReplica, requests.build(lifecycle_pb2.GetReplicaRequest, name=name), timeout
            )
        ).replica

    async def list_replicas(
        self, *, filter: str = "", page_size: int = 100, timeout: float | None = None
    ) -> AsyncIterator[lifecycle_pb2.Replica]:
        """What is in memory, fetched page by page."""
        request = requests.build(lifecycle_pb2.ListReplicasRequest, page_size=page_size, filter=filter)
        async for page in self._pages(self.lifecycle.ListReplicas, request, timeout):
            for item in page.replicas:
                yield item

    def watch_replicas(
        self, *, cursor: str = "", timeout: float | None = None
    ) -> AsyncIterator[lifecycle_pb2.WatchReplicasResponse]:
        """Every replica as it is now, then each transition. After `reset` everything known before is void."""
        return self._watch(
            self.lifecycle.WatchReplicas,
            lambda cursor: requests.build(lifecycle_pb2.WatchReplicasRequest, cursor=cursor),
            cursor,
            timeout,
        )

    async def memory(self, *, timeout: float | None = None) -> list[lifecycle_pb2.DeviceLedger]:
        """Budget, charges and free bytes of each device."""
        return list((await self._call(self.lifecycle.GetMemory, lifecycle_pb2.GetMemoryRequest(), timeout)).devices)

    async def explain(
        self, model: str, *, priority: str | int | None = None, timeout: float | None = None
    ) -> lifecycle_pb2.Placement:
        """What would happen if it were wanted now: it fits, after which evictions, when, or why never."""
        request = requests.build(
            lifecycle_pb2.ExplainPlacementRequest, model=model, priority=requests.priority_value(priority)
        )
        return (await self._call(self.lifecycle.ExplainPlacement, request, timeout)).placement

    async def eviction_decisions(
        self, *, filter: str = "", page_size: int = 100, timeout: float | None = None
    ) -> AsyncIterator[lifecycle_pb2.EvictionDecision]:
        """Past decisions with all they were made from, newest first, fetched page by page."""
        request = requests.build(lifecycle_pb2.ListEvictionDecisionsRequest, page_size=page_size, filter=filter)
        async for page in self._pages(self.lifecycle.ListEvictionDecisions, request, timeout):
            for item in page.decisions:
                yield item

    async def export_trace(
        self, *, start_time: datetime | None = None, timeout: float | None = None
    ) -> AsyncIterator[lifecycle_pb2.AcquireEvent]:
        """What was wanted and used on this node, oldest first: the input of `simulate`."""
        request = requests.build(lifecycle_pb2.ExportTraceRequest, start_time=start_time)
        async for page in self._stream(self.lifecycle.ExportTrace, request, timeout):
            for item in page.events:
                yield item

    async def simulate(
        self,
        events: Iterable[lifecycle_pb2.AcquireEvent],
        *,
        policies: Sequence[str] = (),
        budget: Mapping[str, int] | None = None,
        timeout: float | None = None,
    ) -> list[lifecycle_pb2.SimulationResult]:
        """Replays a trace once per policy (none: all), with a budget in bytes by device (none: the node's)."""
        request = requests.build(
            lifecycle_pb2.SimulatePlacementRequest,
            events=events,
            policies=policies,
            budget=requests.device_memory(budget or {}),
        )
        return list((await self._call(self.lifecycle.SimulatePlacement, request, timeout)).results)

    async def get_residency(self, model: str, *, timeout: float | None = None) -> lifecycle_pb2.Residency:
        """How a version is kept in memory."""
        request = requests.build(lifecycle_pb2.GetResidencyRequest, model=model)
        return (await self._call(self.lifecycle.GetResidency, request, timeout)).residency

    async def update_residency(
        self,
        model: str,
        *,
        pinned: bool | None = None,
        keep_alive: float | Literal["default"] | None = None,
        min_replicas: int | None = None,
        max_replicas: int | None = None,
        preload: bool | None = None,
        revision: int = 0,
        timeout: float | None = None,
    ) -> lifecycle_pb2.Residency:
        """Changes what is given, at once and durably. `keep_alive` in seconds; `"default"`: the node's idle time to
        live. Conflict when `revision` is given and stale.
        """
        request = requests.residency_update(
            model,
            pinned=pinned,
            keep_alive=keep_alive,
            min_replicas=min_replicas,
            max_replicas=max_replicas,
            preload=preload,
            revision=revision,
        )
        return (await self._call(self.lifecycle.UpdateResidency, request, timeout, idempotent=not revision)).residency

    async def list_residencies(
        self, *, page_size: int = 100, timeout: float | None = None
    ) -> AsyncIterator[lifecycle_pb2.Residency]:
        """Of every version that anything was ever said of, fetched page by page."""
        request = requests.build(lifecycle_pb2.ListResidenciesRequest, page_size=page_size)
        async for page in self._pages(self.lifecycle.ListResidencies, request, timeout):
            for item in page.residencies:
                yield item

    async def get_node(self, *, timeout: float | None = None) -> lifecycle_pb2.Node:
        """The state of the node and its settings that change while it runs."""
        return (await self._call(self.lifecycle.GetNode, lifecycle_pb2.GetNodeRequest(), timeout)).node

    async def update_node(
        self,
        *,
        budgets: Mapping[str, int | float] | None = None,
        policy: str | None = None,
        idle_ttl: float | Literal["default"] | None = None,
        load_concurrency: int | None = None,
        revision: int = 0,
        timeout: float | None = None,
    ) -> lifecycle_pb2.UpdateNodeResponse:
        """Changes what is given, at once and durably; the answer has warnings. `budgets` by device: bytes (int) or a
        share (float, at most 1.0); an empty mapping and an empty `policy` go back to the settings.
        """
        request = requests.node_update(
            budgets=budgets, policy=policy, idle_ttl=idle_ttl, load_concurrency=load_concurrency, revision=revision
        )
        return await self._call(self.lifecycle.UpdateNode, request, timeout, idempotent=not revision)

    async def drain_node(
        self, *, wait: bool = False, reason: str = "", timeout: float | None = None
    ) -> lifecycle_pb2.DrainNodeResponse:
        """Cordons the node and empties its memory; with `wait` it answers when nothing is left."""
        request = requests.build(lifecycle_pb2.DrainNodeRequest, wait=wait, reason=reason)
        return await self._call(self.lifecycle.DrainNode, request, timeout)

    async def uncordon_node(self, *, timeout: float | None = None) -> lifecycle_pb2.Node:
        """Takes the cordon back."""
        return (await self._call(self.lifecycle.UncordonNode, lifecycle_pb2.UncordonNodeRequest(), timeout)).node

    # Lifecycle: engine profiles.

    async def tune(
        self,
        model: str,
        candidates: Sequence[str] = (),
        *,
        apply: bool = False,
        gate: float | None = None,
        timeout: float | None = None,
    ) -> lifecycle_pb2.Tuning:
        """Begins to measure engine profiles (`torch/bf16`; none: all its engine has) and answers at once; with `apply`
        the fastest within the accuracy `gate` becomes current. Joins a tuning that runs. See `watch_tuning`."""
        request = requests.build(
            lifecycle_pb2.TuneModelVersionRequest,
            model=model,
            candidates=list(candidates),
            apply=apply,
            accuracy_gate=gate,
        )
        return (await self._call(self.lifecycle.TuneModelVersion, request, timeout)).tuning

    async def get_tuning(self, name: str, *, timeout: float | None = None) -> lifecycle_pb2.Tuning:
        """TuningNotFound."""
        request = requests.build(lifecycle_pb2.GetTuningRequest, name=name)
        return (await self._call(self.lifecycle.GetTuning, request, timeout)).tuning

    async def watch_tuning(self, name: str, *, timeout: float | None = None) -> AsyncIterator[lifecycle_pb2.Tuning]:
        """A tuning as it is now and after every change, until it has ended. Without `timeout` as long as it takes."""
        request = requests.build(lifecycle_pb2.WatchTuningRequest, name=name)
        async for event in self._watch(self.lifecycle.WatchTuning, lambda _: request, "", timeout):
            yield event.tuning

    async def list_tunings(
        self, model: str = "", *, page_size: int = 100, timeout: float | None = None
    ) -> AsyncIterator[lifecycle_pb2.Tuning]:
        """What was tuned, newest first, fetched page by page."""
        request = requests.build(lifecycle_pb2.ListTuningsRequest, model=model, page_size=page_size)
        async for page in self._pages(self.lifecycle.ListTunings, request, timeout):
            for item in page.tunings:
                yield item

    async def set_engine_profile(
        self, model: str, profile: str = "", *, etag: str = "", timeout: float | None = None
    ) -> registry_pb2.ModelVersion:
        """Makes a profile (`torch/bf16`; empty: the exact one) current for a version. Conflict when `etag` is stale."""
        request = requests.build(registry_pb2.SetEngineProfileRequest, name=model, etag=etag)
        if profile:
            request.engine_profile.backend, _, request.engine_profile.precision = profile.partition("/")
        answer = await self._call(self.registry.SetEngineProfile, request, timeout, idempotent=not etag)
        return answer.model_version

    # Observability.

    async def health(self, *, timeout: float | None = None) -> observability_pb2.GetHealthResponse:
        """The state of every component."""
        return await self._call(self.observability.GetHealth, observability_pb2.GetHealthRequest(), timeout)

    async def system(self, *, timeout: float | None = None) -> observability_pb2.GetSystemInfoResponse:
        """Versions and hardware."""
        return await self._call(self.observability.GetSystemInfo, observability_pb2.GetSystemInfoRequest(), timeout)

    async def devices(self, *, timeout: float | None = None) -> list[observability_pb2.Device]:
        """Main memory and accelerators."""
        request = observability_pb2.ListDevicesRequest()
        return list((await self._call(self.observability.ListDevices, request, timeout)).devices)

    async def storage(self, *, timeout: float | None = None) -> observability_pb2.StorageInfo:
        """Disk space under the data folder."""
        request = observability_pb2.GetStorageInfoRequest()
        return (await self._call(self.observability.GetStorageInfo, request, timeout)).storage

    async def wait_serving(self, service: str = "", *, timeout: float | None = None) -> None:
        """Returns as soon as the server, or one full service name, is SERVING (grpc.health.v1); connects until then.
        DeadlineExceeded.
        """
        deadline = self._deadline(timeout)
        watch: Any = self.channel.unary_stream("/grpc.health.v1.Health/Watch")  # bytes in, bytes out
        request = requests.health_check(service)
        while (remaining := deadline - time.monotonic()) > 0:
            stream = self._begin(watch, request, remaining, wait_for_ready=True)
            try:
                async for answer in stream:
                    if requests.is_serving(answer):
                        return
            except grpc.aio.AioRpcError as failure:
                error = error_from_rpc(failure)
                if not isinstance(error, errors.Unavailable | errors.DeadlineExceeded):
                    raise error from failure
            finally:
                stream.cancel()
            await asyncio.sleep(min(0.05, remaining))  # the connection was lost, or the server is stopping
        raise errors.DeadlineExceeded(f"{self.target} was not serving in time")

    # How calls are made.

    async def _call(
        self, rpc: Callable[..., Awaitable[T]], request: Any, timeout: float | None, *, idempotent: bool = True
    ) -> T:
        return await self._until(self._deadline(timeout), rpc, request, idempotent=idempotent)

    async def _until(
        self, deadline: float, rpc: Callable[..., Awaitable[T]], request: Any, *, idempotent: bool = True
    ) -> T:
        attempt, began, before = 0, time.monotonic(), None
        while True:
            attempt += 1
            try:
                answer = await self._begin(rpc, request, deadline - time.monotonic())
            except grpc.aio.AioRpcError as failure:
                error = error_from_rpc(failure)
                if not idempotent:
                    raise error from failure
            else:
                self._budget.succeeded()
                return answer
            await asyncio.sleep(self._pause_seconds(error, attempt, began, deadline, before))
            before = error

    def _begin(self, rpc: Callable[..., T], request: Any, seconds: float, **options: Any) -> T:
        try:
            return rpc(request, timeout=max(seconds, 0.0), metadata=self.metadata, **options)
        except grpc.aio.UsageError as error:  # the channel was closed
            raise errors.ClientClosed() from error

    async def _pages(self, rpc: Callable[..., Awaitable[T]], request: Any, timeout: float | None) -> AsyncIterator[T]:
        while True:
            page: Any = await self._call(rpc, request, timeout)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def _stream(self, rpc: Callable[..., Any], request: Any, timeout: float | None) -> AsyncIterator[Any]:
        stream = self._begin(rpc, request, self._deadline(timeout) - time.monotonic())
        try:
            async for answer in stream:
                yield answer
        except grpc.aio.AioRpcError as failure:
            raise error_from_rpc(failure) from failure
        finally:
            stream.cancel()

    async def _watch(
        self, rpc: Callable[..., Any], request: Callable[[str], Any], cursor: str, timeout: float | None
    ) -> AsyncIterator[Any]:
        deadline = float("inf") if timeout is None else self._deadline(timeout)
        attempt, heard = 0, time.monotonic()
        while True:
            attempt, began = attempt + 1, time.monotonic()
            stream = self._begin(rpc, request(cursor), min(deadline - time.monotonic(), WATCH_SECONDS))
            try:
                async for event in stream:
                    attempt, cursor, heard = 0, getattr(event, "cursor", "") or cursor, time.monotonic()
                    self._budget.succeeded()
                    yield event
                return
            except grpc.aio.AioRpcError as failure:
                error = error_from_rpc(failure)
            finally:
                stream.cancel()
            if time.monotonic() - began > CONNECTED_SECONDS:
                attempt, heard = 0, time.monotonic()
            await asyncio.sleep(self._watch_pause_seconds(error, attempt, heard, deadline))
