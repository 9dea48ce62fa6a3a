"""Garbage collection: what nothing names any more is condemned in its ledger, and only then deleted.

The listing comes first and the ledgers after it, so every ledger knows what the listing shows. Then, in each ledger,
one event condemns what may go; what is named meanwhile is not condemned, and what was condemned cannot be named
(`packtrain.model.ledger`). So the deletes that follow may come at any time, be interrupted, and be repeated by
anybody.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from packtrain.cache import Cache
from packtrain.errors import NotFound, PacktrainError, UsageError
from packtrain.flows import inventory, links
from packtrain.flows.inventory import Inventory
from packtrain.flows.naming import namer
from packtrain.flows.workers import Halt, run_all
from packtrain.model.digest import Digest
from packtrain.model.duration import about
from packtrain.model.lease import lease_prefix
from packtrain.model.ledger import Draft, State, timestamp
from packtrain.model.manifest import FILE_NAME
from packtrain.model.reachability import SKEW, Holdings, Rules, World, epitaph, epitaph_of_record
from packtrain.model.retention import Occupant, own_sizes
from packtrain.model.version import version_prefix
from packtrain.ports import Clock, ObjectInfo, OpenUpload, Registry, Reporter, Store

GRACE = timedelta(days=7)
EXPIRED = timedelta(days=1)  # after its end, before a lease's object goes
STALE = timedelta(days=1)  # after its begin, before an upload by parts of a version that is there may be aborted
FORGOTTEN = timedelta(hours=1)  # a probe of `packtrain doctor`
THREADS = 8

_NOTICEABLE = timedelta(minutes=5)  # of clocks: less does not matter beside a grace period
_READERS = 16


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


def collect(
    store: Store,
    registry: Registry,
    cache: Cache,
    *,
    grace: timedelta = GRACE,
    dry_run: bool = False,
    reporter: Reporter,
    clock: Clock,
) -> Collected:
    """Frees what nothing names, in the store and in this node's cache, and says why each thing goes or stays. A dry run
    changes nothing.

    Raises IntegrityError and Unavailable, before anything was changed, if a ledger cannot be read: what it names is not
    known then.
    """
    if grace < timedelta(0):
        raise UsageError("a grace period cannot be negative", hint="Give --grace 7d, or 0s for none.")
    now = clock.now() if dry_run else _earlier_of_both_clocks(store, clock, reporter)
    rules = Rules(now, grace)
    found = inventory.take(store)
    states = _read_ledgers(store, registry)
    world = World(states, _holdings(found), rules)
    condemned = world.foresee() if dry_run else _condemn(registry, world)
    things = _Things(store, world, found, condemned, dry_run)
    garbage = [*things.folders(), *things.records(), *things.leases(), *things.probes()]
    parts = things.parts()
    if not dry_run:
        _delete(store, [each.where for each in garbage], [upload for _, upload in parts], reporter)
    garbage += [each for each, _ in parts]
    garbage += _links(store, registry, now, dry_run)
    cached, held = _clear_cache(cache, registry, states, condemned, dry_run, reporter)
    return Collected((*garbage, *cached), (*things.kept, *held), tuple(things.strangers()), dry_run)


def _earlier_of_both_clocks(store: Store, clock: Clock, reporter: Reporter) -> datetime:
    """The store's time, found by writing an object, or this machine's: a clock that is ahead must not end a grace
    period."""
    mine, probe = clock.now(), f"doctor/{uuid.uuid4().hex}"
    store.create(probe, b"")
    try:
        info = store.head(probe)
    finally:
        with suppress(PacktrainError):  # then a later run removes it
            store.delete(probe)
    theirs = info.modified if info else None
    if theirs is None or theirs > mine - _NOTICEABLE:
        return mine
    reporter.note(
        f"warning: this machine's clock is {about(mine - theirs)} ahead of the store's, which counts here. Set it "
        "right: what it writes into ledgers has its time"
    )
    return theirs


def _read_ledgers(store: Store, registry: Registry) -> dict[str, State]:
    names = sorted({*store.children("ledger/"), *registry.known()})
    with ThreadPoolExecutor(_READERS) as pool:
        return {log.name: log.state for log in pool.map(registry.read, names)}


def _holdings(found: Inventory) -> Holdings:
    return Holdings(
        {key: info.modified for key, info in found.records.items()},
        {key: tuple(leases.values()) for key, leases in found.leases.items()},
    )


def _condemn(registry: Registry, world: World) -> dict[str, Set[Digest]]:
    """Condemns what may be, in every ledger; again, until no base has lost its last adapter. Returns all that is
    condemned now."""

    def decide(state: State) -> Draft | None:
        return state.condemn(*world.condemnable(state))

    while True:
        states = dict(world.states)
        for name, state in states.items():
            if decide(state) is not None:
                log, _ = registry.change(name, decide)
                states[name] = log.state
        if all(states[name].condemned == state.condemned for name, state in world.states.items()):
            return {name: state.condemned for name, state in states.items()}
        world = replace(world, states=states)


class _Things:
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


def _delete(store: Store, keys: list[str], parts: list[OpenUpload], reporter: Reporter) -> None:
    """Removes objects, and folders with all that is in them: the manifest first, so that nothing takes the rest for a
    whole model."""
    objects = [info for key in keys for info in _under(store, key)]
    reporter.begin("deleting", sum(info.size for info in objects))

    def delete(info: ObjectInfo, halt: Halt) -> None:
        halt.check()
        store.delete(info.key)
        reporter.advance(info.size)

    try:
        run_all(delete, objects, threads=THREADS, name="delete")
        for upload in parts:
            assert store.multipart is not None
            store.multipart.abort(upload)
    finally:
        reporter.end()


def _under(store: Store, key: str) -> list[ObjectInfo]:
    if not key.endswith("/"):
        return [ObjectInfo(key, 0)]
    return sorted(store.list(key), key=lambda info: (info.key != key + FILE_NAME, info.key))


def _links(store: Store, registry: Registry, now: datetime, dry_run: bool) -> list[Garbage]:
    """On a directory: links that stand for nothing, and files of writers that died."""
    if store.directory is None:
        return []
    dead = [stray for stray in links.stray(store, registry, now=now) if stray.dead]
    garbage = []
    for stray in dead:
        path = store.directory / stray.key
        with suppress(OSError):  # gone meanwhile
            what, size = ("link", 0) if path.is_symlink() else ("unfinished file", path.stat().st_size)
            garbage.append(Garbage(what, stray.key, size, stray.what))
    if dead and not dry_run:
        links.mend(store, registry, dead)
    return garbage


def _clear_cache(
    cache: Cache,
    registry: Registry,
    states: Mapping[str, State],
    condemned: Mapping[str, Set[Digest]],
    dry_run: bool,
    reporter: Reporter,
) -> tuple[list[Garbage], list[Kept]]:
    """Downloads that nobody continues, snapshots of what was collected, and what crashes left. A cache that cannot be
    used keeps nobody from clearing the store."""
    gone = {digest for each in condemned.values() for digest in each}
    wanted = {digest for name, state in states.items() for digest in state.known - condemned[name]}

    def unwanted(occupant: Occupant) -> bool:
        return occupant.trust == "unfinished" or occupant.digest in gone - wanted

    try:
        cleared = cache.clear(unwanted, dry_run=dry_run)
    except PacktrainError as error:
        reporter.note(f"warning: the cache was left as it is: {error}")
        return [], []
    name_of = namer(registry)

    def describe(occupant: Occupant) -> tuple[str, str]:
        what = "download" if occupant.trust == "unfinished" else "snapshot"
        return what, f"{cache.root}: {name_of(occupant.digest)}"

    why = {
        "download": "nobody continued it for three days",
        "snapshot": "its version was collected from the store, and nothing here holds it",
    }
    garbage = [
        Garbage(*describe(occupant), size, why[describe(occupant)[0]])
        for occupant, size in zip(cleared.gone, own_sizes(cleared.gone), strict=True)
    ]
    if cleared.trash:
        garbage.append(Garbage("trash", f"{cache.root / 'trash'}", cleared.trash, "an eviction was interrupted"))
    held = [
        Kept(*describe(occupant), occupant.size, str(occupant.holds), None)
        for occupant in cleared.held
        if occupant.trust != "unfinished"
    ]
    return garbage, held
