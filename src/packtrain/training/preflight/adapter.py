"""A LoRA adapter against its own configuration, against its base where that is known, and against what vLLM takes.

Names are PEFT's: ``base_model.model.<module>.lora_A.weight`` and so on (peft/utils/save_and_load.py). Modules are
targeted as its ``check_target_module_exists`` does, ranks found as its ``get_pattern_key`` does.
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
from packtrain.training.preflight.view import View, refuse, some, warn

_AGAIN = "Train or save the adapter again; its adapter_config.json and its weights are of two trainings."
_MERGE = "Merge it (packtrain export) and publish the merged model."
_WRONG_BASE = "Say with --base which model it was trained on, or train it again on this one."

_PART = re.compile(r"\.(lora_[AB]\.weight|lora_[AB]\.bias|lora_embedding_[AB]|lora_magnitude_vector)(?:\.weight)?$")
_DOWN, _UP = ("lora_A.weight", "lora_embedding_A"), ("lora_B.weight", "lora_embedding_B")
_EMBEDDINGS = ("embed_tokens", "lm_head")  # PEFT saves them unasked if the vocabulary was resized
_LAYER = re.compile(r"\.(?:layers|h|blocks|block)\.(\d+)\.")

# Weights that only began as something else than zero: plain LoRA once saved. As vLLM 0.32's PEFTHelper has it.
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")


@dataclass(frozen=True)
class Lora:
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
    lora = _sorted_out({name: tensor.shape for name, (_, tensor) in view.tensors.items()})
    yield from _parts(lora, config)
    yield from _ranks(lora, config)
    yield from _targets(lora, config, view.base)
    yield from _saved_modules(lora, config)
    if view.base:
        yield from _shapes(lora, config, view.base)
    yield from _unservable(lora, config)


def _sorted_out(shapes: Mapping[str, Shape]) -> Lora:
    modules: dict[str, dict[str, Shape]] = {}
    others: dict[str, Shape] = {}
    for name, shape in shapes.items():
        name = name.removeprefix("base_model.model.")
        if part := _PART.search(name):
            modules.setdefault(name[: part.start()], {})[part[1]] = shape
        else:
            others[name] = shape
    return Lora(modules, others)


def _parts(lora: Lora, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Each module has both halves of its LoRA, and of a DoRA the magnitudes."""
    dora = config.get("use_dora") is True
    wanted = {"lora_A", "lora_B", *(["lora_magnitude_vector"] if dora else [])}
    lacking = [
        f"{module}.{part}"
        for module, parts in lora.modules.items()
        for part in wanted - {part.partition(".")[0].replace("_embedding", "") for part in parts}
    ]
    if lacking:
        yield refuse("tensor-missing", ADAPTER_WEIGHTS, f"lacks the tensor {some(lacking)}", _AGAIN)
    if not dora and (extra := [module for module, parts in lora.modules.items() if "lora_magnitude_vector" in parts]):
        what = f"holds magnitudes (DoRA) of {some(extra)}, and adapter_config.json does not say use_dora"
        yield refuse("tensor-extra", ADAPTER_WEIGHTS, what, _AGAIN)
    odd = [
        module
        for module, parts in lora.modules.items()
        if "lora_magnitude_vector" in parts
        and (up := parts.get("lora_B.weight"))
        and _count(parts["lora_magnitude_vector"]) != up[0]
    ]
    if odd:
        what = f"holds magnitudes of {some(odd)} that are not as many as its lora_B has rows"
        yield refuse("adapter-shape", ADAPTER_WEIGHTS, what, _AGAIN)


def _count(shape: Shape) -> int:
    return prod(size or 0 for size in shape)


def _ranks(lora: Lora, config: Mapping[str, Any]) -> Iterator[Finding]:
    """The inner size of each LoRA is the rank that the configuration gives its module."""
    wrong = {}
    for module, parts in lora.modules.items():
        down, up = (next((parts[name] for name in names if name in parts), None) for names in (_DOWN, _UP))
        rank = _rank(module, config)
        found = {shape[place] for shape, place in ((down, 0), (up, 1)) if shape and len(shape) > place}
        if found - {rank} and not (config.get("target_parameters") and ".experts" in module):
            wrong[module] = (min(size or 0 for size in found - {rank}), rank)
    if wrong:
        first = min(wrong)
        what = f"gives {some(list(wrong))} the rank {wrong[first][1]}, and its tensors have {wrong[first][0]}"
        yield refuse("adapter-rank", ADAPTER_CONFIG, what, _AGAIN)


def _rank(module: str, config: Mapping[str, Any]) -> Any:
    patterns = config.get("rank_pattern")
    for pattern, rank in patterns.items() if isinstance(patterns, dict) else ():
        if _matches(rf"(.*\.)?({pattern})", module):
            return rank
    return config["r"]


def _targets(lora: Lora, config: Mapping[str, Any], base: Base | None) -> Iterator[Finding]:
    """The modules with a LoRA are those that the configuration targets, and that the base has."""
    if config.get("target_parameters"):
        return
    if stray := [module for module in lora.modules if not _targeted(module, config)]:
        what = f"does not target {some(stray)}, and there are weights for it"
        yield refuse("adapter-target", ADAPTER_CONFIG, what, _AGAIN)
    if base is None:
        yield from _unused(lora, config)
        return
    trained = {canonical(module): module for module in lora.modules}
    if unknown := [name for key, name in trained.items() if key not in base.modules and ".experts" not in key]:
        what = f"has weights for {some(unknown)}, and its base has no such module"
        yield refuse("adapter-target", ADAPTER_WEIGHTS, what, _WRONG_BASE)
        return
    if isinstance(config["target_modules"], str) or config.get("exclude_modules"):
        return  # regular expressions over names in memory, which differ from those in files
    lacking = [
        module
        for module in base.modules
        if module not in trained and ".experts." not in module and _targeted(module, config)
    ]
    if lacking:
        what = f"has no weights for {some(lacking)}, which adapter_config.json targets and its base has"
        yield refuse("adapter-target", ADAPTER_WEIGHTS, what, _AGAIN)


def _unused(lora: Lora, config: Mapping[str, Any]) -> Iterator[Finding]:
    """PEFT passes over targets that the base lacks, so without the base this is worth a word only."""
    targets = config["target_modules"]
    unused = [] if isinstance(targets, str) else [t for t in targets if not any(_ends(m, t) for m in lora.modules)]
    if unused:
        what = f"targets {some(unused)}, and there are no weights for it: lost, unless the base has no such module"
        fix = "Give the base with --base to know, or compare with the training's log."
        yield warn("adapter-target", ADAPTER_CONFIG, what, fix)


def _targeted(module: str, config: Mapping[str, Any]) -> bool:
    targets = config["target_modules"]
    if isinstance(targets, str):
        return targets == "all-linear" or _matches(targets, module)
    if not any(_ends(module, target) or module == canonical(target) for target in targets):
        return False
    layers = config.get("layers_to_transform")
    layers = [layers] if isinstance(layers, int) else layers
    number = _LAYER.search(f".{module}.")
    return not layers or (number is not None and int(number[1]) in layers)


def _ends(module: str, target: str) -> bool:
    return module == target or module.endswith(f".{target}")


def _matches(pattern: str, module: str) -> bool:
    """Whether somebody else's regular expression matches. One that does not parse matches nothing."""
    try:
        return re.fullmatch(pattern, module) is not None
    except re.error:
        return False


def _saved_modules(lora: Lora, config: Mapping[str, Any]) -> Iterator[Finding]:
    """modules_to_save and the whole weights that are there are the same."""
    said = config.get("modules_to_save") or []
    names = [name for name in said if isinstance(name, str)] if isinstance(said, list) else []
    owners = {name: name.rpartition(".")[0].removesuffix(".base_layer") for name in lora.others}
    if lacking := [name for name in names if not any(_ends(owner, name) for owner in owners.values())]:
        what = f"lacks {some(lacking)}, which modules_to_save names"
        yield refuse("adapter-module", ADAPTER_WEIGHTS, what, _AGAIN)
    biased = config.get("bias", "none") != "none"
    tokens = config.get("trainable_token_indices")
    extra = [
        name
        for name, owner in owners.items()
        if not any(_ends(owner, module) for module in (*names, *_EMBEDDINGS, *(lora.modules if biased else ())))
        and not (biased and name.endswith(".bias"))
        and not (tokens and name.endswith(".trainable_tokens_delta"))
    ]
    if extra:
        what = f"holds the whole tensor {some(extra)}, which modules_to_save does not name"
        yield refuse("adapter-module", ADAPTER_WEIGHTS, what, _AGAIN)


def _shapes(lora: Lora, config: Mapping[str, Any], base: Base) -> Iterator[Finding]:
    """Each LoRA fits the matrix that it is added to, each saved module the one that it replaces."""
    wrong = [
        module
        for module, parts in lora.modules.items()
        if (shape := base.modules.get(canonical(module))) and not _fits(parts, shape, config)
    ]
    wrong += [
        name
        for name, held in lora.others.items()
        if name.endswith(".weight")
        and (shape := base.modules.get(canonical(name.removesuffix(".weight").removesuffix(".base_layer"))))
        and not _agree(held, shape)
    ]
    if wrong:
        what = f"holds {some(wrong)} in a shape that does not fit its base"
        yield refuse("adapter-shape", ADAPTER_WEIGHTS, what, _WRONG_BASE)


def _fits(parts: Mapping[str, Shape], shape: Shape, config: Mapping[str, Any]) -> bool:
    if len(shape) != 2:
        return True  # a convolution: its LoRA's shapes are their own
    outputs, inputs = reversed(shape) if config.get("fan_in_fan_out") is True else shape
    return (
        _agree(parts.get("lora_A.weight", (None, None))[1:], (inputs,))
        and _agree(parts.get("lora_B.weight", (None, None))[:1], (outputs,))
        and _agree(parts.get("lora_embedding_A", (None, None))[1:], (outputs,))
        and _agree(parts.get("lora_embedding_B", (None, None))[:1], (inputs,))
    )


def _agree(one: Shape, two: Shape) -> bool:
    return len(one) == len(two) and all(a == b or None in (a, b) for a, b in zip(one, two, strict=True))


def _unservable(lora: Lora, config: Mapping[str, Any]) -> Iterator[Finding]:
    """What vLLM 0.32 refuses to load (vllm/lora/peft_helper.py and parse_fine_tuned_lora_name)."""
    start = config.get("init_lora_weights")
    modules = config.get("modules_to_save") or []
    whole = [name for name in lora.others if not name.endswith((".base_layer.weight", ".trainable_tokens_delta"))]
    reasons = {
        "DoRA": config.get("use_dora"),
        "modules_to_save": [*whole, *modules] and not _classifies([*whole, *modules]),
        "trained tokens": config.get("trainable_token_indices"),
        "trained biases": config.get("bias", "none") != "none" or config.get("lora_bias"),
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
