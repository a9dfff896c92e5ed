"""`modelmora models …` for what is registered: lists and searches, aliases, the archive, choosing, describing."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import click
from modelmora.registry.v1 import registry_pb2

from modelmora_app.cli import show
from modelmora_app.cli.session import Session, key_values, memory_size, remote

SHOWN = 100
"""Rows of a table unless `--all`."""


def listing(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that every list of models has."""
    for option in (
        click.option("--all", "everything", is_flag=True, help=f"Not only the first {SHOWN}."),
        click.option("--order-by", default="", metavar="FIELD", help="name, create_time or update_time; 'name desc'."),
        click.option(
            "--filter", "filter_", default="", metavar="EXPR", help="For example: family = bert AND stage = production"
        ),
    ):
        command = option(command)
    return command


def print_models(session: Session, filter_: str, order_by: str, everything: bool, query: str = "") -> None:
    """A table; with `--json` all that was asked for."""
    found = session.client.list_models(filter=filter_, order_by=order_by, query=query)
    models = list(found if everything else itertools.islice(found, SHOWN + 1))
    more = not everything and len(models) > SHOWN
    models = models[:SHOWN] if more else models
    if session.as_json:
        show.print_json(models)
        return
    show.table(
        ["model", "task", "family", "current", "aliases", "updated"],
        [
            [
                show.short(model.name),
                show.field_word(model, "task_type"),
                model.family,
                model.current_version.rpartition("/")[2],
                " ".join(f"{alias}={version}" for alias, version in sorted(model.aliases.items())),
                show.ago(model.update_time),
            ]
            for model in models
        ],
        empty="nothing found" if query or filter_ else "no models yet; `modelmora import` registers one",
    )
    if more:
        click.echo("… and more; --all shows them, --filter or `modelmora models search` finds some", err=True)


@click.command("list")
@listing
@remote
def list_(session: Session, filter_: str, order_by: str, everything: bool) -> None:
    """List models."""
    print_models(session, filter_, order_by, everything)


@click.command("search")
@click.argument("words", nargs=-1, required=True)
@listing
@remote
def search(session: Session, words: tuple[str, ...], filter_: str, order_by: str, everything: bool) -> None:
    """Find models by words of their name, family and description, the best first: sentence -gemma "small and quick"."""
    print_models(session, filter_, order_by, everything, " ".join(words))


@click.group("alias")
def alias() -> None:
    """Point aliases at versions; `production` is what a plain reference means, `latest` moves by itself."""


@alias.command("set")
@click.argument("model")
@click.argument("alias")
@click.argument("version")
@click.option("--verified", is_flag=True, help="Only if every file of the version is what was registered.")
@remote
def alias_set(session: Session, model: str, alias: str, version: str, verified: bool) -> None:
    """Point ALIAS of MODEL at VERSION."""
    changed = session.client.set_alias(model, alias, version, require_verified=verified)
    _say(session, changed, f"{show.short(changed.name)}@{alias} is {version}")


@alias.command("remove")
@click.argument("model")
@click.argument("alias")
@remote
def alias_remove(session: Session, model: str, alias: str) -> None:
    """Remove ALIAS of MODEL."""
    changed = session.client.set_alias(model, alias, "")
    _say(session, changed, f"{show.short(changed.name)}@{alias} is removed")


@alias.command("list")
@click.argument("model")
@remote
def alias_list(session: Session, model: str) -> None:
    """Show where the aliases of MODEL point."""
    found = session.client.get_model(model)
    if session.as_json:
        show.print_json(dict(found.aliases))
        return
    rows = [[name, version] for name, version in sorted(found.aliases.items())]
    show.table(["alias", "version"], rows, empty="no aliases; `latest` comes with the first READY version")


@alias.command("history")
@click.argument("model")
@click.argument("alias", default="")
@remote
def alias_history(session: Session, model: str, alias: str) -> None:
    """Show every move of the aliases of MODEL, or of one, newest first; also of a model that was deleted."""
    changes = list(session.client.alias_changes(model, alias=alias))
    if session.as_json:
        show.print_json(changes)
        return
    show.table(
        ["when", "alias", "from", "to", "who"],
        [
            [show.ago(each.create_time), each.alias, each.from_version or "–", each.to_version or "–", each.subject]
            for each in changes
        ],
        empty="it never moved",
    )


@click.command("archive")
@click.argument("reference")
@remote
def archive(session: Session, reference: str) -> None:
    """Put a version (org/repo@version) away: neither `latest` nor selected, still there by its name."""
    changed = session.client.update_version(reference, archived=True)
    _say(session, changed, f"archived {show.short(changed.name)}")


@click.command("unarchive")
@click.argument("reference")
@remote
def unarchive(session: Session, reference: str) -> None:
    """Bring an archived version (org/repo@version) back."""
    changed = session.client.update_version(reference, archived=False)
    _say(session, changed, f"{show.short(changed.name)} is back")


def _say(session: Session, changed: Any, line: str) -> None:
    if session.as_json:
        show.print_json(changed)
    else:
        click.echo(line)


@click.command("select")
@click.argument("model")
@click.option("--metric", default="", help="What decides.")
@click.option("--threshold", type=float, help="At least so much of it (at most, with --lower-is-better).")
@click.option("--lower-is-better", is_flag=True)
@click.option(
    "--require", "secondary", multiple=True, callback=key_values, metavar="METRIC=VALUE", help="At least this."
)
@click.option("--max-size", callback=memory_size, metavar="SIZE", help="For example 500MB.")
@click.option("--prefer-oldest", is_flag=True, help="Among equals the oldest instead of the newest.")
@remote
def select(session: Session, model: str, **given: Any) -> None:
    """Choose the version of MODEL that meets the criteria best, and say why not the others. Exit code 3: none does."""
    answer = session.client.select_version(
        model,
        metric=given["metric"],
        threshold=given["threshold"],
        secondary={name: _number(name, text) for name, text in given["secondary"].items()},
        max_size_bytes=given["max_size"] or 0,
        prefer_latest=not given["prefer_oldest"],
        lower_is_better=given["lower_is_better"],
    )
    found = answer.HasField("model_version")
    if session.as_json:
        show.print_json(answer)
    else:
        chosen = f"{show.short(answer.model_version.name)}: " if found else ""
        click.echo(f"{chosen}{answer.reason}")
        if answer.rejected:
            click.echo()
            show.table(["not", "because"], [[each.version, each.reason] for each in answer.rejected], empty="")
    if not found:
        raise SystemExit(3)


@click.command("update")
@click.argument("reference")
@click.option("--display-name", help="Of a model.")
@click.option("--description", help="Of a model.")
@click.option(
    "--label", "labels", multiple=True, callback=key_values, metavar="KEY=VALUE", help="Empty value: take it away."
)
@click.option("--metric", "metrics", multiple=True, callback=key_values, metavar="NAME=NUMBER", help="Of a version.")
@remote
def update(session: Session, reference: str, **given: Any) -> None:
    """Describe a model, or label and measure one version (org/repo@version). Labels and metrics not named stay."""
    labels, metrics = given["labels"], given["metrics"]
    if "@" in reference or "/versions/" in reference:
        if given["display_name"] is not None or given["description"] is not None or not (labels or metrics):
            raise click.UsageError("A version takes --label and --metric.")
        seen = session.client.get_version(reference)
        changed: Any = session.client.update_version(
            seen.name,
            labels=_merged(seen.labels, labels) if labels else None,
            metrics={**seen.metrics, **{name: _number(name, text) for name, text in metrics.items()}}
            if metrics
            else None,
            etag=seen.etag,
        )
    else:
        if metrics or not (labels or given["display_name"] is not None or given["description"] is not None):
            raise click.UsageError("A model takes --display-name, --description and --label.")
        model = session.client.get_model(reference)
        changed = session.client.update_model(
            model.name,
            display_name=given["display_name"],
            description=given["description"],
            labels=_merged(model.labels, labels) if labels else None,
            etag=model.etag,
        )
    _say(session, changed, f"{show.short(changed.name)} is changed")


def _merged(labels: Any, changes: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in {**labels, **changes}.items() if value}


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise click.UsageError(f"{name}={text} is no number.") from None


def facts_of(metadata: registry_pb2.ModelMetadata) -> list[tuple[str, str]]:
    """What the files told of a version, as pairs for a table."""
    layers = [f"{metadata.num_layers} layers" if metadata.HasField("num_layers") else ""]
    layers += [f"{metadata.num_heads} heads" if metadata.HasField("num_heads") else ""]
    layers += [f"width {metadata.hidden_size}" if metadata.HasField("hidden_size") else ""]
    weights = [f"{dtype} {show.size(count)}" for dtype, count in sorted(metadata.weight_bytes.items())]
    return [
        ("architecture", metadata.architecture),
        ("parameters", show.count(metadata.parameter_count) if metadata.HasField("parameter_count") else ""),
        ("dtype", metadata.dtype),
        ("shape", ", ".join(filter(None, layers))),
        ("context", f"{metadata.context_length} tokens" if metadata.HasField("context_length") else ""),
        ("vocabulary", str(metadata.vocabulary_size) if metadata.HasField("vocabulary_size") else ""),
        ("quantization", metadata.quantization),
        ("weights in memory", ", ".join(weights)),
        ("license", metadata.license),
        ("tags", ", ".join(metadata.tags)),
    ]


COMMANDS = (list_, search, alias, archive, unarchive, select, update)
"""Commands of `modelmora models` that are here."""
