"""The faults are what they say: a test that relies on a fault which does not happen shows nothing."""

from __future__ import annotations

import time

import pytest

from packtrain.errors import Unavailable
from packtrain.testing.faults import RETRY_AFTER, Fault, FaultyStore, Killed, random_plan
from packtrain.testing.memory_store import MemoryStore


def read(store: FaultyStore, key: str) -> bytes:
    received = bytearray()
    for piece in store.read(key, 0, 10, memoryview(bytearray(4))):
        received += piece
    return bytes(received)


def everything(store: FaultyStore) -> None:
    store.create("a/created", b"created")
    store.upload("a/uploaded", [b"01234", b"56789"], 10)
    store.get("a/created")
    read(store, "a/uploaded")
    store.head("a/created")
    list(store.list(""))
    list(store.children(""))
    store.delete("a/created")


def test_without_a_plan_it_is_the_store_and_counts() -> None:
    inner = MemoryStore()
    store = FaultyStore(inner)
    everything(store)
    assert inner.objects == {"a/uploaded": b"0123456789"}
    assert store.calls == 1 + (1 + 2) + 1 + (1 + 3) + 1 + 1 + 1 + 1


FAILING = [fault for fault in Fault if fault not in (Fault.KILLED, Fault.FLIPPED_BIT, Fault.SHORT, Fault.SHUFFLED)]


@pytest.mark.parametrize("fault", FAILING)
def test_every_call_can_fail(fault: Fault) -> None:
    for call in range(13):
        with pytest.raises(Unavailable) as caught:
            everything(FaultyStore(MemoryStore(), {call: fault}))
        assert caught.value.busy is (fault in (Fault.SLOW_DOWN, Fault.TOO_MANY))
        assert caught.value.retry_after == (RETRY_AFTER if caught.value.busy else None)


def test_before_and_after_the_effect() -> None:
    for fault, effect in [(Fault.UNAVAILABLE, False), (Fault.LOST_ANSWER, True)]:
        inner = MemoryStore()
        store = FaultyStore(inner, {0: fault, 1: fault})
        with pytest.raises(Unavailable):
            store.create("k", b"x")
        assert ("k" in inner.objects) is effect
        with pytest.raises(Unavailable):
            store.upload("l", [], 0)
        assert ("l" in inner.objects) is effect


@pytest.mark.parametrize("call", range(13))
def test_the_dead_do_nothing_more(call: int) -> None:
    inner = MemoryStore()
    store = FaultyStore(inner, {call: Fault.KILLED})
    with pytest.raises(Killed):
        everything(store)
    before = dict(inner.objects)
    with pytest.raises(Killed):
        store.create("later", b"")
    assert inner.objects == before


def test_one_bit_is_wrong_in_what_is_read_and_not_in_the_store() -> None:
    inner = MemoryStore()
    inner.objects["k"] = b"0123456789"
    for call, ask in [(0, lambda store: store.get("k")), (2, lambda store: read(store, "k"))]:
        wrong = ask(FaultyStore(inner, {call: Fault.FLIPPED_BIT}))
        difference = int.from_bytes(wrong, "big") ^ int.from_bytes(inner.objects["k"], "big")
        assert len(wrong) == 10
        assert difference.bit_count() == 1


@pytest.mark.parametrize("fault", [Fault.CUT_SHORT, Fault.RESET, Fault.STALL])
def test_a_read_that_breaks_off_gives_half_a_piece(fault: Fault) -> None:
    inner = MemoryStore()
    inner.objects["k"] = b"0123456789"
    store = FaultyStore(inner, {2: fault})
    pieces = store.read("k", 0, 10, memoryview(bytearray(4)))
    assert bytes(next(pieces)) == b"0123"
    assert bytes(next(pieces)) == b"45"
    with pytest.raises(Unavailable):
        next(pieces)


def test_a_read_that_is_short_says_nothing() -> None:
    inner = MemoryStore()
    inner.objects["k"] = b"0123456789"
    assert read(FaultyStore(inner, {2: Fault.SHORT}), "k") == b"012345"
    assert FaultyStore(inner, {0: Fault.SHORT}).get("k") == b"01234"


def test_a_stall_takes_its_time() -> None:
    inner = MemoryStore()
    inner.objects["k"] = b"0123456789"
    began = time.monotonic()
    with pytest.raises(Unavailable):
        FaultyStore(inner, {0: Fault.STALL}, stall=0.05).get("k")
    assert time.monotonic() - began >= 0.05


def test_a_listing_in_another_order_has_the_same_entries() -> None:
    inner = MemoryStore()
    inner.objects |= {f"folder-{n}/k": b"" for n in range(9)}
    for ask in (lambda store: [info.key for info in store.list("")], lambda store: list(store.children(""))):
        usual, shuffled = ask(inner), ask(FaultyStore(inner, {0: Fault.SHUFFLED}))
        assert sorted(shuffled) == sorted(usual)
        assert shuffled not in (sorted(usual), sorted(usual, reverse=True))


def test_a_random_plan_is_the_same_for_the_same_seed() -> None:
    assert random_plan(7, 100, count=3) == random_plan(7, 100, count=3)
    assert len(random_plan(7, 100, count=3)) == 3
    assert len({tuple(random_plan(seed, 100)) for seed in range(50)}) > 20
