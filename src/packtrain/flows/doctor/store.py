"""The store: whether it answers, what is allowed there, and whether it keeps the laws that ledgers rest on."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta

from packtrain.errors import AlreadyExists, IntegrityError, NotFound, PacktrainError, Refused
from packtrain.flows.doctor.check import FAILURE, Check, failure, ok, warning
from packtrain.flows.doctor.disks import kind
from packtrain.ports import Clock, Store
from packtrain.storage import aws, where_credentials_are

PROBES = "doctor/"
FORGOTTEN = timedelta(hours=1)  # after which a probe belongs to no doctor that still runs
SKEW = timedelta(minutes=1)  # of clocks, that does no harm; S3 refuses requests that are 15 minutes off
RESOLUTION = timedelta(seconds=2)  # of the times that stores give
RACERS = 8
_PROBED = (5 << 20) + 1  # bytes of an object of which S3 copies ranges


def credentials(url: str, now: datetime) -> Iterator[Check]:
    """Where those of a bucket come from, and whether they are known to have ended."""
    found = where_credentials_are(url)
    if found is None:
        return
    expire = aws.credentials_expire() if url.startswith("s3://") else None
    if expire is not None and expire <= now:
        yield failure(
            "credentials",
            Refused(
                f"{found}; they expired at {expire:%F %T} UTC (AWS_CREDENTIAL_EXPIRATION)",
                hint="Get new ones from where these came from, for example: "
                'eval "$(aws configure export-credentials --format env)".',
            ),
        )
    else:
        yield ok("credentials", found + (f", until {expire:%F %T} UTC" if expire else ""))


def examine(store: Store, clock: Clock, nonce: str) -> Iterator[Check]:
    """Ends after the first step that fails: what follows rests on it. ``nonce`` names the probe."""
    if store.directory is not None and not store.directory.exists():
        yield warning(
            "store",
            f"{store.directory} is not there yet; the first publish makes it",
            "If it is to be on a shared volume, mount that first. If models are there already, correct `store`.",
        )
        return
    probe = _Probe(store, clock, f"{PROBES}{nonce}")
    try:
        for about, step in probe.steps:
            check = _checked(about, step)
            if check is not None:
                yield check
                if check.level == FAILURE or check is probe.read_only:
                    return
    finally:
        probe.remove()


def _checked(about: str, step: Callable[[str], Check | None]) -> Check | None:
    try:
        return step(about)
    except PacktrainError as error:
        return failure(about, error)


class _Probe:
    """An object that is written only to see how the store behaves."""

    def __init__(self, store: Store, clock: Clock, key: str) -> None:
        self._store = store
        self._clock = clock
        self._key = key
        self._raced = f"{key}.race"
        self._parted = f"{key}.parts"
        self._data = key.encode()
        self._written = False
        self.read_only: Check | None = None
        self.steps: list[tuple[str, Callable[[str], Check | None]]] = [
            ("store", self._list),
            ("reading", self._read),
            ("writing", self._write),
            ("conditional writes", self._write_twice),
            ("uploads by parts", self._upload_by_parts),
            ("deleting", self._delete),
            ("clock", self._compare_clocks),
        ]

    def remove(self) -> None:
        """What a step that failed left behind, and what killed doctors did."""
        if self._written:
            with suppress(PacktrainError):
                for key in [self._key, self._raced, self._parted, *self._forgotten]:
                    self._store.delete(key)

    def _list(self, about: str) -> Check:
        limit = self._clock.now() - FORGOTTEN
        probes = list(self._store.list(PROBES))
        self._forgotten = [probe.key for probe in probes if probe.modified and probe.modified < limit]
        where = f" ({kind(self._store.directory)})" if self._store.directory else ""
        return ok(about, f"{self._store.url}{where} answers and may be listed")

    def _read(self, about: str) -> Check:
        with suppress(NotFound):
            self._store.get(self._key)
        return ok(about, "allowed")

    def _write(self, about: str) -> Check:
        self._before = self._clock.now()
        self._written = True  # whatever is answered, it may be there
        try:
            self._store.create(self._key, self._data)
        except Refused as error:
            self._written = False
            self.read_only = warning(
                about,
                f"not allowed: {error.message}",
                "A machine that only pulls and serves needs no more. To publish and promote from here: " + error.hint,
            )
            return self.read_only
        finally:
            self._after = self._clock.now()
        info = self._store.head(self._key)
        self._modified = info.modified if info else None
        listed = self._key in {each.key for each in self._store.list(PROBES)}
        if info is None or not listed or self._store.get(self._key) != self._data:
            raise IntegrityError(
                f"what was just written to {self._store.url} is not what is read and listed",
                hint="Packtrain needs a store that shows every write at once. On a network file system look at the "
                "mount options that cache attributes and folders; behind a proxy or gateway switch its cache off.",
            )
        return ok(about, "allowed; what is written is read and listed at once")

    def _write_twice(self, about: str) -> Check:
        """The law that promotions rest on: of several who create one object exactly one succeeds."""

        def create(number: int) -> bool:
            try:
                self._store.create(self._raced, b"%d" % number)
            except AlreadyExists:
                return False
            return True

        with suppress(AlreadyExists):
            self._store.create(self._key, b"replaced")
        replaced = self._store.get(self._key) != self._data
        with ThreadPoolExecutor(RACERS) as pool:
            winners = [number for number, won in enumerate(pool.map(create, range(RACERS))) if won]
        if replaced or len(winners) != 1 or self._store.get(self._raced) != b"%d" % winners[0]:
            found = "the second writer replaced what the first one wrote" if replaced else f"{len(winners)} succeeded"
            raise Refused(
                f"{self._store.url} does not do conditional writes: of several writers of one object {found}",
                hint="Two people could promote at once, and one would be lost. Do not publish or promote there. "
                "Use an S3 server that honours If-None-Match: * (AWS S3 and SeaweedFS do), or a file system with "
                "hard links; a proxy in between must pass the header on.",
            )
        return ok(about, f"of {RACERS} writers of one object exactly one succeeded")

    def _upload_by_parts(self, about: str) -> Check | None:
        """What a publish rests on, or does without."""
        multipart = self._store.multipart
        if multipart is None:
            return None
        data, url = bytes(_PROBED), self._store.locate(self._parted)
        crc32 = zlib.crc32(data)
        missing: list[str] = []
        upload = multipart.begin(self._parted)
        try:
            sent = multipart.send(upload, 1, lambda: [data], len(data), crc32)
            try:
                listed = [part.number for part in multipart.parts(upload)] == [1]
            except PacktrainError:
                listed = False
            if not listed:
                missing.append("it does not list parts: an interrupted publish sends unfinished files from their start")
            if sent.crc32 is None:
                missing.append("it confirms no checksums: what is uploaded is read back")
            multipart.complete(upload, [sent], crc32)
        except BaseException:
            multipart.abort(upload)
            raise
        upload = multipart.begin(self._parted)
        try:
            copies = multipart.copy(upload, 1, url, 0, len(data)) is not None
            if not copies and not url.startswith("gs://"):  # there nobody can do anything about it
                missing.append("it copies no ranges: what an earlier version holds is sent again")
            try:
                found = upload in list(multipart.open_uploads(PROBES))
            except PacktrainError:
                found = False
            if not found:
                missing.append("it does not list open uploads: what is left open stays, unless it removes it")
        finally:
            multipart.abort(upload)
        if missing:
            return warning(about, "; ".join(missing), "It works like this. docs/s3-servers.md compares servers.")
        if copies:
            return ok(about, "checksums are confirmed, ranges copied by the server, and open uploads listed")
        return ok(about, "checksums are confirmed and open uploads listed; GCS copies whole files, no ranges")

    def _delete(self, about: str) -> Check:
        try:
            for key in (self._key, self._raced, self._parted, *self._forgotten):
                self._store.delete(key)
        except Refused as error:
            return warning(
                about,
                f"not allowed: {error.message}; the probe {self._store.locate(self._key)} stays",
                "Leases and leftovers cannot be removed from here. To allow it: " + error.hint,
            )
        if self._store.head(self._key) is not None:
            raise IntegrityError(
                f"{self._store.locate(self._key)} was deleted and is still there",
                hint="Is a cache or a proxy between this machine and the store? Packtrain needs the store itself.",
            )
        return ok(about, "allowed")

    def _compare_clocks(self, about: str) -> Check | None:
        if self._modified is None:
            return None
        early, late = self._before - RESOLUTION - self._modified, self._modified - self._after - RESOLUTION
        skew = max(early, late)
        if skew <= SKEW:
            return ok(about, "the store's agrees with this machine's")
        return warning(
            about,
            f"the store's is {skew.total_seconds():.0f} s {'behind' if early > late else 'ahead of'} this machine's",
            "Set both by NTP (chrony, ntpd): leases are compared between machines, and S3 refuses requests whose time "
            "is 15 minutes off.",
        )
