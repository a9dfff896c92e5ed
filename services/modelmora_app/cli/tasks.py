"""`modelmora rerank`, `classify`, `answer`, `predict`, `tokenize`, `describe`: tasks other than embedding, and what
models do."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import click
from modelmora.tensors import Prediction

from modelmora_app.cli import show
from modelmora_app.cli.inputs import file_option, texts_of, whole
from modelmora_app.cli.session import Session, remote


def _call_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of every task. The command gets them as `call`, ready for the SDK."""
    for option in (
        click.option("--request-id", help="Names the call for `modelmora queue --request`."),
        click.option("--fallback", metavar="MODEL", help="Answers while MODEL is not in memory."),
        click.option(
            "--cold",
            type=click.Choice(["wait", "fail-fast"]),
            help="When the model is not in memory: wait until it is (the default), or fail at once while it is loaded.",
        ),
        click.option("--exact", "precision", flag_value="exact", help="Demand the engine's exact profile."),
        click.option("--priority", type=click.Choice(["low", "medium", "high"])),
    ):
        command = option(command)
    return command


_file = file_option("One text for each line, none of them blank")
_top = click.option("--top", "top_n", type=click.IntRange(min=1), help="Only the best n.")
_cut = click.option(
    "--no-truncate", "truncate", flag_value=False, default=None, help="Refuse what is over the model's limit."
)
_raw = click.option("--raw", "raw_scores", is_flag=True, help="Scores as the model gives them.")


@click.command()
@click.argument("model")
@click.argument("query")
@click.argument("texts", nargs=-1)
@_file
@_top
@_raw
@_cut
@_call_options
@remote
def rerank(
    session: Session, model: str, query: str, texts: tuple[str, ...], file: IO[str] | None, **options: Any
) -> None:
    """Sort TEXTS by how well they answer QUERY."""
    asked = list(texts_of(texts, file))
    told = session.client.rerank(model, query, asked, **options)
    if session.as_json:
        show.print_json(told)
        return
    show.table(
        ["score>", "text", "tokens>"],
        [[f"{rank.score:.4f}", _short(asked[rank.index]), _tokens(rank)] for rank in told.ranked],
        empty="no texts",
    )
    _cost(told)


@click.command()
@click.argument("model")
@click.argument("texts", nargs=-1)
@click.option("--pair", "pairs", multiple=True, help="The second text of each; as often as there are texts.")
@_file
@_top
@_raw
@_cut
@_call_options
@remote
def classify(
    session: Session, model: str, texts: tuple[str, ...], pairs: tuple[str, ...], file: IO[str] | None, **options: Any
) -> None:
    """Give TEXTS labels with scores."""
    asked = list(texts_of(texts, file))
    told = session.client.classify(model, asked, pairs=pairs, **options)
    if session.as_json:
        show.print_json(told)
        return
    show.table(
        ["text", "labels", "tokens>"],
        [
            [_short(text), "  ".join(f"{one.label} {one.score:.4f}" for one in found.labels), _tokens(found)]
            for text, found in zip(asked, told.classifications, strict=True)
        ],
        empty="no texts",
    )
    _cost(told)


@click.command()
@click.argument("model")
@click.argument("question")
@click.argument("context", required=False)
@file_option("The context")
@click.option("--top", "top_n", type=click.IntRange(1, 20), help="So many answers, the best ones.")
@click.option("--max-answer-tokens", type=click.IntRange(1, 512), help="Tokens of an answer at most. Default 30.")
@_call_options
@remote
def answer(
    session: Session, model: str, question: str, context: str | None, file: IO[str] | None, **options: Any
) -> None:
    """Find the answer to QUESTION in CONTEXT."""
    if (context is None) == (file is None):
        raise click.UsageError("Give the context, or --file.")
    told = session.client.answer_question(model, question, context or (whole(file) if file else ""), **options)
    if session.as_json:
        show.print_json(told)
        return
    show.table(
        ["score>", "answer", "characters"],
        [[f"{one.score:.4f}", _short(one.text), f"{one.start}–{one.end}"] for one in told.answers],
        empty="no answer",
    )
    _cost(told)


@click.command()
@click.argument("model")
@click.argument("inputs", nargs=-1, required=True, metavar="NAME=VALUE...")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Option of the task: raw_scores=true.")
@click.option("--output", "outputs", multiple=True, metavar="NAME", help="Only this output; may be repeated.")
@_call_options
@remote
def predict(
    session: Session,
    model: str,
    inputs: tuple[str, ...],
    settings: tuple[str, ...],
    outputs: tuple[str, ...],
    **options: Any,
) -> None:
    """Do MODEL's task with named inputs, as `modelmora describe` tells them.

    A VALUE is a text, or @FILE for what is in a file, such as an image. A name that is there several times has several
    elements.
    """
    tensors: dict[str, list[str | bytes]] = {}
    for given in inputs:
        name, value = _pair(given)
        tensors.setdefault(name, []).append(read_file(value[1:]) if value.startswith("@") else value)
    told = session.client.predict(
        model,
        tensors,
        parameters={name: _json(value) for name, value in map(_pair, settings)},
        outputs=outputs,
        **options,
    )
    values = {output.name: listed(told[output.name]) for output in told.message.outputs}
    if session.as_json:
        answer = show.as_json(told.message)
        for output, shown in zip(told.message.outputs, answer.get("outputs", []), strict=True):
            del shown["tensor"]["data"]
            shown["tensor"]["values"] = values[output.name]
        show.print_json(answer)
        return
    show.table(
        ["output", "#>", "values"],
        [
            [name, str(index), _labelled(row, told) if name == "scores" else _short(_words(row))]
            for name, rows in values.items()
            for index, row in enumerate(rows)
        ],
        empty="nothing",
    )
    _cost(told)


@click.command()
@click.argument("model")
@click.argument("texts", nargs=-1)
@_file
@click.option("--plain", is_flag=True, help="Without the tokens that the tokenizer adds by itself.")
@remote
def tokenize(session: Session, model: str, texts: tuple[str, ...], file: IO[str] | None, plain: bool) -> None:
    """Show what a model's tokenizer makes of TEXTS."""
    asked = list(texts_of(texts, file))
    told = session.client.tokenize(model, asked, add_special_tokens=not plain)
    if session.as_json:
        show.print_json(told)
        return
    show.table(
        ["text", "tokens>", "pieces"],
        [
            [
                _short(text),
                str(len(found.tokens)),
                " ".join("·" if one.special else text[one.start : one.end] for one in found.tokens[:40])
                + (" …" if len(found.tokens) > 40 else ""),
            ]
            for text, found in zip(asked, told.texts, strict=True)
        ],
        empty="no texts",
    )


@click.command()
@click.argument("model")
@remote
def describe(session: Session, model: str) -> None:
    """Show what MODEL takes and gives, and its limits."""
    told = session.client.describe_model(model)
    if session.as_json:
        show.print_json(told)
        return
    show.table(
        ["", "name", "type", "shape"],
        [
            [way, one.name, one.datatype, " × ".join("any" if size < 0 else str(size) for size in one.shape)]
            for way, tensors in (("takes", told.inputs), ("gives", told.outputs))
            for one in tensors
        ],
        empty="nothing here does its task",
    )
    limits = [f"{told.max_input_tokens} tokens"] if told.max_input_tokens else []
    limits += [f"{told.max_texts} texts of {told.max_text_characters} characters in a call"]
    if told.max_image_bytes:
        limits += [f"images of {told.max_image_bytes:,} bytes and {told.max_image_pixels:,} pixels"]
        limits += [f"{told.max_resized_pixels:,} once the model's processor has resized them"]
    click.echo(f"\n{show.short(told.model_version)}: at most {', '.join(limits)}")
    if told.labels:
        click.echo(f"labels: {', '.join(told.labels)}")


def _pair(given: str) -> tuple[str, str]:
    name, found, value = given.partition("=")
    if not found or not name:
        raise click.UsageError(f"{given!r} is not NAME=VALUE.")
    return name, value


def read_file(path: str) -> bytes:
    """What @PATH on the command line stands for."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise click.UsageError(f"{path}: {error.strerror}") from None


def _json(value: str) -> Any:
    """A number, true, false or null; anything else is a text."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def listed(value: Any) -> list[Any]:
    """Nested lists, with texts where bytes are UTF-8."""
    rows = value.tolist() if hasattr(value, "tolist") else value
    return [row.decode(errors="replace") if isinstance(row, bytes) else row for row in rows]


def _labelled(row: Any, told: Prediction) -> str:
    """The best labels of one row of scores."""
    if not isinstance(row, list) or len(row) != len(told.labels):
        return _words(row)
    best = sorted(zip(told.labels, row, strict=True), key=lambda one: -one[1])[:5]
    return "  ".join(f"{label} {score:.4f}" for label, score in best)


def _words(row: Any) -> str:
    numbers: Sequence[Any] = row if isinstance(row, list) else [row]
    shown = [f"{one:.4f}" if isinstance(one, float) else str(one) for one in numbers[:5]]
    return " ".join(shown) + (" …" if len(numbers) > 5 else "")


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"


def _tokens(row: Any) -> str:
    return f"{row.input_tokens}{' (cut)' if row.truncated else ''}"


def _cost(told: Any) -> None:
    profile, timings = told.engine_profile, told.timings
    click.echo(
        f"\n{show.short(told.model_version)} ({profile.backend} {profile.precision}): "
        f"{show.many(told.usage.input_tokens, 'token')} in {show.milliseconds(timings.total)}"
        f" (queue {show.milliseconds(timings.queue)}, tokenise {show.milliseconds(timings.tokenise)}, "
        f"compute {show.milliseconds(timings.compute)})"
    )


COMMANDS: dict[str, click.Command] = {
    "rerank": rerank,
    "classify": classify,
    "answer": answer,
    "predict": predict,
    "tokenize": tokenize,
    "describe": describe,
}
