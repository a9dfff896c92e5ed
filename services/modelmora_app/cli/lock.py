"""`modelmora lock …`: everything that decides the answers of models, written down, compared, brought elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from modelmora.registry.v1 import registry_pb2

from modelmora_app.cli import show
from modelmora_app.cli.bars import bar
from modelmora_app.cli.session import Session, remote

MAX_SHOWN = 72
"""Letters of a value in a table; `--json` has them whole."""
MAX_NAMED = 5
"""Versions in a warning."""


@click.group("lock")
def lock() -> None:
    """Write down what decides the answers of models, see what drifted, bring a machine to it.

    A LOCK is a file, `-` for standard input, or the name of a lock that the registry keeps.
    """


@lock.command("create")
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="File for the YAML.")
@click.option("--name", "lock_id", default="", metavar="NAME", help="Name in the registry. Default: from its content.")
@remote
def create(session: Session, models: tuple[str, ...], output: Path | None, lock_id: str) -> None:
    """Lock these models; without any, the current version of every model."""
    made = session.client.create_lock(*models, lock_id=lock_id)
    if output is not None:
        _write(output, made.yaml)
    # Without files there is nothing of which answers could change unnoticed, and none is ever taken.
    bare = [each.model_version for each in made.model_lock.models if each.files and not each.HasField("fingerprint")]
    if session.as_json:
        show.print_json({**show.as_json(made.model_lock), "without_fingerprint": bare})
    elif output is None:
        click.echo(made.yaml, nl=False)
    else:
        count = len(made.model_lock.models)
        click.echo(f"{output}: {count} model{'s' if count != 1 else ''}, {_short_name(made.model_lock)}")
    if bare and not session.as_json:
        names = ", ".join(show.short(name) for name in bare[:MAX_NAMED])
        more = f" and {len(bare) - MAX_NAMED} more" if len(bare) > MAX_NAMED else ""
        click.echo(
            f"warning: no fingerprint of {names}{more}: `lock verify` will not notice other answers. One is taken a "
            "moment after a version that answers texts is loaded; lock again then.",
            err=True,
        )


@lock.command("verify")
@click.argument("lock", metavar="LOCK")
@click.option("--full", is_flag=True, help="Hash every file, whatever the file system says.")
@remote
def verify(session: Session, lock: str, full: bool) -> None:
    """Say exactly what drifted between LOCK and the registry. Exit code 1 when anything did."""
    given = _given(lock)
    checked: list[registry_pb2.VerifyModelLockResponse] = []
    intact = False
    with bar(session, "models", in_bytes=False) as advance:
        for answer in session.client.verify_lock(given, full=full, timeout=session.timeout_given):
            if answer.done:
                intact = answer.intact
                break
            checked.append(answer)
            advance(show.short(answer.model_version), len(checked), given.count("- model_version:"))
    if session.as_json:
        show.print_json({"intact": intact, "models": checked})
    else:
        drifted = [answer for answer in checked if answer.drifts]
        for answer in drifted:
            click.echo(f"{show.short(answer.model_version)} drifted:")
            _show_drifts(answer.drifts)
        click.echo(f"{len(checked) - len(drifted)} of {len(checked)} as locked")
    if not intact:
        raise SystemExit(1)


@lock.command("diff")
@click.argument("left", metavar="LOCK")
@click.argument("right", metavar="LOCK")
@remote
def diff(session: Session, left: str, right: str) -> None:
    """Say what differs between two locks. Exit code 1 when anything does."""
    found = session.client.diff_locks(_given(left), _given(right))
    if session.as_json:
        show.print_json({"drifts": found})
    elif found:
        _show_drifts(found)
    else:
        click.echo("no difference")
    if found:
        raise SystemExit(1)


@lock.command("apply")
@click.argument("lock", metavar="LOCK")
@click.option(
    "--mirror",
    default="",
    metavar="DIR|URL",
    help="Take files from here: a folder below a model root of the server, or a URL. Default: the sources in the lock.",
)
@click.option("--promote", is_flag=True, help="Point `production` of each model at its locked version.")
@remote
def apply(session: Session, lock: str, mirror: str, promote: bool) -> None:
    """Import what LOCK names and is missing, each file verified. Nothing that is there is changed or deleted."""
    given = _given(lock)
    if mirror and "://" not in mirror:
        mirror = str(Path(mirror).expanduser().resolve())
    ended: list[registry_pb2.ApplyModelLockResponse] = []
    converged = False
    with bar(session, "locked files") as advance:
        answers = session.client.apply_lock(given, mirror=mirror, promote=promote, timeout=session.timeout_given)
        for answer in answers:
            converged = answer.converged
            advance(show.short(answer.model_version), answer.done_bytes, answer.total_bytes)
            if answer.outcome:
                ended.append(answer)
    if session.as_json:
        rows = [{"model_version": each.model_version, "outcome": each.outcome, "reason": each.reason} for each in ended]
        show.print_json({"converged": converged, "models": rows})
    else:
        for each in ended:
            click.echo(f"{show.short(each.model_version)}: {each.outcome}{f': {each.reason}' if each.reason else ''}")
    if not converged:
        raise SystemExit(1)


@lock.command("list")
@remote
def list_(session: Session) -> None:
    """List the locks that the registry keeps."""
    found = list(session.client.list_locks())
    if session.as_json:
        show.print_json(found)
        return
    show.table(
        ["lock", "digest", "created"],
        [[_short_name(each), each.digest, show.ago(each.create_time)] for each in found],
        empty="no locks yet; `modelmora lock create` makes one",
    )


@lock.command("show")
@click.argument("name")
@remote
def show_(session: Session, name: str) -> None:
    """Print a lock that the registry keeps, as YAML."""
    if session.as_json:
        show.print_json(session.client.get_lock(name))
    else:
        click.echo(session.client.render_lock(name), nl=False)


@lock.command("delete")
@click.argument("name")
@remote
def delete(session: Session, name: str) -> None:
    """Delete a lock that the registry keeps; no model changes."""
    session.client.delete_lock(name)
    if session.as_json:
        show.print_json({"deleted": name})
    else:
        click.echo(f"deleted {name}")


def _given(lock: str) -> str:
    """The text of a lock, or the name of one that the registry keeps."""
    if lock == "-":
        text = sys.stdin.read()
    elif Path(lock).is_file():
        text = Path(lock).read_text(encoding="utf-8", errors="replace")
    elif "/" in lock.removeprefix("modelLocks/") or lock.endswith((".yaml", ".yml", ".lock")):
        raise click.UsageError(f"There is no file {lock}.")
    else:
        return lock
    return text if "\n" in text else text + "\n"


def _write(output: Path, text: str) -> None:
    """There with all of `text`, or as it was. What is no regular file (`/dev/null`, a pipe) is never replaced."""
    output = output.resolve()
    if output.exists() and not output.is_file():
        output.write_text(text, encoding="utf-8")
        return
    spare = output.with_name(f".{output.name}.new")
    spare.write_text(text, encoding="utf-8")
    spare.replace(output)


def _short_name(lock: registry_pb2.ModelLock) -> str:
    return lock.name.removeprefix("modelLocks/")


def _show_drifts(drifts: Iterable[registry_pb2.Drift]) -> None:
    show.table(
        ["what", "locked", "found"],
        [[drift.field, _cut(drift.locked), _cut(drift.found)] for drift in drifts],
        empty="",
    )


def _cut(text: str) -> str:
    return "-" if not text else text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


COMMANDS: dict[str, Any] = {"lock": lock}
