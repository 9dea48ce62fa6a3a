"""Objects come to be in a store that checks what it gets: whole or part by part, several at once, each confirmed.

A part is sent, or copied by the server from where the store holds the same bytes; what an interrupted publish left is
kept. Memory is a buffer for each thread. Several publishes of the same bytes may work on one object: they send the
same parts, and who comes late finds it there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Lock
from typing import TypeVar

from packtrain.errors import IntegrityError, NotFound, Refused
from packtrain.flows import integrity
from packtrain.flows.hashing import Checksums, checked_run, checksums_of
from packtrain.flows.sources import NewFile
from packtrain.flows.workers import Halt, run_all
from packtrain.model.crc32 import combined
from packtrain.model.manifest import FileEntry
from packtrain.model.parts import Part, plan_parts
from packtrain.model.sourcing import Place, Run
from packtrain.ports import Body, Multipart, OpenUpload, PartInfo, Reporter, Store

T = TypeVar("T")

THREADS = 4  # requests at once
_SMALL = 5 << 20  # bytes: of a file of at most as many S3 copies no ranges
_REFUSALS = 3  # of copies, after which no more are asked for
_ROUNDS = 3  # attempts at an object whose upload somebody else ended, or that did not come out right
_ATTEMPTS = 3  # at a part that arrived as something else


@dataclass(slots=True)
class Traffic:
    """What it took, in bytes: sent from here, copied by the store, and there already as parts."""

    sent: int = 0
    copied: int = 0
    resumed: int = 0


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A file, and where the store holds it: ``whole``, or chunks of it, by their indexes in the file."""

    file: NewFile
    entry: FileEntry
    whole: Place | None = None
    places: Mapping[int, Place] = field(default_factory=dict)


@dataclass(slots=True)
class _Object:
    """An object that comes to be. ``parts`` and the checksums of its chunks are the plan; ``infos`` what its ``upload``
    holds; ``doubtful`` the runs of which the store did not say that they are right. ``failures`` counts rounds."""

    outgoing: Outgoing
    crc32s: Sequence[int] = ()
    parts: Sequence[Part] = ()
    upload: OpenUpload | None = None
    infos: dict[int, PartInfo] = field(default_factory=dict)
    doubtful: list[Run] = field(default_factory=list)
    told: int = 0  # bytes, to the reporter
    failures: int = 0
    done: bool = False
    gone: bool = False  # its upload was ended by somebody else

    @property
    def entry(self) -> FileEntry:
        return self.outgoing.entry

    @property
    def crc32(self) -> int:
        return self.crc32_of(Run.whole(self.entry))

    def crc32_of(self, run: Run) -> int:
        pairs = zip(self.crc32s[run.begin : run.end], run.chunks, strict=True)
        return combined((crc32, chunk.length) for crc32, chunk in pairs)

    def fitting(self, held: Iterable[PartInfo]) -> dict[int, PartInfo]:
        """Those of the parts that are as planned."""
        planned = {part.number: part for part in self.parts}
        return {
            info.number: info
            for info in held
            if (part := planned.get(info.number)) is not None
            and info.size == part.run.length
            and info.crc32 in (None, self.crc32_of(part.run))
        }


class Sending:
    """A version's files on their way into a store. ``prefix`` is the version's; ``locate`` gives the URL of the object
    that a place is in; ``renew`` keeps the lease. ``traffic`` grows meanwhile."""

    def __init__(
        self,
        store: Store,
        multipart: Multipart,
        prefix: str,
        *,
        checksums: Checksums,
        locate: Callable[[Place], str],
        renew: Callable[[], None],
        reporter: Reporter,
    ) -> None:
        self._store = store
        self._multipart = multipart
        self._prefix = prefix
        self._checksums = checksums
        self._locate = locate
        self._renew = renew
        self._reporter = reporter
        self._lock = Lock()
        self._refusals = 0
        self.traffic = Traffic()

    def send(self, files: Iterable[Outgoing]) -> None:
        """Returns when the store holds every file, by what it says itself or by what was read back.

        Raises Refused if a file changed, IntegrityError if the store goes on holding something else, Unavailable.
        """
        objects = [_Object(outgoing) for outgoing in files]
        for _ in range(_ROUNDS):
            run_all(self._begin, objects, threads=THREADS, name="begin")
            work = [each for making in objects for each in self._work(making)]
            run_all(self._do, work, threads=THREADS, name="send")
            objects = [making for making in objects if not making.done]
            if not objects:
                return
            for making in objects:
                self._tell(making, -making.told)
        raise IntegrityError(
            f"{self._where(objects[0])} was sent {_ROUNDS} times, and the store still holds something else",
            hint="Look at the store's disks and log, and for something else that writes or deletes there.",
        )

    def _begin(self, making: _Object, halt: Halt) -> None:
        """Plans an object, and finds what is there of it. After a failure nothing of before is used again."""
        halt.check()
        entry, anew = making.entry, making.failures > 0
        making.crc32s = self._checksums.get(entry.path, ())
        if len(making.crc32s) != len(entry.chunks):  # cut by another release
            making.crc32s = checksums_of(making.outgoing.file, entry, halt)
        limits = self._multipart.limits
        places = making.outgoing.places if self._refusals < _REFUSALS and not anew and entry.size > _SMALL else {}
        making.parts = plan_parts(entry, places, smallest=limits.smallest, most=limits.most)
        making.upload, making.infos, making.doubtful, making.gone = None, {}, [], False
        if len(making.parts) > 1 or any(part.place for part in making.parts):
            key = self._key(making)
            if not anew:
                self._resume(making, key)
            making.upload = making.upload or self._multipart.begin(key)

    def _resume(self, making: _Object, key: str) -> None:
        """Of the uploads that others left open, the one that holds most of what is planned, if any holds something."""
        for upload in self._multipart.open_uploads(key):
            if upload.key != key:
                continue
            with suppress(NotFound):  # somebody ended it just now
                held = making.fitting(self._multipart.parts(upload))
                if sum(info.size for info in held.values()) > sum(info.size for info in making.infos.values()):
                    making.upload, making.infos = upload, held
        runs = {part.number: part.run for part in making.parts}
        making.doubtful += [runs[info.number] for info in making.infos.values() if info.crc32 is None]
        there = sum(info.size for info in making.infos.values())
        self._tell(making, there)
        self._count(resumed=there)

    def _work(self, making: _Object) -> list[tuple[_Object, Part | None]]:
        """What is to be done; None is the whole object: sent in one request, or of nothing but parts that are there."""
        missing = [(making, part) for part in making.parts if part.number not in making.infos]
        return [*missing] if making.upload and missing else [(making, None)]

    def _do(self, work: tuple[_Object, Part | None], halt: Halt) -> None:
        making, part = work
        if making.gone:
            return
        halt.check()
        self._renew()
        try:
            if making.upload is None:
                self._put(making, halt)
            elif not self._hold(making, making.upload, part, halt):
                return
            else:
                self._complete(making, making.upload)
        except NotFound:  # of the upload: perhaps another publish has completed it
            making.gone = True
            making.doubtful = [Run.whole(making.entry)]
        self._confirm(making, halt)

    def _put(self, making: _Object, halt: Halt) -> None:
        run = Run.whole(making.entry)
        making.doubtful = [run]
        if making.failures == 0 and self._copied_whole(making):
            return
        body = self._body(making, run, halt)
        _insisting(lambda: self._multipart.put(self._key(making), body, run.length, making.crc32))
        self._count(sent=run.length)

    def _copied_whole(self, making: _Object) -> bool:
        """For what is too small for a copy of ranges."""
        place, size = making.outgoing.whole, making.entry.size
        if place is None:
            return False
        with suppress(NotFound, Refused):  # what is not there any more, or may not be read, is sent
            if self._store.copy_from(
                self._locate(place), self._key(making), size, lambda count: self._tell(making, count)
            ):
                self._count(copied=size)
                return True
        return False

    def _hold(self, making: _Object, upload: OpenUpload, part: Part | None, halt: Halt) -> bool:
        """Brings a part about. Whether it was the last one that was missing."""
        if part is None:
            return True
        info = self._copied(making, upload, part) or self._sent(making, upload, part, halt)
        with self._lock:
            making.infos[part.number] = info
            if info.crc32 is None:
                making.doubtful.append(part.run)
            return len(making.infos) == len(making.parts)

    def _copied(self, making: _Object, upload: OpenUpload, part: Part) -> PartInfo | None:
        if part.place is None or self._refusals >= _REFUSALS:
            return None
        url, length = self._locate(part.place), part.run.length
        try:
            info = self._multipart.copy(upload, part.number, url, part.place.start, length)
        except NotFound:  # of the upload, which sending will meet again; or of the source, which has been collected
            return None
        except Refused:  # what may be written may not be read, or lies in an archive
            info = None
        if info is None:
            self._refusals += 1
            return None
        if info.crc32 not in (None, making.crc32_of(part.run)):
            self._reporter.note(f"warning: {url} is damaged. {making.entry.path} is sent instead of copied from there")
            return None
        self._tell(making, length)
        self._count(copied=length)
        return info

    def _sent(self, making: _Object, upload: OpenUpload, part: Part, halt: Halt) -> PartInfo:
        body, length = self._body(making, part.run, halt), part.run.length
        crc32 = making.crc32_of(part.run)
        info = _insisting(lambda: self._multipart.send(upload, part.number, body, length, crc32))
        self._count(sent=length)
        return info

    def _complete(self, making: _Object, upload: OpenUpload) -> None:
        parts = [making.infos[part.number] for part in making.parts]
        try:
            self._multipart.complete(upload, parts, making.crc32)
        except IntegrityError:  # parts of another plan, which the store did not tell from ours
            self._multipart.abort(upload)
            making.gone = True

    def _confirm(self, making: _Object, halt: Halt) -> None:
        """Asks the store what it holds now; what it does not say is read."""
        key = self._key(making)
        try:
            crc32 = self._multipart.crc32(key)
        except NotFound:
            crc32, making.doubtful = None, [Run.whole(making.entry)]
        if crc32 is not None:
            right = crc32 == making.crc32
        else:
            right = all(integrity.holds(self._store, self._prefix, run, halt) for run in making.doubtful if run.length)
        if not right:
            making.failures += 1
            return
        making.done = True
        self._tell(making, making.entry.size - making.told)  # somebody else may have done it
        if making.upload is not None:
            for other in list(self._multipart.open_uploads(key)):  # nobody needs them any more
                if other.key == key:
                    self._multipart.abort(other)

    def _body(self, making: _Object, run: Run, halt: Halt) -> Body:
        """The bytes of a run, which may be asked for again."""
        told = 0

        def advance(count: int) -> None:
            nonlocal told
            told += count
            self._tell(making, count)
            self._renew()

        def body() -> Iterable[memoryview]:
            nonlocal told
            self._tell(making, -told)
            told = 0
            return checked_run(making.outgoing.file, run, advance, halt)

        return body

    def _tell(self, making: _Object, count: int) -> None:
        with self._lock:
            making.told += count
        self._reporter.advance(count)

    def _count(self, *, sent: int = 0, copied: int = 0, resumed: int = 0) -> None:
        with self._lock:
            self.traffic.sent += sent
            self.traffic.copied += copied
            self.traffic.resumed += resumed

    def _key(self, making: _Object) -> str:
        return self._prefix + making.entry.path

    def _where(self, making: _Object) -> str:
        return self._store.locate(self._key(making))


def _insisting(act: Callable[[], T]) -> T:
    """What arrives as something else is sent again: a wire that does that now and then does it seldom twice."""
    for _ in range(_ATTEMPTS - 1):
        with suppress(IntegrityError):
            return act()
    return act()
