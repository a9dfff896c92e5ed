"""What inference counts, and how Prometheus reads it.

Plain numbers: they are changed on the hot path of every call, in one event loop, and put into Prometheus's words only
when somebody asks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from modelmora_inference.domain import Priority

if TYPE_CHECKING:
    from prometheus_client.core import Metric


class Histogram:
    """Counts by upper bound, as Prometheus wants them."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, float]]:
        """Upper bound and how many values are at most that."""
        found, sum_so_far = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            sum_so_far += count
            found.append((bound, float(sum_so_far)))
        return found


MAX_VERSIONS = 1000
"""The least recently started of more are forgotten."""


class VersionCounts:
    """What was counted of one version, whoever asked."""

    __slots__ = (
        "batches",
        "cache_hit_seconds",
        "cache_hits",
        "cache_miss_seconds",
        "cache_misses",
        "compute_seconds",
        "entries",
        "failed",
        "failed_seconds",
        "last_time",
        "queue_seconds",
        "succeeded",
        "succeeded_seconds",
        "tokenise_seconds",
    )

    def __init__(self) -> None:
        self.succeeded = self.failed = self.entries = 0
        self.succeeded_seconds = self.failed_seconds = 0.0
        """From arrival to the end."""
        self.queue_seconds = self.tokenise_seconds = self.compute_seconds = 0.0
        """Of calls that succeeded; both latter: of all micro-batches that a call was part of."""
        self.cache_hits = self.cache_misses = 0
        """Calls that the response cache answered whole, and others that asked it; those are among the succeeded,
        without entries."""
        self.cache_hit_seconds = self.cache_miss_seconds = 0.0
        """Spent on the cache: looking up and filling the answer, or looking up and keeping rows."""
        self.batches: dict[int, list[float]] = {}
        """By number of entries: how many were answered, and the seconds computed for them."""
        self.last_time = 0.0
        """When a call succeeded, in seconds since the epoch."""

    def answered(
        self, entries: int, seconds: float, queue: float, tokenise: float, compute: float, now_epoch: float
    ) -> None:
        self.succeeded += 1
        self.entries += entries
        self.succeeded_seconds += seconds
        self.queue_seconds += queue
        self.tokenise_seconds += tokenise
        self.compute_seconds += compute
        self.last_time = now_epoch

    def cached(self, seconds: float, queue: float, cache: float, now_epoch: float) -> None:
        """A call was answered by the response cache alone."""
        self.succeeded += 1
        self.succeeded_seconds += seconds
        self.queue_seconds += queue
        self.cache_hits += 1
        self.cache_hit_seconds += cache
        self.last_time = now_epoch

    def missed(self, cache: float) -> None:
        """The response cache was asked for a call and did not have all of it."""
        self.cache_misses += 1
        self.cache_miss_seconds += cache

    def refused(self, seconds: float) -> None:
        self.failed += 1
        self.failed_seconds += seconds

    def batch(self, entries: int, batches: int, compute_seconds: float) -> None:
        found = self.batches.setdefault(entries, [0, 0.0])
        found[0] += batches
        found[1] += compute_seconds


class Counts:
    """The numbers, since the start of this process."""

    __slots__ = (
        "batch_entries",
        "batch_tokens",
        "cached_inputs",
        "calls",
        "displaced",
        "expired",
        "input_tokens",
        "missed_inputs",
        "queue_seconds",
        "refused",
        "retried",
        "versions",
        "wasted_compute_seconds",
    )

    def __init__(self) -> None:
        self.batch_entries = Histogram((1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024))
        """Entries of each batch that a worker has answered."""
        self.batch_tokens = Histogram((16, 64, 256, 1024, 4096, 16384, 65536))
        self.queue_seconds = {
            priority: Histogram((0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)) for priority in Priority
        }
        self.calls: dict[tuple[Priority, str], int] = {}
        """Calls that have ended, by priority and status."""
        self.input_tokens = 0
        self.retried = 0
        """Entries that went back because their worker was gone or their batch failed."""
        self.expired = 0
        """Calls whose time ran out."""
        self.refused = 0
        """Calls that a full queue did not take."""
        self.cached_inputs = self.missed_inputs = 0
        """Inputs that the response cache had, and had not."""
        self.displaced = 0
        """Calls that had to leave a full queue for a tenant within its share, or for more urgent ones of theirs."""
        self.wasted_compute_seconds = 0.0
        """Compute time of rows that nobody waited for when they came."""
        self.versions: dict[str, VersionCounts] = {}

    def of(self, version: str) -> VersionCounts:
        """Those of one version."""
        found = self.versions.pop(version, None) or VersionCounts()
        self.versions[version] = found
        if len(self.versions) > MAX_VERSIONS:
            del self.versions[next(iter(self.versions))]
        return found

    def ended(self, priority: Priority, status: str) -> None:
        key = (priority, status)
        self.calls[key] = self.calls.get(key, 0) + 1


class Collector:
    """For the Prometheus registry; `depths` gives what is there now: version name, entries on a worker, entries that
    wait by priority."""

    def __init__(self, counts: Counts, depths: Callable[[], Iterable[tuple[str, int, Mapping[Priority, int]]]]) -> None:
        self._counts = counts
        self._depths = depths

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        counts = self._counts
        calls = CounterMetricFamily("modelmora_inference_requests", "Calls ended.", labels=["priority", "status"])
        for (priority, status), count in list(counts.calls.items()):
            calls.add_metric([priority.name.lower(), status], count)
        queue_seconds = HistogramMetricFamily(
            "modelmora_inference_queue_seconds",
            "Time of an answered call from its arrival until its last text was handed to a worker.",
            labels=["priority"],
        )
        for priority, histogram in counts.queue_seconds.items():
            queue_seconds.add_metric([priority.name.lower()], histogram.cumulative(), histogram.total)
        entries = HistogramMetricFamily("modelmora_inference_batch_entries", "Entries of a batch that was answered.")
        entries.add_metric([], counts.batch_entries.cumulative(), counts.batch_entries.total)
        tokens = HistogramMetricFamily("modelmora_inference_batch_tokens", "Estimated tokens of an answered batch.")
        tokens.add_metric([], counts.batch_tokens.cumulative(), counts.batch_tokens.total)
        depth = GaugeMetricFamily(
            "modelmora_inference_queue_entries", "Entries that wait.", labels=["model_version", "priority"]
        )
        in_flight = GaugeMetricFamily(
            "modelmora_inference_in_flight_entries", "Entries on a worker.", labels=["model_version"]
        )
        for version, running, depths in self._depths():
            in_flight.add_metric([version], running)
            for level, waiting in depths.items():
                depth.add_metric([version, level.name.lower()], waiting)
        return [calls, queue_seconds, entries, tokens, depth, in_flight, *self._plain()]

    def _plain(self) -> Iterable[Metric]:
        from prometheus_client.core import CounterMetricFamily

        counts = self._counts
        for name, text, value in (
            ("batches", "Batches that a worker has answered.", sum(counts.batch_entries.counts)),
            ("input_tokens", "Tokens of answered texts, as the workers counted them.", counts.input_tokens),
            ("retried_entries", "Entries that went back because their worker or batch was lost.", counts.retried),
            ("expired_requests", "Calls whose time ran out.", counts.expired),
            ("refused_requests", "Calls that a full queue did not take.", counts.refused),
            ("cached_inputs", "Inputs that were answered from the response cache.", counts.cached_inputs),
            ("missed_inputs", "Inputs that the response cache did not have.", counts.missed_inputs),
            ("displaced_requests", "Calls that had to leave a full queue for others.", counts.displaced),
            (
                "wasted_compute_seconds",
                "Compute time of rows for callers who had gone, or whose time was over, before they had them all.",
                counts.wasted_compute_seconds,
            ),
        ):
            family = CounterMetricFamily(f"modelmora_inference_{name}", text)
            family.add_metric([], value)
            yield family
