"""A version becomes a complete, verified, read-only directory on this node."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from packtrain.cache import Cache, Naming, Partial, Pin
from packtrain.errors import (
    IntegrityError,
    LocalDiskError,
    NotFound,
    PacktrainError,
    Refused,
    Unavailable,
    disk_error,
)
from packtrain.flows import integrity
from packtrain.flows.download import Limits, StoreSource
from packtrain.flows.fetching import fetch
from packtrain.flows.naming import namer
from packtrain.model.digest import Digest
from packtrain.model.ledger import Log
from packtrain.model.manifest import FILE_NAME, Manifest, refuse_unsafe
from packtrain.model.reference import Reference
from packtrain.model.version import ModelVersion, how_to_mend
from packtrain.ports import Clock, Registry, Reporter, Store


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A complete, read-only directory. ``fetched`` bytes came from the store for it (0: it was here).

    ``in_place``: it is the store's own. ``verified``: every byte was checked; always so for a copy.
    """

    path: Path
    version: ModelVersion
    fetched: int
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


def pull(
    store: Store,
    registry: Registry,
    cache: Cache,
    reference: Reference,
    *,
    reporter: Reporter,
    clock: Clock,
    to: Path | None = None,
    keep: bool = False,
) -> Snapshot:
    """Fetches what this node lacks of a version, verifies every chunk, and gives the directory its name last.

    In the cache, the snapshot stays for half an hour, or for good with ``keep``, so that its path can be used.
    """
    version = resolve(registry, reference, reporter)
    if to is not None:
        return _pull_to(store, cache, version, to.absolute(), reporter, clock)
    snapshot, pin = hold(store, registry, cache, version, reporter=reporter, clock=clock)
    with pin:
        if keep:
            cache.keep(version.digest)
        try:
            cache.lease(version.digest)
        except LocalDiskError as error:
            reporter.note(f"warning: {error}: another pull may evict {version} before it is opened")
    return snapshot


def hold(
    store: Store, registry: Registry, cache: Cache, version: ModelVersion, *, reporter: Reporter, clock: Clock
) -> tuple[Snapshot, Pin]:
    """The snapshot of a version, fetched if it must be, and the pin that keeps it. The pin comes first, so that
    nothing evicts the snapshot between a look at it and its use."""
    cache.sweep()
    pin = cache.pin(version.digest)
    try:
        fetched = 0
        if not (cache.holds(version.digest) and cache.trusts(version.digest)):
            waiting = f"waiting: another process pulls {version}"
            with cache.fetching(version.digest, on_wait=lambda: reporter.note(waiting)):
                if not _is_good(cache, version, pin, reporter):
                    fetched = _fetch(store, cache, version, namer(registry, version), reporter, clock)
        cache.touch(version.digest)
        cache.settle_written()
    except BaseException:
        pin.release()
        raise
    return Snapshot(cache.path(version.digest), version, fetched), pin


def read_manifest(store: Store, version: ModelVersion) -> Manifest:
    """The manifest of a version, checked against its digest and against law 8."""
    key = version.prefix + FILE_NAME
    try:
        data = store.get(key)
    except NotFound as error:
        raise IntegrityError(
            f"the manifest of {version} is missing: {store.locate(key)}",
            hint=how_to_mend(version.name),
        ) from error
    try:
        manifest = Manifest.decode(data, expect=version.digest, what=store.locate(key))
    except IntegrityError as error:
        if Digest.of(data) != version.digest:  # else it is whole, and written by another Packtrain
            error.hint = how_to_mend(version.name)
        raise
    refuse_unsafe((file.path for file in manifest.files), allow_code=version.code, what=str(version))
    return manifest


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
    integrity.check_directory(cache.path(digest), cache.manifest(digest), reporter)
    cache.settle(digest)


def _fetch(
    store: Store,
    cache: Cache,
    version: ModelVersion,
    name_of: Naming,
    reporter: Reporter,
    clock: Clock,
) -> int:
    """Makes the version a snapshot. Returns the bytes that came from the store."""
    manifest = read_manifest(store, version)
    partial = cache.begin(version.digest, manifest, name_of=name_of)
    fetched = _complete(store, version, manifest, partial, reporter, clock)
    cache.admit(version.digest, partial)
    return fetched


def _pull_to(
    store: Store, cache: Cache, version: ModelVersion, target: Path, reporter: Reporter, clock: Clock
) -> Snapshot:
    """A directory of the user's own, completed beside its place and renamed into it."""
    with cache.fetching(version.digest, on_wait=lambda: reporter.note(f"waiting: another process pulls {version}")):
        manifest = read_manifest(store, version)
        if _is_occupied(target):
            if not _holds(target, version):
                raise Refused(
                    f"{target} is not empty and does not hold {version}; nothing was written",
                    hint="Give --to a folder that does not exist yet.",
                )
            integrity.check_directory(target, manifest, reporter)
            return Snapshot(target, version, 0)
        partial = Partial(target.parent / f".{target.name}.{version.digest.short}.partial", manifest, cache.boot)
        fetched = _complete(store, version, manifest, partial, reporter, clock)
        partial.publish_as(target)
        return Snapshot(target, version, fetched)


def _is_occupied(target: Path) -> bool:
    """Whether it is a directory that is not empty. Raises LocalDiskError if it cannot become one."""
    try:
        return any(target.iterdir())
    except FileNotFoundError:
        return False
    except OSError as error:
        raise disk_error(error, f"{target} cannot be used as a folder") from error


def _complete(
    store: Store, version: ModelVersion, manifest: Manifest, partial: Partial, reporter: Reporter, clock: Clock
) -> int:
    """Fetches what ``partial`` lacks. After wrong bytes nothing stays; after any other failure it can go on."""
    try:
        return fetch([StoreSource(store, version.prefix)], manifest, partial, Limits(), reporter, clock)
    except IntegrityError:
        partial.discard()
        raise
    except BaseException:
        partial.close()
        raise


def _holds(directory: Path, version: ModelVersion) -> bool:
    try:
        Manifest.decode((directory / FILE_NAME).read_bytes(), expect=version.digest)
    except (OSError, PacktrainError):
        return False
    return True


def _find(log: Log, reference: Reference) -> ModelVersion | None:
    try:
        return log.state.resolve(reference)
    except NotFound:
        return None
