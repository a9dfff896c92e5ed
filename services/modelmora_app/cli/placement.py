"""`modelmora explain`, `decisions`, `trace` and `simulate`: why what is in memory, and what else could be."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

import click
from modelmora.errors import InvalidArgument
from modelmora.lifecycle.v1 import lifecycle_pb2

from modelmora_app.cli import show
from modelmora_app.cli.session import Session, memory_size, remote

POLICIES = ("lru", "gdsf", "ttl")
TRIGGERS = ("placement", "overdraft", "foreign", "budget", "idle", "keep_alive", "scale_down", "drain", "profile")
_PLACED = (lifecycle_pb2.EVICTION_TRIGGER_UNSPECIFIED, lifecycle_pb2.EVICTION_TRIGGER_PLACEMENT)
SIMULATION_SECONDS = 300.0


@click.command()
@click.argument("model")
@click.option("--priority", default="medium", show_default=True, help="low, medium or high.")
@remote
def explain(session: Session, model: str, priority: str) -> None:
    """Say what would happen if MODEL were wanted now, and change nothing."""
    placement = session.client.explain(model, priority=priority)
    if session.as_json:
        show.print_json(placement)
        return
    show_placement(placement)


def show_placement(placement: lifecycle_pb2.Placement) -> None:
    """For people. Of what is in memory and what is refused the arithmetic explains nothing."""
    word = show.field_word(placement, "outcome").replace("_", " ")
    refused = placement.outcome == lifecycle_pb2.PLACEMENT_OUTCOME_REFUSED
    when = "it may be tried again in" if refused else "ready in"
    ready = f", {when} {show.span(placement.ready_in)}" if placement.ready_in.ToNanoseconds() else ""
    click.echo(f"{show.short(placement.model_version)}: {word}{ready}")
    if placement.reason:
        click.echo(f"  {placement.reason}")
    if refused or placement.outcome == lifecycle_pb2.PLACEMENT_OUTCOME_LOADED:
        return
    if placement.devices:
        click.echo()
        _show_needs(placement.devices, placement.need_source)
    if placement.candidates:
        click.echo()
        _show_candidates(placement.candidates)


@click.command()
@click.option("--model", default="", metavar="MODEL", help="Only those that made room for it.")
@click.option("--outcome", type=click.Choice(["plan", "wait", "impossible"]), help="Only with this outcome.")
@click.option("--trigger", type=click.Choice(TRIGGERS), help="Only what this made necessary.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="The newest so many.")
@click.option("--details", is_flag=True, help="Also what each was decided from.")
@remote
def decisions(
    session: Session, model: str, outcome: str | None, trigger: str | None, limit: int, details: bool
) -> None:
    """List what had to leave memory, or could not come into it, and why, newest first."""
    if model and not model.startswith("models/"):
        model = session.client.resolve(model).name
    asked = {"model_version": model, "outcome": outcome, "trigger": trigger}
    terms = [f'{name} = "{value}"' for name, value in asked.items() if value]
    found = []
    for decision in session.client.eviction_decisions(filter=" AND ".join(terms), page_size=min(limit, 100)):
        found.append(decision)
        if len(found) == limit:
            break
    if session.as_json:
        show.print_json(found)
        return
    if details:
        for decision in found:
            who = f"{show.short(decision.model_version)}: " if decision.model_version else ""
            click.echo(f"{show.ago(decision.create_time)}: {who}{_words(decision)}")
            if decision.devices:
                _show_needs(decision.devices, "")
            _show_candidates(decision.candidates)
            click.echo()
        return
    show.table(
        ["when", "trigger", "to place", "outcome", "policy", "victims", "reason"],
        [
            [
                show.ago(decision.create_time),
                show.field_word(decision, "trigger").replace("_", " "),
                show.short(decision.model_version) if decision.trigger in _PLACED else "",
                decision.outcome,
                decision.policy,
                ", ".join(show.short(item.model_version) for item in decision.candidates if item.victim),
                decision.reason,
            ]
            for decision in found
        ],
        empty="nothing had to make room yet",
    )


def _words(decision: lifecycle_pb2.EvictionDecision) -> str:
    trigger = show.field_word(decision, "trigger").replace("_", " ")
    return f"{trigger}: {decision.outcome} ({decision.policy})" + (f": {decision.reason}" if decision.reason else "")


def _show_needs(devices: Sequence[lifecycle_pb2.DeviceNeed], source: str) -> None:
    show.table(
        ["device", "needs>", "free>", "evictable>", "budget>"],
        [
            [
                item.device,
                show.size(item.need_bytes) + (f" ({source})" if source else ""),
                show.size(item.free_bytes),
                show.size(item.evictable_bytes),
                show.size(item.budget_bytes),
            ]
            for item in devices
        ],
        empty="",
    )
    click.echo("Evictable: what models that may go hold, or give back already; with what is free, the room for it now.")


def _show_candidates(candidates: Sequence[lifecycle_pb2.EvictionCandidate]) -> None:
    show.table(
        ["in memory", "goes", "memory>", "idle>", "score>", "why not"],
        [
            [
                show.short(item.model_version),
                "yes" if item.victim else "",
                show.size(sum(device.memory_bytes for device in item.charged)),
                "busy" if item.busy else show.span(item.idle),
                f"{item.score:.6g}",
                item.reason,
            ]
            for item in candidates
        ],
        empty="nothing is in memory",
    )
    if len(candidates) > 1:
        click.echo("Of those that may go the idle go before the busy, and then those with the lowest score first.")


@click.group()
def trace() -> None:
    """What was wanted and used on this node, recorded for simulations."""


@trace.command("export")
@click.option("--output", "-o", type=click.File("w", lazy=False), default="-", metavar="FILE", help="Default: here.")
@remote
def export(session: Session, output: TextIO) -> None:
    """Write the recorded acquire events, one JSON object a line, oldest first."""
    count = 0
    for event in session.client.export_trace(timeout=session.timeout_given or SIMULATION_SECONDS):
        output.write(json.dumps(show.as_json(event)) + "\n")
        count += 1
    if output.name != "<stdout>":
        click.echo(f"{count} event" + "s" * (count != 1), err=True)
    if not count:
        click.echo("nothing was recorded yet: events are written when a model's use ends", err=True)


@click.command()
@click.option(
    "--trace",
    "source",
    type=click.File("r", encoding="utf-8", errors="surrogateescape"),  # a wrong byte is told with its line
    required=True,
    metavar="FILE",
    help="From `modelmora trace export`.",
)
@click.option("--policy", "policies", metavar="LIST", help=f"Of {', '.join(POLICIES)}, joined by commas. Default: all.")
@click.option("--budget", callback=memory_size, metavar="SIZE", help="Main memory for models. Default: the node's.")
@remote
def simulate(session: Session, source: TextIO, policies: str | None, budget: int | None) -> None:
    """Replay recorded use under other eviction policies or budgets, without loading anything."""
    results = session.client.simulate(
        read_trace(source),
        policies=[name.strip() for name in policies.split(",") if name.strip()] if policies else (),
        budget={"host": budget} if budget else None,
        timeout=session.timeout_given or SIMULATION_SECONDS,
    )
    if session.as_json:
        show.print_json(results)
        return
    if not any(item.acquires for item in results):
        click.echo("nothing was replayed: the trace has no acquire events")
        return
    show.table(
        ["policy", "acquires>", "misses>", "evictions>", "never fit>", "waited>", "waited p99>", "loaded>"],
        [
            [
                item.policy,
                str(item.acquires),
                f"{item.misses} ({item.misses / max(1, item.acquires):.1%})",
                str(item.evictions),
                str(item.never_fit),
                f"{item.waited_seconds:.1f} s",
                f"{item.waited_p99_seconds:.2f} s",
                show.size(item.loaded_bytes),
            ]
            for item in results
        ],
        empty="no policy was simulated",
    )


def read_trace(lines: Iterable[str]) -> list[lifecycle_pb2.AcquireEvent]:
    """Acquire events as `trace export` wrote them. Raises InvalidArgument with the line."""
    from modelmora import requests

    events = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            given: Any = json.loads(line)
            if not isinstance(given, dict):
                raise ValueError("it is no object")
            priority = requests.priority_value(given.pop("priority", None))
            events.append(lifecycle_pb2.AcquireEvent(**given, priority=priority))
        except (ValueError, TypeError, AttributeError, InvalidArgument) as error:
            raise InvalidArgument.at("trace", f"line {number} is no acquire event: {error}") from None
    return events


COMMANDS: dict[str, click.Command] = {"explain": explain, "decisions": decisions, "trace": trace, "simulate": simulate}
