"""Which version a node serves, and the next step towards it: decisions alone.

A `Rollout` is never changed. What happens is told to one of its methods, which returns the next one; then `step` gives
what is to be done now. Whoever does it (`packtrain.flows.follow`) has the processes, the threads and the clock.

The goal is the first of these that is not bad here: the version that is held by hand, the one that the alias names,
the one that serves, the one that served before the switch, the ones that proved themselves here, those that the alias
named before. A version proves itself when it has served through the watch window after its switch. What does not start,
does not pass the gate, or fails within that window is left: it is bad on this node until the alias comes to it anew,
that is, by a later event. That needs something to go back to; a version without an alternative is tried again, ever
more slowly, and so is the one that last proved itself.

An engine's life, of which there are at most ``capacity`` (1: replace, 2: blue-green):

    starting -> healthy -> gating -> ready -> draining -> drained -> stopping -> gone
                                failed (in whatever way) -----------> stopping -> gone

Of those that are ready at most one gets new requests. Another one stays ready through the watch window, so that going
back takes no start.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from packtrain.model.digest import Digest
from packtrain.model.ledger import MOVES, Log

LONGEST_PAUSE = 300.0  # seconds between two attempts of what keeps failing


@dataclass(frozen=True, slots=True)
class Target:
    """A version as an alias came to it. ``promotion`` is the sequence number of the event by which it did: the same
    version is promoted anew when that number is a later one."""

    number: int
    digest: Digest
    promotion: int = 0


@dataclass(frozen=True, slots=True)
class Named:
    """What an alias names, and what it named before, newest first. ``rejected``: what nobody goes back to, because the
    alias was rolled back from it, or because it was archived or marked bad."""

    current: Target
    earlier: tuple[Target, ...] = ()
    rejected: frozenset[Digest] = frozenset()

    @classmethod
    def read(cls, log: Log, alias: str) -> Named | None:
        """None if the alias is not set."""
        came: dict[int, int] = {}  # version -> the newest event by which the alias came to it
        left = set[int]()
        for event in log.events:
            if event.action in MOVES and event.details["alias"] == alias:
                if event.action == "alias.rolled_back":
                    left.add(event.details["from"])
                came[event.details["to"]] = event.sequence
                left.discard(event.details["to"])
        trail = log.state.trails.get(alias)
        if not trail:
            return None
        versions = log.state.versions
        gone = {number for number, version in versions.items() if version.archived} | left | set(log.state.bad)
        current, *earlier = (
            Target(number, versions[number].digest, came[number]) for number in dict.fromkeys(trail[::-1])
        )
        return cls(
            current,
            tuple(target for target in earlier if target.number not in gone),
            frozenset(versions[number].digest for number in gone) - {current.digest},
        )


class Stage(StrEnum):
    STARTING = "starting"
    HEALTHY = "healthy"
    GATING = "gating"
    READY = "ready"
    DRAINING = "draining"
    DRAINED = "drained"
    FAILED = "failed"
    STOPPING = "stopping"


COMING = (Stage.STARTING, Stage.HEALTHY, Stage.GATING)


@dataclass(frozen=True, slots=True)
class Engine:
    number: int
    target: Target
    stage: Stage = Stage.STARTING


@dataclass(frozen=True, slots=True)
class Bad:
    """A mark on a version: tried at ``promotion``, and why not again."""

    promotion: int
    reason: str


@dataclass(frozen=True, slots=True)
class Failing:
    """What failed ``times`` in a row; it is tried again at ``retry_at``."""

    times: int
    retry_at: float
    reason: str


@dataclass(frozen=True, slots=True)
class Vitals:
    """What clients met since the switch: finished requests, how many of them failed, and the median time to the first
    byte of an answer in seconds (None: no answer yet)."""

    requests: int = 0
    failures: int = 0
    latency: float | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What a version may do in the ``watch_window`` (seconds) after its switch: at most this share of failed requests,
    at most this median latency in seconds; both once ``least`` requests were answered."""

    watch_window: float = 120.0
    errors: float = 0.1
    latency: float | None = None
    least: int = 20

    def broken_by(self, vitals: Vitals) -> str:
        """The limit that does not hold, in words, or nothing."""
        if vitals.requests < self.least:
            return ""
        if vitals.failures > self.errors * vitals.requests:
            return f"{vitals.failures} of {vitals.requests} requests failed, over the limit of {self.errors:.0%}"
        if self.latency is not None and vitals.latency is not None and vitals.latency > self.latency:
            return f"half of the answers began after {vitals.latency:.1f} s, over the limit of {self.latency:g} s"
        return ""


# What is to be done


@dataclass(frozen=True, slots=True)
class Fetch:
    """Get the version here, verified, and hold it."""

    target: Target


@dataclass(frozen=True, slots=True)
class Release:
    """The snapshot need not be held any longer."""

    digest: Digest


@dataclass(frozen=True, slots=True)
class Start:
    engine: Engine


@dataclass(frozen=True, slots=True)
class Gate:
    engine: Engine


@dataclass(frozen=True, slots=True)
class Open:
    """From now on new requests go to this engine."""

    engine: Engine


@dataclass(frozen=True, slots=True)
class Drain:
    """The engine gets nothing new; tell when it has answered what it has."""

    engine: Engine


@dataclass(frozen=True, slots=True)
class Stop:
    """The engine gets nothing new and ends, whatever it still has."""

    engine: Engine


@dataclass(frozen=True, slots=True)
class WentBack:
    """A version was marked bad here. ``to`` serves now or will."""

    target: Target
    to: Target
    reason: str


@dataclass(frozen=True, slots=True)
class Proved:
    """A version has served through its watch window."""

    target: Target


Action = Fetch | Release | Start | Gate | Open | Drain | Stop | WentBack | Proved


@dataclass(frozen=True, slots=True)
class Rollout:
    """``here``: what is fetched, verified and held. ``proven``: what served on this node and did not fail, the newest
    last, which has gone through its watch window; the last ``keep`` of them stay held. ``before``: what served before
    a switch that has not proved itself yet. ``serving``: the engine that gets new requests."""

    capacity: int = 1
    limits: Limits = field(default_factory=Limits)
    keep: int = 2
    named: Named | None = None
    held: Target | None = None
    bad: Mapping[Digest, Bad] = field(default_factory=dict)
    proven: tuple[Target, ...] = ()
    before: Target | None = None
    here: frozenset[Digest] = frozenset()
    fetching: Target | None = None
    failing: Mapping[Digest, Failing] = field(default_factory=dict)
    engines: Mapping[int, Engine] = field(default_factory=dict)
    serving: int | None = None
    watched_until: float | None = None
    stopping: bool = False
    started: int = 0  # engines so far
    went_back: tuple[WentBack, ...] = ()  # to be told

    # Questions

    @property
    def finished(self) -> bool:
        return self.stopping and not self.engines

    @property
    def served(self) -> Target | None:
        """What gets new requests."""
        return self.engines[self.serving].target if self.serving is not None else None

    @property
    def wanted(self) -> Target | None:
        """The first of the candidates that is not bad here."""
        return next(self._candidates(), None)

    @property
    def goal(self) -> Target | None:
        """What is to serve now. While nothing serves, what cannot be fetched is passed over."""
        if self.serving is not None:
            return self.wanted
        return next(filter(self._is_within_reach, self._candidates()), self.wanted)

    def is_bad(self, target: Target) -> bool:
        mark = self.bad.get(target.digest)
        return mark is not None and mark.promotion >= target.promotion

    def is_settled(self, target: Target) -> bool:
        """Whether it is the version that last proved itself: it does not go back when it fails."""
        return bool(self.proven) and self.proven[-1].digest == target.digest

    def _candidates(self) -> Iterator[Target]:
        named, served = self.named, self.served
        wished = tuple(each for each in (self.held, named.current if named else None) if each)
        known = (each for each in (served, self.before, *self.proven[::-1], *(named.earlier if named else ())) if each)
        for target in (*wished, *known):
            is_rejected = target not in wished and named is not None and target.digest in named.rejected
            if not self.is_bad(target) and not is_rejected:
                yield target

    def _is_within_reach(self, target: Target) -> bool:
        return target.digest in self.here or target.digest not in self.failing

    def _alternative(self, to: Target) -> Target | None:
        others = (each for each in self._candidates() if each.digest != to.digest)
        return next(filter(self._is_within_reach, others), None)

    def _find(self, digest: Digest, *stages: Stage) -> Engine | None:
        return next((e for e in self.engines.values() if e.target.digest == digest and e.stage in stages), None)

    # What happens

    def name(self, named: Named) -> Rollout:
        """What the alias names now."""
        known = {each.digest: each for each in (*named.earlier, named.current)}
        engines = {
            number: replace(engine, target=known.get(engine.target.digest, engine.target))
            for number, engine in self.engines.items()
        }
        return replace(self, named=named, engines=engines)

    def hold(self, target: Target | None) -> Rollout:
        """What is held by hand from now on, and gets another chance if it was bad; None: nothing."""
        bad = {digest: mark for digest, mark in self.bad.items() if target is None or digest != target.digest}
        return replace(self, held=target, bad=bad)

    def fetched(self, target: Target) -> Rollout:
        return replace(
            self, fetching=None, here=self.here | {target.digest}, failing=_without(self.failing, target.digest)
        )

    def not_fetched(self, target: Target, reason: str, now: float, *, abandoned: bool = False) -> Rollout:
        """It is no fault of the version: it is tried again."""
        after = replace(self, fetching=None)
        return after if abandoned else after._retry(target, reason, now)

    def refused(self, target: Target, reason: str, now: float) -> Rollout:
        """It is here, or could be, and cannot be served."""
        return replace(self, fetching=None)._blame(target, reason, now)

    def healthy(self, number: int) -> Rollout:
        return self._move(number, Stage.HEALTHY) if self._at(number) is Stage.STARTING else self

    def gated(self, number: int, *, passed: bool, reason: str, now: float) -> Rollout:
        if self._at(number) is not Stage.GATING:
            return self
        if passed:
            return self._move(number, Stage.READY)
        return self.failed(number, reason, now)

    def drained(self, number: int) -> Rollout:
        return self._move(number, Stage.DRAINED) if self._at(number) is Stage.DRAINING else self

    def failed(self, number: int, reason: str, now: float) -> Rollout:
        """An engine is of no use any more, whether it still runs or not."""
        if self._at(number) in (None, Stage.STOPPING, Stage.FAILED):
            return self
        target, blamed = self.engines[number].target, self._is_blamed(number)
        after = self._move(number, Stage.FAILED)
        return after._blame(target, reason, now) if blamed else after

    def gone(self, number: int, reason: str, now: float) -> Rollout:
        """An engine has ended, told or not."""
        if number not in self.engines:
            return self
        after = self.failed(number, reason, now)
        return replace(after, engines={n: e for n, e in after.engines.items() if n != number})

    def feel(self, vitals: Vitals, now: float) -> Rollout:
        """How clients fare. Matters within the watch window, and only if there is something to go back to."""
        served = self.served
        if served is None or self.watched_until is None or self.is_settled(served) or self.is_bad(served):
            return self
        reason = self.limits.broken_by(vitals)
        return self._blame(served, reason, now) if reason and self._alternative(served) else self

    def stop(self) -> Rollout:
        return replace(self, stopping=True)

    def _is_blamed(self, number: int) -> bool:
        """An engine that stands by, or is leaving, may end as it likes."""
        return number == self.serving or self.engines[number].stage in COMING

    def _blame(self, target: Target, reason: str, now: float) -> Rollout:
        if self.is_settled(target) or self.is_bad(target):
            return self._retry(target, reason, now)
        alternative = self._alternative(target)
        if alternative is None:
            return self._retry(target, reason, now)
        bad = {**self.bad, target.digest: Bad(target.promotion, reason)}
        went = WentBack(target, alternative, reason)
        return replace(self, bad=bad, went_back=(*self.went_back, went))

    def _retry(self, target: Target, reason: str, now: float) -> Rollout:
        before = self.failing.get(target.digest)
        times = before.times + 1 if before else 1
        pause = min(LONGEST_PAUSE, 2.0 ** min(times - 1, 20))
        return replace(self, failing={**self.failing, target.digest: Failing(times, now + pause, reason)})

    def _at(self, number: int) -> Stage | None:
        engine = self.engines.get(number)
        return engine.stage if engine else None

    def _move(self, number: int, stage: Stage) -> Rollout:
        engines = {**self.engines, number: replace(self.engines[number], stage=stage)}
        leaves = number == self.serving and stage is not Stage.READY
        return replace(
            self,
            engines=engines,
            serving=None if leaves else self.serving,
            watched_until=None if leaves else self.watched_until,
        )

    # What is to be done

    def step(self, now: float) -> tuple[Rollout, tuple[Action, ...]]:
        """Everything that is to be done now, in this order, and the rollout that knows that it is being done."""
        state, actions = self, list[Action]()
        while found := state._next(now):
            state, action = found
            actions.append(action)
        return state, tuple(actions)

    def _next(self, now: float) -> tuple[Rollout, Action] | None:
        if self.went_back:
            return replace(self, went_back=self.went_back[1:]), self.went_back[0]
        for engine in self.engines.values():
            if engine.stage is Stage.FAILED:
                return self._move(engine.number, Stage.STOPPING), Stop(engine)
        if self.stopping:
            return self._leave()
        if self.watched_until is not None and now >= self.watched_until:
            return self._prove()
        return self._fetch(now) or self._approach(now) or self._release()

    def _prove(self) -> tuple[Rollout, Action]:
        served = self.served
        assert served is not None
        before = () if self.before is None or self.is_bad(self.before) else (self.before,)
        others = {each.digest: each for each in (*self.proven, *before) if each.digest != served.digest}
        proven = (*others.values(), served)[-max(self.keep, 1) :]
        after = replace(
            self, proven=proven, before=None, watched_until=None, failing=_without(self.failing, served.digest)
        )
        return after, Proved(served)

    def _fetch(self, now: float) -> tuple[Rollout, Action] | None:
        """What is wanted comes here while something else serves; then what proved itself before it (a supervisor that
        starts anew holds nothing yet)."""
        for target in (self.wanted, self.goal, *self._kept):
            if target is None or target.digest in self.here or self._must_wait(target, now):
                continue
            if self.fetching is None:
                return replace(self, fetching=target), Fetch(target)
        return None

    @property
    def abandons(self) -> Target | None:
        """What is being fetched and nobody wants any more."""
        fetching = self.fetching
        needed = (self.wanted, self.goal, *self._kept)
        if fetching is None or any(each and each.digest == fetching.digest for each in needed):
            return None
        return fetching

    @property
    def _kept(self) -> tuple[Target, ...]:
        """What is to be here although nobody waits for it: nothing, as long as somebody waits for something else."""
        if self.serving is None or any(each and each.digest not in self.here for each in (self.wanted, self.goal)):
            return ()
        rejected = self.named.rejected if self.named else frozenset()
        return tuple(each for each in self.proven if each.digest not in rejected and not self.is_bad(each))

    def _approach(self, now: float) -> tuple[Rollout, Action] | None:
        goal = self.goal
        for engine in self.engines.values():
            if engine.stage in COMING and (goal is None or engine.target.digest != goal.digest):
                return self._move(engine.number, Stage.STOPPING), Stop(engine)
            if engine.stage is Stage.DRAINED and (goal is None or engine.target.digest != goal.digest):
                return self._move(engine.number, Stage.STOPPING), Stop(engine)
            if engine.stage is Stage.HEALTHY:
                return self._move(engine.number, Stage.GATING), Gate(engine)
        served = self.served
        if goal is None or (served and served.digest == goal.digest):
            return self._let_go(standby=self.watched_until is not None)
        if ready := self._find(goal.digest, Stage.READY, Stage.DRAINING, Stage.DRAINED):
            return self._open(ready, now)
        if goal.digest not in self.here or self._must_wait(goal, now):
            return self._let_go(standby=self.watched_until is not None)
        if self._find(goal.digest, *COMING, Stage.STOPPING):
            return None
        if len(self.engines) < self.capacity:
            engine = Engine(self.started + 1, goal)
            after = replace(self, engines={**self.engines, engine.number: engine}, started=engine.number)
            return after, Start(engine)
        return self._let_go(standby=False) or self._make_room()

    def _open(self, engine: Engine, now: float) -> tuple[Rollout, Action]:
        served = self.served
        return replace(
            self._move(engine.number, Stage.READY),
            before=served if served and not self.is_bad(served) else self.before,
            serving=engine.number,
            watched_until=now + self.limits.watch_window,
        ), Open(engine)

    def _let_go(self, *, standby: bool) -> tuple[Rollout, Action] | None:
        """Engines that are ready and get no requests go, unless one is to stand by."""
        for engine in self.engines.values():
            if engine.stage is Stage.READY and engine.number != self.serving:
                if standby and not self.is_bad(engine.target):
                    continue
                return self._move(engine.number, Stage.DRAINING), Drain(engine)
        return None

    def _make_room(self) -> tuple[Rollout, Action] | None:
        """With room for one engine, what serves must go before the next one starts."""
        if self.serving is None or len(self.engines) > 1 or self.capacity > 1:
            return None
        engine = self.engines[self.serving]
        before = self.before if self.is_bad(engine.target) else engine.target
        return replace(self._move(engine.number, Stage.DRAINING), before=before), Drain(engine)

    def _release(self) -> tuple[Rollout, Action] | None:
        needed = {engine.target.digest for engine in self.engines.values()}
        needed |= {each.digest for each in (self.wanted, self.goal, self.fetching, self.before, *self.proven) if each}
        for digest in sorted(self.here - needed):
            return replace(self, here=self.here - {digest}), Release(digest)
        return None

    def _leave(self) -> tuple[Rollout, Action] | None:
        for engine in self.engines.values():
            if engine.stage is Stage.READY:
                return self._move(engine.number, Stage.DRAINING), Drain(engine)
            if engine.stage in (*COMING, Stage.DRAINED):
                return self._move(engine.number, Stage.STOPPING), Stop(engine)
        return None

    def _must_wait(self, target: Target, now: float) -> bool:
        failing = self.failing.get(target.digest)
        return failing is not None and now < failing.retry_at


def _without(mapping: Mapping[Digest, Failing], digest: Digest) -> dict[Digest, Failing]:
    return {key: value for key, value in mapping.items() if key != digest}
