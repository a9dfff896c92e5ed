"""`modelmora audit`: who changed what."""

from __future__ import annotations

import itertools

import click

from modelmora_app.cli import show
from modelmora_app.cli.session import Session, remote


@click.command("audit")
@click.option(
    "--filter", "filter_", default="", metavar="EXPR", help='For example: subject = "ann" AND NOT status = OK'
)
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="How many, newest first.")
@remote
def audit(session: Session, filter_: str, limit: int) -> None:
    """Show who did which admin call on what, with its result, newest first. For admins."""
    found = session.client.audit_entries(filter=filter_, page_size=min(limit, 1000))
    entries = list(itertools.islice(found, limit))
    if session.as_json:
        show.print_json(entries)
        return
    show.table(
        ["when", "who", "did", "on", "result", "from"],
        [
            [
                show.ago(entry.create_time),
                entry.subject,
                entry.method.rpartition("/")[2],
                show.short(entry.resource),
                entry.reason or entry.status,
                entry.peer,
            ]
            for entry in entries
        ],
        empty="nothing is recorded",
    )


COMMANDS: dict[str, click.Command] = {"audit": audit}
