"""A version used where it is: what is checked before, and the lease that keeps it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from packtrain.errors import IntegrityError, LocalDiskError, Refused, Unavailable
from packtrain.flows import in_place
from packtrain.flows.fetch import read_manifest
from packtrain.flows.in_place import TERM, UNATTENDED, InPlace, pull_in_place
from packtrain.flows.publish import Request
from packtrain.flows.pull import Snapshot
from packtrain.flows.repair import repair
from packtrain.model.lease import Holder, Lease, lease_prefix
from packtrain.model.ledger import timestamp
from packtrain.model.manifest import Manifest
from packtrain.model.reference import Reference
from packtrain.model.version import ModelVersion
from packtrain.ports import Store
from packtrain.storage.directory import DirectoryStore
from packtrain.testing.faults import Fault, FaultyStore
from tests.conftest import Models, as_nobody
from tests.flows.conftest import House, contents

HOLDER = Holder(host="node-1", pid=42, user="alice")
SHARD = "model-00001-of-00002.safetensors"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "share"


@pytest.fixture
def house(make_house: Callable[..., House], root: Path, models: Models) -> House:
    """A machine with llama/1, in two shards, on the share at ``root``."""
    house = make_house(store=DirectoryStore(root))
    house.publish(models.base)
    return house


@pytest.fixture
def model(house: House, root: Path) -> Path:
    """The directory of llama/1 in the store."""
    return root / house.registry.read("llama").state.version(1).prefix


def place(house: House, *, verify: bool = False, store: Store | None = None) -> InPlace:
    return InPlace(
        store or house.store, house.registry, verify=verify, holder=HOLDER, reporter=house.notes, clock=house.clock
    )


def pull(house: House, *, verify: bool = False) -> Snapshot:
    return pull_in_place(house.registry, place(house, verify=verify), Reference("llama"), reporter=house.notes)


def leases(house: House) -> list[Lease]:
    return [
        Lease.decode(house.store.get(info.key), what=info.key)
        for info in house.store.list(lease_prefix("llama", house.registry.read("llama").state.version(1).digest))
    ]


def until(house: House, term: timedelta) -> str:
    return timestamp(house.clock.now() + term)


def replace(file: Path, content: bytes) -> None:
    """As somebody would who changes a read-only file."""
    file.unlink()
    file.write_bytes(content)


# What is opened


def test_the_stores_own_directory_is_used_without_a_copy(house: House, model: Path) -> None:
    snapshot = pull(house)
    assert (snapshot.path, snapshot.fetched, snapshot.in_place) == (model, 0, True)
    assert snapshot.version.number == 1
    assert contents(house.home / "cache") == {}


def test_it_is_never_opened_through_a_link(house: House, model: Path, root: Path, tmp_path: Path) -> None:
    (tmp_path / "mounted").symlink_to(root)
    house.store = DirectoryStore(tmp_path / "mounted")
    assert pull(house).path == model

    moved = tmp_path / "moved"
    (root / "models/llama").rename(moved)
    (root / "models/llama").symlink_to(moved)
    with pytest.raises(IntegrityError, match="llama"):
        pull(house)


def test_a_link_that_comes_while_it_is_opened_is_not_followed(
    house: House, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_and_move(store: Store, version: ModelVersion) -> Manifest:
        manifest = read_manifest(store, version)
        model.rename(tmp_path / "moved")
        model.symlink_to(tmp_path / "moved")
        return manifest

    monkeypatch.setattr(in_place, "read_manifest", read_and_move)
    with pytest.raises(IntegrityError, match=f"leads elsewhere, to {tmp_path / 'moved'}"):
        pull(house)


def test_a_bucket_has_no_place_to_use(make_house: Callable[..., House], models: Models) -> None:
    house = make_house()
    house.publish(models.first)
    with pytest.raises(Refused, match="memory://store is not a directory") as caught:
        pull(house)
    assert 'pull = "cache"' in caught.value.hint


# What is checked


def test_the_cheap_check_says_that_it_is_cheap(house: House) -> None:
    assert not pull(house).verified
    assert [note for note in house.notes.notes if "not checked" in note and "llama/1" in note and "--verify" in note]


def test_the_full_check_reads_every_byte(house: House) -> None:
    before = house.notes.advanced
    snapshot = pull(house, verify=True)
    assert snapshot.verified
    assert house.notes.advanced - before == snapshot.version.size
    assert not [note for note in house.notes.notes if "not checked" in note]


def damage_missing(model: Path) -> None:
    (model / SHARD).unlink()


def damage_shorter(model: Path) -> None:
    replace(model / SHARD, (model / SHARD).read_bytes()[:-1])


def damage_link(model: Path) -> None:
    (model / SHARD).rename(model.parent / "elsewhere")
    (model / SHARD).symlink_to(model.parent / "elsewhere")


def damage_more(model: Path) -> None:
    (model / "more.safetensors").write_bytes(b"")


def damage_linked_folder(model: Path) -> None:
    (model / "more").symlink_to("..")


def damage_manifest(model: Path) -> None:
    replace(model / "packtrain.json", (model / "packtrain.json").read_bytes().replace(b"merged", b"MERGED"))


def damage_no_manifest(model: Path) -> None:
    (model / "packtrain.json").unlink()


DAMAGES = {
    damage_missing: SHARD,
    damage_shorter: SHARD,
    damage_link: SHARD,
    damage_more: "more.safetensors",
    damage_linked_folder: "more",
    damage_manifest: "packtrain.json",
    damage_no_manifest: "packtrain.json",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_cheap_check_finds_what_sizes_and_names_show(
    house: House, model: Path, damage: Callable[[Path], None]
) -> None:
    damage(model)
    with pytest.raises(IntegrityError, match=DAMAGES[damage]):
        pull(house)
    assert leases(house) == []


@pytest.mark.parametrize("damage", [damage_missing, damage_shorter])
def test_a_repair_mends_it_as_the_message_says(
    house: House, models: Models, model: Path, damage: Callable[[Path], None]
) -> None:
    damage(model)
    with pytest.raises(IntegrityError) as caught:
        pull(house)
    (version,) = house.registry.read(house.registry.names()[0]).state.versions.values()
    assert f"--name {version.name} --repair" in caught.value.hint
    repair(house.store, house.registry, Request(models.base, version.name), reporter=house.notes)
    assert pull(house, verify=True).path == model


def test_only_the_full_check_finds_a_flipped_bit(house: House, model: Path) -> None:
    content = bytearray((model / SHARD).read_bytes())
    content[-1] ^= 1
    replace(model / SHARD, bytes(content))
    assert pull(house).path == model
    with pytest.raises(IntegrityError, match=SHARD):
        pull(house, verify=True)


def test_what_an_nfs_client_leaves_of_a_removed_file_is_not_counted(house: House, model: Path) -> None:
    (model / ".nfs000000000000002a00000001").write_bytes(b"x")
    assert pull(house).path == model


@pytest.fixture
def open_house(make_house: Callable[..., House], models: Models, open_folder: Path) -> House:
    """A machine whose share other users can reach."""
    house = make_house("open", store=DirectoryStore(open_folder / "share"))
    house.publish(models.base)
    return house


@pytest.mark.root
def test_another_user_may_use_it_and_cannot_write_a_lease(open_house: House) -> None:
    version = open_house.registry.read("llama").state.version(1)
    with as_nobody(), place(open_house, verify=True) as opened:
        assert (opened.open(version) / SHARD).read_bytes()
    [note] = [note for note in open_house.notes.notes if note.startswith("warning: ")]
    assert "without a lease" in note and "Permission denied" in note


@pytest.mark.root
def test_a_file_that_this_user_cannot_read(open_house: House) -> None:
    version = open_house.registry.read("llama").state.version(1)
    assert open_house.store.directory is not None
    (open_house.store.directory / version.prefix / SHARD).chmod(0o400)
    with as_nobody(), place(open_house) as opened, pytest.raises(Refused, match=f"{SHARD} .*Permission denied"):
        opened.open(version)


# Leases


def test_a_pull_leaves_a_lease_with_its_expiry(house: House) -> None:
    pull(house)
    assert leases(house) == [Lease(HOLDER, until(house, TERM))]


def test_a_lease_is_there_while_the_version_is_open_and_gone_after(house: House, root: Path) -> None:
    with place(house) as opened:
        opened.open(house.registry.read("llama").state.version(1))
        assert leases(house) == [Lease(HOLDER, until(house, TERM))]
    assert leases(house) == []
    assert not (root / "leases").exists()


def test_an_engine_that_cannot_renew_is_left_a_longer_one(house: House) -> None:
    with place(house) as opened:
        opened.open(house.registry.read("llama").state.version(1))
        house.clock.sleep(600)
        opened.leave()
    assert leases(house) == [Lease(HOLDER, until(house, UNATTENDED))]


def test_the_lease_comes_before_any_look_at_the_files(house: House) -> None:
    """The order by which gc and readers cannot both win (packtrain.model.lease)."""
    calls: list[str] = []

    class Recorded(FaultyStore):
        def upload(self, key: str, *arguments: object) -> None:
            calls.append(key)
            super().upload(key, *arguments)  # type: ignore[arg-type]

        def get(self, key: str) -> bytes:
            calls.append(key)
            return super().get(key)

    with place(house, store=Recorded(house.store)) as opened:
        opened.open(house.registry.read("llama").state.version(1))
    assert [call.partition("/")[0] for call in calls] == ["leases", "models"]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_it_is_renewed_as_long_as_it_is_held(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_place, "RENEWAL", 0.01)
    with place(house) as opened:
        opened.open(house.registry.read("llama").state.version(1))
        for _ in range(3):
            house.clock.sleep(600)
            later = [Lease(HOLDER, until(house, TERM))]
            wait_for(lambda later=later: leases(house) == later)  # type: ignore[misc]
    assert leases(house) == []


def test_a_renewal_that_fails_is_said_and_tried_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    class Faulty(FaultyStore):
        """It takes the lease, and no renewal before the second."""

        leases = 0

        def upload(self, key: str, body: Iterable[bytes], size: int) -> None:
            self.leases += 1
            if self.leases == 2:
                raise Unavailable("it does not answer")
            super().upload(key, body, size)

    monkeypatch.setattr(in_place, "RENEWAL", 0.01)
    with place(house, store=Faulty(house.store)) as opened:
        opened.open(house.registry.read("llama").state.version(1))
        house.clock.sleep(600)
        wait_for(lambda: leases(house) == [Lease(HOLDER, until(house, TERM))])
    assert [note for note in house.notes.notes if "could not be renewed" in note and "llama/1" in note]


@pytest.fixture
def read_only(house: House, root: Path) -> Iterator[None]:
    subprocess.run(["mount", "--bind", str(root), str(root)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(root)], check=True)
        yield
    finally:
        subprocess.run(["umount", str(root)], check=True)


@pytest.mark.root
@pytest.mark.usefixtures("read_only")
def test_a_share_that_is_mounted_read_only_is_used_with_a_warning(house: House, model: Path) -> None:
    with pytest.raises(LocalDiskError):
        house.store.create("x", b"")
    assert pull(house).path == model
    [note] = [note for note in house.notes.notes if note.startswith("warning: ")]
    assert "llama/1" in note and "without a lease" in note and "Read-only" in note and "do not archive" in note
    with place(house) as opened:
        assert opened.open(house.registry.read("llama").state.version(1)) == model


def test_a_share_that_does_not_answer_is_no_reason_to_go_on_without_a_lease(house: House) -> None:
    faulty = FaultyStore(house.store, {0: Fault.UNAVAILABLE})
    with place(house, store=faulty) as opened, pytest.raises(Unavailable):
        opened.open(house.registry.read("llama").state.version(1))
