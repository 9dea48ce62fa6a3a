"""What is there: models, versions with their lineage, and where a version's bytes are."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from packtrain.errors import IntegrityError, NotFound
from packtrain.model.digest import Digest
from packtrain.model.golden import Golden
from packtrain.model.ledger import GOLDEN, Event, State
from packtrain.model.lineage import Lineage, record_key
from packtrain.model.reference import Reference, check_name
from packtrain.model.version import ModelVersion
from packtrain.ports import Registry, Store

_READERS = 16


@dataclass(frozen=True, slots=True)
class Entry:
    """A version as people look at it."""

    version: ModelVersion
    aliases: tuple[str, ...]
    lineage: Lineage | None


def models(store: Store, registry: Registry, name: str | None = None) -> list[Entry]:
    """Every version of every registered model (or of one), by name and newest first. Raises NotFound."""
    names = [check_name(name)] if name else registry.names()
    with ThreadPoolExecutor(_READERS) as pool:
        states = [log.state for log in pool.map(registry.read, names)]
        if name and not states[0].versions:
            raise _no_model(name)
        versions = [(state, state.versions[n]) for state in states for n in sorted(state.versions, reverse=True)]
        lineages = pool.map(lambda pair: read_lineage(store, pair[1]), versions)
        return [
            Entry(version, tuple(state.aliases_of(version.number)), lineage)
            for (state, version), lineage in zip(versions, lineages, strict=True)
        ]


def show(store: Store, registry: Registry, reference: Reference) -> Entry:
    """One version. Raises NotFound."""
    state = registry.read(reference.name).state
    version = state.resolve(reference)
    return Entry(version, tuple(state.aliases_of(version.number)), read_lineage(store, version))


def history(registry: Registry, name: str) -> list[Event]:
    """Everything that happened to a registered model, oldest first. Raises NotFound."""
    log = registry.read(check_name(name))
    if not log.events:
        raise _no_model(name)
    return log.events


def url(store: Store, registry: Registry, reference: Reference) -> str:
    """The immutable URL of a version's directory in the store."""
    return store.locate(registry.read(reference.name).state.resolve(reference).prefix)


def read_lineage(store: Store, version: ModelVersion) -> Lineage | None:
    """The lineage record of a version, or None if none is attached. Raises IntegrityError if it was changed."""
    if version.lineage is None:
        return None
    return Lineage.decode(store.get(record_key(version.name, version.lineage)), expect=version.lineage)


def read_golden(store: Store, state: State, version: ModelVersion) -> Golden | None:
    """The golden outputs of a version, or None if none were recorded. Raises IntegrityError if they were changed, or
    belong to another."""
    return golden_of(
        state, version, lambda record: Golden.decode(store.get(record_key(version.name, record)), expect=record)
    )


def golden_of(state: State, version: ModelVersion, load: Callable[[Digest], Golden]) -> Golden | None:
    """As `read_golden`, of a record that ``load`` gets by its name."""
    record = state.records.get(version.digest, {}).get(GOLDEN)
    if record is None:
        return None
    golden = load(record)
    if golden.digest != version.digest:
        raise IntegrityError(f"the golden record {record}, attached to {version}, is of {golden.digest}")
    return golden


def _no_model(name: str) -> NotFound:
    return NotFound(f"there is no registered model {name}", hint="packtrain models lists what exists.")
