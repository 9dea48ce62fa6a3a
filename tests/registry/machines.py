"""Machines that share a store: what tests of the registry are made of."""

from __future__ import annotations

import itertools
from pathlib import Path
from urllib.parse import unquote, urlsplit

import obstore

from packtrain.client import Silent
from packtrain.flows.mirroring import Entry, MirroringRegistry
from packtrain.model.ledger import Decide, Draft, State, event_key
from packtrain.ports import Clock, Registry, Reporter, Store
from packtrain.registry.ledger import LedgerRegistry
from packtrain.registry.memory import SeenLedgers
from packtrain.registry.mlflow import Mlflow
from packtrain.storage.objects import ObjectStore
from packtrain.testing.clock import FakeClock
from packtrain.testing.memory_store import MemoryStore
from tests.model.examples import MERGED, Writer, hex_of

_nonces = itertools.count()


def machine(store: Store, home: Path, actor: str = "ada") -> LedgerRegistry:
    """A registry as one machine opens it; ``home`` is where it remembers what it saw."""
    return LedgerRegistry(
        store, SeenLedgers(home), actor=actor, clock=FakeClock(), nonce=lambda: f"{next(_nonces):032x}"
    )


def mirroring(
    ledger: LedgerRegistry, store: Store, url: str, *, clock: Clock | None = None, notes: Reporter | None = None
) -> MirroringRegistry:
    """The same machine, where an MLflow server shows the ledgers."""
    return MirroringRegistry(
        ledger,
        Mlflow(url, environ={}, sleep=lambda _: None),
        store,
        notes or Silent(),
        clock or FakeClock(),
        describe=lambda state, intent: Entry(tags={"packtrain.kind": intent.details["kind"]}),
    )


def publish(registry: Registry, name: str = "m", count: int = 1) -> None:
    """Publishes ``count`` versions, each with two events."""
    for _ in range(count):
        publish_id = hex_of(f"publish {next(_nonces)}")
        digest = MERGED.digest
        registry.change(name, lambda s: s.begin_publish(digest, publish_id, Writer.moment(60)))  # noqa: B023
        registry.change(
            name,
            lambda s: s.create_version(MERGED, digest, publish_id, code=False, base=None, force=True),  # noqa: B023
        )


def promoting(number: int, *, expect: int | None = None, reason: str = "", alias: str = "production") -> Decide:
    def decide(state: State) -> Draft | None:
        return state.promote(alias, number, expect=expect, reason=reason)

    return decide


def events(store: Store, name: str = "m") -> list[bytes]:
    keys = sorted(info.key for info in store.list(f"ledger/{name}/"))
    return [store.get(key) for key in keys]


def put(store: Store, sequence: int, data: bytes, name: str = "m") -> None:
    """Writes over an event, as no Packtrain does."""
    store.upload(event_key(name, sequence), [data], len(data))


def remove(store: Store, sequence: int, name: str = "m") -> None:
    """Removes an event, as no Packtrain does."""
    key = event_key(name, sequence)
    match store:
        case MemoryStore():
            del store.objects[key]
        case ObjectStore():
            obstore.delete(store._writer, key)
        case _:
            Path(unquote(urlsplit(store.locate(key)).path)).unlink()
    assert store.head(key) is None
