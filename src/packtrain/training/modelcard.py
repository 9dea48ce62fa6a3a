"""The model card that transformers' Trainer writes beside what it trained (README.md), read for its facts.

Source of its form: transformers `modelcard.py`, `TrainingSummary.to_model_card` and
`extract_hyperparameters_from_trainer`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

_TOOLS = {"PEFT": "peft", "Transformers": "transformers", "Pytorch": "torch", "Datasets": "datasets",
          "Tokenizers": "tokenizers"}  # fmt: skip
_TOOL_LINE = re.compile(rf"^- ({'|'.join(_TOOLS)}):? (\d[\w.+-]*)\s*$", re.MULTILINE)
_SENTENCE = re.compile(r"^This model is a fine-tuned version of .* on (the .+) datasets?\.$", re.MULTILINE)
_PARAMETERS = re.compile(r"^The following hyperparameters were used during training:\n((?:- .*\n?)+)", re.MULTILINE)

# What the card calls otherwise than a LLaMA-Factory configuration.
_NAMES = {
    "train_batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size",
    "lr_scheduler_warmup_steps": "warmup_steps",
    "lr_scheduler_warmup_ratio": "warmup_ratio",
    "num_epochs": "num_train_epochs",
    "training_steps": "max_steps",
}


@dataclass(frozen=True, slots=True)
class Card:
    """``hyperparameters`` by LLaMA-Factory's names: what the training really used, whatever its YAML says."""

    base: str | None = None
    datasets: tuple[str, ...] = ()
    tools: dict[str, str] = field(default_factory=dict)
    hyperparameters: dict[str, Any] = field(default_factory=dict)


def read_card(text: str) -> Card:
    """What a card says. One that is not the Trainer's says nothing, or only its base."""
    base = re.search(r"^base_model: *[\"']?([^\s\"'\[\]]+)", text, re.MULTILINE)
    datasets = _SENTENCE.search(text)
    return Card(
        base=base[1] if base else None,
        datasets=tuple(re.split(r",? and the |, the ", datasets[1].removeprefix("the "))) if datasets else (),
        tools={_TOOLS[name]: version for name, version in _TOOL_LINE.findall(text)},
        hyperparameters=_hyperparameters(text),
    )


def _hyperparameters(text: str) -> dict[str, Any]:
    found = _PARAMETERS.search(text)
    lines = found[1].splitlines() if found else []
    pairs = (line.removeprefix("- ").split(": ", 1) for line in lines if ": " in line)
    return {_NAMES.get(name, name): _value(value) for name, value in pairs}


def _value(text: str) -> Any:
    """A number where it is one: a text otherwise, as for the optimizer."""
    try:
        value = json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, int | float) else text
