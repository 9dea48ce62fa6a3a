"""From settings to parts: the one place that knows every implementation."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from packtrain.cache import Cache
from packtrain.errors import UsageError
from packtrain.flows.links import LinkingRegistry
from packtrain.model.digest import Digest
from packtrain.ports import Clock, Registry, Reporter, Store
from packtrain.registry.ledger import LedgerRegistry
from packtrain.registry.memory import SeenLedgers
from packtrain.settings import Settings
from packtrain.storage import open_store


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


def wire(settings: Settings, reporter: Reporter) -> Parts:
    """Opens nothing yet: a store that cannot be reached is met by the first call to it. Raises UsageError."""
    clock = SystemClock()
    store = open_store(settings.store)
    if settings.registry != "store":
        raise UsageError(
            f"the registry {settings.registry!r} is not supported",
            hint='registry = "store" keeps the registry inside the store; it is the only one so far.',
        )
    seen = SeenLedgers(settings.cache_dir / "ledgers" / Digest.of(store.url.encode()).short)
    registry = LedgerRegistry(store, seen, actor=settings.actor, clock=clock, nonce=lambda: uuid.uuid4().hex)
    linking = LinkingRegistry(registry, store, reporter)
    cache = Cache(
        settings.cache_dir, boot=_boot_id(), clock=clock, quota=settings.cache_quota, floor=settings.cache_free
    )
    return Parts(store, linking, cache, clock)


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
