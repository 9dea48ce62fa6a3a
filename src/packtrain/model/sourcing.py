"""Which bytes to ask for: missing chunks, grouped into requests."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass, replace

from packtrain.model.manifest import Chunk, FileEntry, Manifest


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
    def chunks(self) -> tuple[Chunk, ...]:
        return self.file.chunks[self.begin : self.end]

    @property
    def length(self) -> int:
        """In bytes."""
        return sum(chunk.length for chunk in self.chunks)

    def after(self, count: int) -> Run:
        """What is left when the first ``count`` chunks are done."""
        done = sum(chunk.length for chunk in self.file.chunks[self.begin : self.begin + count])
        return replace(self, start=self.start + done, first=self.first + count, begin=self.begin + count)

    def split(self, limit: int) -> tuple[Run, Run | None]:
        """The first chunks that make up at most ``limit`` bytes, but at least one; and the rest, if there is any."""
        length, count = 0, 0
        for index in range(self.begin, self.end):
            length += self.file.chunks[index].length
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
        for index, chunk in enumerate(file.chunks):
            if first + index in finished:
                if begin < index:
                    yield Run(file, run_start, first + begin, begin, index)
                begin, run_start = index + 1, start + chunk.length
            start += chunk.length
        if begin < len(file.chunks):
            yield Run(file, run_start, first + begin, begin, len(file.chunks))
        first += len(file.chunks)
