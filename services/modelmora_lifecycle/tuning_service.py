"""RPCs about engine profiles: measure them, propose one, and say what was found."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import grpc
from modelmora.errors import InvalidArgument
from modelmora.lifecycle.v1 import lifecycle_pb2 as pb

from modelmora_lifecycle.duty import Servicer
from modelmora_lifecycle.messages import memory_messages, page_size, profile_message, read_token, write_token
from modelmora_lifecycle.tuner import Tuner
from modelmora_lifecycle.tuning import DEFAULT_GATE, Candidate, Tuning

Context = grpc.aio.ServicerContext[Any, Any]


class TuningServicer(Servicer):
    """See tuner.py."""

    _tuner: Tuner
    _stopping: asyncio.Event

    async def TuneModelVersion(
        self, request: pb.TuneModelVersionRequest, context: Context
    ) -> pb.TuneModelVersionResponse:
        await self._duty.check()
        gate = request.accuracy_gate if request.HasField("accuracy_gate") else DEFAULT_GATE
        if not (math.isfinite(gate) and 0 <= gate <= 1):
            raise InvalidArgument.at("accuracy_gate", "must be 0 to 1")
        facts = await self._resolve(request.model)
        tuning = self._tuner.start(facts, list(request.candidates), apply=request.apply, gate=gate)
        return pb.TuneModelVersionResponse(tuning=tuning_message(tuning))

    async def GetTuning(self, request: pb.GetTuningRequest, context: Context) -> pb.GetTuningResponse:
        return pb.GetTuningResponse(tuning=tuning_message(await self._tuner.get(_uid(request.name))))

    async def ListTunings(self, request: pb.ListTuningsRequest, context: Context) -> pb.ListTuningsResponse:
        size, before = page_size(request.page_size), read_token(request.page_token)
        if before:
            _check_uid(before, "page_token")
        version = (await self._resolve(request.model)).name if request.model else ""
        found = await self._tuner.recent(version, before, size + 1)
        return pb.ListTuningsResponse(
            tunings=[tuning_message(tuning) for tuning in found[:size]],
            next_page_token=write_token(found[size - 1].uid) if len(found) > size else "",
        )

    async def WatchTuning(
        self, request: pb.WatchTuningRequest, context: Context
    ) -> AsyncIterator[pb.WatchTuningResponse]:
        async for tuning in self._tuner.watch(_uid(request.name), self._stopping):
            yield pb.WatchTuningResponse(tuning=tuning_message(tuning))


def tuning_message(tuning: Tuning) -> pb.Tuning:
    message = pb.Tuning(
        name=tuning.name,
        model_version=tuning.version,
        state=f"TUNING_STATE_{tuning.state.name}",
        reason=tuning.reason,
        candidates=[_candidate_message(candidate) for candidate in tuning.candidates],
        proposal=profile_message(tuning.proposal) if tuning.proposal is not None else None,
        applied=tuning.applied,
        accuracy_gate=tuning.gate,
    )
    message.create_time.FromDatetime(datetime.fromtimestamp(tuning.create_time, UTC))
    if tuning.end_time:
        message.end_time.FromDatetime(datetime.fromtimestamp(tuning.end_time, UTC))
    return message


def _candidate_message(candidate: Candidate) -> pb.TuningCandidate:
    return pb.TuningCandidate(
        engine_profile=profile_message(candidate.profile),
        entries_per_second=candidate.entries_per_second,
        single_seconds=candidate.single_seconds,
        accuracy=candidate.accuracy,
        batch_consistency=candidate.batch_consistency,
        load_seconds=candidate.load_seconds,
        memory=memory_messages(candidate.memory),
        within_gate=candidate.within_gate,
        error=candidate.error,
    )


def _uid(name: str) -> str:
    prefix, _, uid = name.partition("/")
    if prefix != "tunings":
        raise InvalidArgument.at("name", "is not a tuning's name like tunings/01890a5d-…")
    return _check_uid(uid, "name")


def _check_uid(uid: str, at: str) -> str:
    try:
        return str(UUID(uid))
    except ValueError:
        raise InvalidArgument.at(at, f"{uid!r} is no uid") from None
