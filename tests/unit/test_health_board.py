"""The board of health and the roll-up: what counts as serving, what as ill."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from grpc_health.v1 import health_pb2
from hypothesis import given
from hypothesis import strategies as st
from modelmora.errors import NotFound
from modelmora_observability.domain import GIB, MIB, NECESSARY, Health, State, disk_health, roll_up
from modelmora_runtime.auth import EVERYONE, Caller, TokenMissing
from modelmora_runtime.health import HealthBoard, HealthService
from modelmora_runtime.health import State as BoardState

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def board() -> HealthBoard:
    made = HealthBoard()
    made.set("database", "healthy")
    made.mount("registry", ["registry.v1.Registry"], ["database"])
    made.mount("inference", ["inference.v1.Inference"])
    return made


def test_every_name_serves_while_all_is_well() -> None:
    for name in ("", "registry", "registry.v1.Registry", "inference", "inference.v1.Inference", "database"):
        assert board().serves(name) is True
    assert board().serves("nothing") is None


def test_without_the_database_the_registry_does_not_serve_and_inference_does() -> None:
    made = board()
    made.set("database", "unhealthy", "no answer")
    assert made.serves("registry.v1.Registry") is False
    assert made.serves("database") is False
    assert made.serves("inference.v1.Inference") is True
    assert made.serves("") is True, "an orchestrator must not take traffic from models that still answer"
    found = made.get("registry")
    assert found is not None
    assert found.reason == "database: no answer"
    made.set("database", "healthy")
    assert made.serves("registry.v1.Registry") is True


def test_the_whole_does_not_serve_when_no_context_does() -> None:
    made = board()
    made.set("database", "unhealthy", "away")
    made.set("inference", "unhealthy", "stuck")
    assert made.serves("") is False


@pytest.mark.parametrize(("state", "serves"), [("healthy", 1), ("degraded", 1), ("unknown", 1), ("unhealthy", 0)])
def test_degraded_still_serves(state: BoardState, serves: int) -> None:
    made = board()
    made.set("inference", state, "why")
    assert made.serves("inference") is bool(serves)


def test_a_context_that_said_it_is_ill_before_it_was_open_stays_ill() -> None:
    made = HealthBoard()
    made.set("registry", "unhealthy", "database: migrating")
    made.mount("registry", ["registry.v1.Registry"])
    assert made.serves("registry.v1.Registry") is False


def test_nothing_serves_once_it_stops() -> None:
    made = board()
    made.stop()
    assert not any(made.serves(name) for name in ("", "registry", "inference", "database"))


def test_only_a_change_is_news() -> None:
    made = board()
    change = made.change
    made.set("database", "healthy")
    assert not change.is_set()
    made.set("database", "unhealthy", "x")
    assert change.is_set()
    change = made.change
    made.set("database", "unhealthy", "y")
    assert change.is_set()


def test_a_wrong_state_is_refused() -> None:
    with pytest.raises(ValueError, match="sick"):
        board().set("inference", "sick")  # type: ignore[arg-type]


def components(**states: State) -> dict[str, Health]:
    all_well = dict.fromkeys(("registry", "lifecycle", "inference", "observability", "database"), State.HEALTHY)
    return {name: Health(state, state.name, NOW) for name, state in {**all_well, **states}.items()}


@pytest.mark.parametrize(
    ("states", "overall"),
    [
        ({}, State.HEALTHY),
        ({"database": State.UNHEALTHY, "registry": State.UNHEALTHY}, State.DEGRADED),
        ({"registry": State.UNKNOWN}, State.DEGRADED),
        ({"inference": State.UNHEALTHY}, State.UNHEALTHY),
        ({"lifecycle": State.UNKNOWN, "inference": State.DEGRADED}, State.UNKNOWN),
        ({"lifecycle": State.DEGRADED, "database": State.UNHEALTHY}, State.DEGRADED),
    ],
)
def test_overall_is_the_worst_of_the_necessary_and_degraded_for_the_others(
    states: dict[str, State], overall: State
) -> None:
    assert roll_up(components(**states), NOW).state is overall


def test_a_necessary_component_that_is_missing_is_unknown() -> None:
    assert roll_up({}, NOW).state is State.UNKNOWN


def test_the_reason_names_the_worst_first() -> None:
    found = roll_up(components(registry=State.DEGRADED, database=State.UNHEALTHY), NOW)
    assert found.reason == "database: UNHEALTHY; registry: DEGRADED"


NAMES = ["registry", "lifecycle", "inference", "observability", "database", "devices", "storage"]


@given(st.dictionaries(st.sampled_from(NAMES), st.sampled_from(State)))
def test_the_roll_up_is_well_only_if_all_is_and_never_worse_than_its_parts(states: dict[str, State]) -> None:
    found = roll_up(components(**states), NOW).state
    every = {name: health.state for name, health in components(**states).items()}
    assert (found is State.HEALTHY) == all(state is State.HEALTHY for state in every.values())
    assert found <= max(every.values())
    assert found >= max(every[name] for name in NECESSARY)


@pytest.mark.parametrize(
    ("total", "free", "state"),
    [
        (100 * GIB, 50 * GIB, State.HEALTHY),
        (1000 * GIB, 19 * GIB, State.DEGRADED),
        (10 * GIB, GIB - 1, State.DEGRADED),
        (100 * GIB, 256 * MIB - 1, State.UNHEALTHY),
        (10 * GIB, GIB, State.HEALTHY),
    ],
)
def test_a_disk_is_ill_when_the_database_could_not_write(total: int, free: int, state: State) -> None:
    assert disk_health(total, free, NOW).state is state


def test_an_open_context_was_looked_at_just_now_and_its_database_when_it_was_pinged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moment = 1000.0
    monkeypatch.setattr(time, "time", lambda: moment)
    board = HealthBoard()
    board.set("database", "healthy")
    board.mount("registry", ["a.Registry"], ["database"])
    moment = 1030.0
    registry, database = board.get("registry"), board.get("database")
    assert registry is not None
    assert database is not None
    assert (registry.check_time, database.check_time) == (1030.0, 1000.0)


class Guarded:
    """Lets in whoever has the token."""

    is_open = False

    def authenticate(self, metadata: Mapping[str, str | bytes]) -> Caller:
        if metadata.get("authorization") != "Bearer good":
            raise TokenMissing
        return EVERYONE


class Asked:
    """The context of a Check."""

    def __init__(self, token: str) -> None:
        self._token = token

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self._token}"),)

    def set_trailing_metadata(self, _: object) -> None:
        pass


async def test_names_beyond_the_board_are_told_to_callers_with_a_token_only() -> None:
    made = board()

    async def models(name: str) -> bool | None:
        return {"acme/good": True, "acme/bad": False}.get(name)

    made.beyond = models
    service: Any = HealthService(made, Guarded(), asyncio.Event())

    async def check(name: str, token: str) -> int:
        return int((await service.Check(health_pb2.HealthCheckRequest(service=name), Asked(token))).status)

    assert await check("acme/good", "good") == health_pb2.HealthCheckResponse.SERVING
    assert await check("acme/bad", "good") == health_pb2.HealthCheckResponse.NOT_SERVING
    for name, token in (("acme/good", "bad"), ("acme/bad", "bad"), ("acme/nothing", "good"), ("acme/nothing", "bad")):
        with pytest.raises(NotFound):
            await check(name, token)
    made.stop()
    assert await check("acme/good", "good") == health_pb2.HealthCheckResponse.NOT_SERVING
