"""The cache's laws, whatever happens in which order, against what a person would expect of it."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from shutil import rmtree

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from packtrain.cache import Pin
from packtrain.cache.snapshots import LEASE, WRITTEN
from packtrain.errors import IntegrityError, LocalDiskError, NotFound, Refused
from packtrain.model.manifest import FILE_NAME
from packtrain.testing.clock import FakeClock
from packtrain.testing.faults import Killed
from packtrain.testing.file_calls import failing
from packtrain.testing.memory_store import MemoryStore
from tests.cache.conftest import Node, files
from tests.flows.conftest import contents

SIZES = (500, 600, 800, 1200, 2400, 6300)  # of the files of llama/1, llama/2 and so on; the last never fits
QUOTA = 7000  # three or four of them, with their manifests
numbers = st.integers(1, len(SIZES))


@dataclass
class Expected:
    """What a person knows of a snapshot."""

    since: float | None  # when it was verified, under this boot
    durable: bool = False
    damaged: bool = False
    lease: float = 0.0  # until
    used: int = 0  # the turn of its last use


class CacheMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="cache-machine-"))
        self.store = MemoryStore()
        self.boots = self.turn = 0
        self.wall = datetime(2026, 1, 1, tzinfo=UTC)
        self.here: dict[int, Expected] = {}
        self.pinned: set[int] = set()
        self.engines: list[tuple[int, Pin]] = []
        self.start()
        for number, size in enumerate(SIZES, start=1):
            self.node.publish(files(number, size))
        state = self.node.registry.read("llama").state
        self.sizes = {n: v.size + len(self.store.objects[v.prefix + FILE_NAME]) for n, v in state.versions.items()}
        self.digests = {n: v.digest for n, v in state.versions.items()}

    def start(self) -> None:
        self.boots += 1
        clock = FakeClock(self.wall)
        self.node = Node(self.store, self.home, boot=f"boot-{self.boots}", quota=f"{QUOTA}B", clock=clock)

    def teardown(self) -> None:
        for _, pin in self.engines:
            pin.release()
        for folder, _, _ in os.walk(self.home):
            Path(folder).chmod(0o755)
        rmtree(self.home)

    # What the model knows

    def now(self) -> float:
        return self.node.clock.monotonic()

    def in_use(self, number: int) -> bool:
        return any(number == served for served, _ in self.engines)

    def leased(self, number: int) -> bool:
        return number in self.here and self.here[number].lease > self.now()

    def held(self, number: int) -> bool:
        return self.in_use(number) or self.leased(number) or number in self.pinned

    def room_for(self, number: int) -> list[int] | None:
        """What goes, least recently used first; None if it cannot fit."""
        here, going = dict(self.here), []
        total = sum(self.sizes[n] for n in here) + self.sizes[number]
        for n in sorted((n for n in here if not self.held(n)), key=lambda n: here[n].used):
            if total <= QUOTA:
                break
            going.append(n)
            total -= self.sizes[n]
        if total > QUOTA:
            return None
        for n in going[::-1]:
            if total + self.sizes[n] <= QUOTA:
                going.remove(n)
                total += self.sizes[n]
        return going

    def use(self, number: int) -> None:
        self.turn += 1
        self.here[number].used = self.turn

    def use_what_serves(self) -> None:
        """Whoever needs room sees what is in use, and leaves its order."""
        for n in sorted({n for n, _ in self.engines if n in self.here}, key=lambda n: self.here[n].used):
            self.use(n)

    def expect_obtained(self, number: int) -> None:
        """After it was pulled or held, with success."""
        going = self.room_for(number) if number not in self.here else []
        assert going is not None
        if number not in self.here:
            self.use_what_serves()
        for n in going:
            del self.here[n]
        self.here.setdefault(number, Expected(since=self.now()))
        self.use(number)
        for snapshot in self.here.values():
            snapshot.durable |= snapshot.since is not None and snapshot.since <= self.now() - WRITTEN

    def obtain(self, number: int, act) -> object:  # type: ignore[no-untyped-def]
        """Pulls or holds; checks the answer against what is expected."""
        there = self.here.get(number)
        if there and there.since is None and not there.durable:
            if there.damaged and self.in_use(number):
                try:
                    act()
                except IntegrityError:
                    return None
                raise AssertionError("a damaged snapshot was given out")
            if there.damaged:
                del self.here[number]
            else:
                there.durable = True  # read back, and put onto the disk
        fits = number in self.here or self.room_for(number) is not None
        try:
            result = act()
        except LocalDiskError as caught:
            error = caught
        else:
            assert fits
            self.expect_obtained(number)
            return result
        assert not fits, error
        self.use_what_serves()
        assert "does not fit" in error.message
        for n in self.here:
            assert self.held(n) == (f"llama/{n} (" in error.hint)
        return None

    # What happens

    @rule(number=numbers, keep=st.booleans())
    def pull(self, number: int, keep: bool) -> None:
        if self.obtain(number, lambda: self.node.pull(f"llama/{number}", keep=keep)):
            self.here[number].lease = self.now() + LEASE
            if keep:
                self.pinned.add(number)

    @rule(number=numbers)
    def start_engine(self, number: int) -> None:
        if pin := self.obtain(number, lambda: self.node.hold(f"llama/{number}")):
            assert isinstance(pin, Pin)
            self.engines.append((number, pin))

    @rule(place=st.integers(0, 9))
    def stop_engine(self, place: int) -> None:
        if self.engines:
            _, pin = self.engines.pop(place % len(self.engines))
            pin.release()

    @rule(number=numbers)
    def pin(self, number: int) -> None:
        try:
            self.node.pin(f"llama/{number}")
        except NotFound:
            assert number not in self.here
        else:
            assert number in self.here
            self.pinned.add(number)

    @rule(number=numbers)
    def unpin(self, number: int) -> None:
        self.node.unpin(f"llama/{number}")
        self.pinned.discard(number)
        if number in self.here:
            self.here[number].lease = 0.0

    @rule(number=numbers)
    def remove(self, number: int) -> None:
        try:
            assert self.node.remove(f"llama/{number}") == self.sizes[number]
        except NotFound:
            assert number not in self.here
        except Refused:
            assert self.in_use(number) or self.leased(number)
        else:
            assert not self.in_use(number) and not self.leased(number)
            del self.here[number]
            self.pinned.discard(number)

    @rule()
    def verify(self) -> None:
        damaged = {n for n, snapshot in self.here.items() if snapshot.damaged}
        try:
            right = self.node.verify()
        except IntegrityError as caught:
            named = {n for n in self.here if f"llama/{n}: " in caught.message}
        else:
            named = set()
            assert set(right) == {f"llama/{n}" for n in self.here}
        assert named == damaged
        for n in list(self.here):
            if n not in damaged:
                self.here[n].durable = True
            elif self.in_use(n):
                self.here[n].since, self.here[n].durable = None, False
            else:
                del self.here[n]

    @rule(seconds=st.sampled_from([1.0, 59.0, LEASE - 1, LEASE, LEASE]))
    def wait(self, seconds: float) -> None:
        self.node.clock.sleep(seconds)

    @rule(days=st.integers(-400, 400))
    def somebody_sets_the_clock(self, days: int) -> None:
        self.node.clock.set(self.node.clock.now() + timedelta(days=days))

    @rule(number=numbers)
    def a_bit_flips(self, number: int) -> None:
        if number in self.here and not self.here[number].damaged:
            self.damage(number)

    def damage(self, number: int) -> None:
        weights = self.node.cache.path(self.digests[number]) / "model.safetensors"
        weights.chmod(0o644)
        data = bytearray(weights.read_bytes())
        data[len(data) // 2] ^= 1
        weights.write_bytes(data)
        weights.chmod(0o444)
        self.here[number].damaged = True

    @rule(lost=st.sets(numbers))
    def power_is_lost(self, lost: set[int]) -> None:
        """Engines end, leases with them; what was not on the disk may be lost."""
        for _, pin in self.engines:
            pin.release()
        self.engines.clear()
        self.wall = self.node.clock.now()
        for number, snapshot in self.here.items():
            snapshot.durable = self.node.cache.is_durable(self.digests[number])
            snapshot.since = None
            snapshot.lease = 0.0
            if not snapshot.durable and not snapshot.damaged and number in lost:
                self.damage(number)
        self.start()

    @rule(number=numbers, what=st.sampled_from(["pull", "remove", "verify"]), k=st.integers(0, 120))
    def it_is_killed(self, number: int, what: str, k: int) -> None:
        """At some call into the file system. What is here afterwards was here, or is whole."""
        act = {
            "pull": lambda: self.node.pull(f"llama/{number}"),
            "remove": lambda: self.node.remove(f"llama/{number}"),
            "verify": lambda: self.node.verify(f"llama/{number}"),
        }[what]
        evictable = {n for n in self.here if not self.held(n)}
        try:
            with failing(k, Killed()):
                act()
        except (Killed, NotFound, Refused, IntegrityError, LocalDiskError):
            pass
        self.look_again(number, what, evictable)

    def look_again(self, number: int, what: str, evictable: set[int]) -> None:
        """Takes from the cache what a crash left open, after checking that it is one of the possible ends."""
        cache = self.node.cache
        listed = {n: cached.occupant for n in self.digests if (cached := self.node.listed().get(f"llama/{n}"))}
        there = {n for n, occupant in listed.items() if occupant.trust != "unfinished"}
        gone = set(self.here) - there
        if what == "remove":
            may_go = {number} if not self.in_use(number) and not self.leased(number) else set()
        elif what == "verify":
            may_go = (
                {number} if number in self.here and self.here[number].damaged and not self.in_use(number) else set()
            )
        else:
            damaged = number in self.here and self.here[number].damaged and not self.in_use(number)
            may_go = evictable | ({number} if damaged else set())
        assert gone <= may_go, (what, gone)
        assert there - set(self.here) <= ({number} if what == "pull" else set())
        for n in gone:
            del self.here[n]
        for n in there:
            self.here.setdefault(n, Expected(since=self.now()))
            self.here[n].since = cache._marks.verified_since(self.digests[n])
            self.here[n].durable = cache.is_durable(self.digests[n])
            if n == number and what == "pull" and damaged:  # it may have been fetched anew
                self.here[n].damaged = not self.is_whole(n)
            self.here[n].lease = self.now() + listed[n].holds.lease if listed[n].holds.lease else 0.0
        for turn, n in enumerate(sorted(there, key=lambda n: (listed[n].used, self.digests[n])), start=self.turn):
            self.here[n].used = turn
        self.turn += len(there)
        pinned = {n for n in self.digests if cache._marks.is_pinned(self.digests[n])}
        assert pinned <= self.pinned
        assert self.pinned - pinned <= ({number} if what == "remove" else set())
        self.pinned = pinned
        # The next run of anything takes away what the crash left, but a download that can be continued.
        self.node.cache.sweep()
        assert not [path for path in self.node.leftovers() if path.parent.name == "trash"]
        for n in self.digests:
            if n in listed and listed[n].trust == "unfinished":
                self.node.remove(f"llama/{n}")
                self.pinned.discard(n)

    # What always holds

    @invariant()
    def what_is_here_is_what_is_expected(self) -> None:
        snapshots = {digest.hex for digest in self.node.cache.snapshots()}
        assert snapshots == {self.digests[n].hex for n in self.here}

    @invariant()
    def what_is_visible_is_whole(self) -> None:
        for number, snapshot in self.here.items():
            assert self.is_whole(number) != snapshot.damaged

    def is_whole(self, number: int) -> bool:
        found = contents(self.node.cache.path(self.digests[number]))
        return found.pop(FILE_NAME) and found == files(number, SIZES[number - 1])

    @invariant()
    def the_quota_holds(self) -> None:
        assert sum(self.sizes[n] for n in self.here) <= QUOTA

    @invariant()
    def what_is_shown_is_so(self) -> None:
        shown = self.node.listed()
        assert set(shown) == {f"llama/{n}" for n in self.here}
        for n, snapshot in self.here.items():
            occupant = shown[f"llama/{n}"].occupant
            assert occupant.holds.in_use == self.in_use(n)
            assert occupant.holds.pinned == (n in self.pinned)
            assert abs(occupant.holds.lease - max(0.0, snapshot.lease - self.now())) <= 1
            assert (occupant.trust == "doubtful") == (snapshot.since is None and not snapshot.durable)
            if snapshot.durable:
                assert occupant.trust == "durable"

    @invariant()
    def nothing_is_left_over(self) -> None:
        assert self.node.leftovers() == []


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=8, stateful_step_count=30)


@pytest.mark.slow
def test_for_longer() -> None:
    run_state_machine_as_test(CacheMachine, settings=settings(max_examples=40, stateful_step_count=50))
