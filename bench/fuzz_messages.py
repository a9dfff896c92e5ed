"""Messages that nobody would send, for every RPC that reflection lists: valid ones with something wrong, and bytes.

`BASES` has valid requests of the RPCs whose fields must hang together; the others are filled from the names of their
fields. Half of all messages and more are such that the parser takes them: what refuses those is our own code.
"""

from __future__ import annotations

import json
import random
import struct
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import DecodeError, Message

MADE = 12
"""Models that messages make, change and delete; nobody else uses them."""
TEXTS = (
    "", " ", "a", "a b c", "\0", "a\0b", "é" * 50, "x" * 5000, "\U0001f600", "\u202e\u0000", "../../etc/passwd", "%s%n",
    "'; DROP TABLE model; --", "models/a/b/versions/1", "models/-", "fuzz/none", "fuzz/echo@", "@", "*", "NaN", "-1",
    "models/fuzz/made-1", "models/fuzz/made-1/versions/v1.0.1", "fuzz/made-2", "modelLocks/lock-1", "exact", "1" * 400,
)  # fmt: skip
NUMBERS = (0, 1, -1, 2, 3, 7, 2**31 - 1, -(2**31), 2**32 - 1, 2**40, -(2**40), 2**63 - 1, -(2**63), 2**64 - 1)
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e308, -1e308, 5e-324, float("nan"), float("inf"), float("-inf"))
HUGE = 300_000
"""Characters of a text that is huge."""
LARGEST = 60 * 1024 * 1024
"""So many bytes, or a little more, the items have that were made many: a client of gRPC sends at most twice that."""
_TENSOR = b64encode(b"".join(struct.pack("<I", len(text)) + text for text in (b"one text", b"another"))).decode()
_PROFILE = {"backend": "echo", "precision": "bf16"}
_TASK = "TASK_TYPE_TXT2EMBED"
_FINGERPRINT = {
    "golden": "txt2embed/1",
    "outputs": {"dataType": "DATA_TYPE_FP32", "shape": ["1", "2"], "data": b64encode(bytes(8)).decode()},
    "engineProfile": _PROFILE,
}
_EVENTS = [
    {"atSeconds": at, "modelVersion": "{version}", "useSeconds": 0.5, "loadSeconds": 1, "memory": [{"device": "host"}]}
    for at in (0, 1, 2)
]

BASES: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "RegistryService/CreateModel": (
        {"modelId": "fuzz/made-{n}", "model": {"displayName": "Made", "taskType": _TASK, "labels": {"stage": "test"}}},
        {"modelId": "fuzz/never-{n}", "model": {"description": "words"}, "validateOnly": True},
    ),
    "RegistryService/GetModel": ({"name": "models/fuzz/echo"},),
    "RegistryService/ListModels": (
        {"pageSize": 3, "filter": 'task_type = "txt2embed" AND NOT name:"x"', "orderBy": "name desc"},
        {"query": "echo", "includeTotalSize": True, "pageSize": 2},
    ),
    "RegistryService/UpdateModel": (
        {"model": {"name": "models/fuzz/made-{n}", "description": "words {m}"}, "updateMask": "description"},
    ),
    "RegistryService/DeleteModel": ({"name": "models/fuzz/made-{n}", "force": True},),
    "RegistryService/CreateModelVersion": (
        {
            "parent": "models/fuzz/made-{n}",
            "modelVersion": {"version": "v1.0.{m}", "engine": "echo", "taskType": _TASK, "source": {"empty": {}}},
        },
    ),
    "RegistryService/GetModelVersion": ({"name": "{version}"},),
    "RegistryService/ListModelVersions": (
        {"parent": "models/fuzz/echo", "filter": 'state = "ready"', "orderBy": "version desc"},
        {"parent": "models/-", "pageSize": 5},
    ),
    "RegistryService/WatchModelVersion": ({"name": "{version}"},),
    "RegistryService/DeleteModelVersion": ({"name": "models/fuzz/made-{n}/versions/v1.0.{m}", "force": True},),
    "RegistryService/SetAlias": ({"name": "models/fuzz/made-{n}", "alias": "production", "version": "v1.0.{m}"},),
    "RegistryService/ImportModel": (
        {
            "modelId": "fuzz/made-{n}",
            "source": {"empty": {}},
            "version": "v2.0.{m}",
            "engine": "echo",
            "taskType": _TASK,
            "engineOptions": {"dimensions": 8},
            "resourceRequirements": {"memoryBytes": "16777216"},
            "validateOnly": True,
        },
        {"modelId": "fuzz/made-{n}", "source": {"empty": {}}, "version": "v2.0.{m}", "engine": "echo"},
        {"modelId": "fuzz/made-{n}", "source": {"local": {"path": "{folder}"}}, "version": "v3.0.{m}"},
    ),
    "RegistryService/ResolveModel": ({"reference": "fuzz/echo"}, {"reference": "fuzz/echo@v1.0.0"}),
    "RegistryService/ListAliasChanges": ({"parent": "models/fuzz/echo", "pageSize": 5},),
    "RegistryService/CancelImport": ({"name": "models/fuzz/made-{n}/versions/v2.0.{m}"},),
    "RegistryService/UpdateModelVersion": (
        {
            "modelVersion": {"name": "{idle}", "metrics": {"f1": 0.5}, "labels": {"stage": "test"}},
            "updateMask": "metrics,labels",
        },
    ),
    "RegistryService/SetEngineProfile": ({"name": "{idle}", "engineProfile": _PROFILE},),
    "RegistryService/VerifyModelVersion": ({"name": "{version}", "full": True},),
    "RegistryService/SelectModelVersion": ({"name": "models/fuzz/idle", "primaryMetric": "f1"},),
    "RegistryService/CreateModelLock": ({"lockId": "lock-{n}", "models": ["fuzz/echo"]}, {"yaml": "{yaml}"}),
    "RegistryService/GetModelLock": ({"name": "modelLocks/fuzz"},),
    "RegistryService/ListModelLocks": ({"pageSize": 3},),
    "RegistryService/DeleteModelLock": ({"name": "modelLocks/lock-{n}"},),
    "RegistryService/RenderModelLock": ({"name": "modelLocks/fuzz"},),
    "RegistryService/VerifyModelLock": ({"name": "modelLocks/fuzz"}, {"yaml": "{yaml}"}),
    "RegistryService/DiffModelLocks": ({"leftName": "modelLocks/fuzz", "rightYaml": "{yaml}"},),
    "RegistryService/ApplyModelLock": ({"name": "modelLocks/fuzz"}, {"yaml": "{yaml}"}),
    "RegistryService/CreateExternalLink": (
        {
            "parent": "models/fuzz/made-{n}",
            "externalLink": {"registryType": "folder", "externalId": "{folder}/{m}"},
        },
        {"parent": "models/fuzz/made-{n}", "externalLink": {"registryType": "huggingface", "externalId": "fuzz/made"}},
    ),
    "RegistryService/GetExternalLink": ({"name": "{link}"},),
    "RegistryService/ListExternalLinks": ({"parent": "models/fuzz/idle", "pageSize": 3},),
    "RegistryService/DeleteExternalLink": (
        {"name": "models/fuzz/made-{n}/links/00000000-0000-7000-8000-000000000000"},
    ),
    "RegistryService/CheckExternalLink": ({"name": "{link}"},),
    "RegistryService/ExportModelVersion": ({"name": "{idle}", "externalLink": "{link}"},),
    "RegistryService/ListAuditEntries": ({"pageSize": 5, "filter": 'status = "OK"'},),
    "RegistryHoldService/AcquireHold": ({"name": "{version}", "holder": "fuzz"},),
    "RegistryHoldService/RecordFingerprint": ({"name": "{idle}", "fingerprint": _FINGERPRINT},),
    "LifecycleService/LoadModel": ({"model": "fuzz/echo"}, {"model": "fuzz/echo", "wait": True}),
    "LifecycleService/UnloadModel": ({"model": "fuzz/echo"}, {"model": "fuzz/echo", "force": True, "wait": True}),
    "LifecycleService/GetReplica": ({"name": "{replica}"},),
    "LifecycleService/ListReplicas": ({"pageSize": 2, "filter": 'state = "loaded" AND model_version = "{version}"'},),
    "LifecycleService/WatchReplicas": ({},),
    "LifecycleService/ExplainPlacement": ({"model": "fuzz/idle", "priority": "PRIORITY_HIGH"},),
    "LifecycleService/ListEvictionDecisions": ({"pageSize": 3, "filter": 'outcome = "plan"'},),
    "LifecycleService/ExportTrace": ({"startTime": "2026-01-01T00:00:00Z"},),
    "LifecycleService/SimulatePlacement": (
        {"events": _EVENTS, "policies": ["lru"], "budget": [{"device": "host", "memoryBytes": "1000"}]},
    ),
    "LifecycleService/GetResidency": ({"model": "fuzz/idle"},),
    "LifecycleService/UpdateResidency": (
        {"residency": {"modelVersion": "fuzz/idle", "keepAlive": "5s"}, "updateMask": "keepAlive"},
    ),
    "LifecycleService/ListResidencies": ({"pageSize": 3},),
    "LifecycleService/UpdateNode": ({"node": {"policy": "gdsf", "idleTtl": "60s"}, "updateMask": "policy,idleTtl"},),
    "LifecycleService/DrainNode": ({"reason": "fuzz"},),
    "LifecycleService/TuneModelVersion": ({"model": "fuzz/idle", "candidates": ["none/fp8"]},),
    "LifecycleService/GetTuning": ({"name": "{tuning}"},),
    "LifecycleService/ListTunings": ({"model": "fuzz/idle", "pageSize": 3},),
    "LifecycleService/WatchTuning": ({"name": "{tuning}"},),
    "LifecycleLeaseService/Acquire": (
        {"want": {"modelVersion": "{version}", "priority": "PRIORITY_LOW", "holder": "fuzz-{n}-{m}"}},
        {"want": {"modelVersion": "{version}", "holder": "fuzz-{n}-{m}", "ifLoaded": True}},
        {"inUse": {"inFlight": 1, "waitingEntries": 2, "oldestWait": "1s"}},
    ),
    "InferenceService/Embed": (
        {"model": "fuzz/echo", "texts": ["one text", "another {n}"]},
        {
            "model": "fuzz/echo",
            "texts": ["one"],
            "dimensions": 4,
            "priority": "PRIORITY_HIGH",
            "timeout": "20s",
            "encoding": "VECTOR_ENCODING_BYTES",
            "precision": "exact",
            "coldPolicy": "COLD_POLICY_WAIT",
            "fallbackModel": "fuzz/idle",
            "requestId": "fuzz-{n}",
        },
    ),
    "InferenceService/Rerank": (
        {"model": "fuzz/rerank", "query": "which", "texts": ["one", "two {n}"], "topN": 1, "returnTexts": True},
    ),
    "InferenceService/Classify": (
        {"model": "fuzz/classify", "texts": ["one", "two"], "topN": 2, "rawScores": True},
        {"model": "fuzz/classify", "texts": ["one"], "pairs": ["two"]},
    ),
    "InferenceService/AnswerQuestion": (
        {"model": "fuzz/answer", "question": "which one", "context": "this one or that", "topN": 2},
    ),
    "InferenceService/Tokenize": ({"model": "fuzz/echo", "texts": ["one text"], "addSpecialTokens": False},),
    "InferenceService/Predict": (
        {
            "model": "fuzz/echo",
            "inputs": [
                {"name": "texts", "tensor": {"dataType": "DATA_TYPE_BYTES", "shape": ["2"], "data": _TENSOR}},
            ],
            "parameters": {"normalize": True},
        },
    ),
    "InferenceService/StreamEmbed": (
        {"id": "call-{n}-{m}", "request": {"model": "fuzz/echo", "texts": ["one text", "another"]}},
    ),
    "InferenceService/DescribeModel": ({"model": "fuzz/classify"},),
    "InferenceService/GetQueue": ({"model": "fuzz/echo"}, {}),
    "InferenceService/ExplainRequest": ({"requestId": "fuzz-1"},),
    "InferenceService/SetTenantWeight": ({"tenant": "fuzz-{n}", "weight": 2.5},),
    "InferenceService/CreateInferenceJob": (
        {
            "model": "fuzz/echo",
            "embed": {"texts": ["one text", "another"]},
            "timeout": "60s",
            "resultTtl": "60s",
            "requestId": "fuzz-{n}-{m}",
        },
    ),
    "InferenceService/GetInferenceJob": ({"name": "{job}"},),
    "InferenceService/ListInferenceJobs": ({"pageSize": 3, "states": ["JOB_STATE_SUCCEEDED"], "model": "fuzz/echo"},),
    "InferenceService/CancelInferenceJob": ({"name": "{job}"},),
    "InferenceService/WatchInferenceJob": ({"name": "{job}"},),
    "InferenceService/GetInferenceResult": ({"name": "{job}", "pageSize": 2, "partial": True},),
    "Health/Check": ({}, {"service": "modelmora.inference.v1.InferenceService"}),
    "Health/Watch": ({},),
    "ServerReflection/ServerReflectionInfo": (
        {"listServices": "*"},
        {"fileContainingSymbol": "modelmora.inference.v1.InferenceService"},
        {"fileByFilename": "modelmora/common/v1/common.proto"},
    ),
    "GRPCInferenceService/ModelReady": ({"name": "fuzz/echo"},),
    "GRPCInferenceService/ModelMetadata": ({"name": "fuzz/echo"},),
    "GRPCInferenceService/ModelInfer": (
        {
            "modelName": "fuzz/echo",
            "id": "fuzz-{n}",
            "inputs": [{"name": "texts", "datatype": "BYTES", "shape": ["2"]}],
            "rawInputContents": [_TENSOR],
        },
        {
            "modelName": "fuzz/echo",
            "inputs": [
                {
                    "name": "texts",
                    "datatype": "BYTES",
                    "shape": ["1", "1"],
                    "contents": {"bytesContents": [b64encode(b"one text").decode()]},
                }
            ],
            "parameters": {"priority": {"int64Param": "1"}},
        },
    ),
    "GRPCInferenceService/ModelStreamInfer": (
        {
            "modelName": "fuzz/echo",
            "id": "fuzz-{n}",
            "inputs": [{"name": "texts", "datatype": "BYTES", "shape": ["2"]}],
            "rawInputContents": [_TENSOR],
            "parameters": {"triton_enable_empty_final_response": {"boolParam": True}},
        },
    ),
    "GRPCInferenceService/RepositoryModelLoad": ({"modelName": "fuzz/echo"},),
    "GRPCInferenceService/RepositoryModelUnload": ({"modelName": "fuzz/echo"},),
    "GRPCInferenceService/ModelConfig": ({"name": "fuzz/echo"},),
    "GRPCInferenceService/ModelStatistics": ({"name": "fuzz/echo"},),
    "Embed/Embed": ({"inputs": "one text", "truncate": True, "normalize": True, "dimensions": 4}, {"inputs": "two"}),
    "Embed/EmbedStream": ({"inputs": "one text {n}", "normalize": True},),
    "Embed/EmbedSparse": ({"inputs": "one text"},),
    "Embed/EmbedSparseStream": ({"inputs": "one text"},),
    "Embed/EmbedAll": ({"inputs": "one text"},),
    "Embed/EmbedAllStream": ({"inputs": "one text"},),
    "Predict/Predict": ({"inputs": "one text", "rawScores": True},),
    "Predict/PredictStream": ({"inputs": "one text {n}"},),
    "Predict/PredictPair": ({"inputs": ["one text", "another"]},),
    "Predict/PredictPairStream": ({"inputs": ["one text", "another {n}"]},),
    "Rerank/Rerank": ({"query": "which", "texts": ["one", "two"], "returnText": True},),
    "Rerank/RerankStream": ({"query": "which", "text": "one {n}"},),
    "Tokenize/Tokenize": ({"inputs": "one text", "addSpecialTokens": True},),
    "Tokenize/TokenizeStream": ({"inputs": "one text {n}"},),
    "Tokenize/Decode": ({"ids": [1, 2, 3], "skipSpecialTokens": True},),
    "Tokenize/DecodeStream": ({"ids": [1, 2, 3]},),
}
"""Valid requests by the end of the RPC's path; `{…}` stands for what there is in a `World`."""


@dataclass(frozen=True)
class Rpc:
    """One RPC as reflection describes it."""

    path: str
    """`/package.Service/Method`."""
    method: MethodDescriptor
    request: type[Message]
    response: type[Message]

    @property
    def kind(self) -> str:
        """`unary_unary` and so on: what the channel's method is called."""
        ends = (self.method.client_streaming, self.method.server_streaming)
        return "_".join("stream" if streaming else "unary" for streaming in ends)

    def accepts(self, raw: bytes) -> bool:
        """Whether a parser takes these bytes."""
        try:
            self.request.FromString(raw)
        except DecodeError:
            return False
        return True


def rpcs_of(services: Sequence[str], files: Sequence[bytes]) -> list[Rpc]:
    """Every RPC of `services`, described by serialised files, in a pool of their own."""
    pool = descriptor_pool.DescriptorPool()
    waiting = {file.name: file for file in map(descriptor_pb2.FileDescriptorProto.FromString, files)}
    while waiting:  # a file may come before what it imports
        for name in [name for name, file in waiting.items() if not waiting.keys() & set(file.dependency)]:
            pool.AddSerializedFile(waiting.pop(name).SerializeToString())
    return [
        Rpc(
            f"/{service}/{method.name}",
            method,
            message_factory.GetMessageClass(method.input_type),
            message_factory.GetMessageClass(method.output_type),
        )
        for service in services
        for method in pool.FindServiceByName(service).methods
    ]


class Messages:
    """Makes messages for RPCs from a world: what `{…}` in the bases stands for."""

    def __init__(self, seed: int, world: Mapping[str, str]) -> None:
        self.chance = random.Random(seed)
        self._world = {name: json.dumps(value)[1:-1] for name, value in world.items()}

    def base(self, rpc: Rpc) -> Message:
        """A valid message, or one filled from the names of its fields."""
        bases = BASES.get(rpc.path.rpartition(".")[2])
        if bases is None:
            message = rpc.request()
            self._fill(message, 0.7)
            return message
        text = json.dumps(self.chance.choice(bases))
        numbers = {"n": str(self.chance.randrange(MADE)), "m": str(self.chance.randrange(6))}
        for name, value in (*self._world.items(), *numbers.items()):
            text = text.replace(f"{{{name}}}", value)
        return json_format.Parse(text, rpc.request())

    def make(self, rpc: Rpc) -> bytes:
        """One message: as it should be, with something wrong, or only bytes."""
        chance = self.chance
        kind = chance.random()
        if kind < 0.08:
            message = rpc.request()
            self._fill(message, 0.5)
            return message.SerializeToString()
        message = self.base(rpc)
        if 0.18 <= kind < 0.55:
            for _ in range(chance.choice((1, 1, 2, 4))):
                self._mutate(message)
        raw: bytes = message.SerializeToString()
        if kind < 0.55:
            return raw
        if kind < 0.6:  # a field that nobody knows
            return raw + b"\xfa\xff\x07" + bytes([chance.randrange(1, 20)]) + bytes(20)
        if kind < 0.7:
            return self._wrong_utf8(rpc, raw)
        if kind < 0.8:
            return raw[: chance.randrange(len(raw))] if raw else b"\x0a"
        if kind < 0.9:
            return self._shaken(raw)
        if kind < 0.93:  # deeper than any parser goes
            return b"\x0b" * 200
        return chance.randbytes(chance.choice((1, 2, 3, 17, 300)))

    def _wrong_utf8(self, rpc: Rpc, raw: bytes) -> bytes:
        texts = [field for field in rpc.request.DESCRIPTOR.fields if field.type == field.TYPE_STRING]
        if not texts:
            return raw + b"\xff"
        tag = self.chance.choice(texts).number << 3 | 2
        key = bytes([tag]) if tag < 128 else bytes([tag & 127 | 128, tag >> 7])
        return raw + key + b"\x04a\xff\xc0b"

    def _shaken(self, raw: bytes) -> bytes:
        chance, found = self.chance, bytearray(raw)
        for _ in range(chance.randint(1, 8)):
            action, at = chance.random(), chance.randrange(len(found) + 1)
            if action < 0.4 and at < len(found):
                found[at] = chance.randrange(256)
            elif action < 0.7:
                del found[at : at + chance.randint(1, 10)]
            else:
                found[at:at] = chance.randbytes(chance.randint(1, 10))
        return bytes(found)

    def _mutate(self, message: Message) -> None:
        """Something wrong at one place, however deep."""
        chance = self.chance
        while message.DESCRIPTOR.fields:
            field = chance.choice(message.DESCRIPTOR.fields)
            if _is_map(field):
                self._put(message, field)
                return
            if field.type == field.TYPE_MESSAGE and chance.random() < 0.8:
                if not field.is_repeated:
                    message = getattr(message, field.name)
                    continue
                there = getattr(message, field.name)
                if there:
                    message = chance.choice(there)
                    continue
            action = chance.random()
            if action < 0.25:
                message.ClearField(field.name)
            elif action < 0.3 and field.is_repeated and len(there := getattr(message, field.name)):
                one = there[0]
                size = one.ByteSize() if isinstance(one, Message) else len(str(one))
                there.extend([one] * min(chance.choice((10, 3000)), LARGEST // (size + 1)))
            else:
                self._put(message, field)
            return

    def _fill(self, message: Message, share: float, depth: int = 0) -> None:
        for field in message.DESCRIPTOR.fields:
            if depth < 5 and self.chance.random() < share:
                self._put(message, field, depth)

    def _put(self, message: Message, field: FieldDescriptor, depth: int = 0) -> None:
        """A value in a field, extremes above all."""
        chance = self.chance
        if _is_map(field):
            key, value = field.message_type.fields
            if value.type != value.TYPE_MESSAGE:
                getattr(message, field.name)[self._value(key)] = self._value(value)
            return
        for _ in range(chance.choice((1, 1, 3)) if field.is_repeated else 1):
            if field.type == field.TYPE_MESSAGE:
                part = getattr(message, field.name)
                part = part.add() if field.is_repeated else part
                part.SetInParent()
                self._fill(part, 0.5, depth + 1)
            elif field.is_repeated:
                getattr(message, field.name).append(self._value(field))
            else:
                setattr(message, field.name, self._value(field))

    def _value(self, field: FieldDescriptor) -> Any:
        chance = self.chance
        if field.type == field.TYPE_STRING:
            return "é" * HUGE if chance.random() < 0.01 else chance.choice(TEXTS)
        if field.type == field.TYPE_BYTES:
            return chance.randbytes(chance.choice((0, 1, 3, 32, 5000)))
        if field.type == field.TYPE_BOOL:
            return chance.random() < 0.5
        if field.type in (field.TYPE_DOUBLE, field.TYPE_FLOAT):
            return chance.choice(FLOATS)
        if field.type == field.TYPE_ENUM:
            return chance.choice([*(value.number for value in field.enum_type.values), -1, 999])
        low, high = _RANGES[field.cpp_type]
        return chance.choice([number for number in NUMBERS if low <= number <= high])


_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry
