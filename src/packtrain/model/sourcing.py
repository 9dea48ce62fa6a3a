"""Where the bytes of a version come from: files and chunks that are at hand already, and for the rest, what to ask for.

A chunk is known by its digest, wherever it lies: what a fine-tune left untouched is the same chunk in the version
before it, in a re-sharded export and in the base model.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from itertools import chain

from packtrain.model.digest import Digest
from packtrain.model.manifest import Chunks, FileEntry, Manifest
from packtrain.model.pacing import LONGEST


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring chunks of one file, ``file.chunks[begin:end]``: what one request may fetch.

    ``start`` is the byte offset of the first of them in the file, ``first`` its index among all chunks of the
    manifest, in the order of its files.
    """

    file: FileEntry
    start: int
    first: int
    begin: int
    end: int

    @classmethod
    def whole(cls, file: FileEntry, first: int = 0) -> Run:
        """All chunks of a file."""
        return cls(file, 0, first, 0, len(file.chunks))

    @property
    def chunks(self) -> Chunks:
        return self.file.chunks[self.begin : self.end]

    @property
    def length(self) -> int:
        """In bytes."""
        return sum(self.file.chunks.lengths[self.begin : self.end])

    def after(self, count: int) -> Run:
        """What is left when the first ``count`` chunks are done."""
        done = sum(self.file.chunks.lengths[self.begin : self.begin + count])
        return replace(self, start=self.start + done, first=self.first + count, begin=self.begin + count)

    def split(self, limit: int) -> tuple[Run, Run | None]:
        """The first chunks that make up at most ``limit`` bytes, but at least one; and the rest, if there is any."""
        length, count = 0, 0
        for index in range(self.begin, self.end):
            length += self.file.chunks.lengths[index]
            if count and length > limit:
                break
            count += 1
        if self.begin + count == self.end:
            return self, None
        return replace(self, end=self.begin + count), self.after(count)


def missing_runs(manifest: Manifest, finished: Container[int]) -> Iterator[Run]:
    """The chunks whose index is not in ``finished``, in runs as long as can be."""
    first = 0
    for file in manifest.files:
        start, begin, run_start = 0, 0, 0
        for index, length in enumerate(file.chunks.lengths):
            if first + index in finished:
                if begin < index:
                    yield Run(file, run_start, first + begin, begin, index)
                begin, run_start = index + 1, start + length
            start += length
        if begin < len(file.chunks):
            yield Run(file, run_start, first + begin, begin, len(file.chunks))
        first += len(file.chunks)


@dataclass(frozen=True, slots=True)
class Place:
    """Where bytes lie: from byte ``start`` on in the file ``path`` of a snapshot."""

    snapshot: Digest
    path: str
    start: int = 0


@dataclass(frozen=True, slots=True)
class Copy:
    """A run whose chunks lie one after the other in another snapshot, from ``place`` on."""

    run: Run
    place: Place


@dataclass(frozen=True, slots=True)
class AtHand:
    """What other snapshots hold of a version: whole ``files`` by their paths in it, and ``chunks``, those of these
    files included, by their indexes among all of its chunks."""

    files: Mapping[str, Place] = field(default_factory=dict)
    chunks: Mapping[int, Place] = field(default_factory=dict)

    @property
    def snapshots(self) -> set[Digest]:
        return {place.snapshot for place in self.chunks.values()}

    def copies(self, manifest: Manifest, finished: Container[int]) -> Iterator[Copy]:
        """What to copy of what is not ``finished``, in as few pieces as can be."""
        for run in missing_runs(manifest, finished):
            rest: Run | None = run
            while rest is not None:
                place, count, length = self.chunks.get(rest.first), 1, rest.file.chunks.lengths[rest.begin]
                while place is not None and rest.begin + count < rest.end:
                    if self.chunks.get(rest.first + count) != replace(place, start=place.start + length):
                        break
                    length += rest.file.chunks.lengths[rest.begin + count]
                    count += 1
                if place is not None:
                    yield Copy(replace(rest, end=rest.begin + count), place)
                rest = rest.after(count) if rest.begin + count < rest.end else None


def find_at_hand(manifest: Manifest, snapshots: Iterable[tuple[Digest, Manifest]]) -> AtHand:
    """What ``snapshots`` hold of a version. Their manifests are looked at one after the other, and not kept."""
    wanted_files = {(file.sha256, file.size) for file in manifest.files if file.size}
    wanted_chunks: dict[str, list[int]] = {}
    by_content: dict[tuple[str, int], Place] = {}
    by_path: dict[tuple[str, str], Place] = {}  # rather than a copy of it elsewhere
    chunks: dict[int, Place] = {}
    lengths = array("Q", chain.from_iterable(file.chunks.lengths for file in manifest.files))
    for digest, other in snapshots:
        wanted_chunks = wanted_chunks or _places_of_chunks(manifest)
        for file in other.files:
            key = (file.sha256, file.size)
            if key in wanted_files:
                by_content.setdefault(key, Place(digest, file.path))
                by_path.setdefault((file.path, file.sha256), Place(digest, file.path))
            start = 0
            for chunk in file.chunks:
                for index in wanted_chunks.get(chunk.blake3, ()):
                    before = chunks.get(index - 1)
                    follows = before is not None and before == Place(digest, file.path, start - lengths[index - 1])
                    if follows or index not in chunks:  # of equal chunks the one that keeps a run together
                        chunks[index] = Place(digest, file.path, start)
                start += chunk.length
    files: dict[str, Place] = {}
    first = 0
    for file in manifest.files:
        whole = by_path.get((file.path, file.sha256)) or by_content.get((file.sha256, file.size))
        if whole is not None:
            files[file.path] = whole
            start = 0
            for index, length in enumerate(file.chunks.lengths, start=first):
                chunks[index] = replace(whole, start=start)
                start += length
        first += len(file.chunks)
    return AtHand(files, chunks)


def _places_of_chunks(manifest: Manifest) -> dict[str, list[int]]:
    """The indexes of each chunk among all, by its digest."""
    found: dict[str, list[int]] = {}
    for index, chunk in enumerate(chunk for file in manifest.files for chunk in file.chunks):
        found.setdefault(chunk.blake3, []).append(index)
    return found


@dataclass(frozen=True, slots=True)
class Ways:
    """How bytes come to a node: ``linked`` in whole files, ``copied`` from other snapshots, ``fetched``."""

    linked: int = 0
    copied: int = 0
    fetched: int = 0

    @property
    def size(self) -> int:
        return self.linked + self.copied + self.fetched

    def __add__(self, other: Ways) -> Ways:
        return Ways(self.linked + other.linked, self.copied + other.copied, self.fetched + other.fetched)


@dataclass(frozen=True, slots=True)
class Share:
    """What a snapshot gives, in bytes."""

    snapshot: Digest
    linked: int
    copied: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What it takes to complete a version. The chunks ``finished`` are here; whole files become ``links``; of the
    others, the chunks ``at_hand`` are copied and the ``runs`` fetched."""

    manifest: Manifest
    at_hand: AtHand
    finished: frozenset[int]
    links: frozenset[str]
    runs: tuple[Run, ...]

    @classmethod
    def of(cls, manifest: Manifest, at_hand: AtHand, finished: Set[int] = frozenset()) -> Plan:
        """A file of which anything is missing becomes a link if it can, whatever of it is finished."""
        links: set[str] = set()
        linked: set[int] = set()
        first = 0
        for file in manifest.files:
            chunks = range(first, first := first + len(file.chunks))
            if file.path in at_hand.files and any(index not in finished for index in chunks):
                links.add(file.path)
                linked.update(chunks)
        here = frozenset(finished - linked)
        runs = missing_runs(manifest, here | linked | at_hand.chunks.keys())
        return cls(manifest, at_hand, here, frozenset(links), tuple(runs))

    @property
    def here(self) -> int:
        """Bytes of what is finished."""
        lengths = [length for file in self.manifest.files for length in file.chunks.lengths]
        return sum(lengths[index] for index in self.finished)

    @property
    def chunks(self) -> int:
        """How many are fetched."""
        return sum(run.end - run.begin for run in self.runs)

    @property
    def requests(self) -> int:
        """How many it takes to fetch them, at least; a wire that likes shorter ones gets more."""
        count = 0
        for run in self.runs:
            rest: Run | None = run
            while rest is not None:
                _, rest = rest.split(LONGEST)
                count += 1
        return count

    @property
    def shares(self) -> list[Share]:
        """What each snapshot gives."""
        linked, copied = Counter[Digest](), Counter[Digest]()
        done = set(self.finished)
        first = 0
        for file in self.manifest.files:
            chunks = range(first, first := first + len(file.chunks))
            if file.path in self.links:
                linked[self.at_hand.files[file.path].snapshot] += file.size
                done.update(chunks)
        for copy in self.at_hand.copies(self.manifest, done):
            copied[copy.place.snapshot] += copy.run.length
        return [Share(digest, linked[digest], copied[digest]) for digest in sorted({*linked, *copied})]

    @property
    def ways(self) -> Ways:
        """Of all of it."""
        total = Ways()
        first = 0
        for file in self.manifest.files:
            total += self.ways_of(file, first, 0, file.size)
            first += len(file.chunks)
        return total

    def ways_of(self, file: FileEntry, first: int, start: int, end: int, *, begin: int = 0, at: int = 0) -> Ways:
        """Of the bytes ``[start, end)`` of a file, whose chunks are numbered from ``first`` on among all. Looks from
        its chunk ``begin`` on, which starts at byte ``at``."""
        if file.path in self.links:
            return Ways(linked=end - start)
        copied = fetched = 0
        for index in range(begin, len(file.chunks)):
            if at >= end:
                break
            length = file.chunks.lengths[index]
            part = min(at + length, end) - max(at, start)
            at += length
            if part <= 0 or first + index in self.finished:
                continue
            if first + index in self.at_hand.chunks:
                copied += part
            else:
                fetched += part
        return Ways(copied=copied, fetched=fetched)
