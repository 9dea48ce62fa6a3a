"""Where the bytes of a new version come from: files of this machine, objects of a store, or publish itself.

They belong to somebody else and may change at any moment. A source is looked at once, and refuses to give bytes that
are no longer those it was when it was looked at.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Protocol

from packtrain.errors import NotFound, PacktrainError, Refused, Unavailable, disk_error
from packtrain.ports import Clock, ObjectInfo, Store
from packtrain.training.checkpoint import Checkpoint, inspect
from packtrain.training.generated import generate

ATTEMPTS = 6  # to read on after a store failed, before it counts as unavailable


class Source(Protocol):
    """The bytes of one file."""

    @property
    def size(self) -> int:
        """In bytes, when it was looked at."""
        ...

    @property
    def url(self) -> str | None:
        """Where a store finds the same bytes to copy them by itself (`Store.copy_from`); None: nowhere."""
        ...

    @property
    def tagged(self) -> bool:
        """Whether its `Origin` can tell that it was not written since it was looked at. A copy of a source that is not
        tagged must be read back."""
        ...

    def read(self, start: int, length: int, buffer: memoryview) -> Iterator[memoryview]:
        """As `Store.read`. Raises Refused if it changed, LocalDiskError, Unavailable."""
        ...

    def changed(self) -> Refused:
        """The error that says so."""
        ...


class Origin(Protocol):
    """The directory or the prefix of a store that holds a checkpoint."""

    def source(self, path: str) -> Source:
        """One of the checkpoint's files."""
        ...

    def require_unchanged(self) -> None:
        """Raises Refused if files came or went, or if a tagged source was written since it was looked at."""
        ...


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file that will be part of a version; ``generated`` by publish, or exported."""

    path: str
    source: Source
    generated: bool = False


def files_of(checkpoint: Checkpoint, origin: Origin) -> list[NewFile]:
    """What a version of this checkpoint is made of."""
    taken = [NewFile(path, origin.source(path)) for path in checkpoint.taken]
    made = [
        NewFile(
            file.path,
            origin.source(file.copy_of) if file.copy_of else Made(file.path, file.content or b""),
            generated=True,
        )
        for file in generate(checkpoint)
    ]
    return taken + made


@dataclass(frozen=True, slots=True)
class Made:
    """What publish generated."""

    path: str
    content: bytes
    url = None
    tagged = True

    @property
    def size(self) -> int:
        return len(self.content)

    def read(self, start: int, length: int, buffer: memoryview) -> Iterator[memoryview]:
        data = memoryview(self.content)[start : start + length]
        for offset in range(0, len(data), len(buffer)):
            yield data[offset : offset + len(buffer)]

    def changed(self) -> Refused:
        return changed(self.path)


class LocalFile:
    """A file of this machine. Its size, modification time and inode tell whether it changed."""

    tagged = False  # that is enough to refuse, but a write within one tick of the clock would not show

    def __init__(self, path: Path) -> None:
        """Raises Refused if it is gone, LocalDiskError."""
        self.path = path
        with self._disk():
            self._looked = _look(path.stat())

    @property
    def size(self) -> int:
        return self._looked[0]

    @property
    def url(self) -> str:
        return self.path.absolute().as_uri()

    def read(self, start: int, length: int, buffer: memoryview) -> Iterator[memoryview]:
        end = start + length
        with self._open() as file:
            while start < end:
                count = os.preadv(file.fileno(), [buffer[: end - start]], start)
                if not count:
                    raise self.changed()
                start += count
                yield buffer[:count]
            if _look(os.fstat(file.fileno())) != self._looked:
                raise self.changed()

    def changed(self) -> Refused:
        return changed(str(self.path))

    @contextmanager
    def _open(self) -> Iterator[FileIO]:
        with self._disk(), self.path.open("rb", buffering=0) as file:
            yield file

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise self.changed() from error
        except OSError as error:
            raise disk_error(error, f"could not read {self.path}") from error


def _look(stat: os.stat_result) -> tuple[int, int, int]:
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


@dataclass(frozen=True, slots=True)
class LocalDirectory:
    """A checkpoint's own directory."""

    checkpoint: Checkpoint

    def source(self, path: str) -> LocalFile:
        return LocalFile(self.checkpoint.directory / path)

    def require_unchanged(self) -> None:
        try:
            now = set(inspect(self.checkpoint.directory).taken)
        except PacktrainError as error:
            raise changed(str(self.checkpoint.directory)) from error
        if different := now.symmetric_difference(self.checkpoint.taken):
            raise changed(str(self.checkpoint.directory / min(different)))


@dataclass(frozen=True, slots=True)
class StoredFile:
    """An object of a store that is read, and never written."""

    store: Store
    info: ObjectInfo
    clock: Clock

    @property
    def size(self) -> int:
        return self.info.size

    @property
    def url(self) -> str:
        return self.store.locate(self.info.key)

    @property
    def tagged(self) -> bool:
        return bool(self.info.tag)

    def read(self, start: int, length: int, buffer: memoryview) -> Iterator[memoryview]:
        end, failures = start + length, 0
        while start < end:
            try:
                for piece in self.store.read(self.info.key, start, end - start, buffer):
                    start += len(piece)
                    failures = 0
                    yield piece
            except NotFound as error:
                raise self.changed() from error
            except Unavailable:
                failures += 1
                if failures >= ATTEMPTS:
                    raise
                self.clock.sleep(random.uniform(0.5, 1.0) * min(10.0, 0.2 * 2**failures))

    def changed(self) -> Refused:
        return changed(self.url)


@dataclass(frozen=True, slots=True)
class StoredDirectory:
    """Everything in a store that is only read: a bucket's prefix. ``objects``, by key, as they were listed."""

    store: Store
    objects: Mapping[str, ObjectInfo]
    clock: Clock

    def source(self, path: str) -> StoredFile:
        return StoredFile(self.store, self.objects[path], self.clock)

    def require_unchanged(self) -> None:
        before = {(info.key, info.size, info.tag) for info in self.objects.values()}
        now = {(info.key, info.size, info.tag) for info in self.store.list("")}
        if different := before ^ now:
            raise changed(self.store.locate(min(different)[0]))


def changed(what: str) -> Refused:
    return Refused(
        f"{what} changed while it was being published; nothing was published",
        hint="Wait until training or export has finished writing, then run the command again.",
    )
