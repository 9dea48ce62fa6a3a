"""The outside, on one page: what Packtrain needs of the world, with the laws that every implementation keeps.

`Store` has implementations over directories and object stores, and one in memory for tests; `Registry` keeps the
ledger in a store, and one of its implementations has an MLflow server show it. tests/conformance holds the suite that
each of them passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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


@dataclass(frozen=True, slots=True)
class PartLimits:
    """In bytes: no part but the last is smaller than ``smallest``, and none larger than ``largest``; and an object has
    at most ``most`` parts."""

    smallest: int
    largest: int
    most: int


@dataclass(frozen=True, slots=True)
class OpenUpload:
    """A multipart upload that was begun, and neither completed nor aborted. ``begun`` by the store's own clock."""

    key: str
    id: str
    begun: datetime | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class PartInfo:
    """A part that an open upload holds. ``number`` counts from 1; ``tag`` is what `Multipart.complete` asks for;
    ``crc32`` is the CRC-32 of the bytes that the store has got, as it computed it, None where it does not say."""

    number: int
    size: int
    tag: str
    crc32: int | None = None


Body = Callable[[], Iterable[bytes | memoryview]]  # may be asked again, from the first byte; a piece is not kept


class Multipart(Protocol):
    """Objects made of parts, which the store checks: to go on in the middle of one, and to let the server copy ranges
    of others.

    Laws:
    1. Nothing is seen under a key before `complete`; then the object is the parts that it was given, in their order.
    2. A part that was acknowledged is held, for every process, until its upload is completed or aborted. A number that
       is written again holds the later bytes; `parts` may not name it then.
    3. Bytes whose CRC-32 is not the one announced are refused with IntegrityError, by a store that computes it.
    4. After it was completed or aborted an upload is gone: NotFound. But `abort` returns, and `complete` may, of what
       was completed.
    5. Errors and threads as of `Store`; a body's exception is raised as it is, and its part is not held.
    """

    @property
    def limits(self) -> PartLimits: ...

    def warm(self) -> None:
        """Begins, beside other work, what the first call would wait for."""
        ...

    def put(self, key: str, body: Body, size: int, crc32: int) -> None:
        """Writes an object in one request, without parts, replacing what is there. A body of another CRC-32 leaves the
        object as it was, as in law 3."""
        ...

    def crc32(self, key: str) -> int | None:
        """The CRC-32 of an object's bytes as the store got them; None where it does not say. Raises NotFound."""
        ...

    def reclass(self, key: str, size: int, storage_class: str) -> None:
        """Moves an object of ``size`` bytes to another storage class; its bytes stay what they are. Raises NotFound,
        and UsageError for a class that the store does not have."""
        ...

    def begin(self, key: str) -> OpenUpload: ...

    def open_uploads(self, prefix: str) -> Iterator[OpenUpload]:
        """Those whose keys start with ``prefix``, whoever began them. (MinIO names only those of exactly this key.)"""
        ...

    def parts(self, upload: OpenUpload) -> list[PartInfo]:
        """What it holds, by number."""
        ...

    def send(self, upload: OpenUpload, number: int, body: Body, size: int, crc32: int) -> PartInfo: ...

    def copy(self, upload: OpenUpload, number: int, url: str, start: int, length: int) -> PartInfo | None:
        """Makes a part of ``length`` bytes from ``start`` of the object at a URL, if the server does that by itself;
        None where it does not. Raises NotFound if either is gone."""
        ...

    def complete(self, upload: OpenUpload, parts: Sequence[PartInfo], crc32: int) -> None:
        """``parts`` by number, with the CRC-32 of all of them together. Raises IntegrityError if a store that knows
        better says so: then nothing is seen under the key."""
        ...

    def abort(self, upload: OpenUpload) -> None:
        """Forgets the upload and its parts."""
        ...


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
        """Where it is: file:///..., s3://bucket/prefix, gs://... No slash at its end, no credentials."""
        ...

    @property
    def directory(self) -> Path | None:
        """The directory that it is: each object is a plain file under its key, which every program here may open.
        None for a store that is no directory."""
        ...

    @property
    def multipart(self) -> Multipart | None:
        """How objects are made of parts there; None where they are only written whole."""
        ...

    def get(self, key: str) -> bytes:
        """A whole small object (a manifest, an event, a record). Raises NotFound."""
        ...

    def prepare(self, key: str, reads: int) -> None:
        """Soon so many calls of `read` come at once, for objects beside this one: a store that opens connections for
        them may begin. Changes nothing else, raises nothing, and does not wait for them."""
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

    def copy_from(self, url: str, key: str, size: int, advance: Callable[[int], None], *, fixed: bool = False) -> bool:
        """Makes an object a copy of the ``size`` bytes at a URL (`locate`'s form) if the server or the file system
        does that by itself; False, and nothing was done, where it does not. Whether those bytes are the right ones is
        the caller's to prove. ``fixed``: nobody ever writes there again, so the two may share their place. ``advance``
        is told how many bytes were done since (in all: ``size``, or 0 after False); what it raises ends the copy.
        Raises NotFound if nothing is at the URL."""
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
       nothing. ``decide`` may be called several times; it must not act. A registry that others look at elsewhere may
       append events of its own around it, and give a version.created another number than was drafted.
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
