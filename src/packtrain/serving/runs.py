"""Who serves on this node: a file for each supervisor, under a lock that lasts as long as it lives.

A supervisor that was killed leaves its file without the lock, and perhaps engines. The next one ends these before it
starts its own: the devices' memory is needed, and two engines must not pass for one.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from packtrain.errors import disk_error
from packtrain.ports import Clock
from packtrain.serving.processes import POLL, SETTLE, begun, living

LONGEST = 60.0  # seconds in which a killed process must be gone; one that hangs in a driver may never be


@dataclass(frozen=True, slots=True)
class Run:
    """A supervisor that runs: its process, what it follows, where it answers, and a key that its own machine's owner
    may ask it with."""

    pid: int
    follows: str
    url: str
    key: str


class RunFile:
    """Ours, while it is entered."""

    def __init__(self, folder: Path, *, boot: str, follows: str) -> None:
        self._folder = folder
        self._name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._value: dict[str, Any] = {"boot": boot, "pid": os.getpid(), "follows": follows, "url": "", "engines": {}}
        self.key = secrets.token_urlsafe(24)
        self._lock = -1

    def __enter__(self) -> Self:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self._path("lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            self._write()
        except OSError as error:
            raise disk_error(error, f"{self._folder} cannot be written") from error
        return self

    def __exit__(self, *_: object) -> None:
        for suffix in ("json", "lock"):
            self._path(suffix).unlink(missing_ok=True)
        os.close(self._lock)

    def listens(self, url: str) -> None:
        self._value["url"] = url
        self._write()

    def begins(self, group: int) -> None:
        """An engine was started. That it cannot be written down (a full disk) must not stop it: it dies with us."""
        self._value["engines"][str(group)] = begun(group)
        with suppress(OSError):
            self._write()

    def ends(self, group: int) -> None:
        self._value["engines"].pop(str(group), None)
        with suppress(OSError):
            self._write()

    def _path(self, suffix: str) -> Path:
        return self._folder / f"{self._name}.{suffix}"

    def _write(self) -> None:
        beside = self._path("new")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump({**self._value, "key": self.key}, file)
        beside.rename(self._path("json"))


def running(folder: Path) -> list[Run]:
    """The supervisors of this node that live."""
    return [
        Run(value["pid"], value["follows"], value["url"], value["key"])
        for path, value in _files(folder)
        if not _is_abandoned(path)
    ]


def end_abandoned(folder: Path, *, boot: str, clock: Clock) -> tuple[list[int], list[int]]:
    """Ends the engines that killed supervisors left. Returns the groups that were ended, and those that would not."""
    ended, stuck = list[int](), list[int]()
    for path, value in _files(folder):
        with _abandoned(path) as abandoned:
            if not abandoned:
                continue
            for group, start in value["engines"].items():
                if value["boot"] == boot and _belongs(int(group), start):
                    (ended if _end(int(group), clock) else stuck).append(int(group))
            for suffix in ("json", "lock", "new"):
                path.with_suffix(f".{suffix}").unlink(missing_ok=True)
    return ended, stuck


def _files(folder: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    for path in sorted(folder.glob("*.json")):
        with suppress(OSError, ValueError):  # it ended just now
            yield path, json.loads(path.read_text())


def _is_abandoned(path: Path) -> bool:
    with _abandoned(path) as abandoned:
        return abandoned


@contextmanager
def _abandoned(path: Path) -> Iterator[bool]:
    """Whether its supervisor is dead; while this lasts nobody else thinks so."""
    try:
        lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        yield not path.exists()  # ended properly, just now
        return
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except BlockingIOError:
            free = False
        yield free
    finally:
        os.close(lock)


def _belongs(group: int, start: int | None) -> bool:
    """Whether the group is the one that was started then. While members of a group live its number is not given to a
    new process, so a living leader with another start time is somebody else, and members without a leader are ours if
    none of them is older."""
    members = living(group)
    if start is None or not members:
        return False
    leader = begun(group)
    return leader == start if leader is not None else min(members.values()) >= start


def _end(group: int, clock: Clock) -> bool:
    began = clock.monotonic()
    while living(group):
        elapsed = clock.monotonic() - began
        if elapsed > LONGEST:
            return False
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGTERM if elapsed < SETTLE else signal.SIGKILL)
        clock.sleep(POLL)
    return True
