"""How both clients make calls: retries, deadlines, errors, cursors, against a small gRPC server in this process."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from modelmora import AsyncClient, Client, errors
from modelmora.registry.v1 import registry_pb2, registry_pb2_grpc
from modelmora.retry import RetryPolicy

FAST = RetryPolicy(attempts=4, first_delay_seconds=0.001, max_delay_seconds=0.002)


def _packed(message: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def fail(context: grpc.ServicerContext, code: grpc.StatusCode, reason: str, *, retry_ms: int | None = None) -> None:
    details = [
        _packed(error_details_pb2.ErrorInfo(reason=reason, domain="modelmora", metadata={"model": "a/b"})),
        _packed(
            error_details_pb2.BadRequest(
                field_violations=[error_details_pb2.BadRequest.FieldViolation(field="name", description="is bad")]
            )
        ),
    ]
    if retry_ms is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(retry_ms)
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    status = status_pb2.Status(code=code.value[0], message="said so", details=details)
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(code, "said so")


class Registry(registry_pb2_grpc.RegistryServiceServicer):
    """Answers as the test says: each RPC runs `script(attempt, request, context)`."""

    def __init__(self) -> None:
        self.script: Callable[[int, Any, grpc.ServicerContext], Any] = lambda *_: None
        self.seen: list[Any] = []
        self.headers: list[dict[str, Any]] = []
        self._lock = threading.Lock()

    def _answer(self, request: Any, context: grpc.ServicerContext) -> Any:
        with self._lock:
            self.seen.append(request)
            self.headers.append(dict(context.invocation_metadata()))
            attempt = len(self.seen)
        return self.script(attempt, request, context)

    GetModel = CreateModel = DeleteModel = ListModels = UpdateModel = WatchModelVersion = _answer  # type: ignore[assignment]


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, Registry]]:
    registry = Registry()
    server = grpc.server(futures.ThreadPoolExecutor(8))
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(registry, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", registry
    server.stop(None).wait()


@pytest.fixture
def registry(server: tuple[str, Registry]) -> Registry:
    server[1].seen.clear()
    server[1].headers.clear()
    return server[1]


@pytest.fixture(params=["blocking", "asyncio"])
def call(request: pytest.FixtureRequest, server: tuple[str, Registry]) -> Callable[..., Any]:
    """`call("get_model", "a/b")` through either client, iterators collected."""

    def blocking(method: str, *args: Any, client: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        with Client(server[0], **{"retry": FAST, **(client or {})}) as connection:
            answer = getattr(connection, method)(*args, **kwargs)
            return list(answer) if hasattr(answer, "__next__") else answer

    async def awaited(method: str, *args: Any, client: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        async with AsyncClient(server[0], **{"retry": FAST, **(client or {})}) as connection:
            answer = getattr(connection, method)(*args, **kwargs)
            return [item async for item in answer] if hasattr(answer, "__anext__") else await answer

    return blocking if request.param == "blocking" else lambda *args, **kwargs: asyncio.run(awaited(*args, **kwargs))


class Clock:
    """The clients' clock, which goes on as the test says, and beside that as time does, or not."""

    def __init__(self) -> None:
        self.more_seconds = 0.0
        self.time = time.monotonic

    def monotonic(self) -> float:
        return self.time() + self.more_seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for module in ("client", "aio"):
        monkeypatch.setattr(f"modelmora.{module}.time", SimpleNamespace(monotonic=made.monotonic))
    return made


def test_a_named_error_arrives_as_the_class_that_left(registry: Registry, call: Callable[..., Any]) -> None:
    registry.script = lambda _, __, context: fail(context, grpc.StatusCode.NOT_FOUND, "ModelNotFound")
    with pytest.raises(errors.ModelNotFound) as raised:
        call("get_model", "a/b")
    assert raised.value.message == "said so"
    assert raised.value.metadata == {"model": "a/b"}
    assert raised.value.fields == (errors.FieldViolation("name", "is bad"),)
    assert len(registry.seen) == 1


def test_an_unknown_reason_is_still_caught_by_its_status(registry: Registry, call: Callable[..., Any]) -> None:
    registry.script = lambda _, __, context: fail(context, grpc.StatusCode.FAILED_PRECONDITION, "FromTheFuture")
    with pytest.raises(errors.FailedPrecondition) as raised:
        call("get_model", "a/b")
    assert raised.value.reason == "FromTheFuture"


def test_damaged_details_leave_the_status(registry: Registry, call: Callable[..., Any]) -> None:
    def damaged(_: int, __: Any, context: grpc.ServicerContext) -> None:
        context.set_trailing_metadata((("grpc-status-details-bin", b"\xff\xff\xff"),))
        context.abort(grpc.StatusCode.ABORTED, "torn")

    registry.script = damaged
    with pytest.raises(errors.Aborted, match="torn"):
        call("get_model", "a/b")


def test_unavailable_is_retried_until_it_answers(registry: Registry, call: Callable[..., Any]) -> None:
    def script(attempt: int, _: Any, context: grpc.ServicerContext) -> Any:
        if attempt < 3:
            fail(context, grpc.StatusCode.UNAVAILABLE, "DatabaseUnavailable")
        return registry_pb2.GetModelResponse(model=registry_pb2.Model(name="models/a/b"))

    registry.script = script
    assert call("get_model", "a/b").name == "models/a/b"
    assert len(registry.seen) == 3


def test_a_creating_call_repeats_its_request_id(registry: Registry, call: Callable[..., Any]) -> None:
    def script(attempt: int, _: Any, context: grpc.ServicerContext) -> Any:
        if attempt < 3:
            fail(context, grpc.StatusCode.UNAVAILABLE, "DatabaseUnavailable")
        return registry_pb2.CreateModelResponse()

    registry.script = script
    call("create_model", "a/b")
    assert len({request.request_id for request in registry.seen}) == 1
    assert registry.seen[0].request_id
    call("create_model", "a/b")
    assert len({request.request_id for request in registry.seen}) == 2


@pytest.mark.parametrize(("method", "args"), [("delete_model", ("a/b",)), ("update_model", ("a/b",))])
def test_what_may_not_be_repeated_is_sent_once(
    registry: Registry, call: Callable[..., Any], method: str, args: tuple[str, ...]
) -> None:
    registry.script = lambda _, __, context: fail(context, grpc.StatusCode.UNAVAILABLE, "ShuttingDown", retry_ms=1)
    with pytest.raises(errors.ShuttingDown):
        call(method, *args, **({"etag": "1"} if method == "update_model" else {}))
    assert len(registry.seen) == 1


def test_a_delay_beyond_the_deadline_is_not_waited_for(registry: Registry, call: Callable[..., Any]) -> None:
    registry.script = lambda _, __, context: fail(
        context, grpc.StatusCode.RESOURCE_EXHAUSTED, "QueueFull", retry_ms=90_000
    )
    start = time.monotonic()
    with pytest.raises(errors.QueueFull) as raised:
        call("get_model", "a/b", timeout=60)
    assert time.monotonic() - start < 30
    assert raised.value.retry_after_seconds == pytest.approx(90)
    assert len(registry.seen) == 1


def test_a_deadline_that_passes_in_a_later_attempt_is_told_as_that_of_the_call(
    registry: Registry, call: Callable[..., Any]
) -> None:
    def script(attempt: int, _: Any, context: grpc.ServicerContext) -> Any:
        if attempt == 1:
            fail(context, grpc.StatusCode.UNAVAILABLE, "LoadFailed", retry_ms=1)
        fail(context, grpc.StatusCode.DEADLINE_EXCEEDED, "DeadlineExceeded")

    registry.script = script
    with pytest.raises(errors.DeadlineExceeded) as raised:
        call("get_model", "a/b", timeout=60)
    assert raised.value.message.startswith("no answer within ")
    assert round(float(raised.value.message.split()[3])) == 60
    assert raised.value.message.endswith(" s; attempt 1 failed: said so (LoadFailed); attempt 2: said so")
    assert raised.value.metadata == {"model": "a/b"}


def test_the_budget_of_a_client_ends_its_retries(server: tuple[str, Registry], registry: Registry) -> None:
    registry.script = lambda _, __, context: fail(context, grpc.StatusCode.UNAVAILABLE, "DatabaseUnavailable")
    with Client(server[0], retry=FAST) as client:
        for _ in range(10):
            with pytest.raises(errors.DatabaseUnavailable):
                client.get_model("a/b")
    assert len(registry.seen) == 10 + 10, "ten calls and the budget of ten retries"


def test_the_deadline_covers_all_attempts(registry: Registry, call: Callable[..., Any], clock: Clock) -> None:
    remaining: list[float] = []

    def script(_: int, __: Any, context: grpc.ServicerContext) -> Any:
        remaining.append(context.time_remaining() or -1)
        clock.more_seconds += 100  # so long this attempt took
        fail(context, grpc.StatusCode.UNAVAILABLE, "DatabaseUnavailable", retry_ms=1)

    registry.script = script
    with pytest.raises(errors.DatabaseUnavailable):
        call("get_model", "a/b", timeout=500)
    assert [round(seconds, -2) for seconds in remaining] == [500, 400, 300, 200]


def test_a_silent_server_is_a_deadline_exceeded(registry: Registry, call: Callable[..., Any]) -> None:
    gone = threading.Event()

    def script(_: int, __: Any, context: grpc.ServicerContext) -> Any:
        if context.add_callback(gone.set):
            gone.wait(20)
        return registry_pb2.GetModelResponse()

    registry.script = script
    with pytest.raises(errors.DeadlineExceeded):
        call("get_model", "a/b", timeout=0.2)


def test_nobody_listening_is_unavailable() -> None:
    with Client("127.0.0.1:1", retry=FAST) as client, pytest.raises(errors.Unavailable):
        client.get_model("a/b", timeout=60)


def test_the_token_goes_with_every_call(registry: Registry, call: Callable[..., Any]) -> None:
    registry.script = lambda *_: registry_pb2.GetModelResponse()
    call("get_model", "a/b", client={"token": "secret", "metadata": [("x-tenant", "t")]})
    assert registry.headers[0]["authorization"] == "Bearer secret"
    assert registry.headers[0]["x-tenant"] == "t"


def test_target_and_token_come_from_the_environment(
    server: tuple[str, Registry], registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELMORA_TARGET", server[0])
    monkeypatch.setenv("MODELMORA_TOKEN", "from-env")
    registry.script = lambda *_: registry_pb2.GetModelResponse()
    with Client() as client:
        client.get_model("a/b")
    with Client(token="") as client:
        client.get_model("a/b")
    assert [headers.get("authorization") for headers in registry.headers] == ["Bearer from-env", None]


def test_a_list_fetches_every_page(registry: Registry, call: Callable[..., Any]) -> None:
    def script(_: int, request: registry_pb2.ListModelsRequest, __: grpc.ServicerContext) -> Any:
        page = int(request.page_token or 0)
        return registry_pb2.ListModelsResponse(
            models=[registry_pb2.Model(name=f"models/a/{page}{row}") for row in range(2)],
            next_page_token=str(page + 1) if page < 2 else "",
        )

    registry.script = script
    assert [model.name[-2:] for model in call("list_models")] == ["00", "01", "10", "11", "20", "21"]


def test_a_watch_resumes_after_its_last_cursor(registry: Registry, call: Callable[..., Any]) -> None:
    def script(attempt: int, _: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        for step in (1, 2):
            cursor = str(2 * attempt - 2 + step)
            yield registry_pb2.WatchModelVersionResponse(
                model_version=registry_pb2.ModelVersion(revision=int(cursor)), cursor=cursor
            )
        if attempt < 3:
            fail(context, grpc.StatusCode.UNAVAILABLE, "ShuttingDown", retry_ms=1)

    registry.script = script
    revisions = [event.model_version.revision for event in call("watch_version", "a/b@1")]
    assert revisions == [1, 2, 3, 4, 5, 6]
    assert [request.cursor for request in registry.seen] == ["", "2", "4"]


def test_waiting_for_a_version_raises_why_it_failed(registry: Registry, call: Callable[..., Any]) -> None:
    def script(*_: Any) -> Iterator[Any]:
        yield registry_pb2.WatchModelVersionResponse(
            model_version=registry_pb2.ModelVersion(state=registry_pb2.MODEL_VERSION_STATE_CREATING)
        )
        yield registry_pb2.WatchModelVersionResponse(
            model_version=registry_pb2.ModelVersion(
                state=registry_pb2.MODEL_VERSION_STATE_FAILED,
                failure=registry_pb2.Failure(reason="ChecksumMismatch", message="model.bin"),
            )
        )

    registry.script = script
    states: list[int] = []
    with pytest.raises(errors.ChecksumMismatch, match=r"model\.bin"):
        call("wait_ready", "a/b@1", on_change=lambda version: states.append(version.state))
    assert states == [registry_pb2.MODEL_VERSION_STATE_CREATING, registry_pb2.MODEL_VERSION_STATE_FAILED]


def test_a_watch_without_end_stops_at_its_deadline(registry: Registry, call: Callable[..., Any]) -> None:
    def script(_: int, __: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        yield registry_pb2.WatchModelVersionResponse(cursor="1")
        gone = threading.Event()
        if context.add_callback(gone.set):
            gone.wait(20)

    registry.script = script
    with pytest.raises(errors.DeadlineExceeded):
        call("watch_version", "a/b@1", timeout=0.3)


def test_a_bad_timeout_is_named() -> None:
    for timeout in (0, -1, float("nan")):
        with pytest.raises(errors.InvalidArgument) as raised:
            Client(timeout=timeout)
        assert raised.value.fields[0].field == "timeout"


def test_a_watch_outlives_a_restart_that_takes_longer_than_the_retries(
    registry: Registry, call: Callable[..., Any]
) -> None:
    def script(attempt: int, _: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        if attempt <= 30:
            fail(context, grpc.StatusCode.UNAVAILABLE, "ShuttingDown", retry_ms=1)
        yield registry_pb2.WatchModelVersionResponse(cursor="1")

    registry.script = script
    assert len(call("watch_version", "a/b@1")) == 1
    assert len(registry.seen) == 31


def test_a_watch_gives_up_when_nobody_is_heard_for_the_clients_timeout(
    registry: Registry, call: Callable[..., Any], clock: Clock
) -> None:
    def script(attempt: int, __: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        if attempt > 50:
            return
        clock.more_seconds += 2  # more than 5 would count as connected
        fail(context, grpc.StatusCode.UNAVAILABLE, "ShuttingDown", retry_ms=1)
        yield

    registry.script = script
    clock.time = lambda: 0.0  # the machine may stand still for more than these 5 seconds
    with pytest.raises(errors.ShuttingDown):
        call("watch_version", "a/b@1", client={"timeout": 40.0})
    assert 10 <= len(registry.seen) <= 20, "longer than the four attempts of a call, and 40 s at most"


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), 1e300])
def test_a_timeout_that_is_no_time_to_wait_is_refused(
    registry: Registry, call: Callable[..., Any], timeout: float
) -> None:
    registry.script = lambda *_: registry_pb2.GetModelResponse()
    for refused in (
        lambda: call("get_model", "a/b", timeout=timeout),
        lambda: call("get_model", "a/b", client={"timeout": timeout}),
        lambda: call("watch_version", "a/b@1", timeout=timeout),
        lambda: call("wait_serving", timeout=timeout),
    ):
        with pytest.raises(errors.InvalidArgument) as raised:
            refused()
        assert [violation.field for violation in raised.value.fields] == ["timeout"]
    assert registry.seen == []


@pytest.mark.parametrize(
    ("method", "given", "fields", "path"),
    [
        ("embed", ("a/b", ["fine", "\ud800"]), {}, "texts[1]"),
        ("embed", ("a/b", ["fine", 7]), {}, "texts[1]"),
        ("embed", ("a/b", "x"), {"dimensions": 2**40}, "dimensions"),
        ("embed", ("a/\udfff", "x"), {}, "model"),
        ("embed", ("a/b", "x"), {"priority": 2**40}, "priority"),
        ("get_model", ("\ud800",), {}, "name"),
        ("list_models", (), {"page_size": 2**31}, "page_size"),
        ("create_model", ("a/b",), {"labels": {"a": "\ud800"}}, "model.labels"),
        ("update_model", ("a/b",), {"display_name": "\ud800"}, "model.display_name"),
        ("import_model", ("a/b", "1"), {"path": "/\udc80"}, "source.local.path"),
        ("import_model", ("a/b", "1"), {"hub": "a/b", "revision": "\ud800"}, "source.hub.revision"),
        (
            "create_version",
            ("a/b", "1"),
            {"empty": True, "memory_bytes": 2**63},
            "resource_requirements.memory_bytes",
        ),
        ("create_version", ("a/b", "\ud800"), {"empty": True}, "model_version.version"),
        ("create_version", ("a/b", "1"), {"empty": True, "engine_options": {"x": {1, 2}}}, "engine_options.x"),
        ("wait_serving", ("x" * 300,), {}, "service"),
    ],
)
def test_an_argument_that_no_message_can_hold_is_named(
    call: Callable[..., Any], method: str, given: tuple[Any, ...], fields: dict[str, Any], path: str
) -> None:
    with pytest.raises(errors.InvalidArgument) as raised:
        call(method, *given, **fields)
    assert [violation.field for violation in raised.value.fields] == [path]


def test_a_closed_client_says_so(server: tuple[str, Registry]) -> None:
    client = Client(server[0])
    client.close()
    for use in (
        lambda: client.get_model("a/b"),
        lambda: list(client.list_models()),
        lambda: next(client.watch_version("a/b@1")),
        lambda: client.wait_serving(),
    ):
        with pytest.raises(errors.ClientClosed):
            use()


async def test_a_closed_asyncio_client_says_so(server: tuple[str, Registry]) -> None:
    client = AsyncClient(server[0])
    await client.close()
    with pytest.raises(errors.ClientClosed):
        await client.get_model("a/b")
    with pytest.raises(errors.ClientClosed):
        await anext(client.watch_version("a/b@1"))
    with pytest.raises(errors.ClientClosed):
        await client.wait_serving()
