"""Models that do not embed, from the folder to the answer: imported, told apart, loaded, asked by both faces of the SDK
and by the command line; answers as plain transformers gives them."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import modelmora
import pytest
from click.testing import CliRunner
from modelmora import errors
from modelmora_app.cli import cli
from small_models import build, sentences

from bench.up import Up

Imported = Callable[[str], str]


@pytest.fixture(scope="module")
def imported(platform: Up, model_root: Path) -> Imported:
    """The model of a small kind, imported once by the command line, without being told what it is."""
    made: dict[str, str] = {}

    def get(kind: str) -> str:
        if kind not in made:
            folder = build(kind, model_root / kind)
            run(platform, "import", str(folder), "--name", f"small/{kind}", "--version", "1.0.0")
            made[kind] = f"small/{kind}"
        return made[kind]

    return get


def run(up: Up, *arguments: str) -> Any:
    unset: dict[str, str | None] = {key: None for key in os.environ if key.startswith("MODELMORA_")}
    settings = {"MODELMORA_TARGET": up.target, "MODELMORA_DATA_DIR": str(up.data_dir)}
    told = CliRunner().invoke(cli, [*arguments, "--json"], env={**unset, **settings}, prog_name="modelmora")
    assert told.exit_code == 0, told.stderr
    return json.loads(told.stdout)


def reference(folder: Path, texts: list[str], pairs: list[str] | None = None) -> list[list[float]]:
    """Scores of each text alone, by plain transformers."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    model = AutoModelForSequenceClassification.from_pretrained(str(folder)).eval()
    with torch.inference_mode():
        return [
            model(**tokenizer(text, pairs[n] if pairs else None, truncation=True, return_tensors="pt"))
            .logits[0]
            .tolist()
            for n, text in enumerate(texts)
        ]


def test_a_reranker_is_told_by_its_folder_and_answers_as_the_library_does(
    platform: Up, imported: Imported, model_root: Path
) -> None:
    model, texts, query = imported("reranker"), sentences(50, 9), "where is the river"
    (version,) = run(platform, "models", "show", model)["versions"]
    assert (version["engine"], version["task_type"]) == ("transformers", "reranking")
    want = [row[0] for row in reference(model_root / "reranker", [query] * 50, texts)]
    with modelmora.Client(platform.target) as client:
        answer = client.rerank(model, query, texts, raw_scores=True, precision="exact")
        assert sorted(one.index for one in answer.ranked) == list(range(50))
        assert all(abs(one.score - want[one.index]) < 1e-3 for one in answer.ranked)
        found = [one.score for one in answer.ranked]
        assert found == sorted(found, reverse=True)
        assert (answer.engine_profile.backend, answer.engine_profile.precision) == ("torch", "fp32")
        assert answer.digest
        with pytest.raises(errors.TaskNotSupported):
            client.embed(model, "text")

    async def again() -> list[int]:
        async with modelmora.AsyncClient(platform.target) as client:
            return [one.index for one in (await client.rerank(model, query, texts, top_n=5)).ranked]

    assert asyncio.run(again()) == [one.index for one in answer.ranked][:5]
    told = run(platform, "rerank", model, query, *texts[:3], "--raw")
    assert {one["index"]: one["score"] for one in told["ranked"]} == pytest.approx(dict(enumerate(want[:3])), abs=1e-3)


def test_a_classifier_gives_the_labels_of_its_configuration(platform: Up, imported: Imported, model_root: Path) -> None:
    model, texts = imported("classifier"), sentences(20, 10)
    want = reference(model_root / "classifier", texts)
    with modelmora.Client(platform.target) as client:
        answer = client.classify(model, texts, raw_scores=True)
        assert list(client.describe_model(model).labels) == ["sports", "politics", "science", "weather"]
        (found,) = client.tokenize(model, texts[0]).texts
        assert found.tokens[0].special
        assert "".join(texts[0][one.start : one.end] for one in found.tokens if not one.special) == texts[0].replace(
            " ", ""
        )
    for row, found in zip(want, answer.classifications, strict=True):
        best = max(range(4), key=lambda n: row[n])
        assert found.labels[0].label == ["sports", "politics", "science", "weather"][best]
        assert all(abs(one.score - row[one.index]) < 1e-3 for one in found.labels)
    told = run(platform, "classify", model, texts[0], "--top", "2")
    assert len(told["classifications"][0]["labels"]) == 2


def test_any_model_answers_with_named_tensors(platform: Up, imported: Imported, model_root: Path) -> None:
    model, texts = imported("classifier"), sentences(4, 10)
    want = reference(model_root / "classifier", texts)
    with modelmora.Client(platform.target) as client:
        told = client.predict(model, {"texts": texts}, parameters={"raw_scores": True})
    assert told["scores"].shape == (4, 4)
    assert told["scores"].tolist() == [pytest.approx(row, abs=1e-3) for row in want]
    assert list(told.labels) == ["sports", "politics", "science", "weather"]

    async def again() -> Any:
        async with modelmora.AsyncClient(platform.target) as client:
            return await client.predict(model, {"texts": texts[:1]})

    assert asyncio.run(again())["scores"].sum() == pytest.approx(1, abs=1e-5)
    given = model_root / "text.txt"
    given.write_text(texts[1])
    shown = run(platform, "predict", model, f"texts={texts[0]}", f"texts=@{given}", "--set", "raw_scores=true")
    assert shown["outputs"][0]["tensor"]["values"] == [pytest.approx(row, abs=1e-3) for row in want[:2]]
    assert shown["outputs"][0]["tensor"]["data_type"] == "fp32"


def test_a_reader_answers_from_a_context_longer_than_it_reads(platform: Up, imported: Imported) -> None:
    model, context = imported("reader"), " ".join(sentences(30, 14, 30))
    with modelmora.Client(platform.target) as client:
        told = client.answer_question(model, "where is the bridge", context, top_n=5)
        assert [one.text for one in told.answers] == [context[one.start : one.end] for one in told.answers]
        assert len(told.answers) == 5
        assert told.usage.input_tokens > 300
    shown = run(platform, "answer", model, "where is the bridge", context)
    assert shown["answers"][0]["text"] == told.answers[0].text
    described = run(platform, "describe", model)
    assert [one["name"] for one in described["inputs"]] == ["question", "context"]
