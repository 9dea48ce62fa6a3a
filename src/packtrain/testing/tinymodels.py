"""Tiny real models, written with nothing but the standard library.

They are small, not fake: transformers loads them, LLaMA-Factory trains and merges them, vLLM serves them.
What must hold for every directory written here:

- the same arguments write the same bytes, whatever the machine;
- weights are spread like those of a freshly initialised model, so that a forward pass stays finite;
- nothing is proportional to the model in memory except its largest tensor, so that a large model for a
  measurement is only a matter of arguments.
"""

from __future__ import annotations

import hashlib
import json
import random
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

Tensor: TypeAlias = tuple[str, Sequence[int], bytes]

BEGIN, END, HEADER, HEADER_END, TURN_END, MESSAGE_END, PAD = SPECIALS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|finetune_right_pad_id|>",
)

CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)

ITEM_SIZES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1, "F8_E4M3": 1}
TORCH_NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@dataclass(frozen=True)
class Shape:
    """What the sizes of a Llama's tensors follow from. It is what config.json says."""

    vocab: int = 512
    hidden: int = 128
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 384
    positions: int = 2048
    dtype: str = "bfloat16"

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    def tensors(self) -> dict[str, tuple[int, ...]]:
        kv, q = self.kv_heads * self.head_dim, self.heads * self.head_dim
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab, self.hidden)}
        for number in range(self.layers):
            for name, shape in (
                ("input_layernorm", (self.hidden,)),
                ("mlp.down_proj", (self.hidden, self.intermediate)),
                ("mlp.gate_proj", (self.intermediate, self.hidden)),
                ("mlp.up_proj", (self.intermediate, self.hidden)),
                ("post_attention_layernorm", (self.hidden,)),
                ("self_attn.k_proj", (kv, self.hidden)),
                ("self_attn.o_proj", (self.hidden, q)),
                ("self_attn.q_proj", (q, self.hidden)),
                ("self_attn.v_proj", (kv, self.hidden)),
            ):
                found[f"model.layers.{number}.{name}.weight"] = shape
        found["model.norm.weight"] = (self.hidden,)
        found["lm_head.weight"] = (self.vocab, self.hidden)
        return found


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None
) -> None:
    sizes = {name: (dtype, tuple(shape)) for name, (dtype, shape, _) in tensors.items()}
    _write_safetensors(path, sizes, lambda name: tensors[name][2], metadata or {"format": "pt"})


def _write_safetensors(
    path: Path,
    sizes: Mapping[str, tuple[str, Sequence[int]]],
    content: Callable[[str], bytes],
    metadata: Mapping[str, str],
) -> None:
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in sorted(sizes, key=lambda name: (-ITEM_SIZES[sizes[name][0]], name)):
        dtype, shape = sizes[name]
        begin, end = end, end + ITEM_SIZES[dtype] * _count(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            data = content(name)
            begin, end = entry["data_offsets"]
            if len(data) != end - begin:
                raise ValueError(f"{path.name}: {name} has {len(data)} bytes, its shape needs {end - begin}")
            file.write(data)


def _count(shape: Iterable[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


# The high byte of a little-endian number decides its sign and its size. Drawn from these, values lie
# between 0.002 and 0.06 with a standard deviation near 0.02, and the bytes below it may be anything.
_HIGH_BYTES = {
    "BF16": (0x3C, 0xBC, 0x3C, 0xBC, 0x3C, 0xBC, 0x3B, 0xBB),
    "F16": (0x24, 0xA4, 0x25, 0xA5, 0x22, 0xA2, 0x20, 0xA0),
    "F32": (0x3C, 0xBC, 0x3C, 0xBC, 0x3C, 0xBC, 0x3B, 0xBB),
}
_ONE = {"BF16": b"\x80\x3f", "F16": b"\x00\x3c", "F32": b"\x00\x00\x80\x3f"}


import os
BIG=os.environ.get("BIG","").split()
def _weights(seed: str, dtype: str, count: int, big=False) -> bytes:
    """`count` small random numbers of this type, the same for the same seed."""
    size = ITEM_SIZES[dtype]
    drawn = bytearray(random.Random(seed).randbytes(count * size))
    table = bytes(_HIGH_BYTES[dtype][byte % 8] + big for byte in range(256))
    drawn[size - 1 :: size] = drawn[size - 1 :: size].translate(table)
    return bytes(drawn)


def _bytes_as_text() -> list[str]:
    """The 256 bytes as byte-level BPE writes them: printable ones as they are, the others moved up."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + number) for number in range(len(others))]


def tokenizer(vocab: int) -> dict[str, Any]:
    """A byte-level BPE of exactly `vocab` tokens: 256 bytes, merges of two letters, the special tokens."""
    room = vocab - 256 - len(SPECIALS)
    if room < 0:
        raise ValueError(
            f"a vocabulary of {vocab} has no room for 256 bytes and {len(SPECIALS)} special tokens"
        )
    letters = "etaoinsrhldcumfpgwybvkxjqz"
    pairs = [("Ġ", letter) for letter in letters]
    pairs += sorted(
        ((a, b) for a in letters for b in letters),
        key=lambda pair: letters.index(pair[0]) + letters.index(pair[1]),
    )
    pairs = pairs[:room]
    tokens = _bytes_as_text() + [a + b for a, b in pairs]
    specials = [*SPECIALS, *(f"<|reserved_special_token_{number}|>" for number in range(room - len(pairs)))]
    ids = {token: number for number, token in enumerate(tokens + specials)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": ids[token],
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for token in specials
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": True,
        },
        "post_processor": {
            "type": "Sequence",
            "processors": [
                {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
                {
                    "type": "TemplateProcessing",
                    "single": [
                        {"SpecialToken": {"id": BEGIN, "type_id": 0}},
                        {"Sequence": {"id": "A", "type_id": 0}},
                    ],
                    "pair": [
                        {"SpecialToken": {"id": BEGIN, "type_id": 0}},
                        {"Sequence": {"id": "A", "type_id": 0}},
                        {"SpecialToken": {"id": BEGIN, "type_id": 1}},
                        {"Sequence": {"id": "B", "type_id": 1}},
                    ],
                    "special_tokens": {BEGIN: {"id": BEGIN, "ids": [ids[BEGIN]], "tokens": [BEGIN]}},
                },
            ],
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: ids[token] for token in tokens},
            "merges": [[a, b] for a, b in pairs],
        },
    }


def write_base(directory: Path, *, seed: int, shards: int = 1, **sizes: Any) -> Path:
    shape = Shape(**sizes)
    directory.mkdir(parents=True, exist_ok=True)
    tok = tokenizer(shape.vocab)
    ids = {e["content"]: e["id"] for e in tok["added_tokens"]}
    dtype = TORCH_NAMES[shape.dtype]
    tensors = shape.tensors()

    def content(name: str) -> bytes:
        n = _count(tensors[name])
        if "norm" in name:
            return _ONE[dtype] * n
        return _weights(f"{seed}/{name}", dtype, n, big=name in BIG)

    _write_safetensors(
        directory / "model.safetensors",
        {n: (dtype, s) for n, s in tensors.items()},
        content,
        {"format": "pt"},
    )
    config = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": ids[BEGIN],
        "eos_token_id": ids[TURN_END],
        "pad_token_id": ids[PAD],
        "dtype": shape.dtype,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": shape.positions,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": shape.vocab,
        "transformers_version": "5.6.0",
    }
    j = lambda name, v: (directory / name).write_text(json.dumps(v, indent=2, ensure_ascii=False) + "\n")
    j("config.json", config)
    j(
        "generation_config.json",
        {
            "_from_model_config": True,
            "bos_token_id": ids[BEGIN],
            "eos_token_id": [ids[TURN_END], ids[END]],
            "pad_token_id": ids[PAD],
            "transformers_version": "5.6.0",
        },
    )
    j("tokenizer.json", tok)
    j(
        "tokenizer_config.json",
        {
            "backend": "tokenizers",
            "bos_token": BEGIN,
            "eos_token": TURN_END,
            "pad_token": PAD,
            "clean_up_tokenization_spaces": False,
            "model_max_length": shape.positions,
            "model_input_names": ["input_ids", "attention_mask"],
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return directory
