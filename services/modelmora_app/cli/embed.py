"""`modelmora embed`: texts in, vectors out."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterable, Sequence
from typing import IO

import click
from modelmora.requests import Embeddings, EmbedOptions

from modelmora_app.cli import show
from modelmora_app.cli.inputs import file_option, texts_of
from modelmora_app.cli.session import Session, remote


@click.command()
@click.argument("model")
@click.argument("texts", nargs=-1)
@file_option("One text for each line, none of them blank")
@click.option("--priority", type=click.Choice(["low", "medium", "high"]))
@click.option("--dimensions", type=click.IntRange(min=1), help="Keep the first n dimensions.")
@click.option("--no-normalize", is_flag=True, help="Leave the vectors as long as they come.")
@click.option("--no-truncate", is_flag=True, help="Refuse texts over the model's limit instead of cutting them.")
@click.option("--exact", is_flag=True, help="Demand the engine's exact profile.")
@click.option(
    "--cold",
    type=click.Choice(["wait", "fail-fast"]),
    help="When the model is not in memory: wait until it is (the default), or fail at once while it is loaded.",
)
@click.option("--fallback", metavar="MODEL", help="Answers while MODEL is not in memory.")
@click.option("--request-id", help="Names the call for `modelmora queue --request`.")
@click.option("--prompt", metavar="NAME", help="One of the model's prompts, to go before each text.")
@click.option(
    "--lines",
    is_flag=True,
    help="One JSON object for each text, as soon as it is known: for any number. A line that is blank or not UTF-8 "
    "ends it with an error, after the answers to all lines before it.",
)
@remote
def embed(
    session: Session,
    model: str,
    texts: tuple[str, ...],
    file: IO[str] | None,
    priority: str | None,
    dimensions: int | None,
    no_normalize: bool,
    no_truncate: bool,
    exact: bool,
    cold: str | None,
    fallback: str | None,
    request_id: str | None,
    prompt: str | None,
    lines: bool,
) -> None:
    """Turn TEXTS into vectors, one for each."""
    options: EmbedOptions = {
        "normalize": False if no_normalize else None,
        "truncate": False if no_truncate else None,
        "dimensions": dimensions,
        "priority": priority,
        "precision": "exact" if exact else None,
        "cold": cold,
        "fallback": fallback,
        "request_id": request_id,
        "prompt": prompt,
    }
    given = texts_of(texts, file)
    if lines:
        print_lines(session, model, given, options)
        return
    asked = list(given)
    answer = session.client.embed_detailed(model, asked, **options)
    if session.as_json:
        show.print_json(
            {
                "embeddings": [row.tolist() for row in answer.rows()],
                "input_tokens": list(answer.input_tokens),
                "truncated": list(answer.truncated),
                "usage": answer.usage,
                "timings": answer.timings,
                "model_version": answer.model_version,
                "digest": answer.digest,
                "engine_profile": answer.engine_profile,
                **({"energy": answer.energy} if answer.energy is not None else {}),
            }
        )
    else:
        print_answer(asked, answer)


def print_lines(session: Session, model: str, texts: Iterable[str], options: EmbedOptions) -> None:
    for _, answer in session.client.stream_embed_detailed(model, texts, **options):
        assert isinstance(answer, Embeddings)
        one = {"embedding": answer.rows()[0].tolist(), "input_tokens": answer.input_tokens[0]}
        click.echo(json.dumps(one | {"truncated": answer.truncated[0]}))


def print_answer(texts: Sequence[str], answer: Embeddings) -> None:
    """The vectors' beginnings, how alike the texts are, and what it cost."""
    rows = answer.rows()
    several = 1 < len(rows) <= 12
    numbers = [str(number) for number in range(1, len(rows) + 1)]
    show.table(
        ["#>", "text", "tokens>", "vector", *([f"~{number}>" for number in numbers] if several else [])],
        [
            [
                number,
                text if len(text) <= 60 else text[:59] + "…",
                f"{tokens}{' (cut)' if cut else ''}",
                " ".join(f"{value:+.3f}" for value in row[:4]) + (" …" if len(row) > 4 else ""),
                *([f"{cosine(row, other):.2f}" for other in rows] if several else []),
            ]
            for number, text, tokens, cut, row in zip(
                numbers, texts, answer.input_tokens, answer.truncated, rows, strict=True
            )
        ],
        empty="no vectors",
    )
    profile, timings = answer.engine_profile, answer.timings
    click.echo(
        f"\n{show.short(answer.model_version)} ({profile.backend} {profile.precision}): {answer.shape[0]} × "
        f"{answer.shape[1]} float32, {show.many(answer.usage.input_tokens, 'token')} in "
        f"{show.milliseconds(timings.total)} (queue {show.milliseconds(timings.queue)}, "
        f"tokenise {show.milliseconds(timings.tokenise)}, "
        f"compute {show.milliseconds(timings.compute)})"
    )


def cosine(one: array[float], other: array[float]) -> float:
    """Cosine similarity, [-1, 1]; 0 for a vector of zeros."""
    length = math.hypot(*one) * math.hypot(*other)
    return sum(a * b for a, b in zip(one, other, strict=True)) / length if length else 0.0


COMMANDS: dict[str, click.Command] = {"embed": embed}
