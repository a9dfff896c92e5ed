"""Which version of a model meets some criteria best, and why each other one does not. Pure.

1. Only READY versions that are not archived take part.
2. Each bound holds: the size, the threshold of the primary metric, the least value of each secondary metric. A metric
   that was never measured meets no bound; without a threshold a version still needs the primary metric.
3. The best value of the primary metric wins; among equals the newest (or, without `prefer_latest`, the oldest).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime

from modelmora.errors import InvalidArgument
from pydantic import Field

from modelmora_registry.domain import Metrics, ModelVersionState, ReadOnly, Text, Value

MAX_CANDIDATES = 10_000


class Criteria(Value):
    """What is asked for. Empty criteria choose the newest."""

    primary_metric: Text = ""
    metric_threshold: float | None = None
    secondary_metrics: Metrics = Field(default_factory=dict)
    max_size_bytes: int = Field(default=0, ge=0)
    prefer_latest: bool = True
    lower_is_better: bool = False

    def check(self) -> None:
        """Raises InvalidArgument for criteria that contradict themselves."""
        if not self.primary_metric and (self.metric_threshold is not None or self.lower_is_better):
            raise InvalidArgument.at("primary_metric", "must be set with metric_threshold or lower_is_better")
        if self.metric_threshold is not None and not math.isfinite(self.metric_threshold):
            raise InvalidArgument.at("metric_threshold", "must be a finite number")


class Candidate(Value):
    """A version, as far as the choice needs it."""

    version: str
    state: ModelVersionState
    create_time: datetime
    archived: bool = False
    size_bytes: int | None = None
    metrics: ReadOnly[float] = Field(default_factory=dict)


class RejectedVersion(Value):
    version: str
    reason: str


class Selection(Value):
    """`version` is None when nothing meets the criteria."""

    version: str | None
    rejected: tuple[RejectedVersion, ...]
    reason: str


def select(candidates: Sequence[Candidate], criteria: Criteria) -> Selection:
    """The best of `candidates`, which come newest first."""
    problems = {candidate.version: _problem(candidate, criteria) for candidate in candidates}
    fit = [candidate for candidate in candidates if problems[candidate.version] is None]
    if not fit:
        reason = "no version meets the criteria" if candidates else "the model has no versions"
        return Selection(version=None, rejected=_rejected(candidates, problems), reason=reason)
    ordered = fit if criteria.prefer_latest else fit[::-1]
    best = min(ordered, key=lambda candidate: _loss(candidate, criteria))  # the first of equals
    for candidate in fit:
        if candidate is not best:
            problems[candidate.version] = _why_not(candidate, best, criteria)
    return Selection(version=best.version, rejected=_rejected(candidates, problems), reason=_why(best, criteria))


def _problem(candidate: Candidate, criteria: Criteria) -> str | None:
    """Why it does not take part; None when it does."""
    if candidate.state is not ModelVersionState.READY:
        return f"is {candidate.state.value}, not ready"
    if candidate.archived:
        return "is archived"
    if criteria.max_size_bytes and (candidate.size_bytes or 0) > criteria.max_size_bytes:
        return f"has {candidate.size_bytes} bytes, more than {criteria.max_size_bytes}"
    if name := criteria.primary_metric:
        value, bound = candidate.metrics.get(name), criteria.metric_threshold
        if value is None:
            return f"{name} was not measured"
        if bound is not None and criteria.lower_is_better and value > bound:
            return f"{name} {value:g} is more than {bound:g}"
        if bound is not None and not criteria.lower_is_better and value < bound:
            return f"{name} {value:g} is less than {bound:g}"
    for name, bound in sorted(criteria.secondary_metrics.items()):
        value = candidate.metrics.get(name)
        if value is None:
            return f"{name} was not measured"
        if value < bound:
            return f"{name} {value:g} is less than {bound:g}"
    return None


def _loss(candidate: Candidate, criteria: Criteria) -> float:
    value = candidate.metrics[criteria.primary_metric] if criteria.primary_metric else 0.0
    return value if criteria.lower_is_better else -value


def _why_not(candidate: Candidate, best: Candidate, criteria: Criteria) -> str:
    if _loss(candidate, criteria) != _loss(best, criteria):
        name = criteria.primary_metric
        return f"{name} {candidate.metrics[name]:g} is worse than {best.metrics[name]:g} of {best.version}"
    return f"is {'older' if criteria.prefer_latest else 'newer'} than {best.version}"


def _why(best: Candidate, criteria: Criteria) -> str:
    age = "newest" if criteria.prefer_latest else "oldest"
    if name := criteria.primary_metric:
        return f"the best {name}, {best.metrics[name]:g}; the {age} of equals"
    return f"the {age} that meets the criteria"


def _rejected(candidates: Sequence[Candidate], problems: dict[str, str | None]) -> tuple[RejectedVersion, ...]:
    return tuple(
        RejectedVersion(version=candidate.version, reason=reason)
        for candidate in candidates
        if (reason := problems[candidate.version]) is not None
    )
