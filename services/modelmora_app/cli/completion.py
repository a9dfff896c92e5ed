"""`modelmora completion`: the script that makes a shell complete commands and options."""

from __future__ import annotations

import os
from pathlib import Path

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS), required=False)
def completion(shell: str | None) -> None:
    """Print the completion script of SHELL; default: the shell in use.

    \b
    bash: modelmora completion bash > ~/.local/share/bash-completion/completions/modelmora
    zsh:  modelmora completion zsh > "${fpath[1]}/_modelmora"
    fish: modelmora completion fish > ~/.config/fish/completions/modelmora.fish
    """
    shell = shell or Path(os.environ.get("SHELL", "")).name
    kind = get_completion_class(shell) if shell in SHELLS else None
    if kind is None:
        raise click.UsageError(f"Name the shell: {', '.join(SHELLS)}.")
    from modelmora_app.cli import cli

    click.echo(kind(cli, {}, "modelmora", "_MODELMORA_COMPLETE").source())


COMMANDS: dict[str, click.Command] = {"completion": completion}
