"""One line of the queue, shared between its tenants by weight.

Every tenant has an account of virtual time for each priority: what it was given, divided by its weight. Of those that
wait the one with the least goes next (start-time fair queueing, Goyal, Vin and Cheng 1996), so tenants that wait at the
same time are given the same by weight, however large or small their requests are. A charge is an estimate when an entry
is handed out, and is put right by what the worker has measured. Who comes back begins where the others are: nobody
saves up. An entry that has waited for the time of fairness goes before all that came after it, whoever is less well
served.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace
from operator import attrgetter

from modelmora_inference.domain import Entry, Place

_COMPACT_AT = 64
"""Withdrawn entries that a line may keep before it is cleared of them (or its length, if more)."""
_PURGE_AT = 1024
"""Accounts that are kept before those are forgotten that nobody would miss."""
_WAITING = Place.WAITING
_sequence = attrgetter("sequence")


@dataclass(slots=True, eq=False)
class Account:
    """One tenant in one priority."""

    tenant: str
    time: float
    """Virtual: tokens divided by weight. Never runs backwards."""
    correction: float = 0.0
    """What earlier charges were too low (or too high); the next ones make up for it."""
    entries: int = 0
    tokens: int = 0
    size_bytes: int = 0
    """The three of what waits."""


class Accounts:
    """The tenants of one priority. `weights` may change at any time; 1 where there is none."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = weights
        self._accounts: dict[str, Account] = {}
        self._purge_at = _PURGE_AT
        self.time = 0.0
        """Where the tenant stood that was served last; who comes begins there."""
        self._latest = 0.0
        """Where the tenant stands that was given most."""
        self._waiting = 0

    def weight(self, tenant: str) -> float:
        return self._weights.get(tenant, 1.0)

    def of(self, tenant: str) -> Account | None:
        return self._accounts.get(tenant)

    def time_of(self, tenant: str) -> float:
        """Virtual time of a tenant that waits."""
        return self._accounts[tenant].time

    def wait(self, entry: Entry) -> Account:
        if not self._waiting:
            self.time = self._latest  # nobody is owed anything
        self._waiting += 1
        account = self._accounts.get(entry.tenant)
        if account is None:
            if len(self._accounts) >= self._purge_at:
                self._purge()
            account = self._accounts[entry.tenant] = Account(entry.tenant, self.time)
        elif not account.entries and account.time < self.time:
            account.time = self.time
        account.entries += 1
        account.tokens += entry.tokens
        account.size_bytes += entry.size_bytes
        return account

    def leave(self, entry: Entry) -> None:
        self._waiting -= 1
        account = self._accounts[entry.tenant]
        account.entries -= 1
        account.tokens -= entry.tokens
        account.size_bytes -= entry.size_bytes

    def charge(self, entry: Entry) -> None:
        """The entry is handed out; `settle` tells later what it has cost."""
        account = self._accounts[entry.tenant]
        if account.time > self.time:
            self.time = account.time
        cost = entry.tokens + account.correction
        if cost > 0:
            account.time += cost / self.weight(entry.tenant)
            account.correction = 0.0
            self._latest = max(self._latest, account.time)
        else:
            account.correction = cost

    def settle(self, entry: Entry, cost: float) -> None:
        """The entry has cost so much, in tokens of the usual kind; 0 when it comes back."""
        account = self._accounts.get(entry.tenant)
        if account is not None:
            account.correction += cost - entry.tokens

    def __iter__(self) -> Iterator[Account]:
        """Those that wait."""
        return (account for account in self._accounts.values() if account.entries)

    def _purge(self) -> None:
        """Forgets the idle ones that would begin where the others are anyway."""
        kept = {
            tenant: account
            for tenant, account in self._accounts.items()
            if account.entries or account.time > self.time or account.correction > 0
        }
        self._accounts = kept
        self._purge_at = max(_PURGE_AT, 2 * len(kept))


@dataclass(slots=True, eq=False)
class _Own:
    """What one tenant has in a line, a heap by (arrival, sequence). Withdrawn entries stay until they come up."""

    account: Account
    serial: int
    entries: list[tuple[float, int, Entry]] = field(default_factory=list)
    pushed: deque[Entry] = field(default_factory=deque)
    """The same by sequence: who leaves when there is no room is found from its end."""

    def __lt__(self, other: _Own) -> bool:
        return self.serial < other.serial


class Line:
    """The waiting entries of one priority and lane. Every operation costs O(log n) for each entry it touches.

    While there are several tenants, two heaps say who is next: `_fair` by account, `_heads` by the arrival of what each
    has first. Both are mended when a record comes up that is no longer true: accounts and heads only move on.
    """

    __slots__ = ("_fair", "_heads", "_own", "_serial", "_several", "entries", "withdrawn")

    def __init__(self) -> None:
        self.entries = 0
        """That wait."""
        self.withdrawn = 0
        """That have ended but still lie here."""
        self._own: dict[str, _Own] = {}
        self._several = False
        self._fair: list[tuple[float, int, _Own]] = []
        self._heads: list[tuple[float, int, _Own]] = []
        self._serial = 0

    def put(self, entry: Entry, account: Account) -> None:
        own = self._own.get(entry.tenant)
        if own is None:
            self._serial += 1
            own = self._own[entry.tenant] = _Own(account, self._serial)
            if self._several:
                heappush(self._fair, (account.time, own.serial, own))
        else:
            own.account = account  # another one, where only withdrawn entries lay here and the first was forgotten
        heappush(own.entries, (entry.arrival, entry.sequence, entry))
        if not own.pushed or own.pushed[-1].sequence < entry.sequence:
            own.pushed.append(entry)
        else:  # it came back
            own.pushed.insert(bisect_left(own.pushed, entry.sequence, key=_sequence), entry)
        self.entries += 1
        if self._several:
            if own.entries[0][2] is entry:
                heappush(self._heads, (entry.arrival, entry.sequence, own))
        elif len(self._own) > 1:
            self._share()

    def first(self, now: float, fairness_seconds: float) -> Entry | None:
        """Who is next."""
        if not self._several:
            for own in self._own.values():
                entries = self._tidied(own)
                return entries[0][2] if entries else None
            return None
        oldest = self.oldest()
        if oldest is None or oldest.arrival + fairness_seconds <= now:
            return oldest
        while True:
            time, _, own = self._fair[0]
            entries = self._tidied(own)
            if not entries:
                heappop(self._fair)
                self._forget(own)
                if not self._several:
                    return self.first(now, fairness_seconds)
            elif time < own.account.time:
                heapreplace(self._fair, (own.account.time, own.serial, own))
            else:
                return entries[0][2]

    def oldest(self) -> Entry | None:
        if not self._several:
            return self.first(0.0, 0.0)
        heads = self._heads
        while heads:
            record = heads[0]
            own = record[2]
            entries = self._tidied(own)
            if entries and entries[0][1] == record[1]:
                return entries[0][2]
            if heads[0] is record:
                heappop(heads)
        return None

    def take(self, entry: Entry) -> None:
        """Takes an entry that `first` or `oldest` named out of the line."""
        own = self._own[entry.tenant]
        heappop(own.entries)
        pushed = own.pushed
        while pushed and (pushed[0] is entry or pushed[0].place is not _WAITING):
            pushed.popleft()
        self.entries -= 1
        if self._several and not self._tidied(own, moved=True):
            self._forget(own)

    def withdraw(self) -> None:
        """One of the waiting entries has ended; it is left where it lies, unless there are too many of them."""
        self.entries -= 1
        self.withdrawn += 1
        if self.withdrawn > max(_COMPACT_AT, self.entries):
            for own in self._own.values():
                own.entries = [item for item in own.entries if item[2].place is _WAITING]
                heapify(own.entries)
                own.pushed = deque(entry for entry in own.pushed if entry.place is _WAITING)
            self._own = {tenant: own for tenant, own in self._own.items() if own.entries}
            self.withdrawn = 0
            self._share()

    def newest(self, tenant: str) -> Iterator[Entry]:
        """What a tenant has waiting, the newest first."""
        own = self._own.get(tenant)
        last = None
        for entry in reversed(own.pushed) if own is not None else ():
            if entry.place is _WAITING and entry is not last:  # one that came back may lie there twice
                last = entry
                yield entry

    def __iter__(self) -> Iterator[Entry]:
        """All that wait, in no order."""
        return (item[2] for own in self._own.values() for item in own.entries if item[2].place is _WAITING)

    def __len__(self) -> int:
        """What lies here, withdrawn or not."""
        return sum(len(own.entries) for own in self._own.values())

    def _tidied(self, own: _Own, *, moved: bool = False) -> list[tuple[float, int, Entry]]:
        """A tenant's entries, the first of which waits; records the new first one when it is another than before."""
        entries = own.entries
        while entries and entries[0][2].place is not _WAITING:
            heappop(entries)
            self.withdrawn -= 1
            moved = True
        if moved and entries and self._several:
            heappush(self._heads, (entries[0][0], entries[0][1], own))
        return entries

    def _forget(self, own: _Own) -> None:
        """A tenant that has nothing left; its records go when they come up."""
        if self._own.get(own.account.tenant) is own:
            del self._own[own.account.tenant]
            if len(self._own) < 2:
                self._share()

    def _share(self) -> None:
        """Begins with the two heaps, or ends with them."""
        self._several = len(self._own) > 1
        several = self._own.values() if self._several else ()
        self._fair = [(own.account.time, own.serial, own) for own in several]
        heapify(self._fair)
        self._heads = [(own.entries[0][0], own.entries[0][1], own) for own in several if own.entries]
        heapify(self._heads)
