"""What is to be done so that MLflow shows what the ledger decided, and what was done in MLflow behind its back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from packtrain.errors import UsageError
from packtrain.model.ledger import Draft, State
from packtrain.model.reference import check_alias

OUTSIDE = "moved in MLflow"  # all that is known of why: MLflow keeps neither who nor when


@dataclass(frozen=True, slots=True)
class Shown:
    """A registered model as MLflow shows it. ``created`` in milliseconds since 1970."""

    created: int
    aliases: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Drift:
    """An alias that was moved in MLflow, not through the ledger. ``found``: where it is there (None: removed).

    ``becomes``: ``adopted``, ``restored``; or ``foreign``, if it is at a version that the ledger does not know or has
    archived: then the ledger keeps what it has, and MLflow too, until somebody adopts the version or moves the alias.
    """

    alias: str
    found: int | None
    ledger: int | None
    becomes: str


def drifts(state: State, shown: Shown, late_since: str) -> Iterator[Drift]:
    """The aliases that differ though nothing about them is announced. Those who were overtaken after ``late_since``
    (a timestamp) may still have set an alias: that is nobody's wish, and is undone."""
    for alias in sorted({*state.aliases, *shown.aliases}):
        have, want = shown.aliases.get(alias), state.current(alias)
        if have == want or alias in state.mirror.unsettled or not _is_alias(alias):
            continue
        if have is None or alias in state.policy.protected or _is_late(state, alias, have, late_since):
            yield Drift(alias, have, want, "restored")
        elif have not in state.versions or state.versions[have].archived:
            yield Drift(alias, have, want, "foreign")
        elif alias in state.policy.gated and not state.passed_gate(state.versions[have].digest):
            yield Drift(alias, have, want, "restored")
        else:
            yield Drift(alias, have, want, "adopted")


def record(state: State, drift: Drift, seen: State) -> Draft | None:
    """The event that says what becomes of a drift; None if the ledger went on since it was ``seen``."""
    if state.mirror.moves.get(drift.alias) != seen.mirror.moves.get(drift.alias):
        return None
    if drift.alias in state.mirror.unsettled:
        return None
    if drift.becomes == "adopted":
        return Draft(
            "alias.adopted", {"alias": drift.alias, "from": drift.ledger, "to": drift.found, "reason": OUTSIDE}
        )
    if drift.becomes == "restored":
        return Draft("alias.restored", {"alias": drift.alias, "found": drift.found, "to": drift.ledger})
    return None


def help_out(state: State, alias: str, seen: State) -> Draft | None:
    """The event that comes before another than its mover sets an alias; None if it was said, or is not needed."""
    if no_longer_waits(state, alias, seen) or alias in state.mirror.helped:
        return None
    return Draft("alias.helped", {"alias": alias, "to": state.current(alias)})


def no_longer_waits(state: State, alias: str, seen: State) -> bool:
    """Whether an alias that was unsettled when its ledger was ``seen`` is settled, or was moved on."""
    return alias not in state.mirror.unsettled or state.mirror.moves.get(alias) != seen.mirror.moves.get(alias)


def settle(state: State, alias: str, shown: Shown, *, own: bool) -> Draft | None:
    """The event that MLflow shows an alias as the ledger has it; None if it does not, or that is known."""
    if alias not in state.mirror.unsettled or shown.aliases.get(alias) != state.current(alias):
        return None
    return Draft("alias.settled", {"alias": alias, "to": state.current(alias), "own": own})


def _is_late(state: State, alias: str, number: int, since: str) -> bool:
    return any(target == number and time >= since for target, time in state.mirror.late.get(alias, ()))


def _is_alias(alias: str) -> bool:
    """Whether the ledger could hold it. MLflow allows a few that we do not (letters of other scripts)."""
    try:
        check_alias(alias)
    except UsageError:
        return False
    return True
