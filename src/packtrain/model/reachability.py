"""What nothing names any more: which manifests and records of which ledgers may be condemned, and why the others not.

All of it is decided on states, on listings and on a moment. Only the first part of each answer is a law: what a live
version names, itself or as the base of a living adapter, stays. The rest is courtesy, which rests on clocks: publishes
that may go on, readers that hold a lease, people who may change their mind within the grace period. If a clock is wrong
there, bytes are sent again, and nothing that is named is lost, because the ledger refuses to name what was condemned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property

from packtrain.model.digest import Digest
from packtrain.model.lease import Lease
from packtrain.model.ledger import State, timestamp

Key = tuple[str, Digest]  # a registered model, and a manifest or record of its ledger
Dead = Callable[[str, Digest], bool]  # whether a manifest of a ledger can never be named again

SKEW = timedelta(hours=1)  # by how much the clock of whoever wrote a lease may be behind


@dataclass(frozen=True, slots=True)
class Holdings:
    """What listings of a store found. ``records``: when each was written, by the store's own clock, if it says."""

    records: Mapping[Key, datetime | None] = field(default_factory=dict)
    leases: Mapping[Key, tuple[Lease, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rules:
    """``now`` and ``grace``: for how long what nobody names stays all the same."""

    now: datetime
    grace: timedelta

    def is_over(self, moment: str, more: timedelta = timedelta(0)) -> bool:
        """Whether a moment of a ledger, and a while more, has passed."""
        return later(moment, more) <= timestamp(self.now)


@dataclass(frozen=True, slots=True)
class Hold:
    """Why something must stay: until a moment, or (None) as long as it is named."""

    why: str
    until: str | None = None


def later(moment: str, by: timedelta) -> str:
    """A timestamp of a ledger, moved."""
    if not by:
        return moment
    try:
        return timestamp(datetime.fromisoformat(moment) + by)
    except OverflowError:  # a grace period of thousands of years, or a lease until then
        return timestamp(datetime.max.replace(tzinfo=UTC))


def bases(states: Iterable[State]) -> dict[Key, set[tuple[str, Digest]]]:
    """Which adapters need each base, by their own versions and by what the base's ledger was told."""
    needed: dict[Key, set[tuple[str, Digest]]] = {}
    for state in states:
        for version in state.versions.values():
            if version.base is not None:
                needed.setdefault((version.base.name, version.base.digest), set()).add((state.name, version.digest))
        for base, adapters in state.references.items():
            needed.setdefault((state.name, base), set()).update(adapters)
    return needed


def hold(
    state: State,
    digest: Digest,
    rules: Rules,
    *,
    adapters: Set[tuple[str, Digest]],
    dead: Dead,
    leases: Iterable[Lease] = (),
) -> Hold | None:
    """Why a manifest must stay, or None if it may be condemned.

    ``adapters`` are those that need it, as other ledgers say; its own ledger's word, which an adapter leaves before
    anything else, counts as well. Only one that is ``dead`` needs its base no more: one that no version names may be
    named in a moment.
    """
    versions = state.versions_of(digest)
    if live := [version for version in versions if not version.archived]:
        return Hold(f"{live[-1]} names it")
    if any(intent.digest == digest.hex for intent in state.mirror.intents.values()):
        return Hold("it was announced, and waits for its number from MLflow")
    needs = sorted(pair for pair in adapters | state.references.get(digest, frozenset()) if not dead(*pair))
    if needs:
        return Hold(f"the adapter {needs[0][0]} {needs[0][1].short} needs it as its base")
    opened = max((p.lease_until for p in state.publishes.values() if p.digest == digest), default="")
    if opened and not rules.is_over(opened):
        return Hold("a publish is under way", opened)
    for lease in leases:
        if not rules.is_over(lease.until, SKEW):
            return Hold(f"{lease.holder} uses it in place", lease.until)
    if opened and not rules.is_over(opened, rules.grace):
        return Hold("a publish that was interrupted may go on", later(opened, rules.grace))
    archived = max((version.archived_at or "" for version in versions), default="")
    if archived and not rules.is_over(archived, rules.grace):
        return Hold(f"{versions[-1]} was archived at {archived}", later(archived, rules.grace))
    return None


def hold_record(state: State, record: Digest, rules: Rules, *, dead: Dead, written: datetime | None) -> Hold | None:
    """Why a record that a store holds must stay, or None if it may be condemned."""
    for manifest in sorted(state.attachments.get(record, ())):
        if versions := state.versions_of(manifest):
            return Hold(f"it belongs to {versions[-1]}")
        if not dead(state.name, manifest):
            return Hold(f"it belongs to {manifest.short}, which may become a version")
    if record in state.attachments:
        return None
    running = max((publish.lease_until for publish in state.publishes.values()), default="")
    if running and not rules.is_over(running):
        return Hold("a publish is under way", running)
    if written is not None and not rules.is_over(timestamp(written), rules.grace):
        return Hold("it was written a short while ago", later(timestamp(written), rules.grace))
    return None


@dataclass(frozen=True)
class World:
    """Everything that is known: the ledgers of all registered models, and what a store holds besides."""

    states: Mapping[str, State]
    holdings: Holdings
    rules: Rules

    def hold(self, state: State, digest: Digest, also_dead: Set[Key] = frozenset()) -> Hold | None:
        """Why a manifest of a ledger must stay. ``state`` is that ledger as it is now; of the others, which may be
        older, only what they condemned counts as dead, because that is final (and ``also_dead``)."""
        return hold(
            state,
            digest,
            self.rules,
            adapters=self._needed.get((state.name, digest), set()),
            dead=self._dead(state, also_dead),
            leases=self.holdings.leases.get((state.name, digest), ()),
        )

    def condemnable(self, state: State, also_dead: Set[Key] = frozenset()) -> tuple[Set[Digest], Set[Digest]]:
        """The manifests and the records of one ledger that may be condemned together."""
        digests = {each for each in state.known - state.condemned if self.hold(state, each, also_dead) is None}
        dead = self._dead(state, also_dead | {(state.name, digest) for digest in digests})
        records = {
            record
            for (name, record), written in self.holdings.records.items()
            if name == state.name
            and record not in state.condemned
            and hold_record(state, record, self.rules, dead=dead, written=written) is None
        }
        return digests, records

    def foresee(self) -> dict[str, Set[Digest]]:
        """What every ledger would have condemned after a collection: an adapter, then the base that nobody else
        needs."""
        doomed: set[Key] = set()
        while True:
            each = {name: self.condemnable(state, doomed) for name, state in self.states.items()}
            found = {(name, digest) for name, (digests, _) in each.items() for digest in digests}
            if found <= doomed:
                return {
                    name: self.states[name].condemned | digests | records for name, (digests, records) in each.items()
                }
            doomed |= found

    @cached_property
    def _needed(self) -> Mapping[Key, Set[tuple[str, Digest]]]:
        return bases(self.states.values())

    def _dead(self, state: State, also: Set[Key]) -> Dead:
        states = {**self.states, state.name: state}
        return lambda name, digest: (name, digest) in also or (name in states and digest in states[name].condemned)


def epitaph(state: State, digest: Digest) -> str:
    """Why a manifest that may be condemned, or was, is not reachable."""
    versions = state.versions_of(digest)
    if versions and versions[-1].collected:
        return f"{versions[-1]} was collected, and this was left: by a collection that was interrupted, or of an upload"
    if versions:
        return f"{versions[-1]} was archived at {versions[-1].archived_at}, and the grace period is over"
    opened = max((p.lease_until for p in state.publishes.values() if p.digest == digest), default="")
    if opened:
        return f"a publish never finished; its lease ended at {opened}"
    return "it was given up, and this was left: by a collection that was interrupted, or of an upload that went on"


def epitaph_of_record(state: State, record: Digest) -> str:
    """The same for a record."""
    if record in state.attachments:
        return "it belongs to a publish that never finished"
    return "no event names it"
