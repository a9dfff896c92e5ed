"""`modelmora tune`: which engine profile serves a model best on this machine."""

from __future__ import annotations

from collections.abc import Iterable

import click
from modelmora.common.v1 import common_pb2
from modelmora.lifecycle.v1 import lifecycle_pb2

from modelmora_app.cli import show
from modelmora_app.cli.session import Session, remote


@click.command()
@click.argument("model")
@click.option(
    "--candidate", "candidates", multiple=True, metavar="PROFILE", help="Try this one, as torch/bf16; repeatable."
)
@click.option("--apply", is_flag=True, help="Make the fastest accurate profile current.")
@click.option("--gate", type=click.FloatRange(0, 1), metavar="COSINE", help="Least likeness to exact. [0.9995]")
@click.option("--list", "list_only", is_flag=True, help="Show what was tuned before and measure nothing.")
@click.option("--set", "profile", metavar="PROFILE", help="Make this one current, unmeasured; or `exact`.")
@remote
def tune(
    session: Session,
    model: str,
    candidates: tuple[str, ...],
    apply: bool,
    gate: float | None,
    list_only: bool,
    profile: str | None,
) -> None:
    """Measure the engine profiles of MODEL in workers of their own and propose the fastest that answers like the exact
    one. What is current stays so until --apply or --set says otherwise.
    """
    if profile is not None:
        version = session.client.set_engine_profile(model, "" if profile == "exact" else profile)
        if session.as_json:
            show.print_json(version)
        else:
            now = version.engine_profile
            click.echo(f"{show.short(version.name)} is served with {now.backend}/{now.precision} from its next load on")
        return
    if list_only:
        tunings = list(session.client.list_tunings(model))
        if session.as_json:
            show.print_json(tunings)
            return
        for tuning in tunings:
            click.echo(f"{show.ago(tuning.create_time)}: {show.field_word(tuning, 'state')}: {tuning.reason}")
            show_candidates(tuning.candidates)
            click.echo()
        if not tunings:
            click.echo("nothing was tuned yet")
        return
    begun = tuning = session.client.tune(model, candidates, apply=apply, gate=gate)
    with show.console(err=True).status(f"tuning {model}: {begun.reason}") as status:
        for tuning in session.client.watch_tuning(begun.name, timeout=session.timeout_given):
            status.update(f"tuning {show.short(tuning.model_version)}: {tuning.reason}")
    if session.as_json:
        show.print_json(tuning)
    else:
        show_candidates(tuning.candidates)
        click.echo(f"\n{tuning.reason}")
        if tuning.HasField("proposal") and not tuning.applied:
            click.echo(f"`modelmora tune {model} --set {_name(tuning.proposal)}` makes it current")
    if tuning.state != lifecycle_pb2.TUNING_STATE_SUCCEEDED:
        raise SystemExit(1)


def show_candidates(candidates: Iterable[lifecycle_pb2.TuningCandidate]) -> None:
    """One line for each profile."""
    show.table(
        ["profile", "texts/s>", "one text>", "cosine>", "alone/batch>", "load>", "memory>", "within gate", "error"],
        [
            [
                _name(candidate.engine_profile),
                f"{candidate.entries_per_second:.1f}" if candidate.entries_per_second else "",
                f"{candidate.single_seconds * 1000:.1f} ms" if candidate.single_seconds else "",
                f"{candidate.accuracy:.6f}" if candidate.entries_per_second else "",
                f"{candidate.batch_consistency:.6f}" if candidate.entries_per_second else "",
                f"{candidate.load_seconds:.2f} s" if candidate.load_seconds else "",
                show.size(sum(device.memory_bytes for device in candidate.memory)) if candidate.memory else "",
                ("yes" if candidate.within_gate else "no") if candidate.entries_per_second or candidate.error else "",
                candidate.error,
            ]
            for candidate in candidates
        ],
        empty="",
    )


def _name(profile: common_pb2.EngineProfile) -> str:
    return f"{profile.backend}/{profile.precision}"


COMMANDS: dict[str, click.Command] = {"tune": tune}
