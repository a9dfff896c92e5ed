"""What is reserved for the fork server that a load starts, once and not for ever; and the time that it takes."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from fakes import FakeClock, FakeEffects, FakeWorker
from modelmora.errors import NeverFits
from modelmora_lifecycle.domain import HOST, MIB, ReplicaState, Residency, StartMode, VersionFacts
from modelmora_lifecycle.eviction import Plan, Trigger
from modelmora_lifecycle.main import Settings, rules
from modelmora_lifecycle.placement import PlacementOutcome
from modelmora_lifecycle.placement_service import decision_message
from modelmora_lifecycle.prediction import Measured, Setup, setup_of
from modelmora_lifecycle.scheduler import Rules
from modelmora_lifecycle.store import decision_row
from modelmora_runtime import machine

FOREVER = float("inf")
SERVER = "fork-servers/torch"
OWN = (84 + 64) * MIB


def version(name: str) -> VersionFacts:
    return VersionFacts(name, "torch", artifact_bytes=90 * MIB, weight_bytes=80 * MIB)


class Node(FakeEffects):
    def want(self, facts: VersionFacts) -> str:
        return self.scheduler.want(
            f"lease of {facts.name}", facts, priority=20, deadline=FOREVER, now=self.clock.now, visit=True
        )

    def server_has(self, memory_bytes: int) -> None:
        self.scheduler.charge_shared(SERVER, {HOST: memory_bytes} if memory_bytes else {}, self.clock.now)

    def charges(self) -> dict[str, int]:
        return {owner: charge[HOST] for owner, charge in self.scheduler.ledger.charges.items()}


@pytest.fixture
def node() -> Node:
    return Node(FakeClock(), {HOST: 1000 * MIB}, Rules(families={"torch": "torch"}))


def test_the_first_load_reserves_its_fork_server_once(node: Node) -> None:
    uid = node.want(version("a"))
    assert node.charges() == {uid: OWN, SERVER: 350 * MIB}
    node.server_has(20 * MIB)
    assert node.charges() == {uid: OWN, SERVER: 350 * MIB}, "it imports"
    node.run_for(2.0)
    node.server_has(280 * MIB)
    assert node.charges()[SERVER] == 280 * MIB
    second = node.want(version("b"))
    assert node.charges()[second] == OWN


def test_two_first_loads_share_what_is_reserved(node: Node) -> None:
    first, second = node.want(version("a")), node.want(version("b"))
    assert node.charges() == {first: OWN, second: OWN, SERVER: 350 * MIB}
    node.crash(first)
    assert node.charges() == {second: OWN, SERVER: 350 * MIB}
    node.crash(second)
    assert node.charges() == {}


def test_what_a_load_needs_is_explained_with_the_fork_server_that_it_starts(node: Node) -> None:
    placement = node.scheduler.explain(version("a"), 20, node.clock.now)
    assert placement.outcome is PlacementOutcome.FITS
    assert placement.need == {HOST: OWN + 350 * MIB}
    assert placement.free == {HOST: 1000 * MIB}, "as it is, not as it will be"
    node.want(version("a"))
    node.run_for(2.0)
    node.server_has(280 * MIB)
    other = node.scheduler.explain(version("b"), 20, node.clock.now)
    assert other.need == {HOST: OWN}
    assert other.free == node.scheduler.ledger.free
    node.scheduler.configure(node.rules, {HOST: 450 * MIB}, node.clock.now)
    node.server_has(0)
    gone = node.scheduler.explain(version("c"), 20, node.clock.now)
    assert gone.outcome is not PlacementOutcome.FITS
    assert gone.need == {HOST: OWN + 280 * MIB}, "as large as it was when it was seen last"


def test_time_to_ready_has_the_start_of_a_fork_server_that_does_not_run(node: Node) -> None:
    def ready_in(name: str) -> float | None:
        return node.scheduler.explain(version(name), 20, node.clock.now).ready_in_seconds

    assert ready_in("a") is None, "nothing was ever loaded"
    node.scheduler.remember(Measured("a", setup_of(version("a")), base={HOST: MIB}, load_seconds=(1.0,)))
    assert ready_in("a") == 6.0, "nothing is known of the server: 5 s"
    node.workers["a"] = FakeWorker(load_seconds=41.0)
    node.want(version("a"))
    node.clock.advance(2.0)
    assert node.scheduler.ready_in("a", node.clock.now) == 4.0
    node.clock.advance(38.0)
    late = node.scheduler.ready_in("a", node.clock.now)
    assert late == 35.0 + 1.0, "as long again as it is late, and the load"
    node.scheduler.server_opened(SERVER, 40.0, node.clock.now)
    node.server_has(280 * MIB)
    assert node.scheduler.ready_in("a", node.clock.now) == 1.0
    node.run_for(1.0)
    node.server_has(280 * MIB)
    assert ready_in("b") == 41.0, "of the engine, and no start: this server runs"
    node.scheduler.unload("a", force=True, now=node.clock.now)
    node.run_for(1.0)
    node.server_has(0)
    learned = node.scheduler.measurement(SERVER)
    assert learned is not None
    assert (learned.base, learned.load_seconds) == ({HOST: 280 * MIB}, (40.0,))
    assert ready_in("b") == 81.0
    assert node.scheduler.ready_in("a", node.clock.now) == 61.0, "its own loads took 1 s and 41 s"


def test_a_fork_server_is_expected_to_take_what_it_takes_while_it_imports(node: Node) -> None:
    node.want(version("a"))
    node.server_has(20 * MIB)
    node.scheduler.unload("a", force=True, now=node.clock.now)
    node.server_has(0)
    node.run_for(1.0)
    assert node.scheduler.explain(version("a"), 20, node.clock.now).need == {HOST: OWN + 350 * MIB}, (
        "it came to nothing"
    )
    node.want(version("a"))
    node.run_for(2.0)
    node.server_has(280 * MIB)
    assert node.charges()[SERVER] == 280 * MIB, "as it is"
    node.scheduler.unload("a", force=True, now=node.clock.now)
    node.server_has(0)
    node.run_for(1.0)
    assert node.scheduler.explain(version("b"), 20, node.clock.now).need == {HOST: OWN + 280 * MIB}
    node.want(version("a"))
    node.server_has(300 * MIB)
    node.run_for(2.0)
    node.server_has(280 * MIB)
    assert node.charges()[SERVER] == 280 * MIB, "what it has"
    node.scheduler.unload("a", force=True, now=node.clock.now)
    node.run_for(1.0)
    node.server_has(0)
    assert node.scheduler.explain(version("b"), 20, node.clock.now).need == {HOST: OWN + 300 * MIB}
    node.want(version("a"))
    node.run_for(2.0)
    node.server_has(290 * MIB)
    node.scheduler.unload("a", force=True, now=node.clock.now)
    node.run_for(1.0)
    node.server_has(0)
    assert node.scheduler.explain(version("b"), 20, node.clock.now).need == {HOST: OWN + 290 * MIB}


def test_what_was_learned_of_a_fork_server_outlives_us(node: Node) -> None:
    family = Setup("torch")
    node.scheduler.remember(Measured(SERVER, family, base={HOST: 123 * MIB}, load_seconds=(3.0, 9.0, 7.0)))
    node.scheduler.remember(Measured("a", setup_of(version("a")), base={HOST: OWN}, load_seconds=(1.0,)))
    told = node.scheduler.explain(version("b"), 20, node.clock.now)
    assert told.need == {HOST: OWN + 123 * MIB}
    assert node.scheduler.explain(version("a"), 20, node.clock.now).ready_in_seconds == 8.0, "the median of its starts"
    node.want(version("a"))
    node.scheduler.server_opened(SERVER, 1.0, node.clock.now)
    node.server_has(50 * MIB)
    node.scheduler.remember(Measured(SERVER, family, base={HOST: 123 * MIB}))
    learned = node.scheduler.measurement(SERVER)
    assert learned is not None
    assert learned.load_seconds == (3.0, 9.0, 7.0, 1.0), "what we have seen ourselves counts"


def test_who_is_spawned_after_all_has_its_libraries_itself(node: Node) -> None:
    node.workers["a"] = FakeWorker(memory={HOST: 400 * MIB})
    uid = node.want(version("a"))
    node.scheduler.launched(uid, 7, node.clock.now, StartMode.SPAWNED, refused=True)
    node.run_for(2.0)
    assert node.charges() == {uid: 440 * MIB}
    node.scheduler.unload("a", force=True, now=node.clock.now)
    node.run_for(1.0)
    assert node.charges() == {}
    assert node.charges() | {node.want(version("a")): 440 * MIB, SERVER: 350 * MIB} == node.charges()


def test_what_a_family_that_cannot_fork_takes_is_expected_of_its_next_version(node: Node) -> None:
    spawned = (84 + 350) * MIB
    first = node.want(version("a"))
    assert node.charges()[first] == OWN, "nobody knows yet"
    node.scheduler.launched(first, 7, node.clock.now, StartMode.SPAWNED, refused=True)
    assert node.scheduler.explain(version("b"), 20, node.clock.now).need == {HOST: spawned}, "the server runs"
    node.run_for(2.0)
    node.server_has(0)
    node.scheduler.unload("a", force=True, now=node.clock.now)
    node.run_for(1.0)
    gone = node.scheduler.explain(version("b"), 20, node.clock.now)
    assert gone.need == {HOST: spawned + 350 * MIB}, "it is started to be asked"
    second = node.want(version("b"))
    assert node.charges()[second] == spawned
    assert node.scheduler.replica(second).predicted == {HOST: spawned}
    node.scheduler.launched(second, 8, node.clock.now, StartMode.FORKED)
    node.server_has(20 * MIB)
    assert node.scheduler.explain(version("c"), 20, node.clock.now).need == {HOST: OWN}, "it forks again"


def test_a_spawn_for_want_of_a_fork_server_says_nothing_of_the_next_load(node: Node) -> None:
    node.workers["a"] = FakeWorker(memory={HOST: 400 * MIB})
    uid = node.want(version("a"))
    node.scheduler.launched(uid, 7, node.clock.now, StartMode.SPAWNED)
    node.scheduler.measured(uid, {HOST: 390 * MIB}, node.clock.now)
    node.run_for(2.0)
    assert node.charges() == {uid: 440 * MIB}, "with its libraries"
    node.scheduler.measured(uid, {HOST: 401 * MIB}, node.clock.now)
    assert node.charges() == {uid: 441 * MIB + MIB // 10}, "by what it took itself"
    node.scheduler.charge_shared("artifacts/a", {HOST: 50 * MIB}, node.clock.now, [uid])
    assert node.charges()["artifacts/a"] == 50 * MIB
    node.scheduler.unload("a", force=True, now=node.clock.now)
    node.run_for(1.0)
    node.want(other("filler", 1000 - 450))
    node.run_for(5.0)
    told = node.scheduler.explain(version("a"), 20, node.clock.now)
    assert told.need == {HOST: OWN + 350 * MIB}, "the launcher tries a fork server again"
    assert told.outcome is PlacementOutcome.FITS_AFTER_EVICTION
    node.workers["a"] = FakeWorker(load_seconds=5.0, memory={HOST: 400 * MIB})
    again = node.want(version("a"))
    node.run_for(2.0)
    assert node.charges().keys() == {again, SERVER}
    node.scheduler.launched(again, 8, node.clock.now, StartMode.SPAWNED)
    node.run_for(2.0)
    assert node.charges().keys() == {again}
    for name in ("a", "c"):  # however often it dies
        told = node.scheduler.explain(version(name), 20, node.clock.now)
        assert told.need == {HOST: OWN + 350 * MIB}


def test_what_is_known_of_forked_workers_stands_after_some_were_spawned(node: Node) -> None:
    known = Measured("a", setup_of(version("a")), loading={HOST: 60 * MIB}, base={HOST: 50 * MIB}, load_seconds=(1.0,))
    node.scheduler.remember(replace(known, start_mode=StartMode.FORKED))
    node.workers["a"] = FakeWorker(load_seconds=3.0, memory={HOST: 400 * MIB})
    for _ in range(3):
        assert node.scheduler.explain(version("a"), 20, node.clock.now).need == {HOST: (60 + 350) * MIB}
        uid = node.want(version("a"))
        node.scheduler.launched(uid, 7, node.clock.now, StartMode.SPAWNED)
        node.scheduler.measured(uid, {HOST: 390 * MIB}, node.clock.now)
        node.run_for(5.0)
        assert [replica.state for replica in node.scheduler.replicas()] == [ReplicaState.LOADED]
        node.scheduler.unload("a", force=True, now=node.clock.now)
        node.run_for(1.0)


@pytest.mark.parametrize(
    ("families", "mode", "own"),
    [({"torch": "torch"}, StartMode.SPAWNED, 84 + 64 + 350), ({}, StartMode.FORKED, 84 + 350)],
)
def test_what_was_measured_counts_for_workers_that_start_alike(
    families: dict[str, str], mode: StartMode, own: int
) -> None:
    """Of before fork servers were turned off in the settings, or on: else libraries count twice, or not at all."""
    node = Node(FakeClock(), {HOST: 1000 * MIB}, Rules(families=families))
    taken = {HOST: 401 * MIB}
    node.scheduler.remember(Measured("a", setup_of(version("a")), loading=taken, base=taken, start_mode=mode))
    told = node.scheduler.explain(version("a"), 20, node.clock.now)
    assert told.need == {HOST: own * MIB}
    uid = node.want(version("a"))
    node.scheduler.launched(uid, 7, node.clock.now, StartMode.FORKED if families else StartMode.SPAWNED)
    node.scheduler.measured(uid, {HOST: 60 * MIB}, node.clock.now)
    node.run_for(2.0)
    learned = node.scheduler.measurement("a")
    assert learned is not None
    assert learned.loading == {HOST: 60 * MIB}


def test_who_is_spawned_for_want_of_a_fork_server_has_what_was_reserved_for_that(node: Node) -> None:
    node.scheduler.configure(node.rules, {HOST: 600 * MIB}, node.clock.now)
    node.scheduler.remember(Measured("a", setup_of(version("a")), load_seconds=(1.0,)))
    node.workers["a"] = FakeWorker(load_seconds=3.0, memory={HOST: 400 * MIB})
    uid = node.want(version("a"))
    assert node.scheduler.ready_in("a", node.clock.now) == 6.0
    node.scheduler.launched(uid, 7, node.clock.now, StartMode.SPAWNED)
    assert node.charges() == {uid: OWN + 350 * MIB}, "nothing twice, and nothing is free"
    assert node.scheduler.ready_in("a", node.clock.now) == 1.0, "it waits for no server"
    node.server_has(0)
    assert node.charges() == {uid: OWN + 350 * MIB}
    small = node.want(other("small", 150))
    assert node.charges().keys() == {uid}, "it has not imported everything yet"
    node.scheduler.measured(uid, {HOST: 400 * MIB}, node.clock.now)
    assert node.scheduler.ledger.overdraft == {}
    node.run_for(4.0)
    assert node.charges() == {uid: 440 * MIB, small: 150 * MIB}
    assert node.of("stop") == []


def test_what_is_reserved_for_a_fork_server_stays_while_another_load_waits_for_it(node: Node) -> None:
    first, second = node.want(version("a")), node.want(version("b"))
    node.scheduler.launched(first, 7, node.clock.now, StartMode.SPAWNED)
    assert node.charges() == {first: OWN, second: OWN, SERVER: 350 * MIB}
    node.scheduler.launched(second, 8, node.clock.now, StartMode.FORKED)
    assert node.charges() == {first: OWN, second: OWN, SERVER: 350 * MIB}
    node.run_for(2.0)
    node.server_has(280 * MIB)
    assert node.charges()[SERVER] == 280 * MIB


def test_a_place_that_was_promised_beside_a_fork_server_stands_when_it_is_gone(node: Node) -> None:
    node.want(version("a"))
    node.run_for(5.0)
    node.server_has(280 * MIB)
    node.want(VersionFacts("filler", "echo", declared={HOST: 500 * MIB}))
    node.run_for(5.0)
    uid = node.want(version("b"))
    node.server_has(0)
    node.run_for(1.0)
    assert node.charges()[uid] > 0


def test_what_requests_may_add_leaves_a_fork_server_its_place(node: Node) -> None:
    facts = version("a")
    node.scheduler.remember(Measured("a", setup_of(facts), base={HOST: 100 * MIB}, growth={HOST: 5000 * MIB}))
    uid = node.want(facts)
    assert node.charges() == {uid: 650 * MIB, SERVER: 350 * MIB}


# Fork servers whose memory is needed.


def other(name: str, memory_mib: int) -> VersionFacts:
    return VersionFacts(name, "echo", declared={HOST: memory_mib * MIB})


def warmed(node: Node) -> str:
    """A model in memory, and the fork server it came from. 148 + 280 MiB."""
    uid = node.want(version("a"))
    node.run_for(5.0)
    node.server_has(280 * MIB)
    return uid


def ends(node: Node) -> list[object]:
    return [call[1] for call in node.of("end_server")]


def test_a_fork_server_without_workers_ends_for_who_needs_its_memory(node: Node) -> None:
    warmed(node)
    node.scheduler.unload("a", force=True, now=node.clock.now)
    node.run_for(1.0)
    assert node.charges() == {SERVER: 280 * MIB}
    told = node.scheduler.explain(other("b", 900), 20, node.clock.now)
    assert told.outcome is PlacementOutcome.FITS_AFTER_EVICTION
    assert told.reason == "it fits once the fork server of torch is gone"
    assert told.evictable == {HOST: 280 * MIB}
    assert ends(node) == [], "it was only asked"
    uid = node.want(other("b", 900))
    assert ends(node) == [SERVER]
    assert node.charges() == {SERVER: 280 * MIB}, "its memory is not free before it is gone"
    decision = node.of("decided")[-1][1]
    assert decision.reason == "makes room for b, as does the end of the fork server of torch"  # type: ignore[attr-defined]
    node.run_for(0.2)
    assert node.charges() == {uid: 900 * MIB}
    assert ends(node) == [SERVER]


def test_the_last_model_of_a_family_goes_with_its_fork_server(node: Node) -> None:
    first = warmed(node)
    told = node.scheduler.explain(other("b", 900), 20, node.clock.now)
    assert told.reason == "it fits once others and the fork server of torch are gone"
    assert told.evictable == {HOST: sum(node.charges().values())}
    uid = node.want(other("b", 900))
    assert ends(node) == [], "it has a worker"
    assert (first, "a") in [call[1:3] for call in node.of("stop")]
    node.run_for(1.0)
    assert ends(node) == [SERVER]
    assert node.charges() == {uid: 900 * MIB}


def test_no_fork_server_ends_where_models_alone_make_the_room(node: Node) -> None:
    warmed(node)
    node.want(other("b", 500))
    node.run_for(5.0)
    node.want(other("c", 150))
    node.run_for(5.0)
    assert set(node.charges()) >= {SERVER}
    assert ends(node) == []


def test_what_a_pinned_model_came_from_stays(node: Node) -> None:
    warmed(node)
    node.scheduler.set_residency("a", Residency(pinned=True), version("a"), node.clock.now)
    node.want(other("b", 900))
    error = node.of("refused")[-1][2]
    assert isinstance(error, NeverFits)
    both = sum(node.charges().values())
    assert int(error.metadata["pinned_bytes"]) == both
    assert int(error.metadata["evictable_bytes"]) == 1000 * MIB - both
    assert ends(node) == []


def test_a_load_does_not_end_the_fork_server_that_it_comes_from(node: Node) -> None:
    warmed(node)
    node.scheduler.unload("a", force=True, now=node.clock.now)
    node.run_for(1.0)
    node.want(replace(version("b"), declared={HOST: 721 * MIB}))
    error = node.of("refused")[-1][2]
    assert isinstance(error, NeverFits)
    assert int(error.metadata["budget_bytes"]) == 720 * MIB
    assert ends(node) == []


def test_no_worker_is_started_from_a_fork_server_that_is_to_end(node: Node) -> None:
    first = warmed(node)
    node.workers["a"] = FakeWorker(stop_seconds=3.0)
    node.want(other("b", 850))
    second = node.want(version("c"))
    assert node.charges().keys() == {first, SERVER}
    node.run_for(30.0)
    started = [call[2] for call in node.of("start")]
    assert started == ["a", "b", "c"]
    assert node.charges().keys() == {second, SERVER}
    assert node.charges()[SERVER] == 280 * MIB, "a new one, as large as the last"


def test_a_fork_server_that_a_promised_load_comes_from_does_not_end(node: Node) -> None:
    warmed(node)
    node.workers["filler"] = FakeWorker(stop_seconds=3.0)
    node.want(other("filler", 550))
    node.run_for(5.0)
    node.scheduler.unload("a", force=True, now=node.clock.now)
    node.run_for(1.0)
    node.want(replace(version("b"), declared={HOST: 400 * MIB}))
    assert node.of("stop")[-1][2] == "filler"
    node.want(other("c", 600))
    assert ends(node) == [], "b is promised a fork of it"
    node.run_for(4.0)
    assert "b" in [call[2] for call in node.of("start")]


def test_who_waits_for_the_end_of_a_fork_server_is_not_overtaken_by_those_who_would_come_from_it(node: Node) -> None:
    first = warmed(node)
    now = node.clock.now
    node.scheduler.want("holder", version("a"), priority=30, deadline=FOREVER, now=now)
    node.scheduler.in_use("holder", 1, 0, 0.0, now)
    node.want(other("b", 850))
    for number in range(40):
        node.want(version(f"small{number}"))
        node.run_for(1.0)
        if node.of("yielding"):
            break
    assert number in range(9, 12), "the work is as urgent as HIGH, the want as MEDIUM"
    assert [call[2] for call in node.of("start")] == ["a"], "a fork would keep the server"
    node.scheduler.release("holder", node.clock.now)
    node.run_for(1.0)
    assert first not in node.charges()
    assert [call[2] for call in node.of("start")][1] == "b"


def test_a_fork_server_that_nobody_uses_goes_before_any_model_when_memory_is_short(node: Node) -> None:
    warmed(node)
    node.want(other("b", 500))
    node.run_for(5.0)
    node.scheduler.unload("a", force=True, now=node.clock.now)
    node.run_for(1.0)
    node.scheduler.observed({HOST: 300 * MIB}, node.clock.now)
    assert ends(node) == [SERVER]
    node.run_for(10.0)
    assert "b" not in [call[2] for call in node.of("stop")]
    assert ends(node) == [SERVER]
    node.scheduler.observed({HOST: 600 * MIB}, node.clock.now)
    node.run_for(1.0)
    assert "b" in [call[2] for call in node.of("stop")]


def test_a_smaller_budget_counts_on_the_fork_server_that_goes_with_its_last_model(node: Node) -> None:
    node.want(other("small", 200))
    node.run_for(5.0)
    warmed(node)
    node.scheduler.configure(node.rules, {HOST: 300 * MIB}, node.clock.now)
    node.run_for(1.0)
    assert [call[2] for call in node.of("stop")] == ["a"]
    assert ends(node) == [SERVER]
    assert node.scheduler.ledger.overdraft == {}
    decision = node.of("decided")[-1][1]
    assert decision.reason == "the budget is smaller now; the fork server of torch goes too"  # type: ignore[attr-defined]
    message = decision_message({**decision_row(decision), "uid": "u", "create_time": datetime.now(UTC)})  # type: ignore[arg-type]
    (device,) = message.devices
    assert device.free_bytes + device.evictable_bytes >= device.need_bytes
    node.want(other("b", 10))
    node.run_for(2.0)
    assert "b" in [call[2] for call in node.of("start")]


def test_a_fork_server_that_ends_for_want_of_memory_is_a_decision(node: Node) -> None:
    warmed(node)
    node.scheduler.unload("a", force=True, now=node.clock.now)
    node.run_for(1.0)
    node.scheduler.configure(node.rules, {HOST: 100 * MIB}, node.clock.now)
    (decision,) = [call[1] for call in node.of("decided")]
    assert decision.trigger is Trigger.BUDGET  # type: ignore[attr-defined]
    assert decision.outcome == Plan(())  # type: ignore[attr-defined]
    assert decision.need.memory == {HOST: 180 * MIB}  # type: ignore[attr-defined]
    assert decision.need.available == {HOST: 280 * MIB}  # type: ignore[attr-defined]
    assert decision.reason == (  # type: ignore[attr-defined]
        "the budget is smaller now: the fork server of torch ends, from which nothing in memory came"
    )


def test_what_a_decision_could_free_has_the_fork_server_of_who_may_go(node: Node) -> None:
    uid = warmed(node)
    node.want(other("b", 900))
    decision = node.of("decided")[-1][1]
    row = decision_row(decision)  # type: ignore[arg-type]
    message = decision_message({**row, "uid": "u", "create_time": datetime.now(UTC)})
    (device,) = message.devices
    assert device.evictable_bytes == node.charges()[uid] + 280 * MIB
    assert device.free_bytes + device.evictable_bytes == 1000 * MIB


def test_a_fork_server_stays_when_nobody_waits_for_its_end_any_more(node: Node) -> None:
    first = warmed(node)
    node.scheduler.want("holder", version("a"), priority=20, deadline=FOREVER, now=node.clock.now)
    node.scheduler.in_use("holder", 1, 0, 0.0, node.clock.now)
    node.want(other("b", 900))
    assert node.of("yielding")
    node.scheduler.release("lease of b", node.clock.now)
    node.want(version("c"))
    assert ("start", f"r{int(node.scheduler.replicas()[-1].uid[1:])}", "c") in node.log
    node.run_for(5.0)
    assert ends(node) == []
    assert first in node.charges()


def test_a_node_knows_its_processors_and_who_is_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu_cores", lambda: 3)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    found = rules(Settings(scale_down_idle_seconds=7.0, crash_window_seconds=5.0), {"torch": "torch", "other": ""})
    assert (found.cpu_cores, found.cpu_limited, found.families) == (3, True, {"torch": "torch"})
    assert (found.scaling.idle_seconds, found.crash_window_seconds) == (7.0, 5.0)
