"""What a store holds already of the bytes of a new version: in earlier versions of the model, and in its base."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from packtrain.errors import IntegrityError, NotFound
from packtrain.flows.fetch import read_manifest
from packtrain.model.digest import Digest
from packtrain.model.ledger import State
from packtrain.model.manifest import FileEntry, Manifest
from packtrain.model.sourcing import AtHand, Place, find_at_hand
from packtrain.model.version import BaseVersion, ModelVersion, version_prefix
from packtrain.ports import Registry, Store

NEWEST = 4  # versions of the same name that are looked at


@dataclass(frozen=True, slots=True)
class Copyable:
    """Where the store has what is in a manifest. ``prefixes``: the keys of versions, by their digests."""

    manifest: Manifest
    at_hand: AtHand = field(default_factory=AtHand)
    prefixes: Mapping[Digest, str] = field(default_factory=dict)

    def key(self, place: Place) -> str:
        return f"{self.prefixes[place.snapshot]}{place.path}"

    def of(self, entry: FileEntry) -> dict[int, Place]:
        """Where the chunks of one of the manifest's files are, by their indexes in it."""
        first = 0
        for file in self.manifest.files:
            if file.path == entry.path:
                chunks = self.at_hand.chunks
                return {i: chunks[first + i] for i in range(len(file.chunks)) if first + i in chunks}
            first += len(file.chunks)
        return {}


def find_copyable(
    store: Store, registry: Registry, state: State, manifest: Manifest, base: BaseVersion | None
) -> Copyable:
    """Looks into the newest versions of the same registered model, and into the base."""
    live = [version for _, version in sorted(state.versions.items(), reverse=True) if not version.archived]
    others = [version for version in live if version.digest != manifest.digest]
    looked_at = [*others[:NEWEST], *_base(registry, base)]
    at_hand = find_at_hand(manifest, _manifests(store, looked_at))
    prefixes = {version.digest: version_prefix(version.name, version.digest) for version in looked_at}
    return Copyable(manifest, at_hand, prefixes)


def _base(registry: Registry, base: BaseVersion | None) -> Iterator[ModelVersion]:
    if base is not None:
        version = registry.read(base.name).state.versions.get(base.version)
        if version is not None and version.digest == base.digest and not version.archived:
            yield version


def _manifests(store: Store, versions: Iterable[ModelVersion]) -> Iterator[tuple[Digest, Manifest]]:
    for version in versions:
        with suppress(NotFound, IntegrityError):  # `packtrain verify` tells; here it only costs bytes
            yield version.digest, read_manifest(store, version)
