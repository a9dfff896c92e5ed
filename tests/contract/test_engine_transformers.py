"""The transformers engine against the library it stands on, with small models of real architectures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
from modelmora import errors
from modelmora.worker.v1 import worker_pb2
from modelmora_worker.engines import base
from modelmora_worker.engines.transformers import TransformersEngine
from small_models import LABELS, build, sentences

PAIRS = [(query, text) for query, text in zip(sentences(30, 3, 8), sentences(30, 4, 40), strict=True)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = build(kind, tmp_path_factory.mktemp(kind))
        return made[kind]

    return get


@pytest.fixture
def load(folder: Callable[[str], Path]) -> Iterator[Callable[..., TransformersEngine]]:
    loaded: list[TransformersEngine] = []

    def load(kind: str, task: str, **options: Any) -> TransformersEngine:
        engine = TransformersEngine()
        spec = base.EngineSpec("transformers", artifact_path=str(folder(kind)), task=task, options=options)
        engine.footprint = engine.load(spec, lambda *_: None)  # type: ignore[attr-defined]
        loaded.append(engine)
        return engine

    yield load
    for engine in loaded:
        engine.close()


def entry(text: str, pair: str = "", **fields: Any) -> worker_pb2.TextEntry:
    return worker_pb2.TextEntry(text=text, pair=pair, **{"truncate": True, **fields})


def scores(engine: base.Engine, entries: Sequence[worker_pb2.TextEntry]) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for batch in engine.prepare(entries).micro_batches:
        rows = engine.infer(batch)
        width = rows.dimensions[0]
        assert rows.dimensions == [width] * len(batch.positions)
        for position, row in zip(batch.positions, numpy.frombuffer(rows.data, "<f4").reshape(-1, width), strict=True):
            assert position not in found
            found[position] = row
    return found


def reference(folder: Path, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Any:
    """Logits of each text alone, by plain transformers."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    model = AutoModelForSequenceClassification.from_pretrained(str(folder)).eval()
    rows = []
    for n, text in enumerate(texts):
        tokens = tokenizer(text, pairs[n] if pairs else None, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            rows.append(model(**tokens).logits[0].numpy())
    return numpy.stack(rows)


def test_every_score_of_a_reranker_is_the_librarys_for_its_pair_alone(load, folder):
    engine = load("reranker", "reranking")
    raw = scores(engine, [entry(query, text, raw_scores=True) for query, text in PAIRS])
    want = reference(folder("reranker"), [query for query, _ in PAIRS], [text for _, text in PAIRS])
    assert max(abs(float(raw[n][0] - want[n][0])) for n in range(len(PAIRS))) < 1e-4
    assert numpy.ptp(want) > 0.5, "the scores tell the pairs apart"
    likely = scores(engine, [entry(query, text) for query, text in PAIRS])
    for n in range(len(PAIRS)):
        assert float(likely[n][0]) == pytest.approx(1 / (1 + numpy.exp(-float(want[n][0]))), abs=1e-4)


def test_every_score_of_a_classifier_is_the_librarys_for_its_text_alone(load, folder):
    engine = load("classifier", "classification")
    texts = sentences(40, 5, 90)
    want = reference(folder("classifier"), texts)
    raw = scores(engine, [entry(text, raw_scores=True) for text in texts])
    mixed = scores(engine, [entry(text, raw_scores=n % 2 == 0) for n, text in enumerate(texts)])
    for n in range(len(texts)):
        assert numpy.abs(raw[n] - want[n]).max() < 1e-4
        soft = numpy.exp(want[n] - want[n].max())
        assert numpy.abs(mixed[n] - (want[n] if n % 2 == 0 else soft / soft.sum())).max() < 1e-4
    assert list(engine.footprint.labels) == list(LABELS.values())
    assert engine.footprint.max_input_tokens == 64, "of RoBERTa's 66 positions two are no token's"


def test_labels_that_may_be_right_at_once_have_probabilities_of_their_own(load, folder):
    texts = sentences(10, 6)
    want = reference(folder("tagger"), texts)
    found = scores(load("tagger", "classification"), [entry(text) for text in texts])
    for n in range(len(texts)):
        assert numpy.abs(found[n] - 1 / (1 + numpy.exp(-want[n]))).max() < 1e-4


def test_pairs_and_single_texts_share_a_batch(load, folder):
    engine = load("classifier", "classification")
    entries = [entry(a, b if n % 3 else "", raw_scores=True) for n, (a, b) in enumerate(PAIRS)]
    found = scores(engine, entries)
    for n, one in enumerate(entries):
        (want,) = reference(folder("classifier"), [one.text], [one.pair] if one.pair else None)
        assert numpy.abs(found[n] - want).max() < 1e-4


def test_what_may_not_be_cut_fails_alone_and_so_does_a_query_without_a_text(load):
    engine = load("reranker", "reranking")
    long = "river " * 200
    prepared = engine.prepare(
        [entry("cat", "city"), entry("cat", long, truncate=False), entry("cat"), entry("a", long)]
    )
    assert [(position, error.reason) for position, error in prepared.failed] == [
        (1, "TextTooLong"),
        (2, "InvalidArgument"),
    ]
    told = {
        position: (tokens, cut)
        for batch in prepared.micro_batches
        for position, tokens, cut in zip(batch.positions, batch.input_tokens, batch.truncated, strict=True)
    }
    assert told[3] == (64, True)
    assert not told[0][1]


def test_a_head_that_the_files_do_not_have_is_not_made_up(folder, tmp_path):
    from transformers import BertModel

    shutil.copytree(folder("reranker"), tmp_path / "headless")
    BertModel.from_pretrained(str(folder("reranker"))).save_pretrained(tmp_path / "base")
    shutil.copy(tmp_path / "base" / "model.safetensors", tmp_path / "headless" / "model.safetensors")
    with pytest.raises(errors.InvalidModelFiles, match="no weights for classifier"):
        TransformersEngine().load(
            base.EngineSpec("transformers", artifact_path=str(tmp_path / "headless"), task="reranking"), lambda *_: None
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_labels": 3, "id2label": None, "label2id": None}, "one label"),
        ({"auto_map": {"AutoConfig": "evil.Evil"}, "model_type": "evil"}, "custom code"),
        ({"vocab_size": 17}, "another shape"),
    ],
)
def test_files_that_do_not_fit_the_task_are_refused(folder, tmp_path, change: Mapping[str, Any], message: str):
    shutil.copytree(folder("reranker"), tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    for key, value in change.items():
        config.pop(key, None)
        if key == "num_labels":
            config["id2label"] = {str(n): f"l{n}" for n in range(value)}
            config["label2id"] = {f"l{n}": n for n in range(value)}
        elif value is not None:
            config[key] = value
    (tmp_path / "m" / "evil.py").write_text("raise SystemExit('code of the folder ran')")
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(errors.InvalidModelFiles, match=message):
        TransformersEngine().load(
            base.EngineSpec("transformers", artifact_path=str(tmp_path / "m"), task="reranking"), lambda *_: None
        )


def test_pickled_weights_are_not_loaded(folder, tmp_path):
    import torch

    shutil.copytree(folder("reranker"), tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    torch.save({}, tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(errors.InvalidModelFiles, match="safetensors"):
        TransformersEngine().load(
            base.EngineSpec("transformers", artifact_path=str(tmp_path / "m"), task="reranking"), lambda *_: None
        )
