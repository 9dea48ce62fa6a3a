"""What adapter_config.json says of a LoRA, and which module gets what: PEFT's rules, on values of any shape.

Modules are targeted as ``check_target_module_exists`` of PEFT does, ranks found as its ``get_pattern_key`` does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from packtrain.training.preflight.architecture import canonical

_LAYER = re.compile(r"\.(?:layers|h|blocks|block)\.(\d+)\.")
_REPEATED_GROUP = re.compile(r"\)[*+{]")


@dataclass(frozen=True, slots=True)
class Lora:
    """``targets`` is a regular expression, or the ends of modules' names. ``layers``: only these, if any are named.
    ``fused``: some of it is on parameters that are no modules, whose tensors have names and ranks of their own."""

    rank: int
    ranks: Mapping[str, Any]  # by pattern
    targets: str | tuple[str, ...]
    excludes: bool
    layers: frozenset[int]
    saved: tuple[str, ...]
    dora: bool
    biased: bool
    transposed: bool
    tokens: bool
    fused: bool

    @classmethod
    def parse(cls, config: Mapping[str, Any]) -> Lora:
        """Of a configuration with a rank and targets. What is not of the right type counts as left out."""
        targets, layers = config["target_modules"], config.get("layers_to_transform")
        ranks = config.get("rank_pattern")
        return cls(
            rank=config["r"],
            ranks=ranks if isinstance(ranks, dict) else {},
            targets=targets if isinstance(targets, str) else tuple(targets),
            excludes=bool(config.get("exclude_modules")),
            layers=frozenset(layer for layer in _listed(layers) if type(layer) is int),
            saved=tuple(name for name in _listed(config.get("modules_to_save")) if isinstance(name, str)),
            dora=config.get("use_dora") is True,
            biased=config.get("bias") not in (None, "none"),
            transposed=config.get("fan_in_fan_out") is True,
            tokens=bool(config.get("trainable_token_indices")),
            fused=bool(config.get("target_parameters")),
        )

    def rank_of(self, module: str) -> int | None:
        """None if a pattern cannot be judged."""
        for pattern, rank in self.ranks.items():
            matched = matches(rf"(.*\.)?({pattern})", module)
            if matched is None:
                return None
            if matched:
                return rank if type(rank) is int else None
        return self.rank

    def targets_module(self, module: str) -> bool:
        """Also True if the pattern cannot be judged."""
        if isinstance(self.targets, str):
            return self.targets == "all-linear" or matches(self.targets, module) is not False
        if not any(ends(module, target) or module == canonical(target) for target in self.targets):
            return False
        number = _LAYER.search(f".{module}.")
        return not self.layers or (number is not None and int(number[1]) in self.layers)


def ends(module: str, target: str) -> bool:
    return module == target or module.endswith(f".{target}")


def matches(pattern: str, module: str) -> bool | None:
    """Whether somebody else's regular expression matches a module's name.

    None where that is not for us to say: it does not parse, or it repeats a group, which can take for ever.
    """
    if _REPEATED_GROUP.search(pattern):
        return None
    try:
        return re.fullmatch(pattern, module) is not None
    except (re.error, RecursionError, OverflowError):
        return None


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
