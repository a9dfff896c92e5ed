"""The response cache: what it keeps, what it forgets, and that a key says everything that decides a row."""

from __future__ import annotations

from array import array
from dataclasses import fields, replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from modelmora.common.v1 import common_pb2
from modelmora.worker.v1 import worker_pb2
from modelmora_inference.cache import ROW_OVERHEAD_BYTES, ResponseCache, Row
from modelmora_inference.dispatcher import Call
from modelmora_inference.domain import Priority, VersionFacts
from modelmora_inference.reuse import Flight, Reuse, identity, keys, part_of

FACTS = VersionFacts("models/a/b/versions/1", "sha256:ab", common_pb2.TASK_TYPE_TXT2EMBED, fingerprint="f")
FP32 = common_pb2.EngineProfile(backend="torch", precision="fp32")
BF16 = common_pb2.EngineProfile(backend="torch", precision="bf16", library_versions={"torch": "2.13"})


def call(**given: Any) -> Call:
    plain: dict[str, Any] = {"priority": Priority.MEDIUM, "tenant": "t", "arrival": 1.0, "deadline": 9.0}
    plain |= {"normalize": True, "truncate": True, "dimensions": 0, "exact": False, "done": None}
    return Call(**(plain | given))


def answered(some: Call, texts: list[str], profile: common_pb2.EngineProfile = FP32) -> Call:
    """As a worker would answer it."""
    some.rows = [text.encode() for text in texts]
    some.input_tokens, some.truncated = array("i", map(len, texts)), bytearray(len(texts))
    some.profile = some.replica_profile = profile
    return some


def reuse(
    cache: ResponseCache, texts: list[str], *, facts: VersionFacts = FACTS, replicas: Any = (), **given: Any
) -> Reuse:
    return Reuse(cache, facts, call(**given), texts, replicas)


def filled(*texts: str, **given: Any) -> ResponseCache:
    cache = ResponseCache(10**6)
    reuse(cache, [*texts], **given).keep(answered(call(**given), [*texts]), range(len(texts)))
    return cache


class Model:
    """What the cache should be, in the simplest words."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.rows: list[tuple[bytes, Row]] = []

    def get(self, key: bytes) -> Row | None:
        for at, (one, row) in enumerate(self.rows):
            if one == key:
                self.rows.append(self.rows.pop(at))
                return row
        return None

    def put(self, key: bytes, row: Row) -> None:
        if row.size_bytes > self.max_bytes:
            return
        self.rows = [(one, old) for one, old in self.rows if one != key] + [(key, row)]
        while sum(old.size_bytes for _, old in self.rows) > self.max_bytes:
            self.rows.pop(0)


@settings(max_examples=200, deadline=None, database=None)
@given(
    st.integers(0, 3000),
    st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.integers(0, 1500)), min_size=1, max_size=60),
)
def test_the_cache_is_the_simple_one_within_its_bytes(max_bytes: int, steps: list[tuple[bool, int, int]]) -> None:
    cache, model = ResponseCache(max_bytes), Model(max_bytes)
    for is_put, number, size in steps:
        key = bytes([number])
        if is_put:
            row = Row(bytes(size), size, False)
            cache.put(key, row)
            model.put(key, row)
        else:
            assert cache.get(key) == model.get(key)
        assert cache.held_bytes == sum(row.size_bytes for _, row in model.rows) <= max_bytes
        assert len(cache) == len(model.rows)


def test_a_row_costs_more_than_its_content() -> None:
    assert Row(b"1234", 1, False).size_bytes == 4 + ROW_OVERHEAD_BYTES


def test_everything_that_decides_a_row_is_in_its_key() -> None:
    texts = ["one"]
    seen = {}
    entry = worker_pb2.TextEntry(text="one")
    for name, made in {
        "plain": keys(FACTS, FP32, call(), texts),
        "text": keys(FACTS, FP32, call(), ["two"]),
        "name": keys(replace(FACTS, name="models/a/b/versions/2"), FP32, call(), texts),
        "digest": keys(replace(FACTS, digest="sha256:cd"), FP32, call(), texts),
        "engine": keys(replace(FACTS, fingerprint="g"), FP32, call(), texts),
        "profile": keys(FACTS, BF16, call(), texts),
        "exact": keys(FACTS, FP32, call(exact=True), texts),
        "task": keys(FACTS, FP32, call(task_type=common_pb2.TASK_TYPE_RERANKING), texts),
        "operation": keys(FACTS, FP32, call(operation=worker_pb2.OPERATION_TOKENIZE), texts),
        "normalize": keys(FACTS, FP32, call(normalize=False), texts),
        "truncate": keys(FACTS, FP32, call(truncate=False), texts),
        "dimensions": keys(FACTS, FP32, call(dimensions=3), texts),
        "prompt": keys(FACTS, FP32, call(prompt="query"), texts),
        "tenant": keys(FACTS, FP32, call(tenant="other"), texts),
        "entry": keys(FACTS, FP32, call(), [entry]),
        "option": keys(FACTS, FP32, call(), [worker_pb2.TextEntry(text="one", raw_scores=True)]),
        "image": keys(FACTS, FP32, call(), [worker_pb2.TextEntry(data=b"one")]),
    }.items():
        (key,) = made
        assert len(key) == 32
        assert key not in seen, f"{name} is {seen.get(key)}"
        seen[key] = name
    others = call(priority=Priority.HIGH, arrival=5.0, deadline=6.0, if_loaded=True, loads_nothing=True)
    (same,) = keys(FACTS, FP32, others, texts)
    assert seen[same] == "plain", "how urgently somebody asks decides nothing"


DECIDES = {"normalize", "truncate", "dimensions", "exact", "task_type", "operation", "prompt", "tenant"}
DECIDES_NOTHING = {"priority", "arrival", "deadline", "done", "input_field", "options_at", "if_loaded", "loads_nothing"}
ANSWER = {
    *("ready_in_seconds", "entries", "rows", "input_tokens", "truncated", "missing", "started", "tokenise_seconds"),
    *("compute_seconds", "profile", "failed_index", "description", "seen", "held", "owner", "positions"),
    *("replica_profile", "mixed", "cached", "spent_seconds"),
}


def test_a_new_field_of_a_call_is_in_the_key_or_known_to_decide_nothing() -> None:
    assert {field.name for field in fields(Call)} == DECIDES | DECIDES_NOTHING | ANSWER


def test_a_call_with_half_its_texts_known_computes_the_other_half() -> None:
    cache = filled("a", "bb")
    found = reuse(cache, ["a", "new", "bb", "newer"])
    assert (found.found, found.missing) == (2, [1, 3])
    part = answered(part_of(call(), found.missing, None), ["new", "newer"])
    assert [part.path_of(index) for index in (0, 1)] == ["texts[1]", "texts[3]"]
    part.compute_seconds = 0.5
    found.keep(part, found.missing)
    assert found.is_of_the_same_maker(part)
    whole = call()
    found.fill(whole, part)
    assert whole.rows == [b"a", b"new", b"bb", b"newer"]
    assert list(whole.input_tokens) == [1, 3, 2, 5]
    assert (whole.cached, whole.compute_seconds, whole.profile) == (2, 0.5, FP32)
    again = reuse(cache, ["newer", "bb", "new", "a"])
    assert again.missing == []
    all_known = call()
    again.fill(all_known, None)
    assert all_known.rows == [b"newer", b"bb", b"new", b"a"]
    assert (all_known.cached, all_known.started) == (4, all_known.arrival)


def test_what_another_profile_computed_is_not_found() -> None:
    cache = filled("a")
    assert reuse(cache, ["a"], replicas=[FP32, FP32]).found == 1
    assert reuse(cache, ["a"], replicas=[BF16]).found == 0
    assert reuse(cache, ["a"], replicas=[FP32, BF16]).found == 0
    assert reuse(cache, ["a"], facts=replace(FACTS, fingerprint="another profile was set")).found == 0
    assert reuse(cache, ["a"], exact=True).found == 0
    reuse(cache, ["b"]).keep(answered(call(), ["b"], BF16), [0])
    assert reuse(cache, ["a"]).found == 0
    assert reuse(cache, ["b"], replicas=[BF16]).found == 1


def test_what_was_found_is_not_mixed_with_what_another_profile_computes_now() -> None:
    found = reuse(filled("a"), ["a", "b"])
    part = part_of(call(), found.missing, None)
    assert found.found == 1
    assert not found.is_of_the_same_maker(answered(part, ["b"], BF16))
    mixed = answered(part_of(call(), found.missing, None), ["b"])
    mixed.mixed = True
    assert not found.is_of_the_same_maker(mixed)


def test_a_call_waits_only_for_what_is_as_urgent_and_as_patient() -> None:
    flight = Flight(call(priority=Priority.MEDIUM))
    assert flight.serves(call())
    assert flight.serves(call(priority=Priority.LOW))
    assert not flight.serves(call(priority=Priority.HIGH)), "it would wait in a slower lane"
    assert not flight.serves(call(if_loaded=True)), "it would wait for a load"
    assert Flight(call(if_loaded=True)).serves(call())


def test_calls_are_the_same_by_what_they_ask_in_that_order() -> None:
    same = identity(FACTS, call(), ["a", "b"])
    assert same == identity(FACTS, call(priority=Priority.LOW, deadline=5.0), ["a", "b"])
    others = ["b", "a"], ["a"], ["ab"], ["a", "b", "b"]
    assert len({same, *(identity(FACTS, call(), [*texts]) for texts in others)}) == 5
    assert identity(FACTS, call(tenant="other"), ["a", "b"]) != same


def test_rows_of_several_profiles_are_not_kept() -> None:
    cache = ResponseCache(10**6)
    some = answered(call(), ["a"])
    some.mixed = True
    reuse(cache, ["a"]).keep(some, [0])
    assert len(cache) == 0
