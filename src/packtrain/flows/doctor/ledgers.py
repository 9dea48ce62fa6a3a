"""Ledgers, what interrupted publishes left, and the links of a shared volume, which are mended."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from packtrain.errors import PacktrainError
from packtrain.flows import links
from packtrain.flows.doctor.check import Check, failure, ok, warning
from packtrain.model.amount import size
from packtrain.model.digest import Digest, is_hex256
from packtrain.model.ledger import Log, State, timestamp
from packtrain.model.version import version_prefix
from packtrain.ports import Registry, Store


def examine(store: Store, registry: Registry, now: datetime) -> Iterator[Check]:
    try:
        names = sorted({*store.children("ledger/"), *registry.known()})
        logs, broken = list[Log](), set[str]()
        for name in names:
            try:
                logs.append(registry.audit(name))
            except PacktrainError as error:
                broken.add(name)
                yield failure("ledgers", error)
        if not broken:
            events = sum(len(log.events) for log in logs)
            told = f"{len(logs)}, with {events} events: unbroken, and as this machine has seen them before"
            yield ok("ledgers", told if logs else "nothing is published yet")
        yield from _unfinished(store, logs, broken, now)
        if not broken:
            yield from _links(store, registry, now)
    except PacktrainError as error:
        yield failure("ledgers", error)


def _unfinished(store: Store, logs: list[Log], broken: set[str], now: datetime) -> Iterator[Check]:
    """Bytes that no version names, and that no publish under way is about to name. What a broken ledger names is not
    known."""
    states = {log.name: log.state for log in logs}
    left = list[tuple[str, int]]()
    for name in sorted({*store.children("models/")} - broken):
        state = states.get(name, State(name))
        named = {version.digest.hex for version in state.versions.values()}
        live = {begun.digest.hex for begun in state.publishes.values() if begun.lease_until > timestamp(now)}
        for folder in sorted(store.children(f"models/{name}/")):
            if is_hex256(folder) and folder not in named | live:
                total = sum(info.size for info in store.list(version_prefix(name, Digest(folder))))
                if total:
                    left.append((f"{name} {folder[:12]}", total))
    if not left:
        yield ok("leftovers", "no interrupted publish left anything behind")
    for what, total in left:
        yield warning(
            "leftovers",
            f"{what}: {size(total)} of a publish that was interrupted",
            "Publish the same directory again: it continues, and nothing is sent twice. Nobody sees it until then. "
            "Or let it go: packtrain gc frees it a week after it stopped.",
        )


def _links(store: Store, registry: Registry, now: datetime) -> Iterator[Check]:
    if store.directory is None or not store.directory.exists():
        return
    strays = links.stray(store, registry, now=now)
    if not strays:
        yield ok("links", f"{store.directory / 'serve'} is as the ledgers say")
        return
    try:
        links.mend(store, registry, strays)
    except PacktrainError as error:
        for each in strays:
            yield warning("links", f"{each.key} {each.what}", f"It could not be mended: {error}. {error.hint}")
        return
    for each in strays:
        yield ok("links", f"mended: {each.key} {each.what}")
