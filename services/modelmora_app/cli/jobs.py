"""`modelmora jobs …`: texts to vectors in the background."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, Any

import click
from modelmora.inference.v1 import inference_pb2
from modelmora.jobs import JobResult, check_succeeded

from modelmora_app.cli import show
from modelmora_app.cli.bars import bar
from modelmora_app.cli.session import Session, remote, seconds_of

STATES = ("pending", "queued", "running", "cancelling", "succeeded", "failed", "cancelled")


@click.group("jobs")
def jobs() -> None:
    """Embed many texts in the background. A JOB is a name, jobs/UID, or the UID alone."""


@jobs.command("create")
@click.argument("model")
@click.argument("texts", nargs=-1)
@click.option("--file", type=click.File("r", encoding="utf-8"), help="One text for each line; - reads standard input.")
@click.option("--priority", type=click.Choice(["low", "medium", "high"]), help="Default: low.")
@click.option("--dimensions", type=click.IntRange(min=1), help="Keep the first n dimensions.")
@click.option("--no-normalize", is_flag=True, help="Leave the vectors as long as they come.")
@click.option("--no-truncate", is_flag=True, help="Texts over the model's limit get an error instead of being cut.")
@click.option("--exact", is_flag=True, help="Demand the engine's exact profile.")
@click.option("--within", callback=seconds_of, metavar="TIME", help="It fails when it has not ended by then. [24h]")
@click.option("--keep", callback=seconds_of, metavar="TIME", help="So long are its results kept. [24h]")
@click.option("--request-id", help="Makes this command safe to repeat.")
@click.option("--wait", is_flag=True, help="Return when it has ended.")
@remote
def create(
    session: Session,
    model: str,
    texts: tuple[str, ...],
    file: IO[str] | None,
    priority: str | None,
    dimensions: int | None,
    no_normalize: bool,
    no_truncate: bool,
    exact: bool,
    within: float | None,
    keep: float | None,
    request_id: str | None,
    wait: bool,
) -> None:
    """Accept TEXTS, at most 2048, to be turned into vectors."""
    asked = [*texts, *(line.rstrip("\n") for line in file or () if line.strip())]
    if not asked:
        raise click.UsageError("Give texts, or --file.")
    job = session.client.create_embed_job(
        model,
        asked,
        normalize=False if no_normalize else None,
        truncate=False if no_truncate else None,
        dimensions=dimensions,
        priority=priority,
        precision="exact" if exact else None,
        job_timeout=within,
        result_ttl=keep,
        request_id=request_id,
    ).message
    if wait:
        _watch(session, job.name)
    elif session.as_json:
        show.print_json(job)
    else:
        click.echo(f"{job.name}: {job.progress.inputs} texts for {show.short(job.model_version)}")


@jobs.command("list")
@click.option("--state", "states", type=click.Choice(STATES), multiple=True, help="Only these; may be repeated.")
@click.option("--model", default="", help="Only those of this model, as it was asked for, or of this version.")
@click.option("--tenant", default="", help="Only those of this tenant.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
@remote
def list_(session: Session, states: tuple[str, ...], model: str, tenant: str, limit: int) -> None:
    """List jobs, newest first."""
    found = []
    for job in session.client.list_jobs(states=states, model=model, tenant=tenant, page_size=min(limit, 1000)):
        found.append(job)
        if len(found) == limit:
            break
    if session.as_json:
        show.print_json(found)
        return
    show.table(
        ["job", "model", "state", "answered>", "failed>", "priority", "tenant", "created"],
        [
            [
                job.uid,
                show.short(job.model_version),
                show.field_word(job, "state"),
                f"{_answered(job)}/{job.progress.inputs}",
                str(job.progress.failed or ""),
                show.field_word(job, "priority"),
                job.tenant,
                show.ago(job.create_time),
            ]
            for job in found
        ],
        empty="no jobs",
    )


@jobs.command("show")
@click.argument("job")
@remote
def show_(session: Session, job: str) -> None:
    """Show one job."""
    _print(session, session.client.get_job(_name(job)))


@jobs.command("watch")
@click.argument("job")
@remote
def watch(session: Session, job: str) -> None:
    """Return when JOB has ended; with --json one line for each change. The exit code is that of its error."""
    _watch(session, _name(job))


@jobs.command("cancel")
@click.argument("job")
@remote
def cancel(session: Session, job: str) -> None:
    """End JOB; what was answered stays."""
    ended = session.client.cancel_job(_name(job))
    if session.as_json:
        show.print_json(ended)
    else:
        click.echo(f"{ended.name} is {show.field_word(ended, 'state')}")


@jobs.command("result")
@click.argument("job")
@click.option("--partial", is_flag=True, help="What is answered so far, also of a job that failed or was cancelled.")
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="File for one JSON line a text.")
@remote
def result(session: Session, job: str, partial: bool, output: Path | None) -> None:
    """Fetch the results of JOB."""
    found = session.client.job_result(_name(job), partial=partial)
    lines = _lines(found)
    if output is not None:
        output.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    if session.as_json:
        show.print_json(found.job if output is not None else {"job": found.job, "results": lines})
        return
    if output is None:
        show.table(
            ["#>", "tokens>", "vector"],
            [
                [
                    str(line["index"]),
                    f"{line.get('input_tokens', '')}{' (cut)' if line.get('truncated') else ''}",
                    f"{line['error']['reason']}: {line['error']['message']}" if "error" in line else _begin(line),
                ]
                for line in lines
            ],
            empty="no results",
        )
    else:
        click.echo(f"{output}: {len(lines)} results, {len(found.errors)} of them errors")


def _watch(session: Session, name: str) -> None:
    last = inference_pb2.InferenceJob()
    with bar(session, name, in_bytes=False) as advance:
        for event in session.client.watch_job(name, timeout=session.timeout_given):
            last = event.job
            advance(f"{name} {show.field_word(last, 'state')}", _answered(last), last.progress.inputs)
            if session.as_json:
                click.echo(json.dumps(show.as_json(last), ensure_ascii=False))
    if not session.as_json:
        _print(session, last)
    check_succeeded(last)


def _print(session: Session, job: inference_pb2.InferenceJob) -> None:
    if session.as_json:
        show.print_json(job)
        return
    failed = f", {job.progress.failed} with errors" if job.progress.failed else ""
    tokens = f", {job.progress.input_tokens} tokens" if job.progress.input_tokens else ""
    show.facts(
        [
            ("job", job.name),
            ("model", show.short(job.model_version)),
            ("state", show.field_word(job, "state")),
            ("answered", f"{_answered(job)} of {job.progress.inputs}{failed}{tokens}"),
            ("priority", show.field_word(job, "priority")),
            ("tenant", job.tenant),
            ("attempt", str(job.attempt or "")),
            ("waits", job.reason),
            ("error", f"{job.error.reason}: {job.error.message}" if job.HasField("error") else ""),
            ("created", show.ago(job.create_time)),
            ("ended", show.ago(job.end_time)),
            ("request id", job.request_id),
        ]
    )


def _lines(found: JobResult) -> list[dict[str, Any]]:
    rows = found.rows()
    return [
        {"index": one.index, "error": {"reason": one.error.reason, "message": one.error.message}}
        if one.WhichOneof("outcome") == "error"
        else {
            "index": one.index,
            "embedding": rows[one.index].tolist(),
            "input_tokens": one.embed.input_tokens,
            "truncated": one.embed.truncated,
        }
        for one in found.results
    ]


def _begin(line: dict[str, Any]) -> str:
    values = line["embedding"]
    return " ".join(f"{value:+.3f}" for value in values[:4]) + (" …" if len(values) > 4 else "")


def _answered(job: inference_pb2.InferenceJob) -> int:
    return job.progress.succeeded + job.progress.failed


def _name(job: str) -> str:
    return job if job.startswith("jobs/") else f"jobs/{job}"


COMMANDS: dict[str, click.Command] = {"jobs": jobs}
