"""What callers of one model are to each other: HIGH beside a LOW bulk, and two tenants that want more than there is.

HIGH: one client with single texts, alone and while LOW bulks saturate the model. What it may cost it is one running
micro-batch; how long those take is told by the worker, to LOW clients with single texts beside the bulks.

Fairness: the texts of one tenant have about 10 tokens, those of the other about 250, and both always have more waiting
than fits on the worker. What a tenant got is counted in compute seconds: an answer tells those of the micro-batch that
its text was in, each micro-batch is known by them, and is shared between its texts by their tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelmora.inference.v1 import inference_pb2
from modelmora_runtime.machine import cpu_cores
from modelmora_worker.engines.sentence_transformers import MOST_TRACKS

from bench import workload
from bench.minilm import MODEL, served
from bench.script import ROOT, Script
from bench.statistics import percentile

WEIGHTS = ({"short": 1.0, "long": 1.0}, {"short": 1.0, "long": 3.0})
CLIENTS = {"short": 600, "long": 64}
WORDS = {"short": 6, "long": 190}
"""A text: about 10 and about 250 tokens. With so many clients each tenant fills more than the two batches on the
worker, whatever its share."""
TRACKS = min(cpu_cores(), MOST_TRACKS)
"""So many micro-batches run at a time; each is told in seconds of the whole worker, of which it had a part."""
SETTLED_SECONDS = 3.0
"""After so long both queues are as full as they will be."""


@dataclass
class Urgent:
    """Seconds of HIGH calls, alone and beside the bulk, and of the micro-batches of the bulk; spell by spell."""

    alone: list[list[float]] = field(default_factory=list)
    beside: list[list[float]] = field(default_factory=list)
    micro_batches: list[list[float]] = field(default_factory=list)

    def ratios(self) -> list[float]:
        """p99 beside the bulk over p99 alone plus one micro-batch (its p99 too), spell by spell."""
        return [
            percentile(beside, 99) / (percentile(alone, 99) + percentile(micro, 99))
            for alone, beside, micro in zip(self.alone, self.beside, self.micro_batches, strict=True)
        ]


@dataclass
class Shares:
    """What two tenants got under overload."""

    weights: Mapping[str, float]
    seconds: float
    compute_seconds: Mapping[str, float]
    texts: Mapping[str, int]
    mean_tokens: Mapping[str, float]

    @property
    def wanted(self) -> float:
        return self.weights["long"] / self.weights["short"]

    @property
    def got(self) -> float:
        return self.compute_seconds["long"] / self.compute_seconds["short"]


@dataclass
class Figures:
    profile: str
    urgent: Urgent
    shares: list[Shares]


def sharing_bench(folder: Path, rounds: int, seconds: float, profile: str, say: Callable[[str], None]) -> Figures:
    """Spells of HIGH alone and beside LOW in turn, then one overload for each pair of weights."""
    texts = workload.passages()
    kinds = {
        name: workload.passages(500 if name == "long" else 2000, fewest_words=words, most_words=words, seed=7)
        for name, words in WORDS.items()
    }
    ceiling = Script("-P", str(ROOT / "bench" / "ceiling.py"), str(folder), profile)
    truth = ceiling.ask(texts=texts)["truth"]
    groups = [
        {"tenant": name, "clients": CLIENTS[name], "texts": some, "truth": ceiling.ask(texts=some)["truth"]}
        for name, some in kinds.items()
    ]
    ceiling.close()
    shares = []
    with served(folder, profile) as up:
        load = Script("-m", "bench.load", up.target, MODEL)
        load.ask(texts=texts, truth=truth)
        urgent = _urgent(load, rounds, seconds)
        say(f"HIGH beside LOW: p99 over p99 alone plus a micro-batch {percentile(urgent.ratios(), 50):.2f}")
        for weights in WEIGHTS:
            for tenant, weight in weights.items():
                request = inference_pb2.SetTenantWeightRequest(tenant=f"default/{tenant}", weight=weight)
                up.inference.SetTenantWeight(request, timeout=10)
            overload = 60.0 if rounds >= 15 else max(10.0, 2 * seconds)
            found = _right(load.ask(mode="groups", groups=groups, seconds=SETTLED_SECONDS + overload, seed=1))
            calls = {
                name: [
                    (compute, int(tokens)) for asked, took, compute, tokens in some if asked + took > SETTLED_SECONDS
                ]
                for name, some in zip(kinds, found["calls"], strict=True)
            }
            one = Shares(
                weights=weights,
                seconds=overload,
                compute_seconds=attributed(calls),
                texts={name: len(some) for name, some in calls.items()},
                mean_tokens={name: sum(n for _, n in some) / max(1, len(some)) for name, some in calls.items()},
            )
            shares.append(one)
            say(f"fairness: 1:{one.wanted:g} asked, 1:{one.got:.2f} given")
        load.close()
    return Figures(profile, urgent, shares)


def attributed(calls: Mapping[str, Iterable[tuple[float, int]]]) -> dict[str, float]:
    """Compute seconds of each tenant, from (compute seconds of its micro-batch, tokens) of each of its texts.

    Two micro-batches are the same when they took the same time to the nanosecond.
    """
    tokens: dict[float, dict[str, int]] = {}
    for tenant, some in calls.items():
        for compute, count in some:
            of_batch = tokens.setdefault(compute, {})
            of_batch[tenant] = of_batch.get(tenant, 0) + count
    spent = dict.fromkeys(calls, 0.0)
    for compute, of_batch in tokens.items():
        for tenant, count in of_batch.items():
            spent[tenant] += compute * count / sum(of_batch.values())
    return spent


def _urgent(load: Script, rounds: int, seconds: float) -> Urgent:
    high = {"clients": 1, "priority": "HIGH"}
    bulk = {"clients": 4, "texts_per_call": 256, "priority": "LOW"}
    probes = {"clients": 8, "priority": "LOW", "tenant": "probe"}  # a tenant of its own need not wait for the bulks
    found = Urgent()
    for number in range(-1, rounds):  # the one before the first warms up
        alone = _right(load.ask(mode="groups", groups=[high], seconds=seconds, seed=number + 1))["calls"]
        groups = [high, bulk, probes]
        beside = _right(load.ask(mode="groups", groups=groups, seconds=2 * seconds, seed=number + 1))["calls"]
        if number >= 0:
            found.alone.append([took for _, took, _, _ in alone[0]])
            # The bulks need a moment to fill the worker.
            found.beside.append([took for asked, took, _, _ in beside[0] if asked > 0.5])
            found.micro_batches.append([TRACKS * compute for _, _, compute, _ in beside[2]])
    return found


def _right(answer: dict[str, Any]) -> dict[str, Any]:
    if answer["wrong"]:
        raise RuntimeError(f"{answer['wrong']} wrong vectors")
    return answer
