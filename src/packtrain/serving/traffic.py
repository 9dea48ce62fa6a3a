"""Which engine gets a request, which requests each has, and how they fared.

All of it lives in the proxy's event loop: no call needs a lock, and between two awaits nothing changes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

from packtrain.model.rollout import Vitals

REMEMBERED = 200  # answers of which the latency is remembered
BREAKING = 5.0  # seconds for requests that are broken off to be told so


@dataclass(frozen=True, slots=True)
class Backend:
    """An engine as the proxy sees it. ``version`` is said as ``model/number``; ``key`` is what the engine asks for."""

    engine: int
    url: str
    key: str
    model: str
    number: int
    digest: str

    @property
    def version(self) -> str:
        return f"{self.model}/{self.number}"


@dataclass(slots=True, eq=False)
class Exchange:
    """A request that an engine has. ``broken``: why it is not waited for any more."""

    task: asyncio.Task[object] | None
    broken: str = ""

    def break_off(self, reason: str) -> None:
        self.broken = reason
        if self.task is not None:
            self.task.cancel()


@dataclass(slots=True)
class Tally:
    requests: int = 0
    failures: int = 0
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    @property
    def vitals(self) -> Vitals:
        return Vitals(self.requests, self.failures, median(self.latencies) if self.latencies else None)


class Traffic:
    """``open`` gets new requests; None: they wait."""

    def __init__(self) -> None:
        self.open: Backend | None = None
        self.ending = False  # nothing new is accepted
        self.waiting = 0
        self.exchanges: dict[int, set[Exchange]] = {}
        self._tallies: dict[int, Tally] = {}
        self._drains: dict[int, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()

    def direct(self, backend: Backend | None) -> None:
        """From now on new requests go there."""
        self.open = backend
        if backend is not None:
            self._tallies[backend.engine] = Tally()
            if drain := self._drains.pop(backend.engine, None):
                drain.cancel()
        self._wake()

    def close(self, engine: int) -> None:
        """This engine gets nothing new."""
        if self.open is not None and self.open.engine == engine:
            self.direct(None)

    def end(self) -> None:
        """Nothing new is accepted, and what waits is told so."""
        self.ending = True
        self._wake()

    async def backend(self, within: float, digest: str | None) -> Backend | None:
        """The engine for a request, waited for; None if there is none in time, or another version serves by then."""
        self.waiting += 1
        try:
            async with asyncio.timeout(within):
                while self.open is None and not self.ending:
                    await self._changed.wait()
        except TimeoutError:
            return None
        finally:
            self.waiting -= 1
        if self.open is None or (digest is not None and self.open.digest != digest):
            return None
        return self.open

    @contextmanager
    def exchange(self, backend: Backend) -> Iterator[Exchange]:
        """A request is with an engine. What ends it by `Exchange.break_off` is the caller's to answer."""
        exchange = Exchange(asyncio.current_task())
        mine = self.exchanges.setdefault(backend.engine, set())
        mine.add(exchange)
        try:
            yield exchange
        finally:
            mine.discard(exchange)
            if not mine:
                self.exchanges.pop(backend.engine, None)
            self._wake()

    def drain(self, engine: int, within: float, done: Callable[[], None]) -> None:
        """``done`` is called when the engine has answered everything; what it still has after ``within`` seconds is
        broken off with an error."""
        self.close(engine)
        self._drains[engine] = asyncio.create_task(self._drain(engine, within, done))

    async def _drain(self, engine: int, within: float, done: Callable[[], None]) -> None:
        await self._emptied(engine, within)
        if self.exchanges.get(engine):
            self.break_off(engine, f"the engine was stopped: the answer took longer than the {within:.0f} s of a drain")
            await self._emptied(engine, BREAKING)
        self._drains.pop(engine, None)
        done()

    async def _emptied(self, engine: int, within: float) -> None:
        try:
            async with asyncio.timeout(within):
                while self.exchanges.get(engine):
                    await self._changed.wait()
        except TimeoutError:
            pass

    def break_off(self, engine: int, reason: str) -> None:
        for exchange in self.exchanges.get(engine, set()):
            exchange.break_off(reason)

    def forget(self, engine: int) -> None:
        """The engine is gone."""
        self.close(engine)
        if drain := self._drains.pop(engine, None):
            drain.cancel()
        self._tallies.pop(engine, None)

    def tally(self, backend: Backend) -> Tally:
        return self._tallies.setdefault(backend.engine, Tally())

    def vitals(self, engine: int) -> Vitals:
        return self._tallies.get(engine, Tally()).vitals

    def _wake(self) -> None:
        """Whoever waits looks again."""
        self._changed.set()
        self._changed = asyncio.Event()
