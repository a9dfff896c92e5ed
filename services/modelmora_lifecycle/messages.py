"""Lifecycle's values as messages, and what callers write in filters and page tokens as values."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta

from modelmora.common.v1 import common_pb2
from modelmora.errors import InvalidArgument
from modelmora.lifecycle.v1 import lifecycle_pb2

from modelmora_lifecycle.actor import Node
from modelmora_lifecycle.domain import EngineProfile, Replica, ReplicaState

DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE = 100, 1000
VERSION_NAME = re.compile(r"models/[^/]+/[^/]+/versions/.+")
STATES = {state: f"REPLICA_STATE_{state.name}" for state in ReplicaState}

_TERM = re.compile(r'\s*([a-z_]+)\s*=\s*(?:"([^"]*)"|(\S+))\s*')


def replica_message(replica: Replica, node: Node, leases: tuple[int, int] | None = None) -> lifecycle_pb2.Replica:
    """A replica as the wire has it. `leases`: how many, and how many busy, when it was so; now by default."""
    held, busy = leases if leases is not None else node.scheduler.leases(replica.uid)
    message = lifecycle_pb2.Replica(
        name=replica.name,
        uid=replica.uid,
        model_version=replica.version,
        state=STATES[replica.state],
        reason=replica.reason,
        engine=replica.engine,
        engine_profile=profile_message(replica.profile),
        pid=replica.pid,
        charged=memory_messages(node.scheduler.ledger.charge_of(replica.uid)),
        peak=memory_messages(replica.peak),
        health=common_pb2.Health(
            state=f"HEALTH_STATE_{replica.health.state.name}",
            reason=replica.health.reason,
        ),
        pinned=replica.pinned,
        leases=held,
        busy_leases=busy,
        revision=replica.revision,
        start_mode=f"START_MODE_{replica.start_mode.name}" if replica.start_mode is not None else None,
        predicted=memory_messages(replica.predicted),
        footprint=memory_messages(replica.footprint),
    )
    if replica.state in (ReplicaState.LOADING, ReplicaState.UNLOADED) and node.scheduler.replica(replica.uid):
        seconds = node.scheduler.ready_in(replica.version, time.monotonic())
        if seconds is not None:
            message.ready_in.FromTimedelta(timedelta(seconds=seconds))
    for field_name, at in (
        ("create_time", replica.create_time),
        ("update_time", replica.update_time),
        ("last_used_time", replica.last_used_time),
    ):
        if at:
            getattr(message, field_name).FromDatetime(moment(node, at))
    if replica.health.check_time:
        message.health.last_check_time.FromDatetime(moment(node, replica.health.check_time))
    if replica.load_seconds:
        message.load_duration.FromTimedelta(timedelta(seconds=replica.load_seconds))
    return message


def profile_message(profile: EngineProfile) -> common_pb2.EngineProfile:
    return common_pb2.EngineProfile(
        backend=profile.backend,
        precision=profile.precision,
        library_versions=profile.library_versions,
        batch_rule=profile.batch_rule,
    )


def memory_messages(vector: Mapping[str, int]) -> list[common_pb2.DeviceMemory]:
    return [common_pb2.DeviceMemory(device=name, memory_bytes=size) for name, size in sorted(vector.items())]


def moment(node: Node, monotonic: float) -> datetime:
    """A monotonic time of the node as UTC."""
    return datetime.fromtimestamp(node.wall_time(monotonic), UTC)


def read_filter(text: str, fields: Mapping[str, Collection[str]]) -> dict[str, str]:
    """`state = "loaded" AND model_version = "models/…"` as field to value; `fields` has the values that each may have,
    none for any. Raises InvalidArgument at `filter`."""
    terms: dict[str, str] = {}
    for part in re.split(r"\s+AND\s+", text.strip()) if text.strip() else []:
        found = _TERM.fullmatch(part)
        if found is None or found[1] not in fields:
            known = " AND ".join(f'{name} = "…"' for name in fields)
            raise InvalidArgument.at("filter", f"cannot read {part!r}; known: {known}")
        name, value = found[1], found[2] if found[2] is not None else found[3]
        if fields[name] and value not in fields[name]:
            raise InvalidArgument.at("filter", f"{name} {value!r} is none of {', '.join(sorted(fields[name]))}")
        if terms.setdefault(name, value) != value:
            raise InvalidArgument.at("filter", f"asks for two values of {name} at once")
    return terms


def page_size(given: int) -> int:
    """Raises InvalidArgument at `page_size`."""
    if not 0 <= given <= MAX_PAGE_SIZE:
        raise InvalidArgument.at("page_size", f"must be 0 to {MAX_PAGE_SIZE}")
    return given or DEFAULT_PAGE_SIZE


def write_token(last: str) -> str:
    return base64.urlsafe_b64encode(last.encode()).decode()


def read_token(token: str) -> str:
    """What the page before ended with. Raises InvalidArgument at `page_token`."""
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except ValueError:
        raise InvalidArgument.at("page_token", "is not a token of this list") from None
