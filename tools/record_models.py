"""What transformers saves of a tiny random model of each architecture: run with an engine's Python.

    .engines/llamafactory/bin/python tools/record_models.py src/packtrain/testing/recorded

writes KIND.json for each: its config.json, and every tensor's type and shape. packtrain.testing.tinymodels makes
models from these without torch; tests/engines makes them anew and compares. With --keep DIR the models stay there,
and beside them adapters as PEFT saves them.
"""

from __future__ import annotations

import argparse
import json
import struct
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 313,
    "eos_token_id": 317,
    "pad_token_id": 319,
    "tie_word_embeddings": False,
}
WIDE = {**SIZES, "head_dim": 16}  # queries that are wider than the hidden size
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
QWEN_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "mlp_only_layers": [0]}
MROPE = {**SIZES, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
QWEN_VISION = {"depth": 2, "num_heads": 2, "in_channels": 3, "patch_size": 4, "hidden_size": 32}
TOWER = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}

# kind: (class without Config or task, task, configuration)
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("Llama", "ForCausalLM", SIZES),
    "llama_bias": ("Llama", "ForCausalLM", {**WIDE, "attention_bias": True, "mlp_bias": True}),
    "llama_classifier": ("Llama", "ForSequenceClassification", {**SIZES, "num_labels": 3}),
    "llama_body": ("Llama", "Model", SIZES),
    "mistral": ("Mistral", "ForCausalLM", WIDE),
    "qwen2": ("Qwen2", "ForCausalLM", SIZES),
    "qwen2_tied": ("Qwen2", "ForCausalLM", {**SIZES, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", "ForCausalLM", WIDE),
    "gemma": ("Gemma", "ForCausalLM", {**WIDE, "tie_word_embeddings": True}),
    "gemma2": ("Gemma2", "ForCausalLM", {**WIDE, "tie_word_embeddings": True}),
    "gemma3": ("Gemma3", "ForCausalLM", {**WIDE, "tie_word_embeddings": True}),
    "phi": ("Phi", "ForCausalLM", SIZES),
    "phi_norm": ("Phi", "ForCausalLM", {**SIZES, "qk_layernorm": True}),
    "phi3": ("Phi3", "ForCausalLM", SIZES),
    "mixtral": ("Mixtral", "ForCausalLM", {**SIZES, **EXPERTS}),
    "qwen3_moe": ("Qwen3Moe", "ForCausalLM", {**WIDE, **QWEN_EXPERTS}),
    "qwen2_vl": (
        "Qwen2VL",
        "ForConditionalGeneration",
        {"text_config": MROPE, "vision_config": {**QWEN_VISION, "embed_dim": 16, "mlp_ratio": 2}},
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VL",
        "ForConditionalGeneration",
        {"text_config": MROPE, "vision_config": {**QWEN_VISION, "intermediate_size": 40, "out_hidden_size": 32}},
    ),
    "qwen3_vl": (  # one that preflight's tables do not have
        "Qwen3VL",
        "ForConditionalGeneration",
        {
            "text_config": MROPE,
            "vision_config": {
                **QWEN_VISION,
                "intermediate_size": 40,
                "out_hidden_size": 32,
                "deepstack_visual_indexes": [0],
                "num_position_embeddings": 16,
            },
        },
    ),
    "llava": (
        "Llava",
        "ForConditionalGeneration",
        {
            "text_config": {**SIZES, "model_type": "llama"},
            "vision_config": {**TOWER, "model_type": "clip_vision_model"},
        },
    ),
    "gemma3_vl": (
        "Gemma3",
        "ForConditionalGeneration",
        {"text_config": {**WIDE, "tie_word_embeddings": True}, "vision_config": TOWER, "mm_tokens_per_image": 4},
    ),
}

# name: (the base's kind, what PEFT is told)
ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("llama", {"target_modules": ["q_proj", "v_proj"]}),
    "dora": ("llama", {"target_modules": ["q_proj", "v_proj"], "use_dora": True}),
    "saved_modules": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
    "embedding": ("llama", {"target_modules": ["q_proj", "embed_tokens"]}),
    "rank_pattern": ("llama", {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 2}}),
    "one_layer": ("llama", {"target_modules": ["q_proj"], "layers_to_transform": [1]}),
    "pattern": ("llama", {"target_modules": r".*layers\.0\..*q_proj"}),
    "all_linear": ("qwen2", {"target_modules": "all-linear"}),
    "tied": ("qwen2_tied", {"target_modules": ["q_proj", "lm_head"]}),
    "experts": ("mixtral", {"target_modules": "all-linear"}),
    "bias": ("llama_bias", {"target_modules": ["q_proj"], "lora_bias": True}),
    "tokens": ("llama", {"target_modules": ["q_proj"], "trainable_token_indices": [1, 2]}),
    "vision": ("qwen2_vl", {"target_modules": ["q_proj"]}),
    "vision_tower": ("llava", {"target_modules": ["q_proj"]}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--keep", type=Path)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        home = arguments.keep or Path(scratch)
        for kind in KINDS:
            save_model(kind, home / kind)
            (arguments.output / f"{kind}.json").write_text(recorded(home / kind))
        if arguments.keep:
            for name in ADAPTERS:
                save_adapter(name, home)


def save_model(kind: str, directory: Path) -> None:
    family, task, values = KINDS[kind]
    config = getattr(transformers, "Gemma3TextConfig" if kind == "gemma3" else f"{family}Config")(**values)
    torch.manual_seed(1)
    getattr(transformers, family + task)(config).to(torch.bfloat16).save_pretrained(directory)


def recorded(directory: Path) -> str:
    """A model's configuration, and a line for each tensor."""
    config = json.loads((directory / "config.json").read_text())
    with (directory / "model.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__")
    lines = [f"    {json.dumps(name)}: {json.dumps([h['dtype'], h['shape']])}" for name, h in sorted(header.items())]
    tensors = ",\n".join(lines)
    return f'{{\n  "config": {json.dumps(config, sort_keys=True)},\n  "tensors": {{\n{tensors}\n  }}\n}}\n'


def save_adapter(name: str, home: Path) -> None:
    import peft

    kind, values = ADAPTERS[name]
    model = getattr(transformers, "".join(KINDS[kind][:2])).from_pretrained(home / kind)
    config = peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **values)
    peft.get_peft_model(model, config).save_pretrained(home / f"adapter_{name}")


if __name__ == "__main__":
    main()
