"""The worker's service against messages nobody would send: it never dies, and answers each with an error or a door."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct
import threading
from pathlib import Path

import pytest
from google.protobuf.message import DecodeError, Message
from modelmora import errors
from modelmora.worker.v1 import worker_pb2
from modelmora_lifecycle.launcher import LaunchSpec, LocalLauncher
from modelmora_runtime import framing
from modelmora_runtime.framing import FrameServer
from modelmora_runtime.worker_channel import WorkerChannel
from modelmora_worker.service import WorkerService

MESSAGES = 600
TEXTS = ["", "a", "a b c", "\0", "é" * 50, "x" * 5000, "\U0001f600", "../../etc/passwd", "models/a/b/versions/1"]
NUMBERS = [0, 1, -1, 2, 7, 2**31 - 1, -(2**31), 2**40, -(2**40), 2**63 - 1, -(2**63)]


def fill(message: Message, chance: random.Random, depth: int = 0) -> None:
    """Random values in random fields, extremes above all."""
    for field in message.DESCRIPTOR.fields:
        if chance.random() < 0.4 or depth > 4:
            continue
        repeated = field.is_repeated
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            continue
        for _ in range(chance.choice([0, 1, 3]) if repeated else 1):
            if field.type == field.TYPE_MESSAGE:
                part = getattr(message, field.name)
                fill(part.add() if repeated else part, chance, depth + 1)
                if not repeated:
                    part.SetInParent()
                continue
            try:
                value = value_of(field.type, field, chance)
                if repeated:
                    getattr(message, field.name).append(value)
                else:
                    setattr(message, field.name, value)
            except (ValueError, TypeError):
                continue  # out of the field's range: protobuf itself would not send it


def value_of(kind: int, field: object, chance: random.Random) -> object:
    descriptor = type(field)
    if kind == descriptor.TYPE_STRING:
        return chance.choice([*TEXTS, "echo", "sentence_transformers"])
    if kind == descriptor.TYPE_BYTES:
        return chance.randbytes(chance.choice([0, 1, 32, 5000]))
    if kind == descriptor.TYPE_BOOL:
        return chance.random() < 0.5
    if kind in (descriptor.TYPE_DOUBLE, descriptor.TYPE_FLOAT):
        return chance.choice([0.0, -1.0, float("nan"), float("inf"), 1e308, 0.5])
    return chance.choice(NUMBERS)


def mutated(data: bytes, chance: random.Random) -> bytes:
    found = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        action = chance.random()
        at = chance.randrange(len(found) + 1)
        if action < 0.4 and at < len(found):
            found[at] = chance.randrange(256)
        elif action < 0.7:
            del found[at : at + chance.randint(1, 10)]
        else:
            found[at:at] = chance.randbytes(chance.randint(1, 10))
    return bytes(found)


class Stranger:
    """A raw connection with a key: sends bytes as messages, reads what comes."""

    def __init__(self, path: str, key: bytes) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(path)
        self.wire = framing.Wire()
        self.wire.open_window()
        hello = worker_pb2.WorkerRequest(hello=worker_pb2.Hello(key=key, wire_version=1))
        self.wire.send_control(1, hello.SerializeToString())
        self.events(1)

    def events(self, request_id: int) -> list[worker_pb2.WorkerReply] | None:
        """Replies to a request up to the first; None when the door was shut."""
        while True:
            try:
                while output := self.wire.take():
                    self.socket.sendall(output)
                data = self.socket.recv(1 << 20)
            except OSError:
                return None
            if not data:
                return None
            found = []
            for kind, number, payload in self.wire.receive(data):
                if kind == framing.CLOSED:
                    return None
                if kind in (framing.MESSAGE, framing.CONTROL) and number == request_id:
                    found.append(worker_pb2.WorkerReply.FromString(payload))
            if found:
                return found


def storm(path: str, key: bytes, seed: int) -> dict[str, int]:
    chance = random.Random(seed)
    seen = {"answers": 0, "errors": 0, "doors": 0}
    stranger = None
    for number in range(MESSAGES):
        stranger = stranger or Stranger(path, key)
        request = worker_pb2.WorkerRequest()
        kind = chance.choice(["infer", "infer", "load", "stream", "watch", "key", "hello", "nothing"])
        if kind != "nothing":
            part = getattr(request, kind)
            fill(part, chance)
            part.SetInParent()
        if kind == "key":
            request.key.withdraw = False
        data = request.SerializeToString()
        if chance.random() < 0.5:
            data = mutated(data, chance)
            try:
                if worker_pb2.WorkerRequest.FromString(data).WhichOneof("message") in ("drain", "cancel"):
                    continue  # the one ends the worker by right, the other has no answer
            except DecodeError:
                pass  # it is no message at all, which is the point
        control = kind in ("watch", "key", "hello") or chance.random() < 0.1
        request_id = number + 10
        if control and len(data) < framing.MAX_CONTROL_BYTES:
            stranger.wire.send_control(request_id, data)
        else:
            stranger.wire.send(request_id, data)
        replies = stranger.events(request_id)
        if replies is None:
            seen["doors"] += 1
            stranger.socket.close()
            stranger = None
        else:
            seen["errors" if replies[-1].WhichOneof("message") == "error" else "answers"] += 1
    if stranger:
        stranger.socket.close()
    return seen


@pytest.mark.parametrize("loaded", [False, True], ids=["before-the-load", "loaded"])
async def test_random_and_mutated_messages_never_end_a_worker(data_dir: Path, loaded: bool) -> None:
    launcher = LocalLauncher(data_dir / "run", data_dir / "logs")
    worker = await launcher.launch(LaunchSpec("fuzz", "echo", "fuzz"), timeout_seconds=30)
    control = await WorkerChannel.connect(worker.endpoint, worker.control_key)
    if loaded:
        await control.load(worker_pb2.LoadRequest(engine="echo"), timeout_seconds=30)
        key = os.urandom(32)
        await control.allow(key)
    else:
        key = worker.control_key
    path = worker.endpoint.removeprefix("unix:")
    seen = await asyncio.to_thread(storm, path, key, 7 + loaded)
    assert sum(seen.values()) > 0.9 * MESSAGES
    assert min(seen.values()) > 0 if loaded else seen["errors"] > 0, seen
    assert not worker.exited.done()
    if not loaded:
        with pytest.raises(errors.ModelMoraError):
            await anext(control.infer(worker_pb2.InferRequest(texts=[worker_pb2.TextEntry(text="a")])))
    else:
        reply = await anext(control.infer(worker_pb2.InferRequest(texts=[worker_pb2.TextEntry(text="a")])))
        assert struct.unpack("<8f", reply.rows)
    await control.close()
    await launcher.close()


async def test_random_loads_are_answered_each_by_an_error_or_a_model(data_dir: Path) -> None:
    os.makedirs(data_dir)
    chance = random.Random(3)
    loaded = 0
    for number in range(60):
        path = str(data_dir / f"{number}")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        service = WorkerService(b"k" * 32)
        server = FrameServer(listener, service)
        service.attach(server)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            request = worker_pb2.LoadRequest(engine=chance.choice(["echo", "sentence_transformers", "", "nonsense"]))
            engine = request.engine
            fill(request, chance)
            request.engine = engine
            control = await WorkerChannel.connect(f"unix:{path}", b"k" * 32)
            try:
                await control.load(request, timeout_seconds=20)
                loaded += 1
            except errors.ModelMoraError as error:
                assert not isinstance(error, errors.WorkerUnavailable | errors.InternalError), error  # noqa: PT017
            assert (await anext(control.watch(10))).in_flight == 0
            await control.close()
        finally:
            server.stop()
            thread.join(20)
            service.close()
            assert not thread.is_alive()
    assert 0 < loaded < 60
