"""Aliases move, versions retire: each a compare-and-swap with an event that says who, from, to and why."""

from __future__ import annotations

from dataclasses import dataclass

from packtrain.model.ledger import Draft, State
from packtrain.model.reference import Reference, check_name
from packtrain.model.version import ModelVersion
from packtrain.ports import Registry


@dataclass(frozen=True, slots=True)
class Move:
    """What happened to an alias. ``moved`` is False if it was there already; ``before`` is None if it was not set."""

    name: str
    alias: str
    before: int | None
    after: int
    moved: bool


def promote(registry: Registry, reference: Reference, alias: str, *, expect: int | None, reason: str) -> Move:
    """Points ``alias`` at the version that ``reference`` names when the event is written.

    ``expect``: the version that the alias must be at (0: it must not exist), else Conflict.
    """

    def decide(state: State) -> Draft | None:
        return state.promote(alias, state.resolve(reference).number, expect=expect, reason=reason)

    log, event = registry.change(reference.name, decide)
    if event is None:
        number = log.state.resolve(reference).number
        return Move(reference.name, alias, number, number, moved=False)
    return Move(reference.name, alias, event.details["from"], event.details["to"], moved=True)


def roll_back(registry: Registry, name: str, alias: str, *, to: int | None, expect: int | None, reason: str) -> Move:
    """Points ``alias`` at the version promoted before the current one, or at ``to`` further back.

    Two people who roll back at once go back once: the second is told that it has happened (Conflict).
    """
    check_name(name)
    seen = registry.read(name).state.current(alias) if expect is None else expect
    _, event = registry.change(name, lambda state: state.roll_back(alias, to=to, expect=seen, reason=reason))
    assert event is not None
    return Move(name, alias, event.details["from"], event.details["to"], moved=True)


def archive(registry: Registry, reference: Reference, *, reason: str) -> ModelVersion:
    """Retires a version: it can no longer be promoted. Refused while an alias points at it."""
    number = registry.read(reference.name).state.resolve(reference).number
    log, _ = registry.change(reference.name, lambda state: state.archive(number, reason=reason))
    return log.state.version(number)
