"""Killed, cut off or left without an answer, at every call into the outside: nothing half visible, a re-run completes.

Two ways of dying: at every call into the store (a fault-injecting store, in this process), and by a real SIGKILL at
every call into this machine's file system (an audit hook in a forked process).
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from packtrain.errors import IntegrityError, PacktrainError, Refused
from packtrain.flows import integrity
from packtrain.model.manifest import FILE_NAME, Manifest
from packtrain.ports import Store
from packtrain.storage.directory import DirectoryStore
from packtrain.testing.clock import FakeClock
from packtrain.testing.faults import Fault, FaultyStore, Killed
from packtrain.testing.file_calls import failing, killed_at
from packtrain.testing.memory_store import MemoryStore
from tests.conftest import Models, first_fast
from tests.flows.conftest import House, contents

Make = Callable[..., House]


def require_whole(node: House, source: Path) -> None:
    """Whatever is visible can be pulled by a node that knows nothing, and is what was published."""
    for name in node.registry.names():
        assert list(node.registry.read(name).state.versions) == [1]
        path = node.pull(name).path
        integrity.check_directory(path, node.cache.manifest(node.registry.read(name).state.latest.digest), node.notes)
        for file, data in contents(source).items():
            assert (path / file).read_bytes() == data


def count_calls(act: Callable[[House], object], house: House) -> int:
    counting = FaultyStore(house.store)
    house.store = counting
    house.__post_init__()
    act(house)
    return counting.calls


@pytest.mark.parametrize("fault", first_fast(Fault.KILLED, Fault.UNAVAILABLE, Fault.LOST_ANSWER))
def test_publish_interrupted_at_every_call_to_the_store(make_house: Make, models: Models, fault: Fault) -> None:
    calls = count_calls(lambda house: house.publish(models.first), make_house("count"))
    assert calls > 20
    for k in range(calls):
        store = MemoryStore()
        faulty = make_house(f"publisher-{k}", store=FaultyStore(store, {k: fault}))
        completed = False
        try:
            faulty.publish(models.first)
            completed = True
        except (Killed, PacktrainError):
            pass
        visible = make_house(f"reader-{k}", store=store)
        require_whole(visible, models.first)
        assert not completed or visible.registry.names() == ["llama"]

        make_house(f"publisher-{k}", store=store).publish(models.first)
        after = make_house(f"after-{k}", store=store)
        require_whole(after, models.first)
        assert after.registry.names() == ["llama"]


@pytest.mark.parametrize("fault", first_fast(Fault.KILLED, Fault.UNAVAILABLE, Fault.CUT_SHORT, Fault.FLIPPED_BIT))
def test_pull_interrupted_at_every_call_to_the_store(make_house: Make, models: Models, fault: Fault) -> None:
    store = MemoryStore()
    make_house("publisher", store=store).publish(models.first)
    calls = count_calls(lambda house: house.pull("llama"), make_house("count", store=store))
    assert calls > 10
    for k in range(calls):
        node = make_house(f"node-{k}", store=FaultyStore(store, {k: fault}))
        try:
            node.pull("llama")
        except (Killed, PacktrainError):
            snapshots = node.home / "cache" / "snapshots"
            assert not snapshots.exists() or not list(snapshots.iterdir())
        again = make_house(f"node-{k}", store=store)
        require_whole(again, models.first)
        assert not list((again.home / "cache" / "partial").iterdir())


@pytest.mark.slow
def test_publish_killed_at_every_seventh_call_to_the_file_system(
    make_house: Make, models: Models, tmp_path: Path
) -> None:
    k, going = 0, True
    while going:
        root = tmp_path / f"store-{k}"
        house = make_house(f"publisher-{k}", store=DirectoryStore(root))
        going = killed_at(lambda house=house: house.publish(models.first), k)  # type: ignore[misc]
        require_whole(make_house(f"reader-{k}", store=DirectoryStore(root)), models.first)
        make_house(f"publisher-{k}", store=DirectoryStore(root)).publish(models.first)
        after = make_house(f"after-{k}", store=DirectoryStore(root))
        require_whole(after, models.first)
        after.registry.change("llama", lambda state: state.promote("production", 1))  # the next that writes
        assert DirectoryStore(root).unfinished() == {}
        assert after.registry.names() == ["llama"]
        k += 7
    assert k > 50


@pytest.mark.slow
def test_pull_killed_at_every_third_call_to_the_file_system(make_house: Make, models: Models, tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    make_house("publisher", store=store).publish(models.first)
    k, going = 0, True
    while going:
        going = killed_at(lambda k=k: make_house(f"node-{k}", store=store).pull("llama"), k)  # type: ignore[misc]
        again = make_house(f"node-{k}", store=store)
        for snapshot in (again.home / "cache" / "snapshots").glob("*"):
            assert (snapshot / FILE_NAME).is_file()
        require_whole(again, models.first)
        assert not list((again.home / "cache" / "partial").iterdir())
        k += 3
    assert k > 50


REFUSALS = (errno.EIO, errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EMFILE, errno.ESTALE)


def refused(act: Callable[[], object], call: int, number: int) -> bool:
    """Whether there was such a call. What the disk says is said, with what to do."""
    caught: list[PacktrainError] = []
    with failing(call, OSError(number, os.strerror(number))) as calls:
        try:
            act()
        except PacktrainError as error:
            caught.append(error)
    for error in caught:
        assert os.strerror(number) in str(error) or isinstance(error, IntegrityError | Refused), error
        assert error.hint, error
    return calls.count > call


@pytest.mark.slow
def test_publish_refused_by_the_disk(make_house: Make, models: Models, tmp_path: Path) -> None:
    """Its own, or that of the store: at every ninth call, each time for another reason."""
    k, going = 0, True
    while going:
        root = tmp_path / f"store-{k}"
        house = make_house(f"publisher-{k}", store=DirectoryStore(root))
        going = refused(lambda house=house: house.publish(models.first), k, REFUSALS[k % len(REFUSALS)])  # type: ignore[misc]
        require_whole(make_house(f"reader-{k}", store=DirectoryStore(root)), models.first)
        make_house(f"publisher-{k}", store=DirectoryStore(root)).publish(models.first)
        require_whole(make_house(f"after-{k}", store=DirectoryStore(root)), models.first)
        k += 9 if k % 2 else 10
    assert k > 400


@pytest.mark.slow
def test_a_pull_into_a_folder_refused_by_the_disk(make_house: Make, models: Models, tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    make_house("publisher", store=store).publish(models.first)
    k, going = 0, True
    while going:
        node, place = make_house(f"node-{k}", store=store), tmp_path / "places" / f"{k}"
        going = refused(lambda n=node, p=place: n.pull("llama", to=p), k, REFUSALS[k % len(REFUSALS)])  # type: ignore[misc]
        if (place / FILE_NAME).exists():  # it has its name, so it is whole
            integrity.check_directory(place, Manifest.decode((place / FILE_NAME).read_bytes()), node.notes)
        node.pull("llama", to=place)
        assert {file: (place / file).read_bytes() for file in contents(models.first)} == contents(models.first)
        assert not list(place.parent.glob(".*"))
        k += 5 if k % 2 else 6
    assert k > 100


@pytest.mark.slow
def test_a_pull_into_a_folder_killed_at_every_fourth_call(make_house: Make, models: Models, tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    make_house("publisher", store=store).publish(models.first)
    k, going = 0, True
    while going:
        place = tmp_path / "places" / f"{k}"
        going = killed_at(lambda k=k, p=place: make_house(f"node-{k}", store=store).pull("llama", to=p), k)  # type: ignore[misc]
        node = make_house(f"node-{k}", store=store)
        if (place / FILE_NAME).exists():  # it has its name, so it is whole
            integrity.check_directory(place, Manifest.decode((place / FILE_NAME).read_bytes()), node.notes)
        node.pull("llama", to=place)
        assert {file: (place / file).read_bytes() for file in contents(models.first)} == contents(models.first)
        assert not list(place.parent.glob(".*"))
        k += 3 if k % 2 else 5  # in turn even and odd
    assert k > 100


@pytest.mark.slow
def test_publish_and_pull_killed_at_fifty_random_moments(make_house: Make, models: Models, tmp_path: Path) -> None:
    chance = random.Random(20)
    store = DirectoryStore(tmp_path / "store")
    for round_number in range(50):
        source = models.first if round_number % 2 else models.second
        name = f"llama-{round_number}"
        publisher, node = make_house("publisher", store=store), make_house("node", store=store)
        if killed_at(lambda p=publisher, s=source, n=name: p.publish(s, n), chance.randrange(120)):  # type: ignore[misc]
            make_house("publisher", store=store).publish(source, name)
        killed_at(lambda node=node, name=name: node.pull(name), chance.randrange(120))  # type: ignore[misc]
        path = make_house("node", store=store).pull(name).path
        for file, data in contents(source).items():
            assert (path / file).read_bytes() == data


class Jumping(FaultyStore):
    """Before call ``jump`` of the store somebody sets this machine's clock by ``days``. ``jumps`` counts that."""

    def __init__(self, inner: Store, jump: int, days: int) -> None:
        super().__init__(inner)
        self.jump, self.days = jump, days
        self.jumps = 0
        self.clock: FakeClock | None = None

    def at(self, call: int) -> None:
        if call == self.jump:
            assert self.clock is not None
            self.clock.set(self.clock.now() + timedelta(days=self.days))
            self.jumps += 1


@pytest.mark.parametrize("days", first_fast(-400, 400))
def test_the_clock_is_set_at_every_call_to_the_store(make_house: Make, models: Models, days: int) -> None:
    """Nothing is refused, evicted or believed for it: who measures does so by the clock that nobody sets."""
    calls = count_calls(lambda house: house.publish(models.first), make_house("count"))
    for k in range(0, calls, 3):
        store = MemoryStore()
        jumping = Jumping(store, k, days)
        house = make_house(f"publisher-{k}", store=jumping)
        jumping.clock = house.clock
        house.publish(models.first)
        assert jumping.jumps == 1
        jumping.jump = jumping.calls + k % 20
        pulled = house.pull("llama")
        assert jumping.jumps == 2
        require_whole(house, models.first)
        assert house.pull("llama").path == pulled.path
        [occupant] = house.cache.contents().occupants
        assert 0 < occupant.holds.lease <= 30 * 60 + 1
        require_whole(make_house(f"reader-{k}", store=store), models.first)
