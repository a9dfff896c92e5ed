"""The queue of one model version: decides who goes next, in which batch, and what a dead worker means for whom.

Pure: `now` is an argument (monotonic seconds, never running backwards), answers are values, nothing waits here. Every
operation costs O(log n) for each entry it touches.

Order. Each priority is a line that its tenants share by weight (fairness.py); within a tenant the earlier goes first.
The lines are merged by `arrival + offset of the priority` of what is first in each.

The bound. An entry is overtaken only by entries that arrive within max(offset of its priority, fairness) after it.
Proof: let e wait since a, in a priority with offset o; F is the time of fairness. Whatever goes before a + F has
arrived before a + F. From then on the first of e's line is the oldest there, so it stands at a + o at most. What goes
before e is then either older than e, or first in another line and stands before a + o; its own offset is not negative,
so it has arrived before a + o. A batch is filled only with what would be next anyway, and what overtakes a batch on the
worker stands before all that is in it (see 1).

Entries of different lanes cannot share a batch; the entry that is first over all lanes decides the batch, and those of
its lane and priority that follow in order fill it. (Over lanes the bound holds for the first of each batch.) A batch
has one priority: HIGH never computes LOW along.

Batches, numbered as in the code:
  1. Nothing goes while every place on the worker is taken, or while an entry that must be alone is running. But what is
     more urgent than all that is on the worker, and would have gone before it, needs no place: its batch has a higher
     rank, and the worker turns to it after the running micro-batch. It resumes the other then: nothing is computed
     twice and no place is given up, so LOW pays for HIGH only the time that HIGH computes. (Cancelling the LOW batch
     and queueing it again would tokenise it again each time, and a smaller second batch would still be waited for.)
  2. A suspect goes alone, when the worker is empty.
  3. Beside a running batch the next one goes once as much waits as is still unanswered. Sooner it would be small, and
     small batches waste more than the wait costs: the worker is busy anyway.
  4. What is there is shared between the places of all workers: a batch takes at most its share of all tokens, so that
     one part computes while the other is read, answered and asked again. Little work is not split.

Poison. When a worker dies, the batch that it was computing (the oldest unanswered one of a rank) is suspect: its
entries are tried again one by one, each alone; all others just go back to their places. An entry that was the only one
on a worker when it died twice is condemned. Deaths that the platform wanted (`crashed=False`) make nobody suspect.

Bounds. What is held is shared between tenants by weight too: when a bound is reached, who is within its share is taken
in for entries of those that are above theirs (sharing.py). Who is not, or finds no room that way, is taken in for what
its own tenant has waiting that is less urgent: LOW first, of one priority the newest. Two things limit that. Nobody
gives way to what would not have overtaken it (LOW that has waited for its offset keeps its place, so the bound above
holds), and what is less urgent keeps half of what its tenant holds: however much HIGH comes, LOW is taken in, ages and
is computed. So a request is refused for its own tenant's sake only when what is as urgent has half of its places, or
what is less urgent would be computed before it anyway.

A place counts as taken, and bytes as held, until the worker has let go: an entry that was withdrawn while it ran goes
on counting against the bounds until its row comes, or its batch ends.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import merge
from math import exp

from modelmora.errors import QueueFull

from modelmora_inference.domain import (
    MAX_TIMEOUT_SECONDS,
    Aging,
    Ahead,
    Batch,
    Bounds,
    ByteBudget,
    Entry,
    Level,
    Place,
    Priority,
    TenantLevel,
    Worker,
)
from modelmora_inference.fairness import Accounts, Line
from modelmora_inference.sharing import enough, who_leaves

LONE_DEATHS = 2
"""Deaths of a worker with one entry alone on it that condemn the entry."""

UNKNOWN_RETRY_SECONDS = 1.0
"""Who finds a full queue of which nobody knows how fast it drains is told to come back after so long."""
_LANES_KEPT = 16
"""Empty lanes that are not worth forgetting."""
_NEVER = float("inf")

_WAITING, _RUNNING, _ENDED = Place.WAITING, Place.RUNNING, Place.ENDED
_LOW_FIRST = tuple(sorted(Priority))
_URGENT_FIRST = _LOW_FIRST[::-1]
_MEASURES: dict[str, Callable[[Entry], int]] = {
    "entries": lambda entry: 1,
    "tokens": lambda entry: entry.tokens,
    "size_bytes": lambda entry: entry.size_bytes,
}


def _newest_low(pair: tuple[object, Entry]) -> tuple[Priority, float]:
    return pair[1].priority, -pair[1].arrival


@dataclass(slots=True)
class Popped:
    """What `pop_batch` decided: a batch for the worker, or none, and the entries whose time ran out before."""

    batch: Batch | None = None
    expired: list[Entry] = field(default_factory=list)


@dataclass(slots=True)
class _Charge:
    entries: int = 0
    tokens: int = 0
    size_bytes: int = 0


class EntryQueue:
    """Every entry of one version from `push` until it has ended: waiting, or running on one of its workers."""

    def __init__(
        self,
        bounds: Bounds,
        aging: Aging,
        *,
        budget: ByteBudget | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        """`budget` is that of the process; `weights` of tenants may change at any time, 1 where there is none."""
        self.bounds = bounds
        self.workers: list[Worker] = []
        """Those that serve it; `pop_batch` adds them, `worker_gone` takes them off."""
        self._budget = budget or ByteBudget()
        self._offsets = {priority: aging.offset(priority) for priority in Priority}
        self._fairness_seconds = aging.fairness_seconds
        self._lanes: dict[Hashable, dict[Priority, Line]] = {}
        self._accounts = {priority: Accounts({} if weights is None else weights) for priority in Priority}
        self._waiting = {priority: _Charge() for priority in Priority}
        self._waiting_entries = 0
        self._waiting_tokens = 0
        self._held_entries = self._held_tokens = self._held_bytes = 0
        self._held: dict[str, _Charge] = {}
        """The three by tenant."""
        self._sequence = 0
        self._drain = _DrainRate()
        self._busy_drain = _DrainRate()
        """Of the batches beside or behind which there was more to do."""
        self._full_drain = _DrainRate()
        """Of the batches that went while much was held: lone calls that take their time say little of a full queue."""
        self._worked_until = 0.0
        """The last answer, or when work began after a time without."""

    def __len__(self) -> int:
        """Entries that wait."""
        return self._waiting_entries

    @property
    def in_flight(self) -> int:
        """Entries on workers that somebody waits for."""
        return sum(batch.wanted for worker in self.workers for batch in worker.running)

    @property
    def abandoned(self) -> int:
        """Entries on workers that nobody waits for any more."""
        return self._held_entries - self._waiting_entries - self.in_flight

    @property
    def running(self) -> list[Batch]:
        """Batches on workers."""
        return [batch for worker in self.workers for batch in worker.running]

    @property
    def depths(self) -> dict[Priority, int]:
        """Entries that wait, most urgent first. Cheap."""
        return {priority: self._waiting[priority].entries for priority in _URGENT_FIRST}

    @property
    def empty(self) -> bool:
        """Nothing waits and nothing runs."""
        return not self._waiting_entries and not any(worker.running for worker in self.workers)

    @property
    def drain_rate(self) -> float:
        """Entries a second that the workers answered lately, counted while there was work; 0 while unknown."""
        return self._drain.rate

    @property
    def pace(self) -> float:
        """The same while there was more to do than one batch; 0 while unknown. A call that comes alone takes its time,
        whatever might have gone with it: by such calls a queue of a second was taken for one of four minutes."""
        return self._busy_drain.rate

    def push(self, entries: Sequence[Entry], now: float) -> list[Entry]:
        """Takes all of them, which are one tenant's, or none: QueueFull, with the time until there should be room, when
        a bound is reached. Those that had to leave for them, in this queue or in others of its budget: they have ended,
        and are to be answered with `refusal`.
        """
        tokens = size_bytes = 0
        for entry in entries:
            tokens += entry.tokens
            size_bytes += entry.size_bytes
        bounds, budget = self.bounds, self._budget
        if (
            self._held_entries + len(entries) > bounds.max_entries
            or self._held_tokens + tokens > bounds.max_tokens
            or self._held_bytes + size_bytes > bounds.max_bytes
            or budget.held_bytes + size_bytes > budget.limit_bytes
        ):
            room = self._room_for(entries, tokens, size_bytes)
            if room is None:
                raise self.refusal(len(entries), tokens, size_bytes)
            for queue, entry in room:
                queue.withdraw([entry])
            leaving = [entry for _, entry in room]
        else:
            leaving = []
        if not self._held_entries:
            self._worked_until = now
            budget.queues[self] = None
        by_tenant = budget.by_tenant
        for entry in entries:
            self._sequence += 1
            entry.sequence = self._sequence
            self._wait(entry)
            held = self._held.get(entry.tenant)
            if held is None:
                held = self._held[entry.tenant] = _Charge()
            held.entries += 1
            held.tokens += entry.tokens
            held.size_bytes += entry.size_bytes
            by_tenant[entry.tenant] = by_tenant.get(entry.tenant, 0) + entry.size_bytes
        self._held_entries += len(entries)
        self._held_tokens += tokens
        self._held_bytes += size_bytes
        budget.held_bytes += size_bytes
        return leaving

    def pop_batch(self, worker: Worker, now: float) -> Popped:
        """The next batch for a worker if one should go now; its entries are RUNNING from then on."""
        popped = Popped()
        limits, running = worker.limits, worker.running
        if worker not in self.workers:
            self.workers.append(worker)
        if not self._waiting_entries:
            return popped
        full, top = False, Priority.LOW
        if running:
            if running[0].alone:  # 1
                return popped
            full = len(running) >= limits.max_batches
            top = max([batch.priority for batch in running])
            if full and not any(priority > top and self._waiting[priority].entries for priority in _URGENT_FIRST):
                return popped
        first, next_key = self._first_of_all(now, popped.expired)
        if first is None:
            return popped
        key = first.arrival + self._offsets[first.priority]
        if first.suspect:  # 2
            if not running:
                popped.batch = self._start(worker, [self._take(first)], alone=True)
            return popped
        rank = 0
        if running:
            in_flight_tokens = sum(batch.unanswered_tokens for batch in running)
            if first.priority > top and all(key < batch.key for batch in running):  # 1
                rank = 1 + max(batch.rank for batch in running)
            elif full or (
                self._waiting_tokens < min(in_flight_tokens, limits.max_tokens)
                and self._waiting_entries < limits.max_entries
            ):  # 3
                return popped
        in_flight_tokens = places = 0
        for one in self.workers:
            places += one.limits.max_batches
            for batch in one.running:
                in_flight_tokens += batch.unanswered_tokens
        share = -(-(self._waiting_tokens + in_flight_tokens) // places)  # 4
        budget = min(limits.max_tokens, max(share, limits.split_tokens))
        line, offset = self._lanes[first.lane][first.priority], self._offsets[first.priority]
        chosen = [self._take(first)]
        tokens, size_bytes = first.tokens, first.size_bytes
        while len(chosen) < limits.max_entries:
            entry = self._first(line, now, popped.expired)
            if entry is None or entry.suspect or tokens + entry.tokens > budget or entry.arrival + offset > next_key:
                break
            if size_bytes + entry.size_bytes > limits.max_bytes:
                break
            chosen.append(self._take(entry))
            tokens += entry.tokens
            size_bytes += entry.size_bytes
        popped.batch = self._start(worker, chosen, rank=rank)
        return popped

    def answer(self, batch: Batch, position: int, now: float, cost: float | None = None) -> Entry | None:
        """The worker answered a position: the entry, or None if nobody waits for it any more.

        `cost` is what it took, in tokens of the usual kind (compute time over the usual time of a token); its tenant is
        charged with the estimate where it is not known.
        """
        entry = batch.entries[position]
        if entry.batch is not batch:
            return None
        entry.batch = None
        batch.answered += 1
        batch.unanswered_tokens -= entry.tokens
        seconds, self._worked_until = now - self._worked_until, now
        self._drain.answer(seconds)
        if batch.had_more:
            self._busy_drain.answer(seconds)
        if batch.queue_was_full:
            self._full_drain.answer(seconds)
        if cost is not None:
            self._accounts[entry.priority].settle(entry, cost)
        if entry.place is not _RUNNING:
            self._release(entry)
            return None
        batch.wanted -= 1
        self._end(entry)
        return entry

    def finish(self, batch: Batch) -> None:
        """The worker has let go of a batch. What it left unanswered must have been given to `fail` before."""
        self._leaves(batch)

    def fail(self, batch: Batch) -> list[Entry]:
        """The worker ended a batch with an error: the entries to answer with it.

        An entry that was alone has earned the error. Of several, one may have spoilt it for all: they go back and are
        tried alone.
        """
        left = self._leaves(batch)
        if len(batch.entries) == 1:
            for entry in left:
                self._end(entry)
            return left
        for entry in left:
            entry.suspect = True
            self._return(entry)
        return []

    def worker_gone(self, worker: Worker, *, crashed: bool) -> list[Entry]:
        """A worker is gone and everything on it goes back; the condemned entries, to be answered."""
        batches = list(worker.running)
        computing: dict[int, Batch] = {}
        for batch in batches:
            if batch.answered < len(batch.entries):
                computing.setdefault(batch.rank, batch)
        lone = len(batches) == 1 and len(batches[0].entries) == 1
        condemned = []
        for batch in batches:
            for entry in self._leaves(batch):
                if crashed and computing.get(batch.rank) is batch:
                    entry.suspect = True
                    entry.lone_deaths += lone
                if entry.lone_deaths >= LONE_DEATHS:
                    self._end(entry)
                    condemned.append(entry)
                else:
                    self._return(entry)
        if worker in self.workers:
            self.workers.remove(worker)
        return condemned

    def withdraw(self, entries: Iterable[Entry]) -> None:
        """Nobody waits for these any more. What runs stays in its batch until the worker has let go of it."""
        for entry in entries:
            if entry.place is _WAITING:
                self._leave(entry)
                self._end(entry)
                self._lanes[entry.lane][entry.priority].withdraw()
            elif entry.place is _RUNNING:
                assert entry.batch is not None
                entry.batch.wanted -= 1
                entry.place = _ENDED

    def clear(self) -> list[Entry]:
        """Ends everything that waits; what runs stays."""
        cleared = self.waiting()
        self.withdraw(cleared)
        return sorted(cleared, key=lambda entry: entry.sequence)

    # For people; as long as the queue, so not for the hot path.

    def waiting(self) -> list[Entry]:
        """Everything that waits, in no order."""
        return [entry for lines in self._lanes.values() for line in lines.values() for entry in line]

    def oldest_age(self, now: float) -> float:
        """How long the first has waited; 0 when nothing waits. Cheap."""
        arrivals = [
            oldest.arrival
            for lines in self._lanes.values()
            for line in lines.values()
            if line.entries and (oldest := line.oldest()) is not None
        ]
        return max(0.0, now - min(arrivals)) if arrivals else 0.0

    def behind(self, now: float) -> tuple[int, float]:
        """How many entries are not being computed yet, in the queue or on a worker behind another batch, and how long
        the first of them has waited."""
        count, oldest = self._waiting_entries, self.oldest_age(now)
        for worker in self.workers:
            computing = max(worker.running, key=lambda batch: batch.rank, default=None)  # the first of the highest
            for batch in worker.running:
                if batch is not computing and not batch.answered:
                    count += batch.wanted
                    oldest = max(oldest, now - batch.key + self._offsets[batch.priority])
        return count, oldest

    def levels(self, now: float) -> list[Level]:
        """What waits, most urgent first."""
        first: dict[tuple[Priority, str], float] = {}
        for entry in self.waiting():
            place = (entry.priority, entry.tenant)
            first[place] = min(entry.arrival, first.get(place, _NEVER))
        found = []
        for priority in _URGENT_FIRST:
            accounts = self._accounts[priority]
            tenants = [
                TenantLevel(
                    account.tenant,
                    accounts.weight(account.tenant),
                    account.entries,
                    account.tokens,
                    account.size_bytes,
                    max(0.0, now - first[priority, account.tenant]),
                )
                for account in accounts
            ]
            tenants.sort(key=lambda level: (-level.oldest_age_seconds, level.tenant))
            charge = self._waiting[priority]
            age = max((level.oldest_age_seconds for level in tenants), default=0.0)
            found.append(Level(priority, charge.entries, charge.tokens, charge.size_bytes, age, tuple(tenants)))
        return found

    def ahead(self, entry: Entry, now: float) -> Ahead:
        """What goes before an entry that waits, if nothing else arrives."""
        key = entry.arrival + self._offsets[entry.priority]
        accounts = {account.tenant: account for account in self._accounts[entry.priority]}
        given = {tenant: account.time for tenant, account in accounts.items()}
        starts: dict[int, float] = {}
        peers = [other for other in self.waiting() if other.priority is entry.priority]
        for other in sorted(peers, key=lambda other: (other.arrival, other.sequence)):
            starts[other.sequence] = given[other.tenant]
            given[other.tenant] += other.tokens / self._accounts[entry.priority].weight(other.tenant)
        overdue = entry.arrival + self._fairness_seconds <= now
        entries = tokens = 0
        for other in self.waiting():
            if other is entry:
                continue
            if other.priority is not entry.priority:
                before = other.arrival + self._offsets[other.priority] < key
            elif overdue or other.tenant == entry.tenant:
                before = (other.arrival, other.sequence) < (entry.arrival, entry.sequence)
            else:
                before = (
                    other.arrival + self._fairness_seconds <= now or starts[other.sequence] < starts[entry.sequence]
                )
            entries += before
            tokens += other.tokens * before
        return Ahead(entries, tokens)

    # Places.

    def _first_of_all(self, now: float, expired: list[Entry]) -> tuple[Entry | None, float]:
        """The entry that is next in order over all lanes, and where the first of any other priority stands."""
        firsts: list[tuple[float, int, Entry]] = []
        forget = len(self._lanes) > _LANES_KEPT
        for priority in _URGENT_FIRST:
            if not self._waiting[priority].entries:
                continue
            found = [
                entry
                for lines in self._lanes.values()
                if (entry := self._first(lines[priority], now, expired)) is not None
            ]
            if found:
                best = found[0] if len(found) == 1 else min(found, key=lambda entry: self._place(entry, now))
                firsts.append((best.arrival + self._offsets[priority], best.sequence, best))
        if forget:
            for lane, lines in list(self._lanes.items()):
                if not any(line.entries for line in lines.values()):
                    del self._lanes[lane]
        if not firsts:
            return None, _NEVER
        if len(firsts) == 1:
            return firsts[0][2], _NEVER
        firsts.sort()
        return firsts[0][2], firsts[1][0]

    def _place(self, entry: Entry, now: float) -> tuple[float, float, int]:
        """Which of the first ones of several lanes is next: as in one line, the overdue by arrival, then by account."""
        overdue = entry.arrival + self._fairness_seconds <= now
        account = -1.0 if overdue else self._accounts[entry.priority].time_of(entry.tenant)
        return (account, entry.arrival, entry.sequence)

    def _first(self, line: Line, now: float, expired: list[Entry]) -> Entry | None:
        """The entry of a line that is next in order; those whose time ran out leave the queue on the way."""
        while line.entries:
            entry = line.first(now, self._fairness_seconds)
            if entry is None or entry.deadline > now:
                return entry
            line.take(entry)
            self._leave(entry)
            self._end(entry)
            expired.append(entry)
        return None

    def _wait(self, entry: Entry) -> None:
        """Puts an entry into its place in line, which is the same after every return."""
        entry.place = _WAITING
        entry.batch = None
        lane = self._lanes.get(entry.lane)
        if lane is None:
            lane = self._lanes[entry.lane] = {priority: Line() for priority in Priority}
        lane[entry.priority].put(entry, self._accounts[entry.priority].wait(entry))
        charge = self._waiting[entry.priority]
        charge.entries += 1
        charge.tokens += entry.tokens
        charge.size_bytes += entry.size_bytes
        self._waiting_entries += 1
        self._waiting_tokens += entry.tokens

    def _return(self, entry: Entry) -> None:
        self._accounts[entry.priority].settle(entry, 0.0)
        self._wait(entry)

    def _take(self, entry: Entry) -> Entry:
        """Takes the first of a line out of it, to be computed."""
        self._lanes[entry.lane][entry.priority].take(entry)
        self._leave(entry)
        self._accounts[entry.priority].charge(entry)
        return entry

    def _leave(self, entry: Entry) -> None:
        self._accounts[entry.priority].leave(entry)
        charge = self._waiting[entry.priority]
        charge.entries -= 1
        charge.tokens -= entry.tokens
        charge.size_bytes -= entry.size_bytes
        self._waiting_entries -= 1
        self._waiting_tokens -= entry.tokens

    def _start(self, worker: Worker, entries: list[Entry], *, rank: int = 0, alone: bool = False) -> Batch:
        tokens = 0
        priority = entries[0].priority
        key = min([entry.arrival for entry in entries]) + self._offsets[priority]
        batch = Batch(entries, 0, worker, key, priority, rank, alone, wanted=len(entries))
        for position, entry in enumerate(entries):
            tokens += entry.tokens
            entry.place = _RUNNING
            entry.batch = batch
            entry.position = position
        batch.tokens = batch.unanswered_tokens = tokens
        batch.had_more = self._waiting_entries > 0 or len(worker.running) > 0
        batch.queue_was_full = self._is_half_full()
        worker.running.append(batch)
        return batch

    def _is_half_full(self) -> bool:
        bounds = self.bounds
        return (
            2 * self._held_entries >= bounds.max_entries
            or 2 * self._held_tokens >= bounds.max_tokens
            or 2 * self._held_bytes >= bounds.max_bytes
        )

    def _leaves(self, batch: Batch) -> list[Entry]:
        """A batch is no longer on its worker: its entries that somebody still waits for."""
        batch.worker.running.remove(batch)
        left = []
        for entry in batch.entries:
            if entry.batch is batch:
                if entry.place is _RUNNING:
                    left.append(entry)
                else:
                    entry.batch = None
                    self._release(entry)
        return left

    def _end(self, entry: Entry) -> None:
        entry.place = _ENDED
        self._release(entry)

    def _release(self, entry: Entry) -> None:
        """The entry counts no longer."""
        size_bytes, tenant, budget = entry.size_bytes, entry.tenant, self._budget
        self._held_entries -= 1
        self._held_tokens -= entry.tokens
        self._held_bytes -= size_bytes
        held = self._held[tenant]
        held.entries -= 1
        held.tokens -= entry.tokens
        held.size_bytes -= size_bytes
        if not held.entries:
            del self._held[tenant]
            if not self._held:
                del budget.queues[self]
        budget.held_bytes -= size_bytes
        budget.by_tenant[tenant] -= size_bytes
        if not budget.by_tenant[tenant] and not any(tenant in queue._held for queue in budget.queues):
            del budget.by_tenant[tenant]

    def _room_for(
        self, entries: Sequence[Entry], tokens: int, size_bytes: int
    ) -> list[tuple[EntryQueue, Entry]] | None:
        """Who leaves so that these of a tenant fit; None: they are refused."""
        least = min(entries, key=lambda entry: entry.priority)
        tenant = least.tenant
        leaving: list[tuple[EntryQueue, Entry]] = []
        gone: set[int] = set()
        bounds, budget, weight = self.bounds, self._budget, self._accounts[Priority.HIGH].weight
        for name, size, limit in (
            ("entries", len(entries), bounds.max_entries),
            ("tokens", tokens, bounds.max_tokens),
            ("size_bytes", size_bytes, bounds.max_bytes),
            ("", size_bytes, budget.limit_bytes),
        ):
            measure = _MEASURES[name or "size_bytes"]
            total = getattr(self, f"_held_{name.removeprefix('size_')}") if name else budget.held_bytes
            need = total + size - limit - sum(measure(entry) for _, entry in leaving)
            if need <= 0:
                continue
            if name:
                held, queues = {one: getattr(charge, name) for one, charge in self._held.items()}, [self]
            else:
                held, queues = dict(budget.by_tenant), list(budget.queues)
            for _, entry in leaving:
                held[entry.tenant] -= measure(entry)

            def waiting(
                one: str, queues: list[EntryQueue] = queues, measure: Callable[[Entry], int] = measure
            ) -> Iterator[tuple[tuple[EntryQueue, Entry], int]]:
                found = merge(*[queue._newest(one) for queue in queues], key=_newest_low)
                return ((pair, measure(pair[1])) for pair in found if id(pair[1]) not in gone)

            more = who_leaves(tenant, size, need, limit, held, weight, waiting)
            if more is None:
                below = sum(queue._less_urgent(least, name or "size_bytes") for queue in queues)
                below -= sum(measure(entry) for _, entry in leaving if entry.tenant == tenant)
                if 2 * (below - need) < held.get(tenant, 0):
                    return None
                behind = self._behind(least, queues)
                more = enough(need, ((pair, measure(pair[1])) for pair in behind if id(pair[1]) not in gone))
            if more is None:
                return None
            leaving += more
            gone.update(id(entry) for _, entry in more)
        return leaving

    def _newest(self, tenant: str) -> Iterator[tuple[EntryQueue, Entry]]:
        """What a tenant has waiting, LOW first and of one priority the newest first."""
        for priority in _LOW_FIRST:
            yield from self._newest_of(tenant, priority)

    def _newest_of(self, tenant: str, priority: Priority) -> Iterator[tuple[EntryQueue, Entry]]:
        lines = [line[priority].newest(tenant) for line in self._lanes.values()]
        for entry in lines[0] if len(lines) == 1 else merge(*lines, key=lambda entry: -entry.sequence):
            yield self, entry

    def _less_urgent(self, entry: Entry, name: str) -> int:
        """What of its tenant's waits and is less urgent than an entry: entries, tokens or size_bytes."""
        accounts = [self._accounts[one].of(entry.tenant) for one in _LOW_FIRST if one < entry.priority]
        return sum(getattr(account, name) for account in accounts if account is not None)

    def _behind(self, entry: Entry, queues: Iterable[EntryQueue]) -> Iterator[tuple[EntryQueue, Entry]]:
        """What of its tenant's is less urgent than an entry and stands behind it, LOW first and the newest first."""
        key = entry.arrival + self._offsets[entry.priority]
        for priority in _LOW_FIRST:
            if priority >= entry.priority:
                return
            for pair in merge(*[queue._newest_of(entry.tenant, priority) for queue in queues], key=_newest_low):
                if pair[1].arrival + self._offsets[priority] <= key:
                    break  # the others are older
                yield pair

    def refusal(self, entries: int, tokens: int, size_bytes: int) -> QueueFull:
        """Why so much is not taken, and when to come back: the part of what is held that must leave first, at the rate
        at which it leaves. While nobody has seen how fast that is with much to do: soon."""
        budget = self._budget
        part = max(
            (self._held_entries + entries - self.bounds.max_entries) / max(self._held_entries, 1),
            (self._held_tokens + tokens - self.bounds.max_tokens) / max(self._held_tokens, 1),
            (self._held_bytes + size_bytes - self.bounds.max_bytes) / max(self._held_bytes, 1),
            (budget.held_bytes + size_bytes - budget.limit_bytes) / max(budget.held_bytes, 1),
        )
        rate = self._full_drain.rate or self._drain.rate
        longest = MAX_TIMEOUT_SECONDS if self._full_drain.rate else UNKNOWN_RETRY_SECONDS
        seconds = min(part, 1.0) * self._held_entries / rate if rate else longest
        elsewhere = budget.held_bytes - self._held_bytes
        return QueueFull(
            f"{self._held_entries} entries with {self._held_tokens} tokens and {self._held_bytes} bytes are queued for "
            f"this model, {elsewhere} bytes for others; retry after the delay",
            retry_after_seconds=min(max(seconds, 0.05), longest),
            entries=self._held_entries,
            max_entries=self.bounds.max_entries,
        )


@dataclass(slots=True)
class _DrainRate:
    """Answers per second of what they took, over about the last ten seconds of it."""

    rate: float = 0.0
    _count: float = 0.0
    _seconds: float = 0.0

    def answer(self, seconds: float) -> None:
        """One more, so long after the last."""
        if seconds <= 0:
            self._count += 1
        else:
            keep = exp(-seconds / 10.0)
            self._count = self._count * keep + 1
            self._seconds = self._seconds * keep + seconds
        if self._seconds > 0:
            self.rate = self._count / self._seconds
