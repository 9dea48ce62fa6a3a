"""The ledger in a store that fails, lies or is away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from packtrain.errors import AlreadyExists, Conflict, IntegrityError, Unavailable
from packtrain.model.ledger import Draft, Event, State
from packtrain.ports import ObjectInfo
from packtrain.registry.ledger import LedgerRegistry
from packtrain.storage.directory import DirectoryStore
from packtrain.testing.faults import Fault, FaultyStore, Killed
from packtrain.testing.memory_store import MemoryStore
from tests.registry.machines import events, machine, promoting, publish, put


@pytest.fixture
def store(tmp_path: Path) -> MemoryStore:
    """A ledger with two versions: four events."""
    store = MemoryStore()
    publish(machine(store, tmp_path / "publisher"), count=2)
    return store


class Scripted(MemoryStore):
    """Over the objects of another store: ``create`` and ``get`` first do what a test says."""

    def __init__(self, inner: MemoryStore) -> None:
        super().__init__()
        self.objects = inner.objects
        self.on_create: list[Callable[[str, bytes], None]] = []
        self.on_get: list[Callable[[str], None]] = []

    def create(self, key: str, data: bytes) -> None:
        if self.on_create:
            self.on_create.pop(0)(key, data)
        super().create(key, data)

    def get(self, key: str) -> bytes:
        if self.on_get:
            self.on_get.pop(0)(key)
        return super().get(key)


def fail(*args: object) -> None:
    raise Unavailable("the network is down")


def promotions(store: MemoryStore) -> int:
    return len(events(store)) - 4


# A share that is not mounted


@pytest.mark.parametrize("left", ["an empty folder", "nothing"])
def test_a_share_that_is_not_mounted_is_not_a_truncated_ledger(tmp_path: Path, left: str) -> None:
    share = tmp_path / "share"
    registry = machine(DirectoryStore(share), tmp_path / "seen")
    publish(registry)
    share.rename(tmp_path / "elsewhere")
    if left == "an empty folder":
        share.mkdir()
    asks: list[Callable[[], object]] = [
        lambda: registry.read("m"),
        lambda: registry.audit("m"),
        lambda: registry.change("m", promoting(1)),
        registry.names,
    ]
    for ask in asks:
        with pytest.raises(Unavailable, match="the store is not there: ") as caught:
            ask()
        assert "Mount the share" in caught.value.hint
    assert not share.exists() or not any(share.iterdir())  # nothing was written below the mount
    if share.exists():
        share.rmdir()
    (tmp_path / "elsewhere").rename(share)
    assert len(registry.read("m").events) == 2


# Lost answers


def test_an_event_whose_answer_was_lost_is_known_by_its_nonce(store: MemoryStore, tmp_path: Path) -> None:
    scripted = Scripted(store)

    def done_but_lost(key: str, data: bytes) -> None:
        MemoryStore.create(scripted, key, data)
        fail()

    scripted.on_create = [done_but_lost]
    _, event = machine(scripted, tmp_path).change("m", promoting(1, expect=0))
    assert event is not None
    assert events(store)[4:] == [event.encode()]


def test_an_event_that_a_repeated_request_finds_there_is_known_by_its_nonce(store: MemoryStore, tmp_path: Path) -> None:
    """A client repeats a create whose answer was lost, and is told AlreadyExists about its own event."""
    scripted = Scripted(store)
    scripted.on_create = [lambda key, data: MemoryStore.create(scripted, key, data)]
    _, event = machine(scripted, tmp_path).change("m", promoting(1, expect=0))
    assert event is not None
    assert events(store)[4:] == [event.encode()]


def test_an_equal_event_of_another_writer_is_not_ours(store: MemoryStore, tmp_path: Path) -> None:
    """Same actor, same time, same promotion: but the nonce. Who expected version 0 is told that it lost."""
    scripted, other = Scripted(store), machine(store, tmp_path / "other")

    def lost_to_an_equal(key: str, data: bytes) -> None:
        other.change("m", promoting(1, expect=0))
        fail()

    scripted.on_create = [lost_to_an_equal]
    with pytest.raises(Conflict, match="at version 1, not at version 0"):
        machine(scripted, tmp_path).change("m", promoting(1, expect=0))
    assert promotions(store) == 1
    scripted.on_create = [lost_to_an_equal]
    _, event = machine(scripted, tmp_path).change("m", promoting(1))
    assert event is None  # it is there already, and nothing more is written
    assert promotions(store) == 1


def test_an_event_that_did_not_arrive_is_not_claimed(store: MemoryStore, tmp_path: Path) -> None:
    scripted = Scripted(store)
    scripted.on_create = [fail]
    registry = machine(scripted, tmp_path)
    with pytest.raises(Unavailable, match=r"did not confirm an event .* the network is down") as caught:
        registry.change("m", promoting(1))
    assert "packtrain history m" in caught.value.hint
    assert promotions(store) == 0
    registry.change("m", promoting(1))
    assert promotions(store) == 1


@pytest.mark.parametrize("answer", [Unavailable, AlreadyExists])
def test_an_event_of_which_nothing_can_be_learned_is_not_claimed(
    store: MemoryStore, tmp_path: Path, answer: type[Exception]
) -> None:
    """The create and the look after it both fail; the event is there. The user is told to look, and doing it again
    finds that it is done."""
    scripted = Scripted(store)
    registry = machine(scripted, tmp_path)
    registry.read("m")

    def done_but_lost(key: str, data: bytes) -> None:
        MemoryStore.create(scripted, key, data)
        scripted.on_get = [fail]
        raise answer("no answer")

    scripted.on_create = [done_but_lost]
    with pytest.raises(Unavailable, match="did not confirm an event") as caught:
        registry.change("m", promoting(1))
    assert "packtrain history m" in caught.value.hint
    assert registry.change("m", promoting(1))[1] is None
    assert promotions(store) == 1


@pytest.mark.parametrize("fault", [Fault.UNAVAILABLE, Fault.LOST_ANSWER, Fault.KILLED])
@pytest.mark.parametrize("fresh", [True, False], ids=["newcomer", "has-seen"])
def test_a_fault_at_any_call_never_makes_two_events_nor_a_false_answer(
    store: MemoryStore, tmp_path: Path, fault: Fault, fresh: bool
) -> None:
    whole = FaultyStore(store, {})

    def home(name: str) -> Path:
        if not fresh:
            machine(store, tmp_path / name).read("m")
        return tmp_path / name

    snapshot = dict(store.objects)
    machine(whole, home("whole")).change("m", promoting(1, expect=0))
    assert whole.calls >= 2
    for k in range(whole.calls):
        store.objects.clear()
        store.objects.update(snapshot)
        registry = machine(FaultyStore(store, {k: fault}), home(f"{k}"))
        event: Event | None = None
        try:
            _, event = registry.change("m", promoting(1, expect=0))
        except (Unavailable, Killed):
            assert promotions(store) <= 1
        else:
            assert event is not None
            assert events(store)[4:] == [event.encode()]
        machine(store, tmp_path / f"{k}").change("m", promoting(1))  # the command again, on the same machine
        assert promotions(store) == 1
        assert machine(store, tmp_path / f"{k}").audit("m").state.aliases == {"production": 1}


class Flipping(MemoryStore):
    """Over the objects of another store: a bit of one of them is wrong when it is read."""

    def __init__(self, inner: MemoryStore, flipped: str) -> None:
        super().__init__()
        self.objects = inner.objects
        self._flipped = flipped

    def get(self, key: str) -> bytes:
        data = bytearray(super().get(key))
        if key == self._flipped:
            data[len(data) // 2] ^= 1
        return bytes(data)


@pytest.mark.parametrize("sequence", [1, 2, 3, 4])
def test_a_flipped_bit_in_what_is_read_is_refused(store: MemoryStore, tmp_path: Path, sequence: int) -> None:
    flipping = Flipping(store, f"ledger/m/{sequence:010}.json")
    with pytest.raises(IntegrityError, match="of the ledger of m"):
        machine(flipping, tmp_path).read("m")


# Readers and writers at once


class Busy(MemoryStore):
    """Somebody promotes just after the ledger was listed."""

    def __init__(self, inner: MemoryStore, promote: Callable[[], object]) -> None:
        super().__init__()
        self.objects = inner.objects
        self._promote = promote

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        yield from list(super().list(prefix))
        self._promote()


def test_a_promotion_during_an_audit_is_no_rewriting(store: MemoryStore, tmp_path: Path) -> None:
    """By another process of this machine: so the memory has more than the listing that the audit began with."""
    neighbour = machine(store, tmp_path)
    targets = iter((1, 2))
    busy = Busy(store, lambda: neighbour.change("m", promoting(next(targets))))
    for count in (4, 5):
        assert len(machine(busy, tmp_path).audit("m").events) == count
    assert promotions(store) == 2


def test_a_promotion_during_a_first_read_is_no_gap(store: MemoryStore, tmp_path: Path) -> None:
    other = machine(store, tmp_path / "other")
    busy = Busy(store, lambda: other.change("m", promoting(1)))
    assert len(machine(busy, tmp_path).read("m").events) >= 4
    assert len(machine(store, tmp_path).read("m").events) == 5


def test_who_never_gets_a_turn_gives_up_and_changed_nothing(store: MemoryStore, tmp_path: Path) -> None:
    slow, fast = machine(store, tmp_path / "slow"), machine(store, tmp_path / "fast")
    publish(slow)

    def decide(state: State) -> Draft | None:
        fast.change("m", promoting(2 if state.current("production") == 1 else 1))
        return state.promote("production", 3)

    with pytest.raises(Conflict, match="changed 200 times"):
        slow.change("m", decide)
    assert 3 not in fast.audit("m").state.trails["production"]


def test_many_threads_of_one_process(store: MemoryStore, tmp_path: Path) -> None:
    registry = machine(store, tmp_path)

    def one(n: int) -> Event | None:
        return registry.change("m", promoting(n % 2 + 1, alias=f"alias-{n}"))[1]

    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(one, range(40)))
    log = registry.audit("m")
    assert len(log.state.aliases) == 40
    assert {e.nonce for e in told if e} == {e.nonce for e in log.events[4:]}
    assert registry.remembered("m").events == log.events


# Without the store


class Away(MemoryStore):
    def get(self, key: str) -> bytes:
        raise Unavailable("the store is away")

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        raise Unavailable("the store is away")

    def children(self, prefix: str) -> Iterator[str]:
        raise Unavailable("the store is away")


def test_what_was_seen_is_remembered_while_the_store_is_away(store: MemoryStore, tmp_path: Path) -> None:
    seen = machine(store, tmp_path).change("m", promoting(2))[0]
    registry = machine(Away(), tmp_path)
    assert registry.remembered("m").events == seen.events
    assert registry.remembered("m").state.aliases == {"production": 2}
    assert registry.remembered("other").events == []
    for ask in (
        registry.read,
        registry.audit,
        lambda name: registry.change(name, promoting(1)),
        lambda _: registry.names(),
    ):
        with pytest.raises(Unavailable, match="away"):
            ask("m")
    assert registry.remembered("m").events == seen.events


def test_a_store_that_fails_while_reading_leaves_what_was_seen(store: MemoryStore, tmp_path: Path) -> None:
    registry = machine(store, tmp_path)
    registry.read("m")
    machine(store, tmp_path / "other").change("m", promoting(1))
    scripted = Scripted(store)
    scripted.on_get = [lambda key: None, fail]
    with pytest.raises(Unavailable):
        machine(scripted, tmp_path).read("m")
    assert len(machine(store, tmp_path).read("m").events) == 5


# How much is asked


class Counting(MemoryStore):
    def __init__(self, inner: MemoryStore) -> None:
        super().__init__()
        self.objects = inner.objects
        self.asked: list[str] = []

    def get(self, key: str) -> bytes:
        self.asked.append(f"GET {key}")
        return super().get(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self.asked.append(f"LIST {prefix}")
        return super().list(prefix)


def test_polling_asks_for_the_next_event_and_the_head(store: MemoryStore, tmp_path: Path) -> None:
    counting = Counting(store)
    registry = machine(counting, tmp_path)
    registry.read("m")
    assert sorted(counting.asked) == [*(f"GET ledger/m/{n:010}.json" for n in range(1, 5)), "LIST ledger/m/"]
    counting.asked.clear()
    registry.read("m")
    assert counting.asked == ["GET ledger/m/0000000005.json", "GET ledger/m/0000000004.json"]
    machine(store, tmp_path / "other").change("m", promoting(1))
    counting.asked.clear()
    registry.read("m")
    assert counting.asked == ["GET ledger/m/0000000005.json", "GET ledger/m/0000000006.json"]


def test_a_short_ledger_takes_one_round_trip(store: MemoryStore, tmp_path: Path) -> None:
    """Nobody is answered before everything was asked for."""
    asked = Barrier(5, timeout=300)

    class Patient(Counting):
        def get(self, key: str) -> bytes:
            asked.wait()
            return super().get(key)

        def list(self, prefix: str) -> Iterator[ObjectInfo]:
            asked.wait()
            return super().list(prefix)

    assert len(machine(Patient(store), tmp_path).read("m").events) == 4


def test_a_long_ledger_is_read_whole(store: MemoryStore, tmp_path: Path) -> None:
    other = machine(store, tmp_path / "other")
    for n in range(30):
        other.change("m", promoting(n % 2 + 1))
    counting = Counting(store)
    assert machine(counting, tmp_path).read("m").events == other.remembered("m").events
    assert sorted(counting.asked) == [*(f"GET ledger/m/{n:010}.json" for n in range(1, 35)), "LIST ledger/m/"]


def test_one_broken_ledger_is_named_among_others(store: MemoryStore, tmp_path: Path) -> None:
    publish(machine(store, tmp_path / "publisher"), "other")
    put(store, 1, b"{}", "other")
    registry: LedgerRegistry = machine(store, tmp_path)
    with pytest.raises(IntegrityError, match="event 1 of the ledger of other"):
        registry.names()
    assert registry.read("m").state.versions
