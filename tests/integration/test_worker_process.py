"""One real worker with the echo engine, started as the launcher starts it, and what it does when things go wrong."""
# ruff: noqa: ASYNC240 - a test may look at a file in between

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from modelmora import errors
from modelmora.common.v1 import common_pb2
from modelmora.worker.v1 import worker_pb2
from modelmora_lifecycle import launcher as launchers
from modelmora_lifecycle.launcher import LaunchSpec, LocalLauncher, LocalWorker
from modelmora_runtime import framing
from modelmora_runtime.worker_channel import WorkerChannel, error_from_entry
from modelmora_worker.engines.echo import unit, vector

SPEC = LaunchSpec(replica_uid="0123456789", engine="echo", label="models/acme/echo/versions/1")


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork server that stands still for a moment is waited for: it knows how its workers ended."""
    monkeypatch.setattr(launchers, "_STATUS_SECONDS", 20.0)


@pytest.fixture
async def launcher(data_dir: Path) -> AsyncIterator[LocalLauncher]:
    launcher = LocalLauncher(data_dir / "run", data_dir / "logs")
    yield launcher
    await launcher.close()


@pytest.fixture
async def worker(launcher: LocalLauncher) -> LocalWorker:
    return await launcher.launch(SPEC, timeout_seconds=30)


@pytest.fixture
async def control(worker: LocalWorker) -> AsyncIterator[WorkerChannel]:
    channel = await WorkerChannel.connect(worker.endpoint, worker.control_key)
    yield channel
    await channel.close()


def texts(*words: str, **settings: object) -> worker_pb2.InferRequest:
    return worker_pb2.InferRequest(
        texts=[worker_pb2.TextEntry(text=word, **{"truncate": True, "normalize": True, **settings}) for word in words]
    )


async def load(channel: WorkerChannel, **options: object) -> worker_pb2.LoadReply:
    request = worker_pb2.LoadRequest(engine="echo", model_version=SPEC.label)
    request.options.update(options)
    return await channel.load(request, timeout_seconds=30)


async def rows(channel: WorkerChannel, request: worker_pb2.InferRequest) -> dict[int, tuple[float, ...]]:
    """Position → vector; each position exactly once, each failed row an empty vector."""
    found: dict[int, tuple[float, ...]] = {}
    done = False
    async for reply in channel.infer(request):
        assert not done
        done = reply.done
        offset = 0
        for position, dimensions in zip(reply.positions, reply.row_dimensions, strict=True):
            assert position not in found
            found[position] = struct.unpack_from(f"<{dimensions}f", reply.rows, offset)
            offset += 4 * dimensions
        assert offset == len(reply.rows)
    assert done
    return found


async def within(awaitable, seconds: float = 60):
    async with asyncio.timeout(seconds):
        return await awaitable


async def test_every_row_is_the_vector_of_its_own_text(control):
    reply = await load(control, dimensions=16, seed=7, micro_batch_entries=3)
    assert reply.embedding_dimensions == 16
    assert common_pb2.TASK_TYPE_TXT2EMBED in reply.tasks
    assert reply.footprint[0].device == "host"
    assert reply.footprint[0].memory_bytes > 1_000_000
    words = [f"text number {n}" for n in range(20)]
    found = await rows(control, texts(*words))
    assert found == {n: pytest.approx(vector(7, word, 16), abs=1e-6) for n, word in enumerate(words)}


async def test_dimensions_are_cut_and_the_rest_has_unit_length_again(control):
    await load(control, dimensions=16)
    found = await rows(control, texts("a", dimensions=4))
    assert found[0] == pytest.approx(unit(vector(0, "a", 16)[:4]), abs=1e-6)


async def test_a_request_larger_than_a_frame_and_its_answer_arrive_whole(control):
    await load(control, dimensions=512, max_batch_entries=100_000)
    words = [f"{n} " + "word " * 300 for n in range(1000)]
    found = await rows(control, texts(*words))
    assert len(found) == 1000
    assert found[999] == pytest.approx(vector(0, words[999], 512), abs=1e-6)


async def test_a_text_too_long_fails_alone(control):
    await load(control, max_input_tokens=3)
    request = texts("a b", "a b c d", "c", truncate=False)
    replies = [reply async for reply in control.infer(request)]
    assert [(e.position, e.reason) for reply in replies for e in reply.errors] == [(1, "TextTooLong")]
    found = await rows(control, request)
    assert [len(found[n]) for n in range(3)] == [8, 0, 8]


async def test_truncation_is_told_and_counted(control):
    await load(control, max_input_tokens=3)
    (reply,) = [reply async for reply in control.infer(texts("a b", "a b c d"))]
    assert list(reply.truncated) == [False, True]
    assert list(reply.input_tokens) == [2, 3]


async def test_an_expired_row_is_dropped_before_its_computation(control):
    await load(control, micro_batch_entries=1)
    request = texts("a", "b", "c")
    request.texts[1].timeout.FromNanoseconds(0)
    replies = [reply async for reply in control.infer(request)]
    failed = [error for reply in replies for error in reply.errors]
    assert [(e.position, e.reason) for e in failed] == [(1, "DeadlineExceeded")]
    assert isinstance(error_from_entry(failed[0]), errors.DeadlineExceeded)
    watch = control.watch(10)
    assert (await anext(watch)).entries == 2


async def test_a_cancelled_batch_ends_between_two_micro_batches(control):
    await load(control, micro_batch_entries=1, delay_seconds=0.05)
    call = control.infer(texts(*(str(n) for n in range(1000))))
    assert (await anext(call)).positions == [0]
    call.cancel()
    with pytest.raises(errors.Cancelled):
        async for _ in call:
            pass
    assert (await anext(control.watch(10))).entries < 1000


async def test_a_withdrawn_row_is_not_computed(control, worker):
    await load(control, micro_batch_entries=1, delay_seconds=0.05)
    os.kill(worker.pid, signal.SIGSTOP)  # all of it is there before it does any of it
    call = control.infer(texts(*(str(n) for n in range(30))))
    await asyncio.sleep(0)
    call.cancel(positions=[29])  # a second and a half before its turn
    os.kill(worker.pid, signal.SIGCONT)
    replies = [await anext(call)]
    replies += [reply async for reply in call]
    assert [(e.position, e.reason) for reply in replies for e in reply.errors] == [(29, "Cancelled")]
    assert (await anext(control.watch(10))).entries == 29


async def test_batches_are_answered_in_the_order_they_came(control):
    await load(control, delay_seconds=0.01)
    order: list[int] = []

    async def one(number: int) -> None:
        await rows(control, texts(str(number)))
        order.append(number)

    async with asyncio.TaskGroup() as group:
        for number in range(10):
            group.create_task(one(number))
    assert order == list(range(10))


async def test_an_engine_that_fails_a_text_fails_that_row_alone(control):
    await load(control, fail_on_text="bad")
    replies = [reply async for reply in control.infer(texts("good", "a bad one"))]
    assert [(e.position, e.reason) for reply in replies for e in reply.errors] == [(1, "InvalidArgument")]


async def test_an_unknown_option_is_named_with_its_path(control):
    with pytest.raises(errors.InvalidArgument) as caught:
        await load(control, delay=1)
    assert [violation.field for violation in caught.value.fields] == ["engine_options.delay"]


async def test_an_unknown_engine_is_named(control):
    with pytest.raises(errors.EngineNotFound):
        await control.load(worker_pb2.LoadRequest(engine="nonsense"), timeout_seconds=30)


async def test_a_failed_load_says_why(control):
    with pytest.raises(errors.LoadFailed, match="no such luck"):
        await load(control, fail_load="no such luck")


async def test_a_second_load_is_refused(control):
    await load(control)
    with pytest.raises(errors.FailedPrecondition):
        await load(control)


async def test_work_before_the_load_is_refused(control):
    with pytest.raises(errors.FailedPrecondition):
        await rows(control, texts("a"))


async def test_watch_counts_batches_entries_and_private_bytes(control):
    await load(control, leak_bytes_per_batch=8 << 20)
    before = await anext(control.watch(10))
    for _ in range(4):
        await rows(control, texts("a", "b"))
    after = await anext(control.watch(10))
    assert (after.batches - before.batches, after.entries - before.entries) == (4, 8)
    assert 4 * (8 << 20) <= after.private_bytes - before.private_bytes < 5 * (8 << 20)
    assert after.state == common_pb2.HEALTH_STATE_HEALTHY


async def test_watch_goes_on_while_the_engine_hangs(control):
    await load(control, hang_after_batches=0)
    control.infer(texts("a"))
    seen = 0
    async for reply in control.watch(0.01):
        seen += reply.in_flight == 1
        if seen == 3:
            break


async def test_a_drained_worker_finishes_what_runs_and_exits_with_0(control, worker):
    await load(control, delay_seconds=0.3)
    call = control.infer(texts("a"))
    drained = asyncio.create_task(control.drain(timeout_seconds=20))
    assert (await within(anext(call))).done
    await drained
    assert (await within(worker.exited)).code == 0
    assert not Path(worker.endpoint.removeprefix("unix:")).exists()


async def test_a_draining_worker_takes_no_more_work(control, worker):
    await load(control, delay_seconds=0.5)
    os.kill(worker.pid, signal.SIGSTOP)  # all of it is there before it does any of it
    first = control.infer(texts("a"))
    drained = asyncio.create_task(control.drain(timeout_seconds=20))
    await asyncio.sleep(0)
    second = control.infer(texts("b"))
    os.kill(worker.pid, signal.SIGCONT)
    with pytest.raises(errors.ShuttingDown):
        await anext(second)
    assert (await anext(first)).done
    await drained


async def test_terminate_drains_and_exits_with_0(control, worker):
    await load(control, delay_seconds=0.3)
    call = control.infer(texts("a"))
    await control.ping(timeout_seconds=10)
    worker.terminate()
    assert (await within(anext(call))).done
    assert (await within(worker.exited)).code == 0


async def test_a_crash_ends_every_call_and_is_told_with_its_signal(control, worker):
    await load(control, crash_on_text="boom", delay_seconds=0.05)
    assert (await anext(control.infer(texts("fine")))).done
    calls = [control.infer(texts("a boom")), control.infer(texts("waits"))]
    for call in calls:
        with pytest.raises(errors.WorkerUnavailable):
            await within(anext(call))
    exit_ = await within(worker.exited)
    assert (exit_.code, exit_.signal) == (None, 9)
    assert any("loaded" in line for line in exit_.log_tail)
    with pytest.raises(errors.WorkerUnavailable):
        await anext(control.infer(texts("late")))


async def test_out_of_memory_ends_the_worker_with_a_status_of_its_own(control, worker):
    await load(control, oom_after_batches=1)
    await rows(control, texts("a"))
    with pytest.raises(errors.WorkerUnavailable):
        await within(anext(control.infer(texts("b"))))
    exit_ = await within(worker.exited)
    assert exit_.code == 70
    assert any("out of memory" in line for line in exit_.log_tail)


async def test_a_lease_key_lets_in_until_it_is_withdrawn(control, worker):
    await load(control)
    key = os.urandom(32)
    with pytest.raises(errors.Unauthenticated):
        await WorkerChannel.connect(worker.endpoint, key)
    await control.allow(key)
    holder = await WorkerChannel.connect(worker.endpoint, key)
    assert holder.worker_pid == worker.pid
    assert len(await rows(holder, texts("a"))) == 1
    with pytest.raises(errors.PermissionDenied):
        await holder.drain(timeout_seconds=10)
    with pytest.raises(errors.PermissionDenied):
        await holder.load(worker_pb2.LoadRequest(engine="echo"), timeout_seconds=10)
    await control.withdraw(key)
    await within(holder.closed.wait())
    assert "lease-withdrawn" in holder.close_reason
    with pytest.raises(errors.Unauthenticated):
        await WorkerChannel.connect(worker.endpoint, key)
    assert len(await rows(control, texts("a"))) == 1


async def test_what_a_closed_connection_asked_for_is_not_computed(control, worker):
    await load(control, delay_seconds=0.5)
    key = os.urandom(32)
    await control.allow(key)
    holder = await WorkerChannel.connect(worker.endpoint, key)
    for number in range(100):
        holder.infer(texts(str(number)))
    await holder.ping(timeout_seconds=10)
    await holder.close()
    await rows(control, texts("mine"))
    assert (await anext(control.watch(10))).batches < 100


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"not-a-frame"),
        (struct.pack("<IHBBQ", 1, 0x4D4D, 1, 0, 1) + b"x", b"credit-exceeded"),
        (struct.pack("<IHBBQ", 3, 0x4D4D, 5, 0, 1) + b"\xff\xff\xff", b"not-a-message"),
        (struct.pack("<IHBBQ", 2, 0x4D4D, 5, 0, 1) + b"\x2a\x00", b"no-hello"),
    ],
    ids=["garbage", "data-before-hello", "no-message", "drain-before-hello"],
)
async def test_a_stranger_is_shown_the_door_by_name(control, worker, sent, reason):
    await load(control)
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.setblocking(False)
        await loop.sock_connect(stranger, worker.endpoint.removeprefix("unix:"))
        await loop.sock_sendall(stranger, sent)
        answer = b""
        while part := await within(loop.sock_recv(stranger, 65536)):
            answer += part
    assert reason in answer
    assert len(await rows(control, texts("a"))) == 1


async def test_a_connection_that_says_nothing_is_closed(control, worker):
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.setblocking(False)
        await loop.sock_connect(silent, worker.endpoint.removeprefix("unix:"))
        assert b"no-hello" in await within(loop.sock_recv(silent, 65536))
    await control.ping(timeout_seconds=10)


async def test_two_large_requests_do_not_delay_a_ping(control):
    await load(control, delay_seconds=0.2)
    for _ in range(2):
        control.infer(texts(*(["word " * 1000] * 2000)))
    await control.ping(timeout_seconds=10)


async def test_a_request_over_the_limit_fails_alone(control):
    await load(control)
    with pytest.raises(errors.MessageTooLarge):
        await anext(control.infer(texts("x" * framing.Limits().max_message_bytes)))
    assert len(await rows(control, texts("a"))) == 1
