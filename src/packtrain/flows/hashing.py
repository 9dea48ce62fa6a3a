"""From the files of a checkpoint to the entries of a manifest: all digests in one read.

SHA-256 names a file, BLAKE3 checks a chunk, and CRC-32 is what stores check (`packtrain.ports.Multipart`); that of a
chunk is kept for as long as the publish takes, and combined into those of parts and objects.

SHA-256 takes as long as the other two, and has no parts that could be computed apart. Where there are fewer files than
processors it is computed beside them, so that one huge file keeps two busy.
"""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

from blake3 import blake3

from packtrain.flows.buffers import page_aligned
from packtrain.flows.sources import NewFile
from packtrain.flows.workers import Halt, run_all
from packtrain.model.crc32 import combined
from packtrain.model.manifest import Chunks, FileEntry
from packtrain.model.safetensors import Header, HeaderError, cut, header_length, parse_header
from packtrain.model.sourcing import Run
from packtrain.ports import Reporter

_PIECE = 1 << 20  # bytes read at once to be hashed
_SENT = 256 << 10  # to be sent: they stay in the processor's cache from the file to the wire

Checksums = Mapping[str, Sequence[int]]  # CRC-32 of each chunk, by the path of its file

_local = threading.local()


@dataclass(frozen=True, slots=True)
class Hashed:
    """What one read of some files gave: their entries, in the order of the files, and their checksums."""

    entries: list[FileEntry]
    checksums: Checksums


def hash_files(files: Sequence[NewFile], reporter: Reporter) -> list[FileEntry]:
    """The manifest entries of files, in their order. Raises Refused if a file changes while it is read."""
    return _hash_all(files, reporter, checks=False).entries


def hash_and_check(files: Sequence[NewFile], reporter: Reporter) -> Hashed:
    """The same, with what a store checks."""
    return _hash_all(files, reporter, checks=True)


def crc32_of(entry: FileEntry, crc32s: Sequence[int]) -> int:
    """Of a whole file, from those of its chunks."""
    return combined(zip(crc32s, entry.chunks.lengths, strict=True))


def checksums_of(file: NewFile, entry: FileEntry, halt: Halt) -> Sequence[int]:
    """The CRC-32 of each chunk of a file that was hashed in another way. Raises Refused if it changed."""
    crc32s, crc32 = list[int](), 0
    for part, digest in _cut(file.source.read(0, entry.size, _buffer(_PIECE)), entry.chunks.lengths):
        halt.check()
        crc32 = zlib.crc32(part, crc32)
        if digest is not None:
            if digest != entry.chunks[len(crc32s)].blake3:
                raise file.source.changed()
            crc32s.append(crc32)
            crc32 = 0
    return crc32s


def checked_body(file: NewFile, entry: FileEntry, advance: Callable[[int], None], halt: Halt) -> Iterator[bytes]:
    """`checked_run` of a whole file, in pieces that may be kept."""
    return map(bytes, checked_run(file, Run.whole(entry), advance, halt))


def checked_run(file: NewFile, run: Run, advance: Callable[[int], None], halt: Halt) -> Iterator[memoryview]:
    """The bytes of some chunks of a file in pieces, each valid until the next, each chunk checked as it passes.

    Raises Refused at the first chunk that is not what was hashed: the file changed meanwhile.
    """
    expected = iter(run.chunks)
    pieces = file.source.read(run.start, run.length, _buffer(_SENT))
    for part, digest in _cut(pieces, run.chunks.lengths):
        halt.check()
        if digest is not None and digest != next(expected).blake3:
            raise file.source.changed()  # before the last piece leaves, so that nothing is ever completed
        advance(len(part))
        yield part


def _hash_all(files: Sequence[NewFile], reporter: Reporter, *, checks: bool) -> Hashed:
    reporter.begin("hashing", sum(file.source.size for file in files))
    threads = min(os.cpu_count() or 1, 16)
    idle = threads - sum(file.source.size > _PIECE for file in files)
    try:
        largest_first = sorted(range(len(files)), key=lambda i: -files[i].source.size)
        with ThreadPoolExecutor(threads, thread_name_prefix="sha256") as pool:
            beside = pool if idle > 0 else None
            found = run_all(
                lambda i, halt: (i, _hash(files[i], checks, beside, reporter, halt)),
                largest_first,
                threads=threads,
                name="hash",
            )
    finally:
        reporter.end()
    entries = [entry for _, (entry, _) in sorted(found, key=lambda each: each[0])]
    return Hashed(entries, {entry.path: crc32s for _, (entry, crc32s) in found})


def _hash(
    file: NewFile, checks: bool, beside: Executor | None, reporter: Reporter, halt: Halt
) -> tuple[FileEntry, Sequence[int]]:
    """``checks``: whether checksums are wanted; else there are none. ``beside``: who computes SHA-256; None: we do."""
    size = file.source.size
    lengths = cut(size, _header(file))
    sha256, blake3s = hashlib.sha256(), list[str]()
    crc32s, crc32 = list[int](), 0
    pieces = _given_to(sha256.update, beside, file.source.read(0, size, _buffer(_PIECE)))
    for part, digest in _cut(pieces, lengths):
        halt.check()
        crc32 = zlib.crc32(part, crc32) if checks else 0
        if digest is not None:
            blake3s.append(digest)
            crc32s.append(crc32)
            crc32 = 0
        reporter.advance(len(part))
    entry = FileEntry(file.path, size, sha256.hexdigest(), Chunks(lengths, blake3s), file.generated)
    return entry, crc32s if checks else ()


def _header(file: NewFile) -> Header | None:
    """Of a safetensors file: it tells where its chunks begin."""
    if not file.path.endswith(".safetensors"):
        return None
    size = file.source.size
    try:
        first8 = _range(file, min(size, 8))
        return parse_header(_range(file, header_length(first8, size)), size)
    except HeaderError as error:  # preflight read it a moment ago
        raise file.source.changed() from error


def _range(file: NewFile, length: int) -> bytes:
    return b"".join(bytes(piece) for piece in file.source.read(0, length, _buffer(_PIECE)))


def _given_to(
    update: Callable[[memoryview], None], beside: Executor | None, pieces: Iterable[memoryview]
) -> Iterator[memoryview]:
    """The pieces, each given to ``update`` as well: here, or in another thread, which is done with it before the next
    one takes its place."""
    for piece in pieces:
        if beside is None:
            update(piece)
            yield piece
        else:
            updated = beside.submit(update, piece)
            yield piece
            updated.result()


def _cut(pieces: Iterable[memoryview], lengths: Iterable[int]) -> Iterator[tuple[memoryview, str | None]]:
    """The pieces, cut where a chunk ends; with the last part of each chunk its BLAKE3, with the others None."""
    ends = iter(lengths)
    left, digest = next(ends, 0), blake3()
    for piece in pieces:
        rest = piece
        while rest:
            part, rest = rest[:left], rest[left:]
            digest.update(part)
            left -= len(part)
            yield part, None if left else digest.hexdigest()
            if not left:
                left, digest = next(ends, 0), blake3()


def _buffer(size: int) -> memoryview:
    """This thread's own, made once."""
    buffers: dict[int, memoryview] = _local.__dict__.setdefault("buffers", {})
    if size not in buffers:
        buffers[size] = page_aligned(size)
    return buffers[size]
