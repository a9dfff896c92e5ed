"""What the CLI prints: JSON for programs, words for people, errors as clear lines."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import click
import pytest
from modelmora import errors
from modelmora.common.v1 import common_pb2
from modelmora.inference.v1 import inference_pb2
from modelmora.lifecycle.v1 import lifecycle_pb2
from modelmora.registry.v1 import registry_pb2
from modelmora_app.cli import lock, memory, placement, show


def test_json_has_iso_times_lower_case_enums_numbers_and_no_unset_fields() -> None:
    version = registry_pb2.ModelVersion(
        name="models/a/b/versions/1",
        state=registry_pb2.MODEL_VERSION_STATE_READY,
        task_type=common_pb2.TASK_TYPE_TXT2EMBED,
        revision=2**53 + 1,
        limits=registry_pb2.ModelLimits(embedding_dimensions=0),
    )
    version.create_time.FromDatetime(datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC))
    version.engine_options.update({"delay": 0.5, "deep": {"on": True}})
    shown = show.as_json(version)
    assert shown["state"] == "ready"
    assert shown["task_type"] == "txt2embed"
    assert shown["revision"] == 2**53 + 1
    assert shown["create_time"] == "2026-03-01T12:00:00Z"
    assert shown["engine_options"] == {"delay": 0.5, "deep": {"on": True}}
    assert shown["limits"] == {"embedding_dimensions": 0}, "a zero that is set is kept, what is unset is left out"
    assert "failure" not in shown
    assert "update_time" not in shown
    json.dumps(shown)


@pytest.mark.parametrize(
    ("nanoseconds", "text"), [(0, "PT0S"), (30 * 10**9, "PT30S"), (1_500_000_000, "PT1.5S"), (1, "PT0.000000001S")]
)
def test_durations_are_iso_8601(nanoseconds: int, text: str) -> None:
    message = lifecycle_pb2.Replica()
    message.load_duration.FromNanoseconds(nanoseconds)
    assert show.as_json(message)["load_duration"] == text


def test_maps_lists_bytes_and_unknown_enum_numbers() -> None:
    model = registry_pb2.Model(aliases={"production": "1"}, labels={"team": "a"}, task_type=99)  # type: ignore[arg-type]
    shown = show.as_json({"model": model, "all": [model.labels["team"]]})
    assert shown["model"]["aliases"] == {"production": "1"}
    assert shown["model"]["task_type"] == 99
    assert shown["all"] == ["a"]
    assert show.as_json(common_pb2.Tensor(data=b"\x00\xff", shape=[2]))["data"] == "AP8="
    levels = inference_pb2.Queue(levels=[inference_pb2.QueueLevel(priority=common_pb2.PRIORITY_HIGH)])
    assert show.as_json(levels)["levels"][0]["priority"] == "high"


def test_an_error_names_its_fields_and_what_to_do() -> None:
    error = errors.InvalidArgument(
        "two things are wrong", fields=[errors.FieldViolation("texts[3]", "is empty"), errors.FieldViolation("a", "b")]
    )
    assert show.error_lines(error) == [
        "modelmora: two things are wrong (InvalidArgument)",
        "  texts[3]: is empty",
        "  a: b",
    ]
    once = show.error_lines(errors.InvalidArgument.at("model", "is empty"))
    assert once == ["modelmora: model: is empty (InvalidArgument)"]
    long = errors.InvalidArgument("texts[0]: is long", fields=[errors.FieldViolation("texts[0]", "is lo…")])
    assert len(show.error_lines(long)) == 1, "said once, though what a server says of a field is cut"
    for key in ("model_version", "version"):  # of lifecycle, of the registry
        used = show.error_lines(errors.VersionInUse("it is held", **{key: "models/a/b/versions/1"}))
        assert "`modelmora jobs list --model a/b@1`" in used[-1]
    assert "modelmora models" in "\n".join(show.error_lines(errors.ModelNotFound(model="a/b")))
    assert "model=a/b" in "\n".join(show.error_lines(errors.ModelNotFound(model="a/b")))
    assert "in 2.5 s" in show.error_lines(errors.QueueFull(retry_after_seconds=2.5))[-1]
    busy = errors.MemoryBusy("no room", model_version="models/a/b/versions/1", retry_after_seconds=2.5)
    assert show.error_lines(busy)[-2].startswith("  `modelmora explain a/b@1` says what it waits for")
    assert "in 2.5 s" in show.error_lines(busy)[-1]
    assert "in 0.1 s" in show.error_lines(errors.QueueFull(retry_after_seconds=0.0267381))[-1]
    assert "modelmora up" in show.error_lines(errors.Unavailable("connection refused"))[-1]
    assert len(show.error_lines(errors.Unavailable("standby", retry_after_seconds=1.0))) == 1, "a server has said so"


def test_a_program_learns_when_to_try_again() -> None:
    with click.Context(click.Command("load")) as context:
        context.meta[show.JSON_KEY] = True
        (line,) = show.error_lines(errors.QueueFull(retry_after_seconds=0.0267381))
        assert json.loads(line)["error"]["retry_after_seconds"] == 0.0267381
        (line,) = show.error_lines(errors.InvalidArgument("no"))
        assert "retry_after_seconds" not in json.loads(line)["error"]


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (90_868_376, "86.7 MiB"),
        (2**40, "1.0 TiB"),
        (200 * 2**20, "200 MiB"),
    ],
)
def test_sizes_for_people(size_bytes: int, text: str) -> None:
    assert show.size(size_bytes) == text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("models/a/b/versions/1.0", "a/b@1.0"),
        ("models/a/b", "a/b"),
        ("replicas/x", "replicas/x"),
        ("", ""),
    ],
)
def test_resource_names_for_people(name: str, text: str) -> None:
    assert show.short(name) == text


def test_one_thing_is_not_several() -> None:
    assert [show.many(number, "token") for number in (0, 1, 2)] == ["0 tokens", "1 token", "2 tokens"]


def test_a_queue_shows_a_row_for_each_tenant_that_waits_and_hides_the_others_sum() -> None:
    from modelmora.inference.v1 import inference_pb2
    from modelmora_app.cli.queue import rows

    queue = inference_pb2.Queue(model_version="models/a/b/versions/1", in_flight=3, replicas=2, drain_rate=7.25)
    level = queue.levels.add(priority=30, entries=9)
    tenant = level.tenants.add(tenant="acme", weight=3, entries=4, tokens=70)
    tenant.oldest_age.FromMilliseconds(1500)
    assert rows(queue) == [
        ["a/b@1", "high", "acme (weight 3)", "4", "70", "1500.0 ms", "3 on 2", "7.2"],
        ["", "high", "others", "5", "", "", "", ""],
    ]
    cold = inference_pb2.Queue(model_version="models/a/b/versions/1")
    cold.ready_in.FromMilliseconds(2000)
    assert rows(cold) == [["a/b@1", "", "", "0", "0", "", "ready in 2000.0 ms", ""]]


def test_two_replicas_of_a_version_are_told_apart_also_when_they_began_together() -> None:
    first, second = (
        lifecycle_pb2.WatchReplicasResponse(
            replica=lifecycle_pb2.Replica(
                uid=f"01890a5d-ac96-774b-bcce-b302{tail}",
                model_version="models/a/b/versions/1",
                state=lifecycle_pb2.REPLICA_STATE_LOADED,
                reason="recovered",
            ),
            previous_state=lifecycle_pb2.REPLICA_STATE_UNHEALTHY,
        )
        for tail in ("099a8057", "64d41f0c")
    )
    assert memory._change(first) == "a/b@1 099a8057: unhealthy → loaded (recovered)"
    assert memory._change(second) == "a/b@1 64d41f0c: unhealthy → loaded (recovered)"
    rows = [dict(zip(memory._COLUMNS, memory._row(event.replica), strict=True)) for event in (first, second)]
    assert [(row["model"], row["replica"]) for row in rows] == [("a/b@1", "099a8057"), ("a/b@1", "64d41f0c")]


def test_what_is_watched_is_said_once_and_a_pin_in_words() -> None:
    replica = lifecycle_pb2.Replica(
        uid="0", model_version="models/a/b/versions/1", state=lifecycle_pb2.REPLICA_STATE_LOADED, reason="loaded"
    )
    first = lifecycle_pb2.WatchReplicasResponse(replica=replica)
    assert memory._change(first) == "a/b@1 0: loaded"
    changed = lifecycle_pb2.WatchReplicasResponse(replica=replica, previous_state=lifecycle_pb2.REPLICA_STATE_LOADED)
    assert memory._change(changed) == "a/b@1 0: loaded, not pinned any more"
    changed.replica.pinned = True
    assert memory._change(changed) == "a/b@1 0: loaded, pinned"


def test_memory_that_is_overdrawn_is_no_negative_room() -> None:
    device = lifecycle_pb2.DeviceLedger(device="host", budget_bytes=100 << 20, charged_bytes=110 << 20)
    assert memory._use(device) == "host: 110 MiB of 100 MiB in use, 10.0 MiB too much; 0 B belong to other programs"
    device.charged_bytes = 40 << 20
    assert memory._use(device).startswith("host: 40.0 MiB of 100 MiB in use, 60.0 MiB free;")


@pytest.mark.parametrize(
    ("outcome", "first", "arithmetic"),
    [
        ("WAITS", "a/b@1: waits, ready in 3.5 s", True),
        ("REFUSED", "a/b@1: refused, it may be tried again in 3.5 s", False),
        ("LOADED", "a/b@1: loaded", False),
    ],
)
def test_a_placement_is_explained_by_arithmetic_where_that_decides(
    outcome: str, first: str, arithmetic: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    told = lifecycle_pb2.Placement(
        model_version="models/a/b/versions/1",
        outcome=f"PLACEMENT_OUTCOME_{outcome}",
        reason="the weights are torn",
        devices=[lifecycle_pb2.DeviceNeed(device="host", need_bytes=7)],
        candidates=[lifecycle_pb2.EvictionCandidate(model_version=f"models/c/{n}/versions/1") for n in "de"],
    )
    if outcome != "LOADED":
        told.ready_in.FromMilliseconds(3500)
    placement.show_placement(told)
    head, reason, *rest = capsys.readouterr().out.splitlines()
    assert (head, reason) == (first, "  the weights are torn")
    assert [any(word in line for line in rest) for word in ("NEEDS", "c/d@1", "lowest score first")] == [arithmetic] * 3


def test_what_evictable_means_is_said_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    need = lifecycle_pb2.DeviceNeed(device="host", need_bytes=7, free_bytes=1, budget_bytes=8, evictable_bytes=5)
    placement._show_needs([need], "measured")
    heads, figures, meaning = capsys.readouterr().out.splitlines()
    assert heads.split() == ["DEVICE", "NEEDS", "FREE", "EVICTABLE", "BUDGET"]
    assert figures.split() == ["host", "7", "B", "(measured)", "1", "B", "5", "B", "8", "B"]
    assert meaning.startswith("Evictable: what models that may go hold")


def test_a_file_that_is_written_replaces_nothing_but_files(tmp_path: Path) -> None:
    (tmp_path / "null").symlink_to(os.devnull)
    lock._write(tmp_path / "null", "models: []\n")
    assert (tmp_path / "null").is_symlink()
    assert (tmp_path / "null").is_char_device()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    lock._write(tmp_path / "link", "models: []\n")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "models: []\n"
