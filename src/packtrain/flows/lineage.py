"""Where a version came from, followed as far as it is published."""

from __future__ import annotations

from packtrain.errors import NotFound, UsageError
from packtrain.flows import bases
from packtrain.flows.catalog import read_lineage
from packtrain.model.ancestry import Ancestry, Generation, promotions
from packtrain.model.digest import Digest
from packtrain.model.lineage import Lineage
from packtrain.model.reference import Reference
from packtrain.model.version import ModelVersion
from packtrain.ports import Registry, Store


def trace(store: Store, registry: Registry, reference: Reference) -> Ancestry:
    """A version, its base, the base's base and so on. Raises NotFound for the first; the line ends where a base is
    not published, or not known."""
    version: ModelVersion | None = registry.read(reference.name).state.resolve(reference)
    generations: list[Generation] = []
    while version is not None and version.digest not in {each.version.digest for each in generations}:
        lineage = read_lineage(store, version)
        made_here = promotions(registry.read(version.name), version.number)
        generations.append(Generation(version, made_here, lineage))
        version = _base(registry, lineage)
    return tuple(generations)


def _base(registry: Registry, lineage: Lineage | None) -> ModelVersion | None:
    """The published version that a version was made from: as its lineage names it (an adapter's does what its ledger
    does), or whichever holds those bytes by now."""
    parent = lineage.base if lineage else None
    if parent is None:
        return None
    if parent.version is not None:
        return _find(registry, parent.version, parent.digest)
    return bases.holder(registry, Digest.parse(parent.payload)) if parent.payload else None


def _find(registry: Registry, name: str, digest: str | None) -> ModelVersion | None:
    """The version of that name, if it is still there and still the same bytes."""
    try:
        reference = Reference.parse(name)
        version = registry.read(reference.name).state.resolve(reference)
    except (UsageError, NotFound):
        return None
    return version if str(version.digest) == digest else None
