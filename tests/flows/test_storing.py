"""What is in the store before a publish is read before a version names it, and sent again if it is not right."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from packtrain.flows.promote import archive
from packtrain.flows.sources import LocalFile
from packtrain.flows.verify import verify
from packtrain.model.manifest import FILE_NAME
from packtrain.model.reference import Reference
from packtrain.storage.directory import DirectoryStore
from packtrain.testing.faults import Fault, FaultyStore, Killed
from packtrain.testing.memory_store import MemoryStore
from tests.conftest import Models
from tests.flows.conftest import House

Make = Callable[..., House]


def flip(store: MemoryStore, key: str) -> None:
    """One bit, so that the size stays."""
    data = bytearray(store.objects[key])
    data[len(data) // 2] ^= 1
    store.objects[key] = bytes(data)


def weights(store: MemoryStore) -> str:
    return next(key for key in store.objects if key.endswith(".safetensors"))


def require_right(house: House) -> None:
    verify(house.store, house.registry, "llama", every_byte=True, reporter=house.notes, clock=house.clock)


def test_force_never_names_damaged_bytes(house: House, models: Models, store: MemoryStore) -> None:
    house.publish(models.first)
    flip(store, weights(store))
    forced = house.publish(models.first, force=True)
    assert forced.created and forced.uploaded == len(store.objects[weights(store)])
    assert any("damaged in the store" in note and ".safetensors" in note for note in house.notes.notes)
    require_right(house)


def test_force_mends_a_manifest_that_is_damaged(house: House, models: Models, store: MemoryStore) -> None:
    house.publish(models.first)
    flip(store, next(key for key in store.objects if key.endswith(FILE_NAME)))
    house.publish(models.first, force=True)
    require_right(house)


def test_bytes_published_again_after_an_archive_are_read(house: House, models: Models, store: MemoryStore) -> None:
    house.publish(models.first)
    archive(house.registry, Reference.parse("llama/1"), reason="")
    flip(store, weights(store))
    house.publish(models.first)
    require_right(house)


def test_what_an_interrupted_publish_left_is_read(make_house: Make, models: Models, store: MemoryStore) -> None:
    counting = make_house("count", store=FaultyStore(MemoryStore()))
    counting.publish(models.first)
    last = counting.store.calls - 8  # type: ignore[attr-defined]
    with pytest.raises(Killed):
        make_house("first", store=FaultyStore(store, {last: Fault.KILLED})).publish(models.first)
    assert make_house("reader").registry.names() == []
    flip(store, weights(store))
    again = make_house("second")
    again.publish(models.first)
    require_right(again)


def test_a_publish_that_nothing_interrupted_reads_nothing_back(make_house: Make, models: Models) -> None:
    class Deaf(MemoryStore):
        def read(self, *_: object) -> None:  # type: ignore[override]
            raise AssertionError("it was read")

    assert make_house(store=Deaf()).publish(models.first).created


def test_a_directory_copies_without_reading_through_us_and_shares_nothing(
    make_house: Make, models: Models, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copied, not linked: the export may be written again, the store not."""
    copied: list[str] = []
    original = DirectoryStore.copy_from

    def copy_from(store: DirectoryStore, url: str, *rest) -> bool:  # type: ignore[no-untyped-def]
        copied.append(url)
        return original(store, url, *rest)

    def read(file: LocalFile, *rest):  # type: ignore[no-untyped-def]
        assert not copied, "it was read once more"
        return once(file, *rest)

    once = LocalFile.read
    monkeypatch.setattr(DirectoryStore, "copy_from", copy_from)
    monkeypatch.setattr(LocalFile, "read", read)
    house = make_house(store=DirectoryStore(tmp_path / "store"))
    house.publish(models.first)
    assert any(url.endswith(".safetensors") for url in copied)
    inodes = {path.stat().st_ino for path in (tmp_path / "store").rglob("*") if path.is_file()}
    assert not inodes & {path.stat().st_ino for path in models.first.rglob("*")}
    require_right(house)


def test_in_a_directory_a_file_of_an_earlier_version_is_linked(make_house: Make, models: Models, tmp_path) -> None:  # type: ignore[no-untyped-def]
    house = make_house(store=DirectoryStore(tmp_path / "store"))
    first, second = house.publish(models.first), house.publish(models.second)
    assert first.copied == 0 and second.copied > 0
    assert second.uploaded + second.copied == second.size
    folders = [tmp_path / "store" / "models" / "llama" / version.digest.hex for version in (first, second)]
    shared = {
        path.name for path in folders[0].rglob("*.json") if path.samefile(folders[1] / path.relative_to(folders[0]))
    }
    assert "tokenizer.json" in shared and FILE_NAME not in shared
    require_right(house)


def test_a_damaged_file_of_an_earlier_version_is_not_linked(make_house: Make, models: Models, tmp_path) -> None:  # type: ignore[no-untyped-def]
    house = make_house(store=DirectoryStore(tmp_path / "store"))
    first = house.publish(models.first)
    damaged = tmp_path / "store" / "models" / "llama" / first.digest.hex / "tokenizer.json"
    damaged.chmod(0o644)
    damaged.write_bytes(bytes(damaged.stat().st_size))
    second = house.publish(models.second)
    whole = tmp_path / "store" / "models" / "llama" / second.digest.hex / "tokenizer.json"
    assert whole.read_bytes() == (models.second / "tokenizer.json").read_bytes()
