"""The registry's values and the proto's messages have the same fields, and values come back from the wire unchanged."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from modelmora.common.v1 import common_pb2
from modelmora.errors import InvalidArgument
from modelmora.registry.v1 import registry_pb2 as pb
from modelmora_registry import domain, links, locks, selection
from modelmora_runtime.protomap import read, to_plain, write
from pydantic import BaseModel

PAIRS: list[tuple[type[BaseModel], type[Message]]] = [
    (domain.Model, pb.Model),
    (domain.ModelVersion, pb.ModelVersion),
    (domain.ModelSource, pb.ModelSource),
    (domain.LocalSource, pb.LocalSource),
    (domain.HubSource, pb.HubSource),
    (domain.EmptySource, pb.EmptySource),
    (domain.UrlSource, pb.UrlSource),
    (links.ExternalLink, pb.ExternalLink),
    (locks.ModelLock, pb.ModelLock),
    (locks.LockedModel, pb.LockedModel),
    (locks.Fingerprint, pb.Fingerprint),
    (locks.GoldenInputs, pb.GoldenInputs),
    (locks.Tensor, common_pb2.Tensor),
    (locks.Drift, pb.Drift),
    (locks.FileVerdict, pb.FileVerdict),
    (domain.Artifact, pb.Artifact),
    (domain.ArtifactFile, pb.ArtifactFile),
    (domain.ResourceRequirements, pb.ResourceRequirements),
    (domain.ModelLimits, pb.ModelLimits),
    (domain.ImportProgress, pb.ImportProgress),
    (domain.Failure, pb.Failure),
    (domain.ModelMetadata, pb.ModelMetadata),
    (domain.AliasChange, pb.AliasChange),
    (domain.AuditEntry, pb.AuditEntry),
    (selection.RejectedVersion, pb.RejectedVersion),
    (domain.EngineProfile, common_pb2.EngineProfile),
]
DERIVED = {"etag", "modality", "servable"}
"""Fields of the message that the value computes."""


@pytest.mark.parametrize(("value", "message"), PAIRS, ids=lambda cls: cls.__name__)
def test_no_field_exists_on_one_side_only(value: type[BaseModel], message: type[Message]) -> None:
    proto = set(message.DESCRIPTOR.fields_by_name)
    computed = {name for name in DERIVED & proto if isinstance(getattr(value, name, None), property)}
    assert set(value.model_fields) | computed == proto


def test_every_message_of_the_registry_that_is_no_request_has_its_value() -> None:
    mapped = {message.DESCRIPTOR.name for _, message in PAIRS}
    messages = set(pb.DESCRIPTOR.message_types_by_name)
    assert {name for name in messages if not name.endswith(("Request", "Response"))} <= mapped


@pytest.mark.parametrize(
    ("words", "enum"),
    [
        (domain.TaskType, common_pb2.TaskType),
        (domain.ModelVersionState, pb.ModelVersionState),
        (links.SyncState, pb.SyncState),
    ],
)
def test_no_word_exists_on_one_side_only(words: Any, enum: Any) -> None:
    prefix = enum.DESCRIPTOR.values_by_number[0].name.removesuffix("UNSPECIFIED")
    known = {value.name.removeprefix(prefix).lower() for value in enum.DESCRIPTOR.values if value.number}
    assert {word.value for word in words} == known


@pytest.mark.parametrize(
    ("draft", "message"),
    [
        (domain.ModelDraft, pb.Model),
        (domain.VersionDraft, pb.ModelVersion),
        (domain.VersionDraft, pb.ImportModelRequest),
        (links.LinkDraft, pb.ExternalLink),
    ],
)
def test_drafts_read_only_what_the_message_has(draft: type[BaseModel], message: type[Message]) -> None:
    missing = set(draft.model_fields) - set(message.DESCRIPTOR.fields_by_name)
    only_later = {"limits", "labels", "metrics", "training_job"}
    assert missing <= (only_later if message is pb.ImportModelRequest else set())


def test_criteria_read_all_that_a_selection_asks() -> None:
    fields = set(pb.SelectModelVersionRequest.DESCRIPTOR.fields_by_name)
    assert set(selection.Criteria.model_fields) | {"name"} == fields


names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
digests = st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True)
paths = st.from_regex(r"[a-z]{1,4}(/[a-z]{1,4}){0,2}\.json", fullmatch=True).filter(
    lambda path: domain.file_path_problem(path) is None
)
text = st.text(max_size=20).filter(lambda value: "\x00" not in value)
positive = st.integers(1, 2**31 - 1)
times = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC))
finite = st.floats(allow_nan=False, allow_infinity=False).filter(lambda x: not x.is_integer()) | st.integers(-99, 99)
options = st.recursive(
    st.none() | st.booleans() | finite | text,
    lambda inner: st.lists(inner, max_size=2).map(tuple) | st.dictionaries(text, inner, max_size=2),
    max_leaves=5,
)
sources = st.one_of(
    st.builds(domain.ModelSource, local=st.builds(domain.LocalSource, path=st.just("/models/x"))),
    st.builds(domain.ModelSource, empty=st.builds(domain.EmptySource)),
    st.builds(
        domain.ModelSource,
        url=st.builds(
            domain.UrlSource,
            url=st.sampled_from(["s3://bucket/models/a", "https://host:8443/a/"]),
            files=st.lists(st.just("config.json"), max_size=1).map(tuple),
        ),
    ),
    st.builds(
        domain.ModelSource,
        hub=st.builds(
            domain.HubSource,
            repo_id=st.builds("{}/{}".format, names, names),
            revision=st.none() | st.just("main"),
            commit=st.just("") | st.from_regex(r"[0-9a-f]{40}", fullmatch=True),
        ),
    ),
)
versions = st.builds(
    domain.ModelVersion,
    uid=st.uuids().map(str),
    name=st.builds("models/{}/{}/versions/1".format, names, names),
    version=st.just("1"),
    state=st.sampled_from(domain.ModelVersionState),
    task_type=st.none() | st.sampled_from(domain.TaskType),
    engine=text,
    engine_options=st.none() | st.dictionaries(text, options, max_size=3),
    source=sources,
    artifact=st.none()
    | st.builds(
        domain.Artifact.of,
        text,
        st.lists(
            st.builds(domain.ArtifactFile, path=paths, size_bytes=st.integers(0, 2**40), sha256=digests), max_size=3
        ),
    ),
    resource_requirements=st.none()
    | st.builds(
        domain.ResourceRequirements,
        memory_bytes=st.integers(1, 2**63 - 1),
        accelerator_memory_bytes=st.integers(0, 2**63 - 1),
        cpu_threads=st.none() | positive,
    ),
    engine_profile=st.none()
    | st.builds(
        domain.EngineProfile,
        backend=text,
        precision=text,
        library_versions=st.dictionaries(text, text, max_size=2),
        batch_rule=text,
    ),
    limits=st.none()
    | st.builds(domain.ModelLimits, max_input_tokens=st.none() | positive, embedding_dimensions=st.none() | positive),
    progress=st.none()
    | st.builds(
        domain.ImportProgress,
        done_bytes=st.integers(0, 2**63 - 1),
        total_bytes=st.integers(0, 2**63 - 1),
        current_file=text,
        bytes_per_second=st.floats(0, 2**40),
        remaining=st.none() | st.timedeltas(timedelta(0), timedelta(days=9)),
    ),
    failure=st.none() | st.builds(domain.Failure, reason=text, message=text),
    metadata=st.none()
    | st.builds(
        domain.ModelMetadata,
        architecture=st.none() | text,
        parameter_count=st.none() | st.integers(0, 2**63 - 1),
        context_length=st.none() | positive,
        weight_bytes=st.dictionaries(text, st.integers(0, 2**63 - 1), max_size=2),
        tags=st.lists(text, max_size=2).map(tuple),
    ),
    metrics=st.dictionaries(text, finite.map(float), max_size=2),
    archive_time=st.none() | times,
    labels=st.dictionaries(text, text, max_size=2),
    training_job=text,
    verify_time=st.none() | times,
    revision=st.integers(0, 2**63 - 1),
    create_time=times,
    update_time=times,
)


def without_derived(message: Message) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    for field in DERIVED & set(copy.DESCRIPTOR.fields_by_name):
        copy.ClearField(field)
    return {name: item for name, item in to_plain(copy).items() if name not in DERIVED}


@settings(max_examples=150, deadline=None)
@given(version=versions)
def test_a_version_comes_back_from_the_wire_unchanged(version: domain.ModelVersion) -> None:
    message = pb.ModelVersion.FromString(write(version, pb.ModelVersion).SerializeToString())
    assert message.etag == version.etag
    back = domain.ModelVersion.model_validate(without_derived(message))
    assert {name: getattr(back, name) for name in domain.ModelVersion.model_fields} == {
        name: getattr(version, name) for name in domain.ModelVersion.model_fields
    }


@settings(max_examples=50, deadline=None)
@given(
    labels=st.dictionaries(st.from_regex(r"[a-z0-9_-]{1,9}", fullmatch=True), text, max_size=3),
    task_type=st.none() | st.sampled_from(domain.TaskType),
    description=text,
)
def test_a_draft_is_read_from_what_a_client_writes(labels: Any, task_type: Any, description: str) -> None:
    draft = domain.ModelDraft(labels=labels, task_type=task_type, description=description)
    assert read(write(draft, pb.Model), domain.ModelDraft) == draft


@pytest.mark.parametrize(
    ("message", "cls", "field"),
    [
        (pb.Model(task_type=99), domain.ModelDraft, "x.task_type"),  # type: ignore[arg-type]
        (pb.ModelVersion(task_type=-1), domain.VersionDraft, "x.task_type"),  # type: ignore[arg-type]
        (
            pb.ModelVersion(resource_requirements=pb.ResourceRequirements(memory_bytes=-(2**63))),
            domain.VersionDraft,
            "x.resource_requirements.memory_bytes",
        ),
        (
            pb.ModelVersion(source=pb.ModelSource(local=pb.LocalSource(path="x"))),
            domain.VersionDraft,
            "x.source.local.path",
        ),
        (pb.ModelVersion(source=pb.ModelSource()), domain.VersionDraft, "x.source"),
    ],
)
def test_a_broken_rule_names_the_field_of_the_request(message: Message, cls: type[BaseModel], field: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        read(message, cls, at="x")
    assert [violation.field for violation in raised.value.fields] == [field]
