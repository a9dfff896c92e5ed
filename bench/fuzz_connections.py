"""Connections that talk anything but what is expected: bytes, half of HTTP/2, frames cut short, floods, a byte now and
then, nothing at all; to the port of gRPC and to that of the metrics.

What must hold: the host lives on, meanwhile good calls are answered rightly and metrics are read, and afterwards it has
as many files open as before.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct
import urllib.parse
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
from modelmora.inference.v1 import inference_pb2, inference_pb2_grpc
from modelmora_worker.engines.echo import vector

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS = 1, 4
OPEN_AT_ONCE = 50
DRIP_SECONDS = 0.01
DEADLINE_SECONDS = 60.0
HEAR_SECONDS = 0.02
"""So long a client listens before it goes."""


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0, length: int | None = None) -> bytes:
    """One HTTP/2 frame; `length` is what it says of itself, where that is a lie."""
    said = len(payload) if length is None else length
    return said.to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def frames(raw: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Kind, stream and payload of the whole frames in what was received."""
    while len(raw) >= 9 and len(raw) >= 9 + (length := int.from_bytes(raw[:3], "big")):
        yield raw[3], int.from_bytes(raw[5:9], "big") & 0x7FFFFFFF, raw[9 : 9 + length]
        raw = raw[9 + length :]


def head(path: bytes, **more: bytes) -> bytes:
    """The header block of a gRPC call, each field a literal that is not indexed."""
    fields = {":method": b"POST", ":scheme": b"http", ":authority": b"x", "te": b"trailers"}
    fields |= {"content-type": b"application/grpc", **more}
    pairs = [(b":path", path), *((name.encode(), value) for name, value in fields.items())]
    return b"".join(bytes([0, len(name)]) + name + bytes([len(value)]) + value for name, value in pairs)


def call(
    path: bytes = b"/grpc.health.v1.Health/Check", message: bytes = bytes(5), stream: int = 1, **more: bytes
) -> bytes:
    """A whole call with its message, which begins with gRPC's five bytes."""
    opened = frame(HEADERS, head(path, **more), flags=END_HEADERS, stream=stream)
    return opened + frame(DATA, message, flags=END_STREAM, stream=stream)


def openings(chance: random.Random) -> dict[str, Callable[[], bytes]]:
    """What a connection to the port of gRPC begins with, by its kind."""
    greeting = PREFACE + frame(SETTINGS)
    whole = greeting + call()

    def shaken() -> bytes:
        found = bytearray(whole)
        for _ in range(chance.randint(1, 8)):
            found[chance.randrange(len(PREFACE), len(found))] = chance.randrange(256)
        return bytes(found)

    def flood(*kinds: bytes) -> bytes:
        return greeting + b"".join(kinds) * 500

    def opened(stream: int, flags: int = END_HEADERS) -> bytes:
        return frame(HEADERS, head(b"/a.B/C"), flags=flags, stream=stream)

    def resets() -> bytes:
        streams = range(1, 1001, 2)
        return greeting + b"".join(opened(n) + frame(RST_STREAM, bytes(4), stream=n) for n in streams)

    wrong = (
        frame(DATA, bytes(5)),
        frame(DATA, bytes(5), stream=7),
        frame(HEADERS, chance.randbytes(60), flags=END_HEADERS, stream=1),
        frame(HEADERS, head(b"/a.B/C"), flags=END_HEADERS, stream=2),
        frame(PRIORITY, struct.pack(">IB", 1, 1), stream=1),
        frame(SETTINGS, b"\0"),
        frame(SETTINGS, struct.pack(">HI", 4, 2**32 - 1)),
        frame(SETTINGS, struct.pack(">HI", 5, 1)),
        frame(PUSH_PROMISE, bytes(40), stream=1),
        frame(PING, b"short"),
        frame(GOAWAY, bytes(8)),
        frame(WINDOW_UPDATE, bytes(4)),
        frame(WINDOW_UPDATE, struct.pack(">I", 2**31 - 1)) * 2,
        frame(CONTINUATION, b"x", stream=1),
        frame(200, chance.randbytes(30), stream=1),
        frame(DATA, b"few", stream=1, length=2**24 - 1),
        call(message=b"\0\xff\xff\xff\xffnot so much"),
        call(message=b"\1\0\0\0\4none"),
        call(message=b"\2"),
        call(b"/none"),
        call(b"/no text \xff"),
        call(authorization=b"Bearer \xff\x9e"),
        call(b"x" * 100, stream=2**31 - 1),
    )
    return {
        "nothing": lambda: b"",
        "garbage": lambda: chance.randbytes(chance.choice((1, 9, 100, 5000))),
        "another protocol": lambda: chance.choice(
            (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"SSH-2.0-x\r\n")
        ),
        "half a preface": lambda: PREFACE[: chance.randrange(1, len(PREFACE))],
        "cut": lambda: whole[: chance.randrange(len(PREFACE), len(whole))],
        "shaken": shaken,
        "a wrong frame": lambda: greeting + opened(1) * chance.randrange(2) + chance.choice(wrong),
        "flood of pings": lambda: flood(frame(PING, bytes(8))),
        "flood of settings": lambda: flood(frame(SETTINGS)),
        "flood of resets": resets,
        "flood of continuations": lambda: flood(
            opened(1, 0)[: 9 + 40], frame(CONTINUATION, b"\0\1a\1b" * 50, stream=1)
        ),
        "whole": lambda: whole,
    }


def requests(chance: random.Random) -> dict[str, Callable[[], bytes]]:
    """The same for the port of the metrics, which talks HTTP/1.1."""
    whole = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    return {
        "nothing": lambda: b"",
        "garbage": lambda: chance.randbytes(chance.choice((1, 9, 100, 5000))),
        "cut": lambda: whole[: chance.randrange(1, len(whole))],
        "another request": lambda: chance.choice((b"POST / HTTP/1.1\r\n\r\n", b"\r\n\r\n", b" \r\n\r\n", PREFACE)),
        "endless head": lambda: whole[:-2] + b"x: " + b"y" * 50_000,
        "whole": lambda: whole,
    }


@dataclass
class Report:
    """What there was and what came of it."""

    connections: Counter[str] = field(default_factory=Counter)
    """By port and kind."""
    answered: int = 0
    """Calls that were made by hand, byte by byte, and answered."""
    good_calls: int = 0
    good_reads: int = 0
    """Of the metrics."""
    files_before: int = 0
    findings: list[str] = field(default_factory=list)


class Connections:
    """Connections to one platform."""

    def __init__(self, target: str, metrics: str, pid: int, model: str, seed: int) -> None:
        """`model` has the echo engine."""
        self._target, self._model, self._pid = target, model, pid
        self._ports = {"grpc": _address(target), "metrics": _address(metrics)}
        self._chance = random.Random(seed)
        self.report = Report()

    async def run(self, *, each: int, dropped: int, held: int) -> None:
        """`each` connections of each kind; `dropped` that are opened and dropped; and all the while `held` that say
        nothing and as many that say a byte now and then."""
        async with grpc.aio.insecure_channel(self._target) as channel:
            stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)  # type: ignore[no-untyped-call]
            await self._good(stub)
            self.report.files_before = self.files()
            over = asyncio.Event()
            beside = [asyncio.create_task(self._good_until(over, stub))]
            for port in self._ports:
                beside += [asyncio.create_task(self._held(port, over)) for _ in range(held)]
                beside += [asyncio.create_task(self._dripping(port, over)) for _ in range(held)]
            try:
                kinds = {"grpc": openings(self._chance), "metrics": requests(self._chance)}
                todo = [
                    (port, kind, made)
                    for port, of_port in kinds.items()
                    for kind, made in of_port.items()
                    for _ in range(each)
                ]
                self._chance.shuffle(todo)
                await self._all(self._one(port, kind, made()) for port, kind, made in todo)
                await self._all(self._one(port, "dropped", b"", hear=False) for port in kinds for _ in range(dropped))
                await self._good(stub)
            finally:
                over.set()
                await asyncio.gather(*beside)

    def files(self) -> int:
        """Files and sockets that the host has open."""
        return len(os.listdir(f"/proc/{self._pid}/fd"))

    async def _all(self, connections: Iterator[Awaitable[None]]) -> None:
        async def lane() -> None:
            for one in connections:
                await one

        await asyncio.gather(*(lane() for _ in range(OPEN_AT_ONCE)))

    async def _one(self, port: str, kind: str, raw: bytes, *, hear: bool = True) -> None:
        """Says `raw` and goes: at once or after having listened, politely or not."""
        if kind == "whole":
            await self._whole(port, raw)
            return
        reader, writer = await self._open(port, kind)
        try:
            writer.write(raw)
            if hear and self._chance.random() < 0.5:
                async with asyncio.timeout(HEAR_SECONDS):
                    while await reader.read(65536):
                        pass
        except (TimeoutError, ConnectionError):
            pass
        if self._chance.random() < 0.5:  # a reset instead of an end
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async def _whole(self, port: str, raw: bytes) -> None:
        """A call as it should be, made by hand; once more when the server went away meanwhile, as others broke it."""
        heard = b""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not _is_answer[port](heard):
                reader, writer = await self._open(port, "whole")
                try:
                    writer.write(raw)
                    heard = await _heard(reader, _is_answer[port])
                except ConnectionError:
                    pass
                finally:
                    writer.transport.abort()
        self.report.answered += 1

    async def _held(self, port: str, over: asyncio.Event) -> None:
        _, writer = await self._open(port, "held")
        await over.wait()
        writer.transport.abort()

    async def _dripping(self, port: str, over: asyncio.Event) -> None:
        """A whole call, a byte at a time, without an end."""
        _, writer = await self._open(port, "dripping")
        raw = PREFACE + frame(SETTINGS) + call() if port == "grpc" else b"GET /metrics HTTP/1.1\r\nX: " + b"y" * 9000
        for byte in raw[:-1]:
            if over.is_set() or writer.transport.is_closing():
                break
            writer.write(bytes([byte]))
            try:
                async with asyncio.timeout(DRIP_SECONDS):
                    await over.wait()
            except TimeoutError:
                pass
        await over.wait()
        writer.transport.abort()

    async def _open(self, port: str, kind: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self.report.connections[f"{port}: {kind}"] += 1
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:
                try:
                    return await asyncio.open_connection(*self._ports[port])
                except ConnectionError:
                    # One server has just been broken: refused, as the next is not there yet, or reset, as the broken
                    # one closed its port before it had taken us.
                    await asyncio.sleep(DRIP_SECONDS)

    async def _good_until(self, over: asyncio.Event, stub: Any) -> None:
        while not over.is_set():
            await self._good(stub)

    async def _good(self, stub: Any) -> None:
        """A call and a look at the metrics as anybody makes them, with the answers they must have."""
        text = f"good {self._chance.random()}"
        request = inference_pb2.EmbedRequest(model=self._model, texts=[text])
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                answer = await _patient(lambda: stub.Embed(request, timeout=DEADLINE_SECONDS, wait_for_ready=True))
        except grpc.aio.AioRpcError as error:
            self.report.findings.append(f"a good call ended with {error.code().name} {error.details()}")
        else:
            (row,) = answer.embeddings
            wanted = vector(0, text, len(row.values))
            if max(abs(a - b) for a, b in zip(row.values, wanted, strict=True)) > 1e-6:
                self.report.findings.append(f"a good call was answered with another vector for {text!r}")
            self.report.good_calls += 1
        reader, writer = await asyncio.open_connection(*self._ports["metrics"])
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        page = await asyncio.wait_for(reader.read(-1), DEADLINE_SECONDS)
        writer.close()
        if b"modelmora_requests_total{" not in page:
            self.report.findings.append(f"the metrics were {page[:200]!r}")
        self.report.good_reads += 1


async def _patient(ask: Callable[[], Awaitable[Any]]) -> Any:
    """The answer, however often it has to be asked for. Who breaks a server costs others the calls that it has not yet
    looked at: it answers them UNAVAILABLE or, those that it has read, CANCELLED."""
    while True:
        try:
            return await ask()
        except grpc.aio.AioRpcError as error:
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                raise


def _health_answer(heard: bytes) -> bool:
    """The message of grpc.health.v1: status SERVING."""
    return any(kind == DATA and payload == b"\0\0\0\0\2\x08\1" for kind, _, payload in frames(heard))


_is_answer: dict[str, Callable[[bytes], bool]] = {
    "grpc": _health_answer,
    "metrics": lambda heard: heard.startswith(b"HTTP/1.1 200 ") and b"modelmora_requests_total" in heard,
}


async def _heard(reader: asyncio.StreamReader, enough: Callable[[bytes], bool]) -> bytes:
    heard = b""
    while not enough(heard):
        more = await reader.read(65536)
        if not more:
            break
        heard += more
    return heard


def _address(target: str) -> tuple[str, int]:
    found = urllib.parse.urlsplit(target if "//" in target else f"//{target}")
    return found.hostname or "", found.port or 0
