"""The book of leases: who waits for a version and who holds a replica. Pure bookkeeping; it decides nothing."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field

from modelmora.errors import ModelMoraError

from modelmora_lifecycle.scaling import Report

ENDLESS = float("inf")
LAST = (ENDLESS, ENDLESS)
"""The rank of nobody."""


@dataclass(slots=True)
class Lease:
    """One want, and what became of it. Times are on the monotonic clock."""

    uid: str
    version: str
    priority: int
    deadline: float
    arrival: float
    pin: bool = False
    visit: bool = False
    """Wants the version to be loaded, not to use it: over as soon as it is granted."""
    holder: str = ""
    quiet: bool = False
    """Nobody is told of it."""
    since: float = field(init=False)
    """When it came; `arrival` is later where it became more urgent since."""
    replica: str = ""
    """Uid of the replica that it was granted; empty while it waits."""
    in_flight: int = 0
    at_work: int = 0
    """The priority of what is in flight; 0 when nothing is. Both are changed by `Leases.work` alone."""
    grace_until: float | None = None
    """Set once it was asked to yield."""
    report: Report = field(default_factory=Report)
    refusal: ModelMoraError | None = None
    """Why it was refused, where nobody was told."""

    def __post_init__(self) -> None:
        self.since = self.arrival


class Leases:
    """Every lease that is not over, in the order of arrival, by what it waits for or holds."""

    def __init__(self) -> None:
        self._all: dict[str, Lease] = {}
        self._waiting: dict[str, dict[str, Lease]] = {}
        self._lanes: dict[str, dict[int, dict[str, Lease]]] = {}
        """Those who wait by version and priority, first come first: thousands may wait for one version, and only the
        first of each priority can be the most urgent."""
        self._ranks: dict[str, tuple[float, tuple[float, float]]] = {}
        """What `rank` answered last, by version, with what it was asked for."""
        self._holding: dict[str, dict[str, Lease]] = {}
        self._busy: dict[str, dict[int, int]] = {}
        """By replica and priority: how many of its leases have something in flight."""
        self._deadlines: list[tuple[float, str]] = []
        """A heap. Leases that are over or granted leave it when their time comes."""

    def __contains__(self, uid: str) -> bool:
        return uid in self._all

    def __iter__(self) -> Iterator[Lease]:
        return iter(list(self._all.values()))

    def get(self, uid: str) -> Lease | None:
        return self._all.get(uid)

    def wait(self, lease: Lease) -> None:
        self._all[lease.uid] = lease
        self._waiting.setdefault(lease.version, {})[lease.uid] = lease
        self._enter_lane(lease)
        self.expire_at(lease, lease.deadline)

    def expire_at(self, lease: Lease, deadline: float) -> None:
        """Moves the deadline of one that waits."""
        lease.deadline = deadline
        if deadline < ENDLESS:
            heapq.heappush(self._deadlines, (deadline, lease.uid))

    def urge(self, lease: Lease, priority: int, now: float, aging_seconds: float) -> bool:
        """What waits with one that waits is of this priority by now. Of a higher one: it has the place of who comes now
        with it, if that is before its own (see `rank`). Of a lower one: that of who came with it when it did. Whether
        it has another place now."""
        eased = priority < lease.priority
        if not eased and now - priority * aging_seconds >= lease.arrival - lease.priority * aging_seconds:
            return False
        self._leave_lane(lease)
        lease.priority, lease.arrival = priority, lease.since if eased else now
        self._enter_lane(lease)
        return True

    def _enter_lane(self, lease: Lease) -> None:
        lanes = self._lanes.setdefault(lease.version, {})
        lane = lanes.setdefault(lease.priority, {})
        late = bool(lane) and next(reversed(lane.values())).arrival > lease.arrival
        lane[lease.uid] = lease
        if late:
            lanes[lease.priority] = dict(sorted(lane.items(), key=lambda item: item[1].arrival))
        self._ranks.pop(lease.version, None)

    def _leave_lane(self, lease: Lease) -> None:
        lanes = self._lanes[lease.version]
        self._ranks.pop(lease.version, None)
        del lanes[lease.priority][lease.uid]
        if not lanes[lease.priority]:
            del lanes[lease.priority]
            if not lanes:
                del self._lanes[lease.version]

    def grant(self, lease: Lease, replica: str) -> None:
        self.end(lease)
        lease.replica = replica
        self._all[lease.uid] = lease
        self._holding.setdefault(replica, {})[lease.uid] = lease

    def end(self, lease: Lease) -> None:
        del self._all[lease.uid]
        if lease.replica:
            self.work(lease, 0)
        else:
            self._leave_lane(lease)
        place, key = (self._holding, lease.replica) if lease.replica else (self._waiting, lease.version)
        del place[key][lease.uid]
        if not place[key]:
            del place[key]

    def wanted(self) -> Mapping[str, object]:
        """Versions that someone waits for, in the order of their first one; to be copied by who changes them."""
        return self._waiting

    def is_wanted(self, version: str) -> bool:
        return version in self._waiting

    def waiters(self, version: str) -> list[Lease]:
        return list(self._waiting.get(version, {}).values())

    def foremost(self, version: str) -> list[Lease]:
        """Of those that wait for a version, the first of each priority."""
        return [next(iter(lane.values())) for lane in self._lanes.get(version, {}).values()]

    def rank(self, version: str, aging_seconds: float) -> tuple[float, float]:
        """Where the most urgent of those that wait for a version stands among all who wait, lowest first; endless when
        nobody does. Everyone ages at the same rate, `aging_seconds` a point of priority, so the order of two waiters
        never changes: no clock needed."""
        if version not in self._lanes:
            return LAST
        known = self._ranks.get(version)
        if known is None or known[0] != aging_seconds:
            waits = ((lease.arrival, lease.priority) for lease in self.foremost(version))
            known = (aging_seconds, min((arrival - wanted * aging_seconds, arrival) for arrival, wanted in waits))
            self._ranks[version] = known
        return known[1]

    def held(self, replica: str) -> list[Lease]:
        return list(self._holding.get(replica, {}).values())

    def count_held(self, replica: str) -> int:
        return len(self._holding.get(replica, ()))

    def work(self, lease: Lease, in_flight: int, priority: int = 0) -> None:
        """One that holds a replica has so many requests in flight, the most urgent of this priority (0: its own)."""
        before, lease.at_work = lease.at_work, (priority or lease.priority) if in_flight else 0
        lease.in_flight = in_flight
        if before == lease.at_work:
            return
        busy = self._busy.setdefault(lease.replica, {})
        for of, more in ((before, -1), (lease.at_work, 1)):
            if of:
                busy[of] = busy.get(of, 0) + more
                if not busy[of]:
                    del busy[of]
        if not busy:
            del self._busy[lease.replica]

    def count_busy(self, replica: str) -> int:
        return sum(self._busy[replica].values()) if replica in self._busy else 0

    def busy_priority(self, replica: str) -> int:
        """The highest of those at work on a replica; 0 when nobody is."""
        return max(self._busy[replica]) if replica in self._busy else 0

    def next_to_expire(self) -> Lease | None:
        """Of those that wait and have a deadline, the one whose deadline is first."""
        while self._deadlines:
            deadline, uid = self._deadlines[0]
            lease = self._all.get(uid)
            if lease is not None and not lease.replica and lease.deadline == deadline:
                return lease
            heapq.heappop(self._deadlines)
        return None

    def __copy__(self) -> Leases:
        """A book of its own, with leases of its own."""
        other = Leases()
        other._all = {uid: copy(lease) for uid, lease in self._all.items()}
        other._waiting = {key: {uid: other._all[uid] for uid in page} for key, page in self._waiting.items()}
        other._holding = {key: {uid: other._all[uid] for uid in page} for key, page in self._holding.items()}
        other._lanes = {
            version: {priority: {uid: other._all[uid] for uid in lane} for priority, lane in lanes.items()}
            for version, lanes in self._lanes.items()
        }
        other._busy = {replica: dict(counts) for replica, counts in self._busy.items()}
        other._deadlines = list(self._deadlines)
        return other
