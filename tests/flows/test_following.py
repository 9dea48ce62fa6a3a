"""What keeps a version from being fetched, and whether the version is to blame."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import pytest
import structlog

from packtrain.errors import IntegrityError, PacktrainError, Refused, Unavailable
from packtrain.flows.following import REST, Progress, Unservable, Watcher, fetch
from packtrain.model.ledger import Decide
from packtrain.model.manifest import refuse_unsafe
from packtrain.model.rollout import Target
from packtrain.model.version import ModelVersion
from packtrain.registry.ledger import LedgerRegistry
from packtrain.serving import Arguments
from packtrain.serving.journal import Hold, Journal
from packtrain.testing.memory_store import MemoryStore
from tests.model.examples import MERGED
from tests.registry.machines import machine, publish


class Failing:
    """A `Supply` that has nothing."""

    pins: list[int] = []  # noqa: RUF012

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.left = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.left += 1

    def open(self, version: ModelVersion) -> Path:
        raise self.error

    def leave(self) -> None: ...


def unsafe() -> Exception:
    with pytest.raises(Refused) as caught:
        refuse_unsafe(["pytorch_model.bin"], allow_code=False, what="m/1")
    return caught.value


def fetched(error: Exception, home: Path) -> Any:
    registry = machine(MemoryStore(), home)
    publish(registry)
    version = registry.read("m").state.versions[1]
    assert version.digest == MERGED.digest
    supply = Failing(error)
    try:
        return fetch(registry, supply, version, Arguments(), Progress(lambda _: None))
    finally:
        assert supply.left == 1


def test_what_the_version_holds_is_its_own_fault(tmp_path: Path) -> None:
    with pytest.raises(Unservable, match=r"pytorch_model\.bin, a pickle format"):
        fetched(unsafe(), tmp_path)


@pytest.mark.parametrize(
    "error",
    [Unavailable("the network is down"), Refused("403 Forbidden: ExpiredToken"), IntegrityError("a chunk is wrong")],
    ids=lambda error: type(error).__name__,
)
def test_what_keeps_it_away_is_not(tmp_path: Path, error: PacktrainError) -> None:
    with pytest.raises(type(error)) as caught:
        fetched(error, tmp_path)
    assert caught.value is error


class Closed:
    """A registry of which this node may read alone, until it is opened."""

    def __init__(self, inner: LedgerRegistry) -> None:
        self.inner, self.is_open = inner, False

    def change(self, name: str, decide: Decide) -> Any:
        if not self.is_open:
            raise Refused("403 Forbidden")
        return self.inner.change(name, decide)


def test_what_the_ledger_does_not_take_is_offered_again(tmp_path: Path) -> None:
    inner = machine(MemoryStore(), tmp_path / "seen")
    publish(inner)
    registry, journal = Closed(inner), Journal(tmp_path / "journal.json")
    held = Hold(Target(1, MERGED.digest), "ada", "", "2026-01-02T03:04:05.678Z")
    unknown = Hold(Target(7, MERGED.digest), "ada", "", "2026-01-02T03:04:05.678Z")
    for hold in (unknown, held):
        journal.change(lambda memory, hold=hold: memory.held(hold))  # type: ignore[misc]
    watcher: Any = Watcher(
        registry, "m", "production",
        interval=1, waiting=None, node="node-1", journal=journal, seen=print, blind=print, log=structlog.get_logger(),
    )  # type: ignore[arg-type]  # fmt: skip
    watcher._post()
    registry.is_open = True
    for _ in range(REST):
        assert journal.read().unposted == (unknown, held)
        watcher._post()
    watcher._post()
    assert journal.read().unposted == ()
    last = inner.read("m").events[-1]
    assert (last.action, last.details["version"], last.details["node"]) == ("node.held", 1, "node-1")
    assert [event.action for event in inner.read("m").events].count("node.held") == 1
