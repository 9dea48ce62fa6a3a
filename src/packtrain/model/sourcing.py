"""Which bytes to ask for: missing chunks, grouped into requests."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass

from packtrain.model.manifest import Chunk, FileEntry, Manifest

REQUEST = 16 << 20  # bytes that one request covers at most, unless a single chunk is longer


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring chunks of one file: what one request fetches.

    ``first`` is the index of its first chunk among all chunks of the manifest, in the order of its files.
    """

    file: FileEntry
    start: int  # byte offset in the file
    first: int
    chunks: tuple[Chunk, ...]

    @property
    def length(self) -> int:
        return sum(chunk.length for chunk in self.chunks)

    def after(self, count: int) -> Run:
        """What is left when the first ``count`` chunks are done."""
        done = sum(chunk.length for chunk in self.chunks[:count])
        return Run(self.file, self.start + done, self.first + count, self.chunks[count:])


def plan_runs(manifest: Manifest, finished: Container[int]) -> Iterator[Run]:
    """The requests that fetch every chunk whose index is not in ``finished``."""
    index = 0
    for file in manifest.files:
        start, length = 0, 0
        pending: list[Chunk] = []
        for chunk in file.chunks:
            wanted = index not in finished
            if pending and (not wanted or length + chunk.length > REQUEST):
                yield Run(file, start - length, index - len(pending), tuple(pending))
                pending, length = [], 0
            if wanted:
                pending.append(chunk)
                length += chunk.length
            start += chunk.length
            index += 1
        if pending:
            yield Run(file, start - length, index - len(pending), tuple(pending))
