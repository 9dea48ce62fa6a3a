"""A download on its way: preallocated files, and the journal of the chunks that are whole in them."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, MutableSet
from contextlib import contextmanager, suppress
from itertools import compress, count
from pathlib import Path
from threading import Lock

from packtrain.cache.trees import walk
from packtrain.errors import disk_error
from packtrain.model.manifest import FILE_NAME, FileEntry, Manifest

JOURNAL = "journal"
_INDEX_BYTES = 4
_LARGE = 16 << 20  # bytes of a file whose allocation may take a while
_THREADS = 8


class Indexes(MutableSet[int]):
    """Of chunks: a byte for each up to the last, where a `set` takes a hundred."""

    def __init__(self, indexes: Iterable[int] = ()) -> None:
        self._marks = bytearray()
        for index in indexes:
            self.add(index)

    def __contains__(self, index: object) -> bool:
        return isinstance(index, int) and 0 <= index < len(self._marks) and self._marks[index] == 1

    def __iter__(self) -> Iterator[int]:
        return compress(count(), self._marks)

    def __len__(self) -> int:
        return self._marks.count(1)

    def add(self, index: int) -> None:
        self._marks.extend(bytes(max(0, index + 1 - len(self._marks))))
        self._marks[index] = 1

    def discard(self, index: int) -> None:
        if index in self:
            self._marks[index] = 0


class Partial:
    """The directory of one download. One process at a time may hold it; its threads share it.

    The journal's first line is the boot under which it was written, then the index of each finished chunk as four
    bytes. Data is written before its index, so within one boot the journal is true even after a kill; after a reboot
    its chunks are `doubtful`: they are to be read back and checked.

    ``links`` are files of it that other snapshots, which are trusted, hold whole: they become hard links, and are never
    written to.
    """

    def __init__(self, directory: Path, manifest: Manifest, boot: str, links: Mapping[str, Path] | None = None) -> None:
        self.directory = directory
        self.tree = directory / "tree"
        self._manifest = manifest
        self._boot = boot
        self._journal_path = directory / JOURNAL
        self._lock = Lock()
        self.finished = Indexes()
        self.doubtful: set[int] = set()
        self.linked = 0  # bytes of the files that became links just now
        self._journal = -1
        try:
            with self._disk("could not prepare the download"):
                self._make_writable()
                self._open_journal()
                self._link(links or {})
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

    def finish(self, *indexes: int) -> None:
        """Notes that chunks are written and checked."""
        with self._lock, self._disk("could not note a finished chunk"):
            os.write(self._journal, b"".join(index.to_bytes(_INDEX_BYTES, "little") for index in indexes))
            for index in indexes:
                self.finished.add(index)

    def settle_doubts(self) -> None:
        """Begins the journal anew with what is finished now: every doubtful chunk was checked or will be fetched."""
        with self._disk("could not rewrite the journal"):
            self._write_journal(self._header, self.finished)
            self.doubtful.clear()

    def publish_as(self, target: Path) -> None:
        """Makes the finished tree read-only and gives it its name. ``target`` must not exist or be empty."""
        with self._disk(f"could not complete {target}"):
            with (self.tree / FILE_NAME).open("wb") as file:
                file.writelines(self._manifest.pieces())
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
        """A download that was interrupted while it got its name is read-only already. What is another snapshot's,
        too, stays so."""
        self.tree.mkdir(parents=True, exist_ok=True)
        for folder, names in walk(self.tree):
            folder.chmod(0o755)
            for name in names:
                if not _is_shared(folder / name):
                    (folder / name).chmod(0o644)

    def _open_journal(self) -> None:
        self._journal = os.open(self._journal_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        boot, noted, torn = _read_journal(self._journal_path)
        here = noted & _chunks_here(self.tree, self._manifest)
        if boot == self._boot:
            self.finished = Indexes(here)
        else:
            self.doubtful = here
        if torn or here != noted:
            self._write_journal(f"{boot}\n".encode() if self.doubtful else self._header, here)
        os.lseek(self._journal, 0, os.SEEK_END)

    def _link(self, links: Mapping[str, Path]) -> None:
        """A link that cannot be made (too many, another file system) is fetched or copied like the rest."""
        index = 0
        linked: list[int] = []
        for file in self._manifest.files:
            chunks = range(index, index := index + len(file.chunks))
            path = self.tree / file.path
            finished = all(chunk in self.finished for chunk in chunks)
            if _is_shared(path) and not finished:  # it must not be written to
                path.unlink()
                self.doubtful.difference_update(chunks)
            if (source := links.get(file.path)) is None or finished:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = (
                self.directory / uuid.uuid4().hex
            )  # not in the tree: a crash must not make it a file of the version
            try:
                os.link(source, beside, follow_symlinks=False)
                beside.rename(path)
            except OSError:
                with suppress(OSError):
                    beside.unlink()
                continue
            self.doubtful.difference_update(chunks)
            self.linked += file.size
            linked.extend(chunks)
        if linked:
            self.finish(*linked)

    def _write_journal(self, header: bytes, indexes: Iterable[int]) -> None:
        if os.fstat(self._journal).st_size:  # ext4 flushes what was cut to nothing when it is closed: 0.1 s and more
            os.ftruncate(self._journal, 0)
        os.pwrite(self._journal, header + b"".join(i.to_bytes(_INDEX_BYTES, "little") for i in sorted(indexes)), 0)
        os.lseek(self._journal, 0, os.SEEK_END)

    def _preallocate(self) -> None:
        """Gives every file its size, so that a full disk is met before the download and not at its end.

        The large ones at once: memory (tmpfs) is allocated page by page, which takes a core 0.3 s a GB
        (docs/performance.md).
        """
        new = [file for file in self._manifest.files if not _is_shared(self.tree / file.path)]
        for file in new:
            (self.tree / file.path).parent.mkdir(parents=True, exist_ok=True)
            if file.size < _LARGE:
                self._give_size(file)
        large = [file for file in new if file.size >= _LARGE]
        from concurrent.futures import ThreadPoolExecutor  # what is cached needs none of it

        try:
            with ThreadPoolExecutor(_THREADS, thread_name_prefix="allocate") as pool:
                for _ in pool.map(self._give_size, large):
                    pass
        except RuntimeError:  # this user or container may have no more threads
            for file in large:
                self._give_size(file)

    def _give_size(self, file: FileEntry) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self.tree / file.path, flags, 0o644)
        try:
            if os.fstat(descriptor).st_size != file.size or not (self.finished or self.doubtful):
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


def finished_chunks(directory: Path, manifest: Manifest, boot: str) -> set[int]:
    """The chunks that a download which may have been begun has, without opening it."""
    try:
        under, noted, _ = _read_journal(directory / JOURNAL)
    except OSError:
        return set()
    return noted & _chunks_here(directory / "tree", manifest) if under == boot else set()


def _read_journal(path: Path) -> tuple[str, set[int], bool]:
    """The boot under which it was written, the chunks it notes, and whether its end or all of it is missing."""
    header, newline, indexes = path.read_bytes().partition(b"\n")
    whole = len(indexes) - len(indexes) % _INDEX_BYTES
    noted = {int.from_bytes(indexes[i : i + _INDEX_BYTES], "little") for i in range(0, whole, _INDEX_BYTES)}
    return header.decode(errors="replace"), noted, not newline or whole < len(indexes)


def _chunks_here(tree: Path, manifest: Manifest) -> set[int]:
    """The chunks of the files that have their size. Another file holds nothing, whatever the journal says: a removal
    may have been interrupted between the two."""
    here: set[int] = set()
    index = 0
    for file in manifest.files:
        chunks = range(index, index := index + len(file.chunks))
        with suppress(FileNotFoundError):
            if (tree / file.path).lstat().st_size == file.size:
                here.update(chunks)
    return here


def _is_shared(path: Path) -> bool:
    """Whether it is a file that something else links to, too."""
    try:
        return path.lstat().st_nlink > 1
    except FileNotFoundError:
        return False


def _allocate(descriptor: int, size: int) -> None:
    if size == 0:
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV):
            raise
