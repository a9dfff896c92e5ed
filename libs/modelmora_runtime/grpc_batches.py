"""What a batch of grpc.aio has taken or was to send is freed, however it ends.

grpc.aio (1.85) frees the messages and the metadata of a batch when it goes on after it. It does not go on when the call
has ended meanwhile, nor when who waited for the batch was cancelled: whatever such a batch had was never freed. A
message of a few bytes keeps the 64 KiB with which it was read, so a hundred streams that were left in the middle cost
some megabytes, and each answer that nobody took costs its length.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextvars import Context
from typing import Any

from grpc._cython import cygrpc  # type: ignore[attr-defined]

_execute = cygrpc.execute_batch


def free_batches() -> None:
    """From now on, for every server and channel of grpc.aio in this process."""
    cygrpc.execute_batch = _execute_and_free


async def _execute_and_free(call: Any, operations: tuple[Any, ...], loop: asyncio.AbstractEventLoop) -> None:
    batch = _execute(call, operations, loop)
    ended = batch.send(None)
    ended._asyncio_future_blocking = False  # as a task would, which takes it from here
    try:
        await _Ended(ended)
    finally:
        if ended.done():
            _free(batch, ended)
        else:  # gRPC still reads and writes what belongs to it
            ended.add_done_callback(lambda _: _free(batch, ended))


def _free(batch: Any, ended: asyncio.Future[None]) -> None:
    """Lets grpc.aio go on as it does when all went well: nobody looks at what it makes of it."""
    if ended.exception() is not None:
        ended.__init__(loop=ended.get_loop())  # type: ignore[misc]  # it is asked for its result once more
        ended.set_result(None)
    try:
        batch.send(None)
    except StopIteration:
        pass


class _Ended:
    """The end of a batch, to be waited for: unlike a future, it still comes when the task that waits is cancelled."""

    __slots__ = ("_asyncio_future_blocking", "_context", "_future", "_wake")

    def __init__(self, future: asyncio.Future[None]) -> None:
        self._future = future
        self._asyncio_future_blocking = True

    def __await__(self) -> Generator[_Ended, None, None]:
        yield self

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._future.get_loop()

    def add_done_callback(self, wake: Callable[[asyncio.Future[None]], None], *, context: Context) -> None:
        self._wake, self._context = wake, context
        self._future.add_done_callback(wake, context=context)

    def cancel(self, msg: object = None) -> bool:
        if not self._future.remove_done_callback(self._wake):
            return False  # it has come, or was cancelled before: either way who waits is woken once
        cancelled = self._future.get_loop().create_future()
        cancelled.cancel(msg)
        cancelled.add_done_callback(self._wake, context=self._context)
        return True
