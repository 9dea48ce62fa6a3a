"""Garbage collection: what nothing names any more is condemned in its ledger, and only then deleted.

The listing comes first and the ledgers after it, so every ledger knows what the listing shows. Then, in each ledger,
one event condemns what may go; what is named meanwhile is not condemned, and what was condemned cannot be named
(`packtrain.model.ledger`). So the deletes that follow may come at any time, be interrupted, and be repeated by
anybody.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta

from packtrain.cache import Cache
from packtrain.errors import PacktrainError, UsageError
from packtrain.flows import inventory, links
from packtrain.flows.garbage import Collected, Garbage, Kept, Things
from packtrain.flows.inventory import Inventory
from packtrain.flows.naming import namer
from packtrain.flows.workers import Halt, run_all
from packtrain.model.digest import Digest
from packtrain.model.duration import about
from packtrain.model.ledger import Draft, State
from packtrain.model.manifest import FILE_NAME
from packtrain.model.reachability import Holdings, Rules, World
from packtrain.model.retention import Occupant, own_sizes
from packtrain.ports import Clock, ObjectInfo, OpenUpload, Registry, Reporter, Store

GRACE = timedelta(days=7)
THREADS = 8

_NOTICEABLE = timedelta(minutes=5)  # of clocks: less does not matter beside a grace period
_READERS = 16


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
    things = Things(store, world, found, condemned, dry_run)
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
