"""Damage in the store is mended from the original, and the version stays what it is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from packtrain.errors import IntegrityError, PacktrainError, Refused
from packtrain.flows.promote import archive
from packtrain.flows.publish import Request
from packtrain.flows.repair import Repaired, repair
from packtrain.flows.verify import verify
from packtrain.model.manifest import FILE_NAME
from packtrain.model.reference import Reference
from packtrain.model.version import how_to_mend
from packtrain.testing.faults import Fault, FaultyStore, Killed
from packtrain.testing.memory_store import MemoryStore
from tests.conftest import Models, first_fast
from tests.flows.conftest import House, contents

Make = Callable[..., House]


def mend(house: House, directory: Path, name: str = "llama", **options: object) -> list[Repaired]:
    request = Request(directory=directory, name=name, **options)  # type: ignore[arg-type]
    return repair(house.store, house.registry, request, reporter=house.notes)


def require_right(house: House, name: str = "llama") -> None:
    verify(house.store, house.registry, name, every_byte=True, reporter=house.notes, clock=house.clock)


def flip(store: MemoryStore, key: str) -> None:
    data = bytearray(store.objects[key])
    data[len(data) // 2] ^= 1
    store.objects[key] = bytes(data)


def exported(store: MemoryStore, name: str) -> list[str]:
    return sorted(key for key in store.objects if key.startswith(f"models/{name}/"))


def test_every_object_of_a_version_can_be_mended(house: House, models: Models, store: MemoryStore) -> None:
    house.publish(models.first)
    before = dict(store.objects)
    for key in exported(store, "llama"):
        for damage in ("flipped", "cut", "gone"):
            if damage == "flipped" and before[key]:
                flip(store, key)
            elif damage == "cut":
                store.objects[key] = before[key][:-1]
            else:
                del store.objects[key]
            with pytest.raises(PacktrainError):
                require_right(house)
            (repaired,) = mend(house, models.first)
            path = key.split("/", 3)[3]
            assert repaired.mended == (path,)
            assert store.objects == before
    require_right(house)


def test_nothing_is_written_where_nothing_is_damaged(house: House, models: Models, store: MemoryStore) -> None:
    house.publish(models.first)
    before = dict(store.objects)
    (repaired,) = mend(house, models.first)
    assert repaired.mended == () and repaired.lineage and repaired.checked == house.publish(models.first).size
    assert store.objects == before


def test_much_damage_at_once_with_a_pull_before_and_after(house: House, models: Models, store: MemoryStore) -> None:
    house.publish(models.first)
    for key in exported(store, "llama"):
        flip(store, key)
    with pytest.raises(IntegrityError) as caught:
        house.pull("llama")
    assert caught.value.hint == how_to_mend("llama")
    (repaired,) = mend(house, models.first)
    assert len(repaired.mended) == len(exported(store, "llama"))
    path = house.pull("llama").path
    for name, data in contents(models.first).items():
        assert (path / name).read_bytes() == data


def test_another_directory_is_refused(house: House, models: Models, store: MemoryStore) -> None:
    house.publish(models.first)
    flip(store, next(key for key in store.objects if key.endswith(".safetensors")))
    before = dict(store.objects)
    with pytest.raises(Refused, match="no version of llama holds"):
        mend(house, models.second)
    with pytest.raises(Refused, match="no version of other holds"):
        mend(house, models.first, name="other")
    assert store.objects == before


def test_an_archived_version_is_left(house: House, models: Models) -> None:
    house.publish(models.first)
    archive(house.registry, Reference.parse("llama/1"), reason="")
    with pytest.raises(Refused):
        mend(house, models.first)


def test_the_manifest_of_an_adapter_needs_its_base(house: House, models: Models, store: MemoryStore) -> None:
    house.publish(models.base, name="base")
    house.publish(models.adapter, name="adapter", base="base/1")
    flip(store, next(key for key in exported(store, "adapter") if key.endswith(FILE_NAME)))
    with pytest.raises(IntegrityError, match="manifest") as caught:
        mend(house, models.adapter, "adapter", base="hf:another/base")
    assert "--base" in caught.value.hint
    (repaired,) = mend(house, models.adapter, "adapter", base="base/1")
    assert repaired.mended == (FILE_NAME,)
    require_right(house, "adapter")


def test_two_versions_of_the_same_bytes_are_both_mended(house: House, models: Models, store: MemoryStore) -> None:
    house.publish(models.adapter, base="hf:org/one")
    house.publish(models.adapter, base="hf:org/two", force=True)
    for key in exported(store, "llama"):
        if key.endswith(".safetensors"):
            flip(store, key)
    assert [each.mended for each in mend(house, models.adapter)] == [("adapter_model.safetensors",)] * 2
    require_right(house)


def test_the_lineage_record_is_made_again_where_it_can_be(
    house: House, models: Models, store: MemoryStore, tmp_path: Path
) -> None:
    config = tmp_path / "sft.yaml"
    config.write_text("model_name_or_path: org/base\nlearning_rate: 1e-4\n")
    house.publish(models.first, training_config=config)
    record = next(key for key in store.objects if key.startswith("records/"))
    flip(store, record)
    (repaired,) = mend(house, models.first)
    assert not repaired.lineage and repaired.mended == ()
    (repaired,) = mend(house, models.first, training_config=config)
    assert repaired.lineage and repaired.mended == ("lineage record",)
    require_right(house)


def test_what_an_older_release_generated_is_not_made_up(
    house: House, models: Models, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.publish(models.first)
    monkeypatch.setattr("packtrain.training.generated.MLMODEL", "another\n")
    weights = next(key for key in store.objects if key.endswith(".safetensors"))
    flip(store, weights)
    (repaired,) = mend(house, models.first)
    assert len(repaired.mended) == 1
    flip(store, next(key for key in store.objects if key.endswith("MLmodel")))
    with pytest.raises(IntegrityError, match="MLmodel"):
        mend(house, models.first)


@pytest.mark.parametrize("fault", first_fast(Fault.KILLED, Fault.UNAVAILABLE, Fault.LOST_ANSWER))
def test_a_repair_interrupted_at_every_call_to_the_store(make_house: Make, models: Models, fault: Fault) -> None:
    whole = MemoryStore()
    make_house("publisher", store=whole).publish(models.first)
    damaged = dict(whole.objects)
    for key in exported(whole, "llama")[::3]:
        data = bytearray(damaged[key])
        data[0] ^= 1
        damaged[key] = bytes(data)

    def broken() -> MemoryStore:
        store = MemoryStore()
        store.objects = dict(damaged)
        return store

    counting = FaultyStore(broken())
    mend(make_house("count", store=counting), models.first)
    for k in range(counting.calls):
        store = broken()
        with suppress(Killed, PacktrainError):
            mend(make_house(f"faulty-{k}", store=FaultyStore(store, {k: fault})), models.first)
        mend(make_house(f"again-{k}", store=store), models.first)
        assert store.objects == whole.objects


def test_a_directory_that_changes_meanwhile_mends_nothing_wrongly(
    house: House, models: Models, store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.publish(models.first)
    moving = Path(shutil.copytree(models.first, tmp_path / "moving"))
    key = next(key for key in store.objects if key.endswith(".safetensors"))
    flip(store, key)
    damaged = store.objects[key]
    original = house.registry.read

    def read(name: str):  # type: ignore[no-untyped-def]
        for path in moving.glob("*.safetensors"):
            path.write_bytes(bytes(path.stat().st_size))
        return original(name)

    monkeypatch.setattr(house.registry, "read", read)
    with pytest.raises(Refused, match="changed"):
        mend(house, moving)
    assert store.objects[key] == damaged
