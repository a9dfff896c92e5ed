"""The worker's two threads, with an engine whose every step is let go by the test."""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from modelmora import errors
from modelmora_worker.engines import base
from modelmora_worker.pipeline import SLICE_CHARACTERS, Batch, Done, Loading, Pipeline, Streaming

WAIT = 20.0


class Words(str):
    """A text of a batch."""

    pair = ""
    token_ids = ()

    @property
    def text(self) -> str:
        return str(self)


class SteppedEngine:
    """`infer` waits for `go`; `events` tells what is called, on which thread."""

    batching = base.Batching.STATIC

    def __init__(self) -> None:
        self.events: queue.Queue[tuple[str, Any, str]] = queue.Queue()
        self.go: queue.Queue[Exception | None] = queue.Queue()

    def note(self, name: str, what: Any = None) -> None:
        self.events.put((name, what, threading.current_thread().name))

    def next(self) -> tuple[str, Any, str]:
        return self.events.get(timeout=WAIT)

    def load(self, spec: base.EngineSpec, progress: Callable[[str, int, int], None]) -> base.Footprint:
        raise NotImplementedError

    def prepare(self, texts: Sequence[Any], exact: bool = False) -> base.Prepared:
        self.note("prepare", list(texts))
        if texts and texts[0] == "bad":
            raise ValueError("cannot be prepared")
        rows = [base.MicroBatch([n], [1], [False], [text]) for n, text in enumerate(texts)]
        return base.Prepared(rows)

    def infer(self, batch: base.MicroBatch) -> base.Rows:
        self.note("infer", batch.items[0])
        error = self.go.get(timeout=WAIT)
        if error is not None:
            raise error
        return base.Rows(b"\0\0\0\0", [1])

    def stream(self, request: Any) -> Iterator[Any]:
        for number in range(3):
            self.note("step", number)
            self.go.get(timeout=WAIT)
            yield {"number": number}

    def close(self) -> None:
        self.note("close")


class SlowEngine(SteppedEngine):
    """Prepares each input when it is let go."""

    def prepare_each(self, texts: Sequence[Any], exact: bool, wanted: Callable[[int], bool]) -> base.Prepared:
        rows = []
        for position, text in enumerate(texts):
            self.note("asks", text)
            self.go.get(timeout=WAIT)
            if wanted(position):
                self.note("decodes", text)
                rows.append(base.MicroBatch([position], [1], [False], [text]))
        return base.Prepared(rows)


class Rig:
    def __init__(self, engine: type[SteppedEngine] = SteppedEngine) -> None:
        self.engine = engine()
        self.answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self.idle: queue.Queue[None] = queue.Queue()
        self.pipeline = Pipeline(lambda: self.idle.put(None))
        self.pipeline.start()
        loading = Loading(lambda: self.engine, lambda _: self.answers.put(("loaded", None)), self.fail("load"))
        self.pipeline.submit(loading)
        assert self.answers.get(timeout=WAIT) == ("loaded", None)

    def fail(self, name: Any) -> Callable[[errors.ModelMoraError], None]:
        return lambda error: self.answers.put((name, error))

    def batch(self, *texts: str, rank: int = 0) -> Batch:
        def answer(done: Done) -> None:
            self.answers.put((texts, done))

        batch = Batch([Words(text) for text in texts], (), answer, self.fail(texts), rank=rank)
        self.pipeline.submit(batch)
        return batch

    def answer(self) -> tuple[Any, Any]:
        return self.answers.get(timeout=WAIT)


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    for _ in range(100):
        rig.engine.go.put(None)
    rig.pipeline.stop(timeout_seconds=WAIT)


def test_the_next_batch_is_prepared_while_one_computes(rig):
    rig.batch("a")
    assert rig.engine.next() == ("prepare", ["a"], "compute")
    assert rig.engine.next() == ("infer", "a", "compute")
    rig.batch("b")
    assert rig.engine.next() == ("prepare", ["b"], "prepare")
    rig.engine.go.put(None)
    assert rig.engine.next() == ("infer", "b", "compute")


def test_only_one_batch_is_prepared_ahead(rig):
    for text in "abc":
        rig.batch(text)
    assert [rig.engine.next()[:2] for _ in range(3)] == [("prepare", ["a"]), ("infer", "a"), ("prepare", ["b"])]
    assert rig.pipeline.in_flight == 3
    # Were "c" prepared too, it would be told before "b" is let go.
    rig.engine.go.put(None)
    assert rig.engine.next()[:2] in (("infer", "b"), ("prepare", ["c"]))
    assert rig.engine.next()[:2] in (("infer", "b"), ("prepare", ["c"]))


def test_a_batch_that_comes_alone_wakes_no_thread_that_has_nothing_to_do(rig, monkeypatch):
    woken = []
    monkeypatch.setattr(rig.pipeline._ahead, "notify", lambda: woken.append(rig.pipeline._worth_preparing()))
    rig.batch("a")
    rig.engine.go.put(None)
    rig.answer()
    while rig.pipeline.in_flight:
        rig.idle.get(timeout=WAIT)
    assert woken == []


def test_batches_are_computed_in_the_order_they_came(rig):
    for _ in range(50):
        rig.engine.go.put(None)
    for number in range(50):
        rig.batch(str(number))
    assert [rig.answer()[0] for _ in range(50)] == [(str(number),) for number in range(50)]
    assert (rig.pipeline.batches, rig.pipeline.entries) == (50, 50)


def test_a_cancelled_batch_ends_before_its_next_micro_batch(rig):
    batch = rig.batch("a", "b", "c")
    rig.engine.next(), rig.engine.next()
    batch.cancelled = True
    rig.engine.go.put(None)
    assert not rig.answer()[1].last
    assert isinstance(rig.answer()[1], errors.Cancelled)
    assert rig.engine.events.empty()


def test_a_batch_cancelled_while_it_waits_is_not_prepared(rig):
    rig.batch("a")
    rig.engine.next(), rig.engine.next()
    rig.batch("b")
    assert rig.engine.next()[:2] == ("prepare", ["b"])
    waiting = rig.batch("c")
    waiting.cancelled = True
    rig.engine.go.put(None)
    rig.engine.go.put(None)
    answers = dict(rig.answer() for _ in range(3))
    assert answers["a",].last
    assert answers["b",].last
    assert isinstance(answers["c",], errors.Cancelled)


def test_a_batch_of_a_higher_rank_goes_first_from_the_next_micro_batch_on(rig):
    rig.batch("a", "b")
    rig.batch("c")
    assert [rig.engine.next()[:2] for _ in range(3)] == [("prepare", ["a", "b"]), ("infer", "a"), ("prepare", ["c"])]
    rig.batch("h", rank=1)
    assert rig.engine.next()[:2] == ("prepare", ["h"])
    for _ in range(4):
        rig.engine.go.put(None)
    assert [rig.engine.next()[:2] for _ in range(3)] == [("infer", text) for text in "hbc"]
    answers = [rig.answer() for _ in range(4)]
    assert [(texts, done.last) for texts, done in answers] == [
        (("a", "b"), False),
        (("h",), True),
        (("a", "b"), True),
        (("c",), True),
    ]


def test_a_batch_of_the_same_rank_overtakes_nobody(rig):
    rig.batch("a", "b", rank=1)
    assert [rig.engine.next()[:2] for _ in range(2)] == [("prepare", ["a", "b"]), ("infer", "a")]
    rig.batch("c", rank=1)
    assert rig.engine.next()[:2] == ("prepare", ["c"])
    for _ in range(3):
        rig.engine.go.put(None)
    assert [rig.engine.next()[:2] for _ in range(2)] == [("infer", "b"), ("infer", "c")]


def test_a_batch_withdrawn_while_it_waits_ends_at_once(rig):
    rig.batch("a")
    rig.engine.next(), rig.engine.next()
    rig.batch("b")
    assert rig.engine.next()[:2] == ("prepare", ["b"])
    waiting = rig.batch("c")
    rig.pipeline.withdraw(waiting)
    texts, error = rig.answer()
    assert texts == ("c",)
    assert isinstance(error, errors.Cancelled)
    assert rig.pipeline.in_flight == 2, "its place is free, though the first still computes"


def test_rows_withdrawn_between_micro_batches_are_answered_and_not_computed(rig):
    batch = rig.batch("a", "b", "c")
    rig.engine.next(), rig.engine.next()
    batch.dropped.update({1, 2})
    rig.engine.go.put(None)
    rig.answer()
    last = rig.answer()[1]
    assert last.last
    assert last.rows is None
    assert [(failure.position, failure.error.reason) for failure in last.failed] == [(1, "Cancelled"), (2, "Cancelled")]
    assert rig.engine.events.empty()


@pytest.fixture
def slow() -> Iterator[Rig]:
    made = Rig(SlowEngine)
    yield made
    for _ in range(100):
        made.engine.go.put(None)
    made.pipeline.stop(timeout_seconds=WAIT)


def test_inputs_that_take_long_are_left_out_when_their_time_is_over_or_they_are_withdrawn_meanwhile(slow):
    batch = slow.batch("a", "b", "c", "d")
    assert slow.engine.next()[:2] == ("asks", "a")
    batch.dropped.add(1)
    batch.deadlines = [float("inf"), float("inf"), 0.0, float("inf")]
    slow.engine.go.put(None)
    assert slow.engine.next()[:2] == ("decodes", "a")
    for text in "bc":
        assert slow.engine.next()[:2] == ("asks", text)
        slow.engine.go.put(None)
    assert slow.engine.next()[:2] == ("asks", "d")
    assert slow.pipeline.looked_at == 3, "others see that it goes on before anything is computed"
    slow.engine.go.put(None)
    assert slow.engine.next()[:2] == ("decodes", "d")
    for text in "ad":
        assert slow.engine.next()[:2] == ("infer", text)
        slow.engine.go.put(None)
    first, last = slow.answer()[1], slow.answer()[1]
    assert [(failure.position, failure.error.reason) for failure in first.failed] == [
        (1, "Cancelled"),
        (2, "DeadlineExceeded"),
    ]
    assert last.last


def test_a_batch_withdrawn_while_its_inputs_are_prepared_ends_before_the_next_of_them(slow):
    batch = slow.batch("a", "b", "c")
    assert slow.engine.next()[:2] == ("asks", "a")
    slow.pipeline.withdraw(batch)
    slow.engine.go.put(None)
    assert isinstance(slow.answer()[1], errors.Cancelled)
    assert slow.engine.events.empty()


class SlicingEngine(SteppedEngine):
    """`prepare` waits for `slices`, and is never called twice at once."""

    def __init__(self) -> None:
        super().__init__()
        self.slices: queue.Queue[None] = queue.Queue()
        self.preparing = threading.Lock()

    def prepare(self, texts: Sequence[Any], exact: bool = False) -> base.Prepared:
        assert self.preparing.acquire(blocking=False)
        prepared = super().prepare([text[0] for text in texts], exact)
        self.slices.get(timeout=WAIT)
        self.preparing.release()
        return prepared


@pytest.fixture
def sliced() -> Iterator[Rig]:
    made = Rig(SlicingEngine)
    yield made
    for _ in range(100):
        made.engine.slices.put(None)
        made.engine.go.put(None)
    made.pipeline.stop(timeout_seconds=WAIT)


LONG = SLICE_CHARACTERS


def test_long_texts_are_prepared_slice_by_slice_and_every_row_keeps_its_place(sliced):
    batch = sliced.batch(*(letter * (LONG // 2 - 100) for letter in "abcde"))
    for slice_ in ("ab", "cd", "e"):
        assert sliced.engine.next()[:2] == ("prepare", list(slice_))
        sliced.engine.slices.put(None)
    assert sliced.pipeline.looked_at == 3, "others see that it goes on"
    for letter in "abcde":
        assert sliced.engine.next()[:2] == ("infer", letter)
        sliced.engine.go.put(None)
    done = [sliced.answer()[1] for _ in range(5)]
    assert [one.batch.positions for one in done] == [[0], [1], [2], [3], [4]]
    assert [one.last for one in done] == [False] * 4 + [True]
    assert batch.prepared.failed == []


def test_a_batch_of_one_slice_is_no_sign_of_progress(sliced):
    """A worker that hangs prepares the question whether it is well."""
    sliced.batch("a", "b")
    assert sliced.engine.next()[:2] == ("prepare", ["a", "b"])
    assert sliced.pipeline.looked_at == 0


def test_a_batch_of_a_higher_rank_waits_for_one_slice_of_another(sliced):
    sliced.batch("a" * LONG, "b" * LONG, "c" * LONG)
    assert sliced.engine.next() == ("prepare", ["a"], "compute")
    sliced.batch("h", rank=1)
    sliced.batch("m")
    sliced.engine.slices.put(None)
    assert sliced.engine.next()[:2] == ("prepare", ["h"])
    sliced.engine.slices.put(None)
    # While it is computed the other goes on, before what came after it.
    assert sorted(sliced.engine.next()[:2] for _ in range(2)) == [("infer", "h"), ("prepare", ["b"])]


def test_an_idle_thread_that_has_taken_an_urgent_batch_gets_the_tokenizer_after_the_slice(sliced):
    pipeline = sliced.pipeline
    sliced.batch("x")
    sliced.engine.slices.put(None)
    assert [sliced.engine.next()[:2] for _ in range(2)] == [("prepare", ["x"]), ("infer", "x")]
    sliced.batch("a" * LONG, "b" * LONG)
    assert sliced.engine.next() == ("prepare", ["a"], "prepare")
    sliced.engine.go.put(None)
    assert sliced.answer()[1].last
    sliced.batch("h", rank=1)
    sliced.batch("m")
    until(lambda: pipeline._readying)
    with pipeline._lock:
        assert not pipeline._worth_preparing(), "two threads would race for it, and the one that has it wins"
    sliced.engine.slices.put(None)
    assert sliced.engine.next() == ("prepare", ["h"], "compute")


def test_between_two_slices_it_is_asked_who_still_waits(sliced):
    batch = sliced.batch(*(letter * LONG for letter in "abcd"))
    assert sliced.engine.next()[:2] == ("prepare", ["a"])
    batch.dropped.add(1)
    batch.deadlines = [float("inf"), float("inf"), 0.0, float("inf")]
    sliced.engine.slices.put(None)
    assert sliced.engine.next()[:2] == ("prepare", ["d"])
    sliced.engine.slices.put(None)
    for letter in "ad":
        assert sliced.engine.next()[:2] == ("infer", letter)
        sliced.engine.go.put(None)
    first, last = sliced.answer()[1], sliced.answer()[1]
    assert [(failure.position, failure.error.reason) for failure in first.failed] == [
        (1, "Cancelled"),
        (2, "DeadlineExceeded"),
    ]
    assert (first.batch.positions, last.batch.positions, last.last) == ([0], [3], True)


def test_a_batch_withdrawn_while_its_texts_are_prepared_ends_after_the_slice(sliced):
    batch = sliced.batch("a" * LONG, "b" * LONG)
    assert sliced.engine.next()[:2] == ("prepare", ["a"])
    sliced.pipeline.withdraw(batch)
    sliced.engine.slices.put(None)
    assert isinstance(sliced.answer()[1], errors.Cancelled)
    assert sliced.engine.events.empty()
    until(lambda: not sliced.pipeline.in_flight)


def test_rows_that_need_no_computing_are_answered_slice_by_slice(sliced):
    told: queue.Queue[Any] = queue.Queue()
    asked = []

    def rows_of(texts: Sequence[Any]) -> list[bytes]:
        asked.append([text[0] for text in texts])
        return [text[0].encode() * 16 for text in texts]

    texts = [Words(letter * LONG) for letter in "abc"]
    sliced.pipeline.submit(Batch(texts, (), told.put, told.put, rows_of=rows_of))
    done = [told.get(timeout=WAIT) for _ in range(3)]
    assert asked == [["a"], ["b"], ["c"]]
    assert [(one.batch.positions, one.rows.data, one.last) for one in done] == [
        ([0], b"a" * 16, False),
        ([1], b"b" * 16, False),
        ([2], b"c" * 16, True),
    ]


def test_an_engine_that_raises_fails_its_batch_and_goes_on(rig):
    rig.batch("a")
    rig.engine.go.put(ValueError("no"))
    error = rig.answer()[1]
    assert isinstance(error, errors.InternalError)
    assert error.message == "ValueError: no"
    rig.batch("bad")
    assert rig.answer()[1].message == "ValueError: cannot be prepared"
    rig.batch("b")
    rig.engine.go.put(None)
    assert rig.answer()[1].last


def test_a_stream_ends_when_it_is_cancelled(rig):
    outputs: queue.Queue[Any] = queue.Queue()
    job = Streaming({}, lambda output, last: outputs.put((output, last)), rig.fail("stream"))
    rig.pipeline.submit(job)
    rig.engine.go.put(None)
    assert outputs.get(timeout=WAIT) == ({"number": 0}, False)
    job.cancelled = True
    rig.engine.go.put(None)
    assert isinstance(rig.answer()[1], errors.Cancelled)
    assert outputs.empty()


def test_idle_is_told_when_nothing_is_left(rig):
    while not rig.idle.empty():
        rig.idle.get()
    rig.batch("a")
    rig.engine.go.put(None)
    rig.answer()
    rig.idle.get(timeout=WAIT)
    while rig.pipeline.in_flight:  # that was the word after the load, which came late
        rig.idle.get(timeout=WAIT)


def test_the_engine_is_closed_on_its_own_thread(rig):
    rig.pipeline.stop(timeout_seconds=WAIT)
    assert rig.engine.next() == ("close", None, "compute")


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        threading.Event().wait(0.001)


class TrackedEngine(SteppedEngine):
    """Two tracks, which are open once the test says so; `infer` tells its track and waits for the go of its text."""

    tracks = 2

    def __init__(self) -> None:
        super().__init__()
        self.may_open = threading.Event()
        self.gone: dict[str, queue.Queue[Exception | None]] = defaultdict(queue.Queue)

    def open_tracks(self) -> None:
        self.note("open")
        assert self.may_open.wait(WAIT)

    def infer(self, batch: base.MicroBatch, track: int | None = None) -> base.Rows:
        (text,) = batch.items
        self.events.put(("infer", text, track))  # type: ignore[arg-type]
        error = self.gone[text].get(timeout=WAIT)
        if error is not None:
            raise error
        return base.Rows(b"\0\0\0\0", [1])

    def let_go(self, *texts: str) -> None:
        for text in texts:
            self.gone[text].put(None)

    def begun(self, count: int) -> dict[str, int | None]:
        """Which text is on which track."""
        return {what: track for _, what, track in (self.next() for _ in range(count))}  # type: ignore[misc]


@pytest.fixture
def tracked() -> Iterator[Rig]:
    made = Rig(TrackedEngine)
    yield made
    made.engine.may_open.set()
    for text in "abcdefh":
        made.engine.let_go(text)
    made.pipeline.stop(timeout_seconds=WAIT)


@pytest.fixture
def tracks(tracked: Rig) -> Rig:
    """With its tracks open."""
    tracked.engine.may_open.set()
    tracked.batch("x", "y", "z")
    seen = [tracked.engine.next() for _ in range(3)]
    assert seen[0][:2] == ("prepare", ["x", "y", "z"])
    assert sorted(name for name, *_ in seen[1:]) == ["infer", "open"]
    until(lambda: tracked.pipeline._tracks_open)
    tracked.engine.let_go("x", "y", "z")
    tracked.engine.begun(2)
    assert [tracked.answer()[1].last for _ in range(3)] == [False, False, True]
    return tracked


def test_tracks_are_opened_beside_the_first_work_for_them(tracked):
    tracked.batch("a", "b")
    assert {tracked.engine.next()[0] for _ in range(3)} == {"prepare", "infer", "open"}
    tracked.engine.let_go("a")
    assert tracked.engine.next() == ("infer", "b", None), "all cores for one after the other until they are open"
    tracked.engine.let_go("b")


def test_what_comes_alone_has_all_cores_and_several_have_a_track_each(tracks):
    tracks.batch("a")
    tracks.engine.next()
    assert tracks.engine.next() == ("infer", "a", None)
    tracks.batch("b", "c", "d")
    assert tracks.engine.next()[:2] == ("prepare", ["b", "c", "d"])
    pipeline = tracks.pipeline
    until(lambda: pipeline._ready or pipeline._open)
    with pipeline._lock:
        assert pipeline._take_beside() is None, "nothing runs beside what has all cores"
    tracks.engine.let_go("a")
    begun = tracks.engine.begun(2)
    assert begun.keys() == {"b", "c"}
    assert set(begun.values()) == {0, 1}
    tracks.engine.let_go("b")
    assert tracks.engine.next() == ("infer", "d", begun["b"])
    tracks.engine.let_go("c", "d")
    assert [tracks.answer()[1].last for _ in range(4)] == [True, False, False, True]


def test_a_track_goes_on_with_the_next_batch_while_another_computes_the_last_of_one(tracks):
    tracks.batch("a", "b")
    tracks.engine.next()
    begun = tracks.engine.begun(2)
    tracks.batch("c")
    assert tracks.engine.next()[:2] == ("prepare", ["c"])
    tracks.engine.let_go("b")
    assert tracks.engine.next() == ("infer", "c", begun["b"])
    tracks.engine.let_go("c")
    answers = [tracks.answer() for _ in range(2)]
    assert [(texts, done.last) for texts, done in answers] == [(("a", "b"), False), (("c",), True)]
    tracks.engine.let_go("a")
    assert tracks.answer()[1].last


def test_a_second_on_one_of_two_tracks_counts_for_half_a_second(tracks):
    before, now = tracks.pipeline.compute_seconds, 100.0
    tracks.pipeline._clock = lambda: now
    tracks.batch("a", "b")
    tracks.engine.next()
    tracks.engine.begun(2)
    now = 110.0
    tracks.engine.let_go("a", "b")
    assert [tracks.answer()[1].compute_seconds for _ in range(2)] == [5.0, 5.0]
    assert tracks.pipeline.compute_seconds == pytest.approx(before + 10.0)


def test_on_tracks_too_a_higher_rank_goes_first_and_an_error_or_a_cancel_ends_a_batch_once(tracks):
    failing, cancelled = tracks.batch("a", "b", "c"), tracks.batch("d", "e")
    seen = [tracks.engine.next() for _ in range(4)]
    assert sorted(what for name, what, _ in seen if name == "infer") == ["a", "b"]
    tracks.batch("h", rank=1)
    assert tracks.engine.next()[:2] == ("prepare", ["h"])
    cancelled.cancelled = True
    tracks.engine.gone["a"].put(ValueError("no"))
    assert tracks.engine.next()[:2] == ("infer", "h")
    assert tracks.pipeline.in_flight == 3
    tracks.engine.let_go("b", "h")
    ended = [tracks.answer() for _ in range(4)]
    assert sorted(error.reason for _, error in ended if isinstance(error, errors.ModelMoraError)) == [
        "Cancelled",
        "InternalError",
    ]
    assert [texts for texts, done in ended if isinstance(done, Done) and done.last] == [("h",)]
    assert failing.error is not None
    assert tracks.engine.events.empty(), "c, d and e are not computed"


def test_a_stream_waits_until_all_tracks_are_free_and_none_begins_beside_it(tracks):
    tracks.batch("a", "b")
    tracks.engine.next()
    tracks.engine.begun(2)
    stream = Streaming({}, lambda output, last: None, tracks.fail("stream"))
    tracks.pipeline.submit(stream)
    tracks.batch("c")
    tracks.engine.let_go("a")
    tracks.answer()
    with tracks.pipeline._lock:
        assert stream in tracks.pipeline._inbox
        assert tracks.pipeline._next() is None, "the stream waits for b"
    assert tracks.engine.events.empty(), "and c for the stream"
    tracks.engine.let_go("b", "c")
    for _ in range(3):
        tracks.engine.go.put(None)
    assert [tracks.answer()[0] for _ in range(2)] == [("a", "b"), ("c",)]
    seen = [tracks.engine.next()[:2] for _ in range(5)]
    seen.remove(("prepare", ["c"]))
    assert seen == [("step", 0), ("step", 1), ("step", 2), ("infer", "c")]


def test_an_engine_whose_tracks_cannot_be_opened_goes_on_without(tracked):
    tracked.engine.open_tracks = lambda: 1 / 0
    for text in "abcd":
        tracked.engine.let_go(text)
    tracked.batch("a", "b")
    tracked.batch("c", "d")
    assert [tracked.answer()[1].last for _ in range(4)] == [False, True, False, True]
    assert {track for name, _, track in tracked.engine.events.queue if name == "infer"} == {None}


def test_rows_that_cannot_be_answered_fail_their_batch_and_nothing_else(rig):
    def refuse(done: Done) -> None:
        raise ValueError("not a row")

    rig.pipeline.submit(Batch((Words("a"), Words("b")), (), refuse, rig.fail("a")))
    rig.engine.go.put(None)
    assert rig.answer()[1].message == "ValueError: not a row"
    rig.batch("c")
    rig.engine.go.put(None)
    assert rig.answer()[1].last
