"""The outside, on one page: what Packtrain needs of the world, with the laws that every implementation keeps.

`Store` has implementations over directories and object stores, and one in memory for tests; `Registry` keeps the
ledger in a store. tests/conformance holds the suite that each of them passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from packtrain.model.ledger import Decide, Event, Log


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object in a store: its key and its size in bytes. ``tag`` is another one whenever the object was written
    again (an ETag and a time, say); empty where nobody can tell. ``modified`` is when that was by the store's own
    clock; None where it has none."""

    key: str
    size: int
    tag: str = field(default="", compare=False)
    modified: datetime | None = field(default=None, compare=False)


class Store(Protocol):
    """The shared home of models: objects under keys. A key is ``a/b/c``: relative, POSIX, no ``.``, ``..`` or empty
    parts, as `packtrain.model` makes them.

    Laws:
    1. An object is there whole or not at all, under its key and in listings: a reader never sees part of a write.
    2. What `create`, `upload` and `delete` acknowledged is durable, and every later read and list from anywhere sees
       it.
    3. `create` never replaces: of many racing creators of one key exactly one returns, the others get AlreadyExists.
       After any other error the object may or may not be there; the caller looks.
    4. Errors are NotFound, AlreadyExists, Unavailable (try again; its hint says what to check), LocalDiskError for
       directories, and Refused for permissions. No other exception leaves a store, but those of a body given to it.
    5. Safe to use from many threads at once.
    """

    @property
    def url(self) -> str:
        """Where it is: file:///..., s3://bucket/prefix. Without a slash at its end, without credentials."""
        ...

    @property
    def directory(self) -> Path | None:
        """The directory that it is: each object is a plain file under its key, which every program here may open.
        None for a store that is no directory."""
        ...

    def get(self, key: str) -> bytes:
        """A whole small object (a manifest, an event, a record). Raises NotFound."""
        ...

    def read(self, key: str, start: int, length: int, buffer: memoryview) -> Iterator[memoryview]:
        """The bytes ``[start, start + length)`` of an object, in order, in pieces.

        An implementation may fill ``buffer`` (at least 64 KiB) and give views of it, so a piece is valid only until
        the next one is asked for. Ends after exactly ``length`` bytes, or raises: NotFound when there is no such
        object, Unavailable when the bytes stop early.
        """
        ...

    def create(self, key: str, data: bytes) -> None:
        """Writes a new small object. Raises AlreadyExists and changes nothing if the key is there."""
        ...

    def upload(self, key: str, body: Iterable[bytes], size: int) -> None:
        """Writes an object of ``size`` bytes from pieces, replacing what is there. If the body raises, or does not
        give exactly ``size`` bytes (ValueError), the object stays as it was, and the body's exception is raised."""
        ...

    def copy_from(self, url: str, key: str, size: int, advance: Callable[[int], None]) -> bool:
        """Makes an object a copy of the ``size`` bytes at a URL (`locate`'s form) if the server or the file system
        does that by itself; False, and nothing was done, where it does not. Whether those bytes are the right ones is
        the caller's to prove. ``advance`` is told how many bytes were done since (in all: ``size``, or 0 after False);
        what it raises ends the copy. Raises NotFound if nothing is at the URL."""
        ...

    def delete(self, key: str) -> None:
        """Removes an object. No error if there is none: of racing deleters every one returns."""
        ...

    def head(self, key: str) -> ObjectInfo | None:
        """Size and tag of an object, or None."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object whose key starts with ``prefix`` (empty or ending in a slash), at any depth, in any order."""
        ...

    def children(self, prefix: str) -> Iterator[str]:
        """The names of the folders directly under ``prefix`` (empty or ending in a slash), in any order.

        A folder whose last object was deleted may still be named for a while (SeaweedFS does so)."""
        ...

    def locate(self, key: str) -> str:
        """The URL of an object or folder, for other tools."""
        ...


class Registry(Protocol):
    """Registered models, their versions and aliases, and who did what.

    Laws:
    1. A log that was read extends every log of that name that was read before on this machine, or IntegrityError
       names what is missing or different.
    2. `change` appends exactly the event that ``decide`` drafted on the state that the event follows, once, or
       nothing. ``decide`` may be called several times; it must not act.
    """

    def names(self) -> list[str]:
        """The registered models that have at least one version, sorted."""
        ...

    def read(self, name: str) -> Log:
        """What the registry holds now. Empty for an unknown name. Raises Unavailable, IntegrityError."""
        ...

    def known(self) -> list[str]:
        """The registered models of which this machine has seen something, without asking the registry."""
        ...

    def remembered(self, name: str) -> Log:
        """What this machine saw last, without asking the registry: for serving while it is unreachable."""
        ...

    def audit(self, name: str) -> Log:
        """The whole log, read anew without help of what was seen, then compared with it. Raises IntegrityError."""
        ...

    def change(self, name: str, decide: Decide) -> tuple[Log, Event | None]:
        """Appends what ``decide`` drafts. Returns the log with it, and the event, or None if it drafted nothing.
        What ``decide`` raises is raised, and nothing was appended."""
        ...


class Reporter(Protocol):
    """Tells the user how long work goes: a bar on a terminal, JSON lines, or nothing. Safe from many threads."""

    def begin(self, what: str, total: int) -> None:
        """Starts a task of ``total`` bytes. It ends the one before."""
        ...

    def advance(self, count: int) -> None:
        """``count`` more bytes of the task are done (negative: they must be done again)."""
        ...

    def end(self) -> None:
        """The task is over."""
        ...

    def note(self, text: str) -> None:
        """One line that the user should read: a step, a choice that was made for them, a warning."""
        ...


class Clock(Protocol):
    """Time, as an argument."""

    def now(self) -> datetime:
        """The time of day, in UTC: written down, and compared with what others wrote. Never used to measure."""
        ...

    def monotonic(self) -> float:
        """Seconds from a start that all processes of this boot share, never backwards."""
        ...

    def sleep(self, seconds: float) -> None: ...
