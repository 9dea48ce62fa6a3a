"""A download, with sources that stall, trickle, lie, stop in the middle and come back."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from blake3 import blake3

from packtrain.errors import IntegrityError, LocalDiskError, NotFound, Refused, Unavailable, disk_error
from packtrain.flows.download import ATTEMPTS, BUFFER, Source, _Task, download
from packtrain.model.manifest import Chunk, Chunks, FileEntry, Manifest
from packtrain.model.pacing import Limits
from packtrain.ports import Clock
from packtrain.testing.clock import FakeClock
from packtrain.wiring import SystemClock

CHUNK = 64 << 10
FILES = {"a.safetensors": 40, "b.safetensors": 25, "c.json": 1}  # chunks
DATA = {path: os.urandom(count * CHUNK - 7) for path, count in FILES.items()}


def entry(path: str, data: bytes) -> FileEntry:
    pieces = [data[i : i + CHUNK] for i in range(0, len(data), CHUNK)]
    return FileEntry(path, len(data), "a" * 64, Chunks(map(len, pieces), [blake3(p).hexdigest() for p in pieces]))


MANIFEST = Manifest.of("merged", [entry(path, data) for path, data in DATA.items()])
COUNT = sum(FILES.values())
ONE_BY_ONE = Limits(memory=2 * BUFFER)  # one request after the other
Behaviour = Callable[["Script", str, int, memoryview], memoryview]


class Script:
    """A source of ``DATA`` that does what a test says before it gives a piece."""

    def __init__(self, name: str = "store", behaviour: Behaviour = lambda _s, _p, _o, piece: piece) -> None:
        self.name = name
        self.remedy = "ask somebody"
        self.behaviour = behaviour
        self.requests: list[tuple[str, int, int]] = []
        self.lock = threading.Lock()
        self.given = 0

    def read(self, path: str, start: int, length: int, buffer: memoryview) -> Iterator[memoryview]:
        with self.lock:
            self.requests.append((path, start, length))
        step = min(len(buffer), 16 << 10)
        for offset in range(start, start + length, step):
            count = min(step, start + length - offset)
            buffer[:count] = DATA[path][offset : offset + count]
            piece = self.behaviour(self, path, offset, buffer[:count])
            with self.lock:
                self.given += count
            yield piece


class Folder:
    """A sink of files in a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.finished: list[int] = []
        for path, data in DATA.items():
            (root / path).write_bytes(bytes(len(data)))

    @contextmanager
    def open(self, path: str) -> Iterator[int]:
        descriptor = os.open(self.root / path, os.O_RDWR)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def finish(self, index: int) -> None:
        self.finished.append(index)


class Told:
    """What the user was told."""

    def __init__(self) -> None:
        self.done = 0
        self.notes: list[str] = []
        self.lock = threading.Lock()

    def begin(self, what: str, total: int) -> None: ...
    def end(self) -> None: ...

    def advance(self, count: int) -> None:
        with self.lock:
            self.done += count

    def note(self, text: str) -> None:
        self.notes.append(text)


class Hasty(SystemClock):
    """Real time, but nobody sleeps for long."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        super().sleep(min(seconds, 0.002))


class Standing(FakeClock):
    """Time that nothing but a sleep moves: what is slept is what was asked for, however busy this machine is."""

    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        super().sleep(seconds)


def fetch(
    root: Path,
    *sources: Source,
    finished: set[int] | None = None,
    limits: Limits | None = None,
    clock: Clock | None = None,
) -> tuple[Folder, Told, Hasty]:
    sink, told, hasty = Folder(root), Told(), Hasty()
    done = finished or set()
    download(
        sources, MANIFEST, done, sink,
        what="fetching", limits=limits or Limits(), reporter=told, clock=clock or hasty,
    )  # fmt: skip
    assert sorted(sink.finished) == sorted(set(range(COUNT)) - done), "each chunk is finished once"
    if not done:
        assert {path: (root / path).read_bytes() for path in DATA} == DATA
    return sink, told, hasty


@pytest.fixture(autouse=True)
def nobody_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that this machine leaves waiting for a second is not a source that stalls."""
    monkeypatch.setattr("packtrain.flows.download.LATE", 600.0)


def test_everything_arrives_and_is_counted_once(tmp_path: Path) -> None:
    source = Script()
    _, told, _ = fetch(tmp_path, source)
    assert told.done == sum(map(len, DATA.values())) == source.given
    assert not told.notes


def test_only_what_is_missing_is_asked_for(tmp_path: Path) -> None:
    source = Script()
    finished = set(range(COUNT)) - {3, 4, 40}
    fetch(tmp_path, source, finished=finished)
    assert sorted(source.requests) == [("a.safetensors", 3 * CHUNK, 2 * CHUNK), ("b.safetensors", 0, CHUNK)]


def test_nothing_is_missing(tmp_path: Path) -> None:
    source = Script()
    fetch(tmp_path, source, finished=set(range(COUNT)))
    assert source.requests == []


def test_a_source_that_stops_now_and_then(tmp_path: Path) -> None:
    def stops(script: Script, path: str, offset: int, piece: memoryview) -> memoryview:
        if script.given // (7 * CHUNK) > len(troubles):
            troubles.append(offset)
            raise Unavailable("reset by peer")
        return piece

    troubles: list[int] = []
    _, told, clock = fetch(tmp_path, Script(behaviour=stops))
    assert len(troubles) > 3
    assert told.done == sum(map(len, DATA.values())), "what was fetched twice is counted once"
    assert clock.slept, "it is not asked again at once"


def test_a_source_that_is_gone_is_given_up(tmp_path: Path) -> None:
    def gone(script: Script, path: str, offset: int, piece: memoryview) -> memoryview:
        raise Unavailable("cannot be reached", hint="check the network")

    source = Script(behaviour=gone)
    with pytest.raises(Unavailable, match="cannot be reached"):
        fetch(tmp_path, source)
    assert ATTEMPTS <= len(source.requests) <= ATTEMPTS * 8


def test_a_server_says_when_to_come_back(tmp_path: Path) -> None:
    def busy(script: Script, path: str, offset: int, piece: memoryview) -> memoryview:
        with script.lock:
            first, refused[0] = not refused[0], True
        if first:
            raise Unavailable("SlowDown", busy=True, retry_after=17.0)
        return piece

    refused, clock = [False], Standing()
    fetch(tmp_path, Script(behaviour=busy), clock=clock)
    assert clock.slept[0] == 17


@pytest.mark.parametrize("other", [False, True])
def test_wrong_bytes_are_never_kept_and_their_source_is_named(tmp_path: Path, other: bool) -> None:
    def lies(script: Script, path: str, offset: int, piece: memoryview) -> memoryview:
        if offset <= 20 * CHUNK < offset + len(piece):
            piece[0] ^= 1
        return piece

    liar, honest = Script("liar", lies), Script("honest")
    if other:
        _, told, _ = fetch(tmp_path, liar, honest)
        assert len(told.notes) == 1
        assert "liar" in told.notes[0] and ".safetensors" in told.notes[0]
        return
    sink = Folder(tmp_path)
    with pytest.raises(IntegrityError, match=r"\.safetensors in liar is not what"):
        download([liar], MANIFEST, set(), sink, what="", limits=Limits(), reporter=Told(), clock=Hasty())
    assert not {20, 60} & set(sink.finished)


@pytest.mark.parametrize("error", [NotFound("no such file"), Refused("403")])
def test_a_source_without_the_file_is_left_for_the_next(tmp_path: Path, error: Exception) -> None:
    def lacks(script: Script, path: str, offset: int, piece: memoryview) -> memoryview:
        raise error

    _, told, _ = fetch(tmp_path, Script("peer", lacks), Script("store"))
    assert "peer is not used any more" in told.notes[0]
    kind = IntegrityError if isinstance(error, NotFound) else Refused
    with pytest.raises(kind):
        fetch(tmp_path, Script("peer", lacks))


def test_a_request_that_hangs_is_made_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what it would write when it wakes up is not written."""
    monkeypatch.setattr("packtrain.flows.download.LATE", 0.2)

    def hangs(script: Script, path: str, offset: int, piece: memoryview) -> memoryview:
        with script.lock:
            first, hung[0] = not hung[0] and offset == 30 * CHUNK, hung[0] or offset == 30 * CHUNK
        if first:
            release.wait(60)
            piece[:] = bytes(len(piece))  # and it lies, too
            woke.set()
        return piece

    hung = [False]
    release, woke = threading.Event(), threading.Event()
    _, told, _ = fetch(tmp_path, Script(behaviour=hangs))
    assert hung[0] and told.done == sum(map(len, DATA.values()))
    release.set()
    assert woke.wait(30)
    for thread in threading.enumerate():
        if thread.name == "download":
            thread.join(30)
    assert {path: (tmp_path / path).read_bytes() for path in DATA} == DATA


def test_the_end_of_a_long_run_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One slow request at the end does not keep the others idle: they take its last chunks."""

    def slow(script: Script, path: str, offset: int, piece: memoryview) -> memoryview:
        if path == "a.safetensors":
            slow_one[0] = slow_one[0] or threading.current_thread()
            if threading.current_thread() is slow_one[0]:
                time.sleep(0.02)
        return piece

    monkeypatch.setattr("packtrain.flows.download.LATE", 0.1)
    slow_one: list[threading.Thread | None] = [None]
    source = Script(behaviour=slow)
    fetch(tmp_path, source)
    assert len({start for path, start, _ in source.requests if path == "a.safetensors"}) > 1


def test_nothing_is_shared_while_most_requests_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a source has sent of a run when it is taken apart was sent for nothing. Of three at once two go on, in step;
    the third, which is idle, looks again whenever one of them has a chunk, and takes of the longer one after the other
    has ended."""

    def in_step(script: Script, path: str, offset: int, piece: memoryview) -> memoryview:
        until = time.monotonic() + 60
        while len(script.requests) < 3 and time.monotonic() < until:
            time.sleep(0.001)
        if path != "c.json" and offset < len(DATA["b.safetensors"]):
            with suppress(threading.BrokenBarrierError):
                step.wait(30)
            clock.sleep(0.05)
            time.sleep(0.005)
        elif path == "a.safetensors":
            while len(script.requests) == 3:
                assert time.monotonic() < until, "nobody takes of it"
                time.sleep(0.001)
        if path == "b.safetensors":
            asked.append(len(script.requests))
        return piece

    monkeypatch.setattr("packtrain.flows.download.LATE", 1.0)
    step, clock, asked = threading.Barrier(2), FakeClock(), list[int]()
    source = Script(behaviour=in_step)
    fetch(tmp_path, source, limits=Limits(memory=3 * 2 * BUFFER), clock=clock)
    assert asked[-1] == 3
    assert [path for path, _, _ in source.requests[3:]][:1] == ["a.safetensors"]


@pytest.mark.parametrize(("buffer", "steers"), [(1 << 10, True), (1 << 20, False)])
def test_the_width_is_not_judged_by_a_few_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buffer: int, steers: bool
) -> None:
    """Of a slow wire a window would have two or three for each thread, and one more or less would look like a gain."""

    def slow(script: Script, path: str, offset: int, piece: memoryview) -> memoryview:
        time.sleep(0.001)
        return piece

    rates: list[float] = []
    monkeypatch.setattr("packtrain.flows.download.WINDOW", 0.02)
    monkeypatch.setattr("packtrain.flows.download.BUFFER", buffer)
    monkeypatch.setattr("packtrain.model.pacing.Pace.observe", lambda _, rate: rates.append(rate))
    fetch(tmp_path, Script(behaviour=slow), limits=Limits(memory=4 * buffer))
    assert bool(rates) == steers


def test_a_failing_disk_ends_it(tmp_path: Path) -> None:
    class Full(Folder):
        def finish(self, index: int) -> None:
            raise disk_error(OSError(errno.ENOSPC, "No space left on device"), "could not note it")

    with pytest.raises(LocalDiskError, match="No space"):
        download([Script()], MANIFEST, set(), Full(tmp_path), what="", limits=Limits(), reporter=Told(), clock=Hasty())


def test_bandwidth_is_kept(tmp_path: Path) -> None:
    size = sum(map(len, DATA.values()))
    _, _, clock = fetch(tmp_path, Script(), limits=Limits(bandwidth=size // 1000))
    assert 900 < max(clock.slept) < 1010, "the last byte may come only after a thousand seconds"


@pytest.mark.parametrize("memory", [2 << 20, 8 << 20, 64 << 20])
def test_no_more_at_once_than_memory_allows(tmp_path: Path, memory: int) -> None:
    buffers: dict[int, memoryview] = {}

    class Counting(Script):
        def read(self, path: str, start: int, length: int, buffer: memoryview) -> Iterator[memoryview]:
            with self.lock:
                buffers[id(buffer.obj)] = buffer
            return super().read(path, start, length, buffer)

    fetch(tmp_path, Counting(), limits=Limits(memory=memory))
    assert sum(len(buffer) for buffer in buffers.values()) <= memory // 2, "the other half is for late chunks"


@pytest.mark.parametrize(("memory", "once_more"), [(CHUNK, False), (4 * CHUNK, True)])
def test_what_is_late_is_held_in_memory_that_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: int, once_more: bool
) -> None:
    """A late chunk is fetched once more beside the file; one for which there is no memory is waited for."""
    monkeypatch.setattr("packtrain.flows.download.LATE", 0.1)
    monkeypatch.setattr("packtrain.flows.download.BUFFER", 1 << 10)
    asked = threading.Event()

    class Watched(Script):
        def read(self, path: str, start: int, length: int, buffer: memoryview) -> Iterator[memoryview]:
            if hung and (path, start, length) == ("a.safetensors", 30 * CHUNK, CHUNK):
                asked.set()
            return super().read(path, start, length, buffer)

    def hangs(script: Script, path: str, offset: int, piece: memoryview) -> memoryview:
        if not hung and (path, offset) == ("a.safetensors", 30 * CHUNK):
            hung.append(path)
            asked.wait(60 if once_more else 1)
        return piece

    hung: list[str] = []
    fetch(tmp_path, Watched(behaviour=hangs), limits=Limits(memory=memory))
    assert asked.is_set() is once_more


def test_what_was_late_goes_on_after_it_was_fetched_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was the last chunk of its file, and its request gives more than anybody waits for."""
    monkeypatch.setattr("packtrain.flows.download.LATE", 0.1)
    last = FILES["a.safetensors"] - 1
    there = threading.Event()

    def finish(self: Folder, index: int) -> None:
        self.finished.append(index)
        if index == last:
            there.set()

    def hangs(script: Script, path: str, offset: int, piece: memoryview) -> memoryview:
        if not hung and (path, offset) == ("a.safetensors", last * CHUNK + (16 << 10)):
            hung.append(path)
            assert there.wait(60)
            time.sleep(0.1)  # who was first has noted it by then
        return piece

    hung: list[str] = []
    monkeypatch.setattr(Folder, "finish", finish)
    fetch(tmp_path, Script(behaviour=hangs))


def test_another_may_be_first_with_a_chunk_between_its_writing_and_its_counting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was the last chunk of its file, so there is none after it to look at."""
    monkeypatch.setattr("packtrain.flows.download.LATE", 0.1)
    last, name = FILES["a.safetensors"] - 1, "a.safetensors"
    there, held, receive = threading.Event(), list[str](), _Task.receive

    def finish(self: Folder, index: int) -> None:
        self.finished.append(index)
        if index == last:
            there.set()

    def receive_later(task: _Task, data: memoryview) -> tuple[Chunk, memoryview] | None:
        if not held and (task.run.file.path, task.index) == (name, last):
            held.append(name)
            assert there.wait(60)
            while not task.over:
                time.sleep(0.001)
        return receive(task, data)

    monkeypatch.setattr(Folder, "finish", finish)
    monkeypatch.setattr(_Task, "receive", receive_later)
    fetch(tmp_path, Script())
    assert held == [name]


def test_pauses_grow_and_no_two_are_alike(tmp_path: Path) -> None:
    """So that a thousand nodes do not come back at the same moment."""

    def gone(script: Script, path: str, offset: int, piece: memoryview) -> memoryview:
        raise Unavailable("reset by peer")

    slept: list[list[float]] = []
    for _ in range(3):
        clock = Standing()
        with pytest.raises(Unavailable):
            download(
                [Script(behaviour=gone)],
                MANIFEST,
                set(),
                Folder(tmp_path),
                what="",
                limits=ONE_BY_ONE,
                reporter=Told(),
                clock=clock,
            )
        slept.append(clock.slept)
    assert all(len(pauses) == ATTEMPTS - 1 for pauses in slept)
    assert all(pauses[-1] > 2 * pauses[0] for pauses in slept)
    assert len({pauses[0] for pauses in slept}) == 3


def test_a_liar_is_not_asked_again(tmp_path: Path) -> None:
    """Not for anything else of the version either, however much there is."""

    def lies(script: Script, path: str, offset: int, piece: memoryview) -> memoryview:
        piece[0] ^= 1
        return piece

    liar, honest = Script("liar", lies), Script("honest")
    fetch(tmp_path, liar, honest, limits=ONE_BY_ONE)
    assert len(liar.requests) == 1
    assert honest.requests
