"""A directory store on a volume that two machines mount: what one has done, the other sees at once."""

from __future__ import annotations

import fcntl
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from packtrain.errors import AlreadyExists, NotFound
from packtrain.storage.directory import TEMPORARY, DirectoryStore

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.fixture
def stores(volume: list[Path]) -> list[DirectoryStore]:
    """The same new store, as each machine has it."""
    name = uuid.uuid4().hex
    return [DirectoryStore(mount / name) for mount in volume]


def put(store: DirectoryStore, key: str, data: bytes) -> None:
    store.upload(key, [data], len(data))


def keys(store: DirectoryStore) -> list[str]:
    return sorted(info.key for info in store.list(""))


def test_what_one_writes_the_other_sees_although_it_looked_before(stores: list[DirectoryStore]) -> None:
    here, there = stores
    put(here, "ledger/m/0", b"first")
    for number in range(1, 10):
        key = f"ledger/m/{number}"
        assert there.head(key) is None
        with pytest.raises(NotFound):
            there.get(key)
        here.create(key, b"event")
        assert there.get(key) == b"event"
        assert len(keys(there)) == number + 1


def test_what_one_replaces_the_other_reads_new(stores: list[DirectoryStore]) -> None:
    here, there = stores
    for turn in range(10):
        text = b"lease %d" % turn * (turn + 1)
        put(here, "leases/m/1", text)
        assert keys(there) == ["leases/m/1"]
        assert there.get("leases/m/1") == text
        here, there = there, here


def test_what_one_deletes_is_gone_for_the_other(stores: list[DirectoryStore]) -> None:
    here, there = stores
    put(here, "a/b/c", b"x")
    assert there.get("a/b/c") == b"x"
    here.delete("a/b/c")
    assert keys(there) == []
    with pytest.raises(NotFound):
        there.get("a/b/c")


def test_a_file_that_one_took_for_left_behind_the_other_makes_anew(
    stores: list[DirectoryStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two writers of one host name, each with a mount: one sweeps before the other's new file has its lock. The kernel
    of the other still has the file's name."""
    here, there = stores
    put(here, "a", b"x")
    lock, taken = fcntl.flock, list[Path]()

    def swept_before(file: int, how: int) -> None:
        if how == fcntl.LOCK_EX and not taken:
            taken.extend((there.directory / TEMPORARY).iterdir())
            for left in taken:
                left.unlink()
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", swept_before)
    put(here, "b", b"y")
    assert len(taken) == 1
    assert there.get("b") == b"y"
    assert list((there.directory / TEMPORARY).iterdir()) == []


def test_a_folder_that_one_removed_the_other_makes_anew(stores: list[DirectoryStore]) -> None:
    """The other still has the folder in its kernel's cache."""
    here, there = stores
    for turn in range(5):
        put(here, "leases/m/d/first", b"x")
        assert there.get("leases/m/d/first") == b"x"
        here.delete("leases/m/d/first")
        put(there, f"leases/m/d/{turn}", b"y")
        assert keys(here) == [f"leases/m/d/{turn}"]
        here.delete(f"leases/m/d/{turn}")


def test_a_folder_that_one_removed_and_made_anew_the_other_sees(stores: list[DirectoryStore]) -> None:
    here, there = stores
    for turn in range(3):
        put(here, f"leases/m/d/{turn}", b"x")
        assert keys(there) == [f"leases/m/d/{turn}"]
        assert list(there.children("leases/m/")) == ["d"]
        here.delete(f"leases/m/d/{turn}")


def test_of_creators_on_two_machines_one_wins(stores: list[DirectoryStore]) -> None:
    for turn in range(20):
        barrier = threading.Barrier(4)

        def create(number: int, key: str = f"ledger/m/{turn}", barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            try:
                stores[number % 2].create(key, b"writer %d" % number)
            except AlreadyExists:
                return False
            return True

        with ThreadPoolExecutor(4) as pool:
            won = list(pool.map(create, range(4)))
        assert won.count(True) == 1
        assert stores[turn % 2].get(f"ledger/m/{turn}") == b"writer %d" % won.index(True)


def test_writers_and_deleters_on_two_machines_do_each_other_no_harm(stores: list[DirectoryStore]) -> None:
    def act(number: int) -> None:
        mine = stores[number % 2]
        for turn in range(15):
            key = f"leases/m/{number}-{turn}"
            put(mine, key, b"x")
            assert mine.get(key) == b"x"
            mine.delete(key)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(act, range(4)))
    for store in stores:
        assert keys(store) == []
        assert store.unfinished() == {}
    assert TEMPORARY in [path.name for path in stores[0].directory.iterdir()]
