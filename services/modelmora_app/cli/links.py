"""`modelmora links …`: models and their counterparts in other registries."""

from __future__ import annotations

from collections.abc import Sequence

import click
from modelmora.registry.v1 import registry_pb2

from modelmora_app.cli import show
from modelmora_app.cli.session import Session, remote


@click.group("links")
def links() -> None:
    """Link models to other registries, compare with them, export to them. LINK is the name that `links list` shows."""


@links.command("list")
@click.argument("model")
@remote
def list_(session: Session, model: str) -> None:
    """List the links of MODEL."""
    found = list(session.client.list_links(model))
    if session.as_json:
        show.print_json(found)
        return
    show.table(
        ["link", "type", "counterpart", "version", "state", "checked", "differs"],
        [
            [
                link.name,
                link.registry_type,
                link.external_id,
                link.version,
                show.field_word(link, "sync_state"),
                show.ago(link.check_time) if link.HasField("check_time") else "",
                link.sync_reason,
            ]
            for link in found
        ],
        empty="no links; `modelmora links create` makes one",
    )


@links.command("create")
@click.argument("model")
@click.option("--hub", metavar="ORG/REPO", help="A repository of the Hugging Face Hub.")
@click.option("--folder", metavar="PATH", help="A folder of the server's machine, below an export or a model root.")
@remote
def create(session: Session, model: str, hub: str | None, folder: str | None) -> None:
    """Link MODEL to a repository of the Hub or to a folder."""
    if (hub is None) == (folder is None):
        raise click.UsageError("Give either --hub or --folder.")
    kind, counterpart = ("huggingface", hub) if hub is not None else ("folder", folder)
    _show(session, session.client.create_link(model, kind, counterpart or ""))


@links.command("get")
@click.argument("link")
@remote
def get(session: Session, link: str) -> None:
    """Show a link."""
    _show(session, session.client.get_link(link))


@links.command("check")
@click.argument("link")
@remote
def check(session: Session, link: str) -> None:
    """Compare the other side with what is here. Exit code 1 when it differs."""
    found = session.client.check_link(link, timeout=session.timeout_given)
    _show(session, found)
    if found.sync_reason:
        raise SystemExit(1)


@links.command("export")
@click.argument("version")
@click.argument("link")
@click.option("--overwrite", is_flag=True, help="Also over files there that are not as an export left them.")
@remote
def export(session: Session, version: str, link: str, overwrite: bool) -> None:
    """Copy VERSION (org/repo@version) to the other side of LINK, whole or not at all."""
    timeout = session.timeout_given or 600.0
    _show(session, session.client.export_version(version, link, overwrite=overwrite, timeout=timeout))


@links.command("delete")
@click.argument("names", metavar="LINK...", nargs=-1, required=True)
@remote
def delete(session: Session, names: Sequence[str]) -> None:
    """Forget links; nothing is deleted on the other side."""
    for name in names:
        session.client.delete_link(name)
        if not session.as_json:
            click.echo(f"deleted {name}")
    if session.as_json:
        show.print_json({"deleted": list(names)})


def _show(session: Session, link: registry_pb2.ExternalLink) -> None:
    if session.as_json:
        show.print_json(link)
        return
    show.facts(
        [
            ("link", link.name),
            ("type", link.registry_type),
            ("counterpart", link.external_id),
            ("see", link.url),
            ("version", link.version),
            ("state", show.field_word(link, "sync_state")),
            ("differs", link.sync_reason),
            ("imported", show.ago(link.import_time) if link.HasField("import_time") else ""),
            ("exported", show.ago(link.export_time) if link.HasField("export_time") else ""),
            ("checked", show.ago(link.check_time) if link.HasField("check_time") else ""),
            *sorted(link.metadata.items()),
        ]
    )


COMMANDS: dict[str, click.Command] = {"links": links}
