"""Tables and queries of inference jobs, one named method each; a method is one transaction.

A change locks the row, asks jobs.py what it becomes, and writes that; it is announced on CHANNEL as `uid state`. Chunks
of inputs and of results are rows of their own, so that a job of 2048 texts is never rewritten whole. Times are the
database's. Every method may raise DatabaseUnavailable, and a change then may have been made or not: each of them may be
repeated, and finds then that it was made.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from modelmora.errors import (
    ClaimLost,
    DatabaseUnavailable,
    JobNotFound,
    ModelMoraError,
    QueueFull,
    QuotaExceeded,
    RequestIdReused,
)
from modelmora_runtime.db import Database
from sqlalchemy.ext.asyncio import AsyncConnection

from modelmora_inference.domain import Aging, Priority
from modelmora_inference.jobs import FINAL, Claim, Job, JobFailure, JobState

CHANNEL = "modelmora_inference_job"
FULL_RETRY_SECONDS = 5.0
SWEEP_JOBS = 100
"""Jobs whose time is over that are cleared in one transaction."""

_metadata = sa.MetaData()


def _time(name: str) -> sa.Column[datetime]:
    return sa.Column(name, sa.TIMESTAMP(timezone=True))


_job = sa.Table(
    "job",
    _metadata,
    sa.Column("uid", sa.Uuid(as_uuid=False), primary_key=True),
    *(sa.Column(name, sa.Text) for name in ("tenant", "subject", "request_id", "request_digest")),
    *(sa.Column(name, sa.Text) for name in ("model", "model_version", "digest", "task", "state", "reason")),
    *(sa.Column(name, sa.Integer) for name in ("task_type", "priority", "attempt", "failures")),
    sa.Column("options", sa.LargeBinary),
    sa.Column("claim_token", sa.Uuid(as_uuid=False)),
    *(sa.Column(name, sa.Integer) for name in ("inputs", "succeeded", "failed")),
    *(sa.Column(name, sa.BigInteger) for name in ("input_tokens", "compute_nanos", "stored_bytes", "revision")),
    *(sa.Column(f"{error}_{part}", sa.Text) for error in ("error", "first_error") for part in ("reason", "message")),
    *(_time(f"{name}_time") for name in ("create", "update", "start", "end", "claim_expire", "result_expire")),
    *(_time(name) for name in ("deadline", "not_before")),
    sa.Column("result_ttl", sa.Interval),
)


def _chunks_table(name: str) -> sa.Table:
    return sa.Table(
        name,
        _metadata,
        sa.Column("job_uid", sa.Uuid(as_uuid=False), primary_key=True),
        sa.Column("first", sa.Integer, primary_key=True),
        sa.Column("inputs", sa.Integer),
        sa.Column("payload", sa.LargeBinary),
    )


_input, _result = _chunks_table("job_input"), _chunks_table("job_result")
_SAME = tuple(
    name
    for name in Job.__dataclass_fields__
    if name not in ("state", "claim", "error", "first_error", "request_id", "uid")
)
"""Fields of a Job that are columns as they are."""
_FIXED = (
    *("tenant", "subject", "model", "model_version", "digest", "task", "task_type", "options", "priority", "inputs"),
)
_CHANGING = tuple(name for name in _SAME if name not in (*_FIXED, "create_time", "deadline", "result_ttl"))
_UNFINISHED = _job.c.end_time.is_(None)
_FREE = sa.or_(_job.c.claim_token.is_(None), _job.c.claim_expire_time <= sa.func.now())


@dataclass(frozen=True)
class Limits:
    """How much is kept."""

    jobs_per_tenant: int = 1000
    """That have not ended."""
    stored_bytes: int = 4 * 1024**3
    """Of all inputs that wait and all results."""
    job_keep: timedelta = timedelta(days=7)
    """A job is kept so long after its results have expired."""


@dataclass(frozen=True)
class Chunk:
    """Some inputs of a job, or their results, serialised."""

    first: int
    """Index of its first input."""
    inputs: int
    """That it spans; what was cut off by the job's deadline has no result."""
    payload: bytes


class JobStore:
    def __init__(self, database: Database, limits: Limits, aging: Aging) -> None:
        self._database = database
        self._limits = limits
        self._offsets = {priority.value: timedelta(seconds=aging.offset(priority)) for priority in Priority}
        self.migrated = False

    async def migrate(self) -> None:
        await self._database.migrate("modelmora_inference")
        self.migrated = True

    def changes(self) -> AsyncIterator[str]:
        """`uid state` of jobs that changed, here or in another process; the empty string: look at all of them."""
        return self._database.listen(CHANNEL)

    # For callers.

    async def create(
        self, make: Callable[[datetime], Job], request_digest: str, inputs: Sequence[tuple[int, bytes]]
    ) -> Job:
        """Writes down a new job with its chunks of inputs: how many, and serialised. The job that a repeated request id
        made is the answer to its repetition.

        Raises RequestIdReused, QuotaExceeded, QueueFull.
        """
        async with self._begin() as (connection, now):
            job = make(now)
            # One at a time: bounds that are counted apart are no bounds.
            await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(CHANNEL, 0))))
            if job.request_id:
                same = sa.and_(_job.c.tenant == job.tenant, _job.c.request_id == job.request_id)
                earlier = (await connection.execute(sa.select(_job).where(same))).first()
                if earlier is not None:
                    if earlier.request_digest != request_digest:
                        raise RequestIdReused(
                            f"this request_id was used with other content, by jobs/{earlier.uid}",
                            request_id=job.request_id,
                            job=earlier.uid,
                        )
                    return _job_of(earlier)
            await self._check_bounds(connection, job)
            await connection.execute(sa.insert(_job).values(request_digest=request_digest, **_all_values(job)))
            first, rows = 0, []
            for count, payload in inputs:
                rows.append({"job_uid": job.uid, "first": first, "inputs": count, "payload": payload})
                first += count
            await connection.execute(sa.insert(_input), rows)
            await _announce(connection, job)
            return job

    async def _check_bounds(self, connection: AsyncConnection, job: Job) -> None:
        mine = sa.select(sa.func.count()).where(_job.c.tenant == job.tenant, _UNFINISHED)
        if (count := await connection.scalar(mine) or 0) >= self._limits.jobs_per_tenant:
            raise QuotaExceeded(
                f"tenant {job.tenant} has {count} unfinished jobs, at most {self._limits.jobs_per_tenant}",
                retry_after_seconds=FULL_RETRY_SECONDS,
            )
        kept = sa.select(sa.func.coalesce(sa.func.sum(_job.c.stored_bytes), 0)).where(_job.c.stored_bytes > 0)
        if int(await connection.scalar(kept) or 0) + job.stored_bytes > self._limits.stored_bytes:
            raise QueueFull(
                f"all jobs together keep at most {self._limits.stored_bytes} bytes of inputs and results",
                retry_after_seconds=FULL_RETRY_SECONDS,
            )

    async def get(self, uid: str, tenant: str | None) -> tuple[Job, datetime]:
        """The job, if it is of `tenant` (None: of any), and the time. Raises JobNotFound."""
        async with self._read() as connection:
            return await _find(connection, uid, tenant)

    async def list(
        self, *, tenant: str | None, states: Sequence[JobState], model: str, before: str | None, size: int
    ) -> Sequence[Job]:
        """Newest first, those older than `before`; one more than `size` when there are more."""
        query = sa.select(_job).order_by(_job.c.uid.desc()).limit(size + 1)
        if tenant is not None:
            query = query.where(_job.c.tenant == tenant)
        if states:
            query = query.where(_job.c.state.in_([state.value for state in states]))
        if model:
            query = query.where(sa.or_(_job.c.model == model, _job.c.model_version == model))
        if before is not None:
            query = query.where(_job.c.uid < before)
        async with self._read() as connection:
            return [_job_of(row) for row in await connection.execute(query)]

    async def cancel(self, uid: str, tenant: str | None) -> Job:
        """Raises JobNotFound, IllegalTransition."""
        async with self._begin() as (connection, now):
            old, _ = await _find(connection, uid, tenant, lock=True)
            return await _save(connection, old, old.cancelled(now))

    async def results(
        self, uid: str, tenant: str | None, *, start: int, max_inputs: int, max_bytes: int
    ) -> tuple[Job, datetime, Sequence[Chunk]]:
        """The job and its chunks of results that reach beyond input `start`, as many as fit, at least one where there
        is one. Raises JobNotFound."""
        async with self._read() as connection:
            job, now = await _find(connection, uid, tenant)
            sizes = sa.select(_result.c.first, _result.c.inputs, sa.func.octet_length(_result.c.payload).label("size"))
            mine = sa.and_(_result.c.job_uid == uid, _result.c.first + _result.c.inputs > start)
            wanted: list[int] = []
            inputs = size_bytes = 0
            for row in await connection.execute(sizes.where(mine).order_by(_result.c.first)):
                if wanted and (inputs >= max_inputs or size_bytes + row.size > max_bytes):
                    break
                wanted.append(row.first)
                inputs, size_bytes = inputs + row.inputs, size_bytes + row.size
            query = sa.select(_result).where(_result.c.job_uid == uid, _result.c.first.in_(wanted))
            rows = await connection.execute(query.order_by(_result.c.first))
            return job, now, [Chunk(row.first, row.inputs, row.payload) for row in rows]

    # For runners.

    async def claim(self, token: str, lasts: timedelta, *, with_work: bool) -> tuple[Job, datetime] | None:
        """Takes up one job under a claim of this token: one that is to end, or (`with_work`) one to compute. None:
        there is none.

        Of those to compute a tenant's with the fewest at work goes first, then by age as in the queue: HIGH before
        others that are younger than their offset.
        """
        to_end = sa.or_(_job.c.state == JobState.CANCELLING.value, _job.c.deadline <= sa.func.now())
        at_work = (
            sa.select(_job.c.tenant, sa.func.count().label("jobs"))
            .where(_UNFINISHED, _job.c.claim_expire_time > sa.func.now())
            .group_by(_job.c.tenant)
            .subquery()
        )
        offset = sa.case(self._offsets, value=_job.c.priority, else_=timedelta())
        ready = sa.or_(to_end, _job.c.not_before <= sa.func.now()) if with_work else to_end
        query = (
            sa.select(_job)
            .outerjoin(at_work, at_work.c.tenant == _job.c.tenant)
            .where(_UNFINISHED, _FREE, ready)
            .order_by(to_end.desc(), sa.func.coalesce(at_work.c.jobs, 0), _job.c.create_time + offset, _job.c.uid)
            .limit(1)
            .with_for_update(of=_job, skip_locked=True)
        )
        async with self._begin() as (connection, now):
            row = (await connection.execute(query)).first()
            if row is None:
                return None
            old = _job_of(row)
            return await _save(connection, old, old.claimed(token, now, lasts)), now

    async def seconds_to_next(self, *, with_work: bool) -> float | None:
        """Until `claim` should find one, as things are now; None: there is none."""
        free = sa.func.least(_job.c.not_before, _job.c.deadline)
        cancelling = (_job.c.state == JobState.CANCELLING.value, _job.c.claim_expire_time)
        ready = (
            sa.case((_job.c.claim_token.is_(None), free), else_=_job.c.claim_expire_time)
            if with_work
            else sa.case(cancelling, else_=sa.func.greatest(_job.c.claim_expire_time, _job.c.deadline))
        )
        soonest = sa.select(sa.extract("epoch", sa.func.min(ready) - sa.func.now())).where(_UNFINISHED)
        async with self._read() as connection:
            seconds = await connection.scalar(soonest)
            return None if seconds is None else float(seconds)

    async def extend(self, tokens: Sequence[str], lasts: timedelta) -> dict[str, JobState]:
        """The state of each job that is still held by one of these tokens, by token; they hold so long from now."""
        statement = (
            sa.update(_job)
            .where(_job.c.claim_token.in_(tokens), _UNFINISHED)
            .values(claim_expire_time=sa.func.now() + lasts)
            .returning(_job.c.claim_token, _job.c.state)
        )
        async with self._begin() as (connection, _):
            return {row.claim_token: JobState(row.state) for row in await connection.execute(statement)}

    async def waiting_chunks(self, uid: str) -> Sequence[int]:
        """First inputs of the chunks that are not answered."""
        query = sa.select(_input.c.first).where(_input.c.job_uid == uid).order_by(_input.c.first)
        async with self._read() as connection:
            return list(await connection.scalars(query))

    async def inputs(self, uid: str, first: int) -> bytes | None:
        """One chunk; None when it has been answered."""
        query = sa.select(_input.c.payload).where(_input.c.job_uid == uid, _input.c.first == first)
        async with self._read() as connection:
            return await connection.scalar(query)

    async def start(self, uid: str, token: str) -> Job:
        """Raises ClaimLost."""
        return await self._change(uid, lambda job, now: job.started(token, now))

    async def publish(
        self,
        uid: str,
        token: str,
        chunk: Chunk,
        *,
        succeeded: int,
        failures: Sequence[JobFailure],
        input_tokens: int,
        compute_nanos: int = 0,
    ) -> Job:
        """Puts the results of a chunk in the place of its inputs; a repetition changes nothing. Raises ClaimLost."""
        async with self._begin() as (connection, now):
            old, _ = await _find(connection, uid, None, lock=True)
            taken = (
                sa.delete(_input)
                .where(_input.c.job_uid == uid, _input.c.first == chunk.first)
                .returning(sa.func.octet_length(_input.c.payload))
            )
            freed_bytes = await connection.scalar(taken)
            if freed_bytes is None:
                return old
            new = old.with_results(
                token,
                now,
                succeeded=succeeded,
                failures=failures,
                input_tokens=input_tokens,
                compute_nanos=compute_nanos,
                more_bytes=len(chunk.payload) - freed_bytes,
            )
            row = {"job_uid": uid, "first": chunk.first, "inputs": chunk.inputs, "payload": chunk.payload}
            await connection.execute(sa.insert(_result).values(row))
            return await _save(connection, old, new)

    async def end(self, uid: str, token: str, error: ModelMoraError) -> Job:
        """Raises ClaimLost."""
        return await self._change(uid, lambda job, now: job.ended(token, now, error))

    async def give_back(self, uid: str, token: str, error: ModelMoraError | None) -> Job:
        """Raises ClaimLost."""
        return await self._change(uid, lambda job, now: job.given_back(token, now, error))

    async def forget(self, token: str) -> None:
        """Gives back whatever is held by this token, which may be nothing."""
        query = sa.select(_job).where(_job.c.claim_token == token, _UNFINISHED).with_for_update()
        async with self._begin() as (connection, now):
            for row in (await connection.execute(query)).all():
                old = _job_of(row)
                await _save(connection, old, old.given_back(token, now, None))

    async def sweep(self) -> int:
        """Clears results whose time is over, and forgets jobs that were kept long enough; how many of both, at most
        SWEEP_JOBS each."""
        over = sa.and_(_job.c.end_time.is_not(None), _job.c.result_expire_time <= sa.func.now())
        async with self._begin() as (connection, now):
            found = sa.select(_job.c.uid).where(over, _job.c.stored_bytes > 0).limit(SWEEP_JOBS)
            uids = list(await connection.scalars(found.with_for_update(skip_locked=True)))
            for table in (_input, _result):
                await connection.execute(sa.delete(table).where(table.c.job_uid.in_(uids)))
            await connection.execute(sa.update(_job).where(_job.c.uid.in_(uids)).values(stored_bytes=0))
            old = (
                sa.select(_job.c.uid)
                .where(over, _job.c.result_expire_time <= now - self._limits.job_keep)
                .limit(SWEEP_JOBS)
                .with_for_update(skip_locked=True)
            )
            gone = await connection.execute(sa.delete(_job).where(_job.c.uid.in_(old)))
            return len(uids) + int(gone.rowcount)

    # Helpers.

    async def _change(self, uid: str, change: Callable[[Job, datetime], Job]) -> Job:
        async with self._begin() as (connection, now):
            old, _ = await _find(connection, uid, None, lock=True)
            return await _save(connection, old, change(old, now))

    @asynccontextmanager
    async def _begin(self) -> AsyncIterator[tuple[AsyncConnection, datetime]]:
        self._check_migrated()
        async with self._database.begin() as connection:
            yield connection, (await connection.execute(sa.select(sa.func.now()))).scalar_one()

    @asynccontextmanager
    async def _read(self) -> AsyncIterator[AsyncConnection]:
        self._check_migrated()
        async with self._database.read() as connection:
            yield connection

    def _check_migrated(self) -> None:
        if not self.migrated:
            raise DatabaseUnavailable("the tables of jobs are not there yet", retry_after_seconds=1.0)


async def _find(
    connection: AsyncConnection, uid: str, tenant: str | None, *, lock: bool = False
) -> tuple[Job, datetime]:
    query = sa.select(_job, sa.func.now().label("now")).where(_job.c.uid == uid)
    row = (await connection.execute(query.with_for_update() if lock else query)).first()
    if row is None or tenant not in (None, row.tenant):
        raise JobNotFound(job=uid)
    return _job_of(row), row.now


async def _save(connection: AsyncConnection, old: Job, new: Job) -> Job:
    """Writes a change of a row that is locked, says so, and lets go of inputs that nobody will compute any more."""
    if new == old:
        return new
    if new.state in FINAL and new.answered < new.inputs:
        dropped = sa.delete(_input).where(_input.c.job_uid == new.uid).returning(sa.func.octet_length(_input.c.payload))
        new = replace(new, stored_bytes=new.stored_bytes - sum(await connection.scalars(dropped)))
    statement = sa.update(_job).where(_job.c.uid == new.uid, _job.c.revision == old.revision)
    if (await connection.execute(statement.values(_changing_values(new)))).rowcount != 1:
        raise ClaimLost(job=new.uid)
    await _announce(connection, new)
    return new


async def _announce(connection: AsyncConnection, job: Job) -> None:
    await connection.execute(sa.select(sa.func.pg_notify(CHANNEL, f"{job.uid} {job.state.value}")))


def _changing_values(job: Job) -> dict[str, Any]:
    values: dict[str, Any] = {name: getattr(job, name) for name in _CHANGING}
    values["state"] = job.state.value
    values["reason"] = _plain(job.reason)
    values["claim_token"] = job.claim.token if job.claim else None
    values["claim_expire_time"] = job.claim.expire_time if job.claim else None
    for name, failure in (("error", job.error), ("first_error", job.first_error)):
        values[f"{name}_reason"] = failure.reason if failure else None
        values[f"{name}_message"] = _plain(failure.message) if failure else None
    return values


def _all_values(job: Job) -> dict[str, Any]:
    values = {name: getattr(job, name) for name in _SAME}
    return values | _changing_values(job) | {"uid": job.uid, "request_id": job.request_id or None}


def _plain(text: str) -> str:
    """What the database takes as text."""
    return text.replace("\0", "")


def _job_of(row: Any) -> Job:
    return Job(
        uid=row.uid,
        request_id=row.request_id or "",
        state=JobState(row.state),
        claim=Claim(row.claim_token, row.claim_expire_time) if row.claim_token else None,
        error=JobFailure(row.error_reason, row.error_message) if row.error_reason else None,
        first_error=JobFailure(row.first_error_reason, row.first_error_message) if row.first_error_reason else None,
        **{name: getattr(row, name) for name in _SAME},
    )
