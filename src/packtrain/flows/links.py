"""``serve/<name>/by-alias/production`` and ``serve/<name>/by-version/3``: symbolic links to versions' directories.

They are for people and for a plain ``vllm serve``, in stores that are directories. They are a projection of the
ledger, which decides: Packtrain makes them and never reads one to find a version.

Whoever changed the ledger projects it, then reads the ledger again and, if it moved meanwhile, projects anew. So the
last of racing projectors has seen every event whose own projector is done, and the links converge on the ledger. A
projector that dies between leaves a stale link until the next change, or until `mend`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta

from packtrain.errors import PacktrainError
from packtrain.model.ledger import MOVES, Decide, Event, Log, State
from packtrain.ports import Registry, Reporter, Store
from packtrain.storage.directory import TEMPORARY, DirectoryStore

ABANDONED = timedelta(days=1)  # without a write, after which an unfinished file's writer is taken for dead

_FOLDER = "serve/"
_OURS = re.compile(r"serve/([A-Za-z0-9][A-Za-z0-9._-]{0,127})/by-(?:alias|version)/[^/]+")
_MOVING = MOVES | {"version.created", "version.archived"}


@dataclass(frozen=True, slots=True)
class Stray:
    """Something in a store that is not as the ledger says: where (a key), and what about it. ``dead``: nothing is to be
    there."""

    key: str
    what: str
    dead: bool = False


def expected(state: State) -> dict[str, str]:
    """The links of a registered model, by key: what each says. Archived versions have none."""
    folder = f"{_FOLDER}{state.name}"
    targets = {
        number: f"../../../{version.prefix.removesuffix('/')}"
        for number, version in state.versions.items()
        if not version.archived
    }
    by_version = {f"{folder}/by-version/{number}": target for number, target in targets.items()}
    by_alias = {f"{folder}/by-alias/{alias}": targets[number] for alias, number in state.aliases.items()}
    return by_version | by_alias


def project(store: Store, registry: Registry, log: Log, reporter: Reporter) -> None:
    """Makes the links of a registered model what its ledger says; ``log`` is that ledger as it was just read.

    Does nothing where the store is no directory. The ledger counts, so a failure is a note and not an error.
    """
    if store.directory is None:
        return
    try:
        _converge(DirectoryStore(store.directory), registry, log)
    except PacktrainError as error:
        reporter.note(
            f"warning: the links in {store.locate(_FOLDER + log.name)} are not up to date: {error}. Packtrain itself "
            "does not use them; `packtrain doctor` mends them"
        )


def stray(store: Store, registry: Registry, *, now: datetime) -> list[Stray]:
    """Links that are missing, say something else than the ledger, or stand for nothing in it; and the hidden files
    that dead writers left. Nothing where the store is no directory."""
    if store.directory is None:
        return []
    directory = DirectoryStore(store.directory)
    there = _links(directory, _FOLDER)  # first: a link comes after its event, so the ledger that is read now knows it
    right: dict[str, str] = {}
    for name in registry.names():
        right |= expected(registry.read(name).state)
    return [
        *(
            Stray(key, _difference(there.get(key), right.get(key)), dead=key not in right)
            for key in sorted(_differing(there, right))
        ),
        *(
            Stray(f"{TEMPORARY}/{name}", f"a writer's unfinished file, untouched since {modified:%Y-%m-%d}", dead=True)
            for name, modified in sorted(directory.unfinished().items())
            if now - modified > ABANDONED
        ),
    ]


def mend(store: Store, registry: Registry, strays: list[Stray]) -> None:
    """Makes right what `stray` found. Raises PacktrainError at what cannot be mended."""
    if store.directory is None:
        return
    directory = DirectoryStore(store.directory)
    for name in sorted({found[1] for each in strays if (found := _OURS.fullmatch(each.key))}):
        _converge(directory, registry, registry.read(name))
    for each in strays:
        if each.key.startswith(f"{TEMPORARY}/"):
            directory.discard_unfinished(each.key.removeprefix(f"{TEMPORARY}/"))


class LinkingRegistry:
    """A `Registry` in which every change of versions and aliases is followed by its projection."""

    def __init__(self, inner: Registry, store: Store, reporter: Reporter) -> None:
        self._inner = inner
        self._store = store
        self._reporter = reporter

    def names(self) -> list[str]:
        return self._inner.names()

    def read(self, name: str) -> Log:
        return self._inner.read(name)

    def known(self) -> list[str]:
        return self._inner.known()

    def remembered(self, name: str) -> Log:
        return self._inner.remembered(name)

    def audit(self, name: str) -> Log:
        return self._inner.audit(name)

    def change(self, name: str, decide: Decide) -> tuple[Log, Event | None]:
        log, event = self._inner.change(name, decide)
        if event is None or event.action in _MOVING:  # None: perhaps whoever wrote it died before this
            project(self._store, self._inner, log, self._reporter)
        return log, event


def _converge(directory: DirectoryStore, registry: Registry, log: Log) -> None:
    while True:
        there, right = _links(directory, f"{_FOLDER}{log.name}/"), expected(log.state)
        for key in sorted(_differing(there, right)):
            if key in right:
                directory.set_link(key, right[key])
            else:
                directory.remove_link(key)
        newer = registry.read(log.name)
        if newer.head == log.head:
            return
        log = newer


def _links(directory: DirectoryStore, prefix: str) -> dict[str, str]:
    return {key: target for key, target in directory.links(prefix).items() if _OURS.fullmatch(key)}


def _differing(there: dict[str, str], right: dict[str, str]) -> set[str]:
    return {key for key in there.keys() | right.keys() if there.get(key) != right.get(key)}


def _difference(there: str | None, right: str | None) -> str:
    if there is None:
        return f"is missing; it should point at {right}"
    if right is None:
        return f"points at {there}, but nothing of that name is in the ledger"
    return f"points at {there} and should point at {right}"
