"""Garbage collection: what goes, what stays, what is not ours, and why."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NoReturn

import pytest

from packtrain.client import Silent
from packtrain.errors import Condemned, IntegrityError, NotFound, Refused, Unavailable
from packtrain.flows import verify
from packtrain.flows.collect import collect
from packtrain.flows.garbage import Collected
from packtrain.flows.promote import archive
from packtrain.model.digest import Digest
from packtrain.model.lease import Holder, Lease, lease_key
from packtrain.model.ledger import timestamp
from packtrain.model.manifest import FILE_NAME
from packtrain.model.reference import Reference
from packtrain.model.version import version_prefix
from packtrain.ports import OpenUpload, PartLimits
from packtrain.storage.directory import DirectoryStore
from packtrain.testing.faults import Fault, FaultyStore, Killed
from packtrain.testing.memory_store import MemoryMultipart, MemoryStore
from tests.conftest import Models
from tests.flows.conftest import House

DAY = 24 * 3600.0
MakeHouse = Callable[..., House]


def gc(house: House, days: float = 7, dry_run: bool = False) -> Collected:
    return collect(
        house.store,
        house.registry,
        house.cache,
        grace=timedelta(days=days),
        dry_run=dry_run,
        reporter=house.notes,
        clock=house.clock,
    )


def retire(house: House, reference: str) -> None:
    archive(house.registry, Reference.parse(reference), reason="")


def require_sound(house: House) -> None:
    verify.verify(house.store, house.registry, None, every_byte=True, reporter=Silent(), clock=house.clock)


def what(collected: Collected) -> list[str]:
    return sorted(each.what for each in collected.garbage)


class Dying(FaultyStore):
    """Its process dies when it has uploaded all but the manifest."""

    def create(self, key: str, data: bytes) -> None:
        self._dead = key.endswith(FILE_NAME)
        super().create(key, data)


def start(house: House, directory: Path, name: str = "llama", **options: object) -> None:
    """A publish that dies before it has a version."""
    other = House(Dying(house.store), house.home / "dead")
    other.clock = other.registry._clock = house.clock
    with pytest.raises(Killed):
        other.publish(directory, name, **options)


@pytest.fixture
def full(house: House, models: Models) -> House:
    """llama/1 is archived, llama/2 is not."""
    house.publish(models.first)
    house.publish(models.second)
    retire(house, "llama/1")
    return house


def test_nothing_is_garbage_in_an_empty_store_or_a_tidy_one(house: House, models: Models) -> None:
    assert gc(house, days=0) == Collected((), (), (), dry_run=False)
    house.publish(models.first)
    house.publish(models.adapter, "adapter", base="llama/1")
    house.clock.sleep(99 * DAY)
    before = dict(house.store.objects)
    assert gc(house, days=0) == Collected((), (), (), dry_run=False)
    assert house.store.objects == before


def test_an_archived_version_goes_after_its_grace_period(full: House) -> None:
    version = full.registry.read("llama").state.version(1)
    early = gc(full)
    assert early.garbage == ()
    (kept,) = early.kept
    assert (kept.what, kept.where, kept.until) == (
        "version",
        version.prefix,
        timestamp(full.clock.now() + timedelta(7)),
    )
    assert "archived" in kept.why

    full.clock.sleep(7 * DAY + 1)
    (gone,) = gc(full).garbage
    assert (gone.what, gone.where) == ("version", version.prefix)
    assert gone.size > version.size
    assert "llama/1 was archived at 2026-01-01" in gone.why
    assert not list(full.store.list(version.prefix))
    state = full.registry.read("llama").state
    assert (state.version(1).collected, state.version(2).collected) == (True, False)
    require_sound(full)


def test_a_dry_run_says_the_same_and_changes_nothing(full: House, models: Models) -> None:
    start(full, models.base)
    full.store.upload(f"records/llama/{'0' * 64}.json", [b"{}"], 2)
    full.publish(models.adapter, "adapter", base="llama/2")
    retire(full, "adapter/1")
    retire(full, "llama/2")
    full.clock.sleep(30 * DAY)
    before = dict(full.store.objects)
    foreseen = gc(full, dry_run=True)
    assert full.store.objects == before
    assert what(foreseen) == ["record", "upload", "version", "version", "version"]
    done = gc(full)
    assert done.garbage == foreseen.garbage
    assert (done.kept, done.strangers) == (foreseen.kept, foreseen.strangers)


def test_twice_is_once(full: House) -> None:
    full.clock.sleep(30 * DAY)
    assert gc(full).garbage
    before = dict(full.store.objects)
    assert gc(full) == Collected((), (), (), dry_run=False)
    assert full.store.objects == before


def test_a_publish_that_was_interrupted_may_go_on_for_as_long(house: House, models: Models) -> None:
    house.publish(models.first)
    start(house, models.second)
    running = gc(house, days=0)
    assert running.garbage == ()
    assert running.kept[0].why == "a publish is under way"
    house.clock.sleep(6 * DAY)
    waiting = gc(house)
    assert waiting.garbage == ()
    assert "may go on" in waiting.kept[0].why
    house.clock.sleep(1.1 * DAY)
    gone = gc(house)
    assert what(gone) == ["upload"]
    assert "a publish never finished; its lease ended at 2026-01-01T01:00" in gone.garbage[0].why
    require_sound(house)


def test_what_was_collected_comes_back_in_another_directory(full: House, models: Models) -> None:
    """And is what it was: the same payload, mended and pulled like any other version."""
    full.clock.sleep(30 * DAY)
    gc(full)
    again = full.publish(models.first)
    first = full.registry.read("llama").state.version(1)
    assert again.created
    assert again.version is not None
    assert (again.version.number, again.version.payload) == (3, first.payload)
    assert again.version.digest != first.digest
    assert full.publish(models.first).created is False
    require_sound(full)
    retire(full, "llama/3")
    full.clock.sleep(30 * DAY)
    assert what(gc(full)) == ["version"]
    assert full.publish(models.first).digest not in (first.digest, again.digest)
    full.pull("llama/4")
    require_sound(full)


@pytest.mark.parametrize("call", range(8, 24))
def test_a_publisher_that_sleeps_past_its_lease_starts_anew(make_house: MakeHouse, models: Models, call: int) -> None:
    """Whatever it was about to do when it fell asleep, and garbage collection came."""
    house = make_house()
    house.publish(models.second)
    other = make_house("other")

    slept: list[Collected] = []

    class Sleeping(FaultyStore):
        def at(self, number: int) -> None:
            if number == call:
                house.clock.sleep(30 * DAY)
                other.clock.sleep(30 * DAY)
                slept.append(gc(other))

    house.store = Sleeping(house.store)
    house.registry._store = house.store
    assert house.publish(models.first).created
    assert len(slept) == 1
    require_sound(house)


def test_a_base_stays_as_long_as_an_adapter_lives(house: House, models: Models) -> None:
    house.publish(models.first, "base")
    house.publish(models.adapter, "adapter", base="base/1")
    retire(house, "base/1")
    house.clock.sleep(30 * DAY)
    collected = gc(house)
    assert collected.garbage == ()
    assert collected.kept[0].why.startswith("the adapter adapter ")
    assert collected.kept[0].until is None
    require_sound(house)
    retire(house, "adapter/1")
    house.clock.sleep(30 * DAY)
    assert what(gc(house)) == ["version", "version"]  # in one run: the adapter, then its base


def test_an_adapter_that_was_about_to_be_published_keeps_its_base(house: House, models: Models) -> None:
    """Its publish may wake up at any time, unless it was condemned."""
    house.publish(models.first, "base")
    start(house, models.adapter, name="adapter", base="base/1")
    retire(house, "base/1")
    assert house.registry.read("base").state.references
    house.clock.sleep(6 * DAY)
    assert gc(house, days=6).garbage == ()
    house.clock.sleep(2 * DAY)
    assert "version" in what(gc(house))
    with pytest.raises(Refused, match="archived"):
        house.publish(models.adapter, "adapter", base="base/1")


def test_records(house: House, models: Models) -> None:
    house.publish(models.first)
    stray = f"records/llama/{Digest.of(b'{}').hex}.json"
    house.store.upload(stray, [b"{}"], 2)
    start(house, models.second)
    assert "record" not in what(gc(house, days=0))  # a publish is under way: it may be its own
    house.clock.sleep(30 * DAY)
    gone = [each for each in gc(house).garbage if each.what == "record"]
    assert [(each.where, each.why) for each in gone] == [(stray, "no event names it")]
    retire(house, "llama/1")
    house.clock.sleep(30 * DAY)
    assert what(gc(house)) == ["version"]  # its lineage is history, and stays
    assert house.registry.read("llama").state.version(1).lineage


def test_a_record_that_was_given_up_comes_back_under_another_name(house: House, models: Models) -> None:
    published = house.publish(models.first)
    assert published.version is not None and published.version.lineage is not None
    record = published.version.lineage
    other = MemoryStore()
    data = house.store.get(f"records/llama/{record.hex}.json")
    fresh = House(other, house.home / "fresh")
    other.upload(f"records/llama/{record.hex}.json", [data], len(data))
    start(fresh, models.second)
    fresh.clock.sleep(30 * DAY)
    assert "record" in what(gc(fresh))
    again = fresh.publish(models.first)
    assert again.version is not None
    assert again.version.lineage not in (None, record)
    require_sound(fresh)


def test_what_is_used_in_place_stays_until_its_lease_is_over(full: House) -> None:
    version = full.registry.read("llama").state.version(1)
    full.clock.sleep(30 * DAY)
    lease = Lease(Holder("gpu-7", 1, "ada"), timestamp(full.clock.now() + timedelta(minutes=30)))
    full.store.upload(lease_key("llama", version.digest, "0" * 32), [lease.encode()], len(lease.encode()))
    collected = gc(full)
    assert collected.garbage == ()
    assert collected.kept[0].why == "ada on gpu-7 (process 1) uses it in place"
    full.clock.sleep(DAY)
    assert what(gc(full)) == ["version"]
    full.clock.sleep(DAY)
    assert what(gc(full)) == ["lease"]


def test_a_lease_that_comes_after_the_listing_is_seen(full: House) -> None:
    """It is condemned then, and goes when the lease is over; whoever comes to read it now is told so."""
    version = full.registry.read("llama").state.version(1)
    full.clock.sleep(30 * DAY)
    data = Lease(Holder("gpu-7", 1, "ada"), timestamp(full.clock.now() + timedelta(minutes=30))).encode()

    class Racing(FaultyStore):
        def create(self, key: str, data_: bytes) -> None:
            if key.startswith("ledger/"):
                self._inner.upload(lease_key("llama", version.digest, "0" * 32), [data], len(data))
            super().create(key, data_)

    full.registry._store = Racing(full.store)
    collected = gc(full)
    assert collected.garbage == ()
    assert "in place" in collected.kept[0].why
    assert full.registry.read("llama").state.version(1).collected
    assert list(full.store.list(version.prefix))
    full.clock.sleep(DAY)
    assert what(gc(full)) == ["version"]


def test_what_is_not_ours_is_said_and_never_touched(full: House) -> None:
    foreign = {
        "models/llama/notes.txt": "models/llama/notes.txt",
        "models/llama/old-model/v1/model.safetensors": "models/llama/old-model/",
        f"models/llama/{'7' * 64}/model.safetensors": f"models/llama/{'7' * 64}/",
        f"models/nobody/{'7' * 64}/model.safetensors": f"models/nobody/{'7' * 64}/",
        "records/llama/readme.md": "records/llama/readme.md",
        f"records/nobody/{'7' * 64}.json": f"records/nobody/{'7' * 64}.json",
        f"leases/llama/{'7' * 64}/{'0' * 32}.json": f"leases/llama/{'7' * 64}/{'0' * 32}.json",
        "datasets/train.json": "datasets/",
    }
    for key in foreign:
        full.store.upload(key, [b"x"], 1)
    full.clock.sleep(30 * DAY)
    collected = gc(full)
    assert sorted(each.where for each in collected.strangers) == sorted(foreign.values())
    assert foreign.keys() <= full.store.objects.keys()
    assert what(collected) == ["version"]


def test_a_ledger_that_cannot_be_read_stops_everything(full: House, models: Models) -> None:
    """What it names is not known: an adapter, say, whose base is in another ledger."""
    full.publish(models.adapter, "adapter", base="llama/2")
    full.clock.sleep(30 * DAY)
    full.store.upload("ledger/adapter/0000000001.json", [b"{}"], 2)
    before = dict(full.store.objects)
    with pytest.raises(IntegrityError, match="adapter"):
        collect(
            full.store,
            House(full.store, full.home / "new").registry,
            full.cache,
            reporter=Silent(),
            clock=full.clock,
        )
    assert full.store.objects == before


def test_killed_at_any_call_it_is_resumed(make_house: MakeHouse, models: Models) -> None:
    def world(number: int) -> House:
        house = make_house(f"house-{number}", store=MemoryStore())
        house.publish(models.first, "base")
        house.publish(models.adapter, "adapter", base="base/1")
        house.publish(models.second, "base")
        retire(house, "adapter/1")
        retire(house, "base/1")
        start(house, models.base, name="base")
        house.clock.sleep(30 * DAY)
        return house

    def run(house: House, plan: dict[int, Fault]) -> int:
        inner, faulty = house.store, FaultyStore(house.store, plan)
        house.store = house.registry._store = faulty
        try:
            gc(house)
        except (Killed, Unavailable):
            pass
        finally:
            house.store = house.registry._store = inner
        return faulty.calls

    reference = world(0)
    calls = run(reference, {})
    left = {key for key in reference.store.objects if not key.startswith("ledger/")}
    for fault in (Fault.KILLED, Fault.LOST_ANSWER):
        for call in range(0, calls, 7):
            house = world(1 + call * 2 + (fault is Fault.KILLED))
            run(house, {call: fault})
            require_sound(house)
            house.clock.sleep(2 * 3600)
            gc(house)
            assert {key for key in house.store.objects if not key.startswith(("ledger/", "doctor/"))} == left
            require_sound(house)


def test_the_later_clock_does_not_end_a_grace_period(tmp_path: Path, models: Models) -> None:
    """A machine whose clock is a month ahead: the store's own counts."""
    house = House(DirectoryStore(tmp_path / "store"), tmp_path / "node")
    house.clock.set(datetime.now(UTC))
    house.publish(models.first)
    retire(house, "llama/1")
    house.clock.sleep(30 * DAY)
    collected = gc(house)
    assert what(collected) == []
    assert any("clock is 30 days ahead" in note for note in house.notes.notes)


def test_a_directory_store(tmp_path: Path, models: Models) -> None:
    """Files of writers that died, and links that stand for nothing."""
    house = House(DirectoryStore(tmp_path / "store"), tmp_path / "node")
    house.clock.set(datetime.now(UTC))
    house.publish(models.first)
    hidden = tmp_path / "store" / ".packtrain-tmp" / "elsewhere.1.0"
    hidden.write_bytes(b"12345")
    os.utime(hidden, (0, 0))
    link = tmp_path / "store/serve/llama/by-version/9"
    link.parent.mkdir(parents=True)
    link.symlink_to("../../../models/llama/nothing")
    collected = gc(house)
    assert [(each.what, each.size) for each in collected.garbage] == [("link", 0), ("unfinished file", 5)]
    assert not hidden.exists() and not link.is_symlink()


def test_the_cache_follows(full: House, models: Models) -> None:
    """Snapshots of what was collected go, unless somebody holds them; downloads that nobody continues go."""
    full.pull("llama/1")
    full.pull("llama/2")
    digest = full.registry.read("llama").state.version(1).digest
    full.clock.sleep(30 * DAY)
    with full.cache.pin(digest):
        held = gc(full)
        assert what(held) == ["version"]
        assert [(each.what, each.why) for each in held.kept] == [("snapshot", "in use")]
    assert what(gc(full, dry_run=True)) == ["snapshot"]
    assert full.cache.holds(digest)
    (gone,) = gc(full).garbage
    assert gone.size > 0
    assert "llama/1" in gone.where
    assert not full.cache.holds(digest)
    assert list(full.cache.snapshots()) == [full.registry.read("llama").state.version(2).digest]


def test_what_crashes_left_in_the_cache_goes(full: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """An eviction that was interrupted at once, a download when nobody continued it for three days."""

    def cut_off(*_: object) -> NoReturn:
        raise Unavailable("the store is away", hint="Try again.")

    with monkeypatch.context() as patch:
        patch.setattr(full.store, "read", cut_off)
        with pytest.raises(Unavailable):
            full.pull("llama/2")
    (download,) = (full.home / "cache" / "partial").iterdir()
    begun = full.clock.now().timestamp()
    os.utime(download / "journal", (begun, begun))
    evicted = full.home / "cache" / "trash" / "1" / "weights"
    evicted.parent.mkdir(parents=True)
    evicted.write_bytes(b"12345")

    full.clock.sleep(2.9 * DAY)
    assert what(gc(full, dry_run=True)) == ["trash"]
    assert evicted.exists()
    (gone,) = gc(full).garbage
    assert gone.what == "trash" and gone.size >= 5
    assert not evicted.exists() and download.exists()

    full.clock.sleep(0.2 * DAY)
    assert what(gc(full, dry_run=True)) == ["download"]
    assert download.exists()
    (gone,) = gc(full).garbage
    assert "llama/2" in gone.where
    assert not download.exists()
    assert gc(full).garbage == ()


def test_a_lease_of_a_pull_keeps_a_snapshot_while_it_lasts(full: House) -> None:
    full.clock.sleep(30 * DAY)
    full.pull("llama/1")
    first = gc(full)
    assert what(first) == ["version"]
    assert [each.what for each in first.kept] == ["snapshot"]
    full.clock.sleep(29 * 60)
    assert what(gc(full)) == []
    full.clock.sleep(2 * 60)
    assert what(gc(full)) == ["snapshot"]
    assert list(full.cache.snapshots()) == []


def test_who_pulls_a_collected_version_is_told(full: House) -> None:
    full.clock.sleep(30 * DAY)
    gc(full)
    with pytest.raises(NotFound, match="llama/1 was archived, and its bytes were collected") as raised:
        full.pull("llama/1")
    assert "publish it again" in raised.value.hint


def test_what_was_condemned_is_never_named(full: House, models: Models) -> None:
    version = full.registry.read("llama").state.version(1)
    full.clock.sleep(30 * DAY)
    gc(full)
    with pytest.raises(Condemned):
        full.registry.change("llama", lambda state: state.begin_publish(version.digest, "0" * 32, version.created))
    assert version_prefix("llama", version.digest) == version.prefix


def test_uploads_by_parts(full: House, models: Models) -> None:
    """Those of what goes are aborted; those of what may go on, and of others, are not."""
    store = full.store
    assert isinstance(store, MemoryStore)
    multipart = MemoryMultipart(store, PartLimits(smallest=1, largest=100, most=10))
    start(full, models.base)
    state = full.registry.read("llama").state
    one, two, unfinished = (
        *(state.version(n).digest for n in (1, 2)),
        next(each.digest for each in state.publishes.values()),
    )
    opened = {digest: multipart.begin(f"models/llama/{digest.hex}/model") for digest in (one, two, unfinished)}
    multipart.send(opened[one], 1, lambda: [b"12345"], 5, zlib.crc32(b"12345"))
    foreign = multipart.begin("models/llama/somebody")
    unknown = multipart.begin(f"models/llama/{'7' * 64}/model")
    early = gc(full)
    assert early.garbage == ()
    assert [each.where for each in early.kept if each.what == "parts"] == sorted(
        opened[digest].key for digest in (one, unfinished)
    )
    assert [each.where for each in early.strangers] == ["models/llama/somebody", f"models/llama/{'7' * 64}/"]
    full.clock.sleep(30 * DAY)
    old = OpenUpload(opened[two].key, "old", full.clock.now() - timedelta(days=8))
    multipart._open[old] = {}
    foreseen, done = gc(full, dry_run=True), gc(full)
    assert done.garbage == foreseen.garbage
    gone = {each.where: each.size for each in done.garbage if each.what == "parts"}
    assert gone == {opened[one].key: 5, opened[unfinished].key: 0, opened[two].key: 0}
    assert set(multipart.open_uploads("models/")) == {foreign, unknown, opened[two]}  # nobody knows how old the last is
    assert what(gc(full)) == []
