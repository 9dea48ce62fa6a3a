"""A download on its way: preallocated files, and the journal of the chunks that are whole in them."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

from packtrain.cache.trees import walk
from packtrain.errors import disk_error
from packtrain.model.manifest import FILE_NAME, Manifest

JOURNAL = "journal"
_INDEX_BYTES = 4


class Partial:
    """The directory of one download. One process at a time may hold it; its threads share it.

    The journal's first line is the boot under which it was written, then the index of each finished chunk as four
    bytes. Data is written before its index, so within one boot the journal is true even after a kill; after a reboot
    its chunks are `doubtful`: they are to be read back and checked.
    """

    def __init__(self, directory: Path, manifest: Manifest, boot: str) -> None:
        self.directory = directory
        self.tree = directory / "tree"
        self._manifest = manifest
        self._boot = boot
        self._journal_path = directory / JOURNAL
        self._lock = Lock()
        self.finished: set[int] = set()
        self.doubtful: set[int] = set()
        self._journal = -1
        try:
            with self._disk("could not prepare the download"):
                self._make_writable()
                self._open_journal()
                self._preallocate()
        except BaseException:
            self.close()
            raise

    @contextmanager
    def open(self, path: str) -> Iterator[int]:
        """A descriptor of one of the files, for `os.pwrite`."""
        with self._disk(f"could not open {path}"):
            descriptor = os.open(self.tree / path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def finish(self, index: int) -> None:
        """Notes that a chunk is written and checked."""
        with self._lock, self._disk("could not note a finished chunk"):
            os.write(self._journal, index.to_bytes(_INDEX_BYTES, "little"))
            self.finished.add(index)

    def settle_doubts(self) -> None:
        """Begins the journal anew with what is finished now: every doubtful chunk was checked or will be fetched."""
        with self._disk("could not rewrite the journal"):
            self._write_journal(self._header, self.finished)
            self.doubtful.clear()

    def publish_as(self, target: Path) -> None:
        """Makes the finished tree read-only and gives it its name. ``target`` must not exist or be empty."""
        with self._disk(f"could not complete {target}"):
            (self.tree / FILE_NAME).write_bytes(self._manifest.encode())
            folders = []
            for folder, names in walk(self.tree):
                folders.append(folder)
                for name in names:
                    (folder / name).chmod(0o444)
            for folder in folders[1:]:
                folder.chmod(0o555)
            target.parent.mkdir(parents=True, exist_ok=True)
            self.tree.rename(target)  # before its own chmod: moving a folder needs write permission on it
            target.chmod(0o555)
        self.discard()

    def discard(self) -> None:
        """Leaves nothing behind. What cannot be removed now is removed by the next run."""
        self.close()
        with suppress(OSError):
            shutil.rmtree(self.directory)

    def close(self) -> None:
        if self._journal >= 0:
            os.close(self._journal)
            self._journal = -1

    @property
    def _header(self) -> bytes:
        return self._boot.encode() + b"\n"

    def _make_writable(self) -> None:
        """A download that was interrupted while it got its name is read-only already."""
        self.tree.mkdir(parents=True, exist_ok=True)
        for folder, names in walk(self.tree):
            folder.chmod(0o755)
            for name in names:
                (folder / name).chmod(0o644)

    def _open_journal(self) -> None:
        self._journal = os.open(self._journal_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        header, newline, indexes = self._journal_path.read_bytes().partition(b"\n")
        whole = len(indexes) - len(indexes) % _INDEX_BYTES
        noted = {int.from_bytes(indexes[i : i + _INDEX_BYTES], "little") for i in range(0, whole, _INDEX_BYTES)}
        here = self._chunks_here()
        if newline and header == self._boot.encode():
            self.finished = noted & here
        elif newline:
            self.doubtful = noted & here
        if not newline or not noted <= here or whole < len(indexes):
            self._write_journal(header + newline if self.doubtful else self._header, self.finished | self.doubtful)
        os.lseek(self._journal, 0, os.SEEK_END)

    def _chunks_here(self) -> set[int]:
        """The chunks of the files that have their size. Another file holds nothing, whatever the journal says: a
        removal may have been interrupted between the two."""
        here: set[int] = set()
        index = 0
        for file in self._manifest.files:
            chunks = range(index, index := index + len(file.chunks))
            with suppress(FileNotFoundError):
                if (self.tree / file.path).lstat().st_size == file.size:
                    here.update(chunks)
        return here

    def _write_journal(self, header: bytes, indexes: Iterable[int]) -> None:
        os.ftruncate(self._journal, 0)
        os.pwrite(self._journal, header + b"".join(i.to_bytes(_INDEX_BYTES, "little") for i in sorted(indexes)), 0)
        os.lseek(self._journal, 0, os.SEEK_END)

    def _preallocate(self) -> None:
        """Gives every file its size, so that a full disk is met before the download and not at its end."""
        for file in self._manifest.files:
            path = self.tree / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                if os.fstat(descriptor).st_size != file.size or not self.finished | self.doubtful:
                    os.ftruncate(descriptor, file.size)
                    _allocate(descriptor, file.size)
            finally:
                os.close(descriptor)

    @contextmanager
    def _disk(self, problem: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise disk_error(error, f"{problem} in {self.directory}") from error


def _allocate(descriptor: int, size: int) -> None:
    if size == 0:
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV):
            raise
