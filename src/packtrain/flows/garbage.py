"""What an inventory of a store found, sorted: what goes, what stays for now, and what is not ours; each with why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from datetime import timedelta

from packtrain.errors import NotFound
from packtrain.flows import inventory
from packtrain.flows.inventory import Inventory
from packtrain.model.digest import Digest
from packtrain.model.lease import lease_prefix
from packtrain.model.ledger import State, timestamp
from packtrain.model.reachability import SKEW, World, epitaph, epitaph_of_record
from packtrain.model.version import version_prefix
from packtrain.ports import OpenUpload, Store

EXPIRED = timedelta(days=1)  # after its end, before a lease's object goes
STALE = timedelta(days=1)  # after its begin, before an upload by parts of a version that is there may be aborted
FORGOTTEN = timedelta(hours=1)  # a probe of `packtrain doctor`


@dataclass(frozen=True, slots=True)
class Garbage:
    """Something that goes: ``what`` kind of thing, ``where`` (a key of the store, or a path), bytes, and why it is not
    reachable."""

    what: str
    where: str
    size: int
    why: str


@dataclass(frozen=True, slots=True)
class Kept:
    """Something that no live version names, and that stays: until a moment, or as long as something needs it."""

    what: str
    where: str
    size: int
    why: str
    until: str | None


@dataclass(frozen=True, slots=True)
class Stranger:
    """Something in the store that is not ours to judge."""

    where: str
    why: str


@dataclass(frozen=True, slots=True)
class Collected:
    """What went, or after a dry run would go."""

    garbage: tuple[Garbage, ...]
    kept: tuple[Kept, ...]
    strangers: tuple[Stranger, ...]
    dry_run: bool

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(each.size for each in self.garbage)


class Things:
    """What an inventory found, sorted into what goes, what stays and what is not ours."""

    def __init__(
        self, store: Store, world: World, found: Inventory, condemned: Mapping[str, Set[Digest]], dry_run: bool
    ) -> None:
        self._store = store
        self._world = world
        self._found = found
        self._condemned = condemned
        self._dry_run = dry_run
        self.kept: list[Kept] = []

    def folders(self) -> Iterator[Garbage]:
        for (name, digest), folder in sorted(self._found.folders.items()):
            state, where = self._state(name), version_prefix(name, digest)
            what = "version" if state.versions_of(digest) else "upload"
            if digest in self._condemned.get(name, ()):
                reader = self._reader(name, digest)
                if reader is None:
                    yield Garbage(what, where, folder.size, epitaph(state, digest))
                else:
                    self.kept.append(Kept(what, where, folder.size, *reader))
            elif digest in state.known and all(version.archived for version in state.versions_of(digest)):
                hold = self._world.hold(state, digest)
                if hold is not None:  # else it came to life a moment ago
                    self.kept.append(Kept(what, where, folder.size, hold.why, hold.until))

    def records(self) -> Iterator[Garbage]:
        for (name, record), info in sorted(self._found.records.items()):
            if record in self._condemned.get(name, ()):
                yield Garbage("record", info.key, info.size, epitaph_of_record(self._state(name), record))

    def leases(self) -> Iterator[Garbage]:
        for leases in self._found.leases.values():
            for key, lease in sorted(leases.items()):
                if self._world.rules.is_over(lease.until, EXPIRED):
                    yield Garbage("lease", key, 0, f"{lease.holder} did not renew it; it ended at {lease.until}")

    def probes(self) -> Iterator[Garbage]:
        for info in sorted(self._found.probes, key=lambda info: info.key):
            if info.modified and info.modified < self._world.rules.now - FORGOTTEN:
                yield Garbage("probe", info.key, info.size, f"a check of the store left it at {info.modified:%F %T}")

    def parts(self) -> list[tuple[Garbage, OpenUpload]]:
        """Uploads by parts. One of a live version is left of a repair, or of a publish that another one overtook; to
        abort it harms no object, and at worst a repair that is under way says that it is gone."""
        gone, rules = [], self._world.rules
        for (name, digest), upload in sorted(self._found.parts, key=lambda pair: (pair[1].key, pair[1].id)):
            state = self._state(name)
            condemned, hold = digest in self._condemned.get(name, ()), self._world.hold(state, digest)
            is_old = upload.begun is not None and rules.is_over(timestamp(upload.begun), max(rules.grace, STALE))
            if condemned or (is_old and digest in state.known and (hold is None or hold.until is None)):
                why = epitaph(state, digest) if condemned else f"nobody completed it since {upload.begun:%F %T}"
                gone.append((Garbage("parts", upload.key, self._size(upload), why), upload))
            elif digest in state.known and hold is not None and hold.until is not None:
                self.kept.append(Kept("parts", upload.key, self._size(upload), hold.why, hold.until))
        return gone

    def _size(self, upload: OpenUpload) -> int:
        assert self._store.multipart is not None
        try:
            return sum(part.size for part in self._store.multipart.parts(upload))
        except NotFound:  # it was completed, or somebody aborted it
            return 0

    def strangers(self) -> Iterator[Stranger]:
        for where in sorted(self._found.strangers):
            yield Stranger(where, "nothing of Packtrain's has such a name")
        for name, record in sorted(self._found.records):
            if name not in self._world.states:
                yield Stranger(self._found.records[name, record].key, f"there is no ledger of {name}")
        for name, digest in sorted({*self._found.folders, *(key for key, _ in self._found.parts)}):
            if digest not in self._state(name).known | self._condemned.get(name, frozenset()):
                yield Stranger(
                    version_prefix(name, digest),
                    f"the ledger of {name} has never heard of it: was the ledger restored from an old backup?",
                )

    def _state(self, name: str) -> State:
        return self._world.states.get(name) or State(name)

    def _reader(self, name: str, digest: Digest) -> tuple[str, str] | None:
        """Who reads it in place, and until when. Asked after it was condemned: so one of the two sees the other."""
        if self._dry_run:
            leases = self._found.leases.get((name, digest), {})
        else:
            leases = inventory.read_leases(self._store, lease_prefix(name, digest), set()).get((name, digest), {})
        for _, lease in sorted(leases.items()):
            if not self._world.rules.is_over(lease.until, SKEW):
                return f"{lease.holder} uses it in place", lease.until
        return None
