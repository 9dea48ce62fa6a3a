"""The model that an adapter was trained on, as far as an adapter can contradict it: its modules and their shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packtrain.errors import PacktrainError
from packtrain.model.safetensors import HeaderError
from packtrain.training.preflight.architecture import BadConfig, Shape, UnknownArchitecture, canonical, expect
from packtrain.training.weights import read_header

_PLAIN = ("F64", "F32", "F16", "BF16")
_QUANTISED = re.compile(r"\.(qweight|weight_packed)$")


@dataclass(frozen=True, slots=True)
class Base:
    """``modules``: by canonical name, the shape of the weight; None where quantised bytes hide it."""

    modules: Mapping[str, Shape | None]


def base_in(directory: Path) -> Base | None:
    """The base in a folder on this machine, from its headers; None if its tensors cannot be told."""
    modules: dict[str, Shape | None] = {}
    try:
        for path in sorted(directory.glob("*.safetensors")):
            for tensor in read_header(path).tensors:
                name = canonical(tensor.name)
                if name.endswith(".weight"):
                    modules[name.removesuffix(".weight")] = tensor.shape if tensor.dtype in _PLAIN else None
                elif quantised := _QUANTISED.search(name):
                    modules[name[: quantised.start()]] = None
    except (HeaderError, PacktrainError, OSError):
        return None  # whatever is wrong with the base is its own publish's to say
    if "model.embed_tokens" in modules:  # in memory a tied output layer is a module, too
        modules.setdefault("lm_head", modules["model.embed_tokens"])
    return Base(modules) if modules else None


def base_of(config: Mapping[str, Any]) -> Base | None:
    """The base of a configuration, None for an architecture that is not known or is quantised."""
    if config.get("quantization_config"):
        return None
    try:
        expected = expect(config, layers=0)
    except (UnknownArchitecture, BadConfig):
        return None
    if expected.unchecked or not any(name.startswith("model.layers.") for name in expected.shapes):
        return None
    weights = {name: shape for name, shape in expected.shapes.items() if name.endswith(".weight")}
    return Base({name.removesuffix(".weight"): shape for name, shape in weights.items()})
