"""`modelmora jobs …`: tasks with many inputs in the background."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import click
from modelmora.inference.v1 import inference_pb2
from modelmora.jobs import JobResult, check_succeeded

from modelmora_app.cli import show
from modelmora_app.cli.bars import bar
from modelmora_app.cli.inputs import file_option, texts_of
from modelmora_app.cli.session import Session, remote, seconds_of
from modelmora_app.cli.tasks import listed, read_file

OF_TASKS = {
    "embed": {"normalize", "truncate", "dimensions", "prompt"},
    "classify": {"truncate", "top_n", "raw_scores"},
    "rerank": {"truncate", "top_n", "raw_scores", "query"},
    "answer": {"top_n", "question"},
    "predict": set[str](),
}
"""Which options the tasks have."""
COMMON = {"priority", "precision", "job_timeout", "result_ttl", "request_id"}
TASKS = tuple(OF_TASKS)
STATES = ("pending", "queued", "running", "cancelling", "succeeded", "failed", "cancelled")


@click.group("jobs")
def jobs() -> None:
    """Do a task with many inputs in the background. A JOB is a name, jobs/UID, or the UID alone."""


@jobs.command("create")
@click.argument("model")
@click.argument("texts", nargs=-1)
@click.option(
    "--task", type=click.Choice(TASKS), default="embed", show_default=True, help="What to do with the inputs."
)
@file_option("One input for each line, none of them blank")
@click.option("--query", help="What the texts of a rerank job answer.")
@click.option("--question", help="What is looked for in the texts of an answer job.")
@click.option("--priority", type=click.Choice(["low", "medium", "high"]), help="Default: low.")
@click.option("--dimensions", type=click.IntRange(min=1), help="Keep the first n dimensions.")
@click.option("--prompt", help="One of the model's prompts, to go before each text.")
@click.option(
    "--no-normalize", "normalize", flag_value=False, default=None, help="Leave the vectors as long as they come."
)
@click.option(
    "--no-truncate",
    "truncate",
    flag_value=False,
    default=None,
    help="Texts over the model's limit get an error instead of being cut.",
)
@click.option(
    "--top", "top_n", type=click.IntRange(min=1), help="Only the best n labels, texts or answers of each input."
)
@click.option("--raw", "raw_scores", is_flag=True, default=None, help="Scores as the model gives them.")
@click.option("--exact", "precision", flag_value="exact", help="Demand the engine's exact profile.")
@click.option(
    "--within", "job_timeout", callback=seconds_of, metavar="TIME", help="It fails when it has not ended by then. [24h]"
)
@click.option("--keep", "result_ttl", callback=seconds_of, metavar="TIME", help="So long are its results kept. [24h]")
@click.option("--request-id", help="Makes this command safe to repeat.")
@click.option("--wait", is_flag=True, help="Return when it has ended.")
@remote
def create(
    session: Session,
    model: str,
    texts: tuple[str, ...],
    task: str,
    file: IO[str] | None,
    query: str | None,
    question: str | None,
    wait: bool,
    **options: Any,
) -> None:
    """Accept inputs, to be done in the background.

    TEXTS, or the lines of --file, are up to 2048 inputs to embed or classify. Of the other tasks, up to 100 inputs, a
    line is JSON: {"query": "…", "texts": ["…"]} to rerank, {"question": "…", "context": "…"} to answer, and tensors by
    name to predict, {"texts": ["…"]} or {"images": ["@cat.png"]}. With --query the TEXTS are one input to rerank, with
    --question each of them is a context.
    """
    asked = {name: value for name, value in options.items() if value is not None}
    client = session.client
    given = {*asked, *(name for name, value in (("query", query), ("question", question)) if value is not None)}
    if wrong := given - COMMON - OF_TASKS[task]:
        raise click.UsageError(f"A job to {task} has no option {', '.join(sorted(wrong))}.")
    lines = list(texts_of(texts, file))
    if task == "embed":
        made = client.create_embed_job(model, lines, **asked)
    elif task == "classify":
        made = client.create_classify_job(model, lines, **asked)
    elif task == "rerank":
        inputs = [(query, lines)] if query is not None else [_fields(line, "query", "texts") for line in lines]
        made = client.create_rerank_job(model, inputs, **asked)
    elif task == "answer":
        pairs = [(question, line) if question is not None else _fields(line, "question", "context") for line in lines]
        made = client.create_answer_question_job(model, pairs, **asked)
    else:
        made = client.create_predict_job(model, [_tensors(line) for line in lines], **asked)
    job = made.message
    if wait:
        _watch(session, job.name)
    elif session.as_json:
        show.print_json(job)
    else:
        click.echo(f"{job.name}: {show.many(job.progress.inputs, 'input')} for {show.short(job.model_version)}")


def _fields(line: str, *names: str) -> tuple[Any, ...]:
    found = _object(line)
    if found.keys() != set(names):
        raise click.UsageError(f"A line is an object with {' and '.join(names)}, not {line[:60]!r}.")
    return tuple(found[name] for name in names)


def _tensors(line: str) -> dict[str, list[str | bytes]]:
    """Tensors by name; a text that begins with @ names a file."""
    return {
        name: [read_file(one[1:]) if isinstance(one, str) and one.startswith("@") else one for one in values]
        for name, values in _object(line).items()
    }


def _object(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise click.UsageError(f"A line is a JSON object, not {line[:60]!r}.")
    return found


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
            ["#>", "tokens>", "result"],
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
        click.echo(f"{output}: {show.many(len(lines), 'result')}, {len(found.errors)} of them errors")


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
    tokens = f", {show.many(job.progress.input_tokens, 'token')}" if job.progress.input_tokens else ""
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
    rows, predictions = found.rows(), found.predictions()
    return [_line(one, rows, predictions) for one in found.results]


def _line(
    one: inference_pb2.InferenceResult, rows: Mapping[int, Any], predictions: Mapping[int, Mapping[str, Any]]
) -> dict[str, Any]:
    outcome = one.WhichOneof("outcome")
    line: dict[str, Any] = {"index": one.index}
    if outcome == "error":
        return line | {"error": {"reason": one.error.reason, "message": one.error.message}}
    line["input_tokens"] = one.usage.input_tokens
    if outcome == "embed":
        return line | {"embedding": rows[one.index].tolist(), "truncated": one.embed.truncated}
    if outcome == "classify":
        return line | {"labels": show.as_json(one.classify.labels), "truncated": one.classify.truncated}
    if outcome == "rerank":
        return line | {"ranked": show.as_json(one.rerank.ranked)}
    if outcome == "answer_question":
        return line | {"answers": show.as_json(one.answer_question.answers)}
    outputs = {name: listed(value) for name, value in predictions[one.index].items()}
    return line | {"outputs": outputs, "labels": list(one.predict.labels)}


def _begin(line: dict[str, Any]) -> str:
    if "embedding" in line:
        values = line["embedding"]
        return " ".join(f"{value:+.3f}" for value in values[:4]) + (" …" if len(values) > 4 else "")
    if "ranked" in line:
        return "  ".join(f"#{one['index']} {one['score']:.4f}" for one in line["ranked"][:5])
    if "answers" in line:
        return "  ".join(f"{one['text']} {one['score']:.4f}" for one in line["answers"][:3])
    if "outputs" in line:
        return "  ".join(f"{name} {str(values)[:60]}" for name, values in line["outputs"].items())
    return "  ".join(f"{one['label']} {one['score']:.4f}" for one in line["labels"][:5])


def _answered(job: inference_pb2.InferenceJob) -> int:
    return job.progress.succeeded + job.progress.failed


def _name(job: str) -> str:
    return job if job.startswith("jobs/") else f"jobs/{job}"


COMMANDS: dict[str, click.Command] = {"jobs": jobs}
