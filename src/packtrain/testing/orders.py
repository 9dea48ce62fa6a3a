"""Every order in which the calls of several flows into one store can happen.

Each flow is an `Actor`: it runs on a stack of its own (a greenlet: threads take much longer to hand over), with a
store, a registry and a clock of its own, which stop it before every call; `explore` lets one of them go on, then looks
who is next. So a run is the list of who was let go, and is repeated exactly. `explore` begins with the first order and
tries every other choice once. A world that it has seen before (what is in the store, what time it is, and what every
flow has been answered so far, which is all that it can know) is not gone into again, and neither are two orders of
steps that do not disturb each other (sleep sets, of Godefroid): that is what makes all orders of two flows some
hundreds of runs, and not 10^11.

Calls about which two flows cannot disagree are not stopped at: a first exploration stops at none, and whenever two
flows were seen to touch the same key, and one of them to write it, this key is added and the exploration begins anew.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Self, TypeVar
from unittest import mock

from greenlet import getcurrent, greenlet

from packtrain.errors import PacktrainError
from packtrain.model.ledger import Log
from packtrain.ports import Registry
from packtrain.testing.clock import FakeClock
from packtrain.testing.faults import Killed
from packtrain.testing.memory_store import MemoryStore
from packtrain.testing.stepping import Abandoned, Inline, Memory, Stamp, SteppedClock, SteppedStore

T = TypeVar("T")

_POOLS = ("packtrain.flows.workers", "packtrain.flows.collect", "concurrent.futures")  # the last for who imports late


@dataclass(frozen=True)
class Machine:
    """What a flow is given: the outside, as it sees it."""

    store: Any
    registry: Any
    clock: Any
    pause: Callable[[str], None]  # a step of its own, which touches a key


@dataclass(frozen=True)
class Actor:
    """``flow`` may be killed at any of its calls if it is ``mortal``. Its answer is compared as text. ``everywhere``:
    its first step disturbs every step of others."""

    name: str
    flow: Callable[[Machine], object]
    mortal: bool = False
    everywhere: bool = False


MakeRegistry = Callable[..., Registry]  # of a store, a `Memory`, and keywords: actor, clock, nonce


@dataclass
class World:
    """The outside of all: what is stored, the time, what every machine has seen of the ledgers, and how it gets its
    registry."""

    store: MemoryStore
    clock: FakeClock
    seen: Mapping[str, Log] = field(default_factory=dict)
    registry: MakeRegistry | None = None

    def copy(self) -> World:
        return replace(self, store=self.store.copy(), clock=FakeClock(self.clock.now()))


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the world, and each flow's answer or its error; None for a flow that was killed."""

    world: World
    answers: Mapping[str, object]
    order: tuple[str, ...]


@dataclass
class Explored:
    """``runs`` that were made and ``worlds`` that were told apart."""

    runs: int = 0
    worlds: int = 0
    ends: int = 0


class Failed(AssertionError):
    """An order in which something is wrong that must not be."""


def explore(
    start: World,
    actors: Sequence[Actor],
    check: Callable[[World], None],
    at_end: Callable[[Outcome], None],
    *,
    most: int = 100_000,
) -> Explored:
    """Makes every order of the actors' calls happen. ``check`` is asked after every write, ``at_end`` after every run
    that ended in a way that none before it did; what they raise is raised as `Failed`, with the order."""
    shared: frozenset[str] = frozenset()
    ends = set[Hashable]()
    with _deterministic():
        while True:
            explored, touched = _explore(start, actors, check, at_end, ends, shared, most)
            if touched <= shared:
                return explored
            shared |= touched


def wander(
    start: World, actors: Sequence[Actor], check: Callable[[World], None], choose: Callable[[int], int]
) -> Outcome:
    """One run, in which ``choose(n)`` says which of n goes on; the last ones of n are deaths."""
    with _deterministic(), _Run(start, actors, check, None) as run:
        while options := run.options():
            run.step(options[choose(len(options))])
        return run.outcome()


def passing(seconds: float, name: str = "time") -> Actor:
    """Time passes for everybody, at whatever moment it is let go: every machine sleeps, at any of its calls."""
    return Actor(name, lambda machine: machine.clock.pass_(seconds), everywhere=True)


_Option = tuple[int, bool]  # which actor, and whether it dies


def alone(start: World, actor: Actor) -> Outcome:
    """A flow that nobody disturbs."""
    with _deterministic(), _Run(start, [actor], lambda _: None, frozenset()) as run:
        while options := run.options():
            run.step(options[0])
        return run.outcome()


def _explore(
    start: World,
    actors: Sequence[Actor],
    check: Callable[[World], None],
    at_end: Callable[[Outcome], None],
    ends: set[Hashable],
    shared: frozenset[str],
    most: int,
) -> tuple[Explored, frozenset[str]]:
    explored = Explored()
    visited: dict[Hashable, frozenset[_Option]] = {}  # the options that were asleep when a world was gone into
    todo: list[tuple[tuple[_Option, ...], frozenset[_Option]]] = [((), frozenset())]
    touches = _Touches()
    while todo:
        explored.runs += 1
        if explored.runs > most:
            raise Failed(f"more than {most} runs: the flows are too long for this")
        steps, asleep = todo.pop()
        with _Run(start, actors, check, shared, touches) as run:
            for option in steps:
                run.step(option)
            while True:
                state, options = run.state(), run.options()
                if not options and (end := run.end()) not in ends:
                    ends.add(end)
                    with run.explained():
                        at_end(run.outcome())
                slept = visited.get(state)
                awake = [o for o in options if o not in asleep and (slept is None or o in slept)]
                visited[state] = asleep if slept is None else slept & asleep
                if not awake:
                    break
                # What was tried here before need not be tried again after a step that it does not disturb.
                sleeps = [
                    frozenset(o for o in {*asleep, *awake[:n]} if run.independent(o, option))
                    for n, option in enumerate(awake)
                ]
                todo += [((*run.steps, o), sleep) for o, sleep in list(zip(awake, sleeps, strict=True))[:0:-1]]
                asleep = sleeps[0]
                run.step(awake[0])
        if touches.shared - shared:
            break
    explored.worlds, explored.ends = len(visited), len(ends)
    return explored, touches.shared


class _Touches:
    """Which keys the actors of all runs have read and written. A key that ends in a slash stands for all below it."""

    def __init__(self) -> None:
        self._by: dict[str, set[tuple[str, bool]]] = {}
        self.shared: frozenset[str] = frozenset()

    def note(self, actor: str, key: str, writes: bool) -> None:
        known = self._by.setdefault(key, set())
        if (actor, writes) in known:
            return
        known.add((actor, writes))
        for other, touched in self._by.items():
            if _overlap(key, other) and any(a != actor and (w or writes) for a, w in touched):
                self.shared |= {key, other}


def _overlap(one: str, other: str) -> bool:
    if one.endswith("/") or not one:
        return other.startswith(one) or ((other.endswith("/") or not other) and one.startswith(other))
    return one == other or ((other.endswith("/") or not other) and one.startswith(other))


class _Run:
    """One order, step by step."""

    def __init__(
        self,
        start: World,
        actors: Sequence[Actor],
        check: Callable[[World], None],
        shared: frozenset[str] | None,
        touches: _Touches | None = None,
    ) -> None:
        self.world = start.copy()
        self.began = start.clock.now()
        self.steps: list[_Option] = []
        self._check = check
        self._shared = shared
        self._touches = touches
        self._running = [_Running(actor, self) for actor in actors]
        self._written = False

    def __enter__(self) -> Self:
        for each in self._running:
            each.begin()
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._running:
            each.end()

    def options(self) -> list[_Option]:
        live = [index for index, each in enumerate(self._running) if not each.over]
        return [
            *((index, False) for index in live),
            *((index, True) for index in live if self._running[index].actor.mortal and not self._has_died),
        ]

    def independent(self, one: _Option, other: _Option) -> bool:
        """Whether two options lead to the same world in either order, and neither forbids the other."""
        if one[0] == other[0] or (one[1] and other[1]):
            return False
        (key, writes), (other_key, other_writes) = (self._running[each].next for each, _ in (one, other))
        return one[1] or other[1] or not (writes or other_writes) or not _overlap(key, other_key)

    def step(self, option: _Option) -> None:
        index, dies = option
        self.steps.append(option)
        self._running[index].go_on(dies)
        with self.explained():
            for each in self._running:
                each.require_sane()
            if self._written:
                self._written = False
                self._check(self.world)

    def state(self) -> Hashable:
        objects = hash(frozenset(self.world.store.objects.items()))
        return (objects, self.world.clock.monotonic(), *(each.state for each in self._running))

    def end(self) -> Hashable:
        """What can be told of a run that is over, whatever its flows saw on their way."""
        answers = tuple(repr(each.answer) for each in self._running)
        return hash(frozenset(self.world.store.objects.items())), self.world.clock.monotonic(), answers

    def outcome(self) -> Outcome:
        answers = {each.actor.name: each.answer for each in self._running}
        return Outcome(self.world, answers, tuple(map(self._told, range(len(self.steps)))))

    @contextmanager
    def explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            order = "\n".join(f"  {self._told(position)}" for position in range(len(self.steps)))
            raise Failed(f"{type(error).__name__}: {error}\nin this order:\n{order}") from error

    def touch(self, actor: str, key: str, writes: bool) -> bool:
        """Notes what an actor is about to do. Returns whether it has to stop before it."""
        if self._touches:
            self._touches.note(actor, key, writes)
        self._written = self._written or writes
        return self._shared is None or any(_overlap(key, other) for other in self._shared)

    @property
    def _has_died(self) -> bool:
        return any(dies for _, dies in self.steps)

    def _told(self, position: int) -> str:
        index, dies = self.steps[position]
        number = sum(1 for each, _ in self.steps[: position + 1] if each == index)
        return f"{self._running[index].actor.name}{' dies' if dies else f' {number}'}"


class _Running:
    """A flow on a stack of its own: one of a run goes on at any time, and hands back to the run."""

    def __init__(self, actor: Actor, run: _Run) -> None:
        self.actor = actor
        self.answer: object = None
        self.over = False
        self._run = run
        self._history = hashlib.blake2b(actor.name.encode(), digest_size=16)
        self._dies = self._abandoned = False
        self._stack = greenlet(self._work)
        self._stack.new_id = self.new_id
        self.ids = 0
        self.next = ("", True) if actor.everywhere else (f"nothing of {actor.name}", False)  # to touch; to write

    @property
    def state(self) -> Hashable:
        return self.over, self._history.digest()

    def begin(self) -> None:
        self._stack.switch()

    def go_on(self, dies: bool) -> None:
        self._dies = self._dies or dies
        self._stack.switch()

    def end(self) -> None:
        self._abandoned = True
        while not self.over:
            self.go_on(dies=False)

    def require_sane(self) -> None:
        if isinstance(self.answer, BaseException) and not isinstance(self.answer, PacktrainError):
            raise self.answer

    def touch(self, key: str, writes: bool) -> None:
        """Stops, if the others could tell when this happens."""
        if self._abandoned or self._dies:
            raise Abandoned  # what a flow does to clean up: the dead do nothing
        if self._run.touch(self.actor.name, key, writes):
            self.next = (key, writes)
            self._stop()

    def learn(self, what: object) -> None:
        """Whatever an actor was answered is part of what it knows."""
        self._history.update(repr(what).encode())

    def new_id(self) -> uuid.UUID:
        self.ids += 1
        return uuid.UUID(bytes=hashlib.md5(f"{self.actor.name} {self.ids}".encode(), usedforsecurity=False).digest())

    def _stop(self) -> None:
        self._history.update(b".")  # where it stands is not where it stood
        self._stack.parent.switch()
        if self._abandoned:
            raise Abandoned
        if self._dies:
            raise Killed(self.actor.name)

    def _work(self) -> None:
        try:
            self._stop()
            self.answer = self.actor.flow(self._machine())
        except (Abandoned, Killed):
            self.answer = None
        except BaseException as error:  # noqa: BLE001 - `require_sane` looks at it
            self.answer = error
        finally:
            self.learn(str(self.answer))
            self.over = True

    def _machine(self) -> Machine:
        world = self._run.world
        store, clock = SteppedStore(world.store, self), SteppedClock(world.clock, self)
        registry = world.registry and world.registry(
            store,
            Memory(world.seen),
            actor=self.actor.name,
            clock=Stamp(self._run.began),
            nonce=lambda: self.new_id().hex,
        )
        return Machine(store, registry, clock, lambda key: self.touch(key, writes=False))


def _uuid() -> uuid.UUID:
    return getcurrent().new_id()  # type: ignore[no-any-return]


@contextmanager
def _deterministic() -> Iterator[None]:
    """Without threads within flows, and without chance."""
    with ExitStack() as patches:
        for pool in _POOLS:
            patches.enter_context(mock.patch(f"{pool}.ThreadPoolExecutor", Inline))
        patches.enter_context(mock.patch("uuid.uuid4", _uuid))
        yield
