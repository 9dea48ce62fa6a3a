"""What this machine has seen of each ledger: the events' own bytes, one a line, in one file for each model.

It makes reading cheap (only the tail is fetched) and history tamper-evident (a ledger must extend what was seen).
Losing it loses no data, only that evidence; a line that a crash cut short is dropped.
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
from packtrain.model.ledger import Log


class SeenLedgers:
    """A directory of seen events. An unusable directory is no error: then nothing is remembered."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def names(self) -> list[str]:
        """The registered models of which something was seen."""
        return [path.stem for path in self._directory.glob("*.jsonl")]

    def path(self, name: str) -> Path:
        return self._directory / f"{name}.jsonl"

    def load(self, name: str) -> Log:
        """The log as it was last seen; empty if it never was."""
        try:
            data = self.path(name).read_bytes()
        except OSError:
            return Log(name)
        log = Log(name)
        for line in data.split(b"\n")[:-1]:
            try:
                log.extend(line)
            except IntegrityError:
                break  # damaged: what follows is fetched again
        return log

    def save(self, log: Log) -> None:
        """Remembers a log that extends what is remembered. What is damaged is written anew."""
        events = [event.encode() for event in log.events]
        try:
            with self._exclusive(log.name) as file:
                lines = file.read().split(b"\n")[:-1]  # what follows the last newline was cut short by a crash
                same = sum(1 for _ in takewhile(operator.truth, map(operator.eq, lines, events)))
                if same == len(events):
                    return  # another process has seen as much, or more
                file.seek(sum(len(line) + 1 for line in lines[:same]))
                file.truncate()
                file.writelines(event + b"\n" for event in events[same:])
        except OSError:
            return

    @contextmanager
    def _exclusive(self, name: str) -> Iterator[BinaryIO]:
        self._directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path(name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
