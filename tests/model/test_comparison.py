"""What changed between two versions, decided from what is known of both."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from packtrain.model.comparison import FACTS, Change, Comparison, Side, compare
from packtrain.model.delta import Stored
from packtrain.model.digest import Digest
from packtrain.model.lineage import Dataset, Lineage, Parent
from packtrain.model.manifest import Manifest
from packtrain.model.version import ModelVersion
from tests.model.examples import LINEAGE, entry, hex_of

PAYLOAD = f"sha256:{hex_of('payload')}"


def side(
    lineage: Lineage | None, number: int = 1, *, files: tuple[str, ...] = ("config.json",), **documents: Any
) -> Side:
    manifest = Manifest.of("merged", [entry(path, [number]) for path in files])
    version = ModelVersion(
        "llama", number, manifest.digest, Digest(hex_of(str(number))), "merged", 1, "2026-01-02T03:04:05.678Z", "ada"
    )
    contents = {name.replace("__", "."): json.dumps(value).encode() for name, value in documents.items()}
    return Side(Stored(version, manifest, {}), lineage, contents)


def of(before: Lineage | None, after: Lineage | None) -> Comparison:
    return compare(side(before), side(after, 2))


def test_a_training_and_itself() -> None:
    same = of(LINEAGE, LINEAGE)
    assert (same.parameters, same.metrics, same.unknown) == ((), (), ())
    assert {each.name: each.state for each in same.datasets} == {
        "identity": "same", "über": "unknown", "identity-eval": "unknown",
    }  # fmt: skip
    assert same.settings_known == (True, True)


def test_what_differs_is_named_with_both_values() -> None:
    other = replace(
        LINEAGE,
        template="llama3",
        lora={**LINEAGE.lora, "r": 16},
        hyperparameters={"learning_rate": 2e-4, "bf16": False, "galore_rank": 4},
        metrics={"train_loss": 1.0, "eval_accuracy": 0.5},
        tools={**LINEAGE.tools, "transformers": "5.6.0"},
        git_dirty=True,
        adapters=(),
    )
    changed = of(LINEAGE, other)
    expected = [
        Change("template", "qwen", "llama3"),
        Change("lora r", 8, 16),
        Change("learning_rate", 1e-4, 2e-4),
        Change("per_device_train_batch_size", 1, None),
        Change("galore_rank", None, 4),
        Change("trained with transformers", "4.52.4", "5.6.0"),
        Change("uncommitted changes", False, True),
        Change("adapters", ["saves/sft", "saves/dpo"], None),
    ]
    assert sorted(changed.parameters, key=repr) == sorted(expected, key=repr)
    assert set(changed.metrics) == {
        Change("train_loss", 1.25, 1.0), Change("eval_loss", 1.5, None), Change("steps", 3, None),
    }  # fmt: skip


def test_a_base_of_the_same_name_and_other_bytes_differs() -> None:
    before = Lineage(base=Parent("base", payload=PAYLOAD))
    after = Lineage(base=Parent("base", payload=f"sha256:{hex_of('other')}"))
    [change] = of(before, after).parameters
    assert change.name == "base payload"


def test_nothing_known_is_said_to_be_unknown() -> None:
    nothing = of(None, None)
    assert set(nothing.unknown) == {*FACTS, "datasets", "hyperparameters", "metrics"}
    assert (nothing.parameters, nothing.datasets, nothing.settings_known) == ((), (), (False, False))
    one = of(None, LINEAGE)
    assert one.unknown == ()
    assert {change.before for change in one.parameters} == {None}
    assert set(FACTS) <= {change.name for change in one.parameters}
    assert one.settings_known == (False, True)


def test_datasets() -> None:
    was = (
        Dataset("same", {"a": "1"}), Dataset("content", {"a": "1"}),
        Dataset("read otherwise", {"a": "1"}, {"split": "x"}),
        Dataset("gone", {"a": "1"}), Dataset("no longer at hand", {"a": "1"}),
        Dataset("hub", {}, {"hf_hub_url": "a/b"}),
        Dataset("other hub", {}, {"hf_hub_url": "a/b"}),
    )  # fmt: skip
    now = (
        Dataset("same", {"a": "1"}), Dataset("content", {"a": "2"}),
        Dataset("read otherwise", {"a": "1"}, {"split": "y"}),
        Dataset("new", {"a": "1"}), Dataset("no longer at hand"),
        Dataset("hub", {}, {"hf_hub_url": "a/b"}),
        Dataset("other hub", {}, {"hf_hub_url": "c/d"}),
    )  # fmt: skip
    found = of(Lineage(datasets=was, eval_datasets=was[:1]), Lineage(datasets=now)).datasets
    assert {each.name: each.state for each in found if each.use == "training"} == {
        "same": "same", "content": "changed", "read otherwise": "changed", "gone": "removed", "new": "added",
        "no longer at hand": "unknown", "hub": "unknown", "other hub": "changed",
    }  # fmt: skip
    assert [(each.name, each.state) for each in found if each.use == "evaluation"] == [("same", "removed")]


def test_files_configuration_and_tokenizer() -> None:
    before = side(
        None, 1, files=("config.json", "tokenizer.json", "vocab.json"),
        config__json={"rope": {"theta": 1.0, "type": "default"}, "dtype": "bfloat16", "list": [1]},
        tokenizer__json={"model": {"vocab": {"a": 0}}}, tokenizer_config__json={"chat_template": "x"},
    )  # fmt: skip
    after = side(
        None, 2, files=("config.json", "tokenizer.json", "generation_config.json"),
        config__json={"rope": {"theta": 2.0, "type": "default"}, "dtype": "bfloat16", "list": [1]},
        generation_config__json={"top_p": 0.9}, tokenizer__json={"model": {"vocab": {"a": 0, "b": 1}}},
    )  # fmt: skip
    found = compare(before, after)
    assert found.config == (
        Change("config.json: rope.theta", 1.0, 2.0), Change("generation_config.json: top_p", None, 0.9),
    )  # fmt: skip
    # The digest of an example's file is that of its path: what both have counts as the same.
    assert [(each.path, each.state) for each in found.files] == [
        ("generation_config.json", "added"), ("vocab.json", "removed"),
    ]  # fmt: skip
    assert [each.path for each in found.tokenizer.files] == ["vocab.json"]
    assert not found.tokenizer.same
    assert (found.tokenizer.vocabulary.before, found.tokenizer.vocabulary.after) == (1, 2)
    assert found.tokenizer.chat_template == Change("chat template", hex_of("x"), None)
    assert not found.same_payload
    assert compare(before, before).same_payload


def test_a_configuration_that_is_not_json() -> None:
    broken = replace(side(None), documents={"config.json": b"{"})
    assert compare(broken, side(None, 2, config__json={})).config == (
        Change("config.json", "not JSON", {}),
    )  # fmt: skip
