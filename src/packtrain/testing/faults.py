"""A store that fails where a plan says: for asking, at every call into the outside, "and if it breaks here?"."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum, auto
from pathlib import Path

from packtrain.errors import Unavailable
from packtrain.ports import ObjectInfo, Store


class Killed(BaseException):
    """The process died here. No ``except Exception`` stops it, and no later call has an effect."""


class Fault(Enum):
    """What happens at a call."""

    UNAVAILABLE = auto()  # it fails, and has no effect
    LOST_ANSWER = auto()  # it fails after it has had its effect
    KILLED = auto()  # the process dies before it has an effect
    FLIPPED_BIT = auto()  # one bit of what is read is wrong; a call that reads nothing succeeds
    CUT_SHORT = auto()  # half of the piece that is read arrives, then nothing more; elsewhere as LOST_ANSWER


def random_plan(seed: int, calls: int, faults: Iterable[Fault] = tuple(Fault), count: int = 1) -> dict[int, Fault]:
    """``count`` of ``faults`` at different ones of the first ``calls`` calls, the same for the same seed."""
    choose = random.Random(seed)
    kinds = list(faults)
    return {call: choose.choice(kinds) for call in choose.sample(range(calls), count)}


class FaultyStore:
    """A `Store` over ``inner`` that does at call k, counted from 0, what ``plan[k]`` says.

    A call is each call of a method and each piece of a body that is read or uploaded. ``calls`` says how many there
    were: run once without a plan, then once for every k below ``calls``.
    """

    def __init__(self, inner: Store, plan: Mapping[int, Fault] | None = None) -> None:
        self._inner = inner
        self._plan = plan or {}
        self._lock = threading.Lock()
        self._dead = False
        self.calls = 0

    @property
    def url(self) -> str:
        return self._inner.url

    @property
    def directory(self) -> Path | None:
        return self._inner.directory

    def get(self, key: str) -> bytes:
        fault = self._before()
        data = self._inner.get(key)
        self._after(fault)
        return bytes(_flipped(data)) if fault is Fault.FLIPPED_BIT else data

    def read(self, key: str, start: int, length: int, buffer: memoryview) -> Iterator[memoryview]:
        self._after(self._before())
        for piece in self._inner.read(key, start, length, buffer):
            fault = self._before()
            if fault is Fault.CUT_SHORT:
                yield piece[: len(piece) // 2]
            self._after(fault)
            yield memoryview(_flipped(piece)) if fault is Fault.FLIPPED_BIT else piece

    def create(self, key: str, data: bytes) -> None:
        fault = self._before()
        self._inner.create(key, data)
        self._after(fault)

    def upload(self, key: str, body: Iterable[bytes], size: int) -> None:
        fault = self._before()
        self._inner.upload(key, self._counted(body), size)
        self._after(fault)

    def copy_from(self, url: str, key: str, size: int, advance: Callable[[int], None]) -> bool:
        fault = self._before()
        copied = self._inner.copy_from(url, key, size, advance)
        self._after(fault)
        return copied

    def delete(self, key: str) -> None:
        fault = self._before()
        self._inner.delete(key)
        self._after(fault)

    def head(self, key: str) -> ObjectInfo | None:
        fault = self._before()
        info = self._inner.head(key)
        self._after(fault)
        return info

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self._after(self._before())
        yield from self._inner.list(prefix)

    def children(self, prefix: str) -> Iterator[str]:
        self._after(self._before())
        yield from self._inner.children(prefix)

    def locate(self, key: str) -> str:
        return self._inner.locate(key)

    def _counted(self, body: Iterable[bytes]) -> Iterator[bytes]:
        for piece in body:
            self._after(self._before())
            yield piece

    def _before(self) -> Fault | None:
        """Counts a call. Raises what keeps it from having an effect."""
        with self._lock:
            call = self.calls
            self.calls += 1
            fault = self._plan.get(call)
            self._dead = self._dead or fault is Fault.KILLED
            dead = self._dead
        if dead:
            raise Killed(f"at call {call}")
        if fault is Fault.UNAVAILABLE:
            raise Unavailable(f"a fault was planned at call {call}")
        return fault

    def _after(self, fault: Fault | None) -> None:
        if fault in (Fault.LOST_ANSWER, Fault.CUT_SHORT):
            raise Unavailable(f"a fault was planned: {fault.name}")


def _flipped(data: bytes | memoryview) -> bytearray:
    """A copy in which one bit in the middle is wrong. Nothing has no bit to flip."""
    wrong = bytearray(data)
    if wrong:
        wrong[len(wrong) // 2] ^= 1
    return wrong
