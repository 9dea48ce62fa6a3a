"""The cache: which snapshots are there, which may be trusted, who holds them, and what goes when room is needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from packtrain.cache import trees
from packtrain.cache.locks import Locks, Pin
from packtrain.cache.marks import Marks
from packtrain.cache.partial import JOURNAL, Partial, finished_chunks
from packtrain.cache.shortage import remedy, shortage
from packtrain.errors import IntegrityError, LocalDiskError, NotFound, Refused, disk_error
from packtrain.model import retention
from packtrain.model.amount import Amount
from packtrain.model.digest import Digest, is_hex256
from packtrain.model.manifest import FILE_NAME, Manifest
from packtrain.model.retention import Holds, Occupant, Room
from packtrain.ports import Clock

LEASE = 30 * 60.0  # seconds for which a snapshot stays after its path was given to somebody
UNFINISHED = 3 * 24 * 3600.0  # seconds for which a download that nobody continues stays
SKEW = 3600.0  # seconds: what was written that far in the future was written before the clock was set back
WRITTEN = 60.0  # seconds after which the kernel has written what was left to it (its own default is 30)

_ROOM = "room"  # the lock of whoever measures, evicts or takes space: one at a time

Naming = Callable[[Digest], str]  # what people call a version


@dataclass(frozen=True, slots=True)
class Contents:
    """Everything in a cache, most recently used first, and how much there may be."""

    occupants: tuple[Occupant, ...]
    room: Room


@dataclass(frozen=True, slots=True)
class Cleared:
    """What is gone and what is held, of what was unwanted. In bytes: ``trash`` of what crashes had left, ``freed`` by
    what is gone."""

    gone: tuple[Occupant, ...]
    held: tuple[Occupant, ...]
    trash: int
    freed: int


class Cache:
    """The snapshots of one node, shared by every process of one user on it.

    ``boot`` identifies this boot of the machine: what was written under another boot and is not known to be on the
    disk may have lost bytes with the power, so it is not trusted until it was read back. ``quota`` limits what is
    here; ``floor`` is what stays free on the disk.

    Who wants a snapshot pins it first and then looks whether it is there; who evicts holds the pins' lock exclusively
    while it takes the snapshot away. So nobody who found a snapshot under its own pin loses it.
    """

    def __init__(self, root: Path, *, boot: str, clock: Clock, quota: Amount, floor: Amount) -> None:
        self.root = root
        self.boot = boot
        self._clock = clock
        self._quota = quota
        self._floor = floor
        self._locks = Locks(root / "locks")
        self._marks = Marks(root / "marks", boot=boot)

    # What is there

    def path(self, digest: Digest) -> Path:
        """Where the snapshot is, or would be."""
        return self.root / "snapshots" / digest.hex

    def snapshots(self) -> Iterator[Digest]:
        """Every snapshot that is there, trusted or not, the most recently used first."""
        yield from sorted(self._digests("snapshots"), key=self._marks.used, reverse=True)

    def holds(self, digest: Digest) -> bool:
        """Whether a snapshot is there, trusted or not."""
        with self._disk(f"could not look for {self.path(digest)}"):
            return self.path(digest).exists()

    def trusts(self, digest: Digest) -> bool:
        """Whether the snapshot was verified under this boot, or is known to be on the disk since."""
        return self.is_durable(digest) or self._marks.verified_since(digest) is not None

    def is_durable(self, digest: Digest) -> bool:
        return self._marks.is_durable(digest)

    def manifest(self, digest: Digest) -> Manifest:
        """The manifest of a snapshot that is there. Raises IntegrityError."""
        what = self.path(digest) / FILE_NAME
        try:
            data = what.read_bytes()
        except FileNotFoundError as error:
            raise IntegrityError(f"{what} is missing") from error
        except OSError as error:
            raise disk_error(error, f"could not read {what}") from error
        return Manifest.decode(data, expect=digest, what=str(what))

    def is_there(self) -> bool:
        """Whether anything was ever kept here."""
        return os.path.lexists(self.root / "locks")

    def contents(self) -> Contents:
        """What takes space here. Makes nothing where no cache is."""
        if not self.is_there():
            return Contents((), self._room([]))
        with self._making_room():
            occupants = self._occupants()
            return Contents(tuple(sorted(occupants, key=lambda o: o.used, reverse=True)), self._room(occupants))

    def users(self, occupant: Occupant) -> list[str]:
        """The processes that use it, as far as this user may see them: ``vllm (4711)``."""
        return self._locks.holders(_lock_of(occupant)) if occupant.holds.in_use else []

    def held_by(self, occupant: Occupant) -> str:
        """What keeps it here, in words."""
        users = self.users(occupant)
        return f"{occupant.holds}" + (f" by {', '.join(users)}" if users else "")

    # Who holds it

    def pin(self, digest: Digest) -> Pin:
        """Keeps the snapshot, now or once it is there, from eviction, as long as any process has the pin open."""
        return self._locks.shared(digest.hex)

    def lease(self, digest: Digest) -> None:
        """Promises that the snapshot stays for a while, to somebody who was given its path. Only under a pin."""
        with self._disk("could not note the lease"):
            self._marks.lease(digest, self._clock.monotonic() + LEASE)

    def keep(self, digest: Digest) -> None:
        """Pins the snapshot for good. Only under a pin."""
        with self._disk("could not note the pin"):
            self._marks.pin(digest)

    def let_go(self, digest: Digest) -> bool:
        """Ends a pin for good and a lease. Returns whether there was one."""
        with self._disk("could not remove the pin"):
            held = self._marks.is_pinned(digest) or self._lease_left(digest) > 0
            self._marks.unpin(digest)
            self._marks.end_lease(digest)
            return held

    def touch(self, digest: Digest) -> None:
        """Notes that the snapshot is used now. That it cannot be noted is no reason not to use it."""
        with suppress(OSError):
            self._marks.set_used(digest, self._clock.now())

    # Getting it here

    @contextmanager
    def fetching(self, digest: Digest, *, on_wait: Callable[[], None]) -> Iterator[None]:
        """Makes this process the only one that downloads the version; calls ``on_wait`` before it waits for another."""
        with self._locks.exclusive(f"{digest.hex}.fetch", on_wait):
            yield

    def begin(
        self, digest: Digest, manifest: Manifest, *, name_of: Naming, links: Mapping[str, Path] | None = None
    ) -> Partial:
        """The download of a version, begun or continued, with room for all of it. Only inside `fetching`.

        ``links``: files of it that snapshots here hold whole. These snapshots are trusted, and pinned by the caller.
        Evicts what has to go. Raises LocalDiskError, which says what holds the space, before anything was changed.
        """
        links = links or {}
        with self._making_room():
            self._make_room(digest, manifest, frozenset(links), name_of)
            tree = self._unfinished(digest)
            begun = tree.exists()
            try:
                return Partial(tree, manifest, self.boot, links)
            except LocalDiskError:
                if not begun:  # there is nothing in it that could be continued
                    with suppress(OSError):
                        trees.throw_away(tree, self._trash)
                        trees.empty(self._trash)
                raise

    def begun(self, digest: Digest, manifest: Manifest) -> set[int]:
        """The chunks that an unfinished download has, by its journal."""
        return finished_chunks(self._unfinished(digest), manifest, self.boot)

    def admit(self, digest: Digest, partial: Partial) -> Path:
        """Makes a finished, verified download the snapshot. Only inside `fetching`."""
        path = self.path(digest)
        with self._disk(f"could not complete {path}"):
            self._marks.set_verified(digest, self._clock.monotonic())
        partial.publish_as(path)
        return path

    def sweep(self) -> None:
        """Removes what crashes left behind, unless another process is about to."""
        with self._locks.attempt(_ROOM) as (alone, _):
            if alone:
                self._sweep()

    # Whether it may be trusted

    def settle(self, digest: Digest) -> None:
        """Puts a snapshot that was verified onto the disk, and marks it so. Only under a pin: else it might be
        another one by the time of the mark. May take as long as writing it does."""
        with self._disk(f"could not sync {self.path(digest)}"):
            trees.sync(self.path(digest))
            self._marks.set_durable(digest)

    def settle_written(self) -> None:
        """Settles what the kernel has written by now, which takes no time: for commands that cannot wait for the
        disk themselves. What fails is read back after a restart.

        Without pins, which would keep others from evicting: whatever was put into its place has another moment.
        """
        for digest in self.snapshots():
            verified = self._marks.verified_since(digest)
            if verified is None or not 0 <= verified <= self._clock.monotonic() - WRITTEN:
                continue
            with suppress(OSError, LocalDiskError):
                trees.sync(self.path(digest))
                with self._locks.attempt(_ROOM) as (alone, _):
                    if alone and self._marks.verified_since(digest) == verified:
                        self._marks.set_durable(digest)

    def discard(self, digest: Digest, pin: Pin) -> bool:
        """Takes a snapshot that is not what it should be out of the way, unless others than ``pin`` use it: then it
        is only trusted no more. Returns whether it is gone. Only inside `fetching`."""
        with self._making_room(), self._disk(f"could not remove {self.path(digest)}"):
            self._marks.distrust(digest)
            with pin.exclusively() as alone:
                if alone and self.holds(digest):
                    self._marks.forget(digest)
                    trees.throw_away(self.path(digest), self._trash)
            trees.empty(self._trash)
            return alone

    # Making room

    def remove(self, digest: Digest, *, name_of: Naming) -> int:
        """Removes a snapshot, pinned for good or not, or an unfinished download. Returns the bytes that it freed.

        Raises NotFound, and Refused naming who uses it, or until when it is leased.
        """
        with self._making_room():
            occupants = self._occupants()
            found = [occupant for occupant in occupants if occupant.digest == digest]
            if not found:
                raise NotFound(f"{name_of(digest)} is not in the cache", hint="packtrain cache ls lists what is.")
            for occupant in found:
                if occupant.holds.in_use or (occupant.holds.lease and occupant.trust != "unfinished"):
                    raise self._refusal(occupant, name_of)
            with self._disk("could not remove the pin"):
                self._marks.unpin(digest)
            for occupant in found:
                if not self._evict(occupant):  # somebody came to use it just now
                    raise self._refusal(replace(occupant, holds=Holds(in_use=True)), name_of)
            return retention.unique_size(occupants) - retention.unique_size(o for o in occupants if o not in found)

    def clear(self, unwanted: Callable[[Occupant], bool], *, dry_run: bool) -> Cleared:
        """Removes what crashes left behind, and of what is ``unwanted`` all that nobody holds. A dry run says what
        would go. Makes nothing where no cache is."""
        if not self.is_there():
            return Cleared((), (), 0, 0)
        with self._locks.exclusive(_ROOM), self._disk(f"could not clear the cache {self.root}"):
            trash = trees.weigh(self._trash)
            if not dry_run:
                self._sweep()
            occupants = self._occupants()
            chosen = [occupant for occupant in occupants if unwanted(occupant)]
            gone = [o for o in chosen if not o.holds and (dry_run or self._evict(o))]
            freed = retention.unique_size(occupants) - retention.unique_size(o for o in occupants if o not in gone)
            return Cleared(tuple(gone), tuple(o for o in chosen if o not in gone), trash, freed)

    def _refusal(self, occupant: Occupant, name_of: Naming) -> Refused:
        name = name_of(occupant.digest)
        return Refused(
            f"{name} stays in the cache: {self.held_by(occupant)}", hint=f"{remedy(name, occupant)}, then remove it."
        )

    def _make_room(self, digest: Digest, manifest: Manifest, links: Set[str], name_of: Naming) -> None:
        whole = manifest.size + manifest.encoded_size
        linked = sum(file.size for file in manifest.files if file.path in links)
        while True:
            occupants = self._occupants()
            for occupant in retention.by_last_use(occupants):  # so that their order stays
                if occupant.holds.in_use and occupant.trust != "unfinished":
                    self.touch(occupant.digest)  # what serves now is used now, whenever it was started
            begun = sum(o.size for o in occupants if o.digest == digest and o.trust == "unfinished")
            needed = max(0, whole - max(begun, linked))  # a download that was begun has its links, and its full size
            room = self._room(occupants)
            plan = retention.plan(occupants, needed, room)
            if not plan.fits:
                held = [(name_of(o.digest), o, self.held_by(o)) for o in occupants if o.holds and o.digest != digest]
                raise shortage(name_of(digest), needed, room, plan, held, self.root)
            if not plan.evict:
                return
            for occupant in plan.evict:
                self._evict(occupant)  # if somebody came to use it meanwhile, the next round knows

    def _evict(self, occupant: Occupant) -> bool:
        """Whether it is gone; False if somebody holds it. Only while making room."""
        digest = occupant.digest
        with self._disk(f"could not evict {digest}"), self._locks.attempt(_lock_of(occupant)) as (alone, _):
            if not alone:
                return False
            download = occupant.trust == "unfinished"
            if not download and (self._marks.is_pinned(digest) or self._lease_left(digest) > 0):
                return False
            self._marks.forget(digest)  # first: a crash in between leaves nothing but a snapshot to be read back
            trees.throw_away(self._unfinished(digest) if download else self.path(digest), self._trash)
        trees.empty(self._trash)
        return True

    @contextmanager
    def _making_room(self) -> Iterator[None]:
        """Alone in measuring, evicting and taking space."""
        with self._locks.exclusive(_ROOM), self._disk(f"could not make room in the cache {self.root}"):
            self._sweep()
            yield

    def _sweep(self) -> None:
        with suppress(OSError, LocalDiskError):  # what cannot be removed must not keep others from their work
            for digest in self._digests("partial"):
                if self.holds(digest):  # a crash right after the download got its name
                    with self._locks.attempt(f"{digest.hex}.fetch") as (alone, _):
                        if alone:
                            trees.throw_away(self._unfinished(digest), self._trash)
            trees.empty(self._trash)

    def _occupants(self) -> list[Occupant]:
        """Only while making room: whether a lock is held is found by trying to take it."""
        return [
            *(self._snapshot(digest) for digest in self.snapshots()),
            *(self._download(digest) for digest in self._digests("partial")),
        ]

    def _snapshot(self, digest: Digest) -> Occupant:
        return Occupant(
            digest,
            *trees.measure(self.path(digest)),
            self._marks.used(digest),
            Holds(
                in_use=self._locks.is_held(digest.hex),
                lease=self._lease_left(digest),
                pinned=self._marks.is_pinned(digest),
            ),
            "durable" if self.is_durable(digest) else "verified" if self.trusts(digest) else "doubtful",
        )

    def _download(self, digest: Digest) -> Occupant:
        """Stays for a while after it was interrupted, so that it can be continued."""
        tree = self._unfinished(digest)
        try:
            worked = datetime.fromtimestamp((tree / JOURNAL).stat().st_mtime, UTC)
        except OSError:
            worked = datetime.fromtimestamp(0, UTC)
        age = (self._clock.now() - worked).total_seconds()
        left = UNFINISHED - max(0.0, age) if age > -SKEW else 0.0
        holds = Holds(in_use=self._locks.is_held(f"{digest.hex}.fetch"), lease=max(0.0, left))
        return Occupant(digest, *trees.measure(tree), worked, holds, "unfinished")

    def _lease_left(self, digest: Digest) -> float:
        until = self._marks.lease_until(digest)
        left = until - self._clock.monotonic() if until is not None else 0.0
        return left if 0 < left <= LEASE + 1 else 0.0  # a longer one was not granted by us

    def _room(self, occupants: list[Occupant]) -> Room:
        with self._disk(f"could not measure the disk of {self.root}"):
            existing = next(path for path in (self.root, *self.root.parents) if path.exists())
            disk = os.statvfs(existing)
        total, promised = disk.f_blocks * disk.f_frsize, sum(occupant.unwritten for occupant in occupants)
        return Room(self._quota.of(total), self._floor.of(total), disk.f_bavail * disk.f_frsize - promised)

    def _digests(self, folder: str) -> Iterator[Digest]:
        try:
            names = sorted(path.name for path in (self.root / folder).iterdir())
        except FileNotFoundError:
            return
        except OSError as error:
            raise disk_error(error, f"could not list {self.root / folder}") from error
        yield from (Digest(name) for name in names if is_hex256(name))

    @property
    def _trash(self) -> Path:
        return self.root / "trash"

    def _unfinished(self, digest: Digest) -> Path:
        return self.root / "partial" / digest.hex

    @contextmanager
    def _disk(self, problem: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise disk_error(error, problem) from error


def _lock_of(occupant: Occupant) -> str:
    return occupant.digest.hex + (".fetch" if occupant.trust == "unfinished" else "")
