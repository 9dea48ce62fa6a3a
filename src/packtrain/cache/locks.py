"""Locks of a cache: files that are never removed, so that a lock on one means the same to everybody."""

from __future__ import annotations

import fcntl
import os
import pwd
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from packtrain.errors import LocalDiskError, disk_error


@dataclass(frozen=True, slots=True)
class Pin:
    """A shared lock on a snapshot. It lasts as long as any process has ``descriptor`` open."""

    descriptor: int

    def release(self) -> None:
        os.close(self.descriptor)

    def __enter__(self) -> Pin:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @contextmanager
    def exclusively(self) -> Iterator[bool]:
        """Whether nobody else has pinned the snapshot; if so, nobody can until the end of this.

        Linux gives up the shared lock before it tries for the exclusive one, so whoever gets False must look again
        whether the snapshot is there.
        """
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        except BlockingIOError:
            alone = False
        try:
            yield alone
        finally:
            fcntl.flock(self.descriptor, fcntl.LOCK_SH)


class Locks:
    """The files in one folder, each a lock with a name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ours = False

    def shared(self, name: str) -> Pin:
        """Waits while somebody holds it exclusively."""
        descriptor = self._open(name)
        try:
            self._lock(descriptor, fcntl.LOCK_SH)
        except BaseException:
            os.close(descriptor)
            raise
        return Pin(descriptor)

    @contextmanager
    def exclusive(self, name: str, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Alone; calls ``on_wait`` before it waits for others."""
        with self.attempt(name) as (alone, descriptor):
            if not alone:
                on_wait()
                self._lock(descriptor, fcntl.LOCK_EX)
            yield

    @contextmanager
    def attempt(self, name: str) -> Iterator[tuple[bool, int]]:
        """Whether nobody else holds it, and then nobody does until the end of this; and its descriptor."""
        descriptor = self._open(name)
        try:
            yield self._lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB), descriptor
        finally:
            os.close(descriptor)

    def is_held(self, name: str) -> bool:
        with self.attempt(name) as (alone, _):
            return not alone

    def holders(self, name: str) -> list[str]:
        """The processes that have it open, as far as this user may see them: ``vllm (4711)``."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it ended, or it is somebody else's
                if process.name != str(os.getpid()) and self._has_open(process, name):
                    found.append(f"{(process / 'comm').read_text().strip()} ({process.name})")
        return sorted(found)

    def _has_open(self, process: Path, name: str) -> bool:
        """The link's text is looked at first: to follow one to a dead network mount may take for ever."""
        lock = (self._folder / name).stat()
        for link in (process / "fd").iterdir():
            with suppress(OSError):
                if link.readlink().name == name and os.path.samestat(lock, link.stat()):
                    return True
        return False

    def _open(self, name: str) -> int:
        self._require_ours()
        try:
            return os.open(self._folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise self._unusable(error) from error

    def _lock(self, descriptor: int, operation: int) -> bool:
        """False if it is held and ``operation`` does not wait."""
        try:
            fcntl.flock(descriptor, operation)
        except BlockingIOError:
            return False
        except OSError as error:
            raise self._unusable(error) from error
        return True

    def _unusable(self, error: OSError) -> LocalDiskError:
        return disk_error(error, f"the cache {self._folder.parent} cannot be used")

    def _require_ours(self) -> None:
        """One user's process cannot remove what another's wrote, and must not leave files that the other cannot."""
        if self._ours:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            owner = self._folder.stat().st_uid
        except OSError as error:
            raise self._unusable(error) from error
        if owner != os.geteuid():
            raise LocalDiskError(
                f"the cache {self._folder.parent} is {_user(owner)}'s, and you are {_user(os.geteuid())}",
                hint="A cache belongs to one user. Set cache_dir to a folder of your own "
                "(the default is one: ~/.cache/packtrain), or run the command as its owner.",
            )
        self._ours = True


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"uid {number}"
