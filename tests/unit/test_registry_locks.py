"""Model locks: one text for one lock, strict reading, what differs, what drifted."""

from __future__ import annotations

import math
import string
import struct
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from modelmora.errors import InvalidArgument
from modelmora_registry import domain, lock_yaml, locks
from modelmora_registry.locks import Fingerprint, LockDocument, LockedModel, Tensor, diff, drifts, render

DIGEST = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64
WEIGHTS = "model.safetensors"


def tensor(*rows: tuple[float, ...]) -> Tensor:
    return Tensor(shape=(len(rows), len(rows[0])), data=b"".join(struct.pack(f"<{len(row)}f", *row) for row in rows))


def profile(**libraries: str) -> domain.EngineProfile:
    return domain.EngineProfile(backend="torch", precision="fp32", library_versions=libraries, batch_rule="padded")


def locked(
    version: str = "1.0", *, files: dict[str, str] | None = None, outputs: Tensor | None = None, **fields: Any
) -> LockedModel:
    """A locked version; `files` are digests by path."""
    made = [
        domain.ArtifactFile(path=path, size_bytes=3, sha256=sha256)
        for path, sha256 in (files or {WEIGHTS: DIGEST, "config.json": OTHER}).items()
    ]
    fingerprint = None
    if outputs is not None:
        fingerprint = Fingerprint(
            golden="txt2embed/1", outputs=outputs, tolerance=0.9999, engine_profile=profile(torch="2.13.0")
        )
    given: dict[str, Any] = {
        "model_version": f"models/acme/mini/versions/{version}",
        "digest": domain.Artifact.of("", made).digest,
        "files": tuple(made),
        "engine": "sentence_transformers",
        "task_type": "txt2embed",
        "engine_profile": profile(torch="2.13.0"),
        "fingerprint": fingerprint,
    }
    return LockedModel(**{**given, **fields})


def document(*models: LockedModel) -> LockDocument:
    return LockDocument.of(models)


# The text.

words = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00"), max_size=12)
keys = st.text(string.printable + "é🙂", min_size=1, max_size=10)
numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False).filter(
    lambda number: not number.is_integer() or abs(number) > 2**53
)
options = st.recursive(
    st.none() | st.booleans() | numbers | words,
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)
paths = st.from_regex(r"[a-z]{1,6}(/[a-z]{1,6}){0,2}\.(json|txt)", fullmatch=True).filter(
    lambda path: domain.file_path_problem(path) is None
)
digests = st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True)
profiles = st.builds(
    domain.EngineProfile,
    backend=words,
    precision=words,
    library_versions=st.dictionaries(keys, words, max_size=3),
    batch_rule=words,
)
tensors = st.tuples(st.integers(1, 3), st.integers(1, 3)).flatmap(
    lambda shape: st.binary(min_size=4 * shape[0] * shape[1], max_size=4 * shape[0] * shape[1]).map(
        lambda data: Tensor(shape=shape, data=data)
    )
)
sources = st.sampled_from(
    [
        None,
        domain.ModelSource(empty=domain.EmptySource()),
        domain.ModelSource(local=domain.LocalSource(path="/models/größe x: #1")),
        domain.ModelSource(hub=domain.HubSource(repo_id="a/b", revision="main", commit="0" * 40)),
    ]
)


@st.composite
def models(draw: st.DrawFn) -> LockedModel:
    files = [
        domain.ArtifactFile(path=path, size_bytes=draw(st.integers(0, 2**60)), sha256=draw(digests))
        for path in draw(st.lists(paths, max_size=4, unique=True))
    ]
    version = draw(st.from_regex(r"v?[0-9]\.[0-9]{1,3}", fullmatch=True) | st.just("main"))
    return LockedModel(
        model_version=f"models/{draw(st.sampled_from(['a/b', 'true/no', '1/2']))}/versions/{version}",
        source=draw(sources),
        digest=domain.Artifact.of("", files).digest,
        files=tuple(files),
        tokenizer_digest=draw(st.just("") | digests),
        engine=draw(words.filter(bool)),
        engine_options=draw(st.none() | st.dictionaries(keys, options, max_size=3)),
        task_type=draw(st.none() | st.sampled_from(domain.TaskType)),
        dtype=draw(words),
        engine_profile=draw(st.none() | profiles),
        resource_requirements=draw(
            st.none() | st.builds(domain.ResourceRequirements, memory_bytes=st.integers(1, 2**62))
        ),
        fingerprint=draw(
            st.none()
            | st.builds(
                Fingerprint,
                golden=words.filter(bool),
                outputs=tensors,
                tolerance=st.floats(-0.99, 1),
                engine_profile=profiles,
            )
        ),
    )


documents = st.lists(models(), min_size=1, max_size=3, unique_by=lambda model: model.model_version).map(
    lambda found: document(*found)
)


@settings(max_examples=25, deadline=None)
@given(lock=documents)
def test_a_lock_comes_back_from_its_text_and_gives_the_same_bytes(lock: LockDocument) -> None:
    text = render(lock)
    back = lock_yaml.read(text)
    assert back == lock
    assert render(back) == text
    assert text.isascii()
    assert yaml.safe_load(text)["format"] == locks.FORMAT, "every YAML reader reads it"


@settings(max_examples=10, deadline=None)
@given(lock=documents)
def test_nothing_drifted_between_a_lock_and_itself(lock: LockDocument) -> None:
    assert diff(lock, lock) == []
    for index, model in enumerate(lock.models):
        assert [drift for drift in drifts(index, model, model) if ".fingerprint" not in drift.field] == []


def test_the_order_in_which_models_and_files_are_named_is_no_part_of_a_lock() -> None:
    one, other = locked("1.0"), locked("2.0")
    turned = locked("1.0", files={"config.json": OTHER, WEIGHTS: DIGEST})
    assert render(document(one, other)) == render(document(other, turned))


def test_the_text_of_a_lock_is_for_ever() -> None:
    text = render(document(locked(outputs=tensor((1.0, 0.0)), engine_options={"a": [1e22, "no", {"x": None}]})))
    assert locks.digest_of(text).startswith("sha256:b443bd7119ee3edf"), text


@pytest.mark.parametrize(
    "word", ["no", "Yes", "true", "null", "~", "1.0", "1e3", "0x1", "2026-01-01", "a: b", "- a", ""]
)
def test_words_that_mean_something_else_in_yaml_stay_words(word: str) -> None:
    (model,) = lock_yaml.read(render(document(locked(engine_options={"a": word})))).models
    assert model.engine_options == {"a": word}


# Reading.


def lines_of(text: str, old: str, new: str) -> tuple[str, int]:
    """The text with `old` replaced, and the line where that is."""
    assert text.count(old) == 1, text
    return text.replace(old, new), text[: text.index(old)].count("\n") + 1


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("engine: sentence_transformers", "engine_name: x", "yaml.models[0].engine_name"),
        ("backend: torch", "backend: [torch]", "yaml.models[0].engine_profile.backend"),
        (f"sha256: {DIGEST}", "sha256: sha256:none", "yaml.models[0].files[1].sha256"),
        ("path: config.json", "path: ../config.json", "yaml.models[0].files[0].path"),
        ("path: config.json", "path: /etc/passwd", "yaml.models[0].files[0].path"),
        ("format: modelmora.lock/1", "format: modelmora.lock/2", "yaml.format"),
        ("models/acme/mini/versions/1.0", "acme/mini@1.0", "yaml.models[0].model_version"),
        ("task_type: txt2embed", "task_type: &a txt2embed", "yaml"),
        ("task_type: txt2embed", "task_type: !!python/object:os.system txt2embed", "yaml"),
        ("task_type: txt2embed", "task_type: txt2embed\n    task_type: txt2embed", "yaml.models[0].task_type"),
        ("task_type: txt2embed", "task_type: txt2embed\n    ? [a]\n    : b", "yaml"),
        ("task_type: txt2embed", "task_type: 'open", "yaml"),
        ("task_type: txt2embed", "dtype: .nan", "yaml.models[0].dtype"),
    ],
)
def test_what_cannot_be_read_is_told_with_line_and_field(old: str, new: str, field: str) -> None:
    text, line = lines_of(render(document(locked())), old, new)
    with pytest.raises(InvalidArgument) as raised:
        lock_yaml.read(text)
    told = {violation.field: violation.description for violation in raised.value.fields}
    assert field in told, told
    number = int(told[field].removeprefix("line ").partition(":")[0])
    last = line + 2 if "'open" not in new else text.count("\n") + 1  # An open quote is missed at the end.
    assert line <= number <= last, told[field]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "text",
        "format: modelmora.lock/1\nmodels: []\n",
        "--- {}\n--- {}\n",
        "a: &a [x]\nb: [*a, *a]\n",
        "x: " + "[" * 100 + "]" * 100,
        "format: modelmora.lock/1\nmodels: {}\n",
        "# " + "x" * (lock_yaml.MAX_LOCK_BYTES + 1),
        "x: [" + "1," * (lock_yaml.MAX_NODES + 10) + "]",
    ],
    ids=["empty", "list", "text", "none", "two", "alias", "deep", "mapping", "large", "many"],
)
def test_what_is_no_lock_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        lock_yaml.read(text)


def test_a_lock_whose_digest_is_not_that_of_its_files_is_refused() -> None:
    text = render(document(locked())).replace(f"sha256: {OTHER}", f"sha256: {DIGEST}")
    with pytest.raises(InvalidArgument, match="make the digest"):
        lock_yaml.read(text)


def test_a_model_or_a_file_that_is_named_twice_is_refused() -> None:
    text = render(document(locked()))
    head, _, model = text.partition("models:\n")
    with pytest.raises(InvalidArgument, match="there twice"):
        lock_yaml.read(head + "models:\n" + model + model)
    file = domain.ArtifactFile(path="a", size_bytes=1, sha256=DIGEST)
    with pytest.raises(ValueError, match="there twice"):
        LockedModel(model_version="models/a/b/versions/1", digest=DIGEST, files=(file, file), engine="x")


# Differences.


def told(found: list[locks.Drift]) -> dict[str, tuple[str, str]]:
    return {drift.field: (drift.locked, drift.found) for drift in found}


def test_a_changed_file_and_a_changed_library_are_named_by_their_place_in_the_lock() -> None:
    here = locked(files={WEIGHTS: OTHER, "config.json": OTHER}, engine_profile=profile(torch="2.14.0", tokenizers="1"))
    found = told(drifts(3, locked(), here))
    assert found[f'models[3].files["{WEIGHTS}"].sha256'] == (DIGEST, OTHER)
    assert found['models[3].engine_profile.library_versions["torch"]'] == ("2.13.0", "2.14.0")
    assert found['models[3].engine_profile.library_versions["tokenizers"]'] == ("", "1")
    assert len(found) == 4, "and the digest of the artifact"


def test_a_file_on_one_side_is_told_with_its_digest() -> None:
    found = told(drifts(0, locked(), locked(files={WEIGHTS: DIGEST, "new.json": OTHER})))
    assert found['models[0].files["config.json"]'] == (OTHER, "")
    assert found['models[0].files["new.json"]'] == ("", OTHER)


def test_a_version_that_is_gone_is_one_drift() -> None:
    assert told(drifts(1, locked(), None)) == {"models[1]": ("models/acme/mini/versions/1.0", "")}


def test_libraries_that_nobody_knows_are_no_drift() -> None:
    assert drifts(0, locked(), locked(engine_profile=domain.EngineProfile(backend="torch", precision="fp32"))) == []


def test_another_precision_is_drift() -> None:
    other = domain.EngineProfile(backend="torch", precision="bf16")
    assert told(drifts(0, locked(), locked(engine_profile=other))) == {
        "models[0].engine_profile.precision": ("fp32", "bf16")
    }


def test_where_the_same_files_came_from_is_no_drift_but_another_commit_is() -> None:
    def hub(commit: str, revision: str = "main") -> domain.ModelSource:
        return domain.ModelSource(hub=domain.HubSource(repo_id="a/b", revision=revision, commit=commit * 40))

    mirror = domain.ModelSource(local=domain.LocalSource(path="/mirror"))
    assert drifts(0, locked(source=hub("0")), locked(source=mirror)) == []
    assert drifts(0, locked(source=hub("0")), locked(source=hub("0", "v1"))) == []
    assert list(told(drifts(0, locked(source=hub("0")), locked(source=hub("1"))))) == ["models[0].source.hub.commit"]


def test_answers_within_the_tolerance_are_the_same_answers() -> None:
    one = locked(outputs=tensor((1.0, 0.0), (0.0, 1.0)))
    near = locked(outputs=tensor((1.0, 0.001), (0.0, 1.0)))
    far = locked(outputs=tensor((1.0, 0.1), (0.0, 1.0)))
    assert drifts(0, one, near) == []
    (drift,) = drifts(0, one, far)
    assert drift.field == "models[0].fingerprint.outputs"
    assert "0.995" in drift.found


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (tensor((1.0, 2.0)), tensor((1.0, 2.0)), 1.0),
        (tensor((1.0, 0.0), (1.0, 0.0)), tensor((1.0, 0.0), (0.0, 1.0)), 0.0),
        (tensor((1.0, 0.0)), tensor((-1.0, 0.0)), -1.0),
        (tensor((1.0, 0.0)), tensor((1.0, 0.0, 0.0)), -1.0),
        (tensor((0.0, 0.0)), tensor((1.0, 0.0)), -1.0),
        (tensor((math.nan, 0.0)), tensor((1.0, 0.0)), -1.0),
        (tensor((1.0, 0.0), (1.0, 1.0)), tensor((2.0, 0.0), (3.0, 3.0)), 1.0),
    ],
)
def test_the_least_cosine_is_that_of_the_worst_row(left: Tensor, right: Tensor, expected: float) -> None:
    assert locks.least_cosine(left, right) == pytest.approx(expected, abs=1e-6)


def test_diff_compares_a_model_across_its_versions_and_tells_who_is_alone() -> None:
    alone = locked(model_version="models/acme/alone/versions/1")
    found = told(diff(document(locked("1.0"), alone), document(locked("2.0", engine="x"))))
    assert found == {
        "models[0]": ("models/acme/alone/versions/1", ""),
        "models[1].model_version": ("models/acme/mini/versions/1.0", "models/acme/mini/versions/2.0"),
        "models[1].engine": ("sentence_transformers", "x"),
    }


def test_diff_compares_the_same_version_before_another_one_of_the_model() -> None:
    assert told(diff(document(locked("1.0")), document(locked("1.0"), locked("2.0")))) == {
        "models[1]": ("", "models/acme/mini/versions/2.0")
    }


def test_an_option_that_is_one_differs_from_one_that_is_true() -> None:
    found = told(diff(document(locked(engine_options={"x": 1})), document(locked(engine_options={"x": True}))))
    assert found == {'models[0].engine_options["x"]': ("1", "true")}


def test_what_verification_found_is_told_in_the_lock_s_places() -> None:
    verdicts = [
        locks.FileVerdict(path="a", verdict="intact", expected_sha256=DIGEST, found_sha256=DIGEST),
        locks.FileVerdict(path="b", verdict="changed", expected_sha256=DIGEST, found_sha256=OTHER),
        locks.FileVerdict(path="c", verdict="missing", expected_sha256=DIGEST),
        locks.FileVerdict(path="d", verdict="extra"),
    ]
    found = told(locks.file_drifts("models[0]", verdicts))
    assert list(found) == ['models[0].files["b"].sha256', 'models[0].files["c"]', 'models[0].files["d"]']
    assert found['models[0].files["b"].sha256'] == (DIGEST, OTHER)
    assert found['models[0].files["c"]'] == (DIGEST, "")


def test_golden_inputs_never_change() -> None:
    """Fingerprints are compared across years. Whoever wants others gives the set another number."""
    asked = locks.GOLDEN[domain.TaskType.TXT2EMBED]
    assert asked.golden == "txt2embed/1"
    assert locks.digest_of("\n".join(asked.texts)).startswith("sha256:dc0c31f5b52359e0")
    others = {
        golden.golden: locks.digest_of("\n".join((*golden.texts, *golden.pairs)))[:23]
        for golden in locks.GOLDEN.values()
        if golden is not asked
    }
    assert others == {
        "classification/1": "sha256:dc0c31f5b52359e0",
        "reranking/1": "sha256:48c16fc98295246d",
        "question_answering/1": "sha256:1adfa424457a782c",
    }
    assert {len(golden.pairs) for golden in locks.GOLDEN.values()} == {0, 3, 4}


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (tensor((1.5,), (-2.0,)), tensor((1.5,), (-2.0,)), 1.0),
        (tensor((0.5,), (0.25,)), tensor((0.5,), (0.5,)), 0.75),
        (tensor((1.0,), (2.0,)), tensor((3.0,), (6.0,)), 1 / 3),  # the cosine of rows of one is 1, whatever they are
        (tensor((0.9, 120.0, 130.0)), tensor((0.9, 120.0, 130.0)), 1.0),
        (tensor((0.9, 120.0, 130.0)), tensor((0.9, 120.0, 260.0)), 0.5),
        (tensor((100.0,)), tensor((-100.0,)), -1.0),
        (tensor((1.0,)), tensor((1.0, 1.0)), -1.0),
        (tensor((math.nan,)), tensor((1.0,)), -1.0),
        (tensor((math.inf,)), tensor((1.0,)), -1.0),
    ],
)
def test_scores_agree_as_far_as_the_two_that_differ_most(left: Tensor, right: Tensor, expected: float) -> None:
    assert locks.similarity_of("reranking/1", left, right) == pytest.approx(expected, abs=1e-6)
    assert locks.similarity_of("txt2embed/1", left, right) == locks.least_cosine(left, right)


def test_what_is_no_fp32_may_differ_more_and_scores_more_than_vectors() -> None:
    exact, bf16 = (domain.EngineProfile(backend="torch", precision=word) for word in ("fp32", "bf16"))
    order = [locks.tolerance_of(bf16, "reranking/1"), locks.tolerance_of(bf16, "txt2embed/1")]
    assert 0.9 < order[0] < order[1] < locks.tolerance_of(exact, "reranking/1") == 0.9999


@pytest.mark.parametrize("text", ["", "Prod", "1prod", "a" * 64, "a_b", "modelLocks/x/y"])
def test_a_lock_id_is_a_word_for_urls(text: str) -> None:
    with pytest.raises(InvalidArgument):
        locks.check_lock_id(text)
