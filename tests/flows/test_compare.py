"""Two versions compared in a store: what is read for it, and what is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from packtrain.errors import IntegrityError, NotFound
from packtrain.flows.compare import compare
from packtrain.model.comparison import Comparison
from packtrain.model.manifest import Manifest
from packtrain.model.reference import Reference
from packtrain.model.tensors import CHANGED, SAME, UNKNOWN, kind_of, tally
from packtrain.testing.memory_store import MemoryStore
from packtrain.testing.tinymodels import write_base, write_merged
from tests.conftest import Models
from tests.flows.conftest import House


class Counting(MemoryStore):
    """Remembers which ranges were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.ranges: list[tuple[str, int, int]] = []

    def read(self, key: str, start: int, length: int, buffer: memoryview) -> Iterator[memoryview]:
        self.ranges.append((key, start, length))
        return super().read(key, start, length, buffer)


def compared(house: House, before: str, after: str, *, exact: bool = False) -> Comparison:
    return compare(house.store, house.registry, Reference.parse(before), Reference.parse(after), exact=exact)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two merges of one base whose matrices are large enough to have chunks of their own, in shards cut otherwise."""
    home = tmp_path_factory.mktemp("large")
    base = write_base(home / "base", seed=1, hidden=1024, heads=8, intermediate=1024, shards=2)
    return write_merged(home / "first", base, seed=2), write_merged(home / "second", base, seed=3)


def test_headers_alone_tell_which_tensors_changed(make_house, large: tuple[Path, Path]) -> None:
    store = Counting()
    house: House = make_house(store=store)
    for directory in large:
        house.publish(directory)
    store.ranges.clear()
    found = compared(house, "llama/1", "llama/2")
    kinds = tally(found.tensors, kind_of)
    assert (kinds["q_proj"].tensors[CHANGED], kinds["q_proj"].tensors[SAME]) == (2, 0)
    for kind in ("o_proj", "gate_proj", "up_proj", "down_proj"):
        assert (kinds[kind].tensors[SAME], kinds[kind].tensors[CHANGED]) == (2, 0)

    def first(version: int, path: str) -> int:
        resolved = house.registry.read("llama").state.version(version)
        manifest = Manifest.decode(store.get(f"{resolved.prefix}packtrain.json"))
        return next(file.chunks[0].length for file in manifest.files if file.path == path)

    assert len(store.ranges) == 4
    for key, start, length in store.ranges:
        version = 1 if str(house.registry.read("llama").state.version(1).digest.hex) in key else 2
        assert (start, length) == (0, first(version, key.rpartition("/")[2])), "only headers were read"


def test_exact_reads_what_the_digests_leave_open(house: House, models: Models) -> None:
    """The tiny models' tensors all share chunks; a merge changes q_proj and v_proj."""
    house.publish(models.first)
    house.publish(models.second)
    assert {kind_of(each.name) for each in compared(house, "llama/1", "llama/2").tensors if each.state == UNKNOWN} >= {
        "q_proj", "v_proj",
    }  # fmt: skip
    found = compared(house, "llama/1", "llama/2", exact=True)
    assert {kind_of(each.name) for each in found.tensors if each.state == CHANGED} == {"q_proj", "v_proj"}
    assert {each.state for each in found.tensors} == {SAME, CHANGED}


def test_versions_of_different_names_and_the_same_bytes(house: House, models: Models) -> None:
    house.publish(models.first)
    house.publish(models.first, "other")
    found = compared(house, "llama", "other")
    assert found.same_payload
    assert (found.files, found.config, found.tokenizer.same) == ((), (), True)
    assert {each.state for each in found.tensors} == {SAME}
    assert found.tokenizer.vocabulary.before == found.tokenizer.vocabulary.after == 512


def test_an_adapter_and_a_merged_model(house: House, models: Models) -> None:
    house.publish(models.first)
    house.publish(models.adapter, "tone")
    found = compared(house, "tone", "llama")
    assert {each.state for each in found.tensors} == {"added", "removed"}
    assert {kind_of(each.name) for each in found.tensors if each.state == "removed"} == {"q_proj", "v_proj"}
    assert any(change.name == "stage" or change.name == "finetuning type" for change in found.parameters)


def test_bytes_that_are_not_the_manifests_are_refused(house: House, models: Models, store: MemoryStore) -> None:
    house.publish(models.first)
    house.publish(models.second)
    prefix = house.registry.read("llama").state.version(2).prefix
    weights = {i.key: store.get(i.key) for i in store.list(prefix) if i.key.endswith(".safetensors")}

    def break_byte(place: int) -> None:
        for key, data in weights.items():
            broken = bytearray(data)
            broken[place] ^= 1
            store.upload(key, [bytes(broken)], len(broken))

    break_byte(12)  # in the header
    with pytest.raises(IntegrityError, match=r"safetensors of llama/2 is not what its manifest says"):
        compared(house, "llama/1", "llama/2")
    break_byte(-1)  # in the tensors
    compared(house, "llama/1", "llama/2")
    with pytest.raises(IntegrityError, match=r"safetensors of llama/2 is not what its manifest says"):
        compared(house, "llama/1", "llama/2", exact=True)
    for key, data in weights.items():
        store.upload(key, [data], len(data))
    config = f"{prefix}config.json"
    store.upload(config, [b"{}"], 2)
    with pytest.raises(IntegrityError, match=r"config\.json of llama/2 is not what"):
        compared(house, "llama/1", "llama/2")


def test_a_version_that_does_not_exist(house: House, models: Models) -> None:
    house.publish(models.first)
    with pytest.raises(NotFound):
        compared(house, "llama/1", "llama/2")
