"""How answers are printed: tables for people, JSON for programs, errors as clear lines."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
from modelmora.errors import ModelMoraError

from modelmora_app.cli import JSON_KEY

if TYPE_CHECKING:
    from rich.console import Console

_ADVICE = {
    "ModelNotFound": "`modelmora models` lists what is registered.",
    "VersionNotFound": "`modelmora models show MODEL` lists its versions and aliases.",
    "ReplicaNotFound": "`modelmora ps` lists what is in memory.",
    "VersionIsCurrent": "Move the alias first (`modelmora models alias set`), or use --force.",
    "VersionInUse": "Run `modelmora unload MODEL` first. Who still calls it or has jobs of it loads it again: "
    "`modelmora jobs list --model MODEL` lists those, `modelmora jobs cancel JOB` ends one.",
    "VersionDrifted": "`modelmora models verify MODEL` says which files differ.",
    "LockNotFound": "`modelmora lock list` lists what the registry keeps.",
    "JobNotFound": "`modelmora jobs list` lists those that are kept.",
    "ResultNotReady": "`modelmora jobs watch JOB` waits for it; --partial takes what is there.",
    "VersionNotReady": "`modelmora models show MODEL` says how far it is.",
    "NeverFits": "`modelmora explain MODEL` has the arithmetic; `modelmora node set --budget` changes the budget.",
    "NodeCordoned": "`modelmora uncordon` lets it load models again.",
    "LoadFailed": "The worker's log in the folder `logs` of the data folder may say more.",
    "OutOfMemory": "Import a version that declares more (`modelmora import --memory`), or raise the budget "
    "(`modelmora node set --budget`).",
    "MemoryBusy": "`modelmora explain MODEL` says what it waits for; `modelmora ps` lists what could be unloaded.",
    "TokenMissing": "Set MODELMORA_TOKEN or --token; `modelmora token create` makes one on the server.",
    "TokenInvalid": "Check MODELMORA_TOKEN or --token; `modelmora token create` makes a new one on the server.",
    "TokenExpired": "`modelmora token create` makes a new one on the server.",
}


def error_lines(error: ModelMoraError) -> list[str]:
    """What went wrong, where, and what to do. With `--json` one line of JSON."""
    context = click.get_current_context(silent=True)
    if context is not None and context.meta.get(JSON_KEY):
        fields = [{"field": violation.field, "description": violation.description} for violation in error.fields]
        content: dict[str, Any] = {"reason": error.reason, "status": error.status, "message": error.message}
        content |= {"fields": fields, "metadata": dict(error.metadata)}
        if error.retry_after_seconds is not None:
            content["retry_after_seconds"] = error.retry_after_seconds
        return [json.dumps({"error": content})]
    lines = [f"modelmora: {error.message} ({error.reason})" if error.reason not in error.message else error.message]
    places = [f"{violation.field}: {violation.description}" for violation in error.fields]
    # A server cuts what is long, the description before the message.
    lines += [f"  {place}" for place in places if place.removesuffix("…") not in error.message]
    facts = [f"{key}={value}" for key, value in error.metadata.items() if value and value not in error.message]
    if facts:
        lines.append("  " + ", ".join(facts))
    if error.reason in _ADVICE and "force" not in error.message:
        # Of a version that is not there only its model can be shown.
        key = "version" if error.status == "FAILED_PRECONDITION" else ""
        model = error.metadata.get("model_version") or error.metadata.get(key)
        lines.append("  " + (_ADVICE[error.reason].replace("MODEL", short(model)) if model else _ADVICE[error.reason]))
    elif error.reason == "Unavailable" and error.retry_after_seconds is None:  # no word of a server's
        lines.append(
            "  Is the platform running? `modelmora up` starts it; --target or MODELMORA_TARGET says where it is."
        )
    if error.retry_after_seconds is not None and error.reason != "Unavailable":
        lines.append(f"  Try again in {max(0.1, round(error.retry_after_seconds, 1)):g} s.")
    return lines


def print_json(value: Any) -> None:
    """A message, or anything made of messages, lists and dicts."""
    click.echo(json.dumps(as_json(value), ensure_ascii=False, indent=2))


def as_json(value: Any) -> Any:
    """A message as plain values: snake_case, lower-case enums without prefix, UTC times and durations in ISO 8601,
    unset fields left out, zeros kept, 64-bit integers as numbers.
    """
    if hasattr(value, "DESCRIPTOR"):
        return _message(value)
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [as_json(item) for item in value]
    return value


def _message(message: Any) -> Any:
    kind = message.DESCRIPTOR.full_name
    if kind == "google.protobuf.Timestamp":
        return message.ToDatetime(tzinfo=UTC).isoformat().replace("+00:00", "Z")
    if kind == "google.protobuf.Duration":
        return f"PT{message.ToNanoseconds() / 1e9:.9f}".rstrip("0").rstrip(".") + "S"
    if kind == "google.protobuf.Struct":
        from google.protobuf.json_format import MessageToDict

        return _with_integers(MessageToDict(message))
    content: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.has_presence and not message.HasField(field.name):
            continue
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            content[field.name] = {str(key): as_json(value[key]) for key in value}
        elif field.enum_type is None:
            content[field.name] = as_json(value)
        elif isinstance(value, int):
            content[field.name] = enum_word(field.enum_type, value)
        else:
            content[field.name] = [enum_word(field.enum_type, item) for item in value]
    return content


def _with_integers(value: Any) -> Any:
    """A Struct knows floats only; 8.0 was an 8."""
    if isinstance(value, dict):
        return {key: _with_integers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_integers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def enum_word(enum: Any, number: int) -> str | int:
    """`READY` of `MODEL_VERSION_STATE_READY` as `ready`; a number that this release does not know stays one."""
    value = enum.values_by_number.get(number)
    if value is None:
        return number
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return str(value.name).removeprefix(prefix).lower()


def field_word(message: Any, field: str) -> str:
    """The word of an enum field for a table; empty where unspecified."""
    if not getattr(message, field):
        return ""
    return str(enum_word(message.DESCRIPTOR.fields_by_name[field].enum_type, getattr(message, field)))


def console(*, err: bool = False) -> Console:
    """A console that never cuts words when the output is read by a program."""
    from rich.console import Console

    made = Console(stderr=err, highlight=False, emoji=False, markup=False)
    return made if made.is_terminal else Console(stderr=err, highlight=False, emoji=False, markup=False, width=250)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, empty: str) -> None:
    """Prints rows below upper-case column names; columns that end in `>` are numbers and go right. `empty` is said
    instead when there are none.
    """
    rows = list(rows)
    if not rows:
        click.echo(empty)
        return
    from rich.table import Table

    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        right = column.endswith(">")
        grid.add_column(column.rstrip(">").upper(), justify="right" if right else "left", overflow="fold")
    for row in rows:
        grid.add_row(*row)
    screen = console()
    with screen.capture() as captured:
        screen.print(grid)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def facts(pairs: Iterable[tuple[str, str]]) -> None:
    """Prints names and values in two columns; empty values are left out."""
    pairs = [(name, value) for name, value in pairs if value]
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        click.echo(f"{name:<{width}}  {value}")


def size(size_bytes: int) -> str:
    """Bytes for people, in binary units."""
    amount = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(amount) < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def count(number: int) -> str:
    """A number for people: 22.7 M."""
    amount, units = float(number), ("", " k", " M", " B", " T")
    for unit in units:
        if amount < 1000 or unit == units[-1]:
            break
        amount /= 1000
    return f"{amount:.0f}{unit}" if not unit or amount >= 100 else f"{amount:.1f}{unit}"


def many(number: int, word: str) -> str:
    """1 token, 2 tokens."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def ago(time: Any, *, now: datetime | None = None) -> str:
    """How long ago a Timestamp was; empty when it is unset."""
    if not time.seconds:
        return ""
    seconds = max(((now or datetime.now(UTC)) - time.ToDatetime(tzinfo=UTC)).total_seconds(), 0)
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def span(duration: Any) -> str:
    """A Duration for people."""
    seconds = duration.ToNanoseconds() / 1e9
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


def milliseconds(duration: Any) -> str:
    return f"{duration.ToNanoseconds() / 1e6:.1f} ms"


def tail(uid: str) -> str:
    """The end of a UUIDv7, enough to tell some apart: it begins with the time, which many have in common."""
    return uid[-8:]


def short(name: str) -> str:
    """`org/repo@version` of a resource name."""
    parts = name.split("/")
    if len(parts) >= 5 and parts[0] == "models" and parts[3] == "versions":
        return f"{parts[1]}/{parts[2]}@{'/'.join(parts[4:])}"  # a tuning's candidate has a profile after it
    return "/".join(parts[1:]) if len(parts) == 3 and parts[0] == "models" else name
