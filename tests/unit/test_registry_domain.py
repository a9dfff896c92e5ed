"""Rules of models, versions, names and files."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelmora.errors import Conflict, IllegalTransition, InvalidArgument
from modelmora_registry.domain import (
    MANAGED_ALIAS,
    PIPELINE_TAGS,
    Artifact,
    ArtifactFile,
    Failure,
    ImportProgress,
    Model,
    ModelDraft,
    ModelId,
    ModelLimits,
    ModelSource,
    ModelVersion,
    ModelVersionState,
    Reference,
    ResourceRequirements,
    TaskType,
    VersionDraft,
    check_alias,
    check_checksums,
    check_new_version,
    check_version,
    current_version_of,
    file_path_problem,
    parse_model_name,
    parse_reference,
    parse_task,
    parse_version_name,
    slug,
)
from pydantic import ValidationError

EARLY = datetime(2026, 1, 1, tzinfo=UTC)
LATE = datetime(2026, 1, 2, tzinfo=UTC)
SHA = "sha256:" + "0" * 64
MINI = ModelId(organization="acme", repository="mini")


@pytest.mark.parametrize("text", ["a/b", "A/B", "0/9", "org.x/repo-1_2.3", "a" * 96 + "/" + "b" * 96, "models/repo"])
def test_a_model_id_is_two_parts(text: str) -> None:
    assert str(ModelId.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "a", "a/", "/b", "a/b/c", "a b/c", ".a/b", "a/-b", "a/b@c", "a" * 97 + "/b", "ä/b", "a/b\n", "../b"]
)
def test_a_malformed_model_id_is_refused_with_its_path(text: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        ModelId.parse(text, at="parent")
    assert [violation.field for violation in raised.value.fields] == ["parent"]


@pytest.mark.parametrize(
    "text",
    ["1.0.0", "v1.0.0", "1.0.0-rc.1+build", "main", "feature/x", "release@2024", "versions/1", "0" * 40, "ü", "1"],
)
def test_a_version_is_semver_or_a_git_reference(text: str) -> None:
    assert check_version(text) == text
    assert parse_version_name(f"models/acme/mini/versions/{text}").selector == text
    assert parse_version_name(f"acme/mini@{text}").selector == text


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "a b",
            "a..b",
            "a~1",
            "a^",
            "a:b",
            "a?",
            "a*",
            "a[",
            "a\\b",
            "@",
            "a@{1}",
            "/a",
            "a/",
            "a//b",
            ".a",
            "a/.b",
        ),
        *("a.lock", "a.lock/b", "a.", "-a", "x" * 256, "a\x00", "a\n", "a\x7f"),
    ],
)
def test_what_git_would_not_call_a_reference_is_no_version(text: str) -> None:
    with pytest.raises(InvalidArgument):
        check_version(text)


@pytest.mark.parametrize("text", ["latest", "production", "staging", "Latest", "PRODUCTION"])
def test_reserved_aliases_are_no_names_for_new_versions(text: str) -> None:
    with pytest.raises(InvalidArgument):
        check_new_version(text)
    assert parse_reference(f"acme/mini@{text}").selector == text


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("acme/mini", Reference(model_id=MINI)),
        ("models/acme/mini", Reference(model_id=MINI)),
        ("acme/mini@blue", Reference(model_id=MINI, selector="blue")),
        ("models/acme/mini@blue", Reference(model_id=MINI, selector="blue")),
        ("acme/mini@feature/x", Reference(model_id=MINI, selector="feature/x")),
        ("models/acme/mini/versions/v1.0.0", Reference(model_id=MINI, selector="v1.0.0", version_only=True)),
        ("models/acme/mini/versions/a/b", Reference(model_id=MINI, selector="a/b", version_only=True)),
    ],
)
def test_every_accepted_form_of_a_reference(text: str, reference: Reference) -> None:
    assert parse_reference(text) == reference


@pytest.mark.parametrize("text", ["", "acme", "acme/mini@", "@blue", "models/acme/mini/versions/", "models/a/b/x/c"])
def test_no_reference_is_made_of_less(text: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        parse_reference(text)
    assert raised.value.fields[0].field == "reference"


@given(st.text(max_size=60))
def test_a_reference_is_parsed_or_refused_and_never_anything_else(text: str) -> None:
    try:
        reference = parse_reference(text)
    except InvalidArgument:
        return
    assert parse_reference(str(reference)).selector == reference.selector
    assert parse_model_name(reference.model_id.name) == reference.model_id


@pytest.mark.parametrize("text", ["", "a.b", "-a", "a" * 256, "ä", "latest", "a/b"])
def test_an_alias_is_a_slug_and_latest_is_not_for_setting(text: str) -> None:
    with pytest.raises(InvalidArgument):
        check_alias(text)
    assert check_alias("staging") == "staging"


@pytest.mark.parametrize("text", ["archived", "Archived", "LATEST", "Production", "STAGING"])
def test_a_state_is_no_alias_and_neither_is_what_looks_like_a_reserved_one(text: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        check_alias(text)
    assert [found.field for found in raised.value.fields] == ["alias"]


def test_tasks_are_known_by_our_words_and_by_the_hubs() -> None:
    assert parse_task("TXT2EMBED") is TaskType.TXT2EMBED
    assert parse_task("sentence-similarity") is TaskType.TXT2EMBED
    assert set(PIPELINE_TAGS.values()) == set(TaskType)
    with pytest.raises(InvalidArgument):
        parse_task("telepathy")


def test_the_current_version_is_production_else_latest() -> None:
    assert current_version_of({}) is None
    assert current_version_of({MANAGED_ALIAS: "2", "staging": "3"}) == "2"
    assert current_version_of({MANAGED_ALIAS: "2", "production": "1"}) == "1"


def test_resources_are_bounded_each_by_its_own_rule() -> None:
    ResourceRequirements(memory_bytes=1, accelerator_memory_bytes=0, cpu_threads=1)
    for wrong in ({"memory_bytes": 0}, {"memory_bytes": 1, "accelerator_memory_bytes": -1}, {"memory_bytes": 2**63}):
        with pytest.raises(ValidationError):
            ResourceRequirements(**wrong)
    with pytest.raises(ValidationError):
        ResourceRequirements(memory_bytes=1, cpu_threads=0)


def test_a_source_is_exactly_one() -> None:
    for wrong in ({}, {"empty": {}, "local": {"path": "/x"}}):
        with pytest.raises(ValidationError):
            ModelSource.model_validate(wrong)
    assert not ModelSource.model_validate({"empty": {}}).has_files


@pytest.mark.parametrize("path", ["a", "a/b.json", "1_Pooling/config.json", ".hidden", "ü.txt", "a b"])
def test_ordinary_file_names_are_taken(path: str) -> None:
    assert file_path_problem(path) is None


@pytest.mark.parametrize(
    "path",
    [
        *("", "/a", "..", "../a", "a/../b", "a/./b", "a//b", "a/", "./a", "C:/a", "c:\\a", "a\\b", "a\x00", "a\nb"),
        *("con", "NUL.txt", "a/com1", "lpt9.json", "x" * 256, "a/" * 500 + "a", "\udcff"),
    ],
)
def test_names_that_leave_the_folder_or_are_devices_are_refused(path: str) -> None:
    assert file_path_problem(path)


def test_checksums_have_safe_paths_and_full_digests() -> None:
    assert check_checksums({"a": SHA}) == {"a": SHA}
    for wrong in ({"../a": SHA}, {"a": "0" * 64}, {"a": SHA.upper()}, {"a": SHA + "0"}):
        with pytest.raises(InvalidArgument):
            check_checksums(wrong)


@given(st.lists(st.tuples(st.text("abc/", min_size=1, max_size=5), st.integers(0, 9)), max_size=6), st.randoms())
def test_a_digest_knows_no_order_and_no_place(files: list[tuple[str, int]], random: object) -> None:
    known = {path: size for path, size in files if file_path_problem(path) is None}
    made = [ArtifactFile(path=path, size_bytes=size, sha256=SHA) for path, size in known.items()]
    shuffled = list(made)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = Artifact.of("/a", made), Artifact.of("/b", shuffled)
    assert one.digest == other.digest
    assert [file.path for file in one.files] == sorted(known)
    assert one.size_bytes == sum(known.values())


def test_a_digest_sees_names_sizes_and_contents() -> None:
    file = ArtifactFile(path="a", size_bytes=1, sha256=SHA)
    digests = {
        Artifact.of("", files).digest
        for files in (
            [],
            [file],
            [file.model_copy(update={"path": "b"})],
            [file.model_copy(update={"size_bytes": 2})],
            [file.model_copy(update={"sha256": SHA[:-1] + "1"})],
        )
    }
    assert len(digests) == 5


def registered(**fields: object) -> Model:
    return Model.register(MINI, ModelDraft.model_validate(fields), uid="u", now=EARLY)


def test_each_change_is_the_next_revision_of_the_same_thing() -> None:
    model = registered(display_name="  Mini ", labels={"a": "b"})
    assert (model.display_name, model.revision, model.create_time) == ("Mini", 1, EARLY)
    changed = model.updated(ModelDraft(description="new"), ["description"], now=LATE)
    assert (changed.revision, changed.create_time, changed.update_time) == (2, EARLY, LATE)
    assert changed.display_name == "Mini"
    assert changed == model
    assert hash(changed) == hash(model)
    assert changed.etag != model.etag
    assert model.description == ""
    with pytest.raises(TypeError):
        model.labels["c"] = "d"  # type: ignore[index]
    with pytest.raises(ValidationError):
        model.description = "x"


def test_values_are_equal_by_their_parts_entities_by_their_uid() -> None:
    assert ModelId.parse("a/b") == ModelId.parse("a/b")
    assert len({ModelId.parse("a/b"), ModelId.parse("a/b")}) == 1
    assert registered() != registered().model_copy(update={"uid": "v"})


def test_a_stale_etag_is_a_conflict() -> None:
    model = registered()
    model.check_etag("")
    model.check_etag(model.etag)
    with pytest.raises(Conflict):
        model.changed(now=LATE).check_etag(model.etag)


@pytest.mark.parametrize("mask", [[], ["uid"], ["description", "name"], ["displayName"]])
def test_a_mask_names_what_can_be_updated(mask: list[str]) -> None:
    with pytest.raises(InvalidArgument) as raised:
        registered().updated(ModelDraft(), mask, now=LATE)
    assert raised.value.fields[0].field == "update_mask"


def creating() -> ModelVersion:
    return ModelVersion(name=MINI.version_name("1"), version="1", uid="u", revision=1, progress=ImportProgress())


def test_a_version_becomes_ready_or_failed_and_nothing_after() -> None:
    ready = creating().ready(Artifact.of("/x", ()), limits=ModelLimits(max_input_tokens=5), now=LATE)
    assert (ready.state, ready.revision, ready.progress) == (ModelVersionState.READY, 2, None)
    assert ready.limits == ModelLimits(max_input_tokens=5)
    failed = creating().failed(Failure(reason="StorageFull", message="x" * 3000), now=LATE)
    assert failed.state is ModelVersionState.FAILED
    assert failed.failure is not None
    assert len(failed.failure.message) == 2000
    for final in (ready, failed):
        assert final.is_final
        with pytest.raises(IllegalTransition):
            final.ready(Artifact.of("/x", ()), limits=ModelLimits(), now=LATE)
        with pytest.raises(IllegalTransition):
            final.failed(Failure(reason="x"), now=LATE)
        with pytest.raises(IllegalTransition):
            final.progressed(ImportProgress(), now=LATE)


def test_what_the_owner_says_about_limits_wins_over_the_files() -> None:
    said = creating().model_copy(update={"limits": ModelLimits(max_input_tokens=7)})
    ready = said.ready(Artifact.of("/x", ()), limits=ModelLimits(max_input_tokens=5, embedding_dimensions=3), now=LATE)
    assert ready.limits == ModelLimits(max_input_tokens=7, embedding_dimensions=3)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}, "a\x00b"])
def test_options_that_json_cannot_hold_are_refused(value: object) -> None:
    with pytest.raises(ValidationError):
        VersionDraft.model_validate({"engine_options": {"x": value}})


def test_options_are_read_only_to_the_bottom() -> None:
    options = VersionDraft.model_validate({"engine_options": {"a": {"b": [1]}}}).engine_options
    assert options is not None
    with pytest.raises(TypeError):
        options["a"]["b"] = 2
    assert options["a"]["b"] == (1,)


def test_a_folder_name_becomes_a_slug() -> None:
    assert slug("My model (final)!") == "My-model-final"
    assert slug("../..") == ""


def test_a_long_description_is_counted_in_characters() -> None:
    with pytest.raises(ValidationError, match="100000 characters"):
        ModelDraft(description="x" * 100_001)
    with pytest.raises(ValidationError, match="NUL"):
        ModelDraft(description="\x00")
