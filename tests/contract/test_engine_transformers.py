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
from modelmora_worker.engines.tokens import encode
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


@pytest.mark.parametrize("kind", ["reranker", "classifier"])
def test_what_is_cut_is_what_the_library_cuts(folder, kind):
    """Of texts alone and of pairs, whichever of both is the longer, and by how much."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder(kind)))
    text = {count: "river daß 東京 [SEP] </s> don't city 🙂 " * count for count in (1, 2, 3, 5, 12)}
    pairs = [(one, other) for one in text.values() for other in text.values()]
    for side in ("right", "left"):
        tokenizer.truncation_side = side
        for limit in range(5, 64, 3):
            for first, second in (
                ([one for one, _ in pairs], [other for _, other in pairs]),
                (list(text.values()), None),
            ):
                want = tokenizer(
                    first, second, truncation="longest_first", max_length=limit, return_attention_mask=False
                )
                whole = tokenizer(first, second, verbose=False)["input_ids"]
                found = encode(tokenizer, first, second, [limit] * len(first))
                assert [count for _, count in found] == [len(ids) for ids in whole]
                assert [row for row, _ in found] == [
                    dict(zip(want, row, strict=True)) for row in zip(*want.values(), strict=True)
                ]
                uncut = encode(tokenizer, first, second, [0] * len(first))
                assert [row["input_ids"] for row, _ in uncut] == whole


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


def spans(folder: Path, question: str, context: str, longest: int) -> dict[tuple[int, int], float]:
    """Every answer in a context that fits into the model, by plain transformers and patience."""
    import torch
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    model = AutoModelForQuestionAnswering.from_pretrained(str(folder)).eval()
    tokens = tokenizer(question, context, return_tensors="pt", return_offsets_mapping=True)
    parts, offsets = tokens.sequence_ids(0), tokens.pop("offset_mapping")[0].tolist()
    with torch.inference_mode():
        told = model(**tokens)
    own = [n for n, part in enumerate(parts) if part == 1]
    starts = torch.softmax(told.start_logits[0][own], 0).tolist()
    ends = torch.softmax(told.end_logits[0][own], 0).tolist()
    return {
        (offsets[own[i]][0], offsets[own[j]][1]): starts[i] * ends[j]
        for i in range(len(own))
        for j in range(i, min(len(own), i + longest))
    }


def ask(engine: base.Engine, *asked: tuple[str, str], answers: int = 3, longest: int = 5) -> list[list[Any]]:
    """(score, start, end) of the answers to each question."""
    entries = [entry(a, b, max_answers=answers, max_answer_tokens=longest) for a, b in asked]
    prepared = engine.prepare(entries)
    assert not prepared.failed
    found: list[list[Any]] = [[] for _ in asked]
    for batch in prepared.micro_batches:
        rows = engine.infer(batch)
        numbers, at = numpy.frombuffer(rows.data, "<f4"), 0
        for position, count in zip(batch.positions, rows.dimensions, strict=True):
            found[position] = numbers[at : at + count].reshape(-1, 3).tolist()
            at += count
    return found


def test_answers_are_the_likeliest_spans_of_the_context(load, folder):
    engine = load("reader", "question_answering")
    asked = list(zip(sentences(12, 11, 6), sentences(12, 12, 25), strict=True))
    for (question, context), found in zip(asked, ask(engine, *asked), strict=True):
        want = spans(folder("reader"), question, context, 5)
        best = sorted(want.values(), reverse=True)[:3]
        assert [score for score, _, _ in found] == pytest.approx(best, abs=1e-4)
        for score, start, end in found:
            assert want[int(start), int(end)] == pytest.approx(score, abs=1e-4)


def test_an_answer_far_behind_what_the_model_reads_at_once_is_found(load, folder):
    engine = load("reader", "question_answering")
    question, context = "who is Berlin", " ".join(sentences(40, 13, 30))
    prepared = engine.prepare([entry(question, context)])
    assert prepared.micro_batches[0].input_tokens[0] > 5 * 64
    places = {
        place for window in prepared.micro_batches[0].items[0][0] for place in window["places"] if place is not None
    }
    assert min(start for start, _ in places) == 0
    assert max(end for _, end in places) == len(context), "all of it is read"
    (found,) = ask(engine, (question, context), answers=20)
    assert len({(start, end) for _, start, end in found}) == len(found) == 20
    assert [score for score, _, _ in found] == sorted((score for score, _, _ in found), reverse=True)
    assert max(end for _, _, end in found) > 300


def test_a_question_over_half_of_the_limit_fails_alone(load):
    engine = load("reader", "question_answering")
    prepared = engine.prepare([entry("who", "city"), entry("who " * 40, "city"), entry("who")])
    assert [(position, error.reason) for position, error in prepared.failed] == [
        (1, "TextTooLong"),
        (2, "InvalidArgument"),
    ]


def test_tokens_are_the_tokenizers_own_also_after_texts_that_were_cut(load, folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder("classifier")))
    engine = load("classifier", "classification")
    engine.prepare([entry("river " * 200)])
    texts = ["daß 東京 don't", "river " * 200, "Straße 🙂 of"]
    for plain in (False, True):
        rows = engine.tokens([entry(text, plain=plain) for text in texts])
        for text, row in zip(texts, rows, strict=True):
            numbers = numpy.frombuffer(row, "<i4").reshape(-1, 4)
            want = tokenizer(text, add_special_tokens=not plain, return_offsets_mapping=True, verbose=False)
            assert numbers[:, 0].tolist() == want["input_ids"]
            assert [tuple(place) for place in numbers[:, 1:3].tolist()] == want["offset_mapping"]
            assert int(numbers[:, 3].sum()) == (0 if plain else 2)


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
    (tmp_path / "m" / "part").mkdir()
    shutil.copy(folder("reranker") / "model.safetensors", tmp_path / "m" / "part")
    with pytest.raises(errors.InvalidModelFiles, match="safetensors"):
        TransformersEngine().load(
            base.EngineSpec("transformers", artifact_path=str(tmp_path / "m"), task="reranking"), lambda *_: None
        )


def test_a_limit_that_two_texts_do_not_fit_into_is_refused_at_load(load):
    with pytest.raises(errors.InvalidModelFiles, match="4 tokens"):
        load("reader", "question_answering", max_input_tokens=4)
    assert load("reader", "question_answering", max_input_tokens=16).prepare([entry("who", "city " * 50)]).micro_batches


BF16 = [
    ("reranker", "reranking"),
    ("classifier", "classification"),
    ("tagger", "classification"),
    ("reader", "question_answering"),
]


def load_bf16(folder: Path, task: str) -> tuple[TransformersEngine, base.Footprint]:
    engine = TransformersEngine()
    spec = base.EngineSpec("transformers", str(folder), task=task, profile=base.Profile("torch", "bf16"))
    return engine, engine.load(spec, lambda *_: None)


def rows_of_task(engine: base.Engine, task: str, exactly: bool = False) -> dict[int, Any]:
    """The row of each of PAIRS, and what computed it."""
    entries = [entry(a, "" if task == "classification" else b, max_answer_tokens=5) for a, b in PAIRS]
    found: dict[int, Any] = {}
    for batch in engine.prepare(entries, exactly).micro_batches:
        rows, at = engine.infer(batch), 0
        assert (rows.profile.precision if rows.profile else "") == ("fp32" if exactly else "")
        numbers = numpy.frombuffer(rows.data, "<f4")
        for position, count in zip(batch.positions, rows.dimensions, strict=True):
            found[position] = numbers[at : at + count]
            at += count
    return found


@pytest.mark.parametrize(("kind", "task"), BF16)
def test_bf16_without_padding_is_like_the_exact_profile_which_stays_there_bit_for_bit(load, folder, kind, task):
    exact = load(kind, task)
    engine, footprint = load_bf16(folder(kind), task)
    assert (footprint.profile.precision, footprint.profile.batch_rule) == ("bf16", "packed")
    want, alike, same = rows_of_task(exact, task), rows_of_task(engine, task), rows_of_task(engine, task, exactly=True)
    differences = [float(abs(want[n][:1] - alike[n][:1]).max()) for n in want]
    # These are models of chance, made steep: what bf16 costs them is far above what it costs others.
    assert 0 < max(differences) < 0.1
    assert numpy.mean(differences) < 0.02
    assert len(want) == len(PAIRS)
    assert numpy.ptp([row[0] for row in want.values()]) > 0.2, "the rows tell the texts apart"
    rank = [float(row[0]) for _, row in sorted(want.items())]
    assert numpy.corrcoef(rank, [float(row[0]) for _, row in sorted(alike.items())])[0, 1] > 0.99
    assert all(numpy.array_equal(want[n], same[n]) for n in want)
    engine.close()


def test_a_head_that_takes_the_mean_of_all_tokens_cannot_be_packed(tmp_path):
    import torch
    from transformers import ModernBertConfig, ModernBertForSequenceClassification

    build("reranker", tmp_path)
    tokens = len(json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"])
    torch.manual_seed(7)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    special = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    config = ModernBertConfig(
        vocab_size=tokens, max_position_embeddings=64, num_labels=1, classifier_pooling="mean", **shape, **special
    )
    model = ModernBertForSequenceClassification(config)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.dim() > 1:
                weights.mul_(20)
    model.save_pretrained(tmp_path)
    with pytest.raises(errors.ProfileNotSupported, match="wants more than it is given"):
        load_bf16(tmp_path, "reranking")
