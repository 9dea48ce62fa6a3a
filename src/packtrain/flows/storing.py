"""What publish, adopt and repair do to the store: a version's directory comes to hold what its manifest says."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from threading import Lock

from packtrain.errors import AlreadyExists, NotFound, Unavailable
from packtrain.flows import integrity
from packtrain.flows.copyable import Copyable
from packtrain.flows.hashing import Checksums, checked_body, crc32_of
from packtrain.flows.sending import Outgoing, Sending, Traffic
from packtrain.flows.sources import LocalFile, NewFile
from packtrain.flows.workers import Halt, run_all
from packtrain.model.digest import Digest
from packtrain.model.ledger import timestamp
from packtrain.model.manifest import FILE_NAME, FileEntry, Manifest
from packtrain.model.sourcing import Place
from packtrain.ports import Clock, Multipart, Registry, Reporter, Store

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


def find_wrong(
    store: Store, prefix: str, manifest: Manifest, reporter: Reporter, *, checksums: Checksums | None = None
) -> Wrong:
    """What is to be sent so that ``prefix`` holds what the manifest says.

    Of an object that is there already the size says nothing: it may be of an interrupted publish, or of a copy that
    nobody could check any more. With ``checksums`` it counts if the store says that it got just these bytes. Else it is
    read: since an older version was made of it (--force, or after an archive) a disk may have failed. That is less than
    to send it again.
    """
    lacking = find_lacking(store, prefix, manifest)
    absent = {entry.path for entry in lacking}
    there = [entry for entry in manifest.files if entry.path not in absent]
    if store.multipart is not None and checksums is not None:
        there = _unconfirmed(store.multipart, prefix, there, checksums)
    damaged = integrity.find_damaged(store, prefix, there, reporter)
    for entry in damaged:
        reporter.note(f"damaged in the store: {entry.path}")
    return Wrong(tuple(lacking), tuple(damaged))


def _unconfirmed(
    multipart: Multipart, prefix: str, entries: Sequence[FileEntry], checksums: Checksums
) -> list[FileEntry]:
    """Those of which the store does not say that they are right."""

    def confirmed(entry: FileEntry, halt: Halt) -> bool:
        halt.check()
        try:
            return multipart.crc32(prefix + entry.path) == crc32_of(entry, checksums[entry.path])
        except NotFound:
            return False

    said = run_all(confirmed, entries, threads=THREADS, name="ask")
    return [entry for entry, right in zip(entries, said, strict=True) if not right]


@dataclass(frozen=True, slots=True)
class Load:
    """What is to be written below ``prefix``: files by their paths, their checksums, and where the store has the same
    bytes. ``renew`` keeps the lease."""

    prefix: str
    files: Mapping[str, NewFile]
    checksums: Checksums
    copyable: Copyable
    renew: Renew


def send(store: Store, load: Load, entries: Iterable[FileEntry], reporter: Reporter) -> Traffic:
    """Writes the objects of ``entries``, each byte checked: on its way, by the store, or where it lies."""
    largest_first = sorted(entries, key=lambda entry: -entry.size)
    reporter.begin("uploading", sum(entry.size for entry in largest_first))
    try:
        if store.multipart is not None:
            sending = Sending(
                store,
                store.multipart,
                load.prefix,
                checksums=load.checksums,
                locate=lambda place: _locate(store, load, place),
                renew=load.renew,
                reporter=reporter,
            )
            sending.send([_outgoing(store, load, entry) for entry in largest_first])
            return sending.traffic
        copied = run_all(
            lambda entry, halt: _send(store, load, entry, reporter, halt),
            largest_first,
            threads=THREADS,
            name="send",
        )
    finally:
        reporter.end()
    total = sum(entry.size for entry in largest_first)
    return Traffic(sent=total - sum(copied), copied=sum(copied))


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


_ORIGIN = Digest.of(b"origin")  # stands for where the files come from, in places


def _outgoing(store: Store, load: Load, entry: FileEntry) -> Outgoing:
    """A file for a store that copies ranges: it has it in earlier versions, or where the file comes from."""
    file = load.files[entry.path]
    url = file.source.url
    if url is None or url.split("/")[:3] != store.url.split("/")[:3]:  # not of the same bucket
        return Outgoing(file, entry, load.copyable.at_hand.files.get(entry.path), load.copyable.of(entry))
    places, start = dict[int, Place](), 0
    for index, length in enumerate(entry.chunks.lengths):
        places[index] = Place(_ORIGIN, entry.path, start)
        start += length
    return Outgoing(file, entry, Place(_ORIGIN, entry.path), places)


def _locate(store: Store, load: Load, place: Place) -> str:
    url = load.files[place.path].source.url if place.snapshot == _ORIGIN else None
    return url or store.locate(load.copyable.key(place))


def _send(store: Store, load: Load, entry: FileEntry, reporter: Reporter, halt: Halt) -> int:
    """Writes one object whole. Returns how many bytes the store copied."""
    load.renew()
    file = load.files[entry.path]

    def advance(count: int) -> None:
        halt.check()
        load.renew()
        reporter.advance(count)

    if _shared(store, load, entry, advance, halt):
        return entry.size
    if _copied(store, load.prefix, file, entry, advance, halt):
        return 0 if isinstance(file.source, LocalFile) else entry.size
    body = _renewing(checked_body(file, entry, reporter.advance, halt), load.renew)
    store.upload(load.prefix + entry.path, body, entry.size)
    return 0


def _shared(store: Store, load: Load, entry: FileEntry, advance: Callable[[int], None], halt: Halt) -> bool:
    """Whether the object is that of an earlier version now, read and right."""
    place = load.copyable.at_hand.files.get(entry.path)
    if place is None:
        return False
    url = store.locate(load.copyable.key(place))
    with suppress(NotFound):  # it has been collected meanwhile
        if store.copy_from(url, load.prefix + entry.path, entry.size, advance, fixed=True):
            if integrity.is_whole(store, load.prefix, entry, halt):
                return True
            advance(-entry.size)
    return False


def _copied(
    store: Store, prefix: str, file: NewFile, entry: FileEntry, advance: Callable[[int], None], halt: Halt
) -> bool:
    """Whether the store made the object by itself from where the file comes from.

    Its bytes did not pass through here, so they are proven in another way before a version names them: the origin of
    a tagged source tells afterwards that nobody wrote to it since it was hashed; any other copy is read back now.
    """
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
