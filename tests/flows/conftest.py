"""The parts that flows need, over a store in memory, and tiny real models to move."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from packtrain.cache import Cache
from packtrain.client import Silent
from packtrain.flows import pull as flows_pull
from packtrain.flows.publish import Published, Request, publish
from packtrain.flows.pull import Snapshot, pull
from packtrain.model.amount import Amount
from packtrain.model.pacing import Limits
from packtrain.model.reference import Reference
from packtrain.ports import Store
from packtrain.registry.ledger import LedgerRegistry
from packtrain.registry.memory import SeenLedgers
from packtrain.testing.clock import FakeClock
from packtrain.testing.memory_store import MemoryStore


class Notes(Silent):
    """A reporter that remembers what was said, and how many bytes were reported."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.advanced = 0

    def note(self, text: str) -> None:
        self.notes.append(text)

    def advance(self, count: int) -> None:
        self.advanced += count


@dataclass
class House:
    """One machine: its own memory of ledgers and its own cache, over a store that others share."""

    store: Store
    home: Path
    boot: str = "boot-1"
    quota: str = "100%"
    floor: str = "0%"

    def __post_init__(self) -> None:
        self.clock = FakeClock()
        self.notes = Notes()
        self.cache = Cache(
            self.home / "cache",
            boot=self.boot,
            clock=self.clock,
            quota=Amount(self.quota),
            floor=Amount(self.floor),
        )
        self.registry = LedgerRegistry(
            self.store,
            SeenLedgers(self.home / "ledgers"),
            actor="tester",
            clock=self.clock,
            nonce=lambda: uuid.uuid4().hex,
        )

    def publish(self, directory: Path, name: str = "llama", **options: object) -> Published:
        request = Request(directory=directory, name=name, **options)  # type: ignore[arg-type]
        return publish(self.store, self.registry, request, reporter=self.notes, clock=self.clock)

    def pull(self, reference: str, to: Path | None = None, keep: bool = False) -> Snapshot:
        return pull(self.parts, Reference.parse(reference), to=to, keep=keep)

    @property
    def parts(self) -> flows_pull.Node:
        return flows_pull.Node(self.store, self.registry, self.cache, self.notes, self.clock, Limits())


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def make_house(store: MemoryStore, tmp_path: Path) -> Callable[..., House]:
    """``make_house(NAME, store=..., boot=..., quota=...)``: another machine, or the same one again."""

    def make(name: str = "node", *, store: Store = store, **options: str) -> House:
        return House(store, tmp_path / name, **options)

    return make


@pytest.fixture
def house(make_house: Callable[..., House]) -> House:
    return make_house()


def contents(directory: Path) -> dict[str, bytes]:
    """Every file under a directory."""
    return {
        str((Path(folder) / name).relative_to(directory)): (Path(folder) / name).read_bytes()
        for folder, _, names in os.walk(directory)
        for name in names
    }
