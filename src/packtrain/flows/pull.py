"""A version becomes a complete, verified, read-only directory on this node."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from packtrain.cache import Cache, Pin
from packtrain.errors import IntegrityError, LocalDiskError, NotFound, Unavailable
from packtrain.model.digest import Digest
from packtrain.model.ledger import Log
from packtrain.model.pacing import Limits
from packtrain.model.reference import Reference
from packtrain.model.version import ModelVersion
from packtrain.ports import Clock, Registry, Reporter, Store


@dataclass(frozen=True, slots=True)
class Node:
    """What a pull works with."""

    store: Store
    registry: Registry
    cache: Cache
    reporter: Reporter
    clock: Clock
    limits: Limits


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A complete, read-only directory. In bytes: ``fetched`` came from the store for it; ``linked`` and ``copied``
    from other snapshots (all 0: it was here).

    ``in_place``: it is the store's own. ``verified``: every byte was checked; always so for a copy.
    """

    path: Path
    version: ModelVersion
    fetched: int
    linked: int = 0
    copied: int = 0
    in_place: bool = False
    verified: bool = True


def resolve(registry: Registry, reference: Reference, reporter: Reporter) -> ModelVersion:
    """The version that a reference names; as this node last saw it, if the registry cannot be reached."""
    remembered = registry.remembered(reference.name)
    if reference.digest is not None and (version := _find(remembered, reference)):
        return version  # a digest names the same version for ever
    try:
        return registry.read(reference.name).state.resolve(reference)
    except Unavailable as error:
        version = _find(remembered, reference)
        if version is None:
            raise
        reporter.note(
            f"warning: the registry cannot be reached ({error}); {reference} is version {version.number} "
            f"as this node saw it at {remembered.events[-1].time}"
        )
        return version


def pull(node: Node, reference: Reference, *, to: Path | None = None, keep: bool = False) -> Snapshot:
    """Gets what this node lacks of a version, verifies every chunk, and gives the directory its name last.

    In the cache, the snapshot stays for half an hour, or for good with ``keep``, so that its path can be used.
    """
    version = resolve(node.registry, reference, node.reporter)
    if to is not None:
        from packtrain.flows.fetch import fetch_to

        return fetch_to(node, version, to.absolute())
    snapshot, pin = hold(node, version)
    with pin:
        if keep:
            node.cache.keep(version.digest)
        try:
            node.cache.lease(version.digest)
        except LocalDiskError as error:
            node.reporter.note(f"warning: {error}: another pull may evict {version} before it is opened")
    return snapshot


def hold(node: Node, version: ModelVersion) -> tuple[Snapshot, Pin]:
    """The snapshot of a version, fetched if it must be, and the pin that keeps it. The pin comes first, so that
    nothing evicts the snapshot between a look at it and its use."""
    cache, digest = node.cache, version.digest
    cache.sweep()
    pin = cache.pin(digest)
    try:
        snapshot = Snapshot(cache.path(digest), version, 0)
        if not (cache.holds(digest) and cache.trusts(digest)):
            waiting = f"waiting: another process pulls {version}"
            with cache.fetching(digest, on_wait=lambda: node.reporter.note(waiting)):
                if not _is_good(cache, version, pin, node.reporter):
                    from packtrain.flows.fetch import fetch  # what is cached needs none of it

                    snapshot = fetch(node, version)
        cache.touch(digest)
        cache.settle_written()
    except BaseException:
        pin.release()
        raise
    return snapshot, pin


def _is_good(cache: Cache, version: ModelVersion, pin: Pin, reporter: Reporter) -> bool:
    """Whether the snapshot is there and may be used. One that is not known to have survived a restart is read back;
    a bad one goes."""
    digest = version.digest
    if not cache.holds(digest) or cache.trusts(digest):
        return cache.holds(digest)
    reporter.note(f"checking the cached copy of {version}, which was not yet on the disk when this machine restarted")
    try:
        check_snapshot(cache, digest, reporter)
    except IntegrityError as error:
        if not cache.discard(digest, pin):
            raise IntegrityError(
                f"{error}, and another process uses it", hint="Stop the engines that serve it, then pull it again."
            ) from error
        reporter.note(f"warning: {error}; fetching it again")
        return False
    return True


def check_snapshot(cache: Cache, digest: Digest, reporter: Reporter) -> None:
    """Reads every byte of a snapshot and puts it onto the disk. Only under a pin. Raises IntegrityError."""
    from packtrain.flows import integrity

    integrity.check_directory(cache.path(digest), cache.manifest(digest), reporter)
    cache.settle(digest)


def _find(log: Log, reference: Reference) -> ModelVersion | None:
    try:
        return log.state.resolve(reference)
    except NotFound:
        return None
