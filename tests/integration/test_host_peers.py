"""Parts of a platform in hosts of their own: tokens between them, any order of starts, traces to a collector."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from integration.tiny_platform import Front, Settings, Tiny, platform_settings, tiny_host
from modelmora import errors
from modelmora.inference.v1 import inference_pb2, inference_pb2_grpc
from modelmora.status import error_from_rpc
from modelmora_runtime import auth, telemetry
from modelmora_runtime.host import Context, Host
from modelmora_runtime.peers import PeerChannel
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


def tiny_only(data_dir: Path, tiny: Tiny, **given: Any) -> Host:
    contexts = [Context("tiny", Settings(), tiny.open)]
    return Host(platform_settings(data_dir, **given), contexts, announce=lambda line: None)


def front_only(data_dir: Path, target: str, **given: Any) -> Host:
    tiny = Tiny()
    front = Front(tiny)

    @asynccontextmanager
    async def open(settings: Settings, platform: Any) -> AsyncIterator[Any]:
        # Leaves without the last call of Front: its peer may be gone before it.
        inner = front.open(settings, platform)
        yield await inner.__aenter__()

    settings = platform_settings(data_dir, peers={"tiny": target}, **given)
    return Host(settings, [Context("front", Settings(), open)], announce=lambda line: None)


async def embed(host: Host, model: str, **call: Any) -> str:
    async with grpc.aio.insecure_channel(host.target) as channel:
        stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)
        call.setdefault("timeout", 30)
        try:
            answer = await stub.Embed(inference_pb2.EmbedRequest(model=model), **call)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error
        return str(answer.model_version)


async def test_parts_call_each_other_with_the_token_of_a_service(data_dir: Path) -> None:
    one, two = data_dir / "one", data_dir / "two"
    token = auth.create_token(one / "tokens.json", role="service", tenant="acme", subject="front")
    async with tiny_only(one, Tiny()) as tiny:
        async with front_only(two, tiny.target) as front:
            with pytest.raises(errors.Unauthenticated) as raised:
                await embed(front, "caller")
            assert raised.value.reason == "TokenMissing"
        (two / "service.token").write_text(token + "\n")
        async with front_only(two, tiny.target, service_token_file=str(two / "service.token")) as front:
            assert await embed(front, "caller") == "front acme service False"
            with pytest.raises(errors.ReplicaNotFound):
                await embed(front, "raise:x")


async def test_parts_may_start_in_any_order_and_start_again(data_dir: Path) -> None:
    async with tiny_only(data_dir / "one", Tiny()) as found:
        port, target = found.port, found.target
    async with front_only(data_dir / "two", target) as front:
        with pytest.raises(errors.Unavailable):
            await embed(front, "caller")
        for _ in range(2):
            async with tiny_only(data_dir / "one", Tiny(), port=port):
                assert "admin" in await until_it_answers(front)
            with pytest.raises(errors.Unavailable):
                await embed(front, "caller")


async def test_a_peer_that_takes_its_time_to_say_hello_is_reached(data_dir: Path) -> None:
    hello = asyncio.Event()

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await hello.wait()
        there = await asyncio.open_connection("127.0.0.1", tiny.port)
        await asyncio.gather(passed_on(reader, there[1]), passed_on(there[0], writer))

    async with tiny_only(data_dir / "one", Tiny()) as tiny:
        between = await asyncio.start_server(late, "127.0.0.1", 0)
        port = between.sockets[0].getsockname()[1]
        async with front_only(data_dir / "two", f"127.0.0.1:{port}") as front:
            calling = asyncio.create_task(embed(front, "caller"))
            await asyncio.wait((calling,), timeout=1.0)
            hello.set()
            assert "admin" in await calling
        between.close()


async def passed_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


async def until_it_answers(front: Host) -> str:
    """A lost peer is tried again within a second; nobody announces when."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await embed(front, "caller")
            except errors.Unavailable:
                continue


class Collector:
    """An OpenTelemetry collector that keeps what it gets."""

    def __init__(self) -> None:
        self.spans: list[Any] = []

    async def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return trace_service_pb2.ExportTraceServiceResponse()


async def test_traces_go_to_the_collector_with_the_calls_below_each_other(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "_FLUSH_SECONDS", 30.0)  # this collector is there, however late it answers
    collector = Collector()
    server = grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        options = {"otlp_endpoint": f"http://127.0.0.1:{port}", "trace_sample_ratio": 1.0}
        async with tiny_host(data_dir, Tiny(), **options) as host:
            await embed(host, "caller")
            with pytest.raises(errors.ReplicaNotFound):
                await embed(host, "raise:x")
    finally:
        await server.stop(None)
    spans = {span.name.rpartition("/")[2] + str(index): span for index, span in enumerate(collector.spans)}
    outer = [span for name, span in spans.items() if name.startswith("Embed")]
    inner = {span.parent_span_id: span for name, span in spans.items() if name.startswith("GetReplica")}
    assert len(outer) == 2
    for span in outer:
        below = inner[span.span_id]
        assert below.trace_id == span.trace_id
        assert span.start_time_unix_nano <= below.start_time_unix_nano <= below.end_time_unix_nano
    codes = [span.attributes[0].value.string_value for span in outer]
    assert sorted(codes) == ["NOT_FOUND", "OK"]


async def test_a_collector_that_is_away_harms_nobody(data_dir: Path) -> None:
    options = {"otlp_endpoint": "http://127.0.0.1:1", "trace_sample_ratio": 1.0}
    async with asyncio.timeout(60):
        async with tiny_host(data_dir, Tiny(), **options) as host:
            assert "peer" in await embed(host, "caller")


async def test_a_stream_that_ends_while_it_is_written_to_is_none_that_went_wrong_inside() -> None:
    """grpc.aio says INTERNAL then, whatever the other side has said; who reads it may try again."""

    async def refuse(requests: Any, context: Any) -> None:
        await context.read()
        await context.abort(grpc.StatusCode.NOT_FOUND, "there is none")

    server = grpc.aio.server()
    methods: Any = {"Talk": grpc.stream_stream_rpc_method_handler(refuse)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Talks", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    seen: set[type[errors.ModelMoraError]] = set()
    try:
        async with PeerChannel(grpc.aio.insecure_channel(f"127.0.0.1:{port}"), (), 30.0) as channel:
            async with asyncio.timeout(60):
                while len(seen) < 2:
                    call = channel.stream_stream("/test.Talks/Talk")()
                    await call.write(b"first")
                    writing = asyncio.ensure_future(call.write(bytes(3_000_000)))
                    with pytest.raises(errors.ModelMoraError) as raised:
                        await call.read()
                    await asyncio.wait([writing])
                    writing.exception()
                    seen.add(type(raised.value))
    finally:
        await server.stop(0)
    assert seen == {errors.NotFound, errors.Unavailable}
