"""One immutable, numbered entry of a registered model, as the ledger's fold gives it."""

from __future__ import annotations

from dataclasses import dataclass

from packtrain.model.digest import Digest


@dataclass(frozen=True, slots=True)
class BaseVersion:
    """The published version that an adapter needs."""

    name: str
    version: int
    digest: Digest

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """``size`` in bytes; ``created`` as RFC 3339 in UTC; ``code`` whether custom code was allowed at publish;
    ``lineage`` the digest of its lineage record, if one is attached; ``archived_at`` when it was archived, if it was;
    ``collected``: its bytes are gone for good, or about to go."""

    name: str
    number: int
    digest: Digest
    payload: Digest
    kind: str
    size: int
    created: str
    actor: str
    code: bool = False
    base: BaseVersion | None = None
    lineage: Digest | None = None
    archived_at: str | None = None
    collected: bool = False

    def __str__(self) -> str:
        return f"{self.name}/{self.number}"

    @property
    def archived(self) -> bool:
        return self.archived_at is not None

    @property
    def prefix(self) -> str:
        """Where its directory is in the store."""
        return version_prefix(self.name, self.digest)


def version_prefix(name: str, digest: Digest) -> str:
    """The directory of a version in the store, with a slash at its end."""
    return f"models/{name}/{digest.hex}/"


def how_to_mend(name: str) -> str:
    """What to do about damage in the store: the hint of every error that finds some."""
    return (
        f"Mend it from the directory that was published: packtrain publish DIR --name {name} --repair; "
        "or restore it from a backup of the store."
    )
