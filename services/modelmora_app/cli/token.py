"""`modelmora token`: the file of access tokens. Works on the server's machine, on the file itself."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from modelmora_app.cli import json_option, show


def _of_file(command: Callable[..., Any]) -> Callable[..., Any]:
    options: list[Callable[[Any], Any]] = [
        click.option("--config", "config_file", type=click.Path(path_type=Path), metavar="FILE", help="YAML settings."),
        click.option("--data-dir", metavar="FOLDER", help="Of the platform. [env: MODELMORA_DATA_DIR]"),
        click.option("--token-file", metavar="FILE", help="Default: tokens.json in the data folder."),
        json_option,
    ]
    for option in options:
        command = option(command)
    return command


def _path(config_file: Path | None, data_dir: str | None, token_file: str | None) -> Path:
    from modelmora_app.host_commands import load_settings

    # No sections: those of the contexts do not matter here, and importing them would take a second.
    platform = load_settings((), {"data_dir": data_dir, "token_file": token_file}, config_file).platform
    return Path(platform.token_file or platform.data_dir / "tokens.json")


def _span(_: click.Context, parameter: click.Parameter, text: str | None) -> timedelta | None:
    """`30d`, `12h`, `90min`."""
    if text is None:
        return None
    matched = re.fullmatch(r"(\d{1,6})\s*(d|h|min)", text)
    if matched is None:
        raise click.BadParameter(f"{text!r} is no time span; write 30d, 12h or 90min", param=parameter)
    unit = {"d": "days", "h": "hours", "min": "minutes"}[matched[2]]
    return timedelta(**{unit: int(matched[1])})


@click.group("token")
def token() -> None:
    """Create, list and revoke access tokens. A running platform notices by itself."""


@token.command("create")
@click.option("--role", type=click.Choice(["admin", "operator", "client", "service"]), required=True)
@click.option("--tenant", default="default", show_default=True, help="Whose calls these are.")
@click.option("--subject", default="", help="Who holds it, for people.")
@click.option("--expires", callback=_span, metavar="SPAN", help="For example 30d. Default: never.")
@_of_file
def create(role: str, tenant: str, subject: str, expires: timedelta | None, as_json: bool, **where: Any) -> None:
    """Make a token and print it: it is shown only now, the file keeps its hash."""
    from modelmora_runtime.auth import LOOK_SECONDS, create_token

    path = _path(**where)
    first = not path.exists()
    made = create_token(path, role=role, tenant=tenant, subject=subject, expires=expires)
    if first:
        time.sleep(LOOK_SECONDS)  # from here on what we say about the door is true of a running platform too
    if as_json:
        show.print_json({"token": made, "file": str(path)})
        return
    click.echo(made)
    if first:
        click.echo(f"{path} is new: from now on every call needs a token.", err=True)
    click.echo("Use it as MODELMORA_TOKEN, or as the header `authorization: Bearer …`.", err=True)


@token.command("list")
@_of_file
def list_(as_json: bool, **where: Any) -> None:
    """List tokens, without their secrets."""
    from modelmora_runtime.auth import list_tokens

    tokens = list_tokens(_path(**where))
    if as_json:
        show.print_json(
            [
                {
                    "id": known.id,
                    "role": known.role.value,
                    "tenant": known.tenant,
                    "subject": known.subject,
                    "create_time": known.create_time.isoformat(),
                    **({"expire_time": known.expire_time.isoformat()} if known.expire_time else {}),
                }
                for known in tokens
            ]
        )
        return
    show.table(
        ["id", "role", "tenant", "subject", "created", "expires"],
        [
            [
                known.id,
                known.role.value,
                known.tenant,
                known.subject,
                f"{known.create_time:%Y-%m-%d %H:%M}",
                ("expired" if known.expired(datetime.now(UTC)) else f"{known.expire_time:%Y-%m-%d %H:%M}")
                if known.expire_time
                else "never",
            ]
            for known in tokens
        ],
        empty="no tokens: on loopback everyone is admin",
    )


@token.command("revoke")
@click.argument("token_id")
@_of_file
def revoke(token_id: str, as_json: bool, **where: Any) -> None:
    """Make a token invalid, by its id. When this returns, no running platform takes it any more."""
    from modelmora_runtime.auth import LOOK_SECONDS, revoke_token

    revoke_token(_path(**where), token_id)
    time.sleep(LOOK_SECONDS)
    if as_json:
        show.print_json({"revoked": token_id})
    else:
        click.echo(f"revoked {token_id}")


COMMANDS: dict[str, click.Command] = {"token": token}
