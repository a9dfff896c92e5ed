"""Who serves a node: in which order a process that lost it says so and lets go."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from modelmora_lifecycle.duty import Duty
from modelmora_lifecycle.main import serve_node


class Lock:
    def __init__(self) -> None:
        self.lost = asyncio.Event()

    async def release(self) -> None:
        pass


class Database:
    """Gives the lock once; then another process has it."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.given = False

    async def migrate(self, package: str) -> None:
        pass

    async def try_lock(self, name: str) -> Lock | None:
        given, self.given = self.given, True
        return None if given else self.lock


class Rest:
    """Node, orders and store."""

    def __init__(self, duty: Duty) -> None:
        self._duty = duty
        self.on_duty_as_it_gave_up: list[bool] = []
        self.gave_up = asyncio.Event()

    async def measurements(self) -> list[Any]:
        return []

    async def restore(self) -> None:
        pass

    async def give_up(self) -> None:
        self.on_duty_as_it_gave_up.append(self._duty.on_duty)
        self.gave_up.set()


async def test_who_has_lost_the_node_takes_no_wants_before_it_unloads_everything() -> None:
    duty = Duty(asyncio.Event())
    rest: Any = Rest(duty)
    database: Any = Database()
    said: list[tuple[bool, str]] = []

    def report(level: str, reason: str) -> None:
        said.append((duty.on_duty, level))

    serving = asyncio.create_task(serve_node(duty, rest, rest, database, rest, "here", report))
    try:
        await duty.decided.wait()
        assert said == [(True, "healthy")]
        database.lock.lost.set()
        await rest.gave_up.wait()
        assert rest.on_duty_as_it_gave_up == [False]
        assert said[1] == (False, "unhealthy")
        assert duty.standby
    finally:
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving
