"""The calls inside a server: what each is, what they may weigh together, whether more may come in, what is counted."""

from __future__ import annotations

import asyncio
import logging
import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from time import monotonic
from typing import Any

from modelmora.errors import ModelMoraError, ResourceExhausted, ShuttingDown

from modelmora_runtime.audit import Audit
from modelmora_runtime.auth import ANYONE, NOBODY, Caller, Role

log = logging.getLogger(__name__)

LONG_STREAMS = ("Watch", "Acquire")
"""Methods that last as long as what they watch or hold, by the first word of their name. A stop does not wait for
them: they are told by `Platform.stopping`, and a Watch that does not end is cut."""

LATENCY_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class BytesInFlight(ResourceExhausted):
    """Too many bytes of requests and answers are in flight in this server."""


class Call:
    """One call while it runs."""

    __slots__ = (
        *("audit", "budget", "bytes", "caller", "context", "cut", "deadline", "metadata", "method", "task"),
        "undone",
    )

    def __init__(self, method: Method, context: Any, task: asyncio.Task[Any]) -> None:
        self.method = method
        self.context = context
        self.task: asyncio.Task[Any] | None = task
        self.caller: Caller = NOBODY
        self.deadline = math.inf
        self.bytes = 0
        self.budget: ByteBudget | None = None
        """That its bytes count against."""
        self.metadata: Mapping[str, str | bytes] = {}
        self.cut = False
        self.audit = method.audit
        """Where it is to be written down; None from then on, and where it is not."""
        self.undone: ModelMoraError | None = None
        """Why it has not done all that it was to do, although it is answered; for the record."""

    def end(self) -> None:
        """It is over: lets go of all that it had. The connections and timers that it happened to start have inherited
        it, and stay for as long as they are of use to others."""
        self.context = self.task = None
        self.metadata = {}


class ByteBudget:
    """Bytes of requests and answers in flight in this process."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0

    def take(self, call: Call, count: int) -> None:
        """For a request. One call alone is always let in, however large: the message limit bounds it."""
        if self.used_bytes + count > self.limit_bytes and self.used_bytes > 0:
            raise BytesInFlight(
                f"{self.used_bytes} bytes are in flight and {count} more do not fit into {self.limit_bytes}",
                retry_after_seconds=0.1,
            )
        self.add(call, count)

    def add(self, call: Call, count: int) -> None:
        """For an answer: the work is done, so it goes out; the next request waits."""
        self.used_bytes += count
        call.bytes += count

    def release(self, call: Call) -> None:
        self.used_bytes -= call.bytes
        call.bytes = 0


class Gate:
    """The calls of users that are inside, and whether new ones may enter."""

    def __init__(self) -> None:
        self._inside: set[Call] = set()
        self._left = asyncio.Event()
        self.closed = False

    def enter(self, call: Call) -> None:
        if self.closed and not call.caller.internal and call.method.access is not ANYONE:
            raise ShuttingDown(retry_after_seconds=1.0)
        if not call.caller.internal:
            self._inside.add(call)

    def leave(self, call: Call) -> None:
        self._inside.discard(call)
        if self.closed:
            self._left.set()

    def close(self) -> None:
        """From now on users get ShuttingDown."""
        self.closed = True

    async def drain(self, grace_seconds: float, watch_seconds: float = 0.5) -> None:
        """Waits until the users' calls have ended; cuts streams that do not end by themselves, and after the grace
        whatever is left. Leases of other processes are their context's to end."""
        now = monotonic()
        watches = await self._until_gone(self._watches, now + min(watch_seconds, grace_seconds))
        self._cut(watches)
        late = await self._until_gone(self._ordinary, now + grace_seconds)
        if late:
            log.warning("%d calls did not finish within the grace of %g s", len(late), grace_seconds)
        self._cut(late)
        await self._until_gone(lambda: [call for call in self._inside if call.cut], monotonic() + 1.0)

    def _watches(self) -> list[Call]:
        return [call for call in self._inside if call.method.is_watch]

    def _ordinary(self) -> list[Call]:
        return [call for call in self._inside if not call.method.is_long]

    def _cut(self, calls: Iterable[Call]) -> None:
        for call in calls:
            call.cut = True
            if call.task is not None:
                call.task.cancel()

    async def _until_gone(self, which: Callable[[], list[Call]], deadline: float) -> list[Call]:
        while (calls := which()) and (remaining := deadline - monotonic()) > 0:
            self._left.clear()
            try:
                async with asyncio.timeout(remaining):
                    await self._left.wait()
            except TimeoutError:
                return which()
        return calls


class Method:
    """One method of a service with what is counted about it."""

    def __init__(self, path: str, access: frozenset[Role], handler: Any) -> None:
        self.path = path
        self.name = path.rpartition("/")[2]
        self.access = access
        self.handler = handler
        self.behaviour = (
            handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        )  # exactly one is set
        self.is_long = handler.response_streaming and self.name.startswith(LONG_STREAMS)
        self.is_watch = self.is_long and self.name.startswith("Watch")
        self.audit: Audit | None = None
        self.in_flight = 0
        self.codes: dict[str, int] = {}
        self.buckets = [0] * (len(LATENCY_SECONDS) + 1)
        self.seconds = 0.0

    def count(self, code: str, seconds: float) -> None:
        self.codes[code] = self.codes.get(code, 0) + 1
        if not self.is_long:
            self.buckets[bisect_left(LATENCY_SECONDS, seconds)] += 1
            self.seconds += seconds
