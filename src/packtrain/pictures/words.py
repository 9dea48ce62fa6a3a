"""What stands in the boxes of a picture: a title and lines, each as short as it can be said."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from packtrain.model.amount import size
from packtrain.model.ancestry import Generation, Promotion
from packtrain.model.lineage import Dataset, Lineage, Parent
from packtrain.model.version import ModelVersion

UNKNOWN = "unknown"
_SHOWN = ("learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "lr_scheduler_type", "seed")


@dataclass(frozen=True, slots=True)
class Label:
    title: str
    lines: tuple[str, ...]


def parent(parent: Parent, what: str) -> Label:
    if parent.digest:
        return Label(f"{what}: {parent}", (short(parent.digest),))
    if parent.payload:
        return Label(f"{what}: {parent}", ("not published", f"payload {short(parent.payload)}"))
    return Label(f"{what}: {parent}", ("digest unknown",))


def dataset(dataset: Dataset, what: str) -> Label:
    if len(dataset.files) == 1:
        [(name, digest)] = dataset.files.items()
        return Label(f"{what}: {dataset.name}", (name, f"sha256:{digest[:12]}"))
    known = f"{len(dataset.files)} files, digests known" if dataset.files else "digest unknown"
    return Label(f"{what}: {dataset.name}", (known,))


def training(lineage: Lineage) -> Label:
    """Stage and type as the title, then LoRA, the main hyperparameters, length, result, tools and revision."""
    kind = " ".join(filter(None, (lineage.stage, lineage.finetuning_type)))
    return Label(f"training: {kind or UNKNOWN}", tuple(_training(lineage)))


def _training(lineage: Lineage) -> Iterator[str]:
    if lineage.lora:
        yield "lora " + _pairs(lineage.lora)
    main = {key: lineage.hyperparameters[key] for key in _SHOWN if key in lineage.hyperparameters}
    yield _pairs(main) or "hyperparameters unknown"
    epoch = "epoch" if lineage.epochs == 1 else "epochs"
    epochs = f" in {number(lineage.epochs)} {epoch}" if lineage.epochs is not None else ""
    steps = f"{lineage.steps} steps{epochs}" if lineage.steps is not None else "steps unknown"
    yield f"{steps}, template {lineage.template or UNKNOWN}"
    metrics = {
        key: lineage.metrics[key] for key in ("train_loss", "eval_loss", "eval_accuracy") if key in lineage.metrics
    }
    yield _pairs({key: number(value) for key, value in metrics.items()}) or "metrics unknown"
    yield _pairs({name: lineage.tools.get(name, UNKNOWN) for name in ("transformers", "torch", "peft")})
    dirty = {True: ", uncommitted changes", False: "", None: ""}[lineage.git_dirty]
    yield f"git {lineage.git_revision[:12]}{dirty}" if lineage.git_revision else "git revision unknown"


def version(version: ModelVersion) -> Label:
    return Label(str(version), (f"{version.kind}, {size(version.size)}", short(str(version.digest))))


def promotion(promotion: Promotion) -> Label:
    how = "rolled back" if promotion.back else "promoted"
    reason = (f"“{promotion.reason}”",) if promotion.reason else ()
    return Label(f"@{promotion.alias}", (f"{how} by {promotion.actor}, {promotion.time[:10]}", *reason))


def inputs(generation: Generation, *, oldest: bool) -> list[Label]:
    """What went into a version: its base, unless that is a generation itself, and its datasets."""
    lineage = generation.lineage
    if lineage is None or not lineage.known:
        return []
    base = parent(lineage.base, "base") if lineage.base else Label("base", (UNKNOWN,))
    datasets = [dataset(each, "dataset") for each in lineage.datasets] or [Label("datasets", (UNKNOWN,))]
    return [*([base] if oldest else []), *datasets, *(dataset(each, "evaluation") for each in lineage.eval_datasets)]


def short(digest: str) -> str:
    """Twelve digits of ``sha256:<hex>``, for people."""
    return digest[:19]


def number(value: float) -> str:
    return f"{value:.4g}"


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {'+'.join(map(str, v)) if isinstance(v, list) else v}" for key, v in values.items())
