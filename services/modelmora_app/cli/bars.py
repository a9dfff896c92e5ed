"""Progress on standard error, where somebody watches: nothing is drawn for programs and with `--json`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from modelmora_app.cli import show
from modelmora_app.cli.session import Session

Advance = Callable[[str, int, int], None]
"""What is in work, how much of it is done, and of how much (0: unknown)."""


@contextmanager
def bar(session: Session, what: str, *, in_bytes: bool = True) -> Iterator[Advance]:
    """A bar that goes away at the end."""
    console = show.console(err=True)
    if session.as_json or not console.is_terminal:
        yield lambda what, done, total: None
        return
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    amount: Any = DownloadColumn(binary_units=True) if in_bytes else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda what, done, total: progress.update(task, description=what, completed=done, total=total or None)
