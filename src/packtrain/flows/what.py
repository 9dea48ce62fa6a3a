"""What an endpoint serves, and who says so: each claim is held against the registry and the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packtrain.errors import NotFound, PacktrainError
from packtrain.flows.catalog import read_lineage
from packtrain.model.ledger import MOVES, Event, Log
from packtrain.model.lineage import Lineage
from packtrain.model.version import ModelVersion
from packtrain.ports import Registry, Store
from packtrain.serving.asking import Claim, Endpoint, claim, status
from packtrain.serving.runs import running


@dataclass(frozen=True, slots=True)
class Checked:
    """One statement and whether it holds."""

    what: str
    holds: bool


@dataclass(frozen=True, slots=True)
class What:
    """``version`` as the registry has it (None: it does not); ``promotion``: the event by which the alias that is
    followed, or the newest one that points there, came to it; ``lineage`` of the training behind it."""

    url: str
    claim: Claim
    version: ModelVersion | None
    promotion: Event | None
    lineage: Lineage | None
    checks: tuple[Checked, ...]

    @property
    def holds(self) -> bool:
        return all(check.holds for check in self.checks)


def what(store: Store, registry: Registry, endpoint: Endpoint) -> What:
    """Asks an endpoint, and checks what it says. Raises NotFound if it says nothing, Unavailable."""
    said = claim(endpoint)
    alias = _followed(endpoint)
    log = registry.read(said.name)
    version = log.state.versions.get(said.number)
    checks = [Checked(f"{said.name}/{said.number} is registered", version is not None)]
    if version is None:
        return What(endpoint.url, said, None, None, None, tuple(checks))
    digest = str(version.digest)
    checks.append(Checked(f"its digest is {digest}", said.digest != "sha256:" and digest.startswith(said.digest)))
    promotion = _promotion(log, version.number, alias)
    if alias:
        current = log.state.current(alias) == version.number
        checks.append(Checked(f"@{alias}, which it follows, is at it now", current))
    lineage = None
    try:
        lineage = read_lineage(store, version)
        checks.append(Checked("its lineage is recorded", lineage is not None))
    except PacktrainError as error:
        checks.append(Checked(f"its lineage is what was recorded ({error})", False))
    return What(endpoint.url, said, version, promotion, lineage, tuple(checks))


def _followed(endpoint: Endpoint) -> str:
    try:
        return str(status(endpoint).get("alias", ""))
    except NotFound:
        return ""


def _promotion(log: Log, number: int, alias: str) -> Event | None:
    moves = (
        event
        for event in reversed(log.events)
        if event.action in MOVES and event.details["to"] == number and alias in ("", event.details["alias"])
    )
    return next(moves, None)


def statuses(folder: Path) -> list[Mapping[str, Any]]:
    """What every supervisor of this node says of itself. ``folder``: where they write that they run."""
    found: list[Mapping[str, Any]] = []
    for run in running(folder):
        endpoint = Endpoint(run.url, headers={"X-Packtrain-Key": run.key})
        try:
            found.append({**status(endpoint), "url": run.url})
        except PacktrainError as error:  # it is about to start, or to end
            found.append({"reference": run.follows, "pid": run.pid, "url": run.url, "problem": str(error)})
    return found
