"""`modelmora worker-bundle`: what an engine's own interpreter gets of ModelMora."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("worker-bundle")
@click.argument("folder", type=click.Path(path_type=Path))
def worker_bundle(folder: Path) -> None:
    """Lay out in FOLDER the modules that a worker needs: the only entry to add to the path of another Python."""
    from modelmora_worker.bundle import write_bundle

    if folder.exists():
        raise click.BadParameter(f"there is something at {folder}", param_hint="FOLDER")
    files = write_bundle(folder)
    click.echo(f"{len(files)} files in {folder}")


COMMANDS: dict[str, click.Command] = {"worker-bundle": worker_bundle}
