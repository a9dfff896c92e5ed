"""The response cache with real workers: what is not computed again, and that nothing else changes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from integration.inference_rig import DIGEST, Rig, assert_right, rig, version_of
from integration.test_inference_embed import _metrics, _value
from modelmora import errors
from modelmora.common.v1 import common_pb2
from modelmora.inference.v1 import inference_pb2 as pb
from modelmora_inference.protocols import oip_pb2, oip_pb2_grpc

MIB = 1024 * 1024


async def test_what_is_known_is_answered_without_a_worker_and_the_rest_is_computed(data_dir: Path) -> None:
    async with rig(data_dir, {"acme/echo": {}, "acme/other": {"seed": 5}}, cache_bytes=MIB) as made:
        first = await made.right("a", "b", "c")
        assert first.usage.cached_inputs == 0
        again = await made.right("c", "new", "a", "a")
        assert (again.usage.cached_inputs, again.usage.input_tokens) == (3, 4)
        assert (again.digest, again.engine_profile) == (DIGEST, first.engine_profile)
        assert (await made.worker.seen()).entries == 4
        other = await made.embed("a", model="acme/other")
        assert other.usage.cached_inputs == 0, "another version with the same digest"
        assert list(other.embeddings[0].values) != list(first.embeddings[0].values)
        for options in ({"normalize": False}, {"dimensions": 3}, {"precision": "exact"}, {"truncate": False}):
            assert (await made.embed("a", **options)).usage.cached_inputs == 0, options
            assert (await made.embed("a", **options)).usage.cached_inputs == 1, options
        as_bytes = await made.embed("a", "b", encoding=pb.VECTOR_ENCODING_BYTES)
        assert as_bytes.usage.cached_inputs == 2, "how vectors travel decides nothing"
        assert list(as_bytes.vectors.shape) == [2, 8]
        page = await asyncio.to_thread(_metrics, made.host.metrics_port)
        assert _value(page, "modelmora_inference_cached_inputs_total") == 9
        assert _value(page, "modelmora_inference_missed_inputs_total") == 9


async def test_a_known_text_needs_no_place_in_the_queue_and_no_model_in_memory(data_dir: Path) -> None:
    async with rig(data_dir, {"acme/echo": {"hang_after_batches": 1}}, cache_bytes=MIB) as made:
        await made.right("known")
        stuck = asyncio.create_task(made.embed("unknown", timeout=60))
        await made.running()
        known = await made.right("known", timeout=30)
        assert known.timings.queue.ToNanoseconds() == 0
        assert known.usage.cached_inputs == 1
        stuck.cancel()
        await made.unanswered(0)  # else it would be computed again
        made.worker.kill()
        assert (await made.right("known", timeout=30)).usage.cached_inputs == 1
        assert made.lessor.launches == 1


async def test_errors_are_not_kept_and_name_the_text_of_the_call(data_dir: Path) -> None:
    async with rig(data_dir, {"acme/echo": {"max_input_tokens": 4}}, cache_bytes=MIB) as made:
        await made.right("known")
        long = "one two three four five six"
        for _ in range(2):
            with pytest.raises(errors.InvalidArgument) as caught:
                await made.embed("known", "fine", long, truncate=False)
            assert [violation.field for violation in caught.value.fields] == ["texts[2]"]
        cut = await made.embed("known", long)
        assert [embedding.truncated for embedding in cut.embeddings] == [False, True]
        kept = await made.embed("known", long)
        assert kept.usage.cached_inputs == 2
        assert kept.embeddings == cut.embeddings


async def test_what_one_tenant_asked_is_new_to_another(data_dir: Path) -> None:
    async with rig(data_dir, cache_bytes=MIB) as made:
        request = pb.EmbedRequest(model="acme/echo", texts=["a secret"])
        for tenant in ("one", "two"):
            for cached in (0, 1):
                metadata = (("x-modelmora-subtenant", tenant),)
                answer = await made.stub.Embed(request, timeout=30, metadata=metadata)
                assert answer.usage.cached_inputs == cached, tenant
                assert_right(answer, ("a secret",))
        assert (await made.worker.seen()).entries == 2


class Same:
    """Calls that ask the same, told apart by their ids, while nothing is loaded."""

    def __init__(self, made: Rig) -> None:
        self.made = made

    def ask(self, name: str, **fields: Any) -> asyncio.Task[Any]:
        return asyncio.create_task(self.made.right("the same", request_id=name, **fields))

    async def there(self, name: str) -> pb.ExplainRequestResponse:
        """What is told of a call, once there is something."""
        async with asyncio.timeout(60):
            while True:
                try:
                    request = pb.ExplainRequestRequest(request_id=name)
                    return await self.made.stub.ExplainRequest(request, timeout=30)  # type: ignore[no-any-return]
                except errors.RequestNotFound:
                    await asyncio.sleep(0)

    async def goes_on(self, name: str) -> None:
        """Returns once one entry is told to wait for this call."""
        async with asyncio.timeout(60):
            while (await self.there(name)).waiting_entries != 1:
                pass

    async def gone(self, name: str) -> None:
        """Returns once nothing is told of a call any more."""
        async with asyncio.timeout(60):
            while True:
                try:
                    await self.made.stub.ExplainRequest(pb.ExplainRequestRequest(request_id=name), timeout=30)
                except errors.RequestNotFound:
                    return


async def test_calls_that_ask_the_same_at_once_are_computed_once(data_dir: Path) -> None:
    async with rig(data_dir, cache_bytes=MIB) as made:
        same = Same(made)
        async with made.lessor.loads_wait(version_of("acme/echo")):
            first = same.ask("first")
            await made.waiting(1)
            others = [same.ask(f"other {n}") for n in range(3)]
            told = [await same.there(f"other {n}") for n in range(3)]
            assert [one.place for one in told] == [pb.REQUEST_PLACE_LOADING] * 3, "as the one that they wait for"
            urgent = same.ask("urgent", priority=common_pb2.PRIORITY_HIGH)
            await made.waiting(2)  # it waits for nobody who is less urgent
        answers = await asyncio.gather(first, *others, urgent)
        assert [one.usage.cached_inputs for one in answers] == [0, 1, 1, 1, 0]
        assert all(one.timings.queue.ToNanoseconds() > 0 for one in answers), "they have waited"
        assert (await made.worker.seen()).entries == 2
        with pytest.raises(errors.RequestNotFound):
            await made.stub.ExplainRequest(pb.ExplainRequestRequest(request_id="other 0"), timeout=30)


async def test_what_ends_the_first_does_not_end_the_others_that_ask_the_same(data_dir: Path) -> None:
    async with rig(data_dir, cache_bytes=MIB) as made:
        same = Same(made)
        async with made.lessor.loads_wait(version_of("acme/echo")):
            first = same.ask("first")
            await made.waiting(1)
            short = same.ask("short", timeout=0.5)
            second, third = same.ask("second"), same.ask("third")
            for name in ("second", "third"):
                await same.there(name)
            with pytest.raises(errors.DeadlineExceeded):
                await short
            first.cancel()
            await same.gone("first")
            # One of the others goes on for both.
            await same.goes_on("second")
            await same.goes_on("third")
        answers = await asyncio.gather(second, third)
        assert (await made.worker.seen()).entries == 1
        assert sorted(one.usage.cached_inputs for one in answers) == [0, 1]
        assert (await made.right("the same")).usage.cached_inputs == 1


async def test_the_error_of_the_first_is_not_that_of_another_that_asks_the_same(data_dir: Path) -> None:
    async with rig(data_dir, cache_bytes=MIB) as made:
        same = Same(made)
        async with made.lessor.loads_wait(version_of("acme/echo")):
            seconds = 1.0
            while True:
                first = same.ask("first", timeout=seconds)
                while not first.done() and not any(level.entries for level in (await made.queue()).levels):
                    pass
                second = same.ask("second")
                await same.there("second")
                early = not first.done()
                with pytest.raises(errors.DeadlineExceeded):
                    await first
                if early:
                    break
                second.cancel()  # the first was over before there was a second: this machine stands still now and then
                await same.gone("second")
                seconds *= 2
        assert (await second).usage.cached_inputs == 0


async def test_triton_is_told_of_hits_and_misses(data_dir: Path) -> None:
    async with rig(data_dir, cache_bytes=MIB) as made:
        await made.right("a", "b")
        await made.right("a", "new")
        for _ in range(3):
            await made.right("new", "b")
        triton = oip_pb2_grpc.GRPCInferenceServiceStub(made.channel)
        answer = await triton.ModelStatistics(oip_pb2.ModelStatisticsRequest(name="acme/echo"), timeout=30)
        (told,) = answer.model_stats
        stats = told.inference_stats
        # As Triton defines them: hits succeed and queue, but are no inferences and compute nothing.
        assert (stats.success.count, stats.queue.count, stats.fail.count) == (5, 5, 0)
        assert (stats.cache_hit.count, stats.cache_miss.count) == (3, 2)
        assert (stats.compute_input.count, stats.compute_infer.count) == (2, 2)
        assert told.inference_count == 3
        assert 0 < stats.cache_hit.ns < stats.success.ns
        assert 0 < stats.cache_miss.ns < stats.success.ns


async def test_other_tasks_are_kept_too(data_dir: Path) -> None:
    async with rig(data_dir, {"acme/ranker": {}, "acme/labels": {}}, cache_bytes=MIB) as made:
        types = made.resolver.task_types
        types[version_of("acme/ranker")] = common_pb2.TASK_TYPE_RERANKING
        types[version_of("acme/labels")] = common_pb2.TASK_TYPE_CLASSIFICATION
        rerank = pb.RerankRequest(model="acme/ranker", query="q", texts=["a", "b"])
        first, second = [await made.stub.Rerank(rerank, timeout=30) for _ in range(2)]
        assert (first.usage.cached_inputs, second.usage.cached_inputs) == (0, 2)
        assert first.ranked == second.ranked
        rerank.query = "another"
        assert (await made.stub.Rerank(rerank, timeout=30)).usage.cached_inputs == 0
        classify = pb.ClassifyRequest(model="acme/labels", texts=["a", "b"])
        one, two = [await made.stub.Classify(classify, timeout=30) for _ in range(2)]
        assert (one.usage.cached_inputs, two.usage.cached_inputs) == (0, 2)
        assert one.classifications == two.classifications


async def test_without_the_setting_nothing_is_kept(data_dir: Path) -> None:
    async with rig(data_dir) as made:
        for _ in range(2):
            answer = await made.embed("a")
            assert answer.usage.cached_inputs == 0
            assert_right(answer, ("a",))
        assert (await made.worker.seen()).entries == 2
