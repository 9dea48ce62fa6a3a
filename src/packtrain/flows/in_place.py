"""A version is opened where it is: the store's own directory, without a copy.

Only in stores that are directories. What is opened is leased, so that garbage collection leaves it, in the order that
`packtrain.model.lease` demands: the lease comes before any look at the files.
"""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Self

from packtrain.errors import (
    IntegrityError,
    LocalDiskError,
    NotFound,
    PacktrainError,
    Refused,
    Unavailable,
    disk_error,
)
from packtrain.flows import integrity
from packtrain.flows.fetch import read_manifest
from packtrain.flows.pull import Snapshot, resolve
from packtrain.model.lease import Holder, Lease, lease_key
from packtrain.model.ledger import timestamp
from packtrain.model.manifest import FILE_NAME, Manifest
from packtrain.model.reference import Reference
from packtrain.model.version import ModelVersion, how_to_mend
from packtrain.ports import Clock, Registry, Reporter, Store

TERM = timedelta(minutes=30)  # how long a lease lasts that nobody renews
UNATTENDED = timedelta(hours=2)  # for an engine that cannot renew: 140 GB have been read by then at 20 MB/s
RENEWAL = 10 * 60.0  # seconds between renewals: two of them may fail

_REMAINS = ".nfs"  # how NFS clients call a file that was removed while it was open


class InPlace:
    """Opens versions where they are: as cheaply as can be (the manifest is what its digest says, and every file is
    there with its size, and no other), or with ``verify`` byte by byte. Raises Refused if the store is no directory.

    While it is entered the leases are renewed; at its end they are removed, unless it was told to `leave` them.
    """

    def __init__(
        self, store: Store, registry: Registry, *, verify: bool, holder: Holder, reporter: Reporter, clock: Clock
    ) -> None:
        self.verifies = verify
        self._root = _directory(store)
        self._store = store
        self._registry = registry
        self._holder = holder
        self._reporter = reporter
        self._clock = clock
        self._leases: list[_Lease] = []
        self._lock = Lock()  # of the list: a lease is not renewed after it was removed
        self._over = Event()
        self._renewing = Thread(target=self._renew, name="renew", daemon=True)
        self.pins: list[int] = []  # descriptors that an engine inherits: none are needed

    def __enter__(self) -> Self:
        self._renewing.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        with self._lock:
            for lease in self._leases:
                lease.remove()

    def open(self, version: ModelVersion) -> Path:
        """The directory of a version, leased and checked. Raises IntegrityError, and Refused if it cannot be read."""
        self._take_lease(version)
        self._require_uncollected(version)
        manifest = read_manifest(self._store, version)
        path = _resolved(self._root, version)
        _check_sizes(path, manifest)
        if self.verifies:
            integrity.check_directory(path, manifest, self._reporter)
        else:
            self._reporter.note(
                f"{version} is used where it is: its files are there with their sizes, but their bytes were not "
                "checked (--verify does)"
            )
        return path

    def leave(self, term: timedelta = UNATTENDED) -> None:
        """What is open stays leased for ``term`` from now, whatever becomes of this process."""
        with self._lock:
            for lease in self._leases:
                self._attempt(lease, term)
            self._leases.clear()

    def _take_lease(self, version: ModelVersion) -> None:
        lease = _Lease(self._store, version, self._holder, self._clock)
        try:
            lease.write(TERM)
        except (LocalDiskError, Refused) as error:
            self._reporter.note(
                f"warning: {version} is used without a lease, because none can be written ({error}). Garbage "
                "collection will not see that it is in use here: do not archive it before its engines have ended"
            )
            return
        with self._lock:
            self._leases.append(lease)

    def _require_uncollected(self, version: ModelVersion) -> None:
        """Only under the lease: whoever collects looks for leases after it has said what goes."""
        try:
            state = self._registry.read(version.name).state
        except Unavailable as error:
            self._reporter.note(f"warning: nobody can say whether {version} is being collected as garbage: {error}")
            return
        if version.digest in state.condemned:
            raise NotFound(
                f"{version} was archived, and garbage collection has given it up: its files are gone, or may go",
                hint=f"Use another version (packtrain models {version.name}), or publish it again from its directory.",
            )

    def _renew(self) -> None:
        while not self._over.wait(RENEWAL):
            with self._lock:
                if not self._over.is_set():
                    for lease in self._leases:
                        self._attempt(lease, TERM)

    def _attempt(self, lease: _Lease, term: timedelta) -> None:
        try:
            if lease.write(term):
                self._require_uncollected(lease.version)
        except NotFound as error:
            self._reporter.note(f"warning: while this process slept, {error}")
        except PacktrainError as error:
            self._reporter.note(f"warning: the lease on {lease.version} could not be renewed: {error}")


def pull_in_place(registry: Registry, place: InPlace, reference: Reference, *, reporter: Reporter) -> Snapshot:
    """The store's own directory of a version, checked and leased for half an hour from now."""
    version = resolve(registry, reference, reporter)
    with place:
        path = place.open(version)
        place.leave(TERM)
    return Snapshot(path, version, fetched=0, in_place=True, verified=place.verifies)


class _Lease:
    """One lease in the store."""

    def __init__(self, store: Store, version: ModelVersion, holder: Holder, clock: Clock) -> None:
        self.version = version
        self._key = self._new_key()
        self._store = store
        self._holder = holder
        self._clock = clock
        self._until: datetime | None = None

    def write(self, term: timedelta) -> bool:
        """Makes it last for ``term`` from now. Returns whether it was over before, because this machine slept: then it
        is another object, because whoever clears away the old one may do that at any time."""
        now = self._clock.now()
        was_over = self._until is not None and self._until <= now
        if was_over:
            self._key = self._new_key()
        data = Lease(self._holder, until=timestamp(now + term)).encode()
        self._store.upload(self._key, [data], len(data))
        self._until = now + term
        return was_over

    def remove(self) -> None:
        with suppress(PacktrainError):  # then it expires
            self._store.delete(self._key)

    def _new_key(self) -> str:
        return lease_key(self.version.name, self.version.digest, uuid.uuid4().hex)


def _directory(store: Store) -> Path:
    if store.directory is None:
        raise Refused(
            f"{store.url} is not a directory, so nothing can be used in place",
            hint='Pull into the cache: leave out --in-place, or set pull = "cache".',
        )
    return store.directory


def _resolved(root: Path, version: ModelVersion) -> Path:
    """A version's directory, with no link on the way to it: an engine that is started on a link would find another
    model under it after the link has moved."""
    root = root.resolve()
    path = (root / version.prefix).resolve()
    if path != root / version.prefix:
        raise IntegrityError(
            f"{root / version.prefix} leads elsewhere, to {path}",
            hint="Packtrain follows no links inside a store. Put the directory itself there; or remove the link. "
            + how_to_mend(version.name),
        )
    return path


def _check_sizes(path: Path, manifest: Manifest) -> None:
    """Exactly the manifest's files are there, readable and with their sizes. Raises IntegrityError, Refused."""
    right = {FILE_NAME: manifest.encoded_size, **{file.path: file.size for file in manifest.files}}
    there = _sizes(path)
    for name, size in right.items():
        if there.get(name) != size:
            raise IntegrityError(
                f"{path / name} {_found(there, name)}; the manifest says {size} bytes",
                hint=how_to_mend(path.parent.name),  # models/NAME/DIGEST
            )
    if more := sorted(there.keys() - right.keys()):
        raise IntegrityError(
            f"{path / more[0]} does not belong to the version: its manifest does not list it",
            hint="vLLM might load it. Move it away; nothing but Packtrain should write into a store.",
        )


def _found(there: Mapping[str, int | None], name: str) -> str:
    if name not in there:
        return "is missing"
    return "is not a plain file" if there[name] is None else f"has {there[name]} bytes"


def _sizes(path: Path) -> Mapping[str, int | None]:
    """The size of every file in a directory; None for what is no plain file.

    Each is opened, because that shows whether it can be read, and makes an NFS client ask its server.
    """
    sizes: dict[str, int | None] = {}
    try:
        for folder, folders, names in os.walk(path, onerror=_raise):
            for name in [*names, *(name for name in folders if (Path(folder) / name).is_symlink())]:
                file = Path(folder) / name
                if not name.startswith(_REMAINS):
                    sizes[file.relative_to(path).as_posix()] = _size(file)
    except PermissionError as error:
        raise Refused(
            f"{error.filename} cannot be read: {error.strerror}",
            hint="Packtrain makes every file readable for all; look at who changed it and at the share's export.",
        ) from error
    except OSError as error:
        raise disk_error(error, f"could not read {path}") from error
    return sizes


def _size(file: Path) -> int | None:
    if not stat.S_ISREG(file.lstat().st_mode):
        return None
    with file.open("rb") as stream:
        return os.fstat(stream.fileno()).st_size


def _raise(error: OSError) -> None:
    raise error
