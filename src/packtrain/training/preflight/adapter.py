"""A LoRA adapter against its own configuration, against its base where that is known, and against what vLLM takes.

Names are PEFT's: ``base_model.model.<module>.lora_A.weight`` and so on (peft/utils/save_and_load.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from packtrain.model.finding import Finding
from packtrain.training.checkpoint import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from packtrain.training.documents import printable
from packtrain.training.preflight.architecture import Shape, canonical
from packtrain.training.preflight.base import Base
from packtrain.training.preflight.lora import Lora, ends
from packtrain.training.preflight.view import View, refuse, some, warn

_AGAIN = "Train or save the adapter again; its adapter_config.json and its weights are of two trainings."
_MERGE = "Merge it (packtrain export) and publish the merged model."
_WRONG_BASE = "Say with --base which model it was trained on, or train it again on this one."

_PART = re.compile(r"\.(lora_[AB]\.weight|lora_[AB]\.bias|lora_embedding_[AB]|lora_magnitude_vector)(?:\.weight)?$")
_DOWN, _UP = ("lora_A.weight", "lora_embedding_A"), ("lora_B.weight", "lora_embedding_B")
_EMBEDDINGS = ("embed_tokens", "lm_head")  # PEFT saves them unasked if the vocabulary was resized

# Weights that only began as something else than zero: plain LoRA once saved. As vLLM 0.32's PEFTHelper has it.
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")


@dataclass(frozen=True)
class Held:
    """The tensors of an adapter: by module its LoRA parts, and whatever else it holds by name."""

    modules: Mapping[str, Mapping[str, Shape]]
    others: Mapping[str, Shape]


def check_adapter_config(view: View) -> Iterator[Finding]:
    if view.checkpoint.kind != "adapter":
        return
    if ADAPTER_CONFIG not in view.there:
        fix = "Give the output_dir of the training; PEFT writes adapter_config.json beside the weights."
        yield refuse("no-adapter-config", "", "there are adapter weights, but no adapter_config.json", fix)
    elif ADAPTER_CONFIG in view.checkpoint.documents and (
        problem := _not_lora(view.checkpoint.document(ADAPTER_CONFIG))
    ):
        fix = "Publish a LoRA adapter, or merge it first (packtrain export) and publish the merged model."
        yield refuse("not-lora", ADAPTER_CONFIG, problem, fix)


def _not_lora(config: dict[str, Any]) -> str | None:
    """What vLLM's PEFTHelper would miss in it, or None."""
    if config.get("peft_type") != "LORA":
        return f"describes a PEFT type of {printable(repr(config.get('peft_type')))}, not LORA"
    if type(config.get("r")) is not int or config["r"] <= 0:
        return "has no rank r above 0"
    if type(config.get("lora_alpha")) not in (int, float):
        return "has no number lora_alpha"
    targets = config.get("target_modules")
    names = [targets] if isinstance(targets, str) else targets
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        return "names no target_modules"
    return None


def check_adapter(view: View) -> Iterator[Finding]:
    config = view.checkpoint.document(ADAPTER_CONFIG)
    if view.merged or not view.tensors or not config or _not_lora(config):
        return
    lora = Lora.parse(config)
    held = _sorted_out({name: tensor.shape for name, (_, tensor) in view.tensors.items()})
    yield from _parts(held, lora)
    yield from _ranks(held, lora)
    yield from _targets(held, lora, view.base)
    yield from _saved_modules(held, lora)
    if view.base:
        yield from _shapes(held, lora, view.base)
    yield from _unservable(held, lora, config)


def _sorted_out(shapes: Mapping[str, Shape]) -> Held:
    modules: dict[str, dict[str, Shape]] = {}
    others: dict[str, Shape] = {}
    for name, shape in shapes.items():
        name = name.removeprefix("base_model.model.")
        if part := _PART.search(name):
            modules.setdefault(name[: part.start()], {})[part[1]] = shape
        else:
            others[name] = shape
    return Held(modules, others)


def _parts(held: Held, lora: Lora) -> Iterator[Finding]:
    """Each module has both halves of its LoRA, and of a DoRA the magnitudes."""
    wanted = {"lora_A", "lora_B", *(["lora_magnitude_vector"] if lora.dora else [])}
    lacking = [
        f"{module}.{part}"
        for module, parts in held.modules.items()
        for part in wanted - {part.partition(".")[0].replace("_embedding", "") for part in parts}
    ]
    if lacking:
        yield refuse("tensor-missing", ADAPTER_WEIGHTS, f"lacks the tensor {some(lacking)}", _AGAIN)
    magnitudes = [module for module, parts in held.modules.items() if "lora_magnitude_vector" in parts]
    if magnitudes and not lora.dora:
        what = f"holds magnitudes (DoRA) of {some(magnitudes)}, and adapter_config.json does not say use_dora"
        yield refuse("tensor-extra", ADAPTER_WEIGHTS, what, _AGAIN)
    odd = [
        module
        for module in magnitudes
        if (up := held.modules[module].get("lora_B.weight"))
        and _count(held.modules[module]["lora_magnitude_vector"]) != up[0]
    ]
    if odd:
        what = f"holds magnitudes of {some(odd)} that are not as many as its lora_B has rows"
        yield refuse("adapter-shape", ADAPTER_WEIGHTS, what, _AGAIN)


def _count(shape: Shape) -> int:
    return prod(size or 0 for size in shape)


def _ranks(held: Held, lora: Lora) -> Iterator[Finding]:
    """The inner size of each LoRA is the rank that the configuration gives its module."""
    wrong = {}
    for module, parts in held.modules.items():
        down, up = (next((parts[name] for name in names if name in parts), None) for names in (_DOWN, _UP))
        rank = lora.rank_of(module)
        found = {shape[place] if len(shape) > 1 else 0 for shape, place in ((down, 0), (up, 1)) if shape is not None}
        if rank and found - {rank} and not (lora.fused and ".experts" in module):
            wrong[module] = (min(size or 0 for size in found - {rank}), rank)
    if wrong:
        first = min(wrong)
        what = f"gives {some(list(wrong))} the rank {wrong[first][1]}, and its tensors have {wrong[first][0]}"
        yield refuse("adapter-rank", ADAPTER_CONFIG, what, _AGAIN)


def _targets(held: Held, lora: Lora, base: Base | None) -> Iterator[Finding]:
    """The modules with a LoRA are those that the configuration targets, and that the base has."""
    if lora.fused:
        return
    if stray := [module for module in held.modules if not lora.targets_module(module)]:
        what = f"does not target {some(stray)}, and there are weights for it"
        yield refuse("adapter-target", ADAPTER_CONFIG, what, _AGAIN)
    if base is None:
        yield from _unused(held, lora)
        return
    trained = {canonical(module): module for module in held.modules}
    if unknown := [name for key, name in trained.items() if key not in base.modules and ".experts" not in key]:
        what = f"has weights for {some(unknown)}, and its base has no such module"
        yield refuse("adapter-target", ADAPTER_WEIGHTS, what, _WRONG_BASE)
        return
    if isinstance(lora.targets, str) or lora.excludes:
        return  # regular expressions over names in memory, which differ from those in files
    lacking = [
        module
        for module in base.modules
        if module not in trained and ".experts." not in module and lora.targets_module(module)
    ]
    if lacking:
        what = f"has no weights for {some(lacking)}, which adapter_config.json targets and its base has"
        yield refuse("adapter-target", ADAPTER_WEIGHTS, what, _AGAIN)


def _unused(held: Held, lora: Lora) -> Iterator[Finding]:
    """PEFT passes over targets that the base lacks, so without the base this is worth a word only."""
    targets = () if isinstance(lora.targets, str) else lora.targets
    unused = [target for target in targets if not any(ends(module, target) for module in held.modules)]
    if unused:
        what = f"targets {some(unused)}, and there are no weights for it: lost, unless the base has no such module"
        fix = "Give the base with --base to know, or compare with the training's log."
        yield warn("adapter-target", ADAPTER_CONFIG, what, fix)


def _saved_modules(held: Held, lora: Lora) -> Iterator[Finding]:
    """modules_to_save and the whole weights that are there are the same."""
    owners = {name: name.rpartition(".")[0].removesuffix(".base_layer") for name in held.others}
    if lacking := [name for name in lora.saved if not any(ends(owner, name) for owner in owners.values())]:
        what = f"lacks {some(lacking)}, which modules_to_save names"
        yield refuse("adapter-module", ADAPTER_WEIGHTS, what, _AGAIN)
    whole = (*lora.saved, *_EMBEDDINGS, *(held.modules if lora.biased else ()))
    extra = [
        name
        for name, owner in owners.items()
        if not any(ends(owner, module) for module in whole)
        and not (lora.biased and name.endswith(".bias"))
        and not (lora.tokens and name.endswith(".trainable_tokens_delta"))
    ]
    if extra:
        what = f"holds the whole tensor {some(extra)}, which modules_to_save does not name"
        yield refuse("adapter-module", ADAPTER_WEIGHTS, what, _AGAIN)


def _shapes(held: Held, lora: Lora, base: Base) -> Iterator[Finding]:
    """Each LoRA fits the matrix that it is added to, each saved module the one that it replaces."""
    wrong = [
        module
        for module, parts in held.modules.items()
        if (shape := base.modules.get(canonical(module))) and not _fits(parts, shape, lora)
    ]
    wrong += [
        name
        for name, whole in held.others.items()
        if name.endswith(".weight")
        and (shape := base.modules.get(canonical(name.removesuffix(".weight").removesuffix(".base_layer"))))
        and not _agree(whole, shape)
    ]
    if wrong:
        what = f"holds {some(wrong)} in a shape that does not fit its base"
        yield refuse("adapter-shape", ADAPTER_WEIGHTS, what, _WRONG_BASE)


def _fits(parts: Mapping[str, Shape], shape: Shape, lora: Lora) -> bool:
    if len(shape) != 2:
        return True  # a convolution: its LoRA's shapes are their own
    outputs, inputs = reversed(shape) if lora.transposed else shape
    return (
        _agree(parts.get("lora_A.weight", (None, None))[1:], (inputs,))
        and _agree(parts.get("lora_B.weight", (None, None))[:1], (outputs,))
        and _agree(parts.get("lora_embedding_A", (None, None))[1:], (outputs,))
        and _agree(parts.get("lora_embedding_B", (None, None))[:1], (inputs,))
    )


def _agree(one: Shape, two: Shape) -> bool:
    return len(one) == len(two) and all(a == b or None in (a, b) for a, b in zip(one, two, strict=True))


def _unservable(held: Held, lora: Lora, config: Mapping[str, Any]) -> Iterator[Finding]:
    """What vLLM 0.32 refuses to load (vllm/lora/peft_helper.py and parse_fine_tuned_lora_name)."""
    start = config.get("init_lora_weights")
    whole = [name for name in held.others if not name.endswith((".base_layer.weight", ".trainable_tokens_delta"))]
    reasons = {
        "DoRA": lora.dora,
        "modules_to_save": not _classifies([*whole, *lora.saved]),
        "trained tokens": lora.tokens,
        "trained biases": lora.biased or config.get("lora_bias"),
        "LoRA that changed its base as it began": isinstance(start, str) and start.lower() not in _PLAIN_STARTS,
        "activated LoRA": config.get("alora_invocation_tokens"),
        "replicated layers": config.get("layer_replication"),
        "QALoRA": config.get("use_qalora"),
    }
    if found := [name for name, said in reasons.items() if said]:
        what = f"is an adapter with {' and '.join(found)}, which vLLM does not load"
        yield warn("adapter-unservable", ADAPTER_CONFIG, what, _MERGE)


def _classifies(names: list[str]) -> bool:
    """Whether all of these are the head of a classifier, the one module beside LoRAs that vLLM takes."""
    return all(name.split(".")[-1 if "." not in name else -2] in ("classifier", "score") for name in names)
