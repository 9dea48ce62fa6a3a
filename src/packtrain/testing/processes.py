"""Processes as others see them, by /proc."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    pid: int
    parent: int
    group: int


def living() -> Iterator[Process]:
    """Every process that has a thread that lives.

    A process is a zombie as soon as its first thread has ended. The others may still be ending, and until the last
    one has, its files are open and its locks are held.
    """
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended while we looked
            if any(_lives(thread) for thread in (entry / "task").iterdir()):
                _, parent, group = _fields(entry)
                yield Process(int(entry.name), int(parent), int(group))


def members(group: int) -> list[int]:
    """The processes of a group that live."""
    assert group > 0
    return [process.pid for process in living() if process.group == group]


def running_with(variable: str, value: str) -> Iterator[int]:
    """The processes that live and were started with an environment variable of this value."""
    for process in living():
        with suppress(OSError):  # it ended while we looked
            if f"{variable}={value}".encode() in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"):
                yield process.pid


def _lives(thread: Path) -> bool:
    with suppress(OSError):
        return _fields(thread)[0] not in ("Z", "X")
    return False


def _fields(entry: Path) -> list[str]:
    """State, parent and group: proc(5). The name before them may hold anything, parentheses too."""
    return (entry / "stat").read_text().rpartition(")")[2].split()[:3]
