"""The outside, one call at a time: what `packtrain.testing.orders` gives to flows so that it can stop them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from packtrain.errors import PacktrainError
from packtrain.model.ledger import Log
from packtrain.ports import Multipart, ObjectInfo
from packtrain.testing.clock import FakeClock
from packtrain.testing.faults import Killed
from packtrain.testing.memory_store import MemoryStore

T = TypeVar("T")


class Gate(Protocol):
    """Where a flow is stopped, and where it is noted what it knows."""

    def touch(self, key: str, writes: bool) -> None:
        """It is about to read or write a key, or (with a slash at its end) what is below."""
        ...

    def learn(self, what: object) -> None:
        """Whatever it was answered is part of what it knows."""
        ...


class Abandoned(BaseException):
    """Ends an actor when its run is over."""


class SteppedStore:
    """A `Store` whose every call is a step of an actor."""

    multipart: Multipart | None = None

    def __init__(self, inner: MemoryStore, gate: Gate) -> None:
        self._inner = inner
        self._gate = gate
        self.url = inner.url

    @property
    def directory(self) -> Path | None:
        return self._inner.directory

    def get(self, key: str) -> bytes:
        return self._call(lambda: self._inner.get(key), key)

    def prepare(self, key: str, reads: int) -> None:
        pass

    def read(self, key: str, start: int, length: int, buffer: memoryview) -> Iterator[memoryview]:
        pieces = self._call(lambda: [bytes(p) for p in self._inner.read(key, start, length, buffer)], key)
        yield from (memoryview(piece) for piece in pieces)

    def create(self, key: str, data: bytes) -> None:
        self._call(lambda: self._inner.create(key, data), key, writes=True)

    def upload(self, key: str, body: Iterable[bytes], size: int) -> None:
        pieces = [bytes(piece) for piece in body]
        self._call(lambda: self._inner.upload(key, pieces, size), key, writes=True)

    def copy_from(self, url: str, key: str, size: int, advance: Callable[[int], None], *, fixed: bool = False) -> bool:
        if url.startswith(f"{self.url}/"):
            self._gate.touch(url.removeprefix(f"{self.url}/"), writes=False)
        return self._call(lambda: self._inner.copy_from(url, key, size, advance, fixed=fixed), key, writes=True)

    def delete(self, key: str) -> None:
        self._call(lambda: self._inner.delete(key), key, writes=True)

    def head(self, key: str) -> ObjectInfo | None:
        return self._call(lambda: self._inner.head(key), key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        yield from self._call(lambda: sorted(self._inner.list(prefix), key=lambda info: info.key), prefix)

    def children(self, prefix: str) -> Iterator[str]:
        yield from self._call(lambda: sorted(self._inner.children(prefix)), prefix)

    def locate(self, key: str) -> str:
        return self._inner.locate(key)

    def _call(self, act: Callable[[], T], key: str, *, writes: bool = False) -> T:
        self._gate.touch(key, writes)
        try:
            answer = act()
        except PacktrainError as error:
            self._gate.learn((key, str(error)))
            raise
        self._gate.learn((key, answer))
        return answer


class SteppedClock:
    """The world's time; to wait takes none of it. Nobody is stopped before a look at it: that time passes there is the
    same as that it passes before the call that came before the look."""

    def __init__(self, inner: FakeClock, gate: Gate) -> None:
        self._inner = inner
        self._gate = gate

    def now(self) -> datetime:
        self._gate.learn(moment := self._inner.now())
        return moment

    def monotonic(self) -> float:
        self._gate.learn(moment := self._inner.monotonic())
        return moment

    def sleep(self, seconds: float) -> None:
        pass

    def pass_(self, seconds: float) -> None:
        self._inner.sleep(seconds)


class Stamp(FakeClock):
    """What events are stamped with: when the run began. Their time orders nothing, and would only make worlds differ
    that do not."""

    def sleep(self, seconds: float) -> None:
        pass


class Memory:
    """What a machine has seen of ledgers, kept nowhere."""

    def __init__(self, seen: Mapping[str, Log]) -> None:
        self._seen = dict(seen)

    def names(self) -> list[str]:
        return list(self._seen)

    def path(self, name: str) -> str:
        return f"memory of {name}"

    def load(self, name: str) -> Log:
        log = Log(name)
        if (seen := self._seen.get(name)) is not None:
            log.events, log.head, log.state = list(seen.events), seen.head, seen.state
        return log

    def save(self, log: Log) -> None:
        copy = Log(log.name)
        copy.events, copy.head, copy.state = list(log.events), log.head, log.state
        self._seen[log.name] = copy


class Inline:
    """A pool without threads: what is given to it is done at once, so that an order has no orders within."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, act: Callable[..., T], *arguments: Any) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(act(*arguments))
        except (Abandoned, Killed):
            raise
        except BaseException as error:  # noqa: BLE001 - as a pool does
            future.set_exception(error)
        return future

    def map(self, act: Callable[..., T], *iterables: Iterable[Any]) -> Iterator[T]:
        return iter([act(*arguments) for arguments in zip(*iterables, strict=False)])

    def shutdown(self, **_: object) -> None:
        pass
