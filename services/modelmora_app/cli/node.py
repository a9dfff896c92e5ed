"""`modelmora node`, `residency`, `drain` and `uncordon`: what an operator wants of the node and its models."""

from __future__ import annotations

from typing import Any, Literal

import click
from modelmora.lifecycle.v1 import lifecycle_pb2

from modelmora_app.cli import show
from modelmora_app.cli.session import Session, memory_size, remote, seconds_of

DRAIN_SECONDS = 600.0


@click.command()
@click.option("--wait", is_flag=True, help="Answer when nothing is left in memory.")
@click.option("--reason", default="", metavar="WORDS", help="Why; everyone who is refused reads it.")
@remote
def drain(session: Session, wait: bool, reason: str) -> None:
    """Empty the node for maintenance: load nothing new, let running batches finish. It stays so over a restart, until
    `modelmora uncordon`.
    """
    timeout = session.timeout_given or (DRAIN_SECONDS if wait else None)
    answer = session.client.drain_node(wait=wait, reason=reason, timeout=timeout)
    if session.as_json:
        show.print_json(answer)
        return
    click.echo(f"{answer.node.name} is {show.field_word(answer.node, 'state')}: {answer.node.reason}")
    left = [f"{show.short(r.model_version)} ({show.field_word(r, 'state')})" for r in answer.replicas]
    click.echo(
        f"still in memory: {', '.join(left)}; `modelmora ps --watch` follows" if left else "nothing is in memory"
    )


@click.command()
@remote
def uncordon(session: Session) -> None:
    """Let the node load models again; what is pinned or preloaded comes back by itself."""
    node = session.client.uncordon_node()
    if session.as_json:
        show.print_json(node)
    else:
        click.echo(f"{node.name} is {show.field_word(node, 'state')}")


def _budgets(_: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, int | float]:
    """Turns `host=8GiB` and `cuda:0=60%` into bytes and shares by device."""
    budgets: dict[str, int | float] = {}
    for text in given:
        device, equals, amount = text.partition("=")
        if not equals or not device.strip():
            raise click.BadParameter(f"{text!r} is not DEVICE=SIZE or DEVICE=PERCENT%, as host=8GiB", param=parameter)
        if device.strip() in budgets:
            raise click.BadParameter(f"{device.strip()} is named twice", param=parameter)
        if (number := amount.strip().rstrip("%BKMGTbkmgtiI ")) and not number.strip("0."):
            nothing = "must be above 0: nothing could ever be loaded; to empty the node, drain it"
            raise click.BadParameter(f"{text!r} {nothing}", param=parameter)
        if not amount.strip().endswith("%"):
            size = memory_size(_, parameter, amount)
            assert size is not None
            budgets[device.strip()] = size
            continue
        try:
            share = float(amount.strip()[:-1]) / 100
        except ValueError:
            share = 0.0
        if not 0 < share <= 1:
            raise click.BadParameter(f"{amount!r} is no share; write 1% to 100%", param=parameter)
        budgets[device.strip()] = share
    return budgets


def _span(_: click.Context, parameter: click.Parameter, text: str | None) -> float | Literal["default"] | None:
    return "default" if text == "default" else seconds_of(_, parameter, text)


@click.group()
def node() -> None:
    """Show and change the node's settings: budgets, eviction policy, idle time to live, loads at a time."""


@node.command("show")
@remote
def show_node(session: Session) -> None:
    """Show how the node is and the settings in force."""
    found = session.client.get_node()
    if session.as_json:
        show.print_json(found)
    else:
        _show_node(found)


@node.command("set")
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    callback=_budgets,
    metavar="DEVICE=AMOUNT",
    help="Memory that models may take: host=8GiB, or a share as host=60%. Replaces all budgets set before.",
)
@click.option(
    "--policy",
    type=click.Choice(["lru", "gdsf", "ttl", "default"]),
    help="Who goes first when room is needed: used least recently, cheapest to have again, next to expire.",
)
@click.option(
    "--idle-ttl",
    callback=_span,
    metavar="SPAN",
    help="Unload after so long without use: 10m; 0: only for room; default.",
)
@click.option("--load-concurrency", type=click.IntRange(1, 64), metavar="N", help="Loads at a time on one device.")
@click.option("--default-budgets", is_flag=True, help="Budgets as in the settings again.")
@remote
def set_node(session: Session, default_budgets: bool, **given: Any) -> None:
    """Change settings while the platform runs; they outlive a restart."""
    budgets = {} if default_budgets else given["budgets"] or None
    if default_budgets and given["budgets"]:
        raise click.UsageError("Give --budget or --default-budgets, not both.")
    policy = "" if given["policy"] == "default" else given["policy"]
    changes = {"policy": policy, "idle_ttl": given["idle_ttl"], "load_concurrency": given["load_concurrency"]}
    if budgets is None and all(value is None for value in changes.values()):
        raise click.UsageError("Say what to change: --budget, --policy, --idle-ttl or --load-concurrency.")
    answer = session.client.update_node(budgets=budgets, **changes)
    if session.as_json:
        show.print_json(answer)
        return
    _show_node(answer.node)
    for warning in answer.warnings:
        click.echo(f"warning: {warning}", err=True)


def _show_node(found: lifecycle_pb2.Node) -> None:
    show.facts(
        [
            ("node", found.name),
            ("state", show.field_word(found, "state") or "unknown"),
            ("reason", found.reason),
            *(
                (
                    f"budget of {b.device}",
                    (show.size(b.memory_bytes) if b.memory_bytes else f"{b.share:.0%} of what exists")
                    + f", {show.size(b.effective_bytes) if b.effective_bytes else 'nothing'} in force",
                )
                for b in found.budgets
            ),
            ("policy", found.policy),
            (
                "idle ttl",
                show.span(found.idle_ttl) if found.idle_ttl.ToNanoseconds() else "none: only when room is needed",
            ),
            ("loads at a time", str(found.load_concurrency)),
            ("changed", show.ago(found.update_time)),
        ]
    )


@click.group()
def residency() -> None:
    """Show and change how models are kept in memory: pins, keep-alive, replicas, preload."""


@residency.command("show")
@click.argument("model", required=False)
@remote
def show_residency(session: Session, model: str | None) -> None:
    """Show MODEL, or every model that something was said of."""
    found = [session.client.get_residency(model)] if model else list(session.client.list_residencies())
    if session.as_json:
        show.print_json(found[0] if model else found)
    else:
        _show_residencies(found)


@residency.command("set")
@click.argument("model")
@click.option("--pin/--no-pin", "pinned", default=None, help="Keep it in memory always, or no longer.")
@click.option(
    "--keep-alive", callback=_span, metavar="SPAN", help="Unload after so long without use: 5m; 0: at once; default."
)
@click.option("--min-replicas", type=click.IntRange(0, 64), metavar="N", help="Loaded at start and kept.")
@click.option("--max-replicas", type=click.IntRange(1, 64), metavar="N", help="Under load it may have so many.")
@click.option("--preload/--no-preload", default=None, help="Load it when the platform starts.")
@remote
def set_residency(session: Session, model: str, **changes: Any) -> None:
    """Change how MODEL is kept in memory; it outlives a restart."""
    if all(value is None for value in changes.values()):
        raise click.UsageError("Say what to change: --pin, --keep-alive, --min-replicas, --max-replicas or --preload.")
    found = session.client.update_residency(model, **changes)
    if session.as_json:
        show.print_json(found)
    else:
        _show_residencies([found])


def _show_residencies(found: list[lifecycle_pb2.Residency]) -> None:
    show.table(
        ["model", "pinned", "keep alive", "replicas", "preload", "changed"],
        [
            [
                show.short(item.model_version),
                "yes" if item.pinned else "",
                show.span(item.keep_alive) if item.HasField("keep_alive") else "as the node",
                f"{item.min_replicas} to {item.max_replicas}",
                "yes" if item.preload else "",
                show.ago(item.update_time),
            ]
            for item in found
        ],
        empty="every model has the defaults; `modelmora residency set MODEL --pin` keeps one in memory",
    )


COMMANDS: dict[str, click.Command] = {"drain": drain, "uncordon": uncordon, "node": node, "residency": residency}
