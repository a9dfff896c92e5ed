"""What every command that calls the platform shares: `--target`, `--token`, `--timeout`, `--json`, and the client."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from modelmora.client import Client
from modelmora.requests import DEFAULT_TARGET
from modelmora.retry import RetryPolicy

from modelmora_app.cli import json_option


@dataclass(frozen=True)
class Session:
    """One invocation: a client, and how to print."""

    client: Client
    as_json: bool
    timeout_given: float | None
    """What `--timeout` said; commands that wait for long work wait without end when it said nothing."""


def remote(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the shared options and a `Session` as its first argument. The options may also stand before the
    command's name.
    """

    @click.option("--target", metavar="HOST:PORT", help="Where the platform listens. [env: MODELMORA_TARGET]")
    @click.option("--token", help="Access token. Better in the environment. [env: MODELMORA_TOKEN]")
    @click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="Give up after.")
    @json_option
    @click.pass_context
    @functools.wraps(command)
    def run(
        context: click.Context,
        /,
        target: str | None,
        token: str | None,
        timeout: float | None,
        as_json: bool,
        **options: Any,
    ) -> Any:
        root = context.find_root().params
        target = target or root.get("target") or os.environ.get("MODELMORA_TARGET") or local_target()
        if target.startswith(("http://", "https://", "grpc://")):
            raise click.UsageError(f"{target!r} is no target; it is HOST:PORT, {target.partition('://')[2]!r}.")
        client = Client(
            target,
            token=token or root.get("token"),
            timeout=timeout or 60.0,
            retry=RetryPolicy(attempts=3),  # a person is waiting
        )
        with client:
            return command(Session(client, as_json, timeout), **options)

    return run


def data_dir() -> Path:
    """The data folder that `modelmora up` uses on this machine without other settings."""
    given = os.environ.get("MODELMORA_DATA_DIR")
    shared = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(given) if given else Path(shared) / "modelmora"


def local_target() -> str:
    """Where the platform of this machine says that it listens, else the default."""
    try:
        target = json.loads((data_dir() / "run" / "endpoint.json").read_text())["target"]
    except (OSError, ValueError, KeyError, TypeError):
        return DEFAULT_TARGET
    return target if isinstance(target, str) else DEFAULT_TARGET


def key_values(_: click.Context, parameter: click.Parameter, pairs: tuple[str, ...]) -> dict[str, str]:
    """Turns repeated `KEY=VALUE` into a dict."""
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE", param=parameter)
        found[key] = value
    return found


def seconds_of(_: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
    """Turns `90s`, `5m`, `1.5h`, `2d` or a plain number into seconds."""
    if text is None:
        return None
    units = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
    number = text.strip().rstrip("smindh ")
    unit = text.strip()[len(number) :].strip()
    try:
        seconds = float(number) * units[unit]
        if not 0 <= seconds < 1e9:
            raise ValueError
    except (KeyError, ValueError):
        raise click.BadParameter(f"{text!r} is no time span; write 90s, 5m, 1h or 2d", param=parameter) from None
    return seconds


def memory_size(_: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    """Turns `2GiB`, `500 MB` or a plain number into bytes."""
    if text is None:
        return None
    units = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
    units |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
    number = text.strip().rstrip("BKMGTbkmgtiI ")
    unit = text.strip()[len(number) :].strip().lower()
    try:
        size = float(number) * units[unit]
        if not 0 < size < 2**62:
            raise ValueError
    except (KeyError, ValueError):
        raise click.BadParameter(f"{text!r} is no size; write 2GiB, 500MB or bytes", param=parameter) from None
    return round(size)
