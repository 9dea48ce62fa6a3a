"""Damage in the store is mended from the original: the version stays what it is, bit by bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from packtrain.errors import IntegrityError, NotFound, Refused
from packtrain.flows import bases, catalog, integrity
from packtrain.flows.copyable import Copyable
from packtrain.flows.hashing import hash_files
from packtrain.flows.publish import Request, lineage_of
from packtrain.flows.sources import LocalDirectory, NewFile, files_of
from packtrain.flows.storing import Load, Wrong, find_lacking, find_wrong, send, settle
from packtrain.model.digest import Digest
from packtrain.model.ledger import State
from packtrain.model.lineage import record_key
from packtrain.model.manifest import FILE_NAME, FileEntry, Manifest
from packtrain.model.reference import check_name
from packtrain.model.version import ModelVersion
from packtrain.ports import Registry, Reporter, Store
from packtrain.training.checkpoint import Checkpoint, inspect


@dataclass(frozen=True, slots=True)
class Repaired:
    """What was done for one version. ``checked`` in bytes; ``mended`` are paths in its directory or ``lineage record``,
    none if all was right. ``lineage`` is False if its record is damaged and could not be made again."""

    version: ModelVersion
    checked: int
    mended: tuple[str, ...]
    lineage: bool


def repair(store: Store, registry: Registry, request: Request, *, reporter: Reporter) -> list[Repaired]:
    """Reads every byte that the store holds of the versions that were made of this directory, puts right what is
    missing or damaged, and reads that again. Makes no version and writes no event; preflight is not asked.

    Raises Refused if no version holds these exported bytes, and IntegrityError for what cannot be made of them.
    """
    name = check_name(request.name)
    checkpoint = inspect(request.directory)
    files = files_of(checkpoint, LocalDirectory(checkpoint))
    entries = hash_files(files, reporter)
    payload = Manifest.of(checkpoint.kind, entries).payload
    state = registry.read(name).state
    versions = {v.digest: v for _, v in sorted(state.versions.items()) if v.payload == payload and not v.archived}
    if not versions:
        raise Refused(
            f"no version of {name} holds what is in {request.directory}; nothing was changed",
            hint=f"Give the directory that the version was published from. The payload of this one is {payload}; "
            f"that of a version is shown by: packtrain show {name}/VERSION",
        )
    made = _Made(registry, state, checkpoint, request, reporter)
    return [_repair(store, version, files, entries, made, reporter) for version in versions.values()]


class _Made:
    """What publish makes of the request besides files. Only made when it is needed: the base may have to be hashed."""

    def __init__(
        self, registry: Registry, state: State, checkpoint: Checkpoint, request: Request, reporter: Reporter
    ) -> None:
        self.state = state
        self._registry = registry
        self._checkpoint = checkpoint
        self._request = request
        self._reporter = reporter

    @cached_property
    def base(self) -> bases.ResolvedBase:
        return bases.resolve(self._checkpoint, self._request.base, self._registry, self._reporter)

    @cached_property
    def lineage(self) -> bytes:
        lineage = self.base.note(lineage_of(self._checkpoint, self._request, self._reporter))
        found = bases.identify(lineage, self._request.folders, self._registry, self._reporter)
        return self.state.uncondemned_record(found.encode())


def _repair(
    store: Store,
    version: ModelVersion,
    files: Sequence[NewFile],
    entries: Sequence[FileEntry],
    made: _Made,
    reporter: Reporter,
) -> Repaired:
    reporter.note(f"reading every byte of {version}")
    manifest = _manifest(store, version, entries, made)
    wrong = find_wrong(store, version.prefix, manifest, reporter)
    _require_makeable(version, wrong, entries)
    by_path = {file.path: file for file in files}
    send(store, Load(version.prefix, by_path, {}, Copyable(manifest), lambda: None), wrong.all, reporter)
    mended = [entry.path for entry in wrong.all]
    if settle(store, version.prefix + FILE_NAME, manifest.encode()):
        mended.append(FILE_NAME)
    if still := [*find_lacking(store, version.prefix, manifest), *_damaged(store, version, wrong, reporter)]:
        raise IntegrityError(
            f"{still[0].path} of {version} was sent to the store again, and is still not what it should be",
            hint=f"Look at the store's disks and log: {store.locate(version.prefix)}",
        )
    lineage, written = _mend_lineage(store, version, made)
    if written:
        mended.append("lineage record")
    return Repaired(version, manifest.size, tuple(sorted(mended)), lineage)


def _damaged(store: Store, version: ModelVersion, wrong: Wrong, reporter: Reporter) -> list[FileEntry]:
    """What was sent, read once more; the rest was read and right a moment ago."""
    return integrity.find_damaged(store, version.prefix, wrong.all, reporter)


def _manifest(store: Store, version: ModelVersion, entries: Sequence[FileEntry], made: _Made) -> Manifest:
    """The version's manifest: as it is stored, or if that is damaged made again."""
    key = version.prefix + FILE_NAME
    try:
        return Manifest.decode(store.get(key), expect=version.digest, what=store.locate(key))
    except (NotFound, IntegrityError) as error:
        manifest = made.state.uncondemned(Manifest.of(version.kind, entries, made.base.for_manifest(version.kind)))
        if manifest.digest == version.digest:
            return manifest
        raise IntegrityError(
            f"the manifest of {version} is missing or damaged, and what was given makes another one",
            hint="Give --base as it was given when the version was published. If it was published by another "
            f"release of Packtrain, use that one, or restore {store.locate(key)} from a backup.",
        ) from error


def _require_makeable(version: ModelVersion, wrong: Wrong, entries: Sequence[FileEntry]) -> None:
    """Everything exported is, because the payload is the same; what publish generated may have changed since."""
    ours = {entry.path: entry.sha256 for entry in entries}
    for entry in wrong.all:
        if ours.get(entry.path) != entry.sha256:
            raise IntegrityError(
                f"{entry.path} of {version} is damaged, and this release of Packtrain generates another one",
                hint="Use the release that published the version, or restore the file from a backup of the store.",
            )


def _mend_lineage(store: Store, version: ModelVersion, made: _Made) -> tuple[bool, bool]:
    """Whether the lineage record is right now, and whether it had to be written."""
    try:
        catalog.read_lineage(store, version)
        return True, False
    except (NotFound, IntegrityError):
        if version.lineage is None or Digest.of(made.lineage) != version.lineage:
            return False, False
        return True, settle(store, record_key(version.name, version.lineage), made.lineage)
