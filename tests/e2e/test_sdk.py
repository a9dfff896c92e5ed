"""The SDK against platforms of its own: what a program meets in a long life."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import modelmora
import numpy
import pytest
from e2e.rig import free_port
from modelmora import errors
from modelmora.inference.v1 import inference_pb2
from modelmora.lifecycle.v1 import lifecycle_pb2
from modelmora.registry.v1 import registry_pb2

from bench.up import Up


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with Up(tmp_path_factory.mktemp("sdk") / "data") as up:
        up.add_model("demo/echo", engine="echo", options={"dimensions": 8, "seed": 3})
        up.add_model("demo/slow", engine="echo", options={"delay_seconds": 3})
        yield up


@pytest.fixture
def client(up: Up) -> Iterator[modelmora.Client]:
    with modelmora.Client(up.target) as client:
        yield client


def test_five_thousand_texts_come_back_in_order(client: modelmora.Client) -> None:
    texts = [f"text number {number}" for number in range(5000)]
    answer = client.embed_detailed("demo/echo", texts, timeout=60)
    assert answer.vectors.shape == (5000, 8)
    assert answer.vectors.dtype == numpy.float32
    assert answer.usage.input_tokens == 15000
    assert len(answer.input_tokens) == 5000
    for number in (0, 2047, 2048, 4999):
        assert numpy.array_equal(answer.vectors[number], client.embed("demo/echo", texts[number]))


def test_a_stream_of_inputs_is_embedded_as_calls_are(up: Up, client: modelmora.Client) -> None:
    texts = [f"text number {number}" for number in range(300)]
    expected = client.embed("demo/echo", texts)
    assert numpy.array_equal(numpy.stack(list(client.stream_embed("demo/echo", iter(texts)))), expected)
    batches = (texts[start : start + 64] for start in range(0, 300, 64))
    assert numpy.array_equal(numpy.concatenate(list(client.stream_embed("demo/echo", batches))), expected)
    found = client.stream_embed_detailed("demo/echo", ["fine", " ", "fine too"], return_errors=True)
    assert [type(one) for _, one in found] == [
        modelmora.requests.Embeddings,
        errors.InvalidArgument,
        modelmora.requests.Embeddings,
    ]

    async def ask() -> list[numpy.ndarray]:
        async with modelmora.AsyncClient(up.target) as other:
            return [vector async for vector in other.stream_embed("demo/echo", texts)]

    assert numpy.array_equal(numpy.stack(asyncio.run(ask())), expected)


def test_options_reach_the_model(client: modelmora.Client) -> None:
    assert client.embed("demo/echo", ["a"], dimensions=3).shape == (1, 3)
    assert float(numpy.linalg.norm(client.embed("demo/echo", "a", dimensions=3))) == pytest.approx(1, abs=1e-5)
    with pytest.raises(errors.InvalidArgument) as raised:
        client.embed("demo/echo", ["fine", ""])
    assert [violation.field for violation in raised.value.fields] == ["texts[1]"]


def test_both_clients_answer_alike(up: Up, client: modelmora.Client) -> None:
    async def ask() -> numpy.ndarray:
        async with modelmora.AsyncClient(up.target) as other:
            await other.wait_serving(timeout=60)
            names = [model.name async for model in other.list_models(page_size=1)]
            assert names == [model.name for model in client.list_models(page_size=1)]
            several = await asyncio.gather(*(other.embed("demo/echo", [f"t{n}"]) for n in range(20)))
            return numpy.concatenate(several)

    assert numpy.array_equal(asyncio.run(ask()), client.embed("demo/echo", [f"t{n}" for n in range(20)]))


def test_a_cancelled_call_leaves_the_platform(up: Up, client: modelmora.Client) -> None:
    client.load("demo/slow")

    async def cancel() -> None:
        async with modelmora.AsyncClient(up.target) as other:

            async def until(fact: Callable[[list[inference_pb2.Queue]], bool]) -> None:
                async with asyncio.timeout(60):
                    while not fact(await other.queue("demo/slow")):
                        pass

            cancelled = False
            while not cancelled:  # who stood still until it was answered asks again
                call = asyncio.create_task(other.embed("demo/slow", ["x"] * 100))
                await until(lambda queues: call.done() or any(queue.in_flight for queue in queues))  # noqa: B023
                cancelled = call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await until(lambda queues: not any(level.entries for queue in queues for level in queue.levels))

    asyncio.run(cancel())
    client.unload("demo/slow", force=True)


def test_a_deadline_is_kept(client: modelmora.Client) -> None:
    client.load("demo/slow")
    with pytest.raises(errors.DeadlineExceeded):
        client.embed("demo/slow", "x", timeout=0.5)
    client.unload("demo/slow", force=True)


def test_registering_twice_with_one_request_id_is_one_registration(client: modelmora.Client) -> None:
    first = client.create_model("sdk/once", task_type="txt2embed", request_id="1d8f1b1e-27a5-4c55-a5c7-0f6f7a1f0001")
    again = client.create_model("sdk/once", task_type="txt2embed", request_id="1d8f1b1e-27a5-4c55-a5c7-0f6f7a1f0001")
    assert first.uid == again.uid
    with pytest.raises(errors.ModelExists):
        client.create_model("sdk/once", task_type="txt2embed")
    changed = client.update_model("sdk/once", description="better", labels={"team": "a"}, etag=first.etag)
    assert (changed.description, dict(changed.labels), changed.display_name) == ("better", {"team": "a"}, "once")
    with pytest.raises(errors.Conflict):
        client.update_model("sdk/once", description="stale", etag=first.etag)
    client.delete_model("sdk/once")
    with pytest.raises(errors.ModelNotFound):
        client.get_model("sdk/once")


def test_a_version_lives_from_import_to_deletion(client: modelmora.Client) -> None:
    client.create_model("sdk/life", task_type="txt2embed")
    made = client.create_version("sdk/life", "1.0.0", empty=True, engine="echo", engine_options={"dimensions": 2})
    ready = client.wait_ready(made.name, timeout=30)
    assert ready.state == registry_pb2.MODEL_VERSION_STATE_READY
    second = client.import_model("sdk/life", "2.0.0", empty=True, engine="echo", memory_bytes=64 * 2**20)
    client.wait_ready(second.name, timeout=30)
    assert client.resolve("sdk/life").version == "2.0.0"
    client.set_alias("sdk/life", "production", "1.0.0")
    assert client.resolve("sdk/life").version == "1.0.0"
    assert [version.version for version in client.list_versions("sdk/life", page_size=1)] == ["2.0.0", "1.0.0"]
    replica = client.load("sdk/life")
    assert replica.state == lifecycle_pb2.REPLICA_STATE_LOADED
    assert client.get_replica(replica.name).uid == replica.uid
    assert replica.uid in {found.uid for found in client.list_replicas(page_size=1)}
    with pytest.raises(errors.VersionInUse):
        client.delete_model("sdk/life", force=True)
    client.unload("sdk/life", force=True)
    client.delete_version("sdk/life@2.0.0", force=True)
    client.delete_model("sdk/life", force=True)


def test_the_rest_of_the_surface_answers(client: modelmora.Client) -> None:
    client.wait_serving("modelmora.inference.v1.InferenceService", timeout=60)
    assert client.health().version == modelmora.__version__
    assert client.system().cpu_count >= 1
    assert client.devices()[0].id == "host"
    assert client.storage().total_bytes > 0
    assert {ledger.device for ledger in client.memory()} == {"host"}


def test_a_text_over_the_message_limit_names_the_limit(client: modelmora.Client) -> None:
    with pytest.raises((errors.InvalidArgument, errors.MessageTooLarge)):
        client.embed("demo/echo", "x" * 70_000_000, timeout=60)


def test_a_client_lives_through_a_restart(tmp_path: Path) -> None:
    settings = {"PORT": str(free_port())}
    up = Up(tmp_path / "data", settings=settings)
    up.start()
    try:
        up.add_model("demo/echo", engine="echo")
        with modelmora.Client(up.target) as client:
            before = client.embed("demo/echo", "a text")
            resets = threading.Semaphore(0)

            def watch() -> None:
                # Unavailable: the platform's last stop, after the test.
                with contextlib.suppress(errors.Unavailable), modelmora.Client(up.target) as watcher:
                    for event in watcher.watch_replicas(timeout=120):
                        if event.reset:
                            resets.release()

            threading.Thread(target=watch, daemon=True).start()
            assert resets.acquire(timeout=60)
            up.stop()
            with pytest.raises(errors.Unavailable):
                client.embed("demo/echo", "a text", timeout=60)  # ends with its attempts
            up.start()
            client.wait_serving(timeout=60)
            assert numpy.array_equal(client.embed("demo/echo", "a text"), before)
            assert resets.acquire(timeout=60), "the watch did not start over"
    finally:
        up.stop()
