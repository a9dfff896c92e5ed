"""`modelmora config show`: every setting, its value and where it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from modelmora_app.cli import json_option, show
from modelmora_app.cli.platform import flags_of, settings_options
from modelmora_app.host_commands import NAMES, load_settings


@click.group("config")
def config() -> None:
    """Show the settings that `modelmora up` would run with."""


@config.command("show")
@click.argument("sections", nargs=-1, metavar="[SECTION]...")
@click.option("--origin", is_flag=True, help="Also say where each value comes from: flag, env, file or default.")
@json_option
@settings_options
def show_(sections: tuple[str, ...], origin: bool, as_json: bool, config_file: Path | None, **given: Any) -> None:
    """Show every setting, or those of SECTION; secrets are masked."""
    loaded = load_settings(NAMES, flags_of(given), config_file)
    unknown = sorted(set(sections) - set(loaded.sections))
    if unknown:
        raise click.UsageError(f"There is no section {unknown[0]}, only {', '.join(loaded.sections)}.")
    rows = [line for line in loaded.shown() if not sections or line.name.partition(".")[0] in sections]
    if as_json:
        show.print_json([{"name": line.name, "value": line.value, "origin": line.origin} for line in rows])
        return
    columns = ["setting", "value", *(["origin"] if origin else [])]
    show.table(columns, [[line.name, line.value, *([line.origin] if origin else [])] for line in rows], empty="")


COMMANDS: dict[str, click.Command] = {"config": config}
