"""Where a version came from. What is not known is None or empty, and is shown as unknown.

A lineage record is JSON (UTF-8, sorted keys, finite numbers); the SHA-256 of its bytes is its name in the store,
``records/<model>/<sha256>.json``, and an ``attached`` event names it. Unlike manifests and events, records hold
fractions (losses), so their bytes are hashed as they are stored and never written anew.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from packtrain.errors import IntegrityError
from packtrain.model.digest import Digest

SCHEMA = "packtrain.lineage/1"


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset by its LLaMA-Factory name; ``files`` maps each file at hand to its SHA-256 (hex)."""

    name: str
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lineage:
    """Everything that training left behind about how a version was made."""

    base_model: str | None = None  # as the training named it: a path or a Hub repository
    base_digest: str | None = None  # sha256:<hex> of its manifest, where it is published
    base_payload: str | None = None  # sha256:<hex> of its payload, where its files are at hand
    adapter: str | None = None  # the adapter's directory that was merged
    datasets: tuple[Dataset, ...] = ()
    template: str | None = None
    stage: str | None = None  # sft, dpo, ...
    finetuning_type: str | None = None  # lora, full, freeze, ...
    lora: dict[str, Any] = field(default_factory=dict)  # rank, alpha, targets, ...
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)  # train_loss, eval_loss, eval_accuracy, ...
    loss_curve: tuple[tuple[int, float], ...] = ()  # (step, training loss)
    steps: int | None = None
    epochs: float | None = None
    tools: dict[str, str] = field(default_factory=dict)  # llamafactory, transformers, torch, peft -> version
    git_revision: str | None = None  # of the training repository
    training_config: dict[str, Any] = field(default_factory=dict)  # the training YAML, as it was read
    export_config: dict[str, Any] = field(default_factory=dict)  # the merge YAML

    @property
    def loss(self) -> float | None:
        """The one loss to show in a table: evaluation if there was one, else training."""
        return self.metrics.get("eval_loss", self.metrics.get("train_loss"))

    @property
    def accuracy(self) -> float | None:
        return self.metrics.get("eval_accuracy")

    def encode(self) -> bytes:
        """The bytes of the record. Raises ValueError for what JSON cannot hold (NaN)."""
        value = {"schema": SCHEMA, **asdict(self)}
        text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=1)
        return text.encode("utf-8") + b"\n"

    @classmethod
    def decode(cls, data: bytes, *, expect: Digest) -> Lineage:
        """Reads a record whose bytes must have the digest ``expect``. Raises IntegrityError."""
        if Digest.of(data) != expect:
            raise IntegrityError(f"the lineage record {expect} does not hash to its name")
        try:
            value = json.loads(data)
            if value.get("schema") == SCHEMA:
                return cls._from_json(value)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise IntegrityError(f"the lineage record {expect} is not valid: {error}") from error
        raise IntegrityError(
            f"the lineage record {expect} has a schema this Packtrain does not read",
            hint="It was written by another version of Packtrain: upgrade this one.",
        )

    @classmethod
    def _from_json(cls, value: dict[str, Any]) -> Lineage:
        known = {f.name for f in fields(cls)}
        value = {key: entry for key, entry in value.items() if key in known}
        value["datasets"] = tuple(Dataset(**entry) for entry in value.get("datasets", ()))
        value["loss_curve"] = tuple((step, loss) for step, loss in value.get("loss_curve", ()))
        for key, number in value.get("metrics", {}).items():
            if type(number) not in (int, float):
                raise ValueError(f"the metric {key} is not a number")
        return cls(**value)


def record_key(name: str, digest: Digest) -> str:
    """Where a record of a registered model is in the store."""
    return f"records/{name}/{digest.hex}.json"
