"""`modelmora up` and `modelmora serve`: which contexts there are, their settings, and the start of the host.

Nothing here needs click or rich, and a context is imported only when it is opened.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from modelmora.errors import InvalidArgument, ModelMoraError

if TYPE_CHECKING:
    from modelmora_runtime.host import EngineCard, Mounted, Platform
    from modelmora_runtime.settings import Loaded, Section


@dataclass(frozen=True)
class Entry:
    """What a context's `main` offers, and how much it needs the database."""

    settings: type[Section]
    open: Callable[[Any, Platform], AbstractAsyncContextManager[Mounted]]
    database: Literal["required", "used", "unused"]


def _registry() -> Entry:
    from modelmora_registry import main

    return Entry(main.Settings, main.open, "required")


def _lifecycle() -> Entry:
    from modelmora_lifecycle import main

    return Entry(main.Settings, main.open, "used")


def _inference() -> Entry:
    from modelmora_inference import main

    return Entry(main.Settings, main.open, "used")


def _observability() -> Entry:
    from modelmora_observability import main

    return Entry(main.Settings, main.open, "unused")


ENTRIES: Mapping[str, Callable[[], Entry]] = {
    "registry": _registry,
    "lifecycle": _lifecycle,
    "inference": _inference,
    "observability": _observability,
}
"""Every context in the order in which the host enters them."""

NAMES = tuple(ENTRIES)


def load_settings(
    contexts: Sequence[str],
    flags: Mapping[str, object],
    config_file: Path | None,
    environ: Mapping[str, str] | None = None,
) -> Loaded:
    """The settings of the platform and of `contexts`. Raises InvalidArgument."""
    from modelmora_runtime import settings

    unknown = [name for name in contexts if name not in ENTRIES]
    if unknown:
        raise InvalidArgument.at("contexts", f"{unknown[0]!r} is none of {', '.join(NAMES)}")
    environ = os.environ if environ is None else environ
    if config_file is None and environ.get("MODELMORA_CONFIG"):
        config_file = Path(environ["MODELMORA_CONFIG"])
    sections = {name: ENTRIES[name]().settings for name in NAMES if name in contexts}
    return settings.load(sections, config_file=config_file, environ=environ, flags=flags, elsewhere=NAMES)


def run(contexts: Sequence[str], flags: Mapping[str, object], config_file: Path | None) -> int:
    """Serves `contexts` until a signal; returns the exit status. What is wrong is said in one line on stderr."""
    if not sys.platform.startswith("linux"):
        say_wrong("the servers run on Linux (x86-64, aarch64; glibc); the SDK and the client commands run here")
        return 1
    from modelmora_runtime import host, process

    try:
        loaded = load_settings(contexts, flags, config_file)
        opened = [
            host.Context(name, loaded[name], entry.open, entry.database)
            for name in NAMES
            if name in contexts
            for entry in (ENTRIES[name](),)
        ]
        engines = engine_cards() if "registry" in contexts else {}
    except ModelMoraError as error:
        say_wrong(f"{error.reason}: {error.message}")
        return 2 if isinstance(error, InvalidArgument) else 1
    whole = len(opened) == len(NAMES)
    endpoint = "endpoint.json" if whole else f"endpoint-{'-'.join(context.name for context in opened)}.json"
    return process.run(
        loaded.platform, opened, engines=engines, announce=say, complain=say_wrong, endpoint_name=endpoint, alone=whole
    )


def example_config() -> str:
    """deploy/config.example.yaml."""
    from modelmora_runtime import settings

    return settings.example({name: entry().settings for name, entry in ENTRIES.items()})


def engine_cards() -> Mapping[str, EngineCard]:
    """What the registry may know of every engine of the worker's table."""
    from modelmora_runtime.host import EngineCard
    from modelmora_worker.engines.base import all_rows, check_options, missing_profiles

    return {
        row.name: EngineCard(
            row.name,
            frozenset(row.tasks),
            row.needs_files,
            partial(check_options, row),
            family=row.family,
            profiles=tuple(row.profiles),
            missing=missing_profiles(row),
        )
        for row in all_rows().values()
    }


def say(line: str) -> None:
    try:
        print(line, flush=True)
    except BrokenPipeError:
        # Whoever read our lines is gone (`modelmora up | head`); the platform goes on.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say_wrong(line: str) -> None:
    print(f"modelmora: {line}", file=sys.stderr, flush=True)


def read_arguments(
    command: str, arguments: Sequence[str]
) -> tuple[Sequence[str], Mapping[str, object], Path | None] | None:
    """Plain arguments of `up` and `serve`, read without click; None for everything else (`--help`, mistakes), which
    click answers better."""
    from modelmora_runtime.settings import FLAGS

    fields = {f"--{name.replace('_', '-')}": name for name in FLAGS}
    contexts: list[str] = []
    flags: dict[str, object] = {}
    config_file: Path | None = None
    waiting = list(arguments)
    while waiting:
        word = waiting.pop(0)
        option, equals, value = word.partition("=")
        if word == "--insecure":
            flags["insecure"] = True
            continue
        if not word.startswith("-"):
            if command != "serve" or word not in NAMES:
                return None
            contexts.append(word)
            continue
        if option not in ("--config", "--set", *fields) or option == "--insecure":
            return None
        if not equals:
            if not waiting:
                return None
            value = waiting.pop(0)
        if option == "--config":
            config_file = Path(value)
        elif option == "--set":
            key, equals, value = value.partition("=")
            if not equals or not key:
                return None
            flags[key] = value
        else:
            flags[fields[option]] = value
    if command == "up":
        contexts = list(NAMES)
    return (contexts, flags, config_file) if contexts else None
