"""`modelmora rerank`, `modelmora classify`: tasks other than embedding."""

from __future__ import annotations

from collections.abc import Callable
from typing import IO, Any

import click

from modelmora_app.cli import show
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
        click.option(
            "--no-truncate", "truncate", flag_value=False, default=None, help="Refuse what is over the model's limit."
        ),
        click.option("--priority", type=click.Choice(["low", "medium", "high"])),
    ):
        command = option(command)
    return command


_file = click.option("--file", type=click.File("r", encoding="utf-8"), help="One text for each line; - reads stdin.")
_top = click.option("--top", "top_n", type=click.IntRange(min=1), help="Only the best n.")
_raw = click.option("--raw", "raw_scores", is_flag=True, help="Scores as the model gives them.")


@click.command()
@click.argument("model")
@click.argument("query")
@click.argument("texts", nargs=-1)
@_file
@_top
@_raw
@_call_options
@remote
def rerank(
    session: Session, model: str, query: str, texts: tuple[str, ...], file: IO[str] | None, **options: Any
) -> None:
    """Sort TEXTS by how well they answer QUERY."""
    asked = _texts(texts, file)
    answer = session.client.rerank(model, query, asked, **options)
    if session.as_json:
        show.print_json(answer)
        return
    show.table(
        ["score>", "text", "tokens>"],
        [[f"{rank.score:.4f}", _short(asked[rank.index]), _tokens(rank)] for rank in answer.ranked],
        empty="no texts",
    )
    _cost(answer)


@click.command()
@click.argument("model")
@click.argument("texts", nargs=-1)
@click.option("--pair", "pairs", multiple=True, help="The second text of each; as often as there are texts.")
@_file
@_top
@_raw
@_call_options
@remote
def classify(
    session: Session, model: str, texts: tuple[str, ...], pairs: tuple[str, ...], file: IO[str] | None, **options: Any
) -> None:
    """Give TEXTS labels with scores."""
    asked = _texts(texts, file)
    answer = session.client.classify(model, asked, pairs=pairs, **options)
    if session.as_json:
        show.print_json(answer)
        return
    show.table(
        ["text", "labels", "tokens>"],
        [
            [_short(text), "  ".join(f"{one.label} {one.score:.4f}" for one in found.labels), _tokens(found)]
            for text, found in zip(asked, answer.classifications, strict=True)
        ],
        empty="no texts",
    )
    _cost(answer)


def _texts(texts: tuple[str, ...], file: IO[str] | None) -> list[str]:
    asked = [*texts, *(line.rstrip("\n") for line in file or () if line.strip())]
    if not asked:
        raise click.UsageError("Give texts, or --file.")
    return asked


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"


def _tokens(row: Any) -> str:
    return f"{row.input_tokens}{' (cut)' if row.truncated else ''}"


def _cost(answer: Any) -> None:
    profile, timings = answer.engine_profile, answer.timings
    click.echo(
        f"\n{show.short(answer.model_version)} ({profile.backend} {profile.precision}): "
        f"{answer.usage.input_tokens} tokens in {show.milliseconds(timings.total)}"
        f" (queue {show.milliseconds(timings.queue)}, tokenise {show.milliseconds(timings.tokenise)}, "
        f"compute {show.milliseconds(timings.compute)})"
    )


COMMANDS: dict[str, click.Command] = {"rerank": rerank, "classify": classify}
