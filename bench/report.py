"""The page that the bench writes: docs/benchmarks.md."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench import lifecycle, sharing, workload
from bench.plumbing import TARGETS
from bench.registry import CALLS, Figures
from bench.statistics import Interval, bootstrap, median, percentile

ROOT = Path(__file__).resolve().parents[1]

HEAD = """# Benchmarks

Written by `make bench BENCH=--full`; a part that was taken at another commit says so. Machines are noisy, so every
claim is a ratio inside one interleaved run: ours and the ceiling in turn, the bootstrap 95 % interval of the median in
brackets; the claim is its lower bound. Both sides get the same texts in the same order. The ceiling
is sentence-transformers in process behind a greedy micro-batcher at the same concurrency (`bench/ceiling.py`, which
imports nothing of ours and sorts, cuts and sets OpenMP as our engine does); both sides check a sample of their vectors.
A timing is never asserted in a test.
"""


SIDES = ("ours", "ceiling")
EMBED_TARGETS = {"1": "p50 ≤ + 1.5 ms", "8": "≥ 0.95", "32": "≥ 0.95", "64": "≥ 0.95", "bulk": "≥ 0.97"}


def _two_sides() -> dict[str, list[Any]]:
    return {"ours": [], "ceiling": []}


@dataclass
class Series:
    """What one concurrency gave: texts per second and latencies of both sides, pair by pair."""

    rates: dict[str, list[float]] = field(default_factory=_two_sides)
    latencies: dict[str, list[list[float]]] = field(default_factory=_two_sides)

    def ratio(self) -> Interval:
        return bootstrap([a / b for a, b in zip(self.rates["ours"], self.rates["ceiling"], strict=True)])

    def later(self) -> Interval:
        """Seconds that ours takes longer, by the medians of each pair."""
        return bootstrap([
            median(a) - median(b) for a, b in zip(self.latencies["ours"], self.latencies["ceiling"], strict=True)
        ])  # fmt: skip

    def __str__(self) -> str:
        ours, ceiling = median(self.rates["ours"]), median(self.rates["ceiling"])
        return f"ours {ours:.1f}/s, ceiling {ceiling:.1f}/s, ratio {self.ratio()}"


def page(
    embed: tuple[Mapping[str, Series], Mapping[str, Any]] | None,
    plumbing: Mapping[str, Sequence[float]] | None,
    startup: Mapping[str, Sequence[float]] | None,
    registry: Figures | None = None,
    lifecycle: lifecycle.Figures | None = None,
    sharing: sharing.Figures | None = None,
    *,
    pairs: int,
    seconds: float,
) -> str:
    """The page, in Markdown, with the parts that were measured."""
    parts = [HEAD, _machine()]
    if embed:
        parts.append(_embed(*embed, pairs, seconds))
    if sharing:
        parts += [_urgent(sharing), _shares(sharing)]
    if plumbing:
        parts.append("## Plumbing: the echo engine, no delay\n\n" + _figures(plumbing, TARGETS))
        parts.append(
            "Overhead: latency seen by one client minus the engine's own time. All else at 32 clients. The floor is\n"
            "grpc.aio and a framed socket to another process with nothing of ours between, in turn with ours. A cost\n"
            "is the CPU time of host and workers for a call, its ratio that of neighbours in time; the wall ratio is\n"
            "that of the time for a call. The deep queue is of LOW requests behind a model that does not answer.\n"
        )
    if startup:
        targets = {"ready_seconds": "≤ 3", "first_answer_seconds": "≤ 6", "stop_seconds": ""}
        parts.append("## Second start\n\n" + _figures(startup, targets))
        parts.append("From the command to health SERVING; to MiniLM's first vector; from SIGTERM to the end.\n")
    if lifecycle:
        parts.append(_lifecycle(lifecycle))
    if registry:
        parts.append(_registry(registry))
    return "\n".join(parts)


def merged(old: str, new: str) -> str:
    """The old page with the parts of the new one in place of its own; new parts come last."""
    before, after = _sections(old), _sections(new)
    after.pop("")
    return "".join({**before, **after}.values())


def _sections(page: str) -> dict[str, str]:
    """Parts by their heading; what stands above the first has none."""
    found: dict[str, str] = {}
    for part in re.split(r"(?m)^(?=## )", page):
        found[part.partition("\n")[0] if part.startswith("## ") else ""] = part.rstrip("\n") + "\n\n"
    return found


def _lifecycle(figures: lifecycle.Figures) -> str:
    memory = {mode: size / lifecycle.MIB for mode, size in figures.memory.items()}
    forked, spawned = (bootstrap(figures.first_answer[mode]) for mode in ("forked", "spawned"))
    ratios = [a / b for a, b in zip(figures.p99_beside_loads, figures.p99_alone, strict=True)]
    rows = [
        ("first answer after the ask, worker forked, s", forked, "≤ 0.20"),
        ("the same, spawned, s", spawned, ""),
        *(
            (f"first answer of openvino/bf16, {found}, s", bootstrap(figures.openvino[kind]), target)
            for kind, found, target in (
                ("compiled", "worker forked, its cache empty of what was compiled", "≤ 0.60"),
                ("read", "worker forked, compiled before", "≤ 0.30"),
                ("written", "the model not yet written out for it", ""),
            )
            if figures.openvino[kind]
        ),
        (
            "memory of four workers forked, with their server and its spare (PSS), MiB",
            f"{memory['forked']:.0f}",
            "≤ 700",
        ),
        ("the same, spawned, MiB", f"{memory['spawned']:.0f}", ""),
        ("swap of two models in a place for one, through the platform, s", bootstrap(figures.swap), "≤ 0.20"),
        ("p99 of a loaded model, one core busy elsewhere, ms", bootstrap([1000 * v for v in figures.p99_alone]), ""),
        ("the same while another loads, ms", bootstrap([1000 * v for v in figures.p99_beside_loads]), ""),
        ("ratio of the two", bootstrap(ratios), "≤ 1.25"),
    ]
    lines = [
        "## Loading: all-MiniLM-L6-v2, torch fp32",
        "",
        f"{len(figures.first_answer['forked'])} workers of each kind in turn, {len(figures.swap)} swaps, "
        f"{len(ratios)} pairs of spells with {figures.loads_beside} loads in them; {_stamp()}.",
        f"The fork server itself is ready after {figures.cold_server_seconds:.1f} s of importing, once.",
        "Each first answer is of the spare worker that the fork server has half a second after the load before; a load",
        "that comes sooner forks its own. A swap is a call for the model that is not there: the other one drains, ends",
        "and is reaped, then the spare loads and answers.",
        "",
        "| figure | measured | target |",
        "|---|---|---|",
        *(f"| {name} | {value} | {target} |" for name, value, target in rows),
    ]
    return "\n".join(lines) + "\n"


def _registry(figures: Figures) -> str:
    lines = [
        "## Registry: 1,000,000 versions beside 1,000",
        "",
        f"{CALLS} calls of each, one after the other, through gRPC; embedded PostgreSQL; 20 versions a model.",
        "Asked: the median within 3 times of that with 1,000 versions.",
        "",
        "| call | 1,000: p50 / p99 | 1,000,000: p50 / p99 | ratio of medians |",
        "|---|---|---|---|",
    ]
    for name, few in figures.few.items():
        many = figures.many[name]
        lines.append(f"| {name} | {_fine(few)} | {_fine(many)} | {median(many) / median(few):.2f} |")
    return "\n".join(lines) + "\n"


def _fine(values: Sequence[float]) -> str:
    return f"{percentile(values, 50) * 1000:.1f} / {percentile(values, 99) * 1000:.1f} ms"


def _stamp() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    return f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, commit {commit}"


def _machine() -> str:
    names = ("torch", "transformers", "sentence-transformers", "grpcio", "protobuf")
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    lines = [
        f"- Date {_stamp()}.",
        f"- Machine: {os.cpu_count()} cores, {_processor()}, {gib:.0f} GiB, {platform.system()} {platform.machine()}.",
        f"- Python {platform.python_version()}; " + ", ".join(f"{name} {version(name)}" for name in names) + ".",
        f"- Workload: 2000 passages of 20–220 words, digest `{workload.digest(workload.passages())}`.",
    ]
    return "\n".join(lines) + "\n"


def _embed(series: Mapping[str, Series], facts: Mapping[str, Any], pairs: int, seconds: float) -> str:
    lines = [
        f"## Embedding, all-MiniLM-L6-v2, {facts['profile'].replace('/', ' ')}, texts per second",
        "",
        f"{pairs} pairs of {seconds:g} s at each concurrency; {facts['threads']} threads. The ceiling has the engine "
        f"profile {facts['ceiling']}. Taken at {_stamp()}.",
        "",
        "| clients | ours | ceiling | ratio | asked | ours p50 / p99 | ceiling p50 / p99 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in series.items():
        rates = " | ".join(str(bootstrap(one.rates[side])) for side in SIDES)
        latencies = " | ".join(_latency([each for spell in one.latencies[side] for each in spell]) for side in SIDES)
        lines.append(f"| {name} | {rates} | {one.ratio()} | {EMBED_TARGETS[name]} | {latencies} |")
    later = series["1"].later()
    lines += [
        "",
        f"One client waits {_milliseconds(later)} ms longer than in process, by the medians of each pair.",
        "",
    ]
    return "\n".join(lines)


def _urgent(figures: sharing.Figures) -> str:
    urgent = figures.urgent

    def row(name: str, spells: Sequence[Sequence[float]]) -> str:
        p50, p99 = (bootstrap([percentile(spell, percent) for spell in spells]) for percent in (50, 99))
        return f"| {name} | {_milliseconds(p50)} | {_milliseconds(p99)} |"

    lines = [
        f"## HIGH beside LOW bulks, all-MiniLM-L6-v2, {figures.profile.replace('/', ' ')}",
        "",
        f"{len(urgent.alone)} pairs of spells: one client with HIGH single texts alone, then beside four clients with",
        f"LOW bulks of 256 texts. {sharing.TRACKS} micro-batches run at a time, each on its part of the cores; a text",
        f"that comes alone has all. Taken at {_stamp()}.",
        "",
        "| ms | p50 | p99 |",
        "|---|---|---|",
        row("HIGH alone", urgent.alone),
        row("HIGH beside LOW bulks", urgent.beside),
        row("a micro-batch of LOW, begin to end", urgent.micro_batches),
        "",
        f"p99 beside the bulks over p99 alone plus one micro-batch (p99): **{bootstrap(urgent.ratios())}**, asked ≤ 1.",
    ]
    return "\n".join(lines) + "\n"


def _shares(figures: sharing.Figures) -> str:
    lines = [
        f"## Fairness, all-MiniLM-L6-v2, {figures.profile.replace('/', ' ')}",
        "",
        "Two tenants that both want more than there is. Compute seconds as the worker told them; asked: the ratio of",
        f"the weights within 10 %. Taken at {_stamp()}.",
        "",
        "| weights short : long | seconds | tokens of a text | texts answered | compute seconds | ratio given |",
        "|---|---|---|---|---|---|",
    ]
    for one in figures.shares:
        pairs = (one.weights, one.mean_tokens, one.texts, one.compute_seconds)
        weights, tokens, texts, compute = (f"{pair['short']:.4g} : {pair['long']:.4g}" for pair in pairs)
        lines.append(f"| {weights} | {one.seconds:g} | {tokens} | {texts} | {compute} | 1 : {one.got:.2f} |")
    return "\n".join(lines) + "\n"


def _milliseconds(interval: Interval) -> str:
    return f"{1000 * interval.middle:.1f} [{1000 * interval.low:.1f}, {1000 * interval.high:.1f}]"


def _figures(values: Mapping[str, Sequence[float]], targets: Mapping[str, str]) -> str:
    rows = [f"| {name} | {bootstrap(found)} | {targets[name]} |" for name, found in values.items()]
    return "\n".join(["| figure | measured | target |", "|---|---|---|", *rows]) + "\n"


def _latency(values: Sequence[float]) -> str:
    return f"{percentile(values, 50) * 1000:.0f} / {percentile(values, 99) * 1000:.0f} ms" if values else "–"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
