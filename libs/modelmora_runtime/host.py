"""The host: enters the contexts asked for, mounts them on one gRPC server, and leaves them in reverse order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from modelmora.errors import FieldViolation

from modelmora_runtime.auth import Role
from modelmora_runtime.peers import Peers
from modelmora_runtime.settings import PlatformSettings, Section

State = Literal["healthy", "degraded", "unhealthy", "unknown"]
DATABASE = "database"


@dataclass(frozen=True)
class EngineCard:
    """What the registry may know of an engine; modelmora_app makes it from the worker's table."""

    name: str
    tasks: frozenset[str]
    """Task words: `txt2embed`."""
    needs_files: bool
    check_options: Callable[[Mapping[str, object]], Sequence[FieldViolation]]
    """Pure; paths relative to the options: `delay_seconds`."""


@dataclass(frozen=True)
class Service:
    """One gRPC service with the roles that each of its methods needs; a method without roles fails the start."""

    full_name: str
    add: Callable[[Any, Any], None]
    """The generated add_…Servicer_to_server."""
    servicer: object
    access: Mapping[str, frozenset[Role]]


@dataclass
class Mounted:
    """What a context yields when it is open."""

    services: Sequence[Service]


@dataclass
class Platform:
    """What a context gets from the host."""

    settings: PlatformSettings
    peers: Peers
    database_url: str | None
    """`postgresql+asyncpg://…`; None when no context here needs a database."""
    run_dir: Path
    """0700, a short path, for Unix sockets."""
    engines: Mapping[str, EngineCard]
    health: HealthBoard
    stopping: asyncio.Event
    """Set first when the platform stops: long public streams end with ShuttingDown."""


@dataclass(frozen=True)
class Context:
    """One context as the host enters it."""

    name: str
    settings: Section
    open: Callable[[Any, Platform], AbstractAsyncContextManager[Mounted]]
    database: Literal["required", "used", "unused"] = "unused"
    """required: without the database its services do not serve; used: they do."""


@dataclass(frozen=True, slots=True)
class ComponentHealth:
    state: State
    reason: str
    check_time: float
    """Seconds since the epoch of the last report."""


_RANK: Mapping[State, int] = {"healthy": 0, "unknown": 1, "degraded": 2, "unhealthy": 3}


@dataclass
class HealthBoard:
    """What each component of this process last said about itself; the source of grpc.health.v1 and GetHealth.

    Belongs to the event loop. Components are the contexts opened here and what they stand on (`database`, …).
    """

    _reported: dict[str, ComponentHealth] = field(default_factory=dict)
    _stands_on: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _names: dict[str, str] = field(default_factory=dict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    stopping: bool = False

    def set(self, component: str, state: State, reason: str = "") -> None:
        """Reports a state; repeating it renews the time of the check."""
        before = self._reported.get(component)
        self._reported[component] = ComponentHealth(state, reason, time.time())
        if before is None or (before.state, before.reason) != (state, reason):
            self._notify()

    def get(self, component: str) -> ComponentHealth | None:
        """A component's health, with what it stands on: a context that needs the database is as ill as that."""
        own = self._reported.get(component)
        if own is None:
            return None
        for name in self._stands_on.get(component, ()):
            below = self._reported.get(name)
            if below is not None and below.state == "unhealthy" and _RANK[below.state] > _RANK[own.state]:
                own = ComponentHealth(below.state, f"{name}: {below.reason}", below.check_time)
        return own

    def components(self) -> Mapping[str, ComponentHealth]:
        """Every component that ever reported."""
        return {name: health for name in self._reported if (health := self.get(name)) is not None}

    def mount(self, context: str, services: Sequence[str], stands_on: Sequence[str] = ()) -> None:
        """A context is open and serves; it is healthy unless it already said otherwise."""
        self._stands_on[context] = tuple(stands_on)
        self._names |= dict.fromkeys(services, context)
        if context not in self._reported:
            self.set(context, "healthy")
        self._notify()

    def stop(self) -> None:
        """From now on nothing here serves."""
        self.stopping = True
        self._notify()

    def find(self, service: str) -> ComponentHealth | None:
        """The health behind a name of grpc.health.v1: a service, a context, a component, or `` for all of it."""
        if service == "":
            return ComponentHealth("healthy", "", time.time())
        return self.get(self._names.get(service, service))

    def serves(self, service: str) -> bool | None:
        """SERVING or not; None when there is nothing of this name. DEGRADED and UNKNOWN serve."""
        found = self.find(service)
        if found is None:
            return None
        return not self.stopping and found.state != "unhealthy"

    async def changed(self) -> None:
        """Returns when anything changed after the call."""
        await self._changed.wait()

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
