"""Links to other registries as rules: their states, what a caller may ask for, how differences are told."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelmora.errors import Conflict, InvalidArgument
from modelmora_registry.domain import ModelId
from modelmora_registry.links import (
    ExternalLink,
    LinkDraft,
    RegistryType,
    SyncState,
    differences,
    link_name,
    parse_link_name,
)
from pydantic import ValidationError

NOW = datetime(2026, 1, 2, tzinfo=UTC)
UID = "01920000-0000-7000-8000-000000000000"
NEVER, SYNCED, OUT = SyncState.NEVER_SYNCED, SyncState.SYNCED, SyncState.OUT_OF_SYNC


def link() -> ExternalLink:
    name = link_name(ModelId.parse("a/b"), UID)
    return ExternalLink(name=name, uid=UID, registry_type=RegistryType.HUGGINGFACE, external_id="org/repo", revision=1)


STEPS = {
    "import": lambda each: each.with_import("1", now=NOW),
    "export": lambda each: each.with_export("2", (), {}, now=NOW),
    "equal": lambda each: each.checked("", {}, now=NOW),
    "differs": lambda each: each.checked("x differs there", {}, now=NOW),
}


@pytest.mark.parametrize(
    ("steps", "state"),
    [
        ([], NEVER),
        (["differs"], NEVER),
        (["differs", "equal"], SYNCED),
        (["import"], SYNCED),
        (["export"], SYNCED),
        (["import", "differs"], OUT),
        (["export", "differs", "differs"], OUT),
        (["import", "differs", "equal"], SYNCED),
        (["equal", "differs", "export"], SYNCED),
        (["equal", "differs", "import"], SYNCED),
    ],
)
def test_a_link_is_out_of_sync_only_after_it_was_in_sync(steps: list[str], state: SyncState) -> None:
    each = link()
    for step in steps:
        each = STEPS[step](each)
    assert each.sync_state is state
    assert each.revision == 1 + len(steps)


@given(st.lists(st.sampled_from(sorted(STEPS))))
def test_a_reason_stands_there_exactly_while_something_differs(steps: list[str]) -> None:
    each = link()
    for step in steps:
        each = STEPS[step](each)
    assert bool(each.sync_reason) == (bool(steps) and steps[-1] == "differs")
    assert (each.sync_state is SYNCED) == (bool(steps) and steps[-1] != "differs")
    assert each.sync_state is not NEVER or not {"import", "export", "equal"} & set(steps)


def test_differences_name_the_first_files_and_count_the_rest() -> None:
    assert differences([], [], []) == ""
    assert differences(["b", "a"], [], ["c"]) == "a, b differs there; c is there only"
    assert differences([], list("gfedcba"), []) == "a, b, c, d, e and 2 more is missing there"


@pytest.mark.parametrize(
    "fields",
    [
        {"registry_type": "modelscope", "external_id": "a/b"},
        {"registry_type": "", "external_id": "a/b"},
        {"registry_type": "huggingface", "external_id": "repo"},
        {"registry_type": "huggingface", "external_id": "../x"},
        {"registry_type": "folder", "external_id": "relative"},
        {"registry_type": "folder", "external_id": "/a\x00b"},
        {"registry_type": "folder", "external_id": "/" + "a" * 5000},
    ],
)
def test_a_link_that_leads_nowhere_is_refused(fields: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        LinkDraft.model_validate(fields)


def test_a_name_is_read_back_and_a_stale_etag_is_a_conflict() -> None:
    each = link()
    assert parse_link_name(each.name) == (ModelId.parse("a/b"), UID)
    each.check_etag("")
    each.check_etag(each.etag)
    with pytest.raises(Conflict):
        each.with_import("1", now=NOW).check_etag(each.etag)
    cut = f"{UID[:22]}-{UID[23:]}"  # as long as a uid, of the same letters
    for text in ("", "models/a/b", f"models/a/b/links/{UID}x", f"models/a/b/links/{cut}", f"models/a/links/{UID}"):
        with pytest.raises(InvalidArgument):
            parse_link_name(text)
