"""A program of somebody who uses tritonclient and modelmora together. Run by test_e2e_triton.py in an environment
of its own; it knows nothing of the server. `python triton_program.py PART TARGET [MODEL]` prints what it saw as JSON.
"""

from __future__ import annotations

import asyncio
import json
import queue
import sys
import time
from typing import Any

import grpc
import modelmora
import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from google.protobuf import json_format
from modelmora.inference.v1 import inference_pb2
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

ECHO, BUSY, CLASSES = "triton/echo", "triton/busy", "triton/classes"
PATIENCE_SECONDS = 60


def texts_input(texts: list[bytes], column: bool = False) -> Any:
    values = np.array(texts, dtype=object).reshape((-1, 1) if column else (-1,))
    made = triton.InferInput("texts", list(values.shape), "BYTES")
    made.set_data_from_numpy(values)
    return made


def eventually(fact: Any, what: str) -> Any:
    until = time.monotonic() + PATIENCE_SECONDS
    while not (found := fact()):
        assert time.monotonic() < until, what
        time.sleep(0.02)
    return found


def error_of(call: Any) -> list[str]:
    try:
        call()
    except InferenceServerException as error:
        return [str(error.status()), error.message()]
    return ["OK", ""]


def as_dict(message: Any) -> Any:
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def basics(target: str, model: str) -> dict[str, Any]:
    client, native = triton.InferenceServerClient(target), modelmora.Client(target)
    told: dict[str, Any] = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model ready": client.is_model_ready(model),
        "version ready": client.is_model_ready(model, "v1.0.0"),
        "alias ready": client.is_model_ready(model, "latest"),
        "unknown ready": client.is_model_ready("triton/unknown"),
        "unknown version ready": client.is_model_ready(model, "v9"),
        "too large ready": client.is_model_ready("triton/too-large"),
        "server": client.get_server_metadata(as_json=True),
        "metadata": client.get_model_metadata(model, as_json=True),
        "config": client.get_model_config(model, as_json=True)["config"],
    }
    texts = ["one text", "another ж text", "\N{SNOWMAN}"]
    raw = [text.encode() for text in texts]
    truth = native.embed(model, texts, precision="exact")
    plain = client.infer(
        model,
        [texts_input(raw)],
        request_id="the id",
        priority=1,
        timeout=20_000_000,
        parameters={"precision": "exact"},
    )
    told["answer"] = as_dict(plain.get_response())
    told["answer"].pop("raw_output_contents")
    column = client.infer(
        model,
        [texts_input(raw, column=True)],
        model_version="v1.0.0",
        outputs=[triton.InferRequestedOutput("vectors")],
        parameters={"precision": "exact", "normalize": True, "truncate": True},
    )
    few = client.infer(model, [texts_input(raw)], parameters={"dimensions": 3, "precision": "exact"})
    same_few = native.embed(model, texts, dimensions=3, precision="exact")
    typed_request = service_pb2.ModelInferRequest(model_name=model, id="typed")
    typed_request.parameters["precision"].string_param = "exact"
    tensor = typed_request.inputs.add(name="texts", datatype="BYTES", shape=[3])
    tensor.contents.bytes_contents.extend(raw)
    with grpc.insecure_channel(target) as channel:
        typed = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(typed_request, timeout=30)
    values = np.array(typed.outputs[0].contents.fp32_contents, np.float32).reshape(typed.outputs[0].shape)
    told["typed"] = {"raw": len(typed.raw_output_contents), "id": typed.id}
    told["largest difference"] = max(
        float(np.abs(found - right).max())
        for found, right in (
            (plain.as_numpy("vectors"), truth),
            (column.as_numpy("vectors"), truth),
            (values, truth),
            (few.as_numpy("vectors"), same_few),
        )
    )
    classes = client.infer(CLASSES, [texts_input(raw)], outputs=[triton.InferRequestedOutput("scores", class_count=2)])
    told["classes"] = [[cell.decode() for cell in row] for row in classes.as_numpy("scores")]
    native_scores = native.classify(CLASSES, texts, top_n=2)
    told["native classes"] = [
        [f"{label.score:f}:{label.index}:{label.label}" for label in one.labels]
        for one in native_scores.classifications
    ]
    # A platform that stood still since the last call still calls its model busy.
    eventually(lambda: not any(one.busy_leases for one in native.list_replicas()), "no call is on a worker")
    client.unload_model(model)
    told["after unload"] = [replica.state for replica in native.list_replicas() if model in replica.model_version]
    client.unload_model(model)
    client.load_model(model)
    told["after load"] = [replica.state for replica in native.list_replicas() if model in replica.model_version]
    told["index"] = client.get_model_repository_index(as_json=True)["models"]
    told["statistics"] = client.get_inference_statistics(model, "v1.0.0", as_json=True)["model_stats"]
    told["errors"] = {
        "unknown model": error_of(lambda: client.infer("triton/unknown", [texts_input(raw)])),
        "unknown version": error_of(lambda: client.infer(model, [texts_input(raw)], model_version="v9")),
        "nothing to embed": error_of(lambda: client.infer(model, [texts_input([])])),
        "wrong task": error_of(lambda: client.infer(CLASSES, [texts_input(raw)], parameters={"dimensions": 3})),
        "load unknown": error_of(lambda: client.load_model("triton/unknown")),
        "load with a configuration": error_of(lambda: client.load_model(model, config="{}")),
        "unload unknown": error_of(lambda: client.unload_model("triton/unknown")),
        "trace": error_of(client.get_trace_settings),
        "log": error_of(client.get_log_settings),
        "shared memory": error_of(client.get_system_shared_memory_status),
        "cuda shared memory": error_of(client.get_cuda_shared_memory_status),
        "too late": error_of(lambda: client.infer(model, [texts_input(raw)], timeout=1)),
        # A hundred texts of 0.2 s each: a client that wakes late finds no answer all the same.
        "client timeout": error_of(lambda: client.infer(BUSY, [texts_input([b"w " * 20] * 100)], client_timeout=0.1)),
    }
    client.close()
    native.close()
    return told


def stream(target: str, model: str) -> dict[str, Any]:
    told: dict[str, Any] = {}
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()

    def heard(result: Any, error: Any) -> None:
        answers.put((result, error))

    client, native = triton.InferenceServerClient(target), modelmora.Client(target)
    client.start_stream(heard)
    for number in range(50):
        client.async_stream_infer(
            model,
            [texts_input([f"text {number}".encode()])],
            request_id=str(number),
            enable_empty_final_response=True,
            sequence_id=7,
            sequence_start=number == 0,
            sequence_end=number == 49,
            parameters={"precision": "exact"},
        )
    client.async_stream_infer("triton/unknown", [texts_input([b"x"])], request_id="wrong")
    client.async_stream_infer(model, [texts_input([b"text 0"])], request_id="after", parameters={"precision": "exact"})
    found = [answers.get(timeout=PATIENCE_SECONDS) for _ in range(52)]
    client.stop_stream()
    right = native.embed(model, [f"text {number}" for number in range(50)], precision="exact")
    good = [result.get_response() for result, _ in found if result is not None]
    rows = np.vstack([result.as_numpy("vectors") for result, _ in found if result is not None])
    told["ids"] = [response.id for response in good]
    told["final"] = all(response.parameters["triton_final_response"].bool_param for response in good)
    told["largest difference"] = float(np.abs(rows - np.vstack([right, right[:1]])).max())
    told["error"] = [(str(error.status()), error.message()) for _, error in found if error is not None]
    client.start_stream(heard, headers={"triton_grpc_error": "true"})
    client.async_stream_infer("triton/unknown", [texts_input([b"x"])])
    result, error = answers.get(timeout=PATIENCE_SECONDS)
    told["as status"] = [result is None, str(error.status()), error.message()]
    client.stop_stream()
    client.close()
    native.close()
    return told


def cancel(target: str, model: str) -> dict[str, Any]:
    """Calls of a hundred texts that take 30 s each, withdrawn once they are on the worker."""
    client, native = triton.InferenceServerClient(target), modelmora.Client(target)
    long = [texts_input([b"word " * 30] * 100)]
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()

    def entries() -> int:
        found = native.queue(BUSY)[0]
        return int(found.in_flight + sum(level.entries for level in found.levels))

    def on_the_worker() -> bool:
        return bool(native.queue(BUSY)[0].in_flight)

    def gone(what: str) -> float:
        began = time.monotonic()
        eventually(lambda: entries() == 0, f"{what}: it has left the queue and the worker")
        return time.monotonic() - began

    told: dict[str, Any] = {}
    call = client.async_infer(BUSY, long, lambda result, error: answers.put((result, error)))
    eventually(on_the_worker, "the call is on the worker")
    call.cancel()
    told["context"] = [str(answers.get(timeout=PATIENCE_SECONDS)[1].status()), gone("ctx.cancel")]

    client.start_stream(lambda result, error: answers.put((result, error)))
    for _ in range(3):
        client.async_stream_infer(BUSY, long)
    eventually(lambda: on_the_worker() and entries() > 200, "three calls are in the queue and on the worker")
    client.stop_stream(cancel_requests=True)
    told["stream"] = [str(answers.get(timeout=PATIENCE_SECONDS)[1].status()), gone("stop_stream")]

    async def of_a_task() -> str:
        async with triton_aio.InferenceServerClient(target) as other:
            task = asyncio.ensure_future(other.infer(BUSY, long))
            await asyncio.to_thread(eventually, on_the_worker, "the call is on the worker")
            task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                return "cancelled"
            return "answered"

    told["task"] = [asyncio.run(of_a_task()), gone("task cancel")]

    async def of_an_iterator() -> str:
        async with triton_aio.InferenceServerClient(target) as other:

            async def asked() -> Any:
                yield {"model_name": BUSY, "inputs": long}
                await asyncio.sleep(PATIENCE_SECONDS)

            answers = other.stream_infer(asked())
            waiting = asyncio.ensure_future(answers.__anext__())
            await asyncio.to_thread(eventually, on_the_worker, "the call is on the worker")
            answers.cancel()
            try:
                await waiting
            except asyncio.CancelledError:
                return "cancelled"
            return "answered"

    told["iterator"] = [asyncio.run(of_an_iterator()), gone("stream cancel")]
    client.close()
    native.close()
    return told


def together(target: str, model: str) -> dict[str, Any]:
    """Calls of both clients that wait at the same time, and the batch that they go in."""

    async def run(words: int) -> dict[str, Any] | None:
        async with triton_aio.InferenceServerClient(target) as client, modelmora.AsyncClient(target) as native:

            async def state() -> inference_pb2.Queue:
                return (await native.queue(BUSY))[0]

            blocker = asyncio.ensure_future(native.embed(BUSY, "word " * words))
            while not (await state()).in_flight:
                if blocker.done():
                    return None
            texts = [f"text {number}" for number in range(16)]
            theirs = [client.infer(BUSY, [texts_input([text.encode()])]) for text in texts[:8]]
            ours = [native.embed(BUSY, text) for text in texts[8:]]
            asked = [asyncio.ensure_future(call) for call in (*theirs, *ours)]
            # Nine that wait together, or follow the blocker at once, are of both clients, which have eight each.
            together = 0
            while not blocker.done() and together < 9:
                now = await state()
                together = max(sum(level.entries for level in now.levels), now.in_flight - 1)
            answers = await asyncio.gather(*asked)
            await blocker
            if together < 9:
                return None
            rows = [answer.as_numpy("vectors")[0] for answer in answers[:8]] + list(answers[8:])
            right = [await native.embed(model, text) for text in texts]  # the same seed
            return {"largest difference": float(np.abs(np.vstack(rows) - np.vstack(right)).max())}

    found = next((found for words in (100, 300, 1000) if (found := asyncio.run(run(words))) is not None), {})
    with triton.InferenceServerClient(target) as client:
        (stats,) = client.get_inference_statistics(BUSY, as_json=True)["model_stats"]
    found["batches"] = {one["batch_size"]: one["compute_infer"].get("count", "0") for one in stats["batch_stats"]}
    found["entries"], found["executions"] = stats["inference_count"], stats["execution_count"]
    return found


def vectors(target: str, model: str) -> dict[str, Any]:
    """The same texts from Triton's client and from ours."""
    texts = ["A short text.", "Ein längerer Text, der etwas mehr zu sagen hat als der erste.", "word " * 300]
    with triton.InferenceServerClient(target) as client, modelmora.Client(target) as native:
        found = client.infer(
            model, [texts_input([text.encode() for text in texts])], parameters={"precision": "exact"}
        ).as_numpy("vectors")
        ours = native.embed(model, texts, precision="exact")
    return {"theirs": found.tolist(), "ours": ours.tolist(), "texts": texts}


def wire(target: str, model: str) -> dict[str, Any]:
    """Every field and enum value of Triton's messages: what ours must agree with."""
    from tritonclient.grpc import model_config_pb2

    found: dict[str, Any] = {}

    def look(message: Any) -> None:
        for field in message.fields:
            kind = field.message_type or field.enum_type
            found[f"{message.full_name}.{field.name}"] = [
                field.number,
                field.type,
                field.is_repeated,
                kind.full_name if kind else "",
            ]
        for nested in message.nested_types:
            look(nested)

    for module in (service_pb2, model_config_pb2):
        for message in module.DESCRIPTOR.message_types_by_name.values():
            look(message)
        for enum in module.DESCRIPTOR.enum_types_by_name.values():
            found |= {f"{enum.full_name}.{value.name}": [value.number] for value in enum.values}
    for method in service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
        found[method.full_name] = [
            method.client_streaming,
            method.server_streaming,
            method.input_type.full_name,
            method.output_type.full_name,
        ]
    return found


if __name__ == "__main__":
    part, target, *rest = sys.argv[1:]
    parts = {part.__name__: part for part in (basics, stream, cancel, together, vectors, wire)}
    print(json.dumps(parts[part](target, rest[0] if rest else ECHO)))
