"""Who has to go so that a load fits: a pure function of the need and of the replicas in memory.

1. Need > ceiling - pinned on any device            → Impossible: no eviction will ever help.
2. Candidates are LOADED, unpinned, unclaimed, past their minimum residency, and free something that is short.
   A busy one counts only if nothing of higher priority than the (aged) priority of the need runs on it.
3. Idle before busy; then by the score of the policy, lowest first; the shortest prefix that frees what is short, and of
   it only who is needed: the small ones before a large one that would do alone stay → Plan. Who would go last is the
   first to stay. The busy ones are named apart: they are asked to yield, never stopped at work.
4. Else Wait: until the moment at which more candidates come of age, with the set that would then go, of what is loading
   now as many as it takes beside, so that the scheduler keeps that memory for this need and lets others use the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from modelmora_lifecycle.ledger import Vector, covers, minus, plus, positive


@dataclass(frozen=True, slots=True)
class Candidate:
    """A replica as eviction sees it."""

    uid: str
    charge: Vector
    evictable: bool
    """LOADED and claimed by nobody."""
    pinned: bool
    busy: bool
    busy_priority: float
    """Highest priority among the leases with requests in flight; 0 when idle."""
    last_used_time: float
    resident_until: float
    version: str = ""
    uses: int = 0
    load_seconds: float = 0.0
    """What it costs to have it back."""
    clock: float = 0.0
    """The ageing clock when it was last used."""
    keep_until: float | None = None
    """When its keep-alive ends, if nobody uses it; None: never."""
    shares: Mapping[str, Vector] = field(default_factory=dict)
    """Charges of shared owners that it uses: they come back with the last of their users."""
    loading: bool = False
    """LOADING and claimed by nobody: a candidate once that is done."""


@dataclass(frozen=True, slots=True)
class Need:
    """What is to be placed, and the room there is for it."""

    memory: Vector
    available: Vector
    """Free, plus what is on its way back, less what is promised to others; may be negative."""
    ceiling: Vector
    budget: Vector
    priority: float = 0.0
    """Aged: see `Policy.aged`."""


PolicyName = Literal["lru", "gdsf", "ttl"]
POLICIES: tuple[PolicyName, ...] = ("lru", "gdsf", "ttl")
_NO_END_SECONDS = 366 * 86400.0
"""As long as the longest keep-alive: a score is a number, also in what is stored of it."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How candidates are ordered, and how priority grows by waiting. A policy is a value, to be stored and replayed.

    `lru`   by the time of the last use.
    `gdsf`  by clock + uses x load seconds / GiB: what is small, dear to load and often used stays. The clock is the
            highest score ever evicted, taken at each use: without it, what was popular once would stay for ever.
            L. Cherkasova, Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency Caching Policy,
            HPL-98-69R1, 1998.
    `ttl`   by the end of its keep-alive, its own or the node's: what is about to go anyway goes first. What has none
            goes after all that have one. It is an order only, and unloads nobody before room is needed.
    """

    name: PolicyName = "lru"
    aging_seconds_per_point: float = 1.0
    """LOW, MEDIUM and HIGH are ten points apart: after 20 s LOW is as urgent as a HIGH that has just come."""

    def aged(self, priority: float, waited_seconds: float) -> float:
        return priority + waited_seconds / self.aging_seconds_per_point

    def score(self, candidate: Candidate) -> float:
        """The lowest goes first."""
        if self.name == "gdsf":
            size_gib = max(1, sum(candidate.charge.values())) / 2**30
            return candidate.clock + candidate.uses * candidate.load_seconds / size_gib
        if self.name == "ttl":
            end = candidate.keep_until
            return end if end is not None else candidate.last_used_time + _NO_END_SECONDS
        return candidate.last_used_time

    def key(self, candidate: Candidate) -> tuple[bool, float, float, str]:
        return (candidate.busy, self.score(candidate), candidate.last_used_time, candidate.uid)


@dataclass(frozen=True, slots=True)
class Plan:
    """These go: `victims` in order, of which `yields` are busy and have to be asked."""

    victims: tuple[str, ...]
    yields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can be done now. `until`: when to look again at the latest (None: on the next event)."""

    until: float | None
    reason: str
    victims: tuple[str, ...] = ()
    """Who would go once they may; their memory is kept for this need."""
    attainable: bool = True
    """False when memory used by other programs has to come back first: then nothing is kept for this need."""


@dataclass(frozen=True, slots=True)
class Impossible:
    """It will not fit whatever goes. All figures are bytes on `device`."""

    device: str
    need_bytes: int
    budget_bytes: int
    evictable_bytes: int
    """Free plus everything that is not pinned: the largest room that evictions could make."""
    pinned_bytes: int


def plan(need: Need, replicas: Sequence[Candidate], policy: Policy, now: float) -> Plan | Wait | Impossible:
    """Decides who has to go for `need`; see the head of this file. Deterministic: ties go by uid."""
    pinned = pinned_bytes(replicas)
    for device, need_bytes in sorted(positive(need.memory).items()):  # 1
        room = need.ceiling.get(device, 0) - pinned.get(device, 0)
        if need_bytes > room:
            return Impossible(device, need_bytes, need.ceiling.get(device, 0), max(0, room), pinned.get(device, 0))

    # A device that the need does not name is never short, whatever others owe there.
    short = positive({device: b - need.available.get(device, 0) for device, b in positive(need.memory).items()})
    users = _users(replicas)
    able = sorted((replica for replica in replicas if _frees(replica, short)), key=policy.key)  # 2
    ready = [r for r in able if r.resident_until <= now and not _ahead(r, need)]
    victims = _victims(ready, short, users)  # 3
    if victims is not None:
        return Plan(tuple(r.uid for r in victims), tuple(r.uid for r in victims if r.busy))

    later = [r.resident_until for r in able if r.resident_until > now]  # 4
    ahead = [replica for replica in able if _ahead(replica, need)]
    later += [now + (r.busy_priority - need.priority) * policy.aging_seconds_per_point for r in ahead]
    able += sorted((r for r in replicas if r.loading and _gives(r, short)), key=policy.key)
    expected = _victims(able, short, users)
    attainable = covers(minus(need.budget, pinned), need.memory)
    return Wait(
        until=min(later, default=None),
        reason=_why(able, need, now) if attainable else "other programs use the memory",
        victims=tuple(r.uid for r in (able if expected is None else expected)) if attainable else (),
        attainable=attainable,
    )


def pinned_bytes(replicas: Sequence[Candidate]) -> dict[str, int]:
    """By device: what no eviction gives back, with what the pinned share."""
    fixed = [replica for replica in replicas if replica.pinned]
    return plus(*(r.charge for r in fixed), *{owner: v for r in fixed for owner, v in r.shares.items()}.values())


def relief(
    short: Vector, replicas: Sequence[Candidate], policy: Policy, now: float, *, busy: bool = False
) -> tuple[str, ...]:
    """Who goes when workers took more than was predicted: idle ones, in the order of the policy, as many as it takes,
    or all there are if that is not enough. With `busy`, those at work too, the least urgent first: what runs on them
    is asked to yield, for a machine without memory ends it without asking."""
    able = [r for r in replicas if _frees(r, positive(short)) and (busy or (not r.busy and r.resident_until <= now))]
    able.sort(key=lambda replica: (replica.busy_priority, *policy.key(replica)))
    enough = _victims(able, positive(short), _users(replicas))
    return tuple(r.uid for r in (able if enough is None else enough))


@dataclass(frozen=True, slots=True)
class Verdict:
    """One candidate as it was judged, for people."""

    candidate: Candidate
    victim: bool
    score: float
    """By the policy; lower goes first."""
    idle_seconds: float
    resident_for_seconds: float
    """Until its minimum residency is over; 0 when it is."""
    reason: str
    """Why it may not go; empty when it may."""


class Trigger(Enum):
    """What made a decision necessary; the values are the words of filters and JSON. See the enum of the proto."""

    PLACEMENT = "placement"
    OVERDRAFT = "overdraft"
    FOREIGN = "foreign"
    BUDGET = "budget"
    IDLE = "idle"
    KEEP_ALIVE = "keep_alive"
    SCALE_DOWN = "scale_down"
    DRAIN = "drain"
    PROFILE = "profile"


@dataclass(frozen=True, slots=True)
class Decision:
    """Who goes, or why nobody does, with what it was decided from."""

    version: str
    """To be placed; where nothing is, the one that goes; empty where several may."""
    need: Need
    candidates: Sequence[Candidate]
    outcome: Plan | Wait | Impossible
    policy: Policy
    time: float
    trigger: Trigger = Trigger.PLACEMENT
    reason: str = ""
    """For people; empty where the outcome says it."""

    def verdicts(self) -> tuple[Verdict, ...]:
        """Every candidate as it was judged, in the order in which it would go."""
        return verdicts(self.need, self.candidates, self.outcome, self.policy, self.time)


def verdicts(
    need: Need, replicas: Sequence[Candidate], outcome: Plan | Wait | Impossible, policy: Policy, now: float
) -> tuple[Verdict, ...]:
    """Every candidate in the order in which it would go, with why it may not."""
    victims = outcome.victims if isinstance(outcome, Plan) else ()
    return tuple(
        Verdict(
            replica,
            replica.uid in victims,
            policy.score(replica),
            0.0 if replica.busy else max(0.0, now - replica.last_used_time),
            max(0.0, replica.resident_until - now),
            "" if replica.uid in victims else _bar(replica, need, now),
        )
        for replica in sorted(replicas, key=policy.key)
    )


def _bar(replica: Candidate, need: Need, now: float) -> str:
    if replica.pinned:
        return "it is pinned, or one of the minimum number of replicas"
    if not replica.evictable:
        return "it is not loaded, or its memory is kept for another load"
    if need.memory and not any(_reach(replica, device) for device in positive(need.memory)):
        return "it has nothing on the devices that are needed"
    if replica.resident_until > now:
        return f"its minimum residency is not over: {replica.resident_until - now:.1f} s left"
    if _ahead(replica, need):
        return "it serves requests of higher priority" if need.priority > 0 else "it is at work"
    return ""


def _users(replicas: Sequence[Candidate]) -> dict[str, set[str]]:
    users: dict[str, set[str]] = {}
    for replica in replicas:
        for owner in replica.shares:
            users.setdefault(owner, set()).add(replica.uid)
    return users


def _reach(replica: Candidate, device: str) -> bool:
    """Whether it has something on a device, alone or with others."""
    return replica.charge.get(device, 0) > 0 or any(share.get(device, 0) > 0 for share in replica.shares.values())


def _frees(replica: Candidate, short: Vector) -> bool:
    return replica.evictable and _gives(replica, short)


def _gives(replica: Candidate, short: Vector) -> bool:
    return not replica.pinned and any(_reach(replica, device) for device in short)


def _ahead(replica: Candidate, need: Need) -> bool:
    # Aged priorities are sums of floats: one that should be 30 may be 29.999999999 when its time has come.
    return replica.busy and replica.busy_priority > need.priority + 1e-6


def _victims(ordered: Iterable[Candidate], short: Vector, users: Mapping[str, set[str]]) -> list[Candidate] | None:
    """Who goes, in order; without any one of them it would not be enough. None: all together free too little."""
    prefix: list[Candidate] = []
    gone: set[str] = set()
    room: Vector = {}
    for replica in ordered:
        missing = positive(minus(short, room))
        if not missing:
            break
        if not any(_reach(replica, device) for device in missing):
            continue  # what it would free is enough already
        prefix.append(replica)
        gone.add(replica.uid)
        room = plus(room, _frees_last(replica, gone, users))
    if not covers(room, short):
        return None
    for replica in reversed(prefix):
        less = minus(room, _frees_last(replica, gone, users))
        if covers(less, short):
            room = less
            gone.remove(replica.uid)
    return [replica for replica in prefix if replica.uid in gone]


def _frees_last(replica: Candidate, gone: set[str], users: Mapping[str, set[str]]) -> dict[str, int]:
    """Bytes that come back when it goes as the last of `gone`, itself included."""
    return plus(replica.charge, *(share for owner, share in replica.shares.items() if users[owner] <= gone))


def _why(able: Sequence[Candidate], need: Need, now: float) -> str:
    able = [replica for replica in able if not replica.loading]
    if any(replica.resident_until > now for replica in able):
        return "models in memory are within their minimum residency"
    if any(_ahead(replica, need) for replica in able):
        return "models in memory serve requests of higher priority"
    return "memory is in use by loads in progress"
