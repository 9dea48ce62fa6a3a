"""From settings to parts: the one place that knows every implementation."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from packtrain.cache import Cache
from packtrain.errors import Refused
from packtrain.model.digest import Digest
from packtrain.ports import Clock, Registry, Reporter, Store
from packtrain.registry.ledger import LedgerRegistry
from packtrain.registry.memory import SeenLedgers
from packtrain.settings import DEFAULT_CLASS, Settings
from packtrain.storage import open_store

if TYPE_CHECKING:
    from packtrain.registry.mlflow import Mlflow


class SystemClock:
    """This machine's time."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything that the flows need of the outside."""

    store: Store
    registry: Registry
    cache: Cache
    clock: Clock
    mlflow: Mlflow | None = None


def wire(settings: Settings, reporter: Reporter) -> Parts:
    """Opens nothing yet: a store that cannot be reached is met by the first call to it. Raises UsageError and
    Refused."""
    clock = SystemClock()
    chosen = None if settings.storage_class == DEFAULT_CLASS else settings.storage_class
    store = open_store(settings.store, storage_class=chosen)
    seen = SeenLedgers(settings.cache_dir / "ledgers" / Digest.of(store.url.encode()).short)
    ledger = LedgerRegistry(store, seen, actor=settings.actor, clock=clock, nonce=lambda: uuid.uuid4().hex)
    registry, mlflow = _registry(settings, ledger, store, reporter, clock)
    cache = Cache(
        settings.cache_dir, boot=_boot_id(), clock=clock, quota=settings.cache_quota, floor=settings.cache_free
    )
    return Parts(store, registry, cache, clock, mlflow)


def _registry(
    settings: Settings, ledger: Registry, store: Store, reporter: Reporter, clock: Clock
) -> tuple[Registry, Mlflow | None]:
    """The registry that was chosen, and the MLflow server that shows it, if one does."""
    if settings.registry == "store":
        if store.directory is None:
            return ledger, None
        from packtrain.flows.links import LinkingRegistry

        return LinkingRegistry(ledger, store, reporter), None
    from packtrain.flows.mirroring import MirroringRegistry
    from packtrain.flows.runs import describing
    from packtrain.registry.mlflow import Mlflow, server

    mlflow = Mlflow(server(settings.registry), actor=settings.actor)
    if store.directory is not None:
        raise Refused(
            f"MLflow at {mlflow.url} cannot register what lies in {store.url}: it refuses directories as sources",
            hint='Use a bucket (store = "s3://bucket/prefix"), or registry = "store", which needs no server.',
        )
    describe = describing(mlflow, store, open_store, reporter, clock)
    return MirroringRegistry(ledger, mlflow, store, reporter, clock, describe), mlflow


def open_source(place: str) -> Path | Store:
    """Where models are that are to be adopted: a folder, or a bucket's prefix. Raises UsageError."""
    if "://" not in place:
        return Path(place)
    store = open_store(place)
    return store if store.directory is None else store.directory


def _boot_id() -> str:
    """Different after every restart of this machine; where that cannot be known, different for every process."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return uuid.uuid4().hex
