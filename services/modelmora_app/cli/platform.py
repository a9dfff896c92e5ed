"""`modelmora up` and `modelmora serve`: from flags to a running platform."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from modelmora_app.cli.session import key_values
from modelmora_app.host_commands import NAMES


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The flags that say how to run; the most wanted settings by name, every other one with `--set`."""
    options: list[Callable[[Any], Any]] = [
        click.option("--config", "config_file", type=click.Path(path_type=Path), metavar="FILE", help="YAML settings."),
        click.option("--data-dir", metavar="FOLDER", help="Everything that is kept. [env: MODELMORA_DATA_DIR]"),
        click.option(
            "--database-url",
            metavar="URL",
            help="PostgreSQL to use. A password belongs in MODELMORA_DATABASE_URL.",
        ),
        click.option("--host", metavar="ADDRESS", help="Address to listen on. Default: 127.0.0.1"),
        click.option("--port", metavar="PORT", help="gRPC port, 0 takes a free one. Default: 50051"),
        click.option("--metrics-port", metavar="PORT", help="Prometheus metrics. Default: 9464"),
        click.option("--token-file", metavar="FILE", help="Token hashes; see `modelmora token`."),
        click.option("--insecure", is_flag=True, help="Listen beyond loopback without tokens."),
        click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"])),
        click.option("--log-format", type=click.Choice(["auto", "json", "text"])),
        click.option(
            "--set",
            "settings",
            multiple=True,
            callback=key_values,
            metavar="SECTION.FIELD=VALUE",
            help="Any setting; lists and mappings as YAML. `modelmora config show` names them.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def flags_of(given: dict[str, Any]) -> dict[str, object]:
    """Flags by setting, as modelmora_runtime.settings.load wants them."""
    flags: dict[str, object] = {name: value for name, value in given.items() if value is not None}
    settings = flags.pop("settings", {})
    if not flags.get("insecure"):
        flags.pop("insecure", None)
    return {**flags, **(settings if isinstance(settings, dict) else {})}


@click.command()
@settings_options
def up(config_file: Path | None, **given: Any) -> None:
    """Start the whole platform on this machine; Ctrl-C stops it, a second Ctrl-C at once."""
    _run(NAMES, config_file, given)


@click.command()
@click.argument("contexts", nargs=-1, required=True, metavar="NAME...", type=click.Choice(NAMES))
@settings_options
def serve(contexts: tuple[str, ...], config_file: Path | None, **given: Any) -> None:
    """Start the services NAME… only: registry, lifecycle, inference, observability. The setting `platform.peers` says
    where the others are.
    """
    _run(contexts, config_file, given)


def _run(contexts: tuple[str, ...], config_file: Path | None, given: dict[str, Any]) -> None:
    from modelmora_app.host_commands import run

    click.get_current_context().exit(run(contexts, flags_of(given), config_file))


COMMANDS: dict[str, click.Command] = {"up": up, "serve": serve}
