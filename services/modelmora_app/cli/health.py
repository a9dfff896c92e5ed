"""`modelmora health` and `modelmora info`: how the platform is, and what it runs on."""

from __future__ import annotations

import click
from modelmora.common.v1 import common_pb2

from modelmora_app.cli import show
from modelmora_app.cli.session import Session, remote


@click.command()
@click.option("--wait", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="Until it is serving.")
@remote
def health(session: Session, wait: float | None) -> None:
    """Show every component; the exit code is 1 unless the platform is healthy or degraded."""
    if wait is not None:
        session.client.wait_serving(timeout=wait)
    answer = session.client.health()
    if session.as_json:
        show.print_json(answer)
    else:
        show.table(
            ["component", "state", "checked", "reason"],
            [
                [name, show.field_word(state, "state"), show.ago(state.last_check_time), state.reason]
                for name, state in [("overall", answer.overall), *sorted(answer.components.items())]
            ],
            empty="no component answered",
        )
    if answer.overall.state not in (common_pb2.HEALTH_STATE_HEALTHY, common_pb2.HEALTH_STATE_DEGRADED):
        click.get_current_context().exit(1)


@click.command()
@remote
def info(session: Session) -> None:
    """Show versions, devices and storage."""
    answer = session.client.system()
    if session.as_json:
        show.print_json(answer)
        return
    storage = answer.storage
    models = (
        f", {storage.model_count} model" + "s" * (storage.model_count != 1) if storage.HasField("model_count") else ""
    )
    show.facts(
        [
            ("modelmora", answer.version),
            ("python", answer.python_version),
            ("platform", answer.platform),
            ("processors", str(answer.cpu_count)),
            ("memory", show.size(answer.memory_bytes)),
            ("up for", f"{answer.uptime.ToSeconds()} s"),
            (
                "storage",
                f"{storage.path}: {show.size(storage.free_bytes)} of {show.size(storage.total_bytes)} free{models}",
            ),
            *((f"{name}", version) for name, version in sorted(answer.dependencies.items())),
        ]
    )
    click.echo()
    show.table(
        ["device", "name", "used>", "free>", "total>", "compute", "driver"],
        [
            [
                device.id,
                device.display_name,
                show.size(device.used_bytes),
                show.size(device.free_bytes),
                show.size(device.total_bytes),
                device.compute_capability,
                device.driver_version,
            ]
            for device in answer.devices
        ],
        empty="no devices",
    )


COMMANDS: dict[str, click.Command] = {"health": health, "info": info}
