"""Inference jobs through the SDK and the command line, with the real MiniLM."""

from __future__ import annotations

import json
from pathlib import Path

import modelmora
import numpy
import pytest
from click.testing import CliRunner
from e2e.rig import MINILM
from modelmora import errors
from modelmora_app.cli import cli

from bench.up import Up

TEXTS = [f"A sentence about the number {n}, and {'many ' * (n % 40)}more." for n in range(150)]


def test_a_job_gives_the_vectors_that_a_call_gives(platform: Up) -> None:
    with modelmora.Client(platform.target) as client:
        job = client.create_embed_job(MINILM, TEXTS)
        seen: list[int] = []
        job.wait(on_change=lambda now: seen.append(now.progress.succeeded), timeout=120)
        assert seen[-1] == len(TEXTS)
        found = job.result()
        assert found.vectors.shape == (len(TEXTS), 384)
        assert not found.errors
        direct = client.embed(MINILM, TEXTS)
        assert numpy.abs(found.vectors - direct).max() < 1e-5
        assert job.name in {one.name for one in client.list_jobs(states=["succeeded"])}
        with pytest.raises(errors.IllegalTransition):
            job.cancel()


async def test_a_job_of_the_client_for_asyncio(platform: Up) -> None:
    async with modelmora.AsyncClient(platform.target) as client:
        job = await client.create_embed_job(MINILM, ["one", "two " * 600], truncate=False)
        await job.wait(timeout=120)
        found = await job.result()
        assert sorted(found.rows()) == [0]
        assert isinstance(found.errors[1], errors.TextTooLong)
        with pytest.raises(errors.TextTooLong):
            _ = found.vectors
        again = await client.job(job.name)
        assert again.message.progress.failed == 1


def test_jobs_on_the_command_line(platform: Up, tmp_path: Path) -> None:
    def run(*arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(cli, ["jobs", *arguments, "--target", platform.target], prog_name="modelmora")
        assert done.exit_code == code, done.output
        return done.output

    texts, output = tmp_path / "texts.txt", tmp_path / "vectors.jsonl"
    texts.write_text("\n".join(TEXTS[:20]))
    last = json.loads(run("create", MINILM, "--file", str(texts), "--wait", "--json").splitlines()[-1])
    assert (last["state"], last["progress"]["succeeded"]) == ("succeeded", 20)
    assert "20 of 20" in run("show", last["uid"])
    assert "20 of 20" in run("watch", last["uid"])
    assert last["uid"] in run("list", "--state", "succeeded")
    run("result", last["uid"], "--output", str(output))
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(20))
    assert len(lines[0]["embedding"]) == 384
    assert "IllegalTransition" in run("cancel", last["uid"], code=4)
    assert "JobNotFound" in run("show", "01890a5d-ac96-774b-bcce-b302099a8057", code=3)
