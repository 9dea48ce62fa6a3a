"""A store that fails where a plan says: for asking, at every call into the outside, "and if it breaks here?"."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum, auto
from pathlib import Path
from typing import TypeVar

from packtrain.errors import Unavailable
from packtrain.ports import Body, Multipart, ObjectInfo, OpenUpload, PartInfo, PartLimits, Store

T = TypeVar("T")


class Killed(BaseException):
    """The process died here. No ``except Exception`` stops it, and no later call has an effect."""


class Fault(Enum):
    """What happens at a call into a store, or (all but `KILLED`) to a request on the wire."""

    UNAVAILABLE = auto()  # it fails, and has no effect (on the wire: 500)
    SLOW_DOWN = auto()  # the server is busy and says when to come back, before any effect (503 SlowDown)
    TOO_MANY = auto()  # the same in other words (429)
    LOST_ANSWER = auto()  # it fails after it has had its effect
    KILLED = auto()  # the process dies before it has an effect
    FLIPPED_BIT = auto()  # one bit of what is read is wrong; a call that reads nothing succeeds
    SHORT = auto()  # half of what is read arrives as if it were all; a call that reads nothing succeeds
    CUT_SHORT = auto()  # half of what is read arrives, then the connection ends; elsewhere as LOST_ANSWER
    RESET = auto()  # the same, and the connection is reset
    STALL = auto()  # the same, but nobody says that nothing more will come, for a long time
    SHUFFLED = auto()  # a listing comes in another order than usual; other calls succeed


RETRY_AFTER = 1  # seconds, after SLOW_DOWN and TOO_MANY
WIRE = tuple(fault for fault in Fault if fault is not Fault.KILLED)
_BUSY = (Fault.SLOW_DOWN, Fault.TOO_MANY)
_HALF = (Fault.CUT_SHORT, Fault.RESET, Fault.STALL)
_LATE = (Fault.LOST_ANSWER, *_HALF)


def random_plan(seed: int, calls: int, faults: Iterable[Fault] = tuple(Fault), count: int = 1) -> dict[int, Fault]:
    """``count`` of ``faults`` at different ones of the first ``calls`` calls, the same for the same seed."""
    choose = random.Random(seed)
    kinds = list(faults)
    return {call: choose.choice(kinds) for call in choose.sample(range(calls), count)}


class FaultyStore:
    """A `Store` over ``inner`` that does at call k, counted from 0, what ``plan[k]`` says.

    A call is each call of a method and each piece of a body that is read or uploaded. ``calls`` says how many there
    were: run once without a plan, then once for every k below ``calls``. A `Fault.STALL` lasts ``stall`` seconds.
    ``at(k)`` is called once before call k has an effect: for tests in which something else happens there.
    """

    def __init__(self, inner: Store, plan: Mapping[int, Fault] | None = None, *, stall: float = 0.0) -> None:
        self._inner = inner
        self._plan = plan or {}
        self._stall = stall
        self._lock = threading.Lock()
        self._dead = False
        self.calls = 0

    @property
    def url(self) -> str:
        return self._inner.url

    @property
    def directory(self) -> Path | None:
        return self._inner.directory

    @property
    def multipart(self) -> Multipart | None:
        inner = self._inner.multipart
        return None if inner is None else _FaultyMultipart(self, inner)

    def get(self, key: str) -> bytes:
        fault = self.before()
        data = self._inner.get(key)
        self.after(fault)
        return bytes(_wrong(data, fault))

    def prepare(self, key: str, reads: int) -> None:
        self._inner.prepare(key, reads)

    def read(self, key: str, start: int, length: int, buffer: memoryview) -> Iterator[memoryview]:
        self.after(self.before())
        for piece in self._inner.read(key, start, length, buffer):
            fault = self.before()
            if fault in _HALF:
                yield piece[: len(piece) // 2]
            self.after(fault)
            yield memoryview(_wrong(piece, fault))
            if fault is Fault.SHORT:
                return

    def create(self, key: str, data: bytes) -> None:
        fault = self.before()
        self._inner.create(key, data)
        self.after(fault)

    def upload(self, key: str, body: Iterable[bytes], size: int) -> None:
        fault = self.before()
        self._inner.upload(key, self.counted(body), size)
        self.after(fault)

    def copy_from(self, url: str, key: str, size: int, advance: Callable[[int], None], *, fixed: bool = False) -> bool:
        fault = self.before()
        copied = self._inner.copy_from(url, key, size, advance, fixed=fixed)
        self.after(fault)
        return copied

    def delete(self, key: str) -> None:
        fault = self.before()
        self._inner.delete(key)
        self.after(fault)

    def head(self, key: str) -> ObjectInfo | None:
        fault = self.before()
        info = self._inner.head(key)
        self.after(fault)
        return info

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        fault = self.before()
        self.after(fault)
        yield from _shuffled(self._inner.list(prefix), fault)

    def children(self, prefix: str) -> Iterator[str]:
        fault = self.before()
        self.after(fault)
        yield from _shuffled(self._inner.children(prefix), fault)

    def locate(self, key: str) -> str:
        return self._inner.locate(key)

    def counted(self, body: Iterable[T]) -> Iterator[T]:
        for piece in body:
            self.after(self.before())
            yield piece

    def before(self) -> Fault | None:
        """Counts a call. Raises what keeps it from having an effect."""
        with self._lock:
            call = self.calls
            self.calls += 1
            fault = self._plan.get(call)
            self._dead = self._dead or fault is Fault.KILLED
            dead = self._dead
        if dead:
            raise Killed(f"at call {call}")
        self.at(call)
        if fault is Fault.UNAVAILABLE:
            raise Unavailable(f"a fault was planned at call {call}")
        if fault in _BUSY:
            raise Unavailable(f"a fault was planned at call {call}", busy=True, retry_after=RETRY_AFTER)
        return fault

    def at(self, call: int) -> None:
        pass

    def after(self, fault: Fault | None) -> None:
        if fault is Fault.STALL:
            time.sleep(self._stall)
        if fault in _LATE:
            raise Unavailable(f"a fault was planned: {fault.name}")


class _FaultyMultipart:
    """The same calls, counted with those of its store."""

    def __init__(self, store: FaultyStore, inner: Multipart) -> None:
        self._store = store
        self._inner = inner

    @property
    def limits(self) -> PartLimits:
        return self._inner.limits

    def warm(self) -> None:
        self._inner.warm()

    def put(self, key: str, body: Body, size: int, crc32: int) -> None:
        self._call(lambda: self._inner.put(key, lambda: self._store.counted(body()), size, crc32))

    def crc32(self, key: str) -> int | None:
        return self._call(lambda: self._inner.crc32(key))

    def reclass(self, key: str, size: int, storage_class: str) -> None:
        self._call(lambda: self._inner.reclass(key, size, storage_class))

    def begin(self, key: str) -> OpenUpload:
        return self._call(lambda: self._inner.begin(key))

    def open_uploads(self, prefix: str) -> Iterator[OpenUpload]:
        yield from self._call(lambda: self._inner.open_uploads(prefix))

    def parts(self, upload: OpenUpload) -> list[PartInfo]:
        return self._call(lambda: self._inner.parts(upload))

    def send(self, upload: OpenUpload, number: int, body: Body, size: int, crc32: int) -> PartInfo:
        return self._call(lambda: self._inner.send(upload, number, lambda: self._store.counted(body()), size, crc32))

    def copy(self, upload: OpenUpload, number: int, url: str, start: int, length: int) -> PartInfo | None:
        return self._call(lambda: self._inner.copy(upload, number, url, start, length))

    def complete(self, upload: OpenUpload, parts: Sequence[PartInfo], crc32: int) -> None:
        self._call(lambda: self._inner.complete(upload, parts, crc32))

    def abort(self, upload: OpenUpload) -> None:
        self._call(lambda: self._inner.abort(upload))

    def _call(self, act: Callable[[], T]) -> T:
        fault = self._store.before()
        result = act()
        self._store.after(fault)
        return result


def _wrong(data: bytes | memoryview, fault: Fault | None) -> bytes | bytearray | memoryview:
    """What arrives of data that were read: a copy in which one bit in the middle is wrong, or half of them."""
    if fault is Fault.SHORT:
        return data[: len(data) // 2]
    if fault is not Fault.FLIPPED_BIT:
        return data
    wrong = bytearray(data)
    if wrong:  # nothing has no bit to flip
        wrong[len(wrong) // 2] ^= 1
    return wrong


def _shuffled(listing: Iterator[T], fault: Fault | None) -> Iterator[T]:
    """The same entries: not even sorted backwards, so that nobody gets away with that."""
    if fault is not Fault.SHUFFLED:
        return listing
    entries = list(listing)
    random.Random(len(entries)).shuffle(entries)
    return iter(entries)
