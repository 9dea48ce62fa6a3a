"""The explorer of orders finds what it must, and tries no order twice that cannot differ."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from packtrain.errors import AlreadyExists
from packtrain.testing.clock import FakeClock
from packtrain.testing.memory_store import MemoryStore
from packtrain.testing.orders import Actor, Failed, Machine, Outcome, World, explore, passing, wander


def start(**objects: bytes) -> World:
    store = MemoryStore()
    store.objects = dict(objects)
    return World(store, FakeClock())


def nothing(_: object) -> None:
    pass


def increment(machine: Machine) -> None:
    """Reads, then writes: two of them may lose one."""
    number = int(machine.store.get("n"))
    machine.store.upload("n", [b"%d" % (number + 1)], len(b"%d" % (number + 1)))


def append(machine: Machine) -> int:
    """By creating what must be absent: as many as there are come through."""
    number = 1
    while True:
        try:
            machine.store.create(f"log/{number}", b"")
        except AlreadyExists:
            number += 1
        else:
            return number


def ends(start: World, *actors: Actor) -> list[Outcome]:
    found: list[Outcome] = []
    explore(start, actors, nothing, found.append)
    return found


def test_a_lost_update_is_found_and_its_order_told() -> None:
    def check(outcome: Outcome) -> None:
        assert outcome.world.store.objects["n"] == b"2", "an update is lost"

    with pytest.raises(Failed, match="an update is lost") as raised:
        explore(start(n=b"0"), [Actor("one", increment), Actor("other", increment)], nothing, check)
    assert "in this order:\n  one 1\n" in str(raised.value)


def test_every_end_is_reached_once() -> None:
    values = sorted(end.world.store.objects["n"] for end in ends(start(n=b"0"), *(Actor(n, increment) for n in "abc")))
    assert values == [b"1", b"2", b"3"]
    logs = ends(start(), *(Actor(name, append) for name in "abc"))
    assert {tuple(sorted(end.answers.values())) for end in logs} == {(1, 2, 3)}  # type: ignore[type-var]
    assert len(logs) == 6  # whoever is first, second and third


def test_a_check_after_every_write_sees_what_no_end_shows() -> None:
    def there_and_back(machine: Machine) -> None:
        machine.store.create("torn", b"")
        machine.store.delete("torn")

    def check(world: World) -> None:
        assert "torn" not in world.store.objects

    look = Actor("look", lambda machine: machine.store.head("torn"))
    with pytest.raises(Failed):
        explore(start(), [Actor("write", there_and_back), look], check, nothing)


def test_flows_that_share_nothing_have_one_order() -> None:
    def write(key: str) -> Callable[[Machine], None]:
        return lambda machine: [machine.store.create(f"{key}/{n}", b"") for n in range(20)] and None

    assert explore(start(), [Actor("a", write("a")), Actor("b", write("b"))], nothing, nothing).runs < 5


def test_one_dies_at_each_of_its_calls() -> None:
    def three(machine: Machine) -> None:
        for n in range(3):
            machine.store.create(f"{n}", b"")

    look = Actor("look", lambda machine: sorted(info.key for info in machine.store.list("")))
    left = {frozenset(end.world.store.objects) for end in ends(start(), Actor("a", three, mortal=True), look)}
    assert left == {frozenset("012"[:n]) for n in range(4)}


def test_the_dead_do_nothing() -> None:
    def careful(machine: Machine) -> None:
        machine.store.create("mine", b"")
        try:
            machine.store.get("mine")
        finally:
            machine.store.delete("mine")

    look = Actor("look", lambda machine: machine.store.head("mine"))
    left = {frozenset(end.world.store.objects) for end in ends(start(), Actor("a", careful, mortal=True), look)}
    assert left == {frozenset(), frozenset({"mine"})}


def test_time_passes_at_every_moment() -> None:
    def twice(machine: Machine) -> tuple[float, float]:
        before = machine.clock.monotonic()
        machine.store.get("n")
        return before, machine.clock.monotonic()

    touch = Actor("touch", lambda machine: machine.store.upload("n", [b"1"], 1))
    answers = {end.answers["a"] for end in ends(start(n=b"0"), Actor("a", twice), touch, passing(9))}
    assert answers == {(0.0, 0.0), (0.0, 9.0), (9.0, 9.0)}


def test_what_a_flow_breaks_is_told_with_its_order() -> None:
    def broken(machine: Machine) -> None:
        machine.store.get("n")
        raise ZeroDivisionError("of its own")

    with pytest.raises(Failed, match="ZeroDivisionError: of its own"):
        explore(start(n=b"0"), [Actor("a", broken), Actor("b", increment)], nothing, nothing)


def test_a_run_of_choices_is_repeated_exactly() -> None:
    def go(choices: list[int]) -> Outcome:
        left = iter(choices)
        return wander(start(n=b"0"), [Actor("a", increment), Actor("b", append)], nothing, lambda n: next(left, 0) % n)

    assert go([1, 0, 1, 1]).order == go([1, 0, 1, 1]).order != go([0, 1]).order
