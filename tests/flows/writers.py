"""People who publish and promote under one name, each on a machine of their own, and who comes next."""

from __future__ import annotations

import random
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from packtrain.client import Silent
from packtrain.errors import PacktrainError
from packtrain.flows.mirroring import Entry, MirroringRegistry
from packtrain.flows.publish import Request, publish
from packtrain.model.digest import Digest
from packtrain.model.ledger import Draft, State
from packtrain.model.manifest import Manifest
from packtrain.ports import Registry, Store
from packtrain.registry.ledger import LedgerRegistry
from packtrain.registry.memory import SeenLedgers
from packtrain.registry.mlflow import Mlflow
from packtrain.testing.clock import FakeClock
from packtrain.testing.faults import Killed
from packtrain.wiring import SystemClock


def forget(url: str) -> None:
    client = Mlflow(url, environ={})
    for name, _ in list(client.models()):
        client.delete_model(name)


@dataclass
class Writer:
    """A machine of its own."""

    store: Store
    home: Path
    url: str
    actor: str
    clock: SystemClock | FakeClock = field(default_factory=SystemClock)
    told: list[tuple[int, object]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.client = Mlflow(self.url, environ={})
        self.ledger = LedgerRegistry(
            self.store, SeenLedgers(self.home), actor=self.actor, clock=self.clock, nonce=lambda: uuid.uuid4().hex
        )
        self.registry: Registry = MirroringRegistry(
            self.ledger, self.client, self.store, Silent(), self.clock, lambda state, intent: Entry()
        )

    def publish(self, manifest: Manifest) -> None:
        publish_id = uuid.uuid4().hex
        digest = manifest.digest
        self.registry.change("m", lambda s: s.begin_publish(digest, publish_id, "2030-01-01T00:00:00.000Z"))
        _, event = self.registry.change(
            "m", lambda s: s.create_version(manifest, digest, publish_id, code=False, base=None, force=True)
        )
        assert event is not None
        self.told.append((event.sequence, event.details["version"]))

    def promote(self) -> None:
        def decide(state: State) -> Draft | None:
            return state.promote("production", random.choice(list(state.versions)), reason=self.actor)

        _, event = self.registry.change("m", decide)
        if event is not None:
            self.told.append((event.sequence, (event.details["from"], event.details["to"])))


def attempt(writer: Writer, directory: Path) -> None:
    """Publishes and promotes, as far as it goes."""
    request = Request(directory=directory, name="m", alias="production")
    with suppress(PacktrainError, Killed):
        publish(writer.store, writer.registry, request, reporter=Silent(), clock=writer.clock)


def require_whole(store: Store, home: Path, url: str, directory: Path) -> None:
    """Whoever comes next finds no version without bytes, and no alias without its event; and can go on."""
    other = Writer(store, home, url, "bob", FakeClock())
    other.clock.sleep(60)
    state = other.registry.read("m").state
    shown = other.client.model("m")
    numbers = [version.number for version in other.client.versions("m")]
    assert sorted(state.versions) == numbers
    for version in state.versions.values():
        assert Digest.of(store.get(f"{version.prefix}packtrain.json")) == version.digest
    if state.mirror.created is not None:
        assert shown is not None
        assert shown.aliases == state.aliases
    assert not state.mirror.unsettled
    assert not state.mirror.intents
    request = Request(directory=directory, name="m", alias="production")
    done = publish(store, other.registry, request, reporter=Silent(), clock=other.clock)
    assert done.version is not None
    shown = other.client.model("m")
    assert shown is not None
    assert shown.aliases == {"production": done.version.number}
    state = other.registry.read("m").state
    assert [version.number for version in other.client.versions("m")] == sorted(state.versions)
    assert len({version.digest for version in state.versions.values()}) == len(state.versions), "each once"
