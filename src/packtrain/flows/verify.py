"""Whether everything that the registry names is there and is what it was."""

from __future__ import annotations

from dataclasses import dataclass

from packtrain.errors import IntegrityError, NotFound
from packtrain.flows import integrity
from packtrain.flows.catalog import read_lineage
from packtrain.flows.fetch import read_manifest
from packtrain.model.reference import check_name
from packtrain.model.version import ModelVersion, how_to_mend
from packtrain.ports import Clock, Registry, Reporter, Store


@dataclass(frozen=True, slots=True)
class Verified:
    """What held for one registered model. ``bytes_read`` is 0 unless every byte was asked for."""

    name: str
    events: int
    versions: int
    bytes_read: int


def verify(
    store: Store, registry: Registry, name: str | None, *, every_byte: bool, reporter: Reporter, clock: Clock
) -> list[Verified]:
    """Walks the chain, the records and the manifests of one model or of all, and every byte if asked.

    Raises IntegrityError naming the first thing that does not hold. Archived versions are not asked for their bytes.
    """
    return [
        _verify_model(store, registry, each, every_byte, reporter, clock)
        for each in ([check_name(name)] if name else registry.names())
    ]


def _verify_model(
    store: Store, registry: Registry, name: str, every_byte: bool, reporter: Reporter, clock: Clock
) -> Verified:
    log = registry.audit(name)
    if not log.events:
        raise NotFound(f"there is no registered model {name}", hint="packtrain models lists what exists.")
    live = [version for version in log.state.versions.values() if not version.archived]
    for version in live:
        _verify_version(store, version, every_byte, reporter, clock)
    total = sum(version.size for version in live) if every_byte else 0
    return Verified(name, events=len(log.events), versions=len(live), bytes_read=total)


def _verify_version(store: Store, version: ModelVersion, every_byte: bool, reporter: Reporter, clock: Clock) -> None:
    manifest = read_manifest(store, version)
    if manifest.payload != version.payload or manifest.kind != version.kind or manifest.size != version.size:
        raise IntegrityError(f"{version} is registered as something other than its manifest says")
    sizes = {info.key.removeprefix(version.prefix): info.size for info in store.list(version.prefix)}
    for file in manifest.files:
        if sizes.get(file.path) != file.size:
            found = f"has {sizes[file.path]} bytes" if file.path in sizes else "is missing"
            raise IntegrityError(
                f"{file.path} of {version} {found}; its manifest says {file.size} bytes",
                hint=how_to_mend(version.name),
            )
    try:
        read_lineage(store, version)
    except NotFound as error:
        raise IntegrityError(
            f"the lineage record of {version} is missing from the store",
            hint=f"{how_to_mend(version.name)} Give --training-config and --training-dir as they were given then.",
        ) from error
    if every_byte:
        reporter.note(f"reading every byte of {version}")
        integrity.check_stored(store, version.prefix, manifest, reporter, clock)
