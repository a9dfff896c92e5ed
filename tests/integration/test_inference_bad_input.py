"""Bad input, RPC by RPC, of all three protocols in a real host: what the tables beside each topic leave open, and that
no RPC is without a row in some table."""

from __future__ import annotations

import math
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from integration import test_inference_oip, test_inference_tei
from integration.inference_rig import Rig, rig, version_of
from integration.test_inference_jobs import Jobs, migrated
from modelmora import errors
from modelmora.common.v1 import common_pb2
from modelmora.inference.v1 import inference_pb2 as pb
from modelmora.registry.v1 import registry_pb2
from modelmora.status import error_from_rpc
from modelmora_inference.predict import packed
from modelmora_inference.protocols import oip_pb2 as oip
from modelmora_inference.protocols import oip_pb2_grpc
from modelmora_inference.protocols import tei_pb2 as tei

ECHO, RANKER, SORTER, READER, TALKER, SEER = (
    f"acme/{name}" for name in ("echo", "ranker", "sorter", "reader", "talker", "seer")
)
NOBODY = "acme/nobody"
NATIVE = "modelmora.inference.v1.InferenceService"
ABSENT = "jobs/01890a5d-ac96-774b-bcce-b302099a8057"
BYTES, FP32 = common_pb2.DATA_TYPE_BYTES, common_pb2.DATA_TYPE_FP32
MIB = 1024 * 1024
UNREADABLE = "x"


@pytest.fixture
async def made(data_dir: Path, database_url: str) -> AsyncIterator[Rig]:
    models = {ECHO: {}, RANKER: {}, SORTER: {"labels": 3}, READER: {}, TALKER: {}, SEER: {"labels": 2}}
    async with rig(data_dir, models, database_url=database_url) as made:
        types = made.resolver.task_types
        types[version_of(RANKER)] = common_pb2.TASK_TYPE_RERANKING
        types[version_of(SORTER)] = types[version_of(SEER)] = common_pb2.TASK_TYPE_CLASSIFICATION
        types[version_of(READER)] = common_pb2.TASK_TYPE_QUESTION_ANSWERING
        types[version_of(TALKER)] = common_pb2.TASK_TYPE_TXT2TXT
        made.resolver.metadata[version_of(SEER)] = registry_pb2.ModelMetadata(modality="image", labels=["cat", "dog"])
        await migrated(Jobs(made))
        yield made


def named(name: str, *elements: bytes, data: bytes | None = None, **fields: Any) -> pb.NamedTensor:
    data = packed(elements) if data is None else data
    tensor = common_pb2.Tensor(**{"data_type": BYTES, "shape": [len(elements)], "data": data, **fields})
    return pb.NamedTensor(name=name, tensor=tensor)


def predict(*inputs: pb.NamedTensor, parameters: dict[str, Any] | None = None, **fields: Any) -> pb.PredictRequest:
    request = pb.PredictRequest(**{"model": ECHO, "inputs": inputs, **fields})
    request.parameters.update(parameters or {})
    return request


def job(**fields: Any) -> pb.CreateInferenceJobRequest:
    return pb.CreateInferenceJobRequest(**{"model": ECHO, **fields})


def predicts(*inputs: pb.NamedTensor, parameters: dict[str, Any] | None = None) -> pb.CreateInferenceJobRequest:
    task = pb.PredictTask(inputs=[pb.PredictInput(inputs=inputs)])
    task.parameters.update(parameters or {})
    return job(predict=task)


def embed(**fields: Any) -> pb.EmbedRequest:
    return pb.EmbedRequest(**{"model": ECHO, "texts": ["a"], **fields})


T = named("texts", b"a")
NOT_A_NUMBER = struct.pack("<f", math.nan)
WRONG, NO_MODEL, NO_TASK = errors.InvalidArgument, errors.ModelNotFound, errors.TaskNotSupported

EMBEDS: list[tuple[Any, type[errors.ModelMoraError], str]] = [
    (embed(model=NOBODY), NO_MODEL, ""),
    (embed(model=SORTER), NO_TASK, ""),
    (embed(cold_policy=9), WRONG, "cold_policy"),
    (embed(request_id="x" * 201), WRONG, "request_id"),
    (embed(prompt_name="x" * 201), WRONG, "prompt_name"),
    (embed(prompt_name="query"), WRONG, "prompt_name"),
    (embed(dimensions=2**31 - 1), WRONG, "dimensions"),
    (embed(fallback_model="x" * 401), WRONG, "fallback_model"),
    (embed(fallback_model=NOBODY), NO_MODEL, ""),
    (embed(fallback_model=RANKER), NO_TASK, ""),
]
"""Of Embed, and of a call in StreamEmbed."""

NATIVES: list[tuple[str, Any, type[errors.ModelMoraError], str]] = [
    *(("Embed", *row) for row in EMBEDS),
    ("Rerank", pb.RerankRequest(model=NOBODY, query="q", texts=["a"]), NO_MODEL, ""),
    ("Rerank", pb.RerankRequest(model=ECHO, query="q", texts=["a"]), NO_TASK, ""),
    (
        "Rerank",
        pb.RerankRequest(model=RANKER, query="q", texts=["a"], fallback_model="x" * 401),
        WRONG,
        "fallback_model",
    ),
    ("Classify", pb.ClassifyRequest(model=NOBODY, texts=["a"]), NO_MODEL, ""),
    ("Classify", pb.ClassifyRequest(model=ECHO, texts=["a"]), NO_TASK, ""),
    ("Classify", pb.ClassifyRequest(model=SEER, texts=["a"]), NO_TASK, ""),
    ("AnswerQuestion", pb.AnswerQuestionRequest(model=NOBODY, question="q", context="c"), NO_MODEL, ""),
    ("AnswerQuestion", pb.AnswerQuestionRequest(model=ECHO, question="q", context="c"), NO_TASK, ""),
    ("Tokenize", pb.TokenizeRequest(model=NOBODY, texts=["a"]), NO_MODEL, ""),
    ("Tokenize", pb.TokenizeRequest(model=SEER, texts=["a"]), NO_TASK, ""),
    ("Predict", predict(T, model=NOBODY), NO_MODEL, ""),
    ("Predict", predict(T, model=TALKER), NO_TASK, ""),
    ("Predict", predict(), WRONG, "inputs"),
    ("Predict", predict(*[T] * 65), WRONG, "inputs"),
    ("Predict", predict(named("images", b"a")), WRONG, "inputs[0].name"),
    ("Predict", predict(named("texts", b"a", shape=[1, 1])), WRONG, "inputs[0].tensor.shape"),
    ("Predict", predict(named("texts", b"a", shape=[2**62])), WRONG, "inputs[0].tensor.shape[0]"),
    ("Predict", predict(named("texts", shape=[-1])), WRONG, "inputs[0].tensor.shape[0]"),
    (
        "Predict",
        predict(named("texts", data_type=FP32, shape=[1], data=NOT_A_NUMBER)),
        WRONG,
        "inputs[0].tensor.data_type",
    ),
    ("Predict", predict(named("texts", data=b"\5\0\0\0ab", shape=[1])), WRONG, "inputs[0].tensor.data"),
    ("Predict", predict(named("texts", b"\xff\xfe")), WRONG, "inputs[0].tensor.data[0]"),
    ("Predict", predict(named("texts", b" ")), WRONG, "inputs[0].tensor.data[0]"),
    ("Predict", predict(named("texts", b"x" * (33 * MIB))), WRONG, "inputs"),
    ("Predict", predict(T, parameters={"dimensions": math.nan}), WRONG, "parameters.dimensions"),
    ("Predict", predict(T, parameters={"dimensions": 1e300}), WRONG, "parameters.dimensions"),
    ("Predict", predict(T, parameters={"colour": {"of": ["what"]}}), WRONG, "parameters.colour"),
    ("Predict", predict(T, parameters={"prompt_name": "query"}), WRONG, "parameters.prompt_name"),
    ("Predict", predict(T, parameters={"normalize": None}), WRONG, "parameters.normalize"),
    ("Predict", predict(T, model=RANKER, parameters={"normalize": True}), WRONG, "inputs"),
    ("Predict", predict(T, outputs=["vectors", "x"]), WRONG, "outputs[1]"),
    ("Predict", predict(named("images", b""), model=SEER), WRONG, "inputs[0].tensor.data[0]"),
    ("DescribeModel", pb.DescribeModelRequest(), WRONG, "model"),
    ("DescribeModel", pb.DescribeModelRequest(model="x" * 401), WRONG, "model"),
    ("DescribeModel", pb.DescribeModelRequest(model=NOBODY), NO_MODEL, ""),
    ("GetQueue", pb.GetQueueRequest(model="x" * 401), WRONG, "model"),
    ("GetQueue", pb.GetQueueRequest(model=NOBODY), NO_MODEL, ""),
    ("ExplainRequest", pb.ExplainRequestRequest(), WRONG, "request_id"),
    ("ExplainRequest", pb.ExplainRequestRequest(request_id="x" * 201), WRONG, "request_id"),
    ("ExplainRequest", pb.ExplainRequestRequest(request_id="x" * 200), errors.RequestNotFound, ""),
    ("SetTenantWeight", pb.SetTenantWeightRequest(weight=1), WRONG, "tenant"),
    ("SetTenantWeight", pb.SetTenantWeightRequest(tenant="a\0"), WRONG, "tenant"),
    ("SetTenantWeight", pb.SetTenantWeightRequest(tenant="a\nb", weight=2), WRONG, "tenant"),
    ("SetTenantWeight", pb.SetTenantWeightRequest(tenant="a/b/c", weight=2), WRONG, "tenant"),
    ("SetTenantWeight", pb.SetTenantWeightRequest(tenant="a", weight=math.nan), WRONG, "weight"),
    ("SetTenantWeight", pb.SetTenantWeightRequest(tenant="a", weight=-1), WRONG, "weight"),
    ("CreateInferenceJob", job(), WRONG, "embed"),
    ("CreateInferenceJob", job(priority=-1, embed=pb.EmbedTask(texts=["a"])), WRONG, "priority"),
    ("CreateInferenceJob", job(embed=pb.EmbedTask(texts=["a"], prompt_name="x" * 201)), WRONG, "embed.prompt_name"),
    ("CreateInferenceJob", job(embed=pb.EmbedTask(texts=["a"], prompt_name="query")), WRONG, "embed.prompt_name"),
    ("CreateInferenceJob", job(embed=pb.EmbedTask(texts=["a"], dimensions=2**31 - 1)), WRONG, "embed.dimensions"),
    ("CreateInferenceJob", job(embed=pb.EmbedTask(texts=["ж" * 100_000] * 200)), WRONG, "embed.texts"),
    ("CreateInferenceJob", job(model=NOBODY, embed=pb.EmbedTask(texts=["a"])), NO_MODEL, ""),
    ("CreateInferenceJob", job(model="x" * 401, embed=pb.EmbedTask(texts=["a"])), WRONG, "model"),
    ("CreateInferenceJob", job(model=TALKER, predict=predicts(T).predict), NO_TASK, ""),
    ("CreateInferenceJob", job(model=SEER, classify=pb.ClassifyTask(texts=["a"])), NO_TASK, ""),
    ("CreateInferenceJob", predicts(named("x", b"a")), WRONG, "predict.inputs[0].inputs[0].name"),
    (
        "CreateInferenceJob",
        predicts(named("texts", b"a", shape=[2**62])),
        WRONG,
        "predict.inputs[0].inputs[0].tensor.shape[0]",
    ),
    (
        "CreateInferenceJob",
        predicts(named("texts", data_type=FP32, shape=[1], data=NOT_A_NUMBER)),
        WRONG,
        "predict.inputs[0].inputs[0].tensor.data_type",
    ),
    (
        "CreateInferenceJob",
        predicts(named("texts", data=b"\5\0\0\0ab", shape=[1])),
        WRONG,
        "predict.inputs[0].inputs[0].tensor.data",
    ),
    ("CreateInferenceJob", predicts(named("texts", b"\xff")), WRONG, "predict.inputs[0].inputs[0].tensor.data[0]"),
    ("CreateInferenceJob", predicts(T, parameters={"dimensions": math.inf}), WRONG, "predict.parameters.dimensions"),
    ("CreateInferenceJob", predicts(T, parameters={"x" * 300: 1}), WRONG, f"predict.parameters.{'x' * 100}"),
    ("GetInferenceJob", pb.GetInferenceJobRequest(name=ABSENT), errors.JobNotFound, ""),
    ("GetInferenceJob", pb.GetInferenceJobRequest(name="jobs/x"), WRONG, "name"),
    ("CancelInferenceJob", pb.CancelInferenceJobRequest(name=ABSENT), errors.JobNotFound, ""),
    ("CancelInferenceJob", pb.CancelInferenceJobRequest(name="x"), WRONG, "name"),
    ("GetInferenceResult", pb.GetInferenceResultRequest(name=ABSENT), errors.JobNotFound, ""),
    ("GetInferenceResult", pb.GetInferenceResultRequest(name=ABSENT, page_size=-1), WRONG, "page_size"),
    ("GetInferenceResult", pb.GetInferenceResultRequest(name=ABSENT, page_token=UNREADABLE), WRONG, "page_token"),
    ("WatchInferenceJob", pb.WatchInferenceJobRequest(name=ABSENT), errors.JobNotFound, ""),
    ("WatchInferenceJob", pb.WatchInferenceJobRequest(name=ABSENT, cursor="x"), WRONG, "cursor"),
    ("ListInferenceJobs", pb.ListInferenceJobsRequest(page_size=-1), WRONG, "page_size"),
    ("ListInferenceJobs", pb.ListInferenceJobsRequest(page_token=UNREADABLE), WRONG, "page_token"),
    ("ListInferenceJobs", pb.ListInferenceJobsRequest(model="a\0"), WRONG, "model"),
]

TRITONS: list[tuple[str, Any, type[errors.ModelMoraError], str]] = [
    ("ModelReady", oip.ModelReadyRequest(), WRONG, "name"),
    ("ModelReady", oip.ModelReadyRequest(name=f"{ECHO}@1", version="1"), WRONG, "version"),
    ("ModelMetadata", oip.ModelMetadataRequest(), WRONG, "name"),
    ("ModelMetadata", oip.ModelMetadataRequest(name="x" * 401), WRONG, "name"),
    ("ModelMetadata", oip.ModelMetadataRequest(name=NOBODY), NO_MODEL, ""),
    ("ModelConfig", oip.ModelConfigRequest(name=f"{ECHO}@1", version="1"), WRONG, "version"),
    ("ModelConfig", oip.ModelConfigRequest(name=NOBODY), NO_MODEL, ""),
    ("ModelStatistics", oip.ModelStatisticsRequest(version="1"), WRONG, "version"),
    ("ModelStatistics", oip.ModelStatisticsRequest(name=NOBODY), NO_MODEL, ""),
    ("RepositoryModelLoad", oip.RepositoryModelLoadRequest(), WRONG, "model_name"),
    (
        "RepositoryModelLoad",
        oip.RepositoryModelLoadRequest(
            model_name=ECHO, parameters={"config": oip.ModelRepositoryParameter(string_param="{}")}
        ),
        WRONG,
        "parameters.config",
    ),
    ("RepositoryModelUnload", oip.RepositoryModelUnloadRequest(), WRONG, "model_name"),
    (
        "RepositoryModelUnload",
        oip.RepositoryModelUnloadRequest(
            model_name=ECHO, parameters={"now": oip.ModelRepositoryParameter(bool_param=True)}
        ),
        WRONG,
        "parameters.now",
    ),
    ("TraceSetting", oip.TraceSettingRequest(), errors.Unimplemented, ""),
    ("LogSettings", oip.LogSettingsRequest(), errors.Unimplemented, ""),
    (
        "ModelInfer",
        test_inference_oip.raw(b"a", **test_inference_oip.parameter("prompt_name", string_param="query")),
        WRONG,
        "parameters.prompt_name",
    ),
    (
        "ModelInfer",
        test_inference_oip.raw(b"a", **test_inference_oip.parameter("fallback_model", string_param="x" * 401)),
        WRONG,
        "parameters.fallback_model",
    ),
    (
        "ModelInfer",
        test_inference_oip.raw(b"a", **test_inference_oip.parameter("timeout", int64_param=-1)),
        WRONG,
        "parameters.timeout",
    ),
    ("ModelInfer", test_inference_oip.raw(b"a", model_name=TALKER), NO_TASK, ""),
]


async def refused(call: Callable[[], Any], wanted: type[errors.ModelMoraError], field: str, told: object) -> None:
    with pytest.raises((errors.ModelMoraError, grpc.aio.AioRpcError)) as caught:
        await call()
    error = caught.value
    if isinstance(error, grpc.aio.AioRpcError):
        error = error_from_rpc(error)
    assert isinstance(error, wanted), (told, error)
    assert [violation.field for violation in error.fields][:1] == ([field] if field else []), told


async def test_every_rpc_refuses_what_is_wrong_by_name_and_field(made: Rig) -> None:
    await made.right("warm up")  # What only the engine knows is known then: its prompts, its dimensions.
    for name, request, wanted, field in NATIVES:
        method = getattr(made.stub, name)

        async def call(method: Any = method, request: Any = request) -> Any:
            answer = method(request, timeout=20)
            return await (anext(aiter(answer)) if method is made.stub.WatchInferenceJob else answer)

        await refused(call, wanted, field, (name, str(request)[:200]))
    triton = oip_pb2_grpc.GRPCInferenceServiceStub(made.channel)  # type: ignore[no-untyped-call]
    for name, request, wanted, field in TRITONS:
        await refused(
            lambda name=name, request=request: getattr(triton, name)(request, timeout=20),
            wanted,
            field,
            (name, request),
        )
    assert not (await made.stub.ListInferenceJobs(pb.ListInferenceJobsRequest(), timeout=30)).jobs
    assert made.lessor.launches == 1, "nothing wrong loads a model"
    await made.right("it lives on")


async def test_every_call_in_a_stream_is_refused_alike(made: Rig) -> None:
    await made.right("warm up")
    stream = made.stub.StreamEmbed()
    for request, wanted, field in EMBEDS:
        await stream.write(pb.StreamEmbedRequest(id="it", request=request))
        answer = await stream.read()
        assert (answer.error.reason, [*answer.error.fields][:1]) == (wanted.__name__, [field] if field else []), request
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF
    triton = oip_pb2_grpc.GRPCInferenceServiceStub(made.channel)  # type: ignore[no-untyped-call]
    for empty in (made.stub.StreamEmbed(), triton.ModelStreamInfer()):
        await empty.done_writing()  # half closed before the first call
        assert await empty.read() is grpc.aio.EOF
        assert await empty.code() is grpc.StatusCode.OK


async def test_a_message_that_inflates_beyond_the_limit_is_refused(made: Rig) -> None:
    """A hundred KB on the wire that would be more here than any message may have."""
    bomb = bytes(66 * MIB)
    async with grpc.aio.insecure_channel(made.host.target) as channel:
        for service, method in ((NATIVE, "Embed"), ("inference.GRPCInferenceService", "ModelInfer")):
            call = channel.unary_unary(f"/{service}/{method}")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(bomb, timeout=60, compression=grpc.Compression.Gzip)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, service
        good = channel.unary_unary(f"/{NATIVE}/Embed", pb.EmbedRequest.SerializeToString, pb.EmbedResponse.FromString)
        answer = await good(embed(), timeout=20, compression=grpc.Compression.Gzip)
        assert len(answer.embeddings) == 1


def test_no_rpc_is_without_a_row() -> None:
    """A new RPC needs one; those that take nothing have nothing to refuse."""
    rows = {f"native {name}" for name, *_ in NATIVES} | {f"triton {name}" for name, *_ in TRITONS}
    rows |= {f"tei {name.partition('.')[2]}" for name, *_ in test_inference_tei.BAD} | {"native StreamEmbed"}
    rpcs = {
        f"{protocol} {method.name}"
        for protocol, services in (
            ("native", [pb.DESCRIPTOR.services_by_name["InferenceService"]]),
            ("triton", [oip.DESCRIPTOR.services_by_name["GRPCInferenceService"]]),
            ("tei", tei.DESCRIPTOR.services_by_name.values()),
        )
        for service in services
        for method in service.methods
    }
    nothing_to_refuse = {"native ListTenantWeights", "triton ServerLive", "triton ServerReady", "triton ServerMetadata"}
    elsewhere = {"triton ModelStreamInfer", "triton RepositoryIndex"}  # test_inference_oip.py, test_e2e_triton.py
    not_offered = {name for name in rpcs if "SharedMemory" in name}
    streams = {name for name in rpcs if name.startswith("tei ") and name.endswith("Stream")}  # of calls that have rows
    assert {name.removesuffix("Stream") for name in streams} <= rows
    assert rpcs - rows == nothing_to_refuse | elsewhere | not_offered | streams
