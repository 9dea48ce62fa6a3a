"""One law at a time: what the state machine does not look at, and what is clearer said alone."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from packtrain.cache import Partial, Pin, trees
from packtrain.cache.snapshots import LEASE, UNFINISHED
from packtrain.errors import IntegrityError, LocalDiskError, NotFound, Refused, Unavailable, UsageError
from packtrain.flows import caching
from packtrain.model import retention
from packtrain.model.digest import Digest
from packtrain.testing.faults import Fault, FaultyStore
from packtrain.testing.memory_store import MemoryStore
from tests.cache.conftest import SIZE, Node, as_user, files

Make = Callable[..., Node]
ROOM_FOR_TWO = f"{2 * SIZE + 2500}B"  # a manifest takes about 1 kB
HOLDER = "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.flock(f, fcntl.LOCK_SH); print(flush=True); input()"


def path_of(node: Node, number: int) -> Path:
    return node.cache.path(node.registry.read("llama").state.version(number).digest)


# Room


def test_what_cannot_fit_is_refused_before_anything_is_downloaded_or_evicted(make_node: Make) -> None:
    node = make_node(quota=ROOM_FOR_TWO)
    node.pull("llama/1", keep=True)
    pin = node.hold("llama/2")
    before = sorted(path.name for path in (node.home / "cache").rglob("*") if path.parent.name == "snapshots")

    fetched: list[str] = []
    read = node.store.read
    node.store.read = lambda key, *rest: fetched.append(key) or read(key, *rest)  # type: ignore[func-returns-value,method-assign]
    with pytest.raises(LocalDiskError, match=r"llama/3 does not fit .* the quota of 8.5 kB is .* too small") as caught:
        node.pull("llama/3")
    assert fetched == []
    assert sorted(path.name for path in (node.home / "cache" / "snapshots").iterdir()) == before
    assert node.leftovers() == []
    one, two, instead = caught.value.hint.splitlines()
    if "llama/1" not in one:
        one, two = two, one
    assert "llama/1 (4.2 kB) stays: pinned, leased for 30 min. packtrain cache unpin llama/1 lets it go." in one
    assert "llama/2 (4.2 kB) stays: in use. Stop what uses it." in two
    assert instead == "Or set a larger cache_quota."
    pin.release()
    node.pull("llama/3")


def test_the_floor_counts_what_others_put_on_the_disk(make_node: Make) -> None:
    node = make_node(floor="100%")
    with pytest.raises(LocalDiskError, match=r"llama/1 does not fit .* the disk has .* free, of which .* are to stay"):
        node.pull("llama/1")
    assert node.leftovers() == []


def test_a_download_takes_its_room_at_once(make_node: Make, store: MemoryStore) -> None:
    """Two downloads at the same time cannot both count on the same free bytes."""
    node = make_node(quota=ROOM_FOR_TWO)
    first = node.store.read

    def read(*arguments: object) -> object:
        with pytest.raises(LocalDiskError, match="llama/3 does not fit") as caught:
            make_node(quota=ROOM_FOR_TWO).pull("llama/3")
        assert "llama/1" in caught.value.hint and "llama/2" in caught.value.hint and "in use" in caught.value.hint
        node.store.read = first  # type: ignore[method-assign]
        return first(*arguments)  # type: ignore[arg-type]

    node.pull("llama/1")
    node.store.read = read  # type: ignore[assignment,method-assign]
    node.pull("llama/2")


def test_the_order_of_use_survives_a_clock_that_was_set_back(make_node: Make) -> None:
    for first, second in ((1, 2), (2, 1)):
        node = make_node(f"node-{first}", quota=ROOM_FOR_TWO)
        node.pull(f"llama/{first}")
        node.clock.set(node.clock.now() - timedelta(days=400))
        node.pull(f"llama/{second}")
        for number in (1, 2):
            node.unpin(f"llama/{number}")
        node.pull("llama/3")
        assert set(node.listed()) == {f"llama/{second}", "llama/3"}


def test_what_serves_is_used_now_whenever_it_was_started(make_node: Make) -> None:
    node = make_node(quota=f"{3 * SIZE + 4000}B")
    pin = node.hold("llama/1")
    for number in (2, 3):
        node.pull(f"llama/{number}")
        node.unpin(f"llama/{number}")
    pin.release()
    node.pull("llama/4")
    assert set(node.listed()) == {"llama/1", "llama/3", "llama/4"}


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_of_what_serves_the_one_that_was_used_last_stays_longer(make_node: Make, order: tuple[int, int]) -> None:
    node = make_node(quota=f"{3 * SIZE + 4000}B")
    _, second = order
    pins = [node.hold(f"llama/{number}") for number in order]
    node.pull("llama/3")  # this is when it is seen that both serve
    node.unpin("llama/3")
    for pin in pins:
        pin.release()
    node.pull("llama/4")
    assert set(node.listed()) == {f"llama/{second}", "llama/3", "llama/4"}


@pytest.mark.parametrize("kind", ["an engine", "a lease", "a pin"])
def test_somebody_comes_between_the_plan_and_the_eviction(
    make_node: Make, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """What was about to go stays, and the next in the order goes."""
    node, other = make_node(quota=ROOM_FOR_TWO), make_node(quota=ROOM_FOR_TWO)
    for number in (1, 2):
        node.pull(f"llama/{number}")
        node.unpin(f"llama/{number}")
    digest = path_of(node, 1).name
    plan, plans, pins = retention.plan, list[retention.Plan](), list[Pin]()

    def overtaken(*arguments: Any) -> retention.Plan:
        plans.append(plan(*arguments))
        if len(plans) == 1:
            if kind == "an engine":
                pins.append(other.hold("llama/1"))
            elif kind == "a lease":
                other.pull("llama/1")
            else:
                other.pin("llama/1")
        return plans[-1]

    monkeypatch.setattr(retention, "plan", overtaken)
    node.pull("llama/3")
    assert [occupant.digest.hex for occupant in plans[0].evict] == [digest]
    assert set(node.listed()) == {"llama/1", "llama/3"}
    for pin in pins:
        pin.release()


def test_hard_links_count_once(make_node: Make) -> None:
    node = make_node()
    node.pull("llama/1")
    one = path_of(node, 1)
    other = shutil.copytree(one, path_of(node, 2), copy_function=os.link)
    listing = caching.contents(node.cache, node.registry)
    assert listing.size == sum(file.stat().st_size for file in one.rglob("*") if file.is_file())
    assert [each.own for each in listing.cached] == [0, 0]
    (other / "config.json").unlink()
    listing = caching.contents(node.cache, node.registry)
    assert {each.versions[0]: each.own for each in listing.cached} == {"llama/1": 10, "llama/2": 0}


def unavailable(*_: object) -> Iterator[memoryview]:
    raise Unavailable("the store is away")


def test_an_unfinished_download_stays_for_days_and_then_makes_room(
    make_node: Make, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = make_node(quota=ROOM_FOR_TWO)
    with monkeypatch.context() as patch:
        patch.setattr(store, "read", unavailable)
        with pytest.raises(Unavailable):
            cut.pull("llama/1")
    [tree] = (cut.home / "cache" / "partial").iterdir()

    node = make_node(quota=ROOM_FOR_TWO)
    began = node.clock.now()
    os.utime(tree / "journal", (began.timestamp(), began.timestamp()))
    assert node.listed()["llama/1"].occupant.trust == "unfinished"
    node.pull("llama/2", keep=True)
    node.clock.sleep(UNFINISHED - 1)
    with pytest.raises(LocalDiskError) as caught:
        node.pull("llama/3")
    assert "packtrain cache rm llama/1 lets it go" in caught.value.hint
    node.clock.sleep(1)
    node.pull("llama/3")
    assert not tree.exists()
    assert set(node.listed()) == {"llama/2", "llama/3"}


def test_an_unfinished_download_from_the_future_is_not_kept_for_ever(make_node: Make, store: MemoryStore) -> None:
    node = make_node(quota=ROOM_FOR_TWO)
    digest = node.registry.read("llama").state.version(1).digest
    tree = node.home / "cache" / "partial" / digest.hex
    tree.mkdir(parents=True)
    (tree / "journal").write_bytes(b"x" * 3000)
    future = (node.clock.now() + timedelta(days=1000)).timestamp()
    os.utime(tree / "journal", (future, future))
    node.pull("llama/2")
    node.pull("llama/3")
    assert not tree.exists()


def test_an_unfinished_download_can_be_removed_unless_it_is_at_work(node: Node) -> None:
    digest = node.registry.read("llama").state.version(1).digest
    tree = node.home / "cache" / "partial" / digest.hex
    tree.mkdir(parents=True)
    (tree / "journal").write_bytes(b"12345")
    with node.cache.fetching(digest, on_wait=lambda: None), pytest.raises(Refused, match=r"llama/1 stays .* in use"):
        node.remove("llama/1")
    assert node.remove("llama/1") == 5
    assert node.leftovers() == []


# Who holds it


def test_the_process_that_uses_it_is_named(make_node: Make) -> None:
    node = make_node()
    path = node.pull("llama/1").path
    node.unpin("llama/1")
    lock = node.home / "cache" / "locks" / path.name
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as engine:
        assert engine.stdout is not None
        engine.stdout.readline()
        assert node.listed()["llama/1"].users == (
            f"{Path(f'/proc/{engine.pid}/comm').read_text().strip()} ({engine.pid})",
        )
        with pytest.raises(Refused, match=rf"in use by .* \({engine.pid}\)"):
            node.remove("llama/1")
        engine.communicate("\n")
    assert node.remove("llama/1") > SIZE


def test_a_pin_for_good_outlives_everything_but_rm_and_unpin(make_node: Make) -> None:
    node = make_node(quota=ROOM_FOR_TWO)
    node.pull("llama/1", keep=True)
    again = make_node(quota=ROOM_FOR_TWO, boot="boot-2")
    again.clock.sleep(10**8)
    for number in (2, 3, 4):
        again.pull(f"llama/{number}")
        again.unpin(f"llama/{number}")
    assert set(again.listed()) == {"llama/1", "llama/4"}
    again.remove("llama/1")
    again.pull("llama/1")
    assert not again.listed()["llama/1"].occupant.holds.pinned


def test_a_lease_ends_with_its_time_or_with_a_restart(make_node: Make) -> None:
    node = make_node()
    node.pull("llama/1")
    node.clock.sleep(LEASE - 1)
    assert node.listed()["llama/1"].occupant.holds.lease == 1
    node.clock.sleep(1)
    assert not node.listed()["llama/1"].occupant.holds
    node.pull("llama/1")
    assert not make_node(boot="boot-2").listed()["llama/1"].occupant.holds


def test_pinning_what_is_not_here_says_how_to_get_it(node: Node) -> None:
    with pytest.raises(NotFound, match="llama/1 is not in the cache") as caught:
        node.pin("llama/1")
    assert "--pin" in caught.value.hint


# Names


def test_a_snapshot_is_named_by_reference_or_by_digest(node: Node) -> None:
    digest = node.pull("llama/1").version.digest
    node.unpin("llama/1")
    for which in ("llama/1", f"llama@{digest}", str(digest), f"sha256:{digest.short}"):
        assert caching.find(node.cache, node.registry, which, node.notes) == digest
    with pytest.raises(UsageError, match="too short"):
        node.remove(f"sha256:{digest.hex[:11]}")
    with pytest.raises(NotFound):
        node.remove("sha256:000000000000")


def test_the_cache_is_there_when_the_registry_is_not(make_node: Make, store: MemoryStore) -> None:
    make_node().pull("llama/1")
    away = make_node(store=FaultyStore(store, dict.fromkeys(range(100), Fault.UNAVAILABLE)))
    assert set(away.listed()) == {"llama/1"}
    away.unpin("llama/1")
    assert away.remove("llama/1") > SIZE
    with pytest.raises(Unavailable):
        away.pull("llama/1")


def test_what_came_from_another_store_is_known_by_its_digest(make_node: Make) -> None:
    node = make_node()
    digest = node.pull("llama/1").version.digest
    shutil.rmtree(node.home / "ledgers")
    assert set(node.listed()) == {str(digest)}
    node.unpin(str(digest))
    node.remove(str(digest))


def test_looking_into_a_cache_that_is_not_there_makes_nothing(node: Node) -> None:
    listing = caching.contents(node.cache, node.registry)
    assert listing.cached == () and listing.size == 0 and listing.room.free > 0
    assert not (node.home / "cache").exists()


# Trust


def test_what_pull_left_is_durable_by_the_next_command(make_node: Make) -> None:
    node = make_node()
    digest = node.pull("llama/1").version.digest
    node.pull("llama/2")
    assert not node.cache.is_durable(digest)
    node.clock.sleep(61)
    node.pull("llama/2")
    assert node.cache.is_durable(digest)


def test_what_was_read_back_after_a_restart_is_durable(make_node: Make, store: MemoryStore) -> None:
    make_node().pull("llama/1")
    second = make_node(boot="boot-2")
    assert second.pull("llama/1").fetched == 0
    assert any("checking the cached copy" in note for note in second.notes.notes)
    third = make_node(boot="boot-3")
    third.pull("llama/1")
    assert third.notes.notes == []


def test_a_sync_that_fails_marks_nothing_durable(make_node: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    node = make_node()
    digest = node.pull("llama/1").version.digest

    def broken(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(LocalDiskError, match="Input/output error") as caught:
        node.cache.settle(digest)
    assert "dmesg" in caught.value.hint
    node.clock.sleep(61)
    node.pull("llama/1")
    assert not node.cache.is_durable(digest)


def test_what_took_its_place_while_it_was_synced_is_not_durable(
    make_node: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = make_node()
    digest = node.pull("llama/1").version.digest
    node.clock.sleep(61)
    sync = trees.sync

    def overtaken(tree: Path) -> None:
        sync(tree)
        monkeypatch.setattr(trees, "sync", sync)
        other = make_node(clock=node.clock)
        other.unpin("llama/1")
        other.remove("llama/1")
        other.pull("llama/1")

    monkeypatch.setattr(trees, "sync", overtaken)
    node.cache.settle_written()
    assert node.cache.trusts(digest) and not node.cache.is_durable(digest)


def test_a_damaged_snapshot_that_is_in_use_stays_and_is_not_given_out(make_node: Make) -> None:
    node = make_node()
    pin = node.hold("llama/1")
    weights = path_of(node, 1) / "model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(b"x" * weights.stat().st_size)
    with pytest.raises(IntegrityError, match=r"llama/1: model\.safetensors") as caught:
        node.verify()
    assert "in use" in caught.value.hint
    assert weights.exists()
    with pytest.raises(IntegrityError, match="another process uses it"):
        node.pull("llama/1")
    pin.release()
    node.pull("llama/1")
    assert weights.read_bytes() == files(1, SIZE)["model.safetensors"]


def test_a_snapshot_without_its_manifest_is_fetched_anew(make_node: Make) -> None:
    node = make_node()
    path = node.pull("llama/1").path
    path.chmod(0o755)
    (path / "packtrain.json").unlink()
    with pytest.raises(IntegrityError, match=r"packtrain\.json is missing"):
        node.verify()
    assert node.pull("llama/1").fetched == SIZE


# Users


@pytest.mark.root
def test_another_users_cache_is_refused_by_name_and_left_alone(make_node: Make, open_path: None) -> None:
    node = make_node()
    node.home.mkdir()
    node.home.chmod(0o777)
    assert as_user(4242, lambda: make_node().pull("llama/1")) == ""
    before = sorted(node.home.rglob("*"))
    owners = {path.stat().st_uid for path in before if "cache" in path.parts}
    assert owners == {4242}
    for act in (lambda: make_node().pull("llama/1"), lambda: make_node().listed(), lambda: make_node().verify()):
        for number in (0, 4343):
            said = as_user(number, act)
            assert said.startswith("LocalDiskError: the cache"), said
            assert "is uid 4242's" in said and "cache_dir" in said
    assert sorted(path for path in node.home.rglob("*") if "ledgers" not in path.parts) == [
        path for path in before if "ledgers" not in path.parts
    ]
    assert as_user(4242, lambda: make_node().unpin("llama/1") or make_node().remove("llama/1")) == ""


@pytest.mark.root
def test_other_users_may_read_a_snapshot(make_node: Make, open_path: None) -> None:
    path = make_node().pull("llama/1").path
    assert as_user(4242, lambda: (path / "tokenizer" / "vocab.json").read_bytes()) == ""


@pytest.mark.root
def test_two_users_have_two_caches(make_node: Make, open_path: None, tmp_path: Path) -> None:
    for number in (4242, 4343):
        home = tmp_path / str(number)
        home.mkdir()
        os.chown(home, number, number)
        assert as_user(number, lambda name=str(number): make_node(name).pull("llama/1")) == ""  # type: ignore[misc]
    assert as_user(4242, lambda: make_node("4242").remove("llama/1")).startswith("Refused")
    assert as_user(4242, lambda: make_node("4242").unpin("llama/1") or make_node("4242").remove("llama/1")) == ""
    assert set(make_node("4343").cache.snapshots())


@pytest.mark.root
def test_somebody_who_is_not_root_continues_a_download_that_is_read_only_already(
    make_node: Make, open_path: None
) -> None:
    """A kill between the moment when it became read-only and the one when it got its name."""
    make_node().home.mkdir()
    make_node().home.chmod(0o777)

    def read_only_and_gone(_: Digest, partial: Partial) -> None:
        for path in [*partial.tree.rglob("*"), partial.tree]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        os._exit(0)

    def interrupted() -> None:
        node = make_node()
        node.cache.admit = read_only_and_gone  # type: ignore[assignment,method-assign]
        node.pull("llama/1")

    as_user(4242, interrupted)
    [tree] = (make_node().home / "cache" / "partial").glob("*/tree")
    assert stat.S_IMODE((tree / "config.json").stat().st_mode) == 0o444
    assert as_user(4242, lambda: make_node().pull("llama/1")) == ""
    assert (path_of(make_node(), 1) / "config.json").read_bytes() == files(1, SIZE)["config.json"]


def test_what_has_several_names_is_let_go_by_a_command_that_works(make_node: Callable[..., Node]) -> None:
    """The same bytes under another name are one snapshot; the hint gives one reference, and it is the right one."""
    node = make_node()
    node.publish(files(4, SIZE), name="other")
    node.pull("llama/4")
    node.registry.read("other")
    with pytest.raises(Refused, match="llama/4, other/1 stays in the cache") as caught:
        node.remove("llama/4")
    command = caught.value.hint.removesuffix(" lets it go, then remove it.").removeprefix("packtrain cache unpin ")
    node.unpin(command)
    assert node.remove("llama/4")
