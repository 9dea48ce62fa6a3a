"""The cache: which snapshots are there, which may be trusted, and who holds them."""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from packtrain.cache.partial import Partial
from packtrain.errors import disk_error
from packtrain.model.digest import Digest
from packtrain.model.manifest import FILE_NAME, Manifest

_DURABLE = "durable"


@dataclass(frozen=True, slots=True)
class Pin:
    """A shared lock on a snapshot. It lasts as long as any process has ``descriptor`` open."""

    descriptor: int

    def release(self) -> None:
        os.close(self.descriptor)


class Cache:
    """The snapshots of one node, shared by every process of one user on it.

    ``boot`` identifies this boot of the machine: what was written under another boot and is not marked durable may
    have lost bytes with the power, so it is not trusted until it was read back.
    """

    def __init__(self, root: Path, *, boot: str) -> None:
        self.root = root
        self.boot = boot

    def path(self, digest: Digest) -> Path:
        """Where the snapshot is, or would be."""
        return self.root / "snapshots" / digest.hex

    def holds(self, digest: Digest) -> bool:
        """Whether a complete snapshot is there, trusted or not."""
        return (self.path(digest) / FILE_NAME).is_file()

    def trusts(self, digest: Digest) -> bool:
        """Whether the snapshot was verified under this boot, or is known to be on the disk since."""
        return self._mark(digest) in (self.boot, _DURABLE)

    def is_durable(self, digest: Digest) -> bool:
        return self._mark(digest) == _DURABLE

    def manifest(self, digest: Digest) -> Manifest:
        """The manifest of a snapshot that is there. Raises IntegrityError."""
        what = self.path(digest) / FILE_NAME
        with self._disk(f"could not read {what}"):
            data = what.read_bytes()
        return Manifest.decode(data, expect=digest, what=str(what))

    @contextmanager
    def fetching(self, digest: Digest, *, on_wait: Callable[[], None]) -> Iterator[None]:
        """Makes this process the only one that downloads the version; calls ``on_wait`` before it waits for another."""
        descriptor = self._lock_file(f"{digest.hex}.fetch")
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def partial(self, digest: Digest, manifest: Manifest) -> Partial:
        """The download of a version, begun or continued. Only inside `fetching`."""
        return Partial(self.root / "partial" / digest.hex, manifest, self.boot)

    def admit(self, digest: Digest, partial: Partial) -> Path:
        """Makes a finished, verified download the snapshot. Only inside `fetching`."""
        path = self.path(digest)
        self._write_mark(digest, self.boot)
        partial.publish_as(path)
        return path

    def tidy(self, digest: Digest) -> None:
        """Removes what a crash right after `admit` named the snapshot may have left of its download."""
        leftover = self.root / "partial" / digest.hex
        if leftover.exists():
            with self.fetching(digest, on_wait=lambda: None):
                shutil.rmtree(leftover, ignore_errors=True)

    def vouch(self, digest: Digest) -> None:
        """Notes that the snapshot was read back and every chunk was right."""
        self._write_mark(digest, self.boot)

    def settle(self, digest: Digest) -> None:
        """Puts the snapshot onto the disk, and marks it so. May take as long as writing it does."""
        with self._disk(f"could not sync {self.path(digest)}"):
            for folder, _, names in os.walk(self.path(digest)):
                for name in [*names, "."]:
                    descriptor = os.open(Path(folder) / name, os.O_RDONLY | os.O_CLOEXEC)
                    try:
                        os.fsync(descriptor)
                    finally:
                        os.close(descriptor)
            descriptor = os.open(self.root / "snapshots", os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        self._write_mark(digest, _DURABLE)

    def pin(self, digest: Digest) -> Pin:
        """Keeps the snapshot, now or once it is there, from eviction."""
        descriptor = self._lock_file(digest.hex)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        return Pin(descriptor)

    def discard(self, digest: Digest) -> None:
        """Takes a snapshot that is not what it should be out of the way. Only inside `fetching`."""
        with self._disk(f"could not remove {self.path(digest)}"):
            trash = self.root / "trash" / f"{digest.hex}.{uuid.uuid4().hex}"
            trash.parent.mkdir(parents=True, exist_ok=True)
            path = self.path(digest)
            path.chmod(0o755)
            path.rename(trash)
            for folder, _, _ in os.walk(trash):
                Path(folder).chmod(0o755)
            shutil.rmtree(trash)

    def _lock_file(self, name: str) -> int:
        with self._disk(f"could not open a lock in {self.root}"):
            locks = self.root / "locks"
            locks.mkdir(parents=True, exist_ok=True)
            return os.open(locks / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def _mark(self, digest: Digest) -> str:
        try:
            return (self.root / "marks" / digest.hex).read_text().strip()
        except OSError:
            return ""

    def _write_mark(self, digest: Digest, text: str) -> None:
        with self._disk(f"could not write in {self.root}"):
            marks = self.root / "marks"
            marks.mkdir(parents=True, exist_ok=True)
            temporary = marks / f".{digest.hex}.{uuid.uuid4().hex}"
            temporary.write_text(text + "\n")
            temporary.rename(marks / digest.hex)

    @contextmanager
    def _disk(self, problem: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise disk_error(error, problem) from error
