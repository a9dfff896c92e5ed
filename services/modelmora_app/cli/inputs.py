"""`--file`: texts from the lines of a file, each of which stands for one, so that answers belong to lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import IO, Any

import click
from modelmora.errors import InvalidArgument


def file_option(words: str) -> Callable[[Any], Any]:
    """`--file`. What is not UTF-8 in it is found where the file is read, and named."""
    kind = click.File("r", encoding="utf-8", errors="surrogateescape")
    return click.option("--file", type=kind, help=f"{words}; - reads standard input.")


def texts_of(texts: Sequence[str], file: IO[str] | None) -> Iterator[str]:
    """The texts of the command line, then the lines as they are read. Raises UsageError where there is neither, and
    InvalidArgument at the line that is no text: were it left out, the answers behind it would belong to other lines.
    """
    given = chain(texts, _lines(file) if file else ())
    first = next(given, None)
    if first is None:
        raise click.UsageError(f"{_name(file)} has no lines." if file else "Give texts, or --file.")
    return chain([first], given)


def whole(file: IO[str]) -> str:
    """All that is in the file. Raises InvalidArgument."""
    return "".join(line for _, line in _decoded(file))


def _lines(file: IO[str]) -> Iterator[str]:
    for at, line in _decoded(file):
        if not line.strip():
            raise InvalidArgument.at(at, "is empty or only white space")
        yield line.removesuffix("\n")


def _decoded(file: IO[str]) -> Iterator[tuple[str, str]]:
    """Lines with their places, `texts.txt:3`."""
    for number, line in enumerate(file, 1):
        at = f"{_name(file)}:{number}"
        try:
            yield at, line.encode(errors="surrogateescape").decode()
        except UnicodeDecodeError as error:
            raise InvalidArgument.at(at, f"is not UTF-8: {error.reason} at byte {error.start}") from None


def _name(file: IO[str]) -> str:
    return str(getattr(file, "name", "-"))
