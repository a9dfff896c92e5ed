"""What one connection may ask of a host."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path

from integration.tiny_platform import Tiny, tiny_host
from modelmora_runtime.host import MAX_STREAMS

from bench.fuzz_connections import PREFACE, SETTINGS, frame, frames

MAX_CONCURRENT_STREAMS = 3
"""By its number in RFC 9113, 6.5.2."""


async def test_a_connection_is_told_how_many_calls_it_may_have_open(data_dir: Path) -> None:
    """gRPC refuses those beyond, and counts what was reset and not looked at with them. By default it is 2**31."""
    async with tiny_host(data_dir, Tiny()) as host, asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", host.port)
        writer.write(PREFACE + frame(SETTINGS))
        heard = b""
        while not (told := [payload for kind, _, payload in frames(heard) if kind == SETTINGS and payload]):
            more = await reader.read(65536)
            assert more, "the host has closed the connection"
            heard += more
        writer.transport.abort()
    settings = dict(struct.iter_unpack(">HI", told[0]))
    assert settings.get(MAX_CONCURRENT_STREAMS) == MAX_STREAMS
