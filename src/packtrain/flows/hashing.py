"""From the files of a directory to the entries of a manifest: both digests in one read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from blake3 import blake3

from packtrain.errors import NotFound, Refused, disk_error
from packtrain.flows.workers import Halt, run_all
from packtrain.model.manifest import Chunk, FileEntry
from packtrain.model.safetensors import HeaderError, cut
from packtrain.ports import Reporter
from packtrain.training.weights import read_header

_PIECE = 1 << 20  # bytes read at once


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file that will be part of a version: from ``source`` on this disk, or ``content`` that publish generated."""

    path: str  # in the version
    source: Path | None = None
    content: bytes = b""
    generated: bool = False

    @property
    def size(self) -> int:
        return self.source.stat().st_size if self.source else len(self.content)


def hash_files(files: Sequence[LocalFile], reporter: Reporter) -> list[FileEntry]:
    """The manifest entries of files, in their order. Raises Refused if a file changes while it is read."""
    reporter.begin("hashing", sum(file.size for file in files))
    try:
        largest_first = sorted(range(len(files)), key=lambda i: -files[i].size)
        entries = run_all(
            lambda i, halt: (i, _hash(files[i], reporter, halt)),
            largest_first,
            threads=min(os.cpu_count() or 1, 16),
            name="hash",
        )
    finally:
        reporter.end()
    return [entry for _, entry in sorted(entries)]


def checked_body(file: LocalFile, entry: FileEntry, reporter: Reporter, halt: Halt) -> Iterator[bytes]:
    """The bytes of a file in pieces, each chunk checked against the manifest as it passes.

    Raises Refused at the first chunk that is not what was hashed: the file changed meanwhile.
    """
    if file.source is None:
        reporter.advance(len(file.content))
        yield file.content
        return
    with _reading(file) as stream:
        for chunk in entry.chunks:
            digest = blake3()
            left = chunk.length
            while left:
                halt.check()
                piece = stream.read(min(left, _PIECE))
                if not piece:
                    raise _changed(file)
                digest.update(piece)
                left -= len(piece)
                if not left and digest.hexdigest() != chunk.blake3:
                    raise _changed(file)  # before the last piece leaves, so that the object is never completed
                reporter.advance(len(piece))
                yield piece
        if stream.read(1):
            raise _changed(file)


def _hash(file: LocalFile, reporter: Reporter, halt: Halt) -> FileEntry:
    if file.source is None:
        reporter.advance(len(file.content))
        return _entry(file, hashlib.sha256(file.content).hexdigest(), _chunks_of(file.content), len(file.content))
    try:
        header = read_header(file.source) if file.path.endswith(".safetensors") else None
    except (HeaderError, NotFound) as error:  # preflight read it a moment ago
        raise _changed(file) from error
    with _reading(file) as stream:
        before = os.fstat(stream.fileno())
        sha256, chunks = hashlib.sha256(), []
        buffer = memoryview(bytearray(_PIECE))
        for length in cut(before.st_size, header):
            digest, left = blake3(), length
            while left:
                halt.check()
                count = stream.readinto(buffer[: min(left, _PIECE)])
                if not count:
                    raise _changed(file)
                sha256.update(buffer[:count])
                digest.update(buffer[:count])
                left -= count
                reporter.advance(count)
            chunks.append(Chunk(length, digest.hexdigest()))
        after = os.fstat(stream.fileno())
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise _changed(file)
    return _entry(file, sha256.hexdigest(), chunks, before.st_size)


@contextmanager
def _reading(file: LocalFile) -> Iterator[FileIO]:
    assert file.source is not None
    try:
        with file.source.open("rb", buffering=0) as stream:
            yield stream
    except FileNotFoundError as error:
        raise _changed(file) from error
    except OSError as error:
        raise disk_error(error, f"could not read {file.source}") from error


def _chunks_of(content: bytes) -> list[Chunk]:
    chunks, start = [], 0
    for length in cut(len(content), None):
        chunks.append(Chunk(length, blake3(content[start : start + length]).hexdigest()))
        start += length
    return chunks


def _entry(file: LocalFile, sha256: str, chunks: list[Chunk], size: int) -> FileEntry:
    return FileEntry(path=file.path, size=size, sha256=sha256, chunks=tuple(chunks), generated=file.generated)


def _changed(file: LocalFile) -> Refused:
    return Refused(
        f"{file.source} changed while it was being published; nothing was published",
        hint="Wait until training or export has finished writing, then run the command again.",
    )
