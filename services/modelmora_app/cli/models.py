"""`modelmora import` and `modelmora models`: what is registered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from modelmora.registry.v1 import registry_pb2

from modelmora_app.cli import catalog, show
from modelmora_app.cli.bars import bar
from modelmora_app.cli.session import Session, key_values, memory_size, remote


@click.command("import")
@click.argument("source", required=False)
@click.option("--name", default="", metavar="ORG/REPO", help="Name in the registry. Default for the Hub: its own.")
@click.option("--version", default="", help="Version string, unique for ever. Default for the Hub: the commit.")
@click.option("--from", "from_", metavar="SOURCE", help="The same as SOURCE.")
@click.option("--revision", help="Branch, tag or commit of a Hub repository. Default: main.")
@click.option(
    "--file", "files", multiple=True, metavar="PATH", help="File below a URL. Default: listed, or SHA256SUMS."
)
@click.option("--empty", is_flag=True, help="No files at all, for engines such as echo.")
@click.option("--engine", default="", help="Engine that runs it. Default: read from the files.")
@click.option("--task", metavar="TASK", help="What it does, for example txt2embed. Default: read from the files.")
@click.option("--option", "options", multiple=True, callback=key_values, metavar="KEY=VALUE", help="For the engine.")
@click.option("--memory", callback=memory_size, metavar="SIZE", help="Memory that it needs, for example 2GiB.")
@click.option("--sha256", "checksums", multiple=True, callback=key_values, metavar="FILE=DIGEST", help="Must match.")
@click.option("--no-wait", is_flag=True, help="Do not wait until the files are there and verified.")
@click.option("--validate-only", is_flag=True, help="Check everything, change nothing.")
@click.option("--cancel", metavar="REFERENCE", help="End the import of org/repo@version; nothing of it stays.")
@remote
def import_(session: Session, source: str | None, **given: Any) -> None:
    """Register a model from SOURCE: a folder of the server's machine, `s3://bucket/prefix`, `https://host/path`, or a
    Hugging Face repository as `hub:org/repo`, `hub:org/repo@revision` or a plain `org/repo` that is no folder here.

    An import goes on when this command is interrupted: `models show` tells how far it is, `--cancel` ends it.
    """
    if source is not None and given["from_"] is not None:
        raise click.UsageError("The source is given twice.")
    source = given["from_"] if source is None else source
    if given["cancel"] is not None:
        if source is not None:
            raise click.UsageError("Give either a SOURCE or --cancel.")
        ended = session.client.cancel_import(given["cancel"])
        if session.as_json:
            show.print_json(ended)
        else:
            click.echo(f"cancelled {show.short(ended.name)}")
        return
    url = source if source is not None and source.startswith(("s3://", "http://", "https://")) else None
    path, hub, revision = (None, None, given["revision"]) if url else _source(source, given["revision"], given["empty"])
    left_out: list[str] = []
    version = session.client.import_model(
        given["name"],
        given["version"],
        path=path,
        hub=hub,
        revision=revision,
        url=url,
        files=given["files"],
        empty=given["empty"],
        engine=given["engine"],
        task_type=given["task"],
        engine_options={key: _value(text) for key, text in given["options"].items()} or None,
        memory_bytes=given["memory"],
        expected_checksums={file: _digest(text) for file, text in given["checksums"].items()},
        validate_only=given["validate_only"],
        left_out=left_out,
    )
    if left_out:
        more = f" and {len(left_out) - 5} more" if len(left_out) > 5 else ""
        click.echo(f"left out: {', '.join(left_out[:5])}{more}", err=True)
    creating = version.state == registry_pb2.MODEL_VERSION_STATE_CREATING
    if creating and not given["no_wait"] and not given["validate_only"]:
        version = _follow(session, version)
    if session.as_json:
        show.print_json(version)
    elif given["validate_only"]:
        click.echo("valid; nothing was changed")
    else:
        _show_version(version)


def _source(source: str | None, revision: str | None, empty: bool) -> tuple[str | None, str | None, str | None]:
    """(path, hub, revision) of what was typed; a folder that is here wins over a repository of the same name."""
    if source is None:
        if not empty:
            raise click.UsageError("Give a SOURCE, or --empty for a model without files.")
        return None, None, revision
    if source.startswith(("hub:", "hf://")):
        repository = source.removeprefix("hub:").removeprefix("hf://")
    elif source.startswith(("/", ".", "~")) or Path(source).is_dir() or source.count("/") != 1:
        return str(Path(source).expanduser().resolve()), None, revision
    else:
        repository = source
    name, at, commit = repository.partition("@")
    if at and revision:
        raise click.UsageError("The revision is given twice.")
    return None, name, revision or commit or None


def _value(text: str) -> Any:
    """`8`, `true`, `"8"` and `[1]` as JSON says, everything else as the text it is."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _digest(text: str) -> str:
    return text if text.startswith("sha256:") else f"sha256:{text}"


def _follow(session: Session, version: registry_pb2.ModelVersion) -> registry_pb2.ModelVersion:
    """Waits with a progress bar, on a terminal; quietly where nobody watches."""
    console = show.console(err=True)
    if session.as_json or not console.is_terminal:
        return session.client.wait_ready(version.name, timeout=session.timeout_given)
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TextColumn("{task.fields[pace]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(show.short(version.name), total=None, pace="")

        def advance(now: registry_pb2.ModelVersion) -> None:
            state = now.progress
            progress.update(
                bar,
                completed=state.done_bytes,
                total=state.total_bytes or None,
                description=state.current_file or show.short(now.name),
                pace=_pace(state),
            )

        return session.client.wait_ready(version.name, on_change=advance, timeout=session.timeout_given)


def _progress(progress: registry_pb2.ImportProgress) -> str:
    done = f"{show.size(progress.done_bytes)} of {show.size(progress.total_bytes)}"
    return "  ".join(filter(None, (done, _pace(progress), progress.current_file)))


def _pace(progress: registry_pb2.ImportProgress) -> str:
    """As the server measures it: what an earlier attempt had brought does not count."""
    if not progress.bytes_per_second:
        return ""
    left = f", {progress.remaining.seconds // 60}:{progress.remaining.seconds % 60:02} left"
    return f"{show.size(round(progress.bytes_per_second))}/s" + (left if progress.HasField("remaining") else "")


def _show_version(version: registry_pb2.ModelVersion) -> None:
    kind = version.source.WhichOneof("source")
    hub, profile, limits = version.source.hub, version.engine_profile, version.limits
    show.facts(
        [
            ("version", show.short(version.name)),
            ("state", show.field_word(version, "state")),
            ("failure", f"{version.failure.reason}: {version.failure.message}" if version.HasField("failure") else ""),
            ("task", show.field_word(version, "task_type")),
            ("engine", " ".join(filter(None, (version.engine, profile.backend, profile.precision)))),
            ("options", json.dumps(show.as_json(version.engine_options)) if version.engine_options.fields else ""),
            (
                "source",
                f"hub {hub.repo_id} {hub.commit}"
                if kind == "hub"
                else f"{kind or ''} {version.source.local.path or version.source.url.url}".strip(),
            ),
            ("progress", _progress(version.progress) if version.HasField("progress") else ""),
            ("size", show.size(version.artifact.size_bytes) if version.artifact.size_bytes else ""),
            ("digest", version.artifact.digest),
            ("dimensions", str(limits.embedding_dimensions or "")),
            ("longest input", f"{limits.max_input_tokens} tokens" if limits.max_input_tokens else ""),
            *catalog.facts_of(version.metadata),
            ("metrics", " ".join(f"{name}={value:g}" for name, value in sorted(version.metrics.items()))),
            ("labels", " ".join(f"{key}={value}" for key, value in sorted(version.labels.items()))),
            ("training job", version.training_job),
            ("verified", show.ago(version.verify_time)),
            ("archived", show.ago(version.archive_time)),
        ]
    )


@click.group("models", invoke_without_command=True)
@catalog.listing
@remote
def models(session: Session, filter_: str, order_by: str, everything: bool) -> None:
    """List models; with a command, import, find, show, describe, choose, archive or delete one."""
    if click.get_current_context().invoked_subcommand is None:
        catalog.print_models(session, filter_, order_by, everything)


for _command in (import_, *catalog.COMMANDS):
    models.add_command(_command)


@models.command("show")
@click.argument("reference")
@remote
def show_(session: Session, reference: str) -> None:
    """Show a model with its versions, or one version (org/repo@version)."""
    if "@" in reference or "/versions/" in reference:
        version = session.client.get_version(reference)
        if session.as_json:
            show.print_json(version)
        else:
            _show_version(version)
        return
    model = session.client.get_model(reference)
    versions = list(session.client.list_versions(model.name))
    if session.as_json:
        show.print_json({"model": model, "versions": versions})
        return
    show.facts(
        [
            ("model", show.short(model.name)),
            ("display name", model.display_name),
            ("description", model.description),
            ("task", show.field_word(model, "task_type")),
            ("family", model.family),
            ("base model", show.short(model.base_model)),
            ("labels", " ".join(f"{key}={value}" for key, value in sorted(model.labels.items()))),
            ("aliases", " ".join(f"{alias}={version}" for alias, version in sorted(model.aliases.items()))),
            ("current", model.current_version.rpartition("/")[2]),
        ]
    )
    click.echo()
    show.table(
        ["version", "state", "engine", "parameters>", "size>", "created", "metrics", "failure"],
        [
            [
                version.version,
                "archived" if version.HasField("archive_time") else show.field_word(version, "state"),
                version.engine,
                show.count(version.metadata.parameter_count) if version.metadata.parameter_count else "",
                show.size(version.artifact.size_bytes),
                show.ago(version.create_time),
                " ".join(f"{name}={value:g}" for name, value in sorted(version.metrics.items())),
                version.failure.reason,
            ]
            for version in versions
        ],
        empty="no versions yet",
    )


@models.command("delete")
@click.argument("reference")
@click.option("--force", is_flag=True, help="Also a model's versions; also the current or an aliased version.")
@remote
def delete(session: Session, reference: str, force: bool) -> None:
    """Delete a model, or one version (org/repo@version)."""
    if "@" in reference or "/versions/" in reference:
        session.client.delete_version(reference, force=force)
    else:
        session.client.delete_model(reference, force=force)
    if session.as_json:
        show.print_json({"deleted": reference})
    else:
        click.echo(f"deleted {reference}")


@models.command("verify")
@click.argument("reference")
@click.option("--full", is_flag=True, help="Hash every file, whatever the file system says.")
@remote
def verify(session: Session, reference: str, full: bool) -> None:
    """Compare the files of a version with what was registered. Exit code 1 when one differs."""
    found, intact = [], False
    with bar(session, reference) as advance:
        for answer in session.client.verify_version(reference, full=full, timeout=session.timeout_given):
            if answer.done:
                intact = answer.intact
                break
            if answer.HasField("file"):
                found.append(answer.file)
            advance(answer.file.path, answer.done_bytes, answer.total_bytes)
    if session.as_json:
        show.print_json({"intact": intact, "files": found})
    else:
        wrong = [file for file in found if file.verdict != "intact"]
        for file in wrong:
            told = f" (is {file.found_sha256}, was {file.expected_sha256})" if file.found_sha256 else ""
            click.echo(f"{file.path}: {file.verdict}{told}")
        click.echo(f"{len(found) - len(wrong)} of {len(found)} files as registered")
    if not intact:
        raise SystemExit(1)


COMMANDS: dict[str, click.Command] = {"import": import_, "models": models}
