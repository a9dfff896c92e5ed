"""Models that do not embed, from the folder to the answer: imported, told apart, loaded, asked by both faces of the SDK
and by the command line; answers as plain transformers gives them."""

from __future__ import annotations

import asyncio
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import modelmora
import pytest
from click.testing import CliRunner
from e2e.rig import eventually
from modelmora import errors
from modelmora.registry.v1 import registry_pb2
from modelmora_app.cli import cli
from small_models import build, picture, sentences

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


def test_a_model_of_images_is_told_by_its_folder_and_answers_as_the_library_does(
    platform: Up, imported: Imported, model_root: Path, tmp_path: Path
) -> None:
    from PIL import Image
    from transformers import pipeline

    model, pictures = imported("seer"), [picture(n, 60 + n, 50) for n in range(6)]
    (version,) = run(platform, "models", "show", model)["versions"]
    assert (version["engine"], version["task_type"]) == ("transformers_images", "classification")
    assert version["metadata"]["modality"] == "image"
    labels = ["square", "circle", "line", "noise", "blank"]
    described = run(platform, "describe", model)
    assert described["labels"] == labels, "known without a load"
    assert [(one["name"], one["datatype"], one["shape"]) for one in described["inputs"]] == [("images", "BYTES", [-1])]
    assert [(one["name"], one["shape"]) for one in described["outputs"]] == [("scores", [-1, 5])]
    files = []
    for n, one in enumerate(pictures):
        files.append(tmp_path / f"{n}.png")
        one.save(files[-1])
    pipe = pipeline("image-classification", model=str(model_root / "seer"))
    want = [{one["label"]: one["score"] for one in pipe(image, top_k=5)} for image in pictures]
    with modelmora.Client(platform.target) as client:
        told = client.predict(model, {"images": [file.read_bytes() for file in files]})
        assert list(told.labels) == labels
        for row, scores in zip(want, told["scores"], strict=True):
            assert scores.tolist() == [pytest.approx(row[label], abs=1e-4) for label in labels]
        assert told.usage.input_tokens == 6 * 9, "one for each 16 × 16 pixels that it sees"
        with pytest.raises(errors.InvalidArgument) as caught:
            client.predict(model, {"images": [files[0].read_bytes(), b"no image"]})
        assert [violation.field for violation in caught.value.fields] == ["inputs[0].tensor.data[1]"]
        with Image.new("1", (1, 1_000_000)) as trap:
            trap.save(tmp_path / "trap.png")
        with pytest.raises(errors.InvalidArgument, match="the model's processor makes 48 × 1000000") as caught:
            client.predict(model, {"images": [*(file.read_bytes() for file in [*files, tmp_path / "trap.png"])]})
        assert [violation.field for violation in caught.value.fields] == ["inputs[0].tensor.data[6]"]
        limits = client.describe_model(model)
        told_limits = (limits.max_image_bytes, limits.max_image_pixels, limits.max_resized_pixels)
        assert told_limits == (16 << 20, 32_000_000, 4_000_000)
        for call in (lambda: client.classify(model, "a text"), lambda: client.tokenize(model, "a text")):
            with pytest.raises(errors.TaskNotSupported, match="images"):
                call()
    shown = run(platform, "predict", model, f"images=@{files[2]}", f"images=@{files[3]}")
    values = shown["outputs"][0]["tensor"]["values"]
    assert values == [[pytest.approx(want[n][label], abs=1e-4) for label in labels] for n in (2, 3)]


def test_jobs_of_other_tasks_answer_as_the_calls_do(platform: Up, imported: Imported, tmp_path: Path) -> None:
    texts, query = sentences(5, 10), "where is the river"
    with modelmora.Client(platform.target) as client:
        job = client.create_classify_job(imported("classifier"), texts, raw_scores=True)
        job.wait()
        call = client.classify(imported("classifier"), texts, raw_scores=True)
        for one, found in zip(job.result().results, call.classifications, strict=True):
            for label, wanted in zip(one.classify.labels, found.labels, strict=True):
                assert (label.label, label.score) == (wanted.label, pytest.approx(wanted.score, abs=1e-4))
            assert one.usage.input_tokens == found.input_tokens

        image = tmp_path / "1.png"
        picture(1).save(image)
        pictures = [{"images": image.read_bytes()}, {"images": [b"no image"]}, {"images": [image.read_bytes()] * 2}]
        job = client.create_predict_job(imported("seer"), pictures, outputs=["scores"])
        job.wait()
        result = job.result()
        assert [index for index, _ in result.errors.items()] == [1]
        assert result.errors[1].message.startswith("inputs[0].tensor.data[0]: ")
        wanted = client.predict(imported("seer"), {"images": image.read_bytes()})["scores"]
        assert {index: one["scores"].shape for index, one in result.predictions().items()} == {0: (1, 5), 2: (2, 5)}
        assert abs(result.predictions()[2]["scores"][1] - wanted[0]).max() < 1e-5

        ranking = client.rerank(imported("reranker"), query, texts)

    async def again() -> list[int]:
        async with modelmora.AsyncClient(platform.target) as client:
            job = await client.create_rerank_job(imported("reranker"), [(query, texts)], top_n=2)
            await job.wait()
            (one,) = (await job.result()).results
            return [rank.index for rank in one.rerank.ranked]

    assert asyncio.run(again()) == [rank.index for rank in ranking.ranked][:2]
    made = run(platform, "jobs", "create", imported("reranker"), *texts, "--task", "rerank", "--query", query)
    asked = tmp_path / "asked.jsonl"
    asked.write_text(json.dumps({"question": "where is the bridge", "context": texts[0]}) + "\n")
    answers = run(
        platform, "jobs", "create", imported("reader"), "--task", "answer", "--file", str(asked), "--top", "2"
    )
    with modelmora.Client(platform.target) as client:
        for uid in (made["uid"], answers["uid"]):
            client.job(f"jobs/{uid}").wait()
    (line,) = run(platform, "jobs", "result", made["uid"])["results"]
    assert [one["index"] for one in line["ranked"]] == [rank.index for rank in ranking.ranked]
    (line,) = run(platform, "jobs", "result", answers["uid"])["results"]
    assert len(line["answers"]) == 2


@pytest.mark.parametrize(
    ("kind", "task", "shape"),
    [
        ("reranker", "reranking", [4, 1]),
        ("classifier", "classification", [4, 4]),
        ("reader", "question_answering", [3, 3]),
    ],
)
def test_what_a_model_answers_to_its_golden_inputs_is_kept_and_told_by_its_lock(
    platform: Up, imported: Imported, kind: str, task: str, shape: list[int]
) -> None:
    model = imported(kind)
    run(platform, "load", model)

    def kept() -> Any:
        request = registry_pb2.CreateModelLockRequest(models=[model])
        (locked,) = platform.registry.CreateModelLock(request, timeout=20).model_lock.models
        return locked.fingerprint if locked.HasField("fingerprint") else None

    first = eventually(kept, 60, "the golden inputs were answered")
    assert (first.golden, list(first.outputs.shape)) == (f"{task}/1", shape)
    assert len(set(struct.unpack(f"<{shape[0] * shape[1]}f", first.outputs.data))) > 2
    run(platform, "unload", model, "--force")
    run(platform, "load", model)
    assert kept() == first
