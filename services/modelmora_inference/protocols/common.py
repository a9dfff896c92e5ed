"""What the protocols of others share: their priorities and times as ours, our errors in their words, streams in order.

A foreign call becomes a native request, which the native servicer answers in this process: queue, batches, quotas,
deadlines, cancellation, traces and counts are those of every other call.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from modelmora import errors
from modelmora.common.v1 import common_pb2
from modelmora.errors import FieldViolation
from modelmora_runtime.interceptors import deadline_seconds

from modelmora_inference.domain import MAX_TIMEOUT_SECONDS

DEFAULT_CALL_SECONDS = 60.0
"""So long a call may take for which nobody named a time: streams have no deadline of their own."""
MAX_OPEN_CALLS = 64
"""Calls of one stream that are open at once; beyond that nothing is read until one is answered."""

Request = TypeVar("Request")
Answer = TypeVar("Answer")


def priority_of(number: int, field: str) -> common_pb2.Priority:
    """Triton's numbers: 1 is the most urgent, 0 the default; ours are three. Raises InvalidArgument below 0."""
    if number < 0:
        raise errors.InvalidArgument.at(field, f"0 (default), 1 (highest) or more, not {number}")
    levels = {0: common_pb2.PRIORITY_MEDIUM, 1: common_pb2.PRIORITY_HIGH, 2: common_pb2.PRIORITY_MEDIUM}
    return levels.get(number, common_pb2.PRIORITY_LOW)


def set_timeout(request: Any, context: Any, microseconds: int, field: str) -> None:
    """Sets `timeout` of a native request; 0: none was named. Raises InvalidArgument."""
    if not 0 <= microseconds <= MAX_TIMEOUT_SECONDS * 1e6:
        most = int(MAX_TIMEOUT_SECONDS * 1e6)
        raise errors.InvalidArgument.at(field, f"microseconds, 1 to {most}, or 0 for none; not {microseconds}")
    if microseconds:
        request.timeout.FromMicroseconds(microseconds)
    elif deadline_seconds(context) > MAX_TIMEOUT_SECONDS:
        request.timeout.FromMicroseconds(int(DEFAULT_CALL_SECONDS * 1e6))


@contextmanager
def fields_named(name_of: Callable[[str], str]) -> Iterator[None]:
    """Errors of the native call with the paths of the foreign request: `name_of` gives the foreign path of a native
    one."""
    try:
        yield
    except errors.ModelMoraError as error:
        if not error.fields:
            raise
        raise with_fields(error, name_of) from error


def with_fields(error: errors.ModelMoraError, name_of: Callable[[str], str]) -> errors.ModelMoraError:
    """A copy of an error that calls its fields by their foreign names, also where its text tells them."""
    fields, message = [], error.message
    for violation in error.fields:
        name = name_of(violation.field)
        message = message.replace(f"{violation.field}: ", f"{name}: ")
        fields.append(FieldViolation(name, violation.description))
    made = type(error)(message, fields=fields, retry_after_seconds=error.retry_after_seconds)
    made.metadata = error.metadata
    return made


def by_first_part(names: Mapping[str, str]) -> Callable[[str], str]:
    """For fields_named: the first part of a path by another name, the rest as it is."""

    def name_of(path: str) -> str:
        first = re.split(r"[.\[]", path, maxsplit=1)[0]
        return names.get(first, first) + path[len(first) :]

    return name_of


async def in_order(
    requests: AsyncIterator[Request],
    answer: Callable[[Request], Awaitable[Answer]],
    *,
    stopping: asyncio.Event,
    most: int = MAX_OPEN_CALLS,
) -> AsyncIterator[Answer]:
    """Answers the requests of a stream at the same time, at most so many, and yields the answers in their order.

    When the client closes its side, what is open is answered first. Whoever ends the iteration withdraws what is open.
    When the platform stops nothing more is read; what is open is answered, then ShuttingDown raised. The first
    exception of `answer` or of reading ends the stream, in its place.
    """
    open_calls: asyncio.Queue[asyncio.Future[Answer] | None] = asyncio.Queue(most)
    room = asyncio.Semaphore(most)
    tasks: set[asyncio.Future[Any]] = set()

    async def read() -> None:
        async for request in requests:
            await room.acquire()
            task = asyncio.ensure_future(answer(request))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            open_calls.put_nowait(task)

    async def read_until_the_stop() -> None:
        reading, stop = asyncio.ensure_future(read()), asyncio.ensure_future(stopping.wait())
        try:
            await asyncio.wait((reading, stop), return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
            else:
                raise errors.ShuttingDown(retry_after_seconds=1.0)
        finally:
            stop.cancel()
            if not reading.done():
                reading.cancel()
                await asyncio.wait((reading,))

    reader = asyncio.ensure_future(read_until_the_stop())
    taking: asyncio.Future[Any] | None = None
    try:
        while True:
            if open_calls.empty():
                if reader.done():
                    reader.result()
                    return
                taking = asyncio.ensure_future(open_calls.get())
                await asyncio.wait((taking, reader), return_when=asyncio.FIRST_COMPLETED)
                if not taking.done():
                    taking.cancel()
                    continue
                call = taking.result()
            else:
                call = open_calls.get_nowait()
            assert call is not None
            found = await call
            room.release()
            yield found
    finally:
        left = [task for task in (reader, taking, *tasks) if task is not None and not task.done()]
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)
