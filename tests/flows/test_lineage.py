"""Where a version came from: identified when it is published, and followed afterwards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from packtrain.errors import NotFound
from packtrain.flows.lineage import trace
from packtrain.flows.promote import promote, roll_back
from packtrain.model.ancestry import Ancestry
from packtrain.model.lineage import Lineage, Parent
from packtrain.model.reference import Reference
from packtrain.testing.tinymodels import write_adapter, write_merge_yaml, write_merged
from tests.conftest import Models
from tests.flows.conftest import House


def ancestry(house: House, reference: str) -> Ancestry:
    return trace(house.store, house.registry, Reference.parse(reference))


def names(house: House, reference: str) -> list[str]:
    return [str(generation.version) for generation in ancestry(house, reference)]


def lineage_of(house: House, reference: str) -> Lineage:
    lineage = ancestry(house, reference)[0].lineage
    assert lineage is not None
    return lineage


def merge_yaml(path: Path, models: Models, base: Path | str, adapter: Path | str) -> Path:
    return write_merge_yaml(path, base=base, adapter=adapter, output=models.first)


def test_what_a_merge_was_made_from_is_identified(house: House, models: Models, tmp_path: Path) -> None:
    base = house.publish(models.base, "base").version
    tone = house.publish(models.adapter, "tone").version
    assert base and tone
    config = merge_yaml(tmp_path / "merge.yaml", models, models.base, models.adapter)
    house.publish(models.first, export_config=config)
    lineage = lineage_of(house, "llama")
    assert lineage.base == Parent(
        str(models.base), version="base/1", digest=str(base.digest), payload=str(base.payload)
    )
    assert lineage.adapters == (
        Parent(str(models.adapter), version="tone/1", digest=str(tone.digest), payload=str(tone.payload)),
    )
    assert names(house, "llama") == ["llama/1", "base/1"]
    assert names(house, "tone") == ["tone/1", "base/1"]


def test_a_base_that_nobody_published_has_its_payload_and_is_found_once_somebody_does(
    house: House, models: Models, tmp_path: Path
) -> None:
    config = merge_yaml(tmp_path / "merge.yaml", models, models.base, "gone")
    house.publish(models.first, export_config=config)
    base = lineage_of(house, "llama").base
    assert base is not None
    assert (base.version, base.digest) == (None, None)
    assert lineage_of(house, "llama").adapters == (Parent("gone"),)
    assert names(house, "llama") == ["llama/1"]

    published = house.publish(models.base, "late").version
    assert published is not None
    assert base.payload == str(published.payload)
    assert names(house, "llama") == ["llama/1", "late/1"]


def test_a_pulled_base_is_known_by_its_manifest_and_a_changed_one_is_not(
    house: House, models: Models, tmp_path: Path
) -> None:
    house.publish(models.base, "base")
    pulled = house.pull("base", to=tmp_path / "pulled").path
    config = merge_yaml(tmp_path / "merge.yaml", models, pulled, "gone")
    house.publish(models.first, export_config=config)
    assert f"the base model in {pulled} is base/1, by its packtrain.json" in house.notes.notes
    assert names(house, "llama") == ["llama/1", "base/1"]

    changed = tmp_path / "changed"
    shutil.copytree(pulled, changed, copy_function=shutil.copyfile)
    with (changed / "config.json").open("a") as file:
        file.write(" ")
    config = merge_yaml(tmp_path / "again.yaml", models, changed, "gone")
    house.publish(models.second, "other", export_config=config)
    base = lineage_of(house, "other").base
    assert base is not None and base.payload and base.version is None


def test_a_base_that_cannot_be_read_stays_unknown_and_stops_nothing(
    house: House, models: Models, tmp_path: Path
) -> None:
    bad = shutil.copytree(models.base, tmp_path / "bad")
    (bad / "link.json").symlink_to("/etc/hostname")
    config = merge_yaml(tmp_path / "merge.yaml", models, bad, "gone")
    assert house.publish(models.first, export_config=config).created
    assert lineage_of(house, "llama").base == Parent(str(bad))
    assert any("will not say which bytes the base model" in note for note in house.notes.notes)


def test_a_repository_is_named_with_its_revision(house: House, models: Models) -> None:
    house.publish(models.first, base="hf:org/name@c291d6f")
    assert lineage_of(house, "llama").base == Parent("org/name", revision="c291d6f")
    assert names(house, "llama") == ["llama/1"]


def test_a_base_is_followed_to_its_own_base(house: House, models: Models, tmp_path: Path) -> None:
    """base/1 -> llama/1 -> tone/1, an adapter that was trained on the merged model."""
    house.publish(models.base, "base")
    house.publish(models.first, base="base/1")
    adapter = write_adapter(tmp_path / "adapter", models.first, seed=9)
    house.publish(adapter, "tone")
    assert names(house, "tone") == ["tone/1", "llama/1", "base/1"]


def test_a_line_that_closes_on_itself_ends(house: House, models: Models) -> None:
    """The same bytes under another name, said to be trained on themselves."""
    house.publish(models.first, "a", base=str(models.first))
    assert names(house, "a") == ["a/1"]


def test_who_promoted_a_version(make_house: Callable[..., House], models: Models) -> None:
    house = make_house()
    house.publish(models.first)
    house.publish(models.second)
    for number, reason in ((1, "first"), (2, "second")):
        promote(house.registry, Reference("llama", version=number), "production", expect=None, reason=reason)
    promote(house.registry, Reference("llama", version=2), "staging", expect=None, reason="")
    assert [(p.alias, p.reason, p.back) for p in ancestry(house, "llama/2")[0].promotions] == [
        ("production", "second", False), ("staging", "", False),
    ]  # fmt: skip
    roll_back(house.registry, "llama", "production", to=None, expect=None, reason="worse")
    [back] = ancestry(house, "llama@production")[0].promotions
    assert (back.alias, back.reason, back.back, back.actor) == ("production", "worse", True, "tester")
    with pytest.raises(NotFound):
        ancestry(house, "llama/3")


def test_contradictions_are_told_at_publish(house: House, models: Models, tmp_path: Path) -> None:
    config = tmp_path / "sft.yaml"
    config.write_text(json.dumps({"lora_rank": 64, "output_dir": str(models.adapter)}))
    house.publish(write_merged(tmp_path / "merged", models.base, seed=7), training_config=config)
    assert any("lora_rank: the configuration says 64" in note for note in house.notes.notes)
    assert lineage_of(house, "llama").contradictions
