"""A node is held at a version by hand, whatever its alias names: also while nothing but the node is there."""

from __future__ import annotations

from packtrain.errors import Refused
from packtrain.flows.pull import resolve
from packtrain.model.ledger import timestamp
from packtrain.model.reference import Reference
from packtrain.model.rollout import Target
from packtrain.ports import Clock, Registry, Reporter
from packtrain.serving.journal import Hold, Journal


def hold(
    registry: Registry,
    journal: Journal,
    reference: Reference,
    *,
    by: str,
    reason: str,
    reporter: Reporter,
    clock: Clock,
) -> Hold:
    """Writes into the journal, which whoever follows the alias looks at, and posts. Raises NotFound, Refused for what
    is archived, LocalDiskError."""
    version = resolve(registry, reference, reporter)
    if version.archived:
        raise Refused(f"{version} is archived", hint="Choose another version.")
    held = Hold(Target(version.number, version.digest), by, reason, timestamp(clock.now()))
    journal.change(lambda memory: memory.held(held))
    return held


def release(journal: Journal, *, by: str, reason: str, clock: Clock) -> Hold | None:
    """Nobody is held any more. None if nobody was. Raises LocalDiskError."""
    before = journal.read().hold
    if before is None or before.target is None:
        return None
    released = Hold(None, by, reason, timestamp(clock.now()))
    journal.change(lambda memory: memory.held(released))
    return released
