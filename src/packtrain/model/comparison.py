"""What changed between two versions: training, data, files, tokenizer, tensors. What is not known is said to be."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from packtrain.model.delta import Delta, FileChange, Stored, between
from packtrain.model.lineage import Dataset, Lineage
from packtrain.model.manifest import FileEntry, Manifest
from packtrain.model.tensors import ADDED, CHANGED, REMOVED, SAME, UNKNOWN
from packtrain.model.tokenizer import DOCUMENTS, chat_template, is_tokenizer_file, vocabulary_size
from packtrain.model.version import ModelVersion

CONFIGS = ("config.json", "generation_config.json", "adapter_config.json")


@dataclass(frozen=True, slots=True)
class Side:
    """Everything of one version that is compared. ``documents`` holds those of `CONFIGS` and of the tokenizer's
    `DOCUMENTS` that are there."""

    stored: Stored
    lineage: Lineage | None
    documents: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Change:
    """A value that differs. None stands for one that is unknown, or not there."""

    name: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class DatasetChange:
    """A dataset of either training. Its state is unknown where its files were not at hand to be digested."""

    name: str
    use: str  # training or evaluation
    state: str
    before: Dataset | None
    after: Dataset | None


@dataclass(frozen=True, slots=True)
class TokenizerChange:
    """``vocabulary`` counts tokens (None: unknown); ``chat_template`` has SHA-256 digests (None: there is none)."""

    files: tuple[FileChange, ...]
    vocabulary: Change
    chat_template: Change

    @property
    def same(self) -> bool:
        return not self.files


@dataclass(frozen=True, slots=True)
class Comparison:
    """Only what differs is listed, but of datasets: all. ``unknown`` names the facts that neither side knows; a
    parameter beyond the `FACTS` that one side lacks was not set there, if ``settings_known`` says so of it."""

    delta: Delta
    parameters: tuple[Change, ...]
    settings_known: tuple[bool, bool]
    metrics: tuple[Change, ...]
    unknown: tuple[str, ...]
    datasets: tuple[DatasetChange, ...]
    config: tuple[Change, ...]
    tokenizer: TokenizerChange

    @property
    def before(self) -> ModelVersion:
        return self.delta.before

    @property
    def after(self) -> ModelVersion:
        return self.delta.after

    @property
    def files(self) -> tuple[FileChange, ...]:
        return tuple(file for file in self.delta.files if file.state != SAME)

    @property
    def same_payload(self) -> bool:
        """Whether both hold the same exported bytes."""
        return self.before.payload == self.after.payload


def compare(before: Side, after: Side) -> Comparison:
    """Both versions are complete, so what a header or a manifest lacks is not there; a lineage may not know."""
    was, now = before.lineage or Lineage(), after.lineage or Lineage()
    facts_before, facts_after = dict(_facts(was)), dict(_facts(now))
    delta = between(before.stored, after.stored)
    return Comparison(
        delta=delta,
        parameters=_changes({**facts_before, **_settings(was)}, {**facts_after, **_settings(now)}),
        settings_known=(bool(was.hyperparameters), bool(now.hyperparameters)),
        metrics=_changes(was.metrics, now.metrics),
        unknown=tuple(_unknown(was, now)),
        datasets=(
            *_datasets("training", was.datasets, now.datasets),
            *_datasets("evaluation", was.eval_datasets, now.eval_datasets),
        ),
        config=_changes(_configs(before.documents), _configs(after.documents)),
        tokenizer=_tokenizer(delta.files, before.documents, after.documents),
    )


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Change, ...]:
    names = [*before, *(name for name in after if name not in before)]
    return tuple(
        Change(name, before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)
    )


def _facts(lineage: Lineage) -> Iterator[tuple[str, Any]]:
    """What every training has, by the names that people know it by; None is unknown."""
    base = lineage.base
    yield "base model", str(base) if base else None
    yield "base payload", base.payload if base else None
    yield "template", lineage.template
    yield "stage", lineage.stage
    yield "finetuning type", lineage.finetuning_type
    yield "steps", lineage.steps
    yield "epochs", lineage.epochs
    yield "git revision", lineage.git_revision


FACTS = tuple(name for name, _ in _facts(Lineage()))


def _settings(lineage: Lineage) -> dict[str, Any]:
    """What a training may have."""
    return {
        **({"adapters": [str(adapter) for adapter in lineage.adapters]} if lineage.adapters else {}),
        **({"uncommitted changes": lineage.git_dirty} if lineage.git_dirty is not None else {}),
        **{f"lora {name}": value for name, value in lineage.lora.items()},
        **lineage.hyperparameters,
        **{f"trained with {tool}": version for tool, version in lineage.tools.items()},
        **{f"exported with {tool}": version for tool, version in lineage.export_tools.items()},
    }


def _unknown(was: Lineage, now: Lineage) -> Iterator[str]:
    for (name, before), (_, after) in zip(_facts(was), _facts(now), strict=True):
        if before is None and after is None:
            yield name
    for name in ("datasets", "hyperparameters", "metrics"):
        if not getattr(was, name) and not getattr(now, name):
            yield name


def _datasets(use: str, before: tuple[Dataset, ...], after: tuple[Dataset, ...]) -> Iterator[DatasetChange]:
    was, now = {each.name: each for each in before}, {each.name: each for each in after}
    for name in [*was, *(name for name in now if name not in was)]:
        yield DatasetChange(name, use, _dataset_state(was.get(name), now.get(name)), was.get(name), now.get(name))


def _dataset_state(before: Dataset | None, after: Dataset | None) -> str:
    if before is None or after is None:
        return ADDED if before is None else REMOVED
    if before.info != after.info or (before.files and after.files and before.files != after.files):
        return CHANGED
    return SAME if before.files and after.files else UNKNOWN


def _configs(documents: Mapping[str, bytes]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in CONFIGS:
        if path in documents:
            try:
                found |= dict(_flat(path, json.loads(documents[path])))
            except (ValueError, RecursionError):
                found[path] = "not JSON"
    return found


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        separator = ": " if name in CONFIGS else "."
        for key, entry in value.items():
            yield from _flat(f"{name}{separator}{key}", entry)
    else:
        yield name, value


def _tokenizer(
    files: tuple[FileChange, ...], before: Mapping[str, bytes], after: Mapping[str, bytes]
) -> TokenizerChange:
    templates = [chat_template(documents) for documents in (before, after)]
    was, now = (hashlib.sha256(text.encode()).hexdigest() if text is not None else None for text in templates)
    return TokenizerChange(
        files=tuple(file for file in files if file.state != SAME and is_tokenizer_file(file.path)),
        vocabulary=Change("vocabulary", vocabulary_size(before), vocabulary_size(after)),
        chat_template=Change("chat template", was, now),
    )


def wanted_documents(manifest: Manifest) -> list[FileEntry]:
    """The files that a `Side` holds whole: small ones of JSON and text."""
    return [file for file in manifest.files if file.path in (*CONFIGS, *DOCUMENTS)]
