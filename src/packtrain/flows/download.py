"""A download: chunks of all files at once, from any source, each hashed and written as it passes.

As many threads as the wire gains by (`Pace`) take runs of missing chunks and ask a source for each with one request.
A chunk counts only when its digest matches. At the end nobody waits for a slow one: who has nothing to do takes the
later half of another's run, and in the end fetches the very chunk that another is late with.
"""

from __future__ import annotations

import os
import random
import resource
import sys
import time
from collections import deque
from collections.abc import Container, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from threading import Condition, Lock, Thread
from typing import Protocol

from blake3 import blake3

from packtrain.errors import IntegrityError, NotFound, PacktrainError, Refused, Unavailable, disk_error
from packtrain.flows.buffers import page_aligned
from packtrain.model.manifest import Chunk, FileEntry, Manifest
from packtrain.model.pacing import Limits, Pace
from packtrain.model.sourcing import Run, missing_runs
from packtrain.model.version import how_to_mend
from packtrain.ports import Clock, Reporter, Store

BUFFER = 1 << 20  # bytes, one for each thread: ADR 0007 says why so many
THREADS = 32
FILES = 8  # that a thread has open at once, at most: its own, a connection or a path's folders
ATTEMPTS = 6  # in a row that bring nothing, before a source is left
WINDOW = 0.2  # seconds over which the goodput is measured, at least
PIECES = 8  # buffers of each thread that a window has, at least: what is in half-full ones is not counted
LATE = 1.0  # seconds after which a chunk may be late, if others take much less
PATIENCE = 0.5  # seconds for threads to end, before they are left to their deadline
STALLED = 2.0  # seconds without a byte after which a request no longer counts as one


class Source(Protocol):
    """Something that has the files of a version."""

    @property
    def name(self) -> str:
        """For people."""
        ...

    @property
    def remedy(self) -> str:
        """What to do when its bytes are not what they should be."""
        ...

    def read(self, path: str, start: int, length: int, buffer: memoryview) -> Iterator[memoryview]:
        """As `packtrain.ports.Store.read`."""
        ...


class Sink(Protocol):
    """Where chunks go. Its methods are called by many threads."""

    def open(self, path: str) -> AbstractContextManager[int]:
        """A descriptor for `os.pwrite` into a file."""
        ...

    def finish(self, index: int) -> None:
        """A chunk is written and right."""
        ...


@dataclass(frozen=True, slots=True)
class StoreSource:
    """The directory ``prefix`` of a store."""

    store: Store
    prefix: str

    @property
    def name(self) -> str:
        return f"{self.store.url}/{self.prefix}".rstrip("/")

    @property
    def remedy(self) -> str:
        _, name, _ = self.prefix.split("/", 2)  # as version_prefix makes it
        return how_to_mend(name)

    def read(self, path: str, start: int, length: int, buffer: memoryview) -> Iterator[memoryview]:
        return self.store.read(self.prefix + path, start, length, buffer)


class Nowhere:
    """A sink for bytes that are only to be checked."""

    @contextmanager
    def open(self, path: str) -> Iterator[int]:  # noqa: ARG002 - all files are nowhere
        descriptor = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def finish(self, index: int) -> None: ...


def download(
    sources: Sequence[Source],
    manifest: Manifest,
    finished: Container[int],
    sink: Sink,
    *,
    what: str,
    limits: Limits,
    reporter: Reporter,
    clock: Clock,
) -> int:
    """Brings every chunk whose index is not in ``finished`` into ``sink``. Returns the bytes that were missing.

    A source that gives wrong bytes, lacks a file or keeps failing is left, and named; the next one goes on. Raises
    the error of the last one: IntegrityError, or Unavailable after which a later call continues.
    """
    runs = list(missing_runs(manifest, finished))
    total = sum(run.length for run in runs)
    reporter.begin(what, total)
    try:
        if total:
            _Download(sources, runs, sink, limits, reporter, clock).run()
    finally:
        reporter.end()
    return total


class _SourceError(Exception):
    """A source failed; ``__cause__`` says how."""


class _WrongBytes(_SourceError):
    """A chunk is not what the manifest says."""


@dataclass
class _Standing:
    """What a download thinks of a source."""

    source: Source
    failures: int = 0  # in a row
    since: float = 0.0  # when the last of them was
    pause_until: float = 0.0


@dataclass(eq=False)
class _Task:
    """A request on its way, for ``run``. Its thread writes only with ``lock`` held and while it is not ``over``."""

    run: Run
    standing: _Standing
    began: float
    late: _Task | None = None  # the task whose chunk this one fetches once more
    lock: Lock = field(default_factory=Lock)
    index: int = 0  # in the file, of the chunk that is on its way
    end: int = 0  # of the chunks that are still its own: others may take the last ones
    received: int = 0  # bytes of the chunk that is on its way; the file may have some more
    moved: float = 0.0  # when the last byte came
    chunk_began: float = 0.0
    hedged: bool = False
    over: bool = False

    def __post_init__(self) -> None:
        self.index, self.end = self.run.begin, self.run.end
        self.moved = self.chunk_began = self.began

    @property
    def rest(self) -> Run | None:
        """What it has not brought."""
        done = self.run.after(self.index - self.run.begin)
        return Run(done.file, done.start, done.first, self.index, self.end) if self.index < self.end else None

    @property
    def left(self) -> int:
        """Bytes that are to come."""
        return sum(self.run.file.chunks.lengths[self.index : self.end]) - self.received

    def receive(self, data: memoryview) -> tuple[Chunk, memoryview] | None:
        """The chunk that is on its way, and what is of it of the bytes that came. None if it is over."""
        with self.lock:
            if self.over:
                return None
            chunk = self.run.file.chunks[self.index]
            part = data[: chunk.length - self.received]
            self.received += len(part)
            return chunk, part


class _Download:
    def __init__(
        self,
        sources: Sequence[Source],
        runs: Sequence[Run],
        sink: Sink,
        limits: Limits,
        reporter: Reporter,
        clock: Clock,
    ) -> None:
        self._sink = sink
        self._reporter = reporter
        self._clock = clock
        self._limits = limits
        self._budget = _Budget(limits.bandwidth, clock)
        self._changed = Condition()  # guards everything below
        self._standings = [_Standing(source) for source in sources]
        # The large ones first: small files would hold every request for a round trip while the wire has nothing to do.
        self._waiting = deque(sorted(runs, key=lambda run: -run.length))
        self._waiting_bytes = sum(run.length for run in runs)
        self._missing = sum(run.end - run.begin for run in runs)  # chunks
        self._active: set[_Task] = set()
        self._threads: list[Thread] = []
        self._failure: BaseException | None = None
        self._over = False
        most = min(THREADS, limits.memory // (2 * BUFFER), _may_open() // FILES)
        self._pace = Pace(most=most, total=self._waiting_bytes)
        self._held = 0  # bytes of chunks that are fetched once more
        self._got = 0  # bytes in this window
        self._latency = 0.0
        self._chunk_rate = 0.0  # bytes a second of one request, smoothed

    def run(self) -> None:
        """Until every chunk is there. Raises the first failure that nothing makes good."""
        window = self._clock.monotonic()
        try:
            with self._changed:
                while self._missing and self._failure is None:
                    self._hire()
                    self._changed.wait(WINDOW / 4)
                    window = self._observe(window)
        finally:
            self._end()
        if self._failure is not None:
            raise self._failure

    # The main thread

    def _hire(self) -> None:
        while len(self._threads) < self._pace.width and (len(self._threads) < self._missing):
            thread = Thread(target=self._work, name="download", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # this user or container may have no more
                if not self._threads:
                    hint = "Raise the limit of processes (ulimit -u, or the container's pids limit)."
                    raise Refused("no thread can be started for the download", hint=hint) from error
                return
            self._threads.append(thread)

    def _observe(self, window: float) -> float:
        """Measures, once a window; returns when the present one began."""
        now = self._clock.monotonic()
        if now - window < max(WINDOW, 4 * self._latency) or self._got < PIECES * self._pace.width * BUFFER:
            return window
        rate, self._got = self._got / (now - window), 0
        if self._waiting:  # with nothing left to hand out, the rate says nothing of the width
            self._pace.observe(rate)
            self._changed.notify_all()
        return now

    def _end(self) -> None:
        """After this no thread writes. One that waits for a silent server is left behind; it ends by its deadline."""
        with self._changed:
            self._over = True
            active = list(self._active)
            self._changed.notify_all()
        for task in active:
            with task.lock:
                task.over = True
        deadline = time.monotonic() + PATIENCE
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    # The threads

    def _work(self) -> None:
        buffer = page_aligned(BUFFER)
        try:
            while (task := self._next()) is not None:
                try:
                    self._bring(task, buffer)
                except _SourceError as error:
                    self._judge(task, error)
                finally:
                    self._give_back(task)
        except BaseException as error:  # noqa: BLE001 - it is raised where the download was asked for
            with self._changed:
                self._failure = self._failure or error
                self._changed.notify_all()

    def _next(self) -> _Task | None:
        """Something to do, or None at the end."""
        with self._changed:
            while True:
                if self._over or self._failure is not None or not self._missing:
                    return None
                now = self._clock.monotonic()
                running = sum(now - task.moved < STALLED for task in self._active)
                if running < self._pace.width and (task := self._choose(now, running)) is not None:
                    self._active.add(task)
                    return task
                self._changed.wait(WINDOW)

    def _choose(self, now: float, running: int) -> _Task | None:
        standing = self._standings[0]
        if self._waiting:
            return _Task(self._take(), standing, now)
        # Not as soon as one is idle: whatever is on its way when a run is taken apart was sent for nothing.
        if 2 * running <= self._pace.width and (stolen := self._steal(now)) is not None:
            return _Task(stolen, standing, now)
        return self._hedge(now)

    def _take(self) -> Run:
        run = self._waiting.popleft()
        run, rest = run.split(self._pace.request_length(self._waiting_bytes))
        if rest is not None:
            self._waiting.appendleft(rest)
        self._waiting_bytes -= run.length
        return run

    def _steal(self, now: float) -> Run | None:
        """The later half of a run that will take long, but never the chunk that is on its way. What the source has
        sent of it already is lost, so a run that ends soon is left alone."""
        for task in self._active:
            with task.lock:
                rest = task.rest
                spare = task.end - task.index - 1
                if task.late is not None or task.over or rest is None or spare < 1 or now - task.began < LATE:
                    continue
                done = rest.start - task.run.start + task.received
                if rest.length * (now - task.began) < LATE * max(done, 1):
                    continue
                keep = 1 + spare // 2
                task.end = task.index + keep
                return rest.after(keep)
        return None

    def _hedge(self, now: float) -> _Task | None:
        """The chunk that a request takes far longer for than others took for theirs, once more."""
        for task in self._active:
            with task.lock:
                rest = task.rest
                if rest is None or task.late is not None or task.hedged or task.over:
                    continue
                chunk, _ = rest.split(1)
            usual = chunk.length / self._chunk_rate if self._chunk_rate else LATE
            if now - task.chunk_began > max(LATE, 4 * usual) and self._held + chunk.length <= self._limits.memory // 2:
                task.hedged = True
                self._held += chunk.length
                return _Task(chunk, self._standings[-1], now, late=task)
        return None

    def _bring(self, task: _Task, buffer: memoryview) -> None:
        pause = task.standing.pause_until - self._clock.monotonic()
        if pause > 0:
            self._clock.sleep(pause)
        if task.late is not None:
            self._bring_late(task, task.late, buffer)
            return
        file, run = task.run.file, task.run
        position = run.start
        digest = blake3()
        with self._sink.open(file.path) as descriptor:
            for piece in self._read(task, run, buffer):
                with task.lock:
                    if task.over:  # perhaps because somebody else brought the chunk
                        return
                    view = piece[: task.left]
                    _write(descriptor, view, position, file)  # at once, whatever chunks it holds: pieces are aligned
                position += len(view)
                while view:
                    if (received := task.receive(view)) is None:
                        return
                    chunk, part = received
                    digest.update(part)
                    view = view[len(part) :]
                    self._reporter.advance(len(part))
                    if task.received == chunk.length:
                        if digest.hexdigest() != chunk.blake3:
                            raise _WrongBytes
                        digest = blake3()
                        if not self._finished(task):
                            return

    def _finished(self, task: _Task) -> bool:
        """Notes that the chunk on its way is there. Returns whether another of the run is to come."""
        with task.lock:
            if task.over:
                return False
            self._sink.finish(task.run.first + task.index - task.run.begin)
            length, task.received = task.received, 0
            task.index += 1
            more = task.index < task.end
        now = self._clock.monotonic()
        with self._changed:
            self._count(task, length, now)
        return more

    def _bring_late(self, task: _Task, late: _Task, buffer: memoryview) -> None:
        """Fetches a chunk that another task is late with, beside the file; the first that is whole counts."""
        file, chunk = task.run.file, task.run.chunks[0]
        data = bytearray()
        for piece in self._read(task, task.run, buffer):
            data += piece
            if late.over or self._over:
                return
        if blake3(data).hexdigest() != chunk.blake3:
            raise _WrongBytes
        with self._sink.open(file.path) as descriptor, late.lock:
            if late.over or late.index != task.run.begin:
                return
            _write(descriptor, memoryview(data), task.run.start, file)
            self._sink.finish(task.run.first)
            self._reporter.advance(chunk.length - late.received)
            late.index += 1
            late.received = 0
            late.over = True
        with self._changed:
            self._put_back(late.rest)
            self._count(task, chunk.length, self._clock.monotonic())

    def _read(self, task: _Task, run: Run, buffer: memoryview) -> Iterator[memoryview]:
        asked = self._clock.monotonic()
        pieces = task.standing.source.read(run.file.path, run.start, run.length, buffer)
        try:
            for piece in pieces:
                self._budget.spend(len(piece))
                task.moved = self._clock.monotonic()
                if asked:
                    task.chunk_began = task.moved
                    self._latency = 0.8 * self._latency + 0.2 * (task.moved - asked)
                    asked = 0.0
                self._got += len(piece)  # not exact among threads: it only steers
                yield piece
        except PacktrainError as error:
            raise _SourceError from error

    def _count(self, task: _Task, length: int, now: float) -> None:
        """A chunk has come."""
        took = max(now - task.chunk_began, 1e-6)
        task.chunk_began = now
        self._chunk_rate = 0.9 * self._chunk_rate + 0.1 * length / took if self._chunk_rate else length / took
        task.standing.failures = 0
        self._missing -= 1
        if not self._missing:
            self._changed.notify_all()

    def _give_back(self, task: _Task) -> None:
        """The task has ended: what it did not bring waits again."""
        with self._changed:
            self._active.discard(task)
            if task.late is not None:
                self._held -= task.run.length
                task.late.hedged = False
                return
            if not task.over:
                self._reporter.advance(-task.received)
                self._put_back(task.rest)

    def _put_back(self, rest: Run | None) -> None:
        if rest is not None:
            self._waiting.appendleft(rest)
            self._waiting_bytes += rest.length
            self._changed.notify()

    # What goes wrong

    def _judge(self, task: _Task, failed: _SourceError) -> None:
        """A request failed: it is tried again after a pause, or its source is left. Raises when it was the last."""
        error = _explain(task, failed)
        standing = task.standing
        with self._changed:
            if self._over or task.over or standing not in self._standings:
                return
            if isinstance(error, Unavailable):
                self._delay(task, error)
                if standing.failures < ATTEMPTS:
                    return
            if len(self._standings) == 1:
                raise error from failed
            self._standings.remove(standing)
        self._reporter.note(f"warning: {standing.source.name} is not used any more: {error}")

    def _delay(self, task: _Task, error: Unavailable) -> None:
        """Requests that failed together count once."""
        standing = task.standing
        now = self._clock.monotonic()
        if error.busy:
            self._pace.slow_down()
        if task.began >= standing.since:
            standing.failures += 1
            standing.since = now
            pause = random.uniform(0.5, 1.0) * min(10.0, 0.2 * 2**standing.failures)
            standing.pause_until = now + max(pause, min(error.retry_after or 0.0, 60.0))


def _may_open() -> int:
    """How many files may be open at once, beside those that every process has."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit - 16


class _Budget:
    """Keeps the stream under so many bytes a second."""

    def __init__(self, bandwidth: int | None, clock: Clock) -> None:
        self._bandwidth = bandwidth
        self._clock = clock
        self._lock = Lock()
        self._free_at = 0.0

    def spend(self, count: int) -> None:
        if self._bandwidth is None:
            return
        with self._lock:
            now = self._clock.monotonic()
            self._free_at = max(self._free_at, now) + count / self._bandwidth
            pause = self._free_at - now
        if pause > 0:
            self._clock.sleep(pause)


def _explain(task: _Task, failed: _SourceError) -> PacktrainError:
    path, source = task.run.file.path, task.standing.source
    cause = failed.__cause__
    if isinstance(failed, _WrongBytes):
        return damaged(path, source.name, source.remedy)
    if isinstance(cause, NotFound):
        return IntegrityError(f"{path} is missing from {source.name}", hint=source.remedy)
    assert isinstance(cause, PacktrainError)
    return cause


def damaged(path: str, where: str, remedy: str) -> IntegrityError:
    """A file whose bytes are not what its manifest says."""
    return IntegrityError(
        f"{path} in {where.rstrip('/')} is not what its manifest says: the bytes were changed or damaged", hint=remedy
    )


def _write(descriptor: int, data: memoryview, position: int, file: FileEntry) -> None:
    try:
        while data:
            count = os.pwrite(descriptor, data, position)
            position += count
            data = data[count:]
    except OSError as error:
        raise disk_error(error, f"could not write {file.path}") from error
