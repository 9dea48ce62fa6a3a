"""What people call the versions that are in a cache, which knows only digests."""

from __future__ import annotations

from packtrain.cache import Naming
from packtrain.model.digest import Digest
from packtrain.model.version import ModelVersion
from packtrain.ports import Registry


def known_as(registry: Registry) -> dict[Digest, list[str]]:
    """Every version that this node has seen in a ledger. Asks no registry: the cache outlives its absence."""
    found: dict[Digest, list[str]] = {}
    for name in registry.known():
        for version in registry.remembered(name).state.versions.values():
            found.setdefault(version.digest, []).append(str(version))
    return found


def namer(registry: Registry, *versions: ModelVersion) -> Naming:
    """Gives the name of one of ``versions``, or what this node knows it as, or the digest."""
    given = {version.digest: str(version) for version in versions}

    def name_of(digest: Digest) -> str:
        return given.get(digest) or ", ".join(known_as(registry).get(digest, ())) or f"sha256:{digest.short}"

    return name_of
