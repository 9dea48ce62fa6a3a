"""What a node decides, without a node: chosen stories, and every story that Hypothesis finds."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from packtrain.model.digest import Digest
from packtrain.model.ledger import Draft
from packtrain.model.rollout import (
    LONGEST_PAUSE,
    Action,
    Drain,
    Engine,
    Fetch,
    Gate,
    Limits,
    Named,
    Open,
    Proved,
    Release,
    Rollout,
    Stage,
    Start,
    Stop,
    Target,
    Vitals,
    WentBack,
)
from tests.model.examples import MERGED, Writer, hex_of

WINDOW = 100.0


def target(number: int, promotion: int = 0) -> Target:
    return Target(number, Digest(hex_of(str(number))), promotion)


class Node:
    """A rollout whose actions are done at once and as they should, but for what ``broken`` says of a version:
    fetch, start, gate. ``did`` is what was done; time moves only when it is told to."""

    def __init__(self, capacity: int, *, proven: Sequence[Target] = (), keep: int = 2) -> None:
        limits = Limits(watch_window=WINDOW, errors=0.1, latency=5.0, least=10)
        self.state = Rollout(capacity=capacity, limits=limits, proven=tuple(proven), keep=keep)
        self.now = 0.0
        self.broken: dict[int, str] = {}
        self.did: list[Action] = []
        self.slow = False  # what was begun is not finished
        self.promotions = 0

    def promote(self, number: int, *earlier: Target) -> None:
        self.promotions += 1
        self.state = self.state.name(Named(target(number, self.promotions), earlier))
        self.settle()

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.settle()

    def settle(self) -> None:
        while True:
            self.state, actions = self.state.step(self.now)
            if not actions:
                return
            for action in actions:
                self.did.append(action)
                if not self.slow:
                    self.perform(action)

    def perform(self, action: Action) -> None:
        match action:
            case Fetch(wanted):
                if self.broken.get(wanted.number) == "fetch":
                    self.state = self.state.not_fetched(wanted, "the store is away", self.now)
                else:
                    self.state = self.state.fetched(wanted)
            case Start(engine):
                if self.broken.get(engine.target.number) == "start":
                    self.state = self.state.gone(engine.number, "ended with exit code 1", self.now)
                else:
                    self.state = self.state.healthy(engine.number)
            case Gate(engine):
                passed = self.broken.get(engine.target.number) != "gate"
                self.state = self.state.gated(engine.number, passed=passed, reason="answers nothing", now=self.now)
            case Drain(engine):
                self.state = self.state.drained(engine.number)
            case Stop(engine):
                self.state = self.state.gone(engine.number, "", self.now)
            case _:
                pass

    @property
    def serves(self) -> int | None:
        return self.state.served.number if self.state.served else None

    def kinds(self) -> list[str]:
        """What was done since the last time, in short; but not what was let go."""
        said = [in_short(action) for action in self.did if not isinstance(action, Release)]
        self.did.clear()
        return said


def in_short(action: Action) -> str:
    kind = type(action).__name__
    match action:
        case WentBack(left, to, _):
            return f"{kind} {left.number}-{to.number}"
        case Fetch(wanted) | Proved(wanted):
            return f"{kind} {wanted.number}"
        case Release(digest):
            return f"{kind} {digest.short}"
        case Start(engine) | Gate(engine) | Open(engine) | Drain(engine) | Stop(engine):
            return f"{kind} {engine.target.number}"


def test_blue_green_keeps_the_old_engine_until_the_new_version_has_proved_itself() -> None:
    node = Node(2)
    node.promote(1)
    assert node.kinds() == ["Fetch 1", "Start 1", "Gate 1", "Open 1"]
    node.pass_time(WINDOW)
    assert node.kinds() == ["Proved 1"]
    node.promote(2)
    assert node.kinds() == ["Fetch 2", "Start 2", "Gate 2", "Open 2"]
    node.pass_time(WINDOW - 1)
    assert node.kinds() == []
    node.pass_time(1)
    assert node.kinds() == ["Proved 2", "Drain 1", "Stop 1"]
    assert node.state.here == {target(1).digest, target(2).digest}  # the last two stay held


def test_replace_drains_and_stops_before_it_starts() -> None:
    node = Node(1)
    node.promote(1)
    node.kinds()
    node.promote(2)
    assert node.kinds() == ["Fetch 2", "Drain 1", "Stop 1", "Start 2", "Gate 2", "Open 2"]


def test_replace_starts_the_old_one_again_when_the_new_one_fails() -> None:
    node = Node(1)
    node.promote(1)
    node.pass_time(WINDOW)
    node.kinds()
    node.broken = {2: "start"}
    node.promote(2, target(1))
    assert node.kinds() == ["Fetch 2", "Drain 1", "Stop 1", "Start 2", "WentBack 2-1", "Start 1", "Gate 1", "Open 1"]
    node.pass_time(10 * WINDOW)
    assert "Start 2" not in node.kinds()
    node.broken = {}
    node.promote(2, target(1))  # anew
    assert node.serves == 2


@pytest.mark.parametrize("how", ["start", "gate"])
def test_a_broken_version_never_takes_traffic_from_the_old_one(how: str) -> None:
    node = Node(2)
    node.promote(1)
    node.kinds()
    node.broken = {2: how}
    node.promote(2, target(1))
    assert node.serves == 1
    begun = ["Fetch 2", "Start 2"] if how == "start" else ["Fetch 2", "Start 2", "Gate 2"]
    assert [each for each in node.kinds() if each != "Stop 2"] == [*begun, "WentBack 2-1"]
    node.pass_time(10 * WINDOW)
    assert node.serves == 1


def test_death_in_the_watch_window_goes_back_at_once() -> None:
    node = Node(2)
    node.promote(1)
    node.pass_time(WINDOW)
    node.promote(2, target(1))
    node.kinds()
    assert node.state.serving is not None
    node.state = node.state.gone(node.state.serving, "was ended by SIGKILL", node.now)
    node.settle()
    assert node.kinds() == ["WentBack 2-1", "Open 1"]  # it stood by
    assert node.state.bad[target(2).digest].reason == "was ended by SIGKILL"


def test_death_of_what_proved_itself_is_a_restart_with_ever_longer_pauses() -> None:
    node = Node(2, proven=[target(1)])
    node.promote(2, target(1))
    node.pass_time(WINDOW)
    node.kinds()
    for times, pause in enumerate((1, 2, 4)):
        assert node.state.serving is not None
        node.state = node.state.gone(node.state.serving, "crashed", node.now)
        node.settle()
        assert node.kinds() == []
        assert node.state.failing[target(2).digest].times == times + 1
        node.pass_time(pause)
        assert node.kinds() == ["Start 2", "Gate 2", "Open 2"]
    node.pass_time(WINDOW)
    assert node.state.failing == {}


@pytest.mark.parametrize(
    ("vitals", "goes_back"),
    [
        (Vitals(9, 9, 1.0), False),
        (Vitals(10, 1, 5.0), False),
        (Vitals(10, 2, 1.0), True),
        (Vitals(10, 0, 5.1), True),
        (Vitals(10, 0, None), False),
    ],
)
@pytest.mark.parametrize("capacity", [1, 2])
def test_limits_within_the_watch_window(capacity: int, vitals: Vitals, goes_back: bool) -> None:
    node = Node(capacity)
    node.promote(1)
    node.state = node.state.feel(Vitals(100, 100, None), node.now)
    node.settle()
    assert node.serves == 1  # there is nothing to go back to
    node.pass_time(WINDOW)
    node.promote(2, target(1))
    node.state = node.state.feel(vitals, node.now)
    node.settle()
    assert node.serves == (1 if goes_back else 2)
    node.pass_time(WINDOW)
    node.state = node.state.feel(Vitals(100, 100, None), node.now)
    node.settle()
    assert node.serves == (1 if goes_back else 2)  # the window is over
    assert len(node.state.engines) == 1


def test_a_version_without_an_alternative_is_tried_again() -> None:
    node = Node(2)
    node.broken = {1: "start"}
    node.promote(1)
    for _ in range(20):
        node.pass_time(LONGEST_PAUSE)
    assert node.state.bad == {}
    node.broken = {}
    node.pass_time(LONGEST_PAUSE)
    assert node.serves == 1


def test_a_node_that_starts_anew_remembers_what_is_bad() -> None:
    node = Node(1, proven=[target(1)])
    node.promotions = 7
    node.broken = {3: "gate"}
    node.promote(3, target(2), target(1))
    assert node.serves == 1  # what proved itself here before what the alias named before
    again = Node(1, proven=[target(1)])
    again.promotions = 7
    again.state = Rollout(bad=node.state.bad, proven=node.state.proven)
    again.promote(3, target(2), target(1))
    assert again.serves == 1
    assert "Start 3" not in again.kinds()


def test_a_node_that_starts_anew_holds_again_what_proved_itself() -> None:
    node = Node(2, proven=[target(1), target(2)])
    node.promote(2, target(1))
    assert node.kinds() == ["Fetch 2", "Start 2", "Gate 2", "Open 2", "Fetch 1"]
    node.pass_time(WINDOW)
    assert node.state.here == {target(1).digest, target(2).digest}


def test_what_is_named_does_not_wait_for_what_is_only_kept() -> None:
    node = Node(2, proven=[target(1), target(2)])
    node.broken = {1: "fetch"}
    node.promote(2, target(1))
    node.kinds()
    node.broken, node.slow = {}, True
    node.pass_time(LONGEST_PAUSE)
    assert node.kinds() == ["Proved 2", "Fetch 1"]
    assert node.state.abandons is None
    node.promote(3, target(2), target(1))
    assert node.state.abandons == target(1)
    node.state = node.state.not_fetched(target(1), "it is not wanted any more", node.now, abandoned=True)
    node.settle()
    assert node.kinds() == ["Fetch 3"]


def test_what_cannot_be_fetched_does_not_keep_a_node_from_serving_what_it_has() -> None:
    node = Node(1, proven=[target(1)])
    node.broken = {2: "fetch"}
    node.promote(2, target(1))
    assert node.serves == 1
    node.pass_time(WINDOW)
    assert node.serves == 1
    node.broken = {}
    node.pass_time(LONGEST_PAUSE)
    assert node.serves == 2


def test_nothing_is_left_for_what_cannot_be_fetched() -> None:
    """The disk is full, and what serves dies before it has proved itself: it is all there is."""
    node = Node(2)
    node.promote(1)
    node.broken = {2: "fetch"}
    node.promote(2, target(1))
    node.state = node.state.gone(node.state.serving or 0, "was ended by SIGKILL", node.now)
    node.settle()
    assert node.state.bad == {}
    node.pass_time(LONGEST_PAUSE)
    assert node.serves == 1


def test_what_is_held_by_hand_wins_until_it_is_released() -> None:
    node = Node(2)
    node.promote(1)
    node.pass_time(WINDOW)
    node.broken = {2: "gate"}
    node.promote(2, target(1))
    assert (node.serves, list(node.state.bad)) == (1, [target(2).digest])
    node.broken = {}
    node.state = node.state.hold(target(2))  # another chance, although nobody promoted it anew
    node.settle()
    assert node.serves == 2
    node.promote(3, target(2), target(1))
    assert node.serves == 2
    node.state = node.state.hold(None)
    node.settle()
    assert node.serves == 3


def test_what_is_held_by_hand_and_fails_is_left_like_any_other() -> None:
    node = Node(1, proven=[target(1)])
    node.promote(1)
    node.broken = {2: "start"}
    node.state = node.state.hold(target(2))
    node.settle()
    assert node.serves == 1
    assert target(2).digest in node.state.bad


def test_nobody_goes_back_to_what_was_rejected() -> None:
    node = Node(2, proven=[target(1), target(2)])
    node.broken = {3: "start"}
    node.state = node.state.name(Named(target(3, 9), (target(1),), frozenset({target(2).digest})))
    node.settle()
    assert node.serves == 1


def test_a_flapping_alias_ends_at_its_last_state() -> None:
    node = Node(2)
    node.promote(1)
    node.slow = True
    for number in (2, 1, 2, 3, 2, 3, 1, 3):
        node.promote(number)
    node.slow = False
    for action in list(node.did):
        node.perform(action)
    node.settle()
    assert node.serves == 3
    node.pass_time(WINDOW)
    assert [engine.target.number for engine in node.state.engines.values()] == [3]


def test_replace_that_is_called_off_while_it_drains_starts_nothing() -> None:
    node = Node(1)
    node.promote(1)
    node.slow = True
    node.promote(2)
    node.state = node.state.fetched(target(2, 2))
    node.settle()
    assert node.kinds()[-1] == "Drain 1"
    node.promote(1)
    assert node.kinds() == ["Open 1"]
    node.state = node.state.drained(1)  # too late
    node.settle()
    assert node.serves == 1


def test_stopping_drains_first() -> None:
    node = Node(2)
    node.promote(1)
    node.promote(2, target(1))
    node.kinds()
    node.state = node.state.stop()
    node.settle()
    assert node.kinds() == ["Drain 1", "Drain 2", "Stop 1", "Stop 2"]
    assert node.state.finished


def test_what_a_ledger_says_of_an_alias() -> None:
    writer = Writer("m")
    for _ in range(4):
        writer.publish(MERGED)
    assert Named.read(writer.log, "production") is None
    state = writer.log.state

    def append(draft: Draft | None) -> None:
        assert draft is not None
        writer.append(draft)

    for number in (1, 2, 3):
        append(writer.log.state.promote("production", number))
    append(writer.log.state.promote("staging", 4))
    named = Named.read(writer.log, "production")
    assert named is not None
    assert [named.current.number, *(t.number for t in named.earlier)] == [3, 2, 1]
    append(writer.log.state.went_back("node-1", "production", 2, 1, "died"))
    assert writer.log.state.went_back("node-1", "production", 2, 1, "died") is None
    append(writer.log.state.went_back("node-2", "production", 2, 1, "died"))
    named = Named.read(writer.log, "production")
    assert named is not None
    assert [t.number for t in named.earlier] == [1]
    assert writer.log.state.roll_back("production").details["to"] == 1  # the bad one is skipped
    assert writer.log.state.roll_back("production", to=2).details["to"] == 2  # unless it is asked for by name
    append(writer.log.state.roll_back("production"))
    append(writer.log.state.promote("production", 2))
    assert writer.log.state.bad == {}
    named = Named.read(writer.log, "production")
    assert named is not None
    assert (named.current.number, named.current.promotion) == (2, len(writer.log.events))
    assert state.bad == {}


class Machine(RuleBasedStateMachine):
    """Everything that can happen to a node, in any order, whatever it is doing."""

    def __init__(self) -> None:
        super().__init__()
        self.gated: set[int] = set()
        self.capacity = 2

    @initialize(capacity=st.sampled_from([1, 2]))
    def begin(self, capacity: int) -> None:
        self.capacity = capacity
        self.state = Rollout(capacity=capacity, limits=Limits(watch_window=WINDOW, least=1))
        self.now = 0.0
        self.promotions = 0
        self.fetches: list[Target] = []
        self.draining: list[Engine] = []
        self.current: Target | None = None

    def step(self) -> None:
        before = self.state
        self.state, actions = self.state.step(self.now)
        assert self.state.step(self.now)[1] == ()
        for action in actions:
            match action:
                case Fetch(wanted):
                    self.fetches.append(wanted)
                case Start(engine):
                    assert not before.is_bad(engine.target)
                    assert engine.target.digest in before.here
                case Open(engine):
                    assert engine.number in self.gated, "it takes traffic and was not gated"
                    assert not self.state.is_bad(engine.target)
                case Drain(engine) if engine.number == before.serving:
                    assert self.capacity == 1 or before.stopping, "blue-green never leaves a gap"
                case _:
                    pass

    def of(self, *stages: Stage) -> list[Engine]:
        return [engine for engine in self.state.engines.values() if engine.stage in stages]

    @rule(number=st.integers(1, 4), earlier=st.lists(st.integers(1, 4), max_size=2), rejected=st.integers(1, 9))
    def promote(self, number: int, earlier: list[int], rejected: int) -> None:
        self.promotions += 1
        self.current = target(number, self.promotions)
        gone = frozenset({target(rejected).digest}) - {self.current.digest}
        self.state = self.state.name(Named(self.current, tuple(target(n) for n in earlier if n != number), gone))
        self.step()

    @precondition(lambda self: self.fetches)
    @rule(fine=st.booleans())
    def fetch(self, fine: bool) -> None:
        wanted = self.fetches.pop()
        self.state = self.state.fetched(wanted) if fine else self.state.not_fetched(wanted, "away", self.now)
        self.step()

    @precondition(lambda self: self.state.engines)
    @rule(data=st.data(), what=st.sampled_from(["healthy", "passed", "refused", "drained", "gone", "failed"]))
    def engine(self, data: st.DataObject, what: str) -> None:
        number = data.draw(st.sampled_from(sorted(self.state.engines)))
        stage = self.state.engines[number].stage
        match what:
            case "healthy":
                self.state = self.state.healthy(number)
            case "passed":
                if stage is Stage.GATING:
                    self.gated.add(number)
                self.state = self.state.gated(number, passed=True, reason="", now=self.now)
            case "refused":
                self.state = self.state.gated(number, passed=False, reason="no", now=self.now)
            case "drained":
                self.state = self.state.drained(number)
            case "gone":
                self.state = self.state.gone(number, "gone", self.now)
            case _:
                self.state = self.state.failed(number, "sick", self.now)
        self.step()

    @rule(failures=st.integers(0, 3))
    def feel(self, failures: int) -> None:
        self.state = self.state.feel(Vitals(3, failures, 0.1), self.now)
        self.step()

    @rule(seconds=st.sampled_from([0.5, 3.0, WINDOW, LONGEST_PAUSE]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.step()

    @invariant()
    def there_is_room(self) -> None:
        assert len(self.state.engines) <= self.capacity

    @invariant()
    def what_serves_is_ready_and_held(self) -> None:
        served = self.state.served
        if served is not None:
            assert self.state.serving is not None
            assert self.state.engines[self.state.serving].stage is Stage.READY
        for engine in self.state.engines.values():
            assert engine.target.digest in self.state.here, "a snapshot in use was let go"

    def teardown(self) -> None:
        """From wherever it is, a node to which nothing more happens comes to what the alias names, and stops when it is
        told to, leaving nothing."""
        if self.current is None:
            return
        self.promotions += 1
        self.current = target(self.current.number, self.promotions)
        self.state = self.state.name(Named(self.current))
        self._run_well(lambda: self.state.served == self.current and len(self.state.engines) == 1)
        assert self.state.served == self.current
        assert len(self.state.engines) == 1
        assert len(self.state.here) <= 2 + 1
        self.state = self.state.stop()
        self._run_well(lambda: self.state.finished)
        assert self.state.finished

    def _run_well(self, done: object) -> None:
        for _ in range(60):
            self.step()
            if done():  # type: ignore[operator]
                return
            while self.fetches:
                self.state = self.state.fetched(self.fetches.pop())
            for engine in list(self.state.engines.values()):
                if engine.stage is Stage.STARTING:
                    self.state = self.state.healthy(engine.number)
                elif engine.stage is Stage.GATING:
                    self.gated.add(engine.number)
                    self.state = self.state.gated(engine.number, passed=True, reason="", now=self.now)
                elif engine.stage is Stage.DRAINING:
                    self.state = self.state.drained(engine.number)
                elif engine.stage is Stage.STOPPING:
                    self.state = self.state.gone(engine.number, "", self.now)
            self.now += WINDOW


Machine.TestCase.settings = settings(stateful_step_count=40, deadline=None)
TestMachine = Machine.TestCase
