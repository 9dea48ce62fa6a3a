"""A version becomes a complete, verified, read-only directory on this node."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from packtrain.cache import Cache, Partial
from packtrain.errors import IntegrityError, NotFound, PacktrainError, Refused, Unavailable, disk_error
from packtrain.flows import transfer
from packtrain.model.ledger import Log
from packtrain.model.manifest import FILE_NAME, Manifest, refuse_unsafe
from packtrain.model.reference import Reference
from packtrain.model.version import ModelVersion
from packtrain.ports import Clock, Registry, Reporter, Store


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A complete, verified, read-only directory. ``fetched`` bytes came from the store for it (0: it was here)."""

    path: Path
    version: ModelVersion
    fetched: int


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
) -> Snapshot:
    """Fetches what this node lacks of a version, verifies every chunk, and gives the directory its name last."""
    version = resolve(registry, reference, reporter)
    if to is not None:
        return _pull_to(store, cache, version, to.absolute(), reporter, clock)
    if cache.holds(version.digest) and cache.trusts(version.digest):
        cache.tidy(version.digest)
        return Snapshot(cache.path(version.digest), version, 0)
    with cache.fetching(version.digest, on_wait=lambda: reporter.note(f"waiting: another process pulls {version}")):
        if cache.holds(version.digest) and _still_good(cache, version, reporter):
            return Snapshot(cache.path(version.digest), version, 0)
        manifest = read_manifest(store, version)
        partial = cache.partial(version.digest, manifest)
        fetched = _complete(store, version, manifest, partial, reporter, clock)
        return Snapshot(cache.admit(version.digest, partial), version, fetched)


def read_manifest(store: Store, version: ModelVersion) -> Manifest:
    """The manifest of a version, checked against its digest and against law 8."""
    key = version.prefix + FILE_NAME
    try:
        data = store.get(key)
    except NotFound as error:
        raise IntegrityError(
            f"the manifest of {version} is missing: {store.locate(key)}",
            hint="The store was changed by something other than Packtrain. Publish the version again.",
        ) from error
    manifest = Manifest.decode(data, expect=version.digest, what=store.locate(key))
    refuse_unsafe((file.path for file in manifest.files), allow_code=version.code, what=str(version))
    return manifest


def _still_good(cache: Cache, version: ModelVersion, reporter: Reporter) -> bool:
    """Whether a snapshot that is there may be used; one from before a reboot is read back, a bad one goes."""
    if cache.trusts(version.digest):
        return True
    reporter.note(f"checking the cached copy of {version}, which was not yet on the disk when this machine restarted")
    try:
        transfer.check_directory(cache.path(version.digest), cache.manifest(version.digest), reporter)
    except IntegrityError as error:
        reporter.note(f"warning: {error}; fetching it again")
        cache.discard(version.digest)
        return False
    cache.vouch(version.digest)
    return True


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
            transfer.check_directory(target, manifest, reporter)
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
        return transfer.fetch(store, version.prefix, manifest, partial, reporter, clock)
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
