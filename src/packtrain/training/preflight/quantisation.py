"""Quantised weights: what each method leaves in place of a matrix."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from packtrain.model.safetensors import Tensor
from packtrain.training.checkpoint import Checkpoint
from packtrain.training.documents import Malformed, read_object
from packtrain.training.preflight.architecture import Shape

_FLOAT8 = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
_TRACES = re.compile(r"\.(qweight|qzeros|weight_packed|weight_scale|weight_scale_inv|absmax|SCB)$")

# By quant_method, the endings of the tensors without which nothing is quantised. What is not here is not checked.
_MARKS = {
    "gptq": (".qweight",),
    "awq": (".qweight",),
    "compressed-tensors": (".weight_packed", ".weight_scale"),
    "fp8": (".weight_scale", ".weight_scale_inv"),
}
# Where a configuration is that config.json leaves out: AutoGPTQ's, AutoAWQ's, ModelOpt's.
_OWN_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt"}


@dataclass(frozen=True, slots=True)
class Quantisation:
    """What a configuration says: the method, bits a weight, and weights that share a scale (-1: a whole column)."""

    method: str
    bits: int
    group: int
    packing: str  # the layout of the packed numbers

    @property
    def marks(self) -> tuple[str, ...]:
        return _MARKS.get(self.method, ())

    @property
    def known(self) -> bool:
        """Whether the shapes of its tensors are known."""
        return self.packing in ("gptq", "gptq_v2", "gemm") and self.bits in (2, 3, 4, 8) and self.group != 0

    def is_in(self, tensors: Mapping[str, tuple[str, Tensor]]) -> bool:
        """Whether any tensor is quantised this way."""
        if self.method == "fp8" and any(tensor.dtype in _FLOAT8 for _, tensor in tensors.values()):
            return True
        return any(name.endswith(self.marks) for name in tensors)

    @staticmethod
    def traces(tensors: Mapping[str, tuple[str, Tensor]]) -> list[str]:
        """Tensors that only quantised weights have."""
        return [name for name, (_, t) in tensors.items() if _TRACES.search(name) or t.dtype in _FLOAT8]

    def applied(
        self, shapes: Mapping[str, Shape], optional: set[str], held: Mapping[str, tuple[str, Tensor]]
    ) -> tuple[dict[str, Shape], set[str]]:
        """The tensors of the model once those matrices are quantised of which ``held`` has any packed part.

        Which ones a method leaves alone is its own business (lm_head, routers, vision); those stay as they are.
        """
        result: dict[str, Shape] = {}
        may_lack = set(optional)
        for name, shape in shapes.items():
            module = name.removesuffix(".weight")
            if len(shape) != 2 or not any(f"{module}.{part}" in held for part in ("qweight", "qzeros", "scales")):
                result[name] = shape
                continue
            result |= {f"{module}.{part}": packed for part, packed in self._packed(shape).items()}
            bias = f"{module}.bias"  # AutoGPTQ writes zeros where the model has none
            if bias not in shapes:
                result[bias] = shape[:1]
                may_lack.add(bias)
            may_lack.add(f"{module}.g_idx")
        return result, may_lack

    def _packed(self, shape: Shape) -> dict[str, Shape]:
        """Sources: GPTQModel's and AutoAWQ's (WQLinear_GEMM) linear layers, as vLLM's gptq.py and awq.py load them."""
        outputs, inputs = shape
        group = inputs if self.group < 0 else self.group
        groups = None if inputs is None or group is None else -(-inputs // group)
        scales = {"qzeros": (groups, self._words(outputs)), "scales": (groups, outputs)}
        if self.packing == "gemm":
            return {"qweight": (inputs, self._words(outputs)), **scales}
        return {"qweight": (self._words(inputs), outputs), **scales, "g_idx": (inputs,)}

    def _words(self, numbers: int | None) -> int | None:
        return None if numbers is None else numbers * self.bits // 32


def quantisation_of(checkpoint: Checkpoint) -> Quantisation | None:
    """What config.json says of quantised weights, or the file that an older tool wrote in its place."""
    config = checkpoint.document("config.json")
    said = config.get("quantization_config") or config.get("compression_config")
    method = "compressed-tensors" if config.get("compression_config") else ""
    if not isinstance(said, dict):
        path = next((path for path in _OWN_FILES if path in checkpoint.taken), None)
        if path is None:
            return None
        said, method = _read(checkpoint, path), _OWN_FILES[path]
    return _parsed(said, str(said.get("quant_method") or method))


def _read(checkpoint: Checkpoint, path: str) -> dict[str, Any]:
    try:
        return read_object(checkpoint.directory / path)
    except Malformed:
        return {}


def _parsed(said: Mapping[str, Any], method: str) -> Quantisation:
    bits = said.get("bits", said.get("w_bit"))
    group = said.get("group_size", said.get("q_group_size"))
    packing = said.get("checkpoint_format", "gptq") if method == "gptq" else said.get("version", "gemm")
    return Quantisation(
        method=method,
        bits=bits if type(bits) is int else 0,
        group=group if type(group) is int else 0,
        packing=str(packing).lower() if method in ("gptq", "awq") else "",
    )
