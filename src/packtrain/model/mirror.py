"""What a ledger says about the model registry outside (MLflow) that shows it.

The ledger decides, and MLflow shows what it decided: it has no compare-and-swap, no history and no actor of its own.
So what is asked of MLflow is announced in the ledger, done, and then noted as done; whoever finds something announced
and not done does it. A `Mirror` is the part of a `packtrain.model.ledger.State` that says what is announced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

LATE = 16  # overtaken moves of an alias that are remembered


@dataclass(frozen=True, slots=True)
class Intent:
    """A version that is about to get its number from MLflow. ``details`` are those of the version.created to come.
    ``version`` is an entry that MLflow has already and that is adopted; else MLflow makes a new one."""

    publish_id: str
    details: Mapping[str, Any]
    version: int | None
    sequence: int
    time: str
    actor: str

    @property
    def digest(self) -> str:
        return str(self.details["digest"])


@dataclass(frozen=True, slots=True)
class Policy:
    """What the aliases of a model demand. Of ``protected`` ones the ledger alone decides: a move made in MLflow is
    undone. ``gated`` ones take only versions that have passed a gate."""

    protected: frozenset[str] = frozenset()
    gated: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Mirror:
    """``created``: when MLflow's registered model was created (milliseconds), which tells it from a later one of the
    same name; None while no MLflow shows this ledger.

    ``unsettled``: the aliases that MLflow may not show as the ledger has them, with the versions that they are at
    (None: the ledger has no such alias).
    ``helped``: those of them that somebody else than their mover is about to set, too.
    ``moves``: the sequence of the newest event about each alias. ``late``: versions, and until when (the time of the
    event that overtook them), at which somebody who was overtaken or died may have set an alias in MLflow after all.
    """

    created: int | None = None
    intents: Mapping[str, Intent] = field(default_factory=dict)  # by publish_id
    numbers: Mapping[str, int] = field(default_factory=dict)  # publish_id -> the number that it was given
    unsettled: Mapping[str, int | None] = field(default_factory=dict)
    helped: frozenset[str] = frozenset()
    moves: Mapping[str, int] = field(default_factory=dict)
    late: Mapping[str, tuple[tuple[int, str], ...]] = field(default_factory=dict)

    def announced(self, intent: Intent) -> Mirror:
        return replace(self, intents={**self.intents, intent.publish_id: intent})

    def numbered(self, publish_id: str, number: int) -> Mirror:
        if publish_id not in self.intents:
            return self
        intents = {key: value for key, value in self.intents.items() if key != publish_id}
        return replace(self, intents=intents, numbers={**self.numbers, publish_id: number})

    def moved(self, alias: str, target: int | None, sequence: int, time: str, *, shown: bool = False) -> Mirror:
        """An alias is at ``target`` now. ``shown``: MLflow shows it already, because it was moved there."""
        moves = {**self.moves, alias: sequence}
        if self.created is None:
            return replace(self, moves=moves)
        late = self.late
        if alias in self.unsettled:
            late = self._later(alias, self.unsettled[alias], time)
        unsettled = {key: value for key, value in self.unsettled.items() if key != alias}
        if not shown:
            unsettled[alias] = target
        return replace(self, moves=moves, unsettled=unsettled, helped=self.helped - {alias}, late=late)

    def helping(self, alias: str) -> Mirror:
        """Somebody who did not move an alias is about to set it, and may be slower than who did."""
        return replace(self, helped=self.helped | {alias})

    def settled(self, alias: str, time: str, *, own: bool) -> Mirror:
        """MLflow was seen to show an alias as the ledger has it. ``own``: by whoever moved it; then nobody is late, but
        who helped."""
        alone = own and alias not in self.helped
        late = self.late if alone else self._later(alias, self.unsettled[alias], time)
        unsettled = {key: value for key, value in self.unsettled.items() if key != alias}
        return replace(self, unsettled=unsettled, helped=self.helped - {alias}, late=late)

    def bound(self, created: int, aliases: Mapping[str, int]) -> Mirror:
        """Another registered model shows the ledger from now on: everything is to be shown there."""
        return replace(self, created=created, unsettled={**aliases}, helped=frozenset(aliases))

    def _later(self, alias: str, target: int | None, time: str) -> Mapping[str, tuple[tuple[int, str], ...]]:
        if target is None:
            return self.late
        return {**self.late, alias: (*self.late.get(alias, ()), (target, time))[-LATE:]}
