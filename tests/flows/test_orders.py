"""Every order of the calls of publishes, collections, archives, promotions and readers: in none is a byte lost that a
version names; each flow does what it is for or says what is wrong, and can be run again; and each rule, taken away, is
missed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from packtrain.errors import NotFound, PacktrainError, Refused
from packtrain.flows import collect as collecting
from packtrain.flows import garbage, storing
from packtrain.flows import publish as publishing
from packtrain.flows.garbage import Collected
from packtrain.flows.in_place import InPlace
from packtrain.model import ledger, reachability
from packtrain.model.digest import Digest
from packtrain.model.ledger import Event, State
from packtrain.testing.orders import Actor, Explored, Failed, Outcome, World, alone, explore, passing
from tests.flows.protocol import (
    DAY,
    Flow,
    MirroredStore,
    asleep,
    folded,
    gc,
    publish,
    read_in_place,
    release,
    require_no_garbage,
    require_nothing_lost,
    retire,
    settled,
    small,
    then,
    world,
)

Mutation = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Scenario:
    """``refuses``: flows that may be told that it is too late, and by which errors; all others must succeed."""

    before: Callable[[], World]
    actors: Sequence[Actor]
    refuses: Mapping[str, type[PacktrainError]] = field(default_factory=dict)


def two(*more: Flow) -> Callable[[], World]:
    return lambda: world(publish("llama", "one"), publish("llama", "two"), *more)


def one(*more: Flow) -> Callable[[], World]:
    return lambda: world(publish("llama", "one"), *more)


def base() -> World:
    return world(publish("base", "base"))


FOLDERS: list[Path] = []  # of this test's own, for stores that are directories


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Iterator[None]:
    FOLDERS.append(tmp_path)
    yield
    FOLDERS.pop()


COLLECTOR = Actor("gc", asleep(gc()), everywhere=True)

QUICK = {
    "what is collected is published again": Scenario(
        two(retire("llama/1")), [Actor("publish", publish("llama", "one")), Actor("gc", gc())]
    ),
    "an alias moves to what is archived and collected": Scenario(
        two(),
        [Actor("promote", release("llama/1")), Actor("gc", then(retire("llama/1"), gc()))],
        {"promote": Refused, "gc": Refused},
    ),
    "what is collected is used in place": Scenario(
        lambda: world(
            publish("llama", "one"), retire("llama/1"), store=MirroredStore(Path(tempfile.mkdtemp(dir=FOLDERS[-1])))
        ),
        [Actor("engine", read_in_place("llama/1")), Actor("gc", gc())],
        {"engine": NotFound},
    ),
    "promoted, archived and collected at once": Scenario(
        two(),
        [Actor("promote", release("llama/1")), Actor("archive", retire("llama/1")), Actor("gc", gc())],
        {"promote": Refused, "archive": Refused},
    ),
}

LONG = {
    "two collect": Scenario(one(retire("llama/1")), [Actor("gc", gc()), Actor("another", gc())]),
    "a publisher sleeps past its lease": Scenario(one(), [Actor("publish", publish("llama", "three")), COLLECTOR]),
    "a publisher dies, and the next one goes on": Scenario(
        one(), [Actor("publish", publish("llama", "three"), mortal=True), Actor("gc", gc())]
    ),
    "a collector dies, and a publisher is at work": Scenario(
        one(retire("llama/1")), [Actor("publish", publish("llama", "one")), Actor("gc", gc(), mortal=True)]
    ),
    "an adapter's publisher sleeps while its base is archived and collected": Scenario(
        base,
        [
            Actor("publish", publish("adapter", "adapter", base="base/1")),
            Actor("gc", asleep(then(retire("base/1"), gc())), everywhere=True),
        ],
        {"publish": Refused},
    ),
    "everybody sleeps at any time": Scenario(
        one(), [Actor("publish", publish("llama", "three")), Actor("gc", gc()), passing(30 * DAY)]
    ),
    "archived, published again and collected at once": Scenario(
        one(),
        [Actor("archive", retire("llama/1")), Actor("publish", publish("llama", "one", force=True)), Actor("gc", gc())],
    ),
    "an adapter is published, its base archived and collected at once": Scenario(
        base,
        [
            Actor("publish", publish("adapter", "adapter", base="base/1")),
            Actor("archive", retire("base/1")),
            Actor("gc", gc()),
        ],
        {"publish": Refused},
    ),
}


def run(scenario: Scenario, mutation: Mutation = nullcontext) -> Explored:
    with small():
        start = scenario.before()
        with mutation():
            return explore(
                start, scenario.actors, require_nothing_lost, lambda outcome: require_sound(scenario, outcome)
            )


def require_sound(scenario: Scenario, outcome: Outcome) -> None:
    """What failed says why, and succeeds when it is run again, or is refused for good; then collections leave what is
    named, and nothing else."""
    seen = outcome.world
    for actor in scenario.actors:
        answer = outcome.answers[actor.name]
        if isinstance(answer, PacktrainError):
            assert isinstance(answer, scenario.refuses.get(actor.name, ())), f"{actor.name} failed: {answer}"
            assert answer.message and answer.hint
        elif answer is None and actor.mortal:
            again = alone(seen, Actor(f"{actor.name} again", actor.flow))
            seen = settled(again)
            require_nothing_lost(seen)
    seen.clock.sleep(30 * DAY)
    for number in range(2):
        collection = alone(seen, Actor(f"gc {number}", gc()))
        seen = settled(collection)
        require_nothing_lost(seen)
    (last,) = collection.answers.values()
    assert isinstance(last, Collected)
    assert last.garbage == (), "a second collection finds nothing"
    require_no_garbage(seen)


@pytest.mark.parametrize("scenario", QUICK.values(), ids=QUICK.keys())
def test_no_order_loses_a_byte(scenario: Scenario) -> None:
    explored = run(scenario)
    assert explored.worlds > 200
    assert explored.ends > 1


@pytest.mark.slow
@pytest.mark.parametrize("scenario", LONG.values(), ids=LONG.keys())
def test_no_order_of_longer_ones_loses_a_byte(scenario: Scenario) -> None:
    assert run(scenario).worlds > 1000


# Each rule, taken away


@contextmanager
def instead(*patches: tuple[object, str, object]) -> Iterator[None]:
    with ExitStack() as stack:
        folded.cache_clear()  # by other rules
        stack.callback(folded.cache_clear)
        for target, name, new in patches:
            stack.enter_context(mock.patch.object(target, name, new))
        yield


def _nothing(*_: object) -> None:
    """What a rule says that was taken away."""


def _unchecked(state: State, event: Event) -> State:
    digests, records = ({Digest(each) for each in event.details[key]} for key in ("digests", "records"))
    return replace(state, condemned=state.condemned | digests | records)


UNCHECKED = (ledger, "_ACTIONS", {**ledger._ACTIONS, "condemned": _unchecked})  # readers believe any `condemned`


def condemned_names_come_back() -> AbstractContextManager[object]:
    """What was condemned may be named: by whoever writes the event, and by whoever reads it."""
    return instead(
        (State, "_require_uncondemned", _nothing),
        (State, "uncondemned", lambda _, manifest: manifest),
        (State, "uncondemned_record", lambda _, record: record),
        (ledger, "_refuse_condemned", _nothing),
    )


def deletes_what_is_not_condemned() -> AbstractContextManager[object]:
    """It deletes what it found, without an event."""
    return instead((collecting, "_condemn", lambda _, world: world.foresee()))


def condemns_what_it_saw_before() -> AbstractContextManager[object]:
    """It decides on the ledger as it was when it looked, not as it is when the event is written."""
    real = reachability.World.condemnable

    def stale(self: reachability.World, state: State, also_dead: Any = frozenset()) -> Any:
        return real(self, self.states[state.name], also_dead)

    return instead((reachability.World, "condemnable", stale), UNCHECKED)


def gives_up_a_base_that_no_version_needs() -> AbstractContextManager[object]:
    """It takes an adapter that no version names for dead; but its publisher may only sleep."""

    def dead(self: reachability.World, state: State, _: object) -> reachability.Dead:
        states = {**self.states, state.name: state}
        return lambda name, digest: all(
            version.archived for version in (states[name].versions_of(digest) if name in states else ())
        )

    return instead((reachability.World, "_dead", dead))


def does_not_know_of_adapters() -> AbstractContextManager[object]:
    """It does not ask which adapters need a base."""
    real = reachability.hold

    def hold(state: State, *arguments: Any, **options: Any) -> Any:
        return real(replace(state, references={}), *arguments, **{**options, "adapters": frozenset()})

    return instead((reachability, "hold", hold))


def an_adapter_tells_nobody() -> AbstractContextManager[object]:
    """It names its base without telling the base's ledger."""
    return instead((State, "reference", _nothing))


def gives_up_records_of_publishes() -> AbstractContextManager[object]:
    """It takes a record that belongs to no version yet for garbage."""
    real = reachability.hold_record

    def hold_record(state: State, record: Digest, *arguments: Any, **options: Any) -> Any:
        born = {each for each in state.attachments.get(record, frozenset()) if state.versions_of(each)}
        attachments = {**state.attachments, record: frozenset(born)}
        return real(replace(state, attachments=attachments), record, *arguments, **options)

    return instead((reachability, "hold_record", hold_record), UNCHECKED)


def forgets_the_leases_of_publishes_and_the_law() -> AbstractContextManager[object]:
    """It condemns what is being published, and the publisher does not look."""
    return instead((State, "_require_uncondemned", _nothing), (ledger, "_refuse_condemned", _nothing), UNCHECKED)


def a_reader_does_not_look_into_the_ledger() -> AbstractContextManager[object]:
    """It has a lease, and does not ask whether it came too late."""
    return instead((InPlace, "_require_uncollected", _nothing))


def a_reader_looks_before_it_has_a_lease() -> AbstractContextManager[object]:
    """The two steps of a reader, in the other order."""
    take, look = InPlace._take_lease, InPlace._require_uncollected
    return instead((InPlace, "_take_lease", look), (InPlace, "_require_uncollected", take))


def looks_for_leases_only_before() -> AbstractContextManager[object]:
    """It looks who reads before it condemns, and not after it."""
    return instead((garbage.Things, "_reader", _nothing))


def names_before_all_is_there() -> AbstractContextManager[object]:
    """A version is named when its first file is there."""
    real = publishing.send

    def send(store: Any, load: Any, entries: Any, *more: Any) -> Any:
        return real(store, load, list(entries)[:1], *more)

    return instead((publishing, "send", send), (storing, "find_lacking", lambda *_: []))


SLEEPING_ADAPTER = LONG["an adapter's publisher sleeps while its base is archived and collected"]
SLEEPER = LONG["a publisher sleeps past its lease"]
READER = QUICK["what is collected is used in place"]
AGAIN = QUICK["what is collected is published again"]

MUTATIONS: dict[Any, Scenario] = {
    condemned_names_come_back: AGAIN,
    deletes_what_is_not_condemned: AGAIN,
    condemns_what_it_saw_before: AGAIN,
    gives_up_a_base_that_no_version_needs: SLEEPING_ADAPTER,
    does_not_know_of_adapters: SLEEPING_ADAPTER,
    an_adapter_tells_nobody: SLEEPING_ADAPTER,
    gives_up_records_of_publishes: SLEEPER,
    forgets_the_leases_of_publishes_and_the_law: SLEEPER,
    names_before_all_is_there: AGAIN,
    a_reader_does_not_look_into_the_ledger: READER,
    a_reader_looks_before_it_has_a_lease: READER,
    looks_for_leases_only_before: READER,
}


@pytest.mark.parametrize(
    "mutation",
    [
        pytest.param(mutation, marks=[pytest.mark.slow] if mutation is gives_up_records_of_publishes else [])
        for mutation in MUTATIONS
    ],
    ids=[mutation.__name__ for mutation in MUTATIONS],
)
def test_a_rule_that_is_taken_away_is_missed(mutation: Mutation) -> None:
    with pytest.raises(Failed, match=r"^Lost: ") as raised:
        run(MUTATIONS[mutation], mutation)
    assert "in this order" in str(raised.value)
