"""The floor: what grpc.aio and a framed socket to another process cost a call. Imports nothing of ours.

A server hands the bytes of each call over a unix socket to a child, which looks up the answer, and answers with what
comes back: no queue, no batch, no metrics, no message is parsed. Speaks like `ceiling.py`, a command a line:
`{"method": "/a.B/C", "answers": {request: answer}}`, both in hexadecimal, starts it and is answered with
`{"target": "127.0.0.1:1234"}`. It serves until standard input ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import sys
from typing import cast

import grpc
import uvloop

HEAD = struct.Struct("<IQ")
"""Bytes that follow, and the call's number."""


class Child(asyncio.Protocol):
    """The server's end of the socket."""

    def __init__(self) -> None:
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._count = 0
        self._received = bytearray()
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's has no base

    def data_received(self, data: bytes) -> None:
        self._received += data
        place = 0
        while len(self._received) - place >= HEAD.size:
            size, number = HEAD.unpack_from(self._received, place)
            end = place + HEAD.size + size
            if end > len(self._received):
                break
            waiting = self._waiting.pop(number)
            if not waiting.done():
                waiting.set_result(bytes(self._received[place + HEAD.size : end]))
            place = end
        del self._received[:place]

    async def ask(self, request: bytes, _context: object) -> bytes:
        assert self._transport is not None
        self._count += 1
        answer = self._waiting[self._count] = asyncio.get_running_loop().create_future()
        self._transport.write(HEAD.pack(len(request), self._count) + request)
        return await answer


def child(connection: socket.socket, answers: dict[bytes, bytes]) -> None:
    """The other end: answers what is there, in one write."""
    received = bytearray()
    while data := connection.recv(1 << 16):
        received += data
        place, out = 0, []
        while len(received) - place >= HEAD.size:
            size, number = HEAD.unpack_from(received, place)
            end = place + HEAD.size + size
            if end > len(received):
                break
            answer = answers[bytes(received[place + HEAD.size : end])]
            out += [HEAD.pack(len(answer), number), answer]
            place = end
        del received[:place]
        connection.sendall(b"".join(out))


async def serve(method: str, connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    _, to_child = await loop.create_unix_connection(Child, sock=connection)
    service, name = method.lstrip("/").split("/")
    handler = grpc.unary_unary_rpc_method_handler(to_child.ask)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {name: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"target": f"127.0.0.1:{port}"}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)


def main() -> None:
    command = json.loads(sys.stdin.readline())
    ours, others = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        answers = {bytes.fromhex(request): bytes.fromhex(answer) for request, answer in command["answers"].items()}
        child(others, answers)
        os._exit(0)
    others.close()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(command["method"], ours))
    os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
