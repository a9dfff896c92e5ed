"""`modelmora queue`: what waits for which model, whose it is, and why one call waits."""

from __future__ import annotations

import click
from modelmora.inference.v1 import inference_pb2

from modelmora_app.cli import show
from modelmora_app.cli.session import Session, remote


@click.command()
@click.argument("model", default="")
@click.option("--request", "request_id", help="Explain one call by the request id that it was sent with.")
@click.option(
    "--weight",
    nargs=2,
    type=(str, float),
    metavar="TENANT WEIGHT",
    help="Change a tenant's share; 1, the default, takes it back.",
)
@click.option("--weights", is_flag=True, help="Show the shares of tenants that somebody has set.")
@remote
def queue(
    session: Session, model: str, request_id: str | None, weight: tuple[str, float] | None, weights: bool
) -> None:
    """Show what waits for MODEL, or for all models in use."""
    if weight is not None:
        answer = session.client.set_tenant_weight(*weight)
        if session.as_json:
            show.print_json(answer)
        else:
            click.echo(f"{answer.tenant} has weight {answer.weight:g} from now on")
        return
    if weights:
        found = session.client.list_tenant_weights()
        if session.as_json:
            show.print_json(found)
        else:
            show.table(
                ["tenant", "weight>", "set by"],
                [[one.tenant, f"{one.weight:g}", "command" if one.changed else "settings"] for one in found],
                empty="every tenant has weight 1",
            )
        return
    if request_id is not None:
        explained = session.client.explain_request(request_id)
        if session.as_json:
            show.print_json(explained)
        else:
            print_explained(request_id, explained)
        return
    queues = session.client.queue(model)
    if session.as_json:
        show.print_json(queues)
        return
    show.table(
        ["model", "priority", "tenant", "texts>", "tokens>", "oldest>", "running>", "texts/s>"],
        [row for one in queues for row in rows(one)],
        empty="nothing waits",
    )


def rows(queue: inference_pb2.Queue) -> list[list[str]]:
    """One for each tenant that waits in a priority; one alone where nothing waits."""
    found = []
    for level in queue.levels:
        for tenant in level.tenants:
            share = "" if tenant.weight == 1 else f" (weight {tenant.weight:g})"
            found.append(
                [
                    show.field_word(level, "priority"),
                    tenant.tenant + share,
                    str(tenant.entries),
                    str(tenant.tokens),
                    show.milliseconds(tenant.oldest_age),
                ]
            )
        hidden = level.entries - sum(tenant.entries for tenant in level.tenants)
        if hidden:
            found.append([show.field_word(level, "priority"), "others", str(hidden), "", ""])
    running = f"{queue.in_flight} on {queue.replicas}"
    if queue.abandoned:
        running += f", {queue.abandoned} for nobody"
    if not queue.replicas and queue.HasField("ready_in"):
        running = f"ready in {show.milliseconds(queue.ready_in)}"
    rate = f"{queue.drain_rate:.1f}" if queue.drain_rate else ""
    return [
        [show.short(queue.model_version) if first else "", *row, *((running, rate) if first else ("", ""))]
        for first, row in zip([True] + [False] * len(found), found or [["", "", "0", "0", ""]], strict=False)
    ]


def print_explained(request_id: str, told: inference_pb2.ExplainRequestResponse) -> None:
    parts = [
        f"{count} {word}"
        for count, word in (
            (told.waiting_entries, "waiting"),
            (told.running_entries, "running"),
            (told.answered_entries, "answered"),
        )
        if count
    ]
    click.echo(f"{request_id}: {told.reason}")
    click.echo(
        f"{show.short(told.model_version)}, {show.field_word(told, 'priority')}, tenant {told.tenant}; texts: "
        f"{', '.join(parts)}; {show.milliseconds(told.age)} old, {show.milliseconds(told.time_left)} left"
    )
    if told.HasField("starts_in"):
        click.echo(f"starts in about {show.milliseconds(told.starts_in)}")


COMMANDS: dict[str, click.Command] = {"queue": queue}
