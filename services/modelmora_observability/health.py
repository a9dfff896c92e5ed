"""Asks every component how it is, all at once, and never longer than the caller can wait."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime

from modelmora_observability.domain import Health, State

Ask = Callable[[], Awaitable[Health]]

ASK_SECONDS = 1.5


class HealthCheck:
    """The state of all components. Callers that come while one look is on its way share it."""

    def __init__(self, components: Mapping[str, Ask], *, ask_seconds: float = ASK_SECONDS) -> None:
        self._components = components
        self._ask_seconds = ask_seconds
        self._last: dict[str, Health] = {}
        self._running: asyncio.Task[Mapping[str, Health]] | None = None

    async def look(self) -> Mapping[str, Health]:
        """Every component's health; one that did not answer in time is UNKNOWN with what it said last."""
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._look(), name="health check")
        # Shielded: a caller that goes away must not take the answer from the others.
        return await asyncio.shield(self._running)

    async def _look(self) -> Mapping[str, Health]:
        asked = {name: asyncio.ensure_future(ask()) for name, ask in self._components.items()}
        await asyncio.wait(asked.values(), timeout=self._ask_seconds)
        found = {}
        for name, answer in asked.items():
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                found[name] = self._last[name] = answer.result()
                continue
            failure = answer.exception() if answer.done() and not answer.cancelled() else None
            answer.cancel()
            found[name] = self._silent(name, failure)
        return found

    def _silent(self, name: str, failure: BaseException | None) -> Health:
        reason = f"could not be asked: {failure}" if failure else f"no answer within {self._ask_seconds:g} s"
        last = self._last.get(name)
        if last is None:
            return Health(State.UNKNOWN, reason, datetime.now(UTC))
        return Health(State.UNKNOWN, f"{reason}; before that {last.state.name.lower()}", last.check_time)

    async def close(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
