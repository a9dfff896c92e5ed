"""Which engine profile serves a version best on this machine: candidates, the accuracy gate and the choice. Pure.

1. The exact profile is measured first: its answers are the truth, its speed is what a candidate has to beat.
2. A candidate that failed, or answers unlike the exact profile (the gate), or a text alone unlike the same text in a
   batch, is out.
3. Of the others the one with most entries per second is proposed, if it is faster than the exact profile by a margin
   (machines are noisy, and a change of profile changes every vector) and no lone call becomes much slower.

Vectors are compared by cosine, the least over all texts: what is told of an accuracy holds for each of them. Scores are
compared by what is decided with them, the share that is decided alike, if no probability differs by more than
MOST_DIFFERENCE: the label of a text, which of two texts is ranked first, where an answer starts and ends.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from modelmora.errors import InvalidArgument, TaskNotSupported

from modelmora_lifecycle.domain import EngineProfile, VersionFacts

DEFAULT_GATE = 0.9995
LEAST_CONSISTENCY = 0.9999
"""Cosine of one text alone to itself in a batch. Below it answers would depend on who else asks."""
MARGIN = 1.05
SLOWEST_ALONE = 1.25
"""How much longer a lone call may take than with the exact profile."""
MOST_DIFFERENCE = 0.02
"""Of a probability: with more of it an accuracy is none."""
APART = 0.02
"""Of two texts whose scores differ by less, in parts of the spread of all, either may be ranked first."""
SAMPLE_TEXTS = 64
LONGEST_WORDS = 220

Row = Sequence[float]


class TuningState(Enum):
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One profile and what was measured of it; zeros where nothing was, and then `error` says why."""

    profile: EngineProfile
    entries_per_second: float = 0.0
    single_seconds: float = 0.0
    accuracy: float = 0.0
    batch_consistency: float = 0.0
    load_seconds: float = 0.0
    memory: Mapping[str, int] = field(default_factory=dict)
    within_gate: bool = False
    error: str = ""

    @property
    def name(self) -> str:
        return profile_name(self.profile)


@dataclass(frozen=True, slots=True)
class Tuning:
    """One run over the profiles of a version. `candidates` begins with the exact profile; times are since the epoch."""

    uid: str
    version: str
    gate: float
    create_time: float
    state: TuningState = TuningState.RUNNING
    reason: str = ""
    candidates: tuple[Candidate, ...] = ()
    proposal: EngineProfile | None = None
    applied: bool = False
    end_time: float = 0.0

    @property
    def name(self) -> str:
        return f"tunings/{self.uid}"

    def measured(self, candidate: Candidate) -> Tuning:
        """With what was found of the candidate of this name."""
        return replace(self, candidates=tuple(candidate if c.name == candidate.name else c for c in self.candidates))

    def ended(self, state: TuningState, reason: str, now: float) -> Tuning:
        return replace(self, state=state, reason=reason, end_time=now)


@dataclass(frozen=True, slots=True)
class Offer:
    """The profiles of an engine, `backend/precision`, the exact one first."""

    profiles: Sequence[str] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    """Those of them whose libraries are not installed, and what to do about that."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The profile to propose, None when the exact one stays, and why, for people."""

    proposal: EngineProfile | None
    reason: str


def profile_name(profile: EngineProfile) -> str:
    return f"{profile.backend}/{profile.precision}"


def to_measure(offer: Offer, asked: Sequence[str], engine: str) -> tuple[Candidate, ...]:
    """The exact profile and those asked for (none: all), in the engine's order; those whose libraries are missing with
    that as their error. TaskNotSupported when there is only one; InvalidArgument for one that is not offered."""
    offered = offer.profiles
    if len(offered) < 2:
        raise TaskNotSupported(f"engine {engine} has one profile only", engine=engine)
    for index, name in enumerate(asked):
        if name not in offered:
            raise InvalidArgument.at(f"candidates[{index}]", f"{name!r} is none of {', '.join(offered)}")
    chosen = [name for name in offered if name == offered[0] or not asked or name in asked]
    return tuple(Candidate(_profile(name), error=offer.missing.get(name, "")) for name in chosen)


def _profile(name: str) -> EngineProfile:
    backend, _, precision = name.partition("/")
    return EngineProfile(backend, precision)


def candidate_facts(facts: VersionFacts, profile: EngineProfile) -> VersionFacts:
    """The version as the scheduler shall see this candidate: under a name of its own, so that the ledger, predictions
    and eviction hold for it, and nobody who wants the version gets it."""
    return replace(facts, name=f"{facts.name}#{profile_name(profile)}", profile=profile)


def judged(candidate: Candidate, gate: float) -> Candidate:
    within = not candidate.error and candidate.accuracy >= gate and candidate.batch_consistency >= LEAST_CONSISTENCY
    return replace(candidate, within_gate=within)


def choose(exact: Candidate, others: Sequence[Candidate]) -> Choice:
    """See the head of this file."""
    able = [c for c in others if c.within_gate]
    if not able:
        return Choice(None, f"{exact.name} stays: nothing else is within the gate")
    quick = [c for c in able if c.single_seconds <= exact.single_seconds * SLOWEST_ALONE]
    if not quick:
        return Choice(None, f"{exact.name} stays: with the others a lone call takes longer")
    best = max(quick, key=lambda c: c.entries_per_second)
    gain = best.entries_per_second / exact.entries_per_second if exact.entries_per_second else math.inf
    if gain < MARGIN:
        return Choice(None, f"{exact.name} stays: {best.name} is only {gain:.2f} times as fast")
    return Choice(best.profile, f"{best.name} is {gain:.2f} times as fast as {exact.name}")


def similarity(rows: Sequence[Row], others: Sequence[Row]) -> float:
    """The least cosine of two rows at the same place; 0 when they cannot be compared."""
    if len(rows) != len(others) or not rows:
        return 0.0
    return min(_cosine(row, other) for row, other in zip(rows, others, strict=True))


def agreement(rows: Sequence[Row], others: Sequence[Row], *, ranks: bool = False, spans: bool = False) -> float:
    """The share of decisions by scores that are those by `others`, the truth (see the head of this file); 0 when they
    cannot be compared, or differ too much. Rows are probabilities of labels; with `ranks` one raw score each, ranked
    among all; with `spans` the score of the best answer and where it starts and ends."""
    if len(rows) != len(others) or not rows or any(len(a) != len(b) for a, b in zip(rows, others, strict=True)):
        return 0.0
    pairs = list(zip(rows, others, strict=True))
    if not all(math.isfinite(number) for pair in pairs for row in pair for number in row):
        return 0.0
    if ranks:
        pairs = [((_likely(a[0]),), (_likely(b[0]),)) for a, b in pairs]
    if max((abs(a - b) for row, other in pairs for a, b in _probabilities(row, other, spans)), default=0.0) > (
        MOST_DIFFERENCE
    ):
        return 0.0
    if ranks:
        return _same_order([row[0] for row in others], [row[0] for row in rows])
    if spans:
        return sum(tuple(a[1:3]) == tuple(b[1:3]) for a, b in pairs) / len(pairs)
    return sum(_decided(a) == _decided(b) for a, b in pairs) / len(pairs)


def sample_pairs(texts: Sequence[str]) -> list[tuple[str, str]]:
    """A query or question for each text: half of them are made of words of their text, half of another's."""
    queries = []
    for number in range(len(texts)):
        words = texts[number if number % 2 else number - 1].split()
        queries.append(" ".join(words[1 : 8 : 2 if number % 4 else 1]) or words[0])
    return list(zip(queries, texts, strict=True))


def sample_texts(count: int = SAMPLE_TEXTS, seed: int = 1) -> list[str]:
    """Distinct texts of 3 to LONGEST_WORDS words, most of middling length, always the same ones."""
    texts = []
    for number in range(count):
        dice = _dice(f"{seed}/{number}")
        words = 3 + round((LONGEST_WORDS - 3) * (next(dice) + next(dice)) / 2 * next(dice) ** 0.3)
        texts.append(f"{number} " + " ".join(_WORDS[int(next(dice) * len(_WORDS))] for _ in range(words)))
    return texts


def shuffled(count: int, seed: int) -> list[int]:
    """The numbers below `count` in an order that looks like chance and is always the same."""
    return sorted(range(count), key=lambda number: hashlib.sha256(f"{seed}/{number}".encode()).digest())


def _cosine(row: Row, other: Row) -> float:
    if len(row) != len(other):
        return 0.0
    length = math.sqrt(sum(a * a for a in row) * sum(b * b for b in other))
    cosine = sum(a * b for a, b in zip(row, other, strict=True)) / length if length > 0 else 0.0
    return cosine if math.isfinite(cosine) else 0.0


def _probabilities(row: Row, other: Row, spans: bool) -> Iterator[tuple[float, float]]:
    return zip(row[:1], other[:1], strict=True) if spans else zip(row, other, strict=True)


def _likely(score: float) -> float:
    """The probability that a raw score stands for."""
    return 1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score))


def _decided(row: Row) -> object:
    """The likeliest label; of one label, whether it is likely."""
    return max(range(len(row)), key=row.__getitem__) if len(row) > 1 else bool(row) and row[0] >= 0.5


def _same_order(scores: Sequence[float], others: Sequence[float]) -> float:
    """The share of pairs that are in the same order, of those that are apart."""
    apart = APART * (max(scores) - min(scores))
    order = sorted(range(len(scores)), key=scores.__getitem__)
    judged = [
        others[low] < others[high]
        for at, low in enumerate(order)
        for high in order[at + 1 :]
        if scores[high] - scores[low] > apart
    ]
    return sum(judged) / len(judged) if judged else 1.0


def _dice(seed: str) -> Iterator[float]:
    """Numbers in [0, 1) without end."""
    round_ = 0
    while True:
        digest = hashlib.sha256(f"{seed}/{round_}".encode()).digest()
        yield from (int.from_bytes(digest[at : at + 4], "little") / 2**32 for at in range(0, 32, 4))
        round_ += 1


_PROSE = (
    "the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which "
    "one you were her all she there would their we him been has when who will more no if out so said what up its about "
    "into than them can only other new some could time these two may then do first any my now such like our over man "
    "me even most made after also did many before must through back years where much your way well down should because "
    "each just those people state good very make world still own see men work long get here between both life being "
    "under never day same another know while last might us great old year off come since against go came right used "
    "take three memory model queue engine vector network river window letter hospital quarter merchant justice engine "
    "photosynthesis bureaucracy thermodynamics antidisestablishment 3.14 1984 2,048 e-mail don't naïve café Straße "
    "東京 данные résumé (approximately) [sic] user@example.org https://example.org/path?x=1 C++ O(n²) €19.99"
)
_WORDS = _PROSE.split()
