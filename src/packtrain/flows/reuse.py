"""What is on this node of a version: in other snapshots, and of a download that was begun before a restart."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from pathlib import Path

from blake3 import blake3

from packtrain.cache import Cache, Partial
from packtrain.errors import IntegrityError, LocalDiskError, disk_error
from packtrain.flows.workers import Halt, run_all
from packtrain.model.digest import Digest
from packtrain.model.manifest import Manifest
from packtrain.model.sourcing import AtHand, Copy, find_at_hand, missing_runs
from packtrain.ports import Reporter

THREADS = 4
_MOST = 256  # snapshots that are looked into: each takes an open file, and a node of adapters may have thousands
_STEP = 16 << 20  # bytes copied in one call
_BLOCK = 4096  # bytes: of file systems that share blocks between files (XFS, btrfs)
_OURS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # a copy fails for these where it is written, not where it is read


@dataclass(frozen=True, slots=True)
class Borrowed:
    """What is ``at_hand`` for a version, and the directories of the snapshots that have it. They are trusted, and
    pinned as long as `borrowing` lasts."""

    at_hand: AtHand = field(default_factory=AtHand)
    directories: Mapping[Digest, Path] = field(default_factory=dict)

    @property
    def links(self) -> dict[str, Path]:
        """The files that can be linked, by their paths in the version."""
        return {path: self.directories[place.snapshot] / place.path for path, place in self.at_hand.files.items()}


@contextmanager
def borrowing(cache: Cache, manifest: Manifest) -> Iterator[Borrowed]:
    """Looks into the snapshots that are trusted, the last used ones if there are very many. Those that help stay
    pinned meanwhile."""
    with ExitStack() as pins:
        held: dict[Digest, ExitStack] = {}

        def trusted() -> Iterator[tuple[Digest, Manifest]]:
            for digest in islice(cache.snapshots(), _MOST):
                pin = pins.enter_context(ExitStack())
                pin.enter_context(cache.pin(digest))
                if cache.holds(digest) and cache.trusts(digest):
                    try:
                        other = cache.manifest(digest)
                    except (IntegrityError, LocalDiskError):
                        other = None  # the next use of that snapshot will tell
                    if other is not None:
                        held[digest] = pin
                        yield digest, other
                        continue
                pin.close()

        at_hand = find_at_hand(manifest, trusted())
        for digest in held.keys() - at_hand.snapshots:
            held[digest].close()
        yield Borrowed(at_hand, {digest: cache.path(digest) for digest in at_hand.snapshots})


def recheck(manifest: Manifest, partial: Partial, reporter: Reporter) -> None:
    """Reads back the chunks that were written before a reboot; those that are right need not be fetched again."""
    if not partial.doubtful:
        return
    skip = set(range(sum(len(file.chunks) for file in manifest.files))) - partial.doubtful
    runs = list(missing_runs(manifest, skip))
    reporter.begin("checking what an earlier download left", sum(run.length for run in runs))
    for run in runs:
        with partial.open(run.file.path) as descriptor:
            position = run.start
            for index, chunk in enumerate(run.chunks, start=run.first):
                if blake3(_pread(descriptor, chunk.length, position)).hexdigest() == chunk.blake3:
                    partial.finished.add(index)
                position += chunk.length
                reporter.advance(chunk.length)
    reporter.end()
    partial.settle_doubts()


def copy_chunks(borrowed: Borrowed, manifest: Manifest, partial: Partial, reporter: Reporter) -> int:
    """Copies the chunks at hand that ``partial`` lacks. Returns how many bytes.

    The kernel copies them, or shares them where the file system can. They were verified where they lie, so they are
    not read again. What cannot be read there is left to be fetched.
    """
    copies = _apart(borrowed.at_hand.copies(manifest, partial.finished))
    total = sum(copy.run.length for copy in copies)
    if not copies:
        return 0
    reporter.begin("copying", total)
    try:
        done = run_all(
            lambda copy, halt: _copy(copy, borrowed.directories[copy.place.snapshot], partial, reporter, halt),
            copies,
            threads=THREADS,
            name="copy",
        )
    finally:
        reporter.end()
    return sum(done)


def _apart(copies: Iterable[Copy]) -> list[Copy]:
    """Those into one file far from each other: the kernel lets one thread at a time write to a file."""
    by_file: dict[str, list[Copy]] = {}
    for copy in copies:
        by_file.setdefault(copy.run.file.path, []).append(copy)
    return [copy for turn in zip_longest(*by_file.values()) for copy in turn if copy is not None]


def _copy(copy: Copy, directory: Path, partial: Partial, reporter: Reporter, halt: Halt) -> int:
    source = directory / copy.place.path
    run, length, done = copy.run, copy.run.length, 0
    try:
        with partial.open(run.file.path) as target, source.open("rb", buffering=0) as stream:
            while done < length:
                halt.check()
                begin, position = copy.place.start + done, run.start + done
                moved = _move(stream.fileno(), begin, target, position, _step(begin, position, length - done))
                done += moved
                reporter.advance(moved)
            partial.finish(*range(run.first, run.first + run.end - run.begin))
    except OSError as error:
        if error.errno in _OURS:
            raise disk_error(error, f"could not write {run.file.path}") from error
        reporter.note(f"warning: {source} could not be copied ({error.strerror}); fetching these bytes instead")
        reporter.advance(-done)
        return 0
    return length


def _step(begin: int, position: int, left: int) -> int:
    """How much to copy next, so that as many whole blocks as can be are shared and not copied: they must begin at a
    block's boundary in both files."""
    if (begin - position) % _BLOCK:
        return min(_STEP, left)
    if off := begin % _BLOCK:
        return min(_BLOCK - off, left)
    return min(_STEP, left - left % _BLOCK or left)


def _move(source: int, start: int, target: int, position: int, count: int) -> int:
    """Copies up to ``count`` bytes, and at least one. Raises OSError."""
    try:
        moved = os.copy_file_range(source, target, count, start, position)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise
        moved = os.pwrite(target, os.pread(source, min(count, 1 << 20), start), position)
    if not moved:
        raise OSError(errno.EIO, "it is shorter than it was")
    return moved


def _pread(descriptor: int, length: int, position: int) -> bytes:
    pieces = []
    while length and (piece := os.pread(descriptor, length, position)):
        pieces.append(piece)
        position += len(piece)
        length -= len(piece)
    return b"".join(pieces)
