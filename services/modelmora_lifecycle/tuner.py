"""Tunings at work: each profile of a version in a worker of its own, measured, judged, and maybe made current.

A candidate is wanted from the scheduler like any model, under a name of its own and with a priority below all others:
it is charged in the ledger, waits its turn, may take the place of what is idle and never of what is busy. What goes
wrong with it is its own error; only the exact profile is needed. A tuning is one task; stopping cancels it.

    want ─ loaded ─ truth or accuracy ─ lone calls ─ rounds in batches ─ unload      for the exact profile, then each
"""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from modelmora.common.v1 import common_pb2
from modelmora.errors import Conflict, LoadFailed, ModelMoraError, ShuttingDown, TuningNotFound
from modelmora.worker.v1 import worker_pb2
from modelmora_runtime.ids import uuid7
from modelmora_runtime.worker_channel import WorkerChannel, error_from_entry

from modelmora_lifecycle.actor import Granted, LeaseEnd, Node, Revoked, Yielding
from modelmora_lifecycle.domain import EngineProfile, ReplicaState, VersionFacts
from modelmora_lifecycle.duty import Duty
from modelmora_lifecycle.tuning import (
    DEFAULT_GATE,
    Candidate,
    Choice,
    Offer,
    Row,
    Tuning,
    TuningState,
    agreement,
    candidate_facts,
    choose,
    judged,
    profile_name,
    sample_pairs,
    sample_texts,
    shuffled,
    similarity,
    to_measure,
)
from modelmora_lifecycle.tuning_store import TuningStore

log = logging.getLogger(__name__)

BELOW_ALL = -1_000_000
"""Priority of a candidate: waiting would have to go on for eleven days before it is ahead of anyone."""
LONE_CALLS = 16
ROUNDS = 5
LEAST_ROUNDS = 2
REMEMBERED = 100
_IDLE_SECONDS = 3.0
_LOOK_SECONDS = 0.5


class Profiles(Protocol):
    """The registry, as far as profiles go."""

    async def facts(self, name: str) -> VersionFacts:
        """As they are now. Raises VersionNotFound, Unavailable, …"""

    async def set_profile(self, name: str, profile: EngineProfile, expected: EngineProfile) -> None:
        """Makes it current if `expected` still is. Raises Conflict, VersionNotFound, Unavailable."""


@dataclass(frozen=True)
class TunerRules:
    """How long a tuning may take."""

    candidate_seconds: float = 300.0
    """One candidate, waiting for memory and loading included."""
    measure_seconds: float = 30.0
    """Its rounds of batches; at least LEAST_ROUNDS are run."""
    auto: bool = False
    """Tune each version once, after its first load, when the node is idle, and apply."""


class Tuner:
    """All tunings of this node. Belongs to the event loop."""

    def __init__(
        self,
        node: Node,
        registry: Profiles,
        store: TuningStore | None,
        offered: Mapping[str, Offer],
        rules: TunerRules,
    ) -> None:
        """`offered`: by engine."""
        self._node = node
        self._registry = registry
        self._store = store
        self._offered = offered
        self._rules = rules
        self._tunings: dict[str, Tuning] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        """By uid: one that is being written down has ended, and the next of its version may have begun."""
        self._turn = asyncio.Lock()
        """One tuning measures at a time, or they would measure each other."""
        self._news = asyncio.Event()
        self._auto_seen: set[str] = set()

    def start(self, facts: VersionFacts, asked: Sequence[str], *, apply: bool, gate: float = DEFAULT_GATE) -> Tuning:
        """A tuning that runs from now on, or the one that runs already. InvalidArgument, TaskNotSupported."""
        candidates = to_measure(self._offered.get(facts.engine, Offer()), asked, facts.engine)
        running = next((t for t in self._tunings.values() if t.version == facts.name and not t.end_time), None)
        if running is not None:
            return running
        tuning = Tuning(
            str(uuid7()), facts.name, gate, time.time(), reason="it waits for its turn", candidates=candidates
        )
        self._tell(tuning)
        task = asyncio.create_task(self._run(tuning, facts, apply), name=f"tuning of {facts.name}")
        self._tasks[tuning.uid] = task
        task.add_done_callback(lambda _: self._tasks.pop(tuning.uid))
        return tuning

    async def get(self, uid: str) -> Tuning:
        """Raises TuningNotFound, DatabaseUnavailable."""
        tuning = self._tunings.get(uid)
        if tuning is None and self._store is not None:
            tuning = await self._store.get(uid)
        if tuning is None:
            raise TuningNotFound(f"there is no tunings/{uid}", tuning=f"tunings/{uid}")
        return tuning

    async def recent(self, version: str, before_uid: str, limit: int) -> list[Tuning]:
        """Newest first, of one version or (empty) of all."""
        if self._store is not None:
            kept = {tuning.uid: tuning for tuning in await self._store.recent(version, before_uid, limit)}
        else:
            kept = {}
        for tuning in self._tunings.values():
            if version in ("", tuning.version) and (not before_uid or tuning.uid < before_uid):
                kept[tuning.uid] = tuning
        return [kept[uid] for uid in sorted(kept, reverse=True)[:limit]]

    async def watch(self, uid: str, stopping: asyncio.Event) -> AsyncIterator[Tuning]:
        """Each state of a tuning, first the present one, until it has ended. TuningNotFound, ShuttingDown."""
        told: Tuning | None = None
        while True:
            tuning = await self.get(uid)
            if tuning != told:
                told = tuning
                yield tuning
            if tuning.end_time:
                return
            if uid not in self._tunings:
                return  # what the database has of it does not change under our hands
            if stopping.is_set():
                raise ShuttingDown(retry_after_seconds=1.0)
            if self._tunings.get(uid) == told:
                waiting = [asyncio.create_task(event.wait()) for event in (self._news, stopping)]
                try:
                    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for task in waiting:
                        task.cancel()

    async def close(self) -> None:
        """Ends what runs."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # One tuning.

    async def _run(self, tuning: Tuning, facts: VersionFacts, apply: bool) -> None:
        try:
            async with self._turn:
                await self._keep(tuning)
                tuning = await self._measure_all(tuning, facts)
                exact, *others = tuning.candidates
                choice = choose(exact, others)
                if choice.proposal is not None:
                    tuning = replace(tuning, proposal=choice.proposal)
                    if apply:
                        tuning, choice = await self._apply(tuning, facts, choice)
                tuning = tuning.ended(TuningState.SUCCEEDED, choice.reason, time.time())
        except ModelMoraError as error:
            tuning = self._latest(tuning).ended(TuningState.FAILED, error.message or error.reason, time.time())
        except asyncio.CancelledError:
            self._tell(self._latest(tuning).ended(TuningState.FAILED, "lifecycle was stopped", time.time()))
            raise
        log.info("%s of %s: %s: %s", tuning.name, tuning.version, tuning.state.value, tuning.reason)
        self._tell(tuning)
        await self._keep(tuning)

    async def _measure_all(self, tuning: Tuning, facts: VersionFacts) -> Tuning:
        """Raises what the exact profile failed with."""
        truth: list[Row] = []
        for number, candidate in enumerate(tuning.candidates):
            if candidate.error:
                continue  # its libraries are not here
            self._tell(replace(tuning, reason=f"measuring {candidate.name}"))
            try:
                async with asyncio.timeout(self._rules.candidate_seconds):
                    found, rows = await self._measure(candidate, facts, truth)
            except TimeoutError:
                error: ModelMoraError = LoadFailed(f"it took more than {self._rules.candidate_seconds:g} s")
            except ModelMoraError as raised:
                error = raised
            else:
                truth = truth or rows
                tuning = tuning.measured(judged(found, tuning.gate))
                self._tell(tuning)
                continue
            if not number:
                raise LoadFailed(f"the exact profile could not be measured: {error.message}") from error
            tuning = tuning.measured(replace(candidate, error=f"{error.reason}: {error.message}"[:2000]))
            self._tell(tuning)
        return tuning

    async def _measure(
        self, candidate: Candidate, facts: VersionFacts, truth: Sequence[Row]
    ) -> tuple[Candidate, list[Row]]:
        """The candidate with its figures, and its rows of the sample. Raises what it failed with."""
        own = candidate_facts(facts, candidate.profile)
        deadline = time.monotonic() + self._rules.candidate_seconds
        end = self._node.open_lease(own, BELOW_ALL, deadline)
        channel: WorkerChannel | None = None
        try:
            granted = await _granted(end)
            replica = granted.replica
            channel = await WorkerChannel.connect(granted.endpoint, granted.key)
            self._node.in_use(end, 1)
            measure = asyncio.create_task(self._figures(candidate, own.task_type or _EMBED, channel, truth))
            over = asyncio.create_task(_over(end))
            try:
                await asyncio.wait((measure, over), return_when=asyncio.FIRST_COMPLETED)
                if not measure.done() or measure.exception() is not None:
                    # The connection breaks before lifecycle knows why; its word says more.
                    await asyncio.wait((over,), timeout=1.0)
                    if over.done():
                        raise LoadFailed(over.result())
                found, rows = await measure
            finally:
                for task in (measure, over):
                    task.cancel()
                await asyncio.gather(measure, over, return_exceptions=True)
            replica = self._node.replica(replica.uid) or replica
            found = replace(
                found, profile=replica.profile, load_seconds=replica.load_seconds, memory=dict(replica.peak)
            )
            self._node.learned(own.name, facts.name)
            return found, rows
        finally:
            if channel is not None:
                await channel.close()
            self._node.close_lease(end)
            await self._node.dismiss(own.name)

    async def _figures(
        self, candidate: Candidate, task_type: int, channel: WorkerChannel, truth: Sequence[Row]
    ) -> tuple[Candidate, list[Row]]:
        texts = _entries(task_type, sample_texts())
        alike = _JUDGES.get(task_type, similarity)

        async def infer(chosen: Sequence[worker_pb2.TextEntry]) -> list[Row]:
            return await _infer(channel, task_type, chosen)

        rows = await infer(texts)  # warms up too
        # Texts alone: how long a lone call takes, and whether company changes an answer.
        chosen = shuffled(len(texts), seed=1)[:LONE_CALLS]
        lone, seconds = [], []
        for index in chosen:
            start = time.perf_counter()
            lone += await infer([texts[index]])
            seconds.append(time.perf_counter() - start)
        order = shuffled(len(texts), seed=2)
        mixed = dict(zip(order, await infer([texts[index] for index in order]), strict=True))
        consistency = min(alike(lone, [rows[index] for index in chosen]), alike(lone, [mixed[i] for i in chosen]))
        best, begin, rounds = 0.0, time.perf_counter(), 0
        while rounds < LEAST_ROUNDS or (
            rounds < ROUNDS and time.perf_counter() - begin < self._rules.measure_seconds * (rounds / (rounds + 1))
        ):
            start = time.perf_counter()
            await infer(texts)
            # The best round is the one that others on this machine disturbed least.
            best = max(best, len(texts) / (time.perf_counter() - start))
            rounds += 1
        found = replace(
            candidate,
            entries_per_second=best,
            single_seconds=sorted(seconds)[len(seconds) // 2],
            accuracy=alike(rows, truth) if truth else 1.0,
            batch_consistency=consistency,
        )
        return found, rows

    async def _apply(self, tuning: Tuning, facts: VersionFacts, choice: Choice) -> tuple[Tuning, Choice]:
        assert choice.proposal is not None
        self._tell(replace(tuning, reason=f"making {profile_name(choice.proposal)} current"))
        try:
            await self._registry.set_profile(facts.name, choice.proposal, facts.profile)
        except Conflict:
            return tuning, replace(choice, reason=f"{choice.reason}; not applied: its profile was changed meanwhile")
        except ModelMoraError as error:
            return tuning, replace(choice, reason=f"{choice.reason}; not applied: {error.message}")
        return replace(tuning, applied=True), replace(choice, reason=f"{choice.reason}; it is current now")

    # By itself.

    async def run(self, duty: Duty) -> None:
        """Once on duty: what another process left unfinished has failed. Then, where that is wanted, for ever: each
        version that is loaded for the first time is tuned once the node is idle."""
        restored = False
        while not restored or self._rules.auto:
            if duty.on_duty:
                restored = restored or await self._restore()
                for version in self._fresh() if self._rules.auto else ():
                    await self._until_idle()
                    self._auto_seen.add(version)
                    try:
                        await self._tune_once(version)
                    except ModelMoraError as error:
                        log.info("%s is not tuned by itself: %s", version, error.message)
            await asyncio.sleep(_LOOK_SECONDS)

    async def _restore(self) -> bool:
        try:
            if self._store is not None:
                await self._store.end_running("lifecycle ended while it ran", list(self._tunings))
        except ModelMoraError as error:
            log.warning("unfinished tunings are not marked yet: %s", error.message)
            return False
        return True

    def _fresh(self) -> list[str]:
        """Versions in memory that may not have been tuned."""
        there = {r.version for r in self._node.scheduler.replicas() if r.state is ReplicaState.LOADED}
        return sorted(version for version in there - self._auto_seen if "#" not in version)

    async def _tune_once(self, version: str) -> None:
        facts = await self._registry.facts(version)
        offered = self._offered.get(facts.engine, Offer()).profiles
        # Nobody has said anything of its profile yet: it is the exact one, without the libraries of a measured one.
        untouched = (
            len(offered) > 1 and profile_name(facts.profile) == offered[0] and not facts.profile.library_versions
        )
        done = any(tuning.state is TuningState.SUCCEEDED for tuning in await self.recent(version, "", 10))
        if untouched and not done:
            tuning = self.start(facts, (), apply=True)
            task = self._tasks.get(tuning.uid)
            if task is not None:
                await asyncio.wait((task,))

    async def _until_idle(self) -> None:
        """Until nothing was busy and nothing loaded for a while."""
        since = time.monotonic()
        while time.monotonic() - since < _IDLE_SECONDS:
            await asyncio.sleep(_LOOK_SECONDS)
            scheduler = self._node.scheduler
            for replica in scheduler.replicas():
                if replica.state is ReplicaState.LOADING or scheduler.leases(replica.uid)[1]:
                    since = time.monotonic()

    # Telling.

    def _latest(self, tuning: Tuning) -> Tuning:
        return self._tunings.get(tuning.uid, tuning)

    def _tell(self, tuning: Tuning) -> None:
        self._tunings[tuning.uid] = tuning
        if len(self._tunings) > REMEMBERED:
            ended = next((uid for uid, known in self._tunings.items() if known.end_time), None)
            if ended is not None:
                del self._tunings[ended]
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def _keep(self, tuning: Tuning) -> None:
        if self._store is None:
            return
        try:
            await self._store.save(tuning)
        except ModelMoraError as error:
            log.warning("%s is not kept: %s", tuning.name, error.message)


async def _granted(end: LeaseEnd) -> Granted:
    """Raises why the worker did not come up."""
    while True:
        message = await end.next()
        if isinstance(message, Granted):
            return message
        if isinstance(message, Revoked):
            raise LoadFailed(message.reason)


async def _over(end: LeaseEnd) -> str:
    """Why the lease is over, once it is: a tuning never keeps others waiting, so asked to yield it gives up."""
    while True:
        message = await end.next()
        if isinstance(message, Revoked | Yielding):
            return message.reason


_EMBED: int = common_pb2.TASK_TYPE_TXT2EMBED
_JUDGES: Mapping[int, Callable[[Sequence[Row], Sequence[Row]], float]] = {
    common_pb2.TASK_TYPE_RERANKING: partial(agreement, ranks=True),
    common_pb2.TASK_TYPE_CLASSIFICATION: agreement,
    common_pb2.TASK_TYPE_QUESTION_ANSWERING: partial(agreement, spans=True),
}
"""How answers of a task are compared; vectors by cosine."""
_ANSWER_TOKENS = 15


def _entries(task_type: int, texts: Sequence[str]) -> list[worker_pb2.TextEntry]:
    """The sample as entries of this task."""
    if task_type in (common_pb2.TASK_TYPE_RERANKING, common_pb2.TASK_TYPE_QUESTION_ANSWERING):
        ranks = task_type == common_pb2.TASK_TYPE_RERANKING
        return [
            worker_pb2.TextEntry(
                text=query, pair=text, truncate=True, raw_scores=ranks, max_answers=1, max_answer_tokens=_ANSWER_TOKENS
            )
            for query, text in sample_pairs(texts)
        ]
    return [worker_pb2.TextEntry(text=text, truncate=True, normalize=True) for text in texts]


async def _infer(channel: WorkerChannel, task_type: int, texts: Sequence[worker_pb2.TextEntry]) -> list[Row]:
    """The rows of these entries in one batch. Raises the error of the first row that failed."""
    request = worker_pb2.InferRequest(task_type=task_type, texts=texts)  # type: ignore[arg-type]
    found: dict[int, Row] = {}
    async for reply in channel.infer(request):
        for error in reply.errors:
            raise error_from_entry(error)
        offset = 0
        for position, dimensions in zip(reply.positions, reply.row_dimensions, strict=True):
            found[position] = struct.unpack_from(f"<{dimensions}f", reply.rows, offset)
            offset += 4 * dimensions
    if len(found) != len(texts):
        raise LoadFailed("the worker left texts of the sample unanswered")
    return [found[index] for index in range(len(texts))]
