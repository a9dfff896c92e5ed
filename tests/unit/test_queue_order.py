"""The queue's rules, one by one: order and aging, batches, bounds, expiry, withdrawal, poison."""

from __future__ import annotations

from collections.abc import Hashable

import pytest
from modelmora.errors import QueueFull
from modelmora_inference.domain import Aging, BatchLimits, Bounds, ByteBudget, Entry, Place, Priority, Worker
from modelmora_inference.queue import EntryQueue, Popped

H, M, L = Priority.HIGH, Priority.MEDIUM, Priority.LOW
AGING = Aging(medium_seconds=10, low_seconds=40, fairness_seconds=20)
WIDE = BatchLimits(max_entries=100, max_tokens=10_000, split_tokens=10_000)


def queue(**bounds: int) -> EntryQueue:
    return EntryQueue(Bounds(**bounds), AGING)


def entry(
    name: str = "e",
    *,
    at: float = 0.0,
    priority: Priority = M,
    deadline: float = 1e9,
    tokens: int = 1,
    size_bytes: int = 1,
    lane: Hashable = None,
) -> Entry:
    return Entry(name, None, 0, priority, "", at, deadline, tokens, size_bytes, lane)


def push(q: EntryQueue, *entries: Entry) -> None:
    for item in entries:
        q.push([item], item.arrival)


def ask(q: EntryQueue, limits: BatchLimits, now: float) -> Popped:
    """Asks for the one worker there is."""
    worker = q.workers[0] if q.workers else Worker()
    worker.limits = limits
    return q.pop_batch(worker, now)


def gone(q: EntryQueue, *, crashed: bool) -> list[Entry]:
    return q.worker_gone(q.workers[0], crashed=crashed)


def names(entries: list[Entry]) -> str:
    return "".join(str(item.payload) for item in entries)


def pop(q: EntryQueue, now: float = 0.0, limits: BatchLimits = WIDE) -> str:
    """Names of the next batch; the worker answers it at once."""
    batch = ask(q, limits, now).batch
    if batch is None:
        return ""
    for position in range(len(batch.entries)):
        q.answer(batch, position, now)
    q.finish(batch)
    return names(batch.entries)


# Order.


def test_queue_serves_the_more_urgent_first() -> None:
    q = queue()
    push(q, entry("l", priority=L), entry("m"), entry("h", priority=H), entry("n"))
    assert [pop(q), pop(q), pop(q)] == ["h", "mn", "l"]


def test_queue_serves_one_priority_by_arrival() -> None:
    q = queue()
    push(q, entry("a", at=0), entry("b", at=0), entry("c", at=1))
    assert pop(q, 1) == "abc"


@pytest.mark.parametrize(
    ("earlier", "later", "seconds_between", "order"),
    [
        (M, H, 9.9, "le"),
        (M, H, 10.1, "el"),
        (L, H, 39.9, "le"),
        (L, H, 40.1, "el"),
        (L, M, 29.9, "le"),
        (L, M, 30.1, "el"),
        (H, H, 0.0, "el"),
        (H, M, 0.0, "el"),
    ],
)
def test_queue_lets_only_those_pass_who_arrive_within_the_offset(
    earlier: Priority, later: Priority, seconds_between: float, order: str
) -> None:
    q = queue()
    push(q, entry("e", priority=earlier), entry("l", at=seconds_between, priority=later))
    assert pop(q, seconds_between) + pop(q, seconds_between) == order


def test_queue_puts_entries_of_two_lanes_into_two_batches() -> None:
    q = queue()
    push(q, entry("a", lane=1), entry("x", lane=2), entry("b", lane=1), entry("y", lane=2))
    assert [pop(q), pop(q), pop(q)] == ["ab", "xy", ""]


def test_queue_serves_lanes_by_arrival_too() -> None:
    q = queue()
    push(q, entry("a", lane=1))
    assert pop(q) == "a"
    push(q, entry("b", at=1, lane=2), entry("c", at=2, lane=1))  # the lane that was there first comes second
    assert [pop(q, 2), pop(q, 2)] == ["b", "c"]


# Batches.


def test_queue_fills_a_batch_up_to_its_tokens() -> None:
    q = queue()
    push(q, *(entry(name, tokens=4) for name in "abcde"))
    limits = BatchLimits(max_entries=9, max_tokens=10, split_tokens=10)
    assert [pop(q, limits=limits) for _ in range(3)] == ["ab", "cd", "e"]


def test_a_batch_respects_the_bytes_that_a_worker_takes_at_a_time_but_for_a_single_entry():
    q = queue()
    push(q, *(entry(name, size_bytes=size) for name, size in zip("abcd", (500, 90, 10, 1), strict=True)))
    limits = BatchLimits(max_entries=9, max_tokens=100, split_tokens=100, max_bytes=100)
    assert [pop(q, limits=limits) for _ in range(4)] == ["a", "bc", "d", ""]


def test_queue_fills_a_batch_up_to_its_entries() -> None:
    q = queue()
    push(q, *(entry(name) for name in "abcde"))
    limits = BatchLimits(max_entries=2, max_tokens=100, split_tokens=100)
    assert [pop(q, limits=limits) for _ in range(3)] == ["ab", "cd", "e"]


def test_queue_hands_out_an_entry_that_is_longer_than_a_batch() -> None:
    q = queue()
    push(q, entry("a", tokens=50), entry("b"))
    assert pop(q, limits=BatchLimits(max_entries=9, max_tokens=10, split_tokens=10)) == "a"


def test_queue_shares_what_waits_between_the_two_places_of_a_worker() -> None:
    q = queue()
    push(q, *(entry(name, tokens=10) for name in "abcdefgh"))
    limits = BatchLimits(max_entries=9, max_tokens=1000, split_tokens=20)
    first = ask(q, limits, 0).batch
    second = ask(q, limits, 0).batch
    assert first is not None
    assert second is not None
    assert names(first.entries) == "abcd"
    assert names(second.entries) == "efgh"


def test_queue_does_not_split_little_work() -> None:
    q = queue()
    push(q, entry("a", tokens=10), entry("b", tokens=10))
    assert pop(q, limits=BatchLimits(max_entries=9, max_tokens=1000, split_tokens=20)) == "ab"


def test_queue_gathers_beside_a_running_batch_until_as_much_waits() -> None:
    q = queue()
    push(q, entry("a", tokens=2), entry("b", tokens=2))
    running = ask(q, WIDE, 0).batch
    assert running is not None
    push(q, entry("c", tokens=2))
    assert ask(q, WIDE, 0).batch is None
    q.answer(running, 0, 0)
    following = ask(q, WIDE, 0).batch
    assert following is not None
    assert names(following.entries) == "c"
    push(q, entry("d", tokens=100))
    assert ask(q, WIDE, 0).batch is None, "both places are taken"


def test_queue_never_waits_while_the_worker_is_idle() -> None:
    q = queue()
    push(q, entry("a"))
    assert pop(q) == "a"


# Deadlines, bounds, withdrawal.


def test_queue_drops_an_expired_request() -> None:
    q = queue()
    push(q, entry("a", deadline=5), entry("b", deadline=6), entry("c", deadline=5))
    popped = ask(q, WIDE, 5)
    assert names(popped.expired) == "ac"
    assert popped.batch is not None
    assert names(popped.batch.entries) == "b"
    assert [item.place for item in popped.expired] == [Place.ENDED] * 2
    assert len(q) == 0


@pytest.mark.parametrize("bounds", [{"max_entries": 3}, {"max_tokens": 30}, {"max_bytes": 300}])
def test_queue_is_bounded_by(bounds: dict[str, int]) -> None:
    q = queue(**bounds)
    for _ in range(3):
        push(q, entry(tokens=10, size_bytes=100))
    with pytest.raises(QueueFull) as caught:
        push(q, entry(tokens=10, size_bytes=100))
    assert caught.value.retry_after_seconds is not None
    assert len(q) == 3


def test_queue_takes_all_entries_of_a_call_or_none() -> None:
    q = queue(max_entries=3)
    with pytest.raises(QueueFull):
        q.push([entry() for _ in range(4)], 0)
    assert len(q) == 0
    q.push([entry() for _ in range(3)], 0)


def test_queue_counts_what_runs_against_its_bounds_so_that_it_may_come_back() -> None:
    q = queue(max_entries=2)
    push(q, entry("a"), entry("b"))
    assert ask(q, WIDE, 0).batch is not None
    with pytest.raises(QueueFull):
        push(q, entry("c"))
    gone(q, crashed=False)
    assert pop(q) == "ab"
    push(q, entry("c"))


def test_a_full_queue_says_when_there_will_be_room() -> None:
    q = queue(max_entries=100)
    q.push([entry() for _ in range(100)], 0)
    one = BatchLimits(max_entries=1, max_tokens=1, split_tokens=1)
    for second in range(1, 51):  # ten answers a second
        now = second / 10
        assert pop(q, now, one)
        q.push([entry(at=now)], now)
    with pytest.raises(QueueFull) as caught:
        q.push([entry() for _ in range(20)], 5)
    assert caught.value.retry_after_seconds == pytest.approx(2.0, rel=0.05)


def test_a_queue_that_drains_for_minutes_says_minutes_and_none_is_told_more_than_ten() -> None:
    q = queue(max_entries=100)
    q.push([entry() for _ in range(100)], 0)
    one = BatchLimits(max_entries=1, max_tokens=1, split_tokens=1)
    for second in (10, 20, 30):  # an answer each ten seconds
        assert pop(q, second, one)
        q.push([entry(at=second)], second)
    for count, seconds in ((30, 300), (99, 600)):
        with pytest.raises(QueueFull) as caught:
            q.push([entry() for _ in range(count)], 30)
        assert caught.value.retry_after_seconds == pytest.approx(seconds, rel=0.01)


def test_slow_lone_calls_do_not_say_how_fast_a_full_queue_drains() -> None:
    q = queue(max_entries=1000)
    for start in range(0, 100, 10):  # each takes ten seconds, whatever it has beside it
        push(q, entry(at=start))
        alone = ask(q, WIDE, start).batch
        assert alone is not None
        q.answer(alone, 0, start + 10)
        q.finish(alone)
    assert q.drain_rate == pytest.approx(0.1, rel=0.01)
    q.push([entry(at=100) for _ in range(1000)], 100)
    with pytest.raises(QueueFull) as caught:
        q.push([entry() for _ in range(500)], 100)
    assert caught.value.retry_after_seconds == 1.0, "nobody knows yet"
    many = ask(q, WIDE, 100).batch
    assert many is not None
    for position in range(100):
        q.answer(many, position, 110)
    q.finish(many)
    q.push([entry(at=110) for _ in range(100)], 110)
    with pytest.raises(QueueFull) as caught:
        q.push([entry() for _ in range(500)], 110)
    assert caught.value.retry_after_seconds == pytest.approx(50, rel=0.01), "a hundred in ten seconds"


def test_lone_calls_do_not_say_how_fast_what_waits_is_computed() -> None:
    q = queue(max_entries=1_000_000)
    for start in range(3):
        push(q, entry(at=start))
        assert pop(q, start + 0.5)
    assert q.drain_rate == pytest.approx(2, rel=0.01)
    assert q.pace == 0, "nobody knows"
    q.push([entry(at=10) for _ in range(200)], 10)
    half = BatchLimits(max_entries=100, max_batches=2)
    batches = [ask(q, half, 10).batch for _ in range(2)]
    for now, batch in zip((10.5, 11), batches, strict=True):
        assert batch is not None
        for position in range(100):
            q.answer(batch, position, now)
        q.finish(batch)
    assert q.pace == pytest.approx(200, rel=0.05)
    assert q.drain_rate < 100


def test_what_is_behind_another_batch_still_waits() -> None:
    q = queue()
    assert q.behind(5.0) == (0, 0.0)
    narrow = BatchLimits(max_entries=2, max_tokens=10_000, max_batches=2, split_tokens=1)
    push(q, *(entry(name, at=at, tokens=100) for at, name in enumerate("abcde")))
    first = ask(q, narrow, 5.0).batch
    assert first is not None
    assert names(first.entries) == "ab"
    assert q.behind(5.0) == (3, 3.0), "c is the oldest that is not computed"
    second = ask(q, narrow, 5.0).batch
    assert second is not None
    assert names(second.entries) == "cd"
    assert q.behind(7.0) == (3, 5.0), "on the worker it waits all the same"
    q.answer(second, 0, 7.0)
    assert q.behind(8.0) == (1, 4.0), "it has begun"
    q.finish(first)
    assert q.behind(8.0) == (1, 4.0), "only e waits"


def test_time_without_work_does_not_slow_the_drain_rate() -> None:
    q = queue()
    for start in (0.0, 1000.0, 2000.0):
        push(q, entry(at=start))
        assert pop(q, start + 0.1)
    assert q.drain_rate == pytest.approx(10, rel=0.01)


def test_a_withdrawn_entry_leaves_at_once_and_is_never_handed_out() -> None:
    q = queue(max_entries=2)
    gone, stays = entry("a"), entry("b")
    push(q, gone, stays)
    q.withdraw([gone])
    assert len(q) == 1
    push(q, entry("c"))
    assert pop(q) == "bc"


def test_a_batch_knows_whether_anybody_waits_for_it() -> None:
    q = queue()
    a, b = entry("a"), entry("b")
    push(q, a, b)
    batch = ask(q, WIDE, 0).batch
    assert batch is not None
    q.withdraw([a])
    assert batch.wanted == 1
    q.withdraw([b])
    assert batch.wanted == 0
    q.withdraw([a, b])
    assert batch.wanted == 0
    assert q.running == [batch]
    assert q.answer(batch, 0, 0) is None
    q.answer(batch, 1, 0)
    q.finish(batch)
    assert q.empty


def test_a_row_that_comes_twice_counts_once() -> None:
    q = queue()
    push(q, entry("a", tokens=3), entry("b", tokens=4))
    batch = ask(q, WIDE, 0).batch
    assert batch is not None
    assert q.answer(batch, 0, 0) is batch.entries[0]
    assert q.answer(batch, 0, 0) is None
    assert (batch.answered, batch.wanted, batch.unanswered_tokens) == (1, 1, 4)


def test_withdrawn_entries_do_not_pile_up() -> None:
    q = queue()
    first = entry("first")
    push(q, first)
    for _ in range(2000):
        item = entry(at=1)
        push(q, item)
        q.withdraw([item])
    assert sum(len(line) for line in q._lanes[None].values()) < 200
    assert pop(q) == "first"


def test_levels_tell_what_waits() -> None:
    q = queue()
    gone = entry(at=0, priority=L)
    push(q, gone, entry(at=1, priority=L, tokens=3, size_bytes=7), entry(at=2, priority=L), entry(at=2, priority=H))
    q.withdraw([gone])
    high, medium, low = q.levels(5)
    assert (high.entries, high.oldest_age_seconds) == (1, 3)
    assert (medium.entries, medium.oldest_age_seconds) == (0, 0)
    assert (low.entries, low.tokens, low.size_bytes, low.oldest_age_seconds) == (2, 4, 8, 4)
    assert q.depths == {H: 1, M: 0, L: 2}


# A dead worker.


def start(q: EntryQueue, limits: BatchLimits = WIDE) -> str:
    batch = ask(q, limits, 0).batch
    return names(batch.entries) if batch else ""


def test_after_a_wanted_death_everything_goes_back_to_its_place() -> None:
    q = queue()
    push(q, entry("a"), entry("b"))
    assert start(q) == "ab"
    push(q, entry("h", priority=H), entry("c"))
    assert gone(q, crashed=False) == []
    assert [pop(q), pop(q)] == ["h", "abc"]


def test_an_entry_that_came_back_keeps_its_deadline() -> None:
    q = queue()
    push(q, entry("a", deadline=5), entry("b"))
    assert start(q) == "ab"
    gone(q, crashed=True)
    popped = ask(q, WIDE, 5)
    assert names(popped.expired) == "a"
    assert popped.batch is not None
    assert names(popped.batch.entries) == "b"


def test_after_a_crash_the_running_batch_is_tried_one_by_one_and_the_other_as_it_was() -> None:
    q = queue()
    push(q, *(entry(name, tokens=10) for name in "abcd"))
    limits = BatchLimits(max_entries=2, max_tokens=100, split_tokens=1)
    assert [start(q, limits), start(q, limits)] == ["ab", "cd"]
    assert gone(q, crashed=True) == []
    assert [pop(q), pop(q), pop(q)] == ["a", "b", "cd"]


def test_a_suspect_waits_until_the_worker_is_empty_and_nothing_joins_it() -> None:
    q = queue()
    push(q, entry("a"), entry("b"))
    assert start(q) == "ab"
    gone(q, crashed=True)
    push(q, entry("h", priority=H))
    assert start(q) == "h"
    assert start(q) == "", "a suspect does not run beside others"
    running = q.running[0]
    q.answer(running, 0, 0)
    q.finish(running)
    assert start(q) == "a"
    push(q, entry("i", priority=H, tokens=100))
    assert start(q) == "", "nothing runs beside a suspect"


def test_an_entry_alone_in_a_worker_that_dies_twice_is_condemned() -> None:
    q = queue()
    push(q, entry("a"))
    assert start(q) == "a"
    assert gone(q, crashed=True) == []
    assert start(q) == "a"
    assert names(gone(q, crashed=True)) == "a"
    assert q.empty


def test_a_death_in_company_does_not_count_against_anybody() -> None:
    q = queue()
    push(q, entry("a"), entry("b"))
    assert start(q) == "ab"
    assert gone(q, crashed=True) == []
    assert start(q) == "a"
    assert gone(q, crashed=True) == []
    assert start(q) == "a"
    assert names(gone(q, crashed=True)) == "a"
    assert pop(q) == "b"


def test_a_worker_that_dies_with_two_batches_condemns_nobody() -> None:
    q = queue()
    for _ in range(5):
        push(q, entry("a"), entry("b"))
        limits = BatchLimits(max_entries=1, max_tokens=1, split_tokens=1)
        start(q, limits)
        start(q, limits)
        assert gone(q, crashed=True) == []
        while pop(q):
            pass


def test_deaths_that_the_platform_wanted_condemn_nobody() -> None:
    q = queue()
    push(q, entry("a"))
    for _ in range(5):
        assert start(q) == "a"
        assert gone(q, crashed=False) == []


def test_rows_that_were_answered_are_no_suspects() -> None:
    q = queue()
    push(q, *(entry(name) for name in "abc"))
    batch = ask(q, WIDE, 0).batch
    assert batch is not None
    answered = q.answer(batch, 1, 0)
    assert answered is not None
    assert answered.payload == "b"
    gone(q, crashed=True)
    assert [pop(q), pop(q), pop(q)] == ["a", "c", ""]


def test_a_batch_that_failed_is_tried_one_by_one_and_a_lone_entry_gets_the_error() -> None:
    q = queue()
    push(q, entry("a"), entry("b"))
    batch = ask(q, WIDE, 0).batch
    assert batch is not None
    assert q.fail(batch) == []
    lone = ask(q, WIDE, 0).batch
    assert lone is not None
    assert names(lone.entries) == "a"
    assert names(q.fail(lone)) == "a"
    assert pop(q) == "b"


# Several priorities and workers.


def test_a_batch_ends_where_another_priority_is_next() -> None:
    q = queue()
    push(q, entry("l", priority=L, at=0), entry("h", priority=H, at=35), entry("i", priority=H, at=41))
    assert [pop(q, 41), pop(q, 41), pop(q, 41)] == ["h", "l", "i"]


def test_what_is_more_urgent_than_all_on_the_worker_needs_no_place() -> None:
    q = queue()
    push(q, *(entry(name, priority=L, tokens=10) for name in "abcd"))
    limits = BatchLimits(max_entries=2, max_tokens=100, split_tokens=1)
    assert [start(q, limits), start(q, limits)] == ["ab", "cd"]
    push(q, entry("m"), entry("n"), entry("o"))
    assert start(q, limits) == "mn"
    assert start(q, limits) == "", "MEDIUM is there already"
    push(q, entry("h", priority=H))
    assert start(q, limits) == "h"
    assert [batch.rank for batch in q.running] == [0, 0, 1, 2]


def test_a_batch_on_the_worker_is_overtaken_only_within_the_offset() -> None:
    q = queue()
    push(q, entry("l", priority=L))
    one = BatchLimits(max_entries=1, max_tokens=100, max_batches=1)
    assert start(q, one) == "l"
    push(q, entry("h", priority=H, at=39.9))
    batch = ask(q, one, 39.9).batch
    assert batch is not None
    q.answer(batch, 0, 39.9)
    q.finish(batch)
    push(q, entry("i", priority=H, at=40.1))
    assert ask(q, one, 40.1).batch is None


def test_more_urgent_work_waits_for_no_company_beside_a_running_batch() -> None:
    q = queue()
    push(q, entry("l", priority=L, tokens=1000))
    assert start(q) == "l"
    push(q, entry("h", priority=H))
    assert start(q) == "h"


def test_what_was_withdrawn_on_the_worker_counts_until_it_has_let_go() -> None:
    q = queue(max_entries=2)
    a, b = entry("a"), entry("b")
    push(q, a, b)
    assert start(q) == "ab"
    q.withdraw([a, b])
    with pytest.raises(QueueFull):
        push(q, entry("c"))
    assert q.answer(q.running[0], 0, 0) is None
    push(q, entry("c"))
    with pytest.raises(QueueFull):
        push(q, entry("d"))
    q.finish(q.running[0])
    push(q, entry("d"))


def test_all_queues_of_the_process_share_one_byte_budget() -> None:
    budget = ByteBudget(100)
    one, other = (EntryQueue(Bounds(), AGING, budget=budget) for _ in range(2))
    one.push([entry(size_bytes=60)], 0)
    with pytest.raises(QueueFull):
        other.push([entry(size_bytes=60)], 0)
    one.clear()
    other.push([entry(size_bytes=60)], 0)
    assert budget.held_bytes == 60


def test_what_waits_is_shared_between_the_places_of_all_workers() -> None:
    q = queue()
    limits = BatchLimits(max_entries=99, max_tokens=1000, split_tokens=1)
    q.workers += [Worker(limits), Worker(limits)]
    push(q, *(entry(name, tokens=10) for name in "abcdefgh"))
    batches = [q.pop_batch(worker, 0).batch for _ in range(2) for worker in q.workers]
    assert [names(batch.entries) for batch in batches if batch] == ["ab", "cd", "ef", "gh"]


def test_the_death_of_one_worker_leaves_what_the_other_has() -> None:
    q = queue()
    one, other = Worker(WIDE), Worker(WIDE)
    push(q, entry("a"))
    assert q.pop_batch(one, 0).batch is not None
    push(q, entry("b"))
    kept = q.pop_batch(other, 0).batch
    assert kept is not None
    assert q.worker_gone(one, crashed=True) == []
    assert q.running == [kept]
    assert not kept.entries[0].suspect
    assert q.pop_batch(other, 0).batch is None, "a suspect goes alone"
    again = q.pop_batch(one, 0).batch
    assert again is not None
    assert names(again.entries) == "a"
    assert names(q.worker_gone(one, crashed=True)) == "a", "alone on its worker, whatever runs elsewhere"


def test_after_a_crash_those_are_suspect_that_may_have_been_computing() -> None:
    q = queue()
    limits = BatchLimits(max_entries=2, max_tokens=100, split_tokens=1)
    push(q, *(entry(name, priority=L, tokens=10) for name in "abcd"))
    assert [start(q, limits), start(q, limits)] == ["ab", "cd"]
    push(q, entry("h", priority=H))
    assert start(q, limits) == "h"
    gone(q, crashed=True)
    assert sorted(str(item.payload) for item in q.waiting() if item.suspect) == ["a", "b", "h"]


def test_it_is_known_what_goes_before_an_entry() -> None:
    q = queue()
    mine = entry("mine", tokens=2, at=1)
    older = [entry("o", at=0, tokens=5) for _ in range(3)]
    urgent = entry("h", at=5, priority=H, tokens=7)
    push(q, *older, mine, entry("later", at=2), urgent, entry("aged", at=20, priority=H))
    found = q.ahead(mine, 6)
    assert (found.entries, found.tokens) == (4, 22)
