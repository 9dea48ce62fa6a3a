"""What a version was made from, what that was made from, and so on, as far as it is published."""

from __future__ import annotations

from dataclasses import dataclass

from packtrain.model.ledger import MOVES, Log
from packtrain.model.lineage import Lineage
from packtrain.model.run import TrainingRun
from packtrain.model.version import ModelVersion


@dataclass(frozen=True, slots=True)
class Promotion:
    """How an alias came to point at a version."""

    alias: str
    actor: str
    time: str  # RFC 3339 in UTC
    reason: str
    back: bool  # by a rollback


@dataclass(frozen=True, slots=True)
class Generation:
    """One version, the aliases that point at it now, and how it was made (None: nothing is known). ``run`` is its
    training's in MLflow, where there is an MLflow that has one."""

    version: ModelVersion
    promotions: tuple[Promotion, ...]
    lineage: Lineage | None
    run: TrainingRun | None = None


Ancestry = tuple[Generation, ...]  # a version, its base, the base's base, ...: the published ones. Never empty


def promotions(log: Log, number: int) -> tuple[Promotion, ...]:
    """Who moved each alias that points at a version to it, in the order of the aliases."""
    moves = {
        event.details["alias"]: Promotion(
            alias=event.details["alias"],
            actor=event.actor,
            time=event.time,
            reason=event.details["reason"],
            back=event.action == "alias.rolled_back",
        )
        for event in log.events
        if event.action in MOVES
    }
    return tuple(moves[alias] for alias in log.state.aliases_of(number))
