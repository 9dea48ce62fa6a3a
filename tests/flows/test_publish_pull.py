"""From a directory to a version to a snapshot, and what may go wrong on the way."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from packtrain.errors import (
    Conflict,
    IntegrityError,
    NotFound,
    PreflightRefused,
    Refused,
    Unavailable,
)
from packtrain.flows import catalog, integrity
from packtrain.flows.download import StoreSource, download
from packtrain.flows.promote import archive, promote, roll_back
from packtrain.flows.verify import verify
from packtrain.model.manifest import FILE_NAME, Manifest
from packtrain.model.pacing import Limits
from packtrain.model.reference import Reference
from packtrain.testing.memory_store import MemoryStore
from tests.conftest import Models
from tests.flows.conftest import House, contents

Make = Callable[..., House]


def test_a_pulled_snapshot_is_what_was_published(house: House, models: Models) -> None:
    published = house.publish(models.first, alias="staging")
    snapshot = house.pull("llama@staging")

    assert published.created and published.version is not None and str(published.version) == "llama/1"
    pulled = contents(snapshot.path)
    assert Manifest.decode(pulled.pop(FILE_NAME), expect=published.digest).size == published.size
    for name, data in contents(models.first).items():
        assert pulled[name] == data
    generated = set(pulled) - set(contents(models.first))
    assert "MLmodel" in generated and "components/tokenizer/tokenizer.json" in generated


def test_a_store_hears_of_a_pulls_reads_before_it_gives_the_manifest(
    house: House, models: Models, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that connections are open by then."""
    published = house.publish(models.first)
    manifest = f"models/llama/{published.digest.hex}/{FILE_NAME}"
    get, told = store.get, list[str]()
    monkeypatch.setattr(store, "prepare", lambda key, reads: told.append(f"prepare {reads > 1} {key}"))
    monkeypatch.setattr(store, "get", lambda key: (told.append(f"get {key}"), get(key))[1])
    house.pull("llama")
    assert [each for each in told if each.endswith(manifest)] == [f"prepare True {manifest}", f"get {manifest}"]


def test_a_snapshot_is_read_only_and_open_to_other_users(house: House, models: Models) -> None:
    house.publish(models.first)
    path = house.pull("llama").path
    for folder, _, names in os.walk(path):
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o555
        assert all(stat.S_IMODE(os.stat(os.path.join(folder, name)).st_mode) == 0o444 for name in names)


def test_the_store_holds_a_plain_directory(house: House, models: Models, store: MemoryStore) -> None:
    published = house.publish(models.first)
    prefix = f"models/llama/{published.digest.hex}/"
    stored = {key.removeprefix(prefix): data for key, data in store.objects.items() if key.startswith(prefix)}
    for name, data in contents(models.first).items():
        assert stored[name] == data


def test_the_same_bytes_are_the_same_version(house: House, models: Models) -> None:
    first = house.publish(models.first)
    again = house.publish(models.first, alias="staging")
    assert (again.created, again.uploaded, again.version) == (False, 0, first.version)
    assert house.registry.read("llama").state.aliases == {"staging": 1}
    forced = house.publish(models.first, force=True)
    assert forced.created and forced.uploaded == 0 and forced.version is not None and forced.version.number == 2


def test_a_dry_run_writes_nothing(house: House, models: Models, store: MemoryStore) -> None:
    dry = house.publish(models.first, dry_run=True)
    assert store.objects == {} and dry.version is None and dry.uploaded == dry.size > 0
    assert house.publish(models.first).digest == dry.digest


def test_what_the_training_left_stays_behind(house: House, models: Models) -> None:
    published = house.publish(models.adapter, name="adapter")
    assert "training_args.bin" in published.left and any(path.startswith("checkpoint-") for path in published.left)
    names = contents(house.pull("adapter").path)
    assert "adapter_model.safetensors" in names and "training_args.bin" not in names


def test_an_adapter_finds_its_published_base(house: House, models: Models) -> None:
    base = house.publish(models.base, name="base")
    adapter = house.publish(models.adapter, name="adapter", base=str(models.base))
    assert adapter.version is not None and adapter.version.base is not None
    assert str(adapter.version.base) == "base/1"
    manifest = Manifest.decode((house.pull("adapter").path / FILE_NAME).read_bytes())
    assert manifest.base is not None and manifest.base.manifest == base.digest
    references = house.registry.read("base").state.references
    assert references == {base.digest: frozenset({("adapter", adapter.digest)})}


def test_an_adapter_of_an_archived_base_is_refused(house: House, models: Models) -> None:
    house.publish(models.base, name="base")
    archive(house.registry, Reference.parse("base/1"), reason="old")
    with pytest.raises(Refused, match="archived"):
        house.publish(models.adapter, name="adapter", base="base/1")
    assert house.registry.names() == ["base"]


def test_an_unservable_directory_is_refused_with_its_findings(house: House, models: Models, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(models.first, tmp_path / "broken"))
    next(broken.glob("model-*.safetensors")).unlink()
    with pytest.raises(PreflightRefused) as caught:
        house.publish(broken)
    assert any(finding.code == "shard-missing" for finding in caught.value.findings)
    with pytest.raises(NotFound):
        catalog.history(house.registry, "llama")


@pytest.mark.parametrize("moment", ["while it is hashed", "between hashing and upload"])
def test_a_file_that_changes_meanwhile_is_caught(
    house: House, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    moving = Path(shutil.copytree(models.first, tmp_path / "moving"))
    weights = sorted(moving.glob("*.safetensors"))[-1]

    def damage(*_: object) -> None:
        with weights.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last[0] ^ 1]))

    if moment == "while it is hashed":
        monkeypatch.setattr(house.notes, "advance", damage)
    else:
        original = house.registry.change

        def change(name: str, decide):  # type: ignore[no-untyped-def]
            damage()
            return original(name, decide)

        monkeypatch.setattr(house.registry, "change", change)
    with pytest.raises(Refused, match="changed while it was being published"):
        house.publish(moving)
    assert house.registry.names() == []


def test_archived_bytes_can_be_published_again(house: House, models: Models) -> None:
    house.publish(models.first)
    archive(house.registry, Reference.parse("llama/1"), reason="")
    again = house.publish(models.first)
    assert again.created and again.version is not None and again.version.number == 2
    assert house.pull("llama").version.number == 2


def test_code_needs_a_flag_that_the_ledger_keeps(house: House, models: Models, tmp_path: Path) -> None:
    coded = Path(shutil.copytree(models.first, tmp_path / "coded"))
    (coded / "modeling_llama.py").write_text("print('hello')\n")
    with pytest.raises(PreflightRefused):
        house.publish(coded)
    published = house.publish(coded, allow_code=True)
    assert published.version is not None and published.version.code
    assert (house.pull("llama").path / "modeling_llama.py").exists()


def test_pickle_is_refused_again_at_pull(
    house: House, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody with an older or a changed Packtrain published it: the node does not open it."""
    poisoned = Path(shutil.copytree(models.first, tmp_path / "poisoned"))
    (poisoned / "extra.pkl").write_bytes(b"\x80\x04.")
    monkeypatch.setattr("packtrain.flows.publish.preflight", lambda *_, **__: ())
    house.publish(poisoned)
    with pytest.raises(Refused, match=r"extra\.pkl"):
        house.pull("llama")
    assert not house.cache.path(house.registry.read("llama").state.latest.digest).exists()


# Pull


def test_a_second_pull_finds_it_at_once(house: House, models: Models, store: MemoryStore) -> None:
    published = house.publish(models.first)
    assert house.pull("llama").fetched == published.size
    store.objects = {key: data for key, data in store.objects.items() if key.startswith("ledger/")}
    assert house.pull("llama").fetched == 0


def test_a_digest_needs_nobody(make_house: Make, models: Models, store: MemoryStore) -> None:
    house = make_house()
    digest = house.publish(models.first).digest
    house.pull("llama")
    store.objects.clear()
    assert house.pull(f"llama@{digest}").fetched == 0


@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_one_flipped_bit_is_refused_and_named(house: House, models: Models, store: MemoryStore, where: str) -> None:
    digest = house.publish(models.first).digest
    key = next(key for key in store.objects if key.endswith(".safetensors"))
    data = bytearray(store.objects[key])
    data[{"first": 0, "middle": len(data) // 2, "last": -1}[where]] ^= 1
    store.objects[key] = bytes(data)

    with pytest.raises(IntegrityError, match=key.rpartition("/")[2]):
        house.pull("llama")
    assert not house.cache.path(digest).exists()
    assert list((house.home / "cache" / "partial").iterdir()) == []


@pytest.mark.parametrize("damage", ["changed", "gone", "not canonical"])
def test_a_damaged_manifest_is_refused(house: House, models: Models, store: MemoryStore, damage: str) -> None:
    house.publish(models.first)
    key = next(key for key in store.objects if key.endswith(FILE_NAME))
    data = store.objects.pop(key)
    if damage == "changed":
        store.objects[key] = data.replace(b"merged", b"merger")
    elif damage == "not canonical":
        store.objects[key] = json.dumps(json.loads(data), indent=1).encode()
    with pytest.raises(IntegrityError, match="manifest"):
        house.pull("llama")


def test_a_missing_file_is_named(house: House, models: Models, store: MemoryStore) -> None:
    house.publish(models.first)
    del store.objects[next(key for key in store.objects if key.endswith("/config.json"))]
    with pytest.raises(IntegrityError, match=r"config\.json"):
        house.pull("llama")


def test_pull_to_a_folder(house: House, models: Models, tmp_path: Path) -> None:
    house.publish(models.first)
    target = tmp_path / "out" / "model"
    assert house.pull("llama", to=target).path == target
    assert contents(target)["config.json"] == (models.first / "config.json").read_bytes()
    assert [path.name for path in target.parent.iterdir()] == ["model"]
    assert house.pull("llama", to=target).fetched == 0


def test_pull_to_a_folder_of_something_else_is_refused(house: House, models: Models, tmp_path: Path) -> None:
    house.publish(models.first)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(Refused, match="not empty"):
        house.pull("llama", to=tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_after_a_reboot_a_snapshot_is_read_back_unless_it_is_durable(make_house: Make, models: Models) -> None:
    before = make_house(boot="boot-1")
    digest = before.publish(models.first).digest
    path = before.pull("llama").path
    weights = next(path.glob("*.safetensors"))
    weights.chmod(0o644)
    with weights.open("r+b") as file:
        file.truncate(100)  # what a power cut does to pages that were never written

    after = make_house(boot="boot-2")
    assert after.pull("llama").fetched > 0
    assert any("fetching it again" in note for note in after.notes.notes)
    integrity.check_directory(path, after.cache.manifest(digest), after.notes)

    after.cache.settle(digest)
    last = make_house(boot="boot-3")
    assert last.pull("llama").fetched == 0 and last.notes.notes == []


def test_a_partial_download_goes_on_after_a_reboot_with_what_is_whole(
    make_house: Make, models: Models, store: MemoryStore
) -> None:
    digest = make_house("publisher").publish(models.first).digest
    node = make_house("node", boot="boot-1")
    manifest = Manifest.decode(store.objects[f"models/llama/{digest.hex}/{FILE_NAME}"])
    partial = node.cache.begin(digest, manifest, name_of=str)
    download(
        [StoreSource(store, f"models/llama/{digest.hex}/")],
        manifest,
        partial.finished,
        partial,
        what="fetching",
        limits=Limits(),
        reporter=node.notes,
        clock=node.clock,
    )
    largest = max(manifest.files, key=lambda file: file.size)
    with partial.open(largest.path) as descriptor:
        os.pwrite(descriptor, b"lost", 0)
    partial.close()

    again = make_house("node", boot="boot-2").pull("llama")
    assert again.fetched == largest.chunks[0].length


def test_the_store_away_a_node_serves_what_it_has(
    make_house: Make, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = make_house()
    node.publish(models.first, alias="production")
    node.pull("llama@production")

    def away(*_: object) -> bytes:
        raise Unavailable("the store cannot be reached")

    for call in ("get", "list", "read"):
        monkeypatch.setattr(node.store, call, away)
    assert node.pull("llama@production").version.number == 1
    assert any("cannot be reached" in note for note in node.notes.notes)
    with pytest.raises(Unavailable):
        make_house("another").pull("llama@production")


# Aliases


def test_promote_roll_back_and_who_is_told_what(house: House, models: Models) -> None:
    house.publish(models.first)
    house.publish(models.second)
    one, two = Reference.parse("llama/1"), Reference.parse("llama/2")
    assert promote(house.registry, one, "production", expect=0, reason="first").moved
    assert not promote(house.registry, one, "production", expect=None, reason="").moved
    promote(house.registry, two, "production", expect=1, reason="better")
    with pytest.raises(Conflict):
        promote(house.registry, one, "production", expect=1, reason="late")
    with pytest.raises(Refused, match="@production"):
        archive(house.registry, two, reason="")
    move = roll_back(house.registry, "llama", "production", to=None, expect=None, reason="worse")
    assert (move.before, move.after) == (2, 1)
    with pytest.raises(Refused, match="no earlier"):
        roll_back(house.registry, "llama", "production", to=None, expect=None, reason="")
    assert house.pull("llama@production").version.number == 1
    assert [event.action for event in catalog.history(house.registry, "llama")][-1] == "alias.rolled_back"


def test_two_roll_backs_at_once_go_back_once(make_house: Make, models: Models) -> None:
    one, two = make_house("one"), make_house("two")
    one.publish(models.base)
    one.publish(models.first)
    one.publish(models.second)
    for version in ("llama/1", "llama/2", "llama/3"):
        promote(one.registry, Reference.parse(version), "production", expect=None, reason="")
    original = two.registry.change

    def beaten(name: str, decide):  # type: ignore[no-untyped-def]
        roll_back(one.registry, "llama", "production", to=None, expect=None, reason="first")
        return original(name, decide)

    two.registry.change = beaten  # type: ignore[method-assign]
    with pytest.raises(Conflict):
        roll_back(two.registry, "llama", "production", to=None, expect=None, reason="second")
    assert one.registry.read("llama").state.current("production") == 2


# Verify


def test_verify_holds_and_then_names_what_does_not(house: House, models: Models, store: MemoryStore) -> None:
    published = house.publish(models.first)
    house.publish(models.adapter, name="adapter")
    assert [
        each.name
        for each in verify(store, house.registry, None, every_byte=True, reporter=house.notes, clock=house.clock)
    ] == [
        "adapter",
        "llama",
    ]
    key = f"models/llama/{published.digest.hex}/config.json"
    good = store.objects[key]

    store.objects[key] = good[:-1] + b" "
    verify(store, house.registry, "llama", every_byte=False, reporter=house.notes, clock=house.clock)
    with pytest.raises(IntegrityError, match=r"config\.json"):
        verify(store, house.registry, "llama", every_byte=True, reporter=house.notes, clock=house.clock)
    store.objects[key] = good[:-1]
    with pytest.raises(IntegrityError, match=r"config\.json"):
        verify(store, house.registry, "llama", every_byte=False, reporter=house.notes, clock=house.clock)
    store.objects[key] = good
    record = next(key for key in store.objects if key.startswith("records/llama/"))
    store.objects[record] += b" "
    with pytest.raises(IntegrityError, match="lineage"):
        verify(store, house.registry, "llama", every_byte=False, reporter=house.notes, clock=house.clock)
