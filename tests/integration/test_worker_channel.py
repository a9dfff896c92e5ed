"""The caller's end of the wire: workers that are gone, speak nonsense, do not read or were given up."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import uvloop
from modelmora import errors
from modelmora.worker.v1 import worker_pb2
from modelmora_lifecycle.launcher import LaunchSpec, LocalLauncher
from modelmora_runtime import framing, worker_channel
from modelmora_runtime.worker_channel import WorkerChannel
from modelmora_worker import service
from third_party import install

KEY = b"k" * 32


class ScriptedWorker:
    """A server that answers hello, and then what the test says."""

    def __init__(self, path: Path) -> None:
        self.endpoint = f"unix:{path}"
        self.path = path
        self.connected = asyncio.Event()
        self.writer: asyncio.StreamWriter | None = None
        self.reader: asyncio.StreamReader | None = None
        self.wire = framing.Wire()
        self.requests: list[framing.Event] = []
        self.server: asyncio.Server | None = None

    async def __aenter__(self) -> ScriptedWorker:
        self.server = await asyncio.start_unix_server(self._accept, self.path)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.writer is not None:
            self.writer.close()
        self.server.close()
        await self.server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.wire.open_window()
        while not self.connected.is_set():
            for kind, request_id, _ in self.wire.receive(await reader.read(65536)):
                assert kind == framing.CONTROL
                reply = worker_pb2.WorkerReply(hello=worker_pb2.HelloReply(wire_version=1, pid=7))
                self.wire.send_control(request_id, reply.SerializeToString())
                self.connected.set()
        self.write()

    def write(self) -> None:
        while output := self.wire.take():
            self.writer.write(output)

    async def request(self) -> tuple[int, worker_pb2.WorkerRequest]:
        while not self.requests:
            self.requests += self.wire.receive(await self.reader.read(1 << 20))
        _, request_id, payload = self.requests.pop(0)
        return request_id, worker_pb2.WorkerRequest.FromString(payload)

    def reply(self, request_id: int, **reply: object) -> None:
        self.wire.send(request_id, worker_pb2.WorkerReply(**reply).SerializeToString())
        self.write()


@pytest.fixture
async def fake(data_dir: Path) -> AsyncIterator[ScriptedWorker]:
    async with ScriptedWorker(data_dir.parent / "w.sock") as fake:
        yield fake


@pytest.fixture
async def channel(fake: ScriptedWorker) -> AsyncIterator[WorkerChannel]:
    channel = await WorkerChannel.connect(fake.endpoint, KEY)
    yield channel
    await channel.close()


def infer(channel: WorkerChannel, text: str = "a") -> worker_channel.InferCall:
    return channel.infer(worker_pb2.InferRequest(texts=[worker_pb2.TextEntry(text=text)]))


async def within(awaitable, seconds: float = 20):
    async with asyncio.timeout(seconds):
        return await awaitable


async def test_no_worker_at_the_endpoint(data_dir):
    with pytest.raises(errors.WorkerUnavailable):
        await WorkerChannel.connect(f"unix:{data_dir.parent / 'nobody'}", KEY)


async def test_an_endpoint_of_another_kind(data_dir):
    with pytest.raises(errors.WorkerUnavailable):
        await WorkerChannel.connect("tcp:localhost:1", KEY)


async def test_a_worker_that_does_not_answer_hello(data_dir):
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(data_dir.parent / "deaf"))
        deaf.listen()
        with pytest.raises(errors.WorkerUnavailable, match=r"not within 0\.1 s"):
            await WorkerChannel.connect(f"unix:{data_dir.parent / 'deaf'}", KEY, timeout_seconds=0.1)


@pytest.mark.parametrize("sent", [b"\0" * 64, b"HTTP/1.1 400 Bad Request\r\n\r\n"])
async def test_a_worker_that_speaks_nonsense_is_left(fake, channel, sent):
    call = infer(channel)
    fake.writer.write(sent)
    with pytest.raises(errors.WorkerUnavailable, match="not-a-frame"):
        await within(anext(call))
    assert channel.closed.is_set()


async def test_a_reply_that_is_no_message_ends_the_connection(fake, channel):
    call = infer(channel)
    request_id, _ = await within(fake.request())
    fake.wire.send(request_id, b"\xff\xff\xff")
    fake.write()
    with pytest.raises(errors.WorkerUnavailable):
        await within(anext(call))


async def test_an_error_comes_as_the_class_of_its_name(fake, channel):
    call = infer(channel)
    request_id, _ = await within(fake.request())
    error = worker_pb2.ErrorReply(reason="TextTooLong", message="300 tokens", metadata={"limit": "256"})
    error.fields["texts[0]"] = "too long"
    fake.reply(request_id, error=error)
    with pytest.raises(errors.TextTooLong) as caught:
        await within(anext(call))
    assert caught.value.message == "300 tokens"
    assert caught.value.metadata == {"limit": "256"}
    assert caught.value.fields == (errors.FieldViolation("texts[0]", "too long"),)


@pytest.mark.parametrize(
    ("reason", "status", "base"),
    [
        ("EngineOnFire", "FAILED_PRECONDITION", errors.FailedPrecondition),
        ("EngineOnFire", "", errors.InternalError),
        ("annotations", "", errors.InternalError),
        ("__class__", "NOT_FOUND", errors.NotFound),
    ],
)
async def test_an_error_nobody_knows_keeps_its_status(fake, channel, reason, status, base):
    call = infer(channel)
    request_id, _ = await within(fake.request())
    fake.reply(request_id, error=worker_pb2.ErrorReply(reason=reason, status=status, message="oh"))
    with pytest.raises(base):
        await within(anext(call))


async def test_replies_to_nobody_are_taken_and_forgotten(fake, channel):
    for _ in range(1000):
        fake.reply(12345, infer=worker_pb2.InferReply(done=True))
        await fake.writer.drain()
    await channel_answers(fake, channel)


async def channel_answers(fake: ScriptedWorker, channel: WorkerChannel) -> None:
    """The connection still works: a request gets through and its answer comes."""
    call = infer(channel)
    while True:
        request_id, request = await within(fake.request())
        if request.WhichOneof("message") == "infer":
            break
    fake.reply(request_id, infer=worker_pb2.InferReply(done=True))
    assert (await within(anext(call))).done


async def test_an_abandoned_call_holds_back_no_credit(fake, channel):
    limits = channel._wire.limits
    for _ in range(limits.window_messages // 10):
        infer(channel)
    for _ in range(limits.window_messages // 10):
        request_id, _ = await within(fake.request())
        for number in range(20):
            fake.reply(request_id, infer=worker_pb2.InferReply(positions=[number], done=number == 19))
    await channel_answers(fake, channel)


async def test_a_request_not_sent_yet_is_withdrawn_at_once(fake, channel):
    channel._wire._credit_messages = 0
    call = infer(channel)
    call.cancel()
    with pytest.raises(errors.Cancelled):
        await within(anext(call))
    assert channel._wire.queued_bytes == 0


async def test_cancelling_after_the_end_does_nothing(fake, channel):
    call = infer(channel)
    request_id, _ = await within(fake.request())
    fake.reply(request_id, infer=worker_pb2.InferReply(done=True))
    assert [reply.done async for reply in call] == [True]
    call.cancel()
    await channel_answers(fake, channel)


async def test_a_worker_that_does_not_read_is_left(fake):
    channel = WorkerChannel(fake.endpoint, write_timeout_seconds=0.1)
    await asyncio.get_running_loop().create_unix_connection(lambda: channel, str(fake.path))
    await channel._control(worker_pb2.WorkerRequest(hello=worker_pb2.Hello(key=KEY)))
    fake.reader._transport.pause_reading()
    call = infer(channel, "x" * 4_000_000)
    with pytest.raises(errors.WorkerUnavailable, match="peer-does-not-read"):
        await within(anext(call))


async def test_a_closed_channel_refuses_everything_by_name(fake, channel):
    await channel.close()
    await channel.close()
    with pytest.raises(errors.WorkerUnavailable):
        await anext(infer(channel))
    with pytest.raises(errors.WorkerUnavailable):
        await channel.ping(timeout_seconds=1)
    with pytest.raises(errors.WorkerUnavailable):
        await channel.allow(KEY)
    with pytest.raises(errors.WorkerUnavailable):
        await channel.load(worker_pb2.LoadRequest(), timeout_seconds=1)


async def test_a_load_that_takes_too_long_is_a_failed_load(fake, channel):
    with pytest.raises(errors.LoadFailed, match=r"within 0\.05 s"):
        await channel.load(worker_pb2.LoadRequest(), timeout_seconds=0.05)


async def test_progress_of_a_load_is_told(fake, channel):
    told: list[str] = []
    load = asyncio.create_task(
        channel.load(worker_pb2.LoadRequest(), timeout_seconds=20, on_progress=lambda p: told.append(p.stage))
    )
    request_id, _ = await within(fake.request())
    for stage in ("one", "two"):
        fake.reply(request_id, load_progress=worker_pb2.LoadProgress(stage=stage))
    fake.reply(request_id, load=worker_pb2.LoadReply(embedding_dimensions=3))
    assert (await within(load)).embedding_dimensions == 3
    assert told == ["one", "two"]


# Against a worker's real conversation, in a thread of this process.


class ThreadWorker:
    """A worker in a thread, and the clock that it goes by."""

    def __init__(self, path: Path) -> None:
        self.endpoint = f"unix:{path}"
        self.now = 1000.0
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        self.service = service.WorkerService(KEY)
        self.server = framing.FrameServer(listener, self.service, clock=lambda: self.now)
        self.service.attach(self.server)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()

    def passes(self, seconds: float) -> None:
        """Returns when what was due within this time is done, which may be the end of the worker."""
        self._look()  # what was there before has its timers
        self.now += seconds
        self._look()

    def _look(self) -> None:
        looked = threading.Event()
        # Timers are looked at after what is to be called soon, so the second call comes after them.
        self.server.call_soon(lambda: self.server.call_later(0, looked.set))
        while not looked.wait(0.05) and self.thread.is_alive():
            pass

    async def uncontrolled(self) -> None:
        """Returns once it has noticed that its control connection is gone."""
        async with asyncio.timeout(20):
            while self.service._controls:
                await asyncio.to_thread(self._look)


@pytest.fixture
def thread_worker(data_dir: Path) -> Iterator[ThreadWorker]:
    worker = ThreadWorker(data_dir.parent / "w.sock")
    yield worker
    worker.server.stop()
    worker.thread.join(20)
    worker.service.close()


async def test_withdrawing_a_key_closes_its_connections(thread_worker):
    control = await WorkerChannel.connect(thread_worker.endpoint, KEY)
    key = os.urandom(32)
    await control.allow(key)
    holder = await WorkerChannel.connect(thread_worker.endpoint, key)
    await control.withdraw(key)
    await within(holder.closed.wait())
    assert "lease-withdrawn" in holder.close_reason
    await control.close()


async def test_an_answer_that_no_message_holds_ends_its_batch_and_no_other(thread_worker, monkeypatch):
    """It ended the connection: all that others had on the worker was computed again, one by one."""
    monkeypatch.setattr(service, "MAX_ANSWER_BYTES", 3000)
    control = await WorkerChannel.connect(thread_worker.endpoint, KEY)
    request = worker_pb2.LoadRequest(engine="echo")
    request.options.update({"dimensions": 500})
    await control.load(request, timeout_seconds=60)
    two = control.infer(worker_pb2.InferRequest(texts=[worker_pb2.TextEntry(text=text) for text in "ab"]))
    with pytest.raises(errors.MessageTooLarge, match="the rows of 2 texts"):
        await within(anext(two), 60)
    reply = await within(anext(infer(control)), 60)
    assert reply.done
    assert len(reply.rows) == 4 * 500
    await control.close()


async def test_a_row_that_no_message_holds_is_not_computed_and_the_others_are(thread_worker, monkeypatch):
    monkeypatch.setattr(service, "MAX_ANSWER_BYTES", 3000)
    control = await WorkerChannel.connect(thread_worker.endpoint, KEY)
    request = worker_pb2.LoadRequest(engine="echo")
    request.options.update({"dimensions": 500})
    await control.load(request, timeout_seconds=60)
    texts = [worker_pb2.TextEntry(text="a b"), worker_pb2.TextEntry(text="c")]
    texts.append(worker_pb2.TextEntry(text="d", max_row_bytes=1999))
    vectors = worker_pb2.OPERATION_TOKEN_VECTORS
    reply = await within(anext(control.infer(worker_pb2.InferRequest(texts=texts, operation=vectors))), 60)
    assert reply.done
    assert {(error.position, error.reason) for error in reply.errors} == {
        (0, "MessageTooLarge"),
        (2, "MessageTooLarge"),
    }
    assert dict(zip(reply.positions, reply.row_dimensions, strict=True)) == {0: 0, 1: 500, 2: 0}
    async for seen in control.watch(60):
        assert seen.entries == 1
        break
    await control.close()


def test_a_worker_nobody_controls_ends(thread_worker):
    thread_worker.passes(59)
    assert thread_worker.thread.is_alive()
    thread_worker.passes(2)
    thread_worker.thread.join(20)
    assert not thread_worker.thread.is_alive()


async def test_a_worker_ends_when_its_control_connection_stays_away(thread_worker):
    control = await WorkerChannel.connect(thread_worker.endpoint, KEY)
    key = os.urandom(32)
    await control.allow(key)
    holder = await WorkerChannel.connect(thread_worker.endpoint, key)
    await control.close()
    await thread_worker.uncontrolled()
    thread_worker.passes(31)
    await within(holder.closed.wait())
    await asyncio.to_thread(thread_worker.thread.join, 20)
    assert not thread_worker.thread.is_alive()


async def test_a_control_connection_that_comes_back_keeps_the_worker(thread_worker):
    for _ in range(6):
        control = await WorkerChannel.connect(thread_worker.endpoint, KEY)
        thread_worker.passes(70)
        await control.ping(timeout_seconds=20)
        await control.close()
        await thread_worker.uncontrolled()
        thread_worker.passes(20)  # longer in all than it may be away
    assert thread_worker.thread.is_alive()


async def test_only_a_loss_that_lasts_ends_a_worker(thread_worker):
    for _ in range(6):  # there and gone again, never for long: one of the old losses ends while it is away
        control = await WorkerChannel.connect(thread_worker.endpoint, KEY)
        await control.close()
        await thread_worker.uncontrolled()
        thread_worker.passes(20)
    control = await WorkerChannel.connect(thread_worker.endpoint, KEY)
    await control.ping(timeout_seconds=20)
    await control.close()


async def test_an_engine_whose_libraries_are_missing_names_the_extra(data_dir, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('no torch on this machine')")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"x")
    launcher = LocalLauncher(data_dir / "run", data_dir / "logs")
    spec = LaunchSpec(replica_uid="x", engine="x", label="x", env={"PYTHONPATH": str(tmp_path)})
    worker = await launcher.launch(spec, timeout_seconds=30)
    control = await WorkerChannel.connect(worker.endpoint, worker.control_key)
    request = worker_pb2.LoadRequest(engine="sentence_transformers", artifact_path=str(tmp_path / "model"))
    with pytest.raises(errors.EngineUnavailable, match=r"no torch on this machine.*install modelmora\[torch\]"):
        await control.load(request, timeout_seconds=30)
    await launcher.close()


async def test_an_engine_of_a_third_party_is_found_by_its_entry_point(data_dir, tmp_path):
    install(
        tmp_path,
        "their_engine",
        "from modelmora_worker.engines import base, echo\n"
        "ROW = base.EngineRow('theirs', 'their_engine:Engine', frozenset({'txt2embed'}), needs_files=False)\n"
        "class Engine(echo.EchoEngine): pass\n",
    )
    launcher = LocalLauncher(data_dir / "run", data_dir / "logs")
    spec = LaunchSpec(replica_uid="x", engine="theirs", label="x", env={"PYTHONPATH": str(tmp_path)})
    worker = await launcher.launch(spec, timeout_seconds=30)
    control = await WorkerChannel.connect(worker.endpoint, worker.control_key)
    await control.load(worker_pb2.LoadRequest(engine="theirs"), timeout_seconds=30)
    assert (await within(anext(infer(control)))).done
    await launcher.close()


async def test_closing_does_not_wait_for_a_worker_that_never_reads(tmp_path: Path) -> None:
    path = tmp_path / "deaf.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        channel = WorkerChannel(f"unix:{path}")
        transport, _ = await asyncio.get_running_loop().create_unix_connection(lambda: channel, str(path))
        while not transport.get_write_buffer_size():
            transport.write(bytes(64 * 1024))  # what the kernel does not take stays, below the mark that pauses
        assert not channel._paused
        await asyncio.wait_for(channel.close(), 20)
        assert channel.closed.is_set()


def test_who_is_cancelled_in_the_moment_of_connecting_is_cancelled(tmp_path: Path) -> None:
    """The loop that hosts run on has ended the connection by then without telling it."""

    class Cancelled(WorkerChannel):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            connecting.cancel()

    path = tmp_path / "worker.sock"
    with socket.socket(socket.AF_UNIX) as listener, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        listener.bind(str(path))
        listener.listen()

        async def connect() -> None:
            nonlocal connecting
            connecting = asyncio.create_task(Cancelled.connect(f"unix:{path}", KEY))
            await asyncio.wait((connecting,), timeout=20)

        connecting: asyncio.Task[WorkerChannel]
        runner.run(connect())
        assert connecting.cancelled()
