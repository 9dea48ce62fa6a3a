"""What this machine has seen of each ledger: one file for each model, with a line for each event, its SHA-256 and its
own bytes.

It makes reading cheap (only the tail is fetched) and history tamper-evident (a ledger must extend what was seen).
Losing it loses no data, only that evidence. The SHA-256 tells a damaged line, which is dropped and fetched again, from
evidence that the ledger was changed.
"""

from __future__ import annotations

import fcntl
import operator
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO

from packtrain.errors import IntegrityError
from packtrain.model.digest import Digest
from packtrain.model.ledger import Log

_DIGEST = 64 + 1  # hexadecimal digits and a space


class SeenLedgers:
    """A directory of seen events. An unusable directory is no error: then nothing is remembered."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def names(self) -> list[str]:
        """The registered models of which something was seen."""
        try:
            return [path.stem for path in self.directory.glob("*.events")]
        except OSError:
            return []

    def path(self, name: str) -> Path:
        return self.directory / f"{name}.events"

    def load(self, name: str) -> Log:
        """The log as it was last seen; empty if it never was."""
        try:
            data = self.path(name).read_bytes()
        except OSError:
            return Log(name)
        log = Log(name)
        for line in data.split(b"\n")[:-1]:
            event = line[_DIGEST:]
            try:
                if line != _line(event):
                    break
                log.extend(event)
            except IntegrityError:
                break
        return log

    def save(self, log: Log) -> None:
        """Remembers a log that extends what is remembered. What is damaged is written anew."""
        seen = [_line(event.encode()) for event in log.events]
        try:
            with self._exclusive(log.name) as file:
                lines = file.read().split(b"\n")[:-1]  # what follows the last newline was cut short by a crash
                same = sum(1 for _ in takewhile(operator.truth, map(operator.eq, lines, seen)))
                if same == len(seen):
                    return  # another process has seen as much, or more
                file.seek(sum(len(line) + 1 for line in lines[:same]))
                file.truncate()
                file.writelines(line + b"\n" for line in seen[same:])
        except OSError:
            return

    @contextmanager
    def _exclusive(self, name: str) -> Iterator[BinaryIO]:
        self.directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path(name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file


def _line(event: bytes) -> bytes:
    return Digest.of(event).hex.encode() + b" " + event
