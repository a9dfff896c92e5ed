"""`modelmora load`, `unload` and `ps`: what is in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import click
from modelmora.errors import ModelMoraError
from modelmora.lifecycle.v1 import lifecycle_pb2

from modelmora_app.cli import show
from modelmora_app.cli.session import Session, remote

LOAD_SECONDS = 600.0
"""The longest deadline that a server accepts."""
_COLUMNS = [
    "model",
    "replica",
    "state",
    "profile",
    "start",
    "charged>",
    "predicted>",
    "peak>",
    "leases>",
    "pid>",
    "idle",
    "reason",
]


@click.command()
@click.argument("model")
@click.option("--pin", is_flag=True, help="Never evict it until it is unloaded by name or `residency set --no-pin`.")
@click.option("--no-wait", is_flag=True, help="Answer as soon as the load has begun.")
@remote
def load(session: Session, model: str, pin: bool, no_wait: bool) -> None:
    """Bring a model into memory and wait until it answers."""
    with _progress(session, f"loading {model}"):
        replica = session.client.load(model, wait=not no_wait, pin=pin, timeout=session.timeout_given or LOAD_SECONDS)
    if session.as_json:
        show.print_json(replica)
        return
    state = show.field_word(replica, "state")
    charged = show.size(sum(device.memory_bytes for device in replica.charged))
    took = f" in {replica.load_duration.ToNanoseconds() / 1e9:.2f} s" if replica.HasField("load_duration") else ""
    click.echo(f"{show.short(replica.model_version)} is {state}{took} ({charged}, pid {replica.pid})")


@contextmanager
def _progress(session: Session, what: str) -> Iterator[None]:
    """On a terminal: a spinner with what lifecycle says about the load, until the block is left."""
    console = show.console(err=True)
    if session.as_json or not console.is_terminal:
        yield
        return
    with console.status(what) as status:

        def follow() -> None:
            try:
                for event in session.client.watch_replicas(timeout=session.timeout_given or LOAD_SECONDS):
                    replica = event.replica
                    if replica.state == lifecycle_pb2.REPLICA_STATE_LOADING and replica.reason:
                        status.update(f"{what}: {replica.reason}")
            except (ModelMoraError, ValueError):
                pass  # decoration only; the call itself reports. ValueError: the client was closed meanwhile

        threading.Thread(target=follow, name="load progress", daemon=True).start()
        yield


@click.command()
@click.argument("model")
@click.option("--force", is_flag=True, help="Also when it is busy or pinned; running work may finish.")
@click.option("--no-wait", is_flag=True, help="Answer before its memory is back.")
@remote
def unload(session: Session, model: str, force: bool, no_wait: bool) -> None:
    """Take a model out of memory. A pin or a minimum of replicas rests until it is wanted again."""
    replicas = session.client.unload(model, force=force, wait=not no_wait)
    if session.as_json:
        show.print_json(replicas)
        return
    for replica in replicas:
        click.echo(f"{show.short(replica.model_version)} is {show.field_word(replica, 'state')}")


@click.command()
@click.option("--watch", is_flag=True, help="Print every change until Ctrl-C.")
@remote
def ps(session: Session, watch: bool) -> None:
    """Show what is in memory, and how much of it is left."""
    if watch:
        with suppress(KeyboardInterrupt):  # that is how it ends
            _watch(session)
        return
    replicas, devices = list(session.client.list_replicas()), session.client.memory()
    if session.as_json:
        show.print_json({"replicas": replicas, "memory": devices})
        return
    show.table(
        _COLUMNS,
        [_row(replica) for replica in replicas],
        empty="nothing is in memory; `modelmora load MODEL`, or the first `modelmora embed`, brings a model in",
    )
    click.echo()
    for device in devices:
        click.echo(_use(device))


def _use(device: lifecycle_pb2.DeviceLedger) -> str:
    free = device.budget_bytes - device.charged_bytes
    left = f"{show.size(free)} free" if free >= 0 else f"{show.size(-free)} too much"
    return (
        f"{device.device}: {show.size(device.charged_bytes)} of {show.size(device.budget_bytes)} in use, {left}; "
        f"{show.size(device.foreign_bytes)} belong to other programs"
    )


def _row(replica: lifecycle_pb2.Replica) -> list[str]:
    state, profile = show.field_word(replica, "state"), replica.engine_profile
    reason = replica.reason if replica.reason != state else ""
    ready = f"ready in {show.span(replica.ready_in)}" if replica.HasField("ready_in") else ""
    return [
        show.short(replica.model_version) + (" (pinned)" if replica.pinned else ""),
        show.tail(replica.uid),
        state,
        "/".join(filter(None, (profile.backend or replica.engine, profile.precision))),
        show.field_word(replica, "start_mode"),
        *(
            show.size(sum(device.memory_bytes for device in memory)) if memory else ""
            for memory in (replica.charged, replica.predicted, replica.peak)
        ),
        f"{replica.busy_leases}/{replica.leases}",
        str(replica.pid or ""),
        "busy" if replica.busy_leases else show.ago(replica.last_used_time).removesuffix(" ago"),
        ", ".join(filter(None, (reason, ready))),
    ]


def _watch(session: Session) -> None:
    for event in session.client.watch_replicas(timeout=session.timeout_given):
        if session.as_json:
            import json

            click.echo(json.dumps(show.as_json(event)))
        elif event.HasField("replica"):
            click.echo(_change(event))


def _change(event: lifecycle_pb2.WatchReplicasResponse) -> str:
    replica = event.replica
    before, now = show.field_word(event, "previous_state"), show.field_word(replica, "state")
    if before == now:  # no transition: all that changes without one is the pin
        return f"{show.short(replica.model_version)} {show.tail(replica.uid)}: {now}, {_pin(replica)}"
    change = f"{before} → {now}" if before else now
    reason = f" ({replica.reason})" if replica.reason not in ("", now) else ""
    return f"{show.short(replica.model_version)} {show.tail(replica.uid)}: {change}{reason}"


def _pin(replica: lifecycle_pb2.Replica) -> str:
    return "pinned" if replica.pinned else "not pinned any more"


COMMANDS: dict[str, click.Command] = {"load": load, "unload": unload, "ps": ps}
