"""From the files of a checkpoint to the entries of a manifest: both digests in one read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence

from blake3 import blake3

from packtrain.flows.sources import NewFile
from packtrain.flows.workers import Halt, run_all
from packtrain.model.manifest import Chunk, FileEntry
from packtrain.model.safetensors import Header, HeaderError, cut, header_length, parse_header
from packtrain.ports import Reporter

_PIECE = 1 << 20  # bytes read at once


def hash_files(files: Sequence[NewFile], reporter: Reporter) -> list[FileEntry]:
    """The manifest entries of files, in their order. Raises Refused if a file changes while it is read."""
    reporter.begin("hashing", sum(file.source.size for file in files))
    try:
        largest_first = sorted(range(len(files)), key=lambda i: -files[i].source.size)
        entries = run_all(
            lambda i, halt: (i, _hash(files[i], reporter, halt)),
            largest_first,
            threads=min(os.cpu_count() or 1, 16),
            name="hash",
        )
    finally:
        reporter.end()
    return [entry for _, entry in sorted(entries)]


def checked_body(file: NewFile, entry: FileEntry, reporter: Reporter, halt: Halt) -> Iterator[bytes]:
    """The bytes of a file in pieces, each chunk checked against the manifest as it passes.

    Raises Refused at the first chunk that is not what was hashed: the file changed meanwhile.
    """
    expected = iter(entry.chunks)
    pieces = file.source.read(0, entry.size, _buffer())
    for part, digest in _cut(pieces, (chunk.length for chunk in entry.chunks)):
        halt.check()
        if digest is not None and digest != next(expected).blake3:
            raise file.source.changed()  # before the last piece leaves, so that the object is never completed
        reporter.advance(len(part))
        yield bytes(part)


def _hash(file: NewFile, reporter: Reporter, halt: Halt) -> FileEntry:
    size = file.source.size
    lengths = cut(size, _header(file))
    sha256, chunks = hashlib.sha256(), list[Chunk]()
    for part, digest in _cut(file.source.read(0, size, _buffer()), lengths):
        halt.check()
        sha256.update(part)
        if digest is not None:
            chunks.append(Chunk(lengths[len(chunks)], digest))
        reporter.advance(len(part))
    return FileEntry(
        path=file.path, size=size, sha256=sha256.hexdigest(), chunks=tuple(chunks), generated=file.generated
    )


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
    return b"".join(bytes(piece) for piece in file.source.read(0, length, _buffer()))


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


def _buffer() -> memoryview:
    return memoryview(bytearray(_PIECE))
