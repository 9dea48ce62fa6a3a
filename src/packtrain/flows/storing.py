"""What publish, adopt and repair do to the store: a version's directory comes to hold what its manifest says."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from threading import Lock

from packtrain.errors import AlreadyExists, NotFound, Unavailable
from packtrain.flows import integrity
from packtrain.flows.hashing import checked_body
from packtrain.flows.sources import NewFile
from packtrain.flows.workers import Halt, run_all
from packtrain.model.digest import Digest
from packtrain.model.ledger import timestamp
from packtrain.model.manifest import FILE_NAME, FileEntry, Manifest
from packtrain.ports import Clock, Registry, Reporter, Store

THREADS = 4  # files sent at once; the store may send several parts of each at once
LEASE = timedelta(hours=1)  # how long a publish that stopped answering keeps its objects from being collected

Renew = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Wrong:
    """What a store does not hold as a manifest says: files that are ``lacking`` or of another size, and files that
    were read and are ``damaged``."""

    lacking: tuple[FileEntry, ...]
    damaged: tuple[FileEntry, ...]

    @property
    def all(self) -> tuple[FileEntry, ...]:
        return self.lacking + self.damaged

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(entry.size for entry in self.all)


class Lease:
    """Tells garbage collection that this publish lives: an event before the first object, renewed in time."""

    def __init__(self, registry: Registry, name: str, digest: Digest, clock: Clock) -> None:
        self.publish_id = uuid.uuid4().hex
        self._registry = registry
        self._name = name
        self._digest = digest
        self._clock = clock
        self._lock = Lock()
        self._renewed: float | None = None  # by the clock that nobody sets

    def renew(self) -> None:
        """Writes the event if half of the lease is over."""
        with self._lock:
            now = self._clock.monotonic()
            if self._renewed is not None and now < self._renewed + LEASE.total_seconds() / 2:
                return
            until = timestamp(self._clock.now() + LEASE)
            self._registry.change(self._name, lambda state: state.begin_publish(self._digest, self.publish_id, until))
            self._renewed = now


def find_wrong(store: Store, prefix: str, manifest: Manifest, reporter: Reporter) -> Wrong:
    """What is to be sent so that ``prefix`` holds what the manifest says.

    An object that is there already is read back before a version may name it. Its size says nothing of how it came
    there: by an earlier publish that was interrupted, or by a copy that nobody could check any more; and since an
    older version was made of it (--force, or after an archive) a disk may have failed. One read of what is there is
    the cheapest proof that holds for all of these: it is less than to send it again, and a publish that nothing
    interrupted never pays it.
    """
    lacking = find_lacking(store, prefix, manifest)
    absent = {entry.path for entry in lacking}
    there = [entry for entry in manifest.files if entry.path not in absent]
    damaged = integrity.find_damaged(store, prefix, there, reporter)
    for entry in damaged:
        reporter.note(f"damaged in the store: {entry.path}")
    return Wrong(tuple(lacking), tuple(damaged))


def send(
    store: Store,
    prefix: str,
    files: Iterable[NewFile],
    entries: Iterable[FileEntry],
    renew: Renew,
    reporter: Reporter,
) -> None:
    """Writes the objects of ``entries``, each byte checked: on its way, or where it lies."""
    by_path = {file.path: file for file in files}
    largest_first = sorted(entries, key=lambda entry: -entry.size)
    reporter.begin("uploading", sum(entry.size for entry in largest_first))
    try:
        run_all(
            lambda entry, halt: _send(store, prefix, by_path[entry.path], entry, renew, reporter, halt),
            largest_first,
            threads=THREADS,
            name="send",
        )
    finally:
        reporter.end()


def find_lacking(store: Store, prefix: str, manifest: Manifest) -> list[FileEntry]:
    """The files that are not there, or not of their size."""
    sizes = {info.key.removeprefix(prefix): info.size for info in store.list(prefix)}
    return [file for file in manifest.files if sizes.get(file.path) != file.size]


def seal(store: Store, prefix: str, manifest: Manifest) -> None:
    """Asks the store what it holds, then writes the manifest, the last object of the directory."""
    if missing := find_lacking(store, prefix, manifest):
        raise Unavailable(
            f"the store does not hold {missing[0].path} although it took it; nothing was published",
            hint="Run the command again. If it happens again, look at the store's own log and lifecycle rules.",
        )
    settle(store, prefix + FILE_NAME, manifest.encode())


def settle(store: Store, key: str, data: bytes) -> bool:
    """Makes a small object whose name or place says what it must hold hold that. Returns whether it did not."""
    try:
        store.create(key, data)
    except AlreadyExists:
        if store.get(key) == data:
            return False
        store.upload(key, [data], len(data))
    return True


def _send(
    store: Store, prefix: str, file: NewFile, entry: FileEntry, renew: Renew, reporter: Reporter, halt: Halt
) -> None:
    renew()
    if _copied(store, prefix, file, entry, renew, reporter, halt):
        return
    store.upload(prefix + entry.path, _renewing(checked_body(file, entry, reporter, halt), renew), entry.size)


def _copied(
    store: Store, prefix: str, file: NewFile, entry: FileEntry, renew: Renew, reporter: Reporter, halt: Halt
) -> bool:
    """Whether the store made the object by itself.

    Its bytes did not pass through here, so they are proven in another way before a version names them: the origin of
    a tagged source tells afterwards that nobody wrote to it since it was hashed; any other copy is read back now.
    """

    def advance(count: int) -> None:
        halt.check()
        renew()
        reporter.advance(count)

    url = file.source.url
    try:
        if url is None or not store.copy_from(url, prefix + entry.path, entry.size, advance):
            return False
    except NotFound as error:
        raise file.source.changed() from error
    if not file.source.tagged and not integrity.is_whole(store, prefix, entry, halt):
        raise file.source.changed()
    return True


def _renewing(pieces: Iterator[bytes], renew: Renew) -> Iterator[bytes]:
    for piece in pieces:
        renew()
        yield piece
