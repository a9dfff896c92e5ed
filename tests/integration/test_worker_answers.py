"""Engines of third parties that answer what cannot be: every job ends by name, and what is right is answered."""

from __future__ import annotations

import os
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from modelmora import errors
from modelmora.common.v1 import common_pb2
from modelmora.worker.v1 import worker_pb2
from modelmora_lifecycle.launcher import LaunchSpec, LocalLauncher
from modelmora_runtime.worker_channel import WorkerChannel
from third_party import install

ENGINE = """
import dataclasses, struct, sys
from math import inf, nan
from modelmora import errors
from modelmora_worker.engines import base, echo

ROW = base.EngineRow(
    'theirs', 'their_engine:Engine', frozenset({'txt2embed'}), needs_files=False,
    options={'told': base.Option(str, 'the footprint of f', default='f')},
)

class Engine(echo.EchoEngine):
    def load(self, spec, progress):
        f = super().load(dataclasses.replace(spec, options={'dimensions': 4}), progress)
        return eval(spec.options.get('told', 'f'), globals(), {'f': f, 'self': self, 'of': dataclasses.replace})

    def prepare(self, texts, exact=False):
        if texts[0].text == 'lost':
            return base.Prepared()
        return None if texts[0].text == 'unprepared' else super().prepare(texts, exact)

    def infer(self, batch):
        rows = [eval(text) for text, _ in batch.items]
        if rows == [None]:
            return None
        return base.Rows(b''.join(struct.pack(f'<{len(r)}f', *r) for r in rows), [len(r) for r in rows])

    def tokens(self, texts):
        return [None] * len(texts)
"""
GOOD = "[1,2,3,4]"


@pytest.fixture
async def control(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WorkerChannel]:
    install(tmp_path, "their_engine", ENGINE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    launcher = LocalLauncher(data_dir / "run", data_dir / "logs")
    worker = await launcher.launch(LaunchSpec("x", "theirs", "x"), timeout_seconds=120)
    channel = await WorkerChannel.connect(worker.endpoint, worker.control_key)
    yield channel
    await channel.close()
    await launcher.close()


async def load(control: WorkerChannel, told: str = "f") -> worker_pb2.LoadReply:
    request = worker_pb2.LoadRequest(engine="theirs", task_type=common_pb2.TASK_TYPE_TXT2EMBED)
    request.options.update({"told": told})
    return await control.load(request, timeout_seconds=120)


async def ask(control: WorkerChannel, *texts: str, operation: int = 0) -> tuple[dict[int, list[float]], dict[int, str]]:
    """The rows that were answered and the errors of the others, by position."""
    entries = [worker_pb2.TextEntry(text=text) for text in texts]
    request = worker_pb2.InferRequest(texts=entries, operation=operation)  # type: ignore[arg-type]
    rows: dict[int, list[float]] = {}
    failed: dict[int, str] = {}
    async for reply in control.infer(request):
        failed |= {error.position: f"{error.reason}: {error.message}" for error in reply.errors}
        numbers = [number for (number,) in struct.iter_unpack("<f", reply.rows)]
        for position, length in zip(reply.positions, reply.row_dimensions, strict=True):
            if position not in failed:
                rows[position], numbers = numbers[:length], numbers[length:]
        assert not numbers
    return rows, failed


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("of(f, memory_bytes={'host': 2**70})", f"tells of {2**70} bytes on host; mend the engine"),
        ("of(f, memory_bytes={'': 10})", "10 bytes on a device without a name"),
        ("of(f, max_batch_tokens=2**40)", f"max_batch_tokens {2**40}"),
        ("None", "None instead of a Footprint"),
        ("setattr(self, 'tracks', 'many') or f", "tracks 'many'"),
    ],
)
async def test_a_load_that_tells_nonsense_is_answered_at_once(control: WorkerChannel, told: str, said: str) -> None:
    with pytest.raises(errors.NonsenseFootprint) as caught:
        await load(control, told)
    assert said in caught.value.message


async def test_a_load_fails_by_name_whatever_the_engine_raises(control: WorkerChannel) -> None:
    with pytest.raises(errors.InvalidModelFiles, match=r"what is \?$"):
        await load(control, "(_ for _ in ()).throw(errors.InvalidModelFiles('what is \\udc80'))")


async def test_an_engine_that_leaves_its_thread_ends_the_worker(control: WorkerChannel) -> None:
    with pytest.raises(errors.WorkerUnavailable):
        await load(control, "sys.exit(3)")


async def test_rows_that_cannot_be_fail_alone(control: WorkerChannel) -> None:
    await load(control)
    rows, failed = await ask(control, "[nan,1,2,3]", GOOD, "[1]", "[]", "[0,0,inf,0]", "[4,3,2,1]", "[0]*7")
    assert rows == {1: [1, 2, 3, 4], 5: [4, 3, 2, 1]}
    nonsense = "InternalError: the engine answered with nonsense: "
    assert failed == {
        0: f"{nonsense}4 numbers, of which not all are finite",
        2: f"{nonsense}1 numbers, not 4",
        3: f"{nonsense}0 numbers, not 4",
        4: f"{nonsense}4 numbers, of which not all are finite",
        6: f"{nonsense}7 numbers, not 4",
    }


async def test_no_answer_of_an_engine_stops_the_worker(control: WorkerChannel) -> None:
    await load(control)
    for text, operation, said in (
        ("None", 0, "None instead of Rows"),
        ("unprepared", 0, "None instead of Prepared"),
        ("lost", 0, "of 1 rows the engine has prepared"),
        ("a b", worker_pb2.OPERATION_TOKENIZE, "other than a row of 4-byte numbers"),
    ):
        with pytest.raises(errors.InternalError, match=said):
            await ask(control, text, operation=operation)
        assert (await ask(control, GOOD))[0] == {0: [1, 2, 3, 4]}
