"""How well the parts of this process are: the board they report to, grpc.health.v1 on top of it, and asking another's.

Names of models are names of services here too (`HealthBoard.beyond`), for callers that have a token where tokens are
asked for: what is registered is nobody else's business.

The standard protocol knows only SERVING and NOT_SERVING. A caller with a token also gets the state and its reason, as
`modelmora.common.v1.Health` in the trailing metadata; the roll-up of observability reads that, in this process and from
others alike.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from modelmora.common.v1 import common_pb2
from modelmora.errors import ModelMoraError, NotFound, Unauthenticated

from modelmora_runtime.auth import ANYONE, Authenticator

log = logging.getLogger(__name__)

BEYOND_SECONDS = 1.0
"""A watch looks again so often at what is not on the board."""

State = Literal["healthy", "degraded", "unhealthy", "unknown"]
ACCESS = {method.name: ANYONE for method in health_pb2.DESCRIPTOR.services_by_name["Health"].methods}
HEALTH_KEY = "modelmora-health-bin"

_RANK: Mapping[State, int] = {"healthy": 0, "unknown": 1, "degraded": 2, "unhealthy": 3}
_PROTO: Mapping[State, common_pb2.HealthState] = {
    "healthy": common_pb2.HEALTH_STATE_HEALTHY,
    "degraded": common_pb2.HEALTH_STATE_DEGRADED,
    "unhealthy": common_pb2.HEALTH_STATE_UNHEALTHY,
    "unknown": common_pb2.HEALTH_STATE_UNKNOWN,
}
_FROM_PROTO: Mapping[int, State] = {number: state for state, number in _PROTO.items()}


def duty_of(context: str) -> str:
    """Name of the health that serves exactly while this process is the one on duty for a context of which several run
    and one at a time serves. What else it is ill of does not count: nobody else could serve instead."""
    return f"{context}.duty"


@dataclass(frozen=True, slots=True)
class ComponentHealth:
    """A state, why, and when it was last looked at (seconds since the epoch)."""

    state: State
    reason: str
    check_time: float

    def proto(self) -> common_pb2.Health:
        message = common_pb2.Health(state=_PROTO[self.state], reason=self.reason)
        message.last_check_time.FromNanoseconds(int(self.check_time * 1e9))
        return message


@dataclass
class HealthBoard:
    """What each component of this process last said about itself. Belongs to the event loop.

    Components are the contexts opened here and what they stand on (`database`, …).
    """

    _reported: dict[str, ComponentHealth] = field(default_factory=dict)
    _stands_on: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _names: dict[str, str] = field(default_factory=dict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    stopping: bool = False
    beyond: Callable[[str], Awaitable[bool | None]] | None = None
    """Whether what has a name that is none of ours (a model) would serve; None when nothing has it."""

    def set(self, component: str, state: State, reason: str = "") -> None:
        """Reports a state; repeating it renews the time of the check."""
        if state not in _RANK:
            raise ValueError(f"{state!r} is no state of health")
        before = self._reported.get(component)
        self._reported[component] = ComponentHealth(state, reason, time.time())
        if before is None or (before.state, before.reason) != (state, reason):
            self._notify()

    def get(self, component: str) -> ComponentHealth | None:
        """A component's health with what it stands on: a context that needs the database is as ill as that.

        A context that is open here reports when it changes; that this very loop answers for it is a look at it now.
        """
        worst = self._reported.get(component)
        if worst is None:
            return None
        if component in self._stands_on:
            worst = replace(worst, check_time=time.time())
        for name in self._stands_on.get(component, ()):
            below = self._reported.get(name)
            if below is not None and below.state == "unhealthy" and worst.state != "unhealthy":
                worst = ComponentHealth("unhealthy", f"{name}: {below.reason}", below.check_time)
        return worst

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
        """The health behind a name of grpc.health.v1: a service, a context, a component, or `` for the whole process.

        The process serves as long as one of its contexts does: a database that is away must not take an orchestrator's
        traffic from models that still answer.
        """
        if service:
            return self.get(self._names.get(service, service))
        contexts = [health for name in self._stands_on if (health := self.get(name)) is not None]
        if not contexts:
            return ComponentHealth("unknown", "nothing is open", time.time())
        ill = [health for health in contexts if health.state != "healthy"]
        if not ill:
            return ComponentHealth("healthy", "", max(health.check_time for health in contexts))
        worst = max(ill, key=lambda health: _RANK[health.state])
        everything = all(health.state == "unhealthy" for health in contexts)
        return ComponentHealth("unhealthy" if everything else "degraded", worst.reason, worst.check_time)

    def serves(self, service: str) -> bool | None:
        """SERVING or not; None when there is nothing of this name. DEGRADED and UNKNOWN serve."""
        found = self.find(service)
        if found is None:
            return None
        return not self.stopping and found.state != "unhealthy"

    def names(self) -> list[str]:
        """Every name that `find` knows."""
        return ["", *self._names, *self._reported]

    @property
    def change(self) -> asyncio.Event:
        """Set at the next change. Take it before you look, wait for it afterwards: nothing is missed between."""
        return self._changed

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class HealthService:
    """grpc.health.v1 over a board. Watch ends when the platform stops, after having said NOT_SERVING."""

    def __init__(self, board: HealthBoard, authenticator: Authenticator, stopping: asyncio.Event) -> None:
        self._board = board
        self._authenticator = authenticator
        self._stopping = stopping

    async def Check(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        found = self._board.find(request.service)
        if found is None:
            status = await self._beyond(request.service, context)
            if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
                raise NotFound(f"nothing here is called {request.service[:400]!r}")
            return health_pb2.HealthCheckResponse(status=status)
        try:
            self._authenticator.authenticate(dict(context.invocation_metadata() or ()))
            context.set_trailing_metadata(((HEALTH_KEY, found.proto().SerializeToString()),))
        except Unauthenticated:
            pass  # a probe without a token learns no more than it must
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def List(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        statuses = {name: health_pb2.HealthCheckResponse(status=self._status(name)) for name in self._board.names()}
        return health_pb2.HealthListResponse(statuses=statuses)

    async def Watch(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        told = None
        while True:
            change = self._board.change
            now = self._status(request.service)
            beyond = now == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN and self._may_look_beyond(context)
            if beyond:
                now = await self._beyond(request.service, context)
            if now != told:
                told = now
                yield health_pb2.HealthCheckResponse(status=now)
            if self._stopping.is_set():
                return
            try:
                async with asyncio.timeout(BEYOND_SECONDS if beyond else None):
                    await change.wait()
            except TimeoutError:
                pass

    def _may_look_beyond(self, context: grpc.aio.ServicerContext[Any, Any]) -> bool:
        if self._board.beyond is None:
            return False
        try:
            self._authenticator.authenticate(dict(context.invocation_metadata() or ()))
        except Unauthenticated:
            return False
        return True

    async def _beyond(self, service: str, context: grpc.aio.ServicerContext[Any, Any]) -> int:
        """The status of what is not on the board."""
        response = health_pb2.HealthCheckResponse
        serves = await self._board.beyond(service) if self._board.beyond and self._may_look_beyond(context) else None
        if serves is None:
            return int(response.SERVICE_UNKNOWN)
        return int(response.SERVING if serves and not self._board.stopping else response.NOT_SERVING)

    def _status(self, service: str) -> int:
        serves = self._board.serves(service)
        if serves is None:
            return int(health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
        response = health_pb2.HealthCheckResponse
        return int(response.SERVING if serves else response.NOT_SERVING)


def tell_if_broken(task: asyncio.Task[None], say: Callable[[str], object]) -> None:
    """For work in the background, which has no end of its own: if it breaks off, the log has the error, and `say` puts
    the words into somebody's health."""

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s broke off", task.get_name(), exc_info=error)
            say(f"{task.get_name()} broke off: {type(error).__name__}")

    task.add_done_callback(ended)


async def ask(channel: grpc.aio.Channel, service: str, *, timeout_seconds: float = 2.0) -> ComponentHealth:
    """What the process behind a channel of `Peers` says about one name; UNKNOWN with the reason when it is silent."""
    call = health_pb2_grpc.HealthStub(channel).Check(
        health_pb2.HealthCheckRequest(service=service), timeout=timeout_seconds
    )
    try:
        answer = await call
        trailing = await call.trailing_metadata()
    except ModelMoraError as error:
        return ComponentHealth("unknown", f"no answer: {error.message}", time.time())
    detail = next((value for key, value in trailing or () if key == HEALTH_KEY), None)
    serving = answer.status == health_pb2.HealthCheckResponse.SERVING
    if detail is None:
        return ComponentHealth("healthy" if serving else "unhealthy", "" if serving else "not serving", time.time())
    health = common_pb2.Health.FromString(detail)
    state = _FROM_PROTO.get(health.state, "unknown")
    if not serving and state != "unhealthy":
        return ComponentHealth("unhealthy", health.reason or "stopping", time.time())
    return ComponentHealth(state, health.reason, health.last_check_time.ToNanoseconds() / 1e9)
