"""What a call goes through in a real host: errors, deadlines, bytes, roles, traces, metrics, peers."""

from __future__ import annotations

import asyncio
import gc
import io
import logging
import os
import time
import urllib.request
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc._cython import cygrpc  # type: ignore[attr-defined]
from integration.tiny_platform import INFERENCE, LEASES, LIFECYCLE, Settings, Tiny, platform_settings, tiny_host
from modelmora import errors
from modelmora.inference.v1 import inference_pb2, inference_pb2_grpc
from modelmora.lifecycle.v1 import lifecycle_pb2 as pb
from modelmora.lifecycle.v1 import lifecycle_pb2_grpc
from modelmora.status import error_from_rpc
from modelmora_runtime import auth, interceptors, listen, status, telemetry
from modelmora_runtime.host import Context, Host, Mounted, Platform, Service, StartFailed
from pydantic import BaseModel, ValidationError, field_validator

from bench.fuzz_connections import (
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PREFACE,
    SETTINGS,
    call,
    frame,
    frames,
    head,
)

UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Rig:
    """A running host with a plain client."""

    def __init__(self, host: Host, tiny: Tiny, channel: grpc.aio.Channel) -> None:
        self.host, self.tiny, self.channel = host, tiny, channel
        self.lifecycle: Any = lifecycle_pb2_grpc.LifecycleServiceStub(channel)
        self.inference: Any = inference_pb2_grpc.InferenceServiceStub(channel)

    async def get(self, name: str, token: str | None = None, **call: Any) -> str:
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        call.setdefault("timeout", 20)
        answer = await self.lifecycle.GetReplica(pb.GetReplicaRequest(name=name), metadata=metadata, **call)
        return str(answer.replica.reason)

    async def failure(self, name: str, **call: Any) -> errors.ModelMoraError:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await self.get(name, **call)
        return error_from_rpc(raised.value)

    async def embed(self, model: str, **call: Any) -> str:
        answer = await self.inference.Embed(inference_pb2.EmbedRequest(model=model), **call)
        return str(answer.model_version)


@asynccontextmanager
async def rig(data_dir: Path, **given: Any) -> AsyncIterator[Rig]:
    tiny = Tiny()
    async with (
        tiny_host(data_dir, tiny, **given) as host,
        grpc.aio.insecure_channel(host.target, options=UNLIMITED) as channel,
    ):
        yield Rig(host, tiny, channel)


async def test_a_named_error_arrives_with_ids_and_delay(data_dir: Path) -> None:
    async with rig(data_dir) as it:
        error = await it.failure("raise:x")
        assert type(error) is errors.ReplicaNotFound
        assert (error.message, error.metadata, error.retry_after_seconds) == ("no x", {"name": "x"}, 2.0)


async def test_an_unknown_exception_is_an_incident_whose_text_stays_in_the_log(
    data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with rig(data_dir) as it:
        with caplog.at_level(logging.ERROR):
            error = await it.failure("crash:password")
        assert type(error) is errors.InternalError
        assert "secret" not in error.message
        assert error.metadata["incident"] in error.message
        assert error.metadata["incident"] in caplog.text
        assert "secret password" in caplog.text


async def test_a_stray_cancellation_is_an_incident_and_not_a_call_without_end(data_dir: Path) -> None:
    async with rig(data_dir) as it:
        assert type(await it.failure("stray", timeout=20)) is errors.InternalError


async def test_a_call_without_deadline_gets_the_default_and_a_long_one_is_cut(data_dir: Path) -> None:
    async with rig(data_dir, default_deadline_seconds=200, max_deadline_seconds=500) as it:
        assert 150 < float(await it.get("deadline", timeout=None)) <= 200
        assert 250 < float(await it.get("deadline", timeout=300)) < 310, "gRPC rounds up on its way"
        assert 450 < float(await it.get("deadline", timeout=3000)) <= 500


async def test_no_caller_is_taken_to_wait_longer_than_it_does(data_dir: Path) -> None:
    """gRPC tells a deadline in three digits, rounded up; one near to one told before, and shorter, as that one."""
    async with rig(data_dir, default_deadline_seconds=200, max_deadline_seconds=3000) as it:
        for timeout in (9.503, 10.03, 12.05, 60.01, 110.2, 250.5, 1203.0):
            assert timeout / 2 < float(await it.get("deadline", timeout=timeout)) <= timeout


async def test_the_default_deadline_ends_a_call(data_dir: Path) -> None:
    async with rig(data_dir, default_deadline_seconds=0.2) as it:
        async with asyncio.timeout(20):  # a signal of pytest's in the middle of gRPC's loop may end the interpreter
            error = await it.failure("wait", timeout=None)
        assert type(error) is errors.DeadlineExceeded
        assert "0.2 s" in error.message


async def test_a_request_over_the_message_limit_names_it(data_dir: Path) -> None:
    async with rig(data_dir, max_message_bytes=70_000) as it:
        error = await it.failure("x" * 80_000)
        assert type(error) is errors.MessageTooLarge
        assert "70000" in error.message
        assert await it.get("large:60000") == "x" * 60_000


async def test_an_answer_over_the_message_limit_names_it(data_dir: Path) -> None:
    async with rig(data_dir, max_message_bytes=70_000) as it:
        error = await it.failure("large:80000")
        assert type(error) is errors.MessageTooLarge
        assert error.metadata == {"limit_bytes": "70000"}


async def test_bytes_in_flight_are_bounded_and_given_back(data_dir: Path) -> None:
    async with rig(data_dir, max_in_flight_bytes=100_000) as it:
        first = asyncio.ensure_future(it.get("wait:" + "x" * 60_000))
        await asyncio.wait_for(it.tiny.entered.wait(), 30)
        error = await it.failure("caller:" + "x" * 60_000)
        assert error.reason == "BytesInFlight"
        assert isinstance(error, errors.ResourceExhausted)
        assert error.retry_after_seconds
        assert await it.get("caller")
        it.tiny.go_on.set()
        await first

        async def all_are_given_back() -> None:
            """Who has its answer is a moment ahead of the host, which is told then that the bytes have left."""
            async with asyncio.timeout(20):
                while "modelmora_bytes_in_flight 0.0" not in await metrics(it.host):
                    pass

        await all_are_given_back()
        assert "everyone" in await it.get("caller:" + "x" * 60_000)
        await all_are_given_back()
        assert "everyone" in await it.get("caller:" + "x" * 200_000), "one call alone is let in"
        await all_are_given_back()


async def test_a_malformed_message_is_an_invalid_argument(data_dir: Path) -> None:
    async with rig(data_dir) as it:
        raw = it.channel.unary_unary(f"/{LIFECYCLE}/GetReplica")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await raw(b"\xff\xff\xff")
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_unknown_method_is_unimplemented(data_dir: Path) -> None:
    async with rig(data_dir) as it:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await it.channel.unary_unary(f"/{LIFECYCLE}/Nothing")(b"")
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_who_calls_and_what_they_may(data_dir: Path) -> None:
    path = data_dir / "tokens.json"
    client = auth.create_token(path, role="client", tenant="acme", subject="crawler")
    operator = auth.create_token(path, role="operator")
    async with rig(data_dir) as it:
        assert (await it.failure("caller")).reason == "TokenMissing"
        assert (await it.failure("caller", token="mm_00_x")).reason == "TokenInvalid"  # noqa: S106
        assert await it.get("caller", token=client) == "crawler acme client False"
        for token, allowed in ((client, False), (operator, True)):
            call = it.lifecycle.LoadModel(pb.LoadModelRequest(), metadata=(("authorization", f"Bearer {token}"),))
            if allowed:
                await call
            else:
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await call
                assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED
        forged = ((auth.PEER_KEY, "guess"),)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await it.lifecycle.GetReplica(pb.GetReplicaRequest(), metadata=forged)
        assert error_from_rpc(raised.value).reason == "TokenInvalid"


async def test_a_revoked_token_is_out_within_a_second(data_dir: Path) -> None:
    path = data_dir / "tokens.json"
    auth.create_token(path, role="client")
    async with rig(data_dir) as it:

        async def call_until_refused(token: str) -> str:
            while True:
                try:
                    await it.get("caller", token=token)
                except grpc.aio.AioRpcError as raised:
                    return error_from_rpc(raised).reason

        took: list[float] = []
        while not took or (took[-1] >= 3 and len(took) < 4):  # the machine may stand still for a part of a second
            token = auth.create_token(path, role="client")
            await it.get("caller", token=token)
            auth.revoke_token(path, auth.id_of(token))
            began = time.monotonic()
            assert await asyncio.wait_for(call_until_refused(token), 60) == "TokenInvalid"
            took.append(time.monotonic() - began)
        assert min(took) < 3


async def test_contexts_call_each_other_as_services_with_the_trace_and_named_errors(data_dir: Path) -> None:
    token = auth.create_token(data_dir / "tokens.json", role="client")
    async with rig(data_dir) as it:
        identity = ("authorization", f"Bearer {token}")
        assert await it.embed("caller", metadata=(identity,)) == "peer default service True"
        trace = "0af7651916cd43dd8448eb211c80319c"
        seen = await it.embed("trace", metadata=(identity, ("traceparent", f"00-{trace}-b7ad6b7169203331-01")))
        assert seen.split("-")[1] == trace
        assert seen.split("-")[2] != "b7ad6b7169203331"
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await it.embed("raise:y", metadata=(identity,))
        error = error_from_rpc(raised.value)
        assert (type(error), error.metadata) == (errors.ReplicaNotFound, {"name": "y"})


async def test_peer_calls_of_every_kind_raise_named_errors(data_dir: Path) -> None:
    async with rig(data_dir) as it:
        assert it.tiny.platform is not None
        channel = it.tiny.platform.peers.channel("tiny")
        lifecycle: Any = lifecycle_pb2_grpc.LifecycleServiceStub(channel)
        with pytest.raises(errors.ReplicaNotFound):
            await lifecycle.GetReplica(pb.GetReplicaRequest(name="raise:z"))
        watch = lifecycle.WatchReplicas(pb.WatchReplicasRequest(cursor="fail"))
        with pytest.raises(errors.OutOfRange):
            async for _ in watch:
                pass
        reading = lifecycle.WatchReplicas(pb.WatchReplicasRequest(cursor="fail"))
        await reading.read()
        with pytest.raises(errors.OutOfRange):
            await reading.read()
        leases: Any = lifecycle_pb2_grpc.LifecycleLeaseServiceStub(channel)
        lease = leases.Acquire()
        await lease.write(pb.AcquireRequest())
        assert isinstance(await lease.read(), pb.AcquireResponse)
        lease.cancel()
        assert lease.cancelled()


async def test_bytes_that_are_no_message_are_refused_also_in_a_stream(data_dir: Path) -> None:
    async with rig(data_dir) as it:
        call: Any
        for before in ([], [b"", b""]):
            call = it.channel.stream_stream(f"/{LEASES}/Acquire")()
            for message in before:
                await call.write(message)
                assert await call.read() == b""
            await call.write(b"\xff\xff\xff")
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call.read()
            assert type(error_from_rpc(raised.value)) is errors.InvalidArgument
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await it.channel.unary_unary(f"/{LIFECYCLE}/GetReplica")(b"\xff\xff\xff")
        assert type(error_from_rpc(raised.value)) is errors.InvalidArgument


async def test_a_context_that_is_nowhere_is_named(data_dir: Path) -> None:
    async with rig(data_dir) as it:
        assert it.tiny.platform is not None
        with pytest.raises(errors.FailedPrecondition, match="registry"):
            it.tiny.platform.peers.channel("registry")


async def metrics(host: Host, path: str = "/metrics") -> str:
    url = f"http://127.0.0.1:{host.metrics_port}{path}"

    def read() -> str:
        with urllib.request.urlopen(url, timeout=20) as page:
            return str(page.read().decode())

    return await asyncio.to_thread(read)


async def test_calls_are_counted_by_method_and_code(data_dir: Path) -> None:
    async with rig(data_dir) as it:
        await it.get("caller")
        await it.get("caller")
        await it.failure("raise:x")
        await it.failure("crash")
        page = await metrics(it.host)
        method = f"{LIFECYCLE}/GetReplica"
        for code, count in (("OK", 2), ("NOT_FOUND", 1), ("INTERNAL", 1)):
            assert f'modelmora_requests_total{{code="{code}",method="{method}"}} {count}.0' in page
        assert f'modelmora_request_seconds_count{{method="{method}"}} 4.0' in page
        assert f'modelmora_requests_in_flight{{method="{method}"}} 0.0' in page
        with pytest.raises(urllib.error.HTTPError, match="404"):
            await metrics(it.host, "/")


async def test_reflection_lists_and_describes_under_both_names(data_dir: Path) -> None:
    from grpc_reflection.v1alpha import reflection_pb2

    async with rig(data_dir) as it:
        for version in ("v1", "v1alpha"):
            ask = it.channel.stream_stream(
                f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
                request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
                response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
            )
            call: Any = ask()
            await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            answer = await call.read()
            names = {service.name for service in answer.list_services_response.service}
            assert {LIFECYCLE, LEASES, INFERENCE, "grpc.health.v1.Health"} <= names
            for name in names:
                await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=name))
                assert (await call.read()).file_descriptor_response.file_descriptor_proto, name
            await call.done_writing()


@pytest.mark.parametrize(("access", "part"), [({"GetReplica"}, "declares no role"), ({"Surplus"}, "no method Surplus")])
async def test_a_method_without_a_role_fails_the_start(data_dir: Path, access: set[str], part: str) -> None:
    from integration.tiny_platform import ACCESS

    declared = {name: roles for name, roles in ACCESS.items() if name not in access}
    if "Surplus" in access:
        declared["Surplus"] = auth.READERS

    @asynccontextmanager
    async def open(settings: Settings, platform: Platform) -> AsyncIterator[Mounted]:
        yield Mounted([Service(LIFECYCLE, lifecycle_pb2_grpc.add_LifecycleServiceServicer_to_server, Tiny(), declared)])

    with pytest.raises(errors.FailedPrecondition, match=part):
        async with Host(platform_settings(data_dir), [Context("tiny", Settings(), open)], announce=lambda line: None):
            pass


async def test_a_context_that_fails_to_start_closes_what_was_open(data_dir: Path) -> None:
    before, failing = Tiny(), Tiny(fail_open=True)
    host = Host(
        platform_settings(data_dir),
        [Context("one", Settings(), before.open), Context("two", Settings(), failing.open)],
        announce=lambda line: None,
    )
    with pytest.raises(StartFailed, match="two did not start: it is away"):
        async with host:
            pass
    assert before.story == ["tiny opened", "tiny left"]
    assert host.stopping.is_set()
    assert list((data_dir / "run").iterdir()) == []
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", host.port)


async def test_a_port_in_use_names_its_holder(data_dir: Path) -> None:
    async with rig(data_dir) as it:
        for given in ({"port": it.host.port}, {"metrics_port": it.host.metrics_port}):
            with pytest.raises(listen.PortInUse) as raised:
                async with tiny_host(data_dir.with_name("other"), Tiny(), **given):
                    pass
            assert "pytest" in raised.value.message or "python" in raised.value.message
            assert "(pid " in raised.value.message
            assert not os.path.exists(data_dir.with_name("other"))  # noqa: ASYNC240


@pytest.mark.parametrize("address", ["0.0.0.0", "::"])  # noqa: S104
async def test_beyond_loopback_there_must_be_tokens(data_dir: Path, address: str) -> None:
    with pytest.raises(listen.ListensBeyondLoopback):
        async with tiny_host(data_dir, Tiny(), host=address):
            pass
    assert not os.path.exists(data_dir)  # noqa: ASYNC240
    lines: list[str] = []
    settings = platform_settings(data_dir, host=address, insecure=True)
    async with Host(settings, [Context("tiny", Settings(), Tiny().open)], announce=lines.append):
        assert any("EVERY MACHINE" in line for line in lines)
    auth.create_token(data_dir / "tokens.json", role="admin")
    async with tiny_host(data_dir, Tiny(), host=address) as host:
        assert host.port


class _Refusing(BaseModel):
    name: str

    @field_validator("name")
    @classmethod
    def _refused(cls, name: str) -> str:
        raise ValueError("is not to our taste")


async def _gone(*kept: weakref.ref[Any]) -> None:
    """Returns when nothing keeps these any more; TimeoutError when something does."""
    async with asyncio.timeout(20):
        while any(one() is not None for one in kept):
            gc.collect()
            await asyncio.sleep(0.01)


async def test_nothing_of_a_refused_call_stays(data_dir: Path) -> None:
    """pydantic's findings hold the frames of the validator, and the collector cannot look into them: a request that
    they had refused stayed for ever."""
    kept: list[weakref.ref[Any]] = []

    async def refuse(request: Any, context: Any) -> None:
        class Payload: ...

        payload = Payload()
        kept.append(weakref.ref(payload))
        try:
            _Refusing(name=request.name)
        except ValidationError as error:
            raise status.invalid_argument(error) from error

    async with rig(data_dir) as it:
        it.tiny.behaviours["refuse"] = refuse
        error = await it.failure("refuse")
        assert error.fields == (errors.FieldViolation("name", "is not to our taste"),)
        await _gone(*kept)


class _Payload:
    """What a call has in its hands."""


async def test_an_error_that_a_frame_has_kept_leaves_nothing_to_the_collector(data_dir: Path) -> None:
    """SQLAlchemy's frames keep that a statement was cancelled: each such call stayed, with its connection."""
    kept: list[weakref.ref[_Payload]] = []

    async def keep(request: Any, context: Any) -> str:
        payload = _Payload()
        kept.append(weakref.ref(payload))
        try:
            if request.name == "refused":
                raise errors.ReplicaNotFound("it is gone")
            it.tiny.entered.set()
            await asyncio.Event().wait()
        except BaseException as error:
            caught = error
            raise
        return f"{caught}"

    async with rig(data_dir) as it, asyncio.timeout(60):
        it.tiny.behaviours.update(refused=keep, left=keep)
        gc.disable()
        try:
            assert type(await it.failure("refused")) is errors.ReplicaNotFound
            leaving = asyncio.create_task(it.get("left"))
            await it.tiny.entered.wait()
            leaving.cancel()
            await asyncio.wait([leaving])
            while any(one() is not None for one in kept):  # noqa: ASYNC110 - the last one is just being ended
                await asyncio.sleep(0.01)
        finally:
            gc.enable()
        assert len(kept) == 2


async def test_a_call_that_is_left_while_it_is_written_down_leaves_nothing_to_the_collector(data_dir: Path) -> None:
    kept: list[weakref.ref[Any]] = []

    class Slow:
        async def record(self, entry: object) -> None:
            it.tiny.entered.set()
            await asyncio.Event().wait()

    async def refuse(request: Any, context: Any) -> None:
        kept.append(weakref.ref(asyncio.current_task()))
        call = interceptors._call.get()
        assert call is not None
        call.audit = Slow()  # type: ignore[assignment]
        raise errors.ReplicaNotFound("it is gone")

    async with rig(data_dir) as it, asyncio.timeout(60):
        it.tiny.behaviours["refuse"] = refuse
        gc.disable()
        try:
            leaving = asyncio.create_task(it.get("refuse"))
            await it.tiny.entered.wait()
            leaving.cancel()
            await asyncio.wait([leaving])
            while any(one() is not None for one in kept):  # noqa: ASYNC110 - it is just being ended
                await asyncio.sleep(0.01)
        finally:
            gc.enable()
        assert len(kept) == 1


async def test_a_timer_that_a_call_has_set_keeps_nothing_of_it(data_dir: Path) -> None:
    kept: list[weakref.ref[Any]] = []
    timers: list[asyncio.TimerHandle] = []

    async def set_a_timer(request: Any, context: Any) -> str:
        kept.append(weakref.ref(asyncio.current_task()))
        timers.append(asyncio.get_running_loop().call_later(3600, list))
        if request.name == "timer:refuse":
            raise errors.InvalidArgument("no")
        return ""

    async with rig(data_dir) as it:
        it.tiny.behaviours["timer"] = set_a_timer
        await it.get("timer")
        await it.failure("timer:refuse")
        await it.get("another")  # gRPC keeps the last call until the next one comes
        await _gone(*kept)
        assert len(timers) == 2
        for timer in timers:
            timer.cancel()


async def test_a_path_that_is_no_text_ends_nothing(data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It ends the loop in which grpc.aio takes calls: the ports were closed, and the process lived on for nobody."""

    async def again(ask: Callable[..., Awaitable[str]], *given: str) -> str:
        """As a client that tries again what is worth it."""
        while True:
            try:
                return await ask(*given, wait_for_ready=True)
            except grpc.aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                    raise

    async with rig(data_dir) as it, asyncio.timeout(60):
        running = asyncio.create_task(it.get("wait:1", timeout=60))
        await it.tiny.entered.wait()
        for turn in range(1, 4):
            _, writer = await asyncio.open_connection("127.0.0.1", it.host.port)
            writer.write(PREFACE + frame(SETTINGS) + call(b"/modelmora\xff/Embed"))
            while caplog.text.count("broke the gRPC server") < turn:  # noqa: ASYNC110 - only the log tells
                await asyncio.sleep(0.01)
            assert await again(it.get, "nothing") == ""
            assert await again(it.embed, "caller") == "peer default service True"  # from context to context
            writer.close()
        it.tiny.go_on.set()
        await running


@pytest.mark.parametrize("path", [f"/{INFERENCE}/Embed", f"/{LIFECYCLE}/WatchReplicas"])
@pytest.mark.parametrize("message", [None, b"", bytes(3), b"\0\0\0\0\x09abc"])
async def test_a_call_that_is_closed_before_its_message_is_answered(
    data_dir: Path, path: str, message: bytes | None
) -> None:
    """grpc.aio leaves it open and says nothing: a client without a deadline would wait for ever."""
    whole = call(path.encode(), message or b"")
    if message is None:
        whole = frame(HEADERS, head(path.encode()), flags=END_HEADERS | END_STREAM, stream=1)
    async with rig(data_dir) as it, asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", it.host.port)
        writer.write(PREFACE + frame(SETTINGS) + whole)
        answer = b""
        while not any(kind == HEADERS and stream == 1 for kind, stream, _ in frames(answer)):
            answer += await reader.read(65536)
        writer.close()
        (headers,) = [block for kind, stream, block in frames(answer) if (kind, stream) == (HEADERS, 1)]
        assert b"the call has no request message" in headers
        assert await it.embed("caller", timeout=20)


async def test_an_answer_that_meets_the_end_of_its_call_is_no_error(
    data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """gRPC fails what is sent in a call that is over, sometimes before it says that the call is over."""

    async def answer(request: Any, context: Any) -> str:
        it.tiny.entered.set()
        raise cygrpc.ExecuteBatchError("the call is over")

    async with rig(data_dir) as it, asyncio.timeout(60):
        it.tiny.behaviours["over"] = answer
        over = asyncio.create_task(it.get("over"))
        await it.tiny.entered.wait()
        assert await it.get("caller")
        over.cancel()
        await asyncio.wait([over])
        assert await it.get("caller")
    assert [one.message for one in caplog.records if one.levelno >= logging.WARNING] == []


async def test_a_header_that_is_no_text_is_not_written_to_the_log(data_dir: Path) -> None:
    """gRPC's own logger would write it whole, and a token with one wrong byte is still nearly the token."""
    written = io.StringIO()
    with telemetry.logs("info", "text", None, written):
        async with rig(data_dir) as it, asyncio.timeout(60):
            reader, writer = await asyncio.open_connection("127.0.0.1", it.host.port)
            writer.write(PREFACE + frame(SETTINGS) + call(authorization=b"Bearer my-secret\xff"))
            answer = b""
            while not any(stream == 1 for _, stream, _ in frames(answer)):
                answer += await reader.read(65536)
            writer.close()
    assert "a header that is not UTF-8" in written.getvalue()
    assert "my-secret" not in written.getvalue()
    assert "Traceback" not in written.getvalue()


async def test_calls_leave_nothing_to_the_collector(data_dir: Path) -> None:
    """What only the collector can free stays for long: it looks seldom, and at what it has missed hardly ever."""

    def calls() -> int:
        return sum(type(one).__name__ == "RPCState" for one in gc.get_objects())

    async with rig(data_dir) as it, asyncio.timeout(60):
        await it.get("nothing")
        gc.collect()
        gc.disable()
        try:
            before = calls()
            for _ in range(20):
                await it.get("nothing")
                assert type(await it.failure("raise:x")) is errors.ReplicaNotFound
            await it.get("nothing")
            while calls() > before + 2:  # noqa: ASYNC110 - the last ones are just being ended
                await asyncio.sleep(0.01)
        finally:
            gc.enable()
