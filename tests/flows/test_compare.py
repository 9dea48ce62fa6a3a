"""Two versions compared in a store."""

from __future__ import annotations

import pytest

from packtrain.errors import IntegrityError, NotFound
from packtrain.flows.compare import compare
from packtrain.model.comparison import Comparison
from packtrain.model.reference import Reference
from packtrain.model.tensors import SAME
from packtrain.testing.memory_store import MemoryStore
from tests.conftest import Models
from tests.flows.conftest import House


def compared(house: House, before: str, after: str) -> Comparison:
    return compare(house.store, house.registry, Reference.parse(before), Reference.parse(after))


def test_versions_of_different_names_and_the_same_bytes(house: House, models: Models) -> None:
    house.publish(models.first)
    house.publish(models.first, "other")
    found = compared(house, "llama", "other")
    assert found.same_payload
    assert (found.files, found.config, found.tokenizer.same) == ((), (), True)
    assert {each.state for each in found.delta.tensors} == {SAME}
    assert found.tokenizer.vocabulary.before == found.tokenizer.vocabulary.after == 512


def test_an_adapter_and_a_merged_model(house: House, models: Models) -> None:
    house.publish(models.first)
    house.publish(models.adapter, "tone")
    found = compared(house, "tone", "llama")
    assert any(change.name == "stage" or change.name == "finetuning type" for change in found.parameters)
    assert {each.path: each.state for each in found.files}["adapter_config.json"] == "removed"


def test_documents_that_are_not_the_manifests_are_refused(house: House, models: Models, store: MemoryStore) -> None:
    house.publish(models.first)
    house.publish(models.second)
    config = f"{house.registry.read('llama').state.version(2).prefix}config.json"
    store.upload(config, [b"{}"], 2)
    with pytest.raises(IntegrityError, match=r"config\.json of llama/2 is not what"):
        compared(house, "llama/1", "llama/2")


def test_a_version_that_does_not_exist(house: House, models: Models) -> None:
    house.publish(models.first)
    with pytest.raises(NotFound):
        compared(house, "llama/1", "llama/2")
