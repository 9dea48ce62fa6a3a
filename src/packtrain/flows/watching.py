"""What a watched folder looks like, and what is remembered of it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from packtrain.errors import disk_error

SCHEMA = "packtrain.watch/1"

File = tuple[int, ...]  # size, modification time in ns, inode


@dataclass(frozen=True, slots=True)
class Look:
    """Every file of an export, by its path in it. Two looks are equal if nothing was written in between."""

    files: Mapping[str, File]

    @classmethod
    def at(cls, export: Path) -> Look:
        """Nothing where there is no directory. Raises LocalDiskError."""
        found: dict[str, File] = {}
        try:
            for folder, _, names in os.walk(export, onerror=_unless_gone):
                for name in names:
                    path = Path(folder) / name
                    if (file := cls.file(path)) is not None:
                        found[path.relative_to(export).as_posix()] = file
        except OSError as error:
            raise disk_error(error, f"could not look into {export}") from error
        return cls(found)

    @staticmethod
    def file(path: Path) -> File | None:
        """What a link leads to, if it is one. None if it is gone."""
        try:
            info = path.stat()
        except FileNotFoundError:
            return None
        return info.st_size, info.st_mtime_ns, info.st_ino

    @property
    def mark(self) -> str:
        """Different for different looks."""
        rows = [[os.fsencode(path).hex(), *file] for path, file in sorted(self.files.items())]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    @property
    def newest(self) -> int:
        """The time of the last write, in ns."""
        return max((file[1] for file in self.files.values()), default=0)


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of an export: how it looked, and the ``version`` that holds it, or None if it was refused.

    ``begun``: when its publish began (as in the ledger), by a process that may have died; empty if it is over.
    ``removing``: these of its files are to go.
    """

    look: str
    version: int | None = None
    begun: str = ""
    removing: Mapping[str, File] | None = None


class Memory:
    """The entries of one watched folder, in a file that is replaced at every change. It is used inside of `held`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: dict[str, Entry] = {}

    @classmethod
    def of(cls, folder: Path, store: str, name: str, directory: Path) -> Memory:
        identity = json.dumps([store, name, str(directory)]).encode("utf-8", "surrogateescape")
        return cls(folder / f"{hashlib.sha256(identity).hexdigest()[:32]}.json")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Waits until no other watcher of this machine looks at the folder, then knows what that one found.
        Raises LocalDiskError."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lock = self._path.with_suffix(".lock").open("w")
        except OSError as error:
            raise disk_error(error, f"could not open a lock in {self._path.parent}") from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._entries = _read(self._path)
            yield

    def get(self, export: Path) -> Entry | None:
        return self._entries.get(str(export))

    def removing(self) -> list[Path]:
        """The exports whose removal was begun."""
        return [Path(export) for export, entry in self._entries.items() if entry.removing is not None]

    def put(self, export: Path, entry: Entry) -> None:
        """Raises LocalDiskError."""
        self._entries[str(export)] = entry
        self._write()

    def forget(self, export: Path) -> None:
        if self._entries.pop(str(export), None) is not None:
            self._write()

    def _write(self) -> None:
        there = {export: entry for export, entry in self._entries.items() if entry.removing or Path(export).is_dir()}
        value = {"schema": SCHEMA, "exports": {export: asdict(entry) for export, entry in there.items()}}
        temporary = self._path.with_suffix(".new")  # one is enough, and a killed watcher's is written over
        try:
            with temporary.open("w") as file:
                json.dump(value, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(self._path)
        except OSError as error:
            raise disk_error(error, f"could not write {self._path}") from error
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Entry]:
    """What is there; nothing if there is nothing, or something that we did not write."""
    try:
        value = json.loads(path.read_text())
        if value["schema"] == SCHEMA:
            return {export: _entry(fields) for export, fields in value["exports"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass
    return {}


def _entry(fields: dict[str, Any]) -> Entry:
    removing = fields.pop("removing")
    return Entry(**fields, removing=removing and {path: tuple(file) for path, file in removing.items()})


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
