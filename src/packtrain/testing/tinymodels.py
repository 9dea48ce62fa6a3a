"""Tiny real models, written with nothing but the standard library.

They are small, not fake: transformers loads them, LLaMA-Factory trains and merges them, vLLM serves them.
What must hold for every directory written here:

- the same arguments write the same bytes, whatever the machine and the day;
- names, JSON shapes, header order and file modes are those that transformers 5 and LLaMA-Factory 0.9.5
  leave behind, so that a copy of a base and a merge of it have equal safetensors headers;
- weights are spread like those of a freshly initialised model, so that a forward pass stays finite;
- memory does not grow with the model, so that a large one for a measurement is only a matter of arguments.

`write_base` then `write_merged` or `write_adapter` gives what a training leaves, in milliseconds and without
an engine. To train for real, give `write_base`'s directory to LLaMA-Factory: its output layer is large
enough that a LoRA on q_proj and v_proj alone learns a handful of sentences by heart within seconds.
"""

from __future__ import annotations

import json
import random
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

TensorBytes: TypeAlias = tuple[str, Sequence[int], bytes]
"""A tensor to write: its safetensors type ("F32", "BF16", ...), its shape, its little-endian bytes."""

ITEM_SIZES: Mapping[str, int] = {
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "F32": 4,
    "I32": 4,
    "U32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "U16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}

BEGIN = "<|begin_of_text|>"
END = "<|end_of_text|>"
TURN_END = "<|eot_id|>"
MESSAGE_END = "<|eom_id|>"
PADDING = "<|finetune_right_pad_id|>"
SPECIAL_TOKENS = (BEGIN, END, "<|start_header_id|>", "<|end_header_id|>", TURN_END, MESSAGE_END, PADDING)

CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
    " + message['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
    "{%- endif %}"
)

_BLOCK = 1 << 20
_TRANSFORMERS = "5.6.0"
_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_TOKENIZER_FILES = ("tokenizer.json", "chat_template.jinja")
_INDEX = "model.safetensors.index.json"


# --- safetensors -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Entry:
    """A tensor by its header: what it is, and in which file and at which byte it lies."""

    dtype: str
    shape: tuple[int, ...]
    file: Path = Path()
    begin: int = 0

    @property
    def count(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def size(self) -> int:
        return self.count * ITEM_SIZES[self.dtype]


def write_safetensors(
    path: Path, tensors: Mapping[str, TensorBytes], *, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a file as the safetensors library does: sorted by item size, then by name; header padded to 8."""
    entries = {name: _Entry(dtype, tuple(shape)) for name, (dtype, shape, _) in tensors.items()}
    _write(path, entries, lambda name: [tensors[name][2]], metadata)


def _write(
    path: Path,
    entries: Mapping[str, _Entry],
    content: Callable[[str], Iterable[bytes]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    order = sorted(entries, key=lambda name: (-ITEM_SIZES[entries[name].dtype], name))
    header: dict[str, object] = {"__metadata__": dict(metadata) if metadata is not None else {"format": "pt"}}
    end = 0
    for name in order:
        begin, end = end, end + entries[name].size
        header[name] = {
            "dtype": entries[name].dtype,
            "shape": list(entries[name].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            written = sum(file.write(block) for block in content(name))
            if written != entries[name].size:
                raise ValueError(f"{path.name}: {name} was given {written} bytes, its shape needs {entries[name].size}")


def _read_headers(directory: Path) -> dict[str, _Entry]:
    found: dict[str, _Entry] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                found[name] = _Entry(entry["dtype"], tuple(entry["shape"]), path, 8 + length + entry["data_offsets"][0])
    if not found:
        raise ValueError(f"{directory} holds no safetensors file")
    return found


def _read_tensor(entry: _Entry) -> Iterator[bytes]:
    with entry.file.open("rb") as file:
        file.seek(entry.begin)
        left = entry.size
        while left:
            block = file.read(min(left, _BLOCK))
            if not block:
                raise ValueError(f"{entry.file} ends inside a tensor")
            left -= len(block)
            yield block


# The highest byte of a little-endian number decides its sign and its size. With these, numbers lie between
# 0.002 and 0.06 with a standard deviation near 0.02, and the bytes below may be anything.
_HIGH_BYTES = {
    "BF16": (0x3C, 0xBC, 0x3C, 0xBC, 0x3C, 0xBC, 0x3B, 0xBB),
    "F16": (0x24, 0xA4, 0x26, 0xA6, 0x22, 0xA2, 0x1C, 0x9C),
    "F32": (0x3C, 0xBC, 0x3C, 0xBC, 0x3C, 0xBC, 0x3B, 0xBB),
}
_TIMES_16 = {"BF16": 2, "F16": 16, "F32": 2}  # added to the highest byte
_ONE = {"BF16": b"\x80\x3f", "F16": b"\x00\x3c", "F32": b"\x00\x00\x80\x3f"}


def _random_weights(seed: str, entry: _Entry, *, large: bool = False) -> Iterator[bytes]:
    """Small random numbers, the same for the same seed; sixteen times as large on request."""
    item = ITEM_SIZES[entry.dtype]
    lift = _TIMES_16[entry.dtype] if large else 0
    high = bytes(_HIGH_BYTES[entry.dtype][byte % 8] + lift for byte in range(256))
    source = random.Random(seed)
    left = entry.size
    while left:
        block = bytearray(source.randbytes(min(left, _BLOCK)))
        block[item - 1 :: item] = block[item - 1 :: item].translate(high)
        left -= len(block)
        yield bytes(block)


# --- a base model ------------------------------------------------------------------------------------------


def write_base(
    directory: Path,
    *,
    seed: int,
    vocab: int = 512,
    hidden: int = 128,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    intermediate: int = 384,
    positions: int = 2048,
    dtype: str = "bfloat16",
    shards: int = 1,
) -> Path:
    """A complete, untrained Llama with a byte-level BPE tokenizer and Llama 3's chat format.

    `hidden / heads` must be a head size that vLLM's CPU attention knows (32, 64, 96, 128, ...). The output
    layer is sixteen times as large as the rest: a LoRA does not touch it, and could otherwise never make the
    model sure of an answer.
    """
    if hidden % heads or heads % kv_heads:
        raise ValueError("hidden must be a multiple of heads, and heads a multiple of kv_heads")
    tokenizer = _tokenizer(vocab)
    ids: dict[str, int] = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    head_dim = hidden // heads
    kind = _DTYPES[dtype]
    queries, keys = (heads * head_dim, hidden), (kv_heads * head_dim, hidden)
    entries = {"lm_head.weight": _Entry(kind, (vocab, hidden))}
    entries["model.embed_tokens.weight"] = _Entry(kind, (vocab, hidden))
    entries["model.norm.weight"] = _Entry(kind, (hidden,))
    for number in range(layers):
        for name, shape in {
            "input_layernorm": (hidden,),
            "mlp.down_proj": (hidden, intermediate),
            "mlp.gate_proj": (intermediate, hidden),
            "mlp.up_proj": (intermediate, hidden),
            "post_attention_layernorm": (hidden,),
            "self_attn.k_proj": keys,
            "self_attn.o_proj": queries[::-1],
            "self_attn.q_proj": queries,
            "self_attn.v_proj": keys,
        }.items():
            entries[f"model.layers.{number}.{name}.weight"] = _Entry(kind, shape)

    def content(name: str) -> Iterable[bytes]:
        if name.endswith("norm.weight"):
            return [_ONE[kind] * entries[name].count]
        return _random_weights(f"{seed}/{name}", entries[name], large=name == "lm_head.weight")

    directory.mkdir(parents=True, exist_ok=True)
    _write_shards(directory, entries, content, shards)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": ids[BEGIN],
        "dtype": dtype,
        "eos_token_id": ids[TURN_END],
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": intermediate,
        "max_position_embeddings": positions,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "pad_token_id": ids[PADDING],
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "tie_word_embeddings": False,
        "transformers_version": _TRANSFORMERS,
        "use_cache": True,
        "vocab_size": vocab,
    }
    _write_json(directory / "config.json", config, end="\n")
    _write_json(
        directory / "generation_config.json",
        {
            "_from_model_config": True,
            "bos_token_id": ids[BEGIN],
            "eos_token_id": [ids[TURN_END], ids[END]],
            "pad_token_id": ids[PADDING],
            "transformers_version": _TRANSFORMERS,
        },
        end="\n",
    )
    _write_json(directory / "tokenizer.json", tokenizer)
    names = {"bos_token": BEGIN, "eos_token": TURN_END, "pad_token": PADDING}
    _write_json(directory / "special_tokens_map.json", names, end="\n")
    _write_json(directory / "tokenizer_config.json", _tokenizer_config(positions), end="\n")
    _write_text(directory / "chat_template.jinja", CHAT_TEMPLATE)
    return directory


def _write_shards(
    directory: Path, entries: Mapping[str, _Entry], content: Callable[[str], Iterable[bytes]], shards: int
) -> None:
    if shards == 1:
        _write(directory / "model.safetensors", entries, content)
        return
    total, before = sum(entry.size for entry in entries.values()), 0
    parts: list[dict[str, _Entry]] = [{} for _ in range(shards)]
    for name in sorted(entries):  # each tensor goes to the shard that its middle lies in
        parts[(2 * before + entries[name].size) * shards // (2 * total)][name] = entries[name]
        before += entries[name].size
    if not all(parts):
        raise ValueError(f"{len(entries)} tensors of these sizes do not fill {shards} shards")
    places: dict[str, str] = {}
    for number, part in enumerate(parts, start=1):
        file = f"model-{number:05}-of-{shards:05}.safetensors"
        _write(directory / file, part, content)
        places |= dict.fromkeys(part, file)
    parameters = sum(entry.count for entry in entries.values())
    index = {"metadata": {"total_parameters": parameters, "total_size": total}, "weight_map": places}
    _write_json(directory / _INDEX, index, end="\n")


def _tokenizer(vocab: int) -> dict[str, Any]:
    """A byte-level BPE of exactly `vocab` tokens: the 256 bytes, merges of two letters, special tokens."""
    room = vocab - 256 - len(SPECIAL_TOKENS)
    if room < 0:
        raise ValueError(f"a vocabulary of {vocab} has no room for 256 bytes and the special tokens")
    letters = "etaoinsrhldcumfpgwybvkxjqz"  # the most frequent first
    pairs = [("Ġ", letter) for letter in letters]
    pairs += [
        (letters[first], letters[rank - first])
        for rank in range(2 * len(letters) - 1)
        for first in range(len(letters))
        if 0 <= rank - first < len(letters)
    ]
    pairs = pairs[:room]
    tokens = _byte_symbols() + [first + second for first, second in pairs]
    spare = [f"<|reserved_special_token_{number}|>" for number in range(room - len(pairs))]
    ids = {token: number for number, token in enumerate([*tokens, *SPECIAL_TOKENS, *spare])}
    begin = {"SpecialToken": {"id": BEGIN, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB"))
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
            for token in (*SPECIAL_TOKENS, *spare)
        ],
        "normalizer": None,
        "pre_tokenizer": _byte_level(add_prefix_space=False, trim_offsets=True),
        "post_processor": {
            "type": "Sequence",
            "processors": [
                _byte_level(add_prefix_space=True, trim_offsets=False),
                {
                    "type": "TemplateProcessing",
                    "single": [begin, first],
                    "pair": [begin, first, {"SpecialToken": {"id": BEGIN, "type_id": 1}}, second],
                    "special_tokens": {BEGIN: {"id": BEGIN, "ids": [ids[BEGIN]], "tokens": [BEGIN]}},
                },
            ],
        },
        "decoder": _byte_level(add_prefix_space=True, trim_offsets=True),
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
            "merges": [list(pair) for pair in pairs],
        },
    }


def _byte_level(*, add_prefix_space: bool, trim_offsets: bool) -> dict[str, object]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": trim_offsets,
        "use_regex": True,
    }


def _byte_symbols() -> list[str]:
    """The 256 bytes as byte-level BPE writes them: printable ones as they are, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in printable] + [chr(256 + number) for number in range(256 - len(printable))]


def _tokenizer_config(positions: int, *, padding_side: str | None = None) -> dict[str, object]:
    """As published with a base; with a padding side, as LLaMA-Factory saves it again."""
    config: dict[str, object] = {
        "backend": "tokenizers",
        "bos_token": BEGIN,
        "clean_up_tokenization_spaces": False,
        "eos_token": TURN_END,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": positions,
        "pad_token": PADDING,
        "tokenizer_class": "TokenizersBackend" if padding_side else "PreTrainedTokenizerFast",
    }
    if padding_side:
        config |= {
            "extra_special_tokens": [MESSAGE_END],
            "is_local": True,
            "local_files_only": True,
            "padding_side": padding_side,
            "split_special_tokens": False,
        }
    return dict(sorted(config.items()))


# --- a base model of another architecture ------------------------------------------------------------------

RECORDED = Path(__file__).parent / "recorded"
"""What transformers saves of tiny models of many architectures: written by tools/record_models.py."""


def kinds() -> list[str]:
    """What `write_model` can write."""
    return sorted([*(path.stem for path in RECORDED.glob("*.json")), "gptq", "awq", "sentencepiece"])


def write_model(directory: Path, kind: str, *, seed: int = 1) -> Path:
    """An untrained model of ``kind`` with its tokenizer, its tensors those that transformers saves.

    Also "gptq" and "awq", a Llama in 4 bits, and "sentencepiece", a Mistral with that kind of tokenizer.
    """
    source = {"gptq": "llama", "awq": "llama", "sentencepiece": "mistral"}.get(kind, kind)
    model = json.loads((RECORDED / f"{source}.json").read_text())
    config: dict[str, Any] = model["config"]
    entries = {name: _Entry(dtype, tuple(shape)) for name, (dtype, shape) in model["tensors"].items()}
    if kind in ("gptq", "awq"):
        entries = dict(_in_four_bits(entries, kind))
        config["quantization_config"] = _QUANTISATION[kind]
        config["dtype"] = "float16"

    def content(name: str) -> Iterable[bytes]:
        kind = entries[name].dtype
        if name.endswith("norm.weight"):
            return [_ONE[kind] * entries[name].count]
        if kind == "I32":
            return [random.Random(f"{seed}/{name}").randbytes(entries[name].size)]
        return _random_weights(f"{seed}/{name}", entries[name])

    directory.mkdir(parents=True, exist_ok=True)
    _write(directory / "model.safetensors", entries, content)
    _write_json(directory / "config.json", config, end="\n")
    text = config.get("text_config", config)
    stops = {key: text[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    generation = {"_from_model_config": True, **stops, "transformers_version": _TRANSFORMERS}
    _write_json(directory / "generation_config.json", generation, end="\n")
    _write_text(directory / "chat_template.jinja", CHAT_TEMPLATE)
    if "vision_config" in config:
        _write_json(directory / "preprocessor_config.json", {"image_processor_type": "CLIPImageProcessor"}, end="\n")
    _write_tokenizer(directory, kind, text["vocab_size"], text["max_position_embeddings"])
    return directory


def _write_tokenizer(directory: Path, kind: str, vocab: int, positions: int) -> None:
    """As the Hub has it: Qwen's in its slow form too, sentencepiece in one file."""
    config = _tokenizer_config(positions)
    if kind == "sentencepiece":
        config |= {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
        del config["backend"]
        (directory / "tokenizer.model").write_bytes(_sentencepiece(vocab))
        for name in ("config.json", "generation_config.json"):
            document = json.loads((directory / name).read_text())
            _write_json(directory / name, document | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0})
    else:
        tokenizer = _tokenizer(vocab)
        _write_json(directory / "tokenizer.json", tokenizer)
        if kind.startswith("qwen"):
            config |= {"tokenizer_class": "Qwen2Tokenizer", "unk_token": END}
            _write_json(directory / "vocab.json", tokenizer["model"]["vocab"])
            merges = "".join(f"{first} {second}\n" for first, second in tokenizer["model"]["merges"])
            _write_text(directory / "merges.txt", f"#version: 0.2\n{merges}")
    _write_json(directory / "tokenizer_config.json", config, end="\n")


_QUANTISATION: Mapping[str, Mapping[str, object]] = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": False, "sym": True},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm", "zero_point": True},
}


def _in_four_bits(entries: Mapping[str, _Entry], kind: str) -> Iterator[tuple[str, _Entry]]:
    """The tensors that GPTQModel or AutoAWQ leave in place of each matrix of the layers; groups of 16 weights."""
    for name, entry in entries.items():
        if ".layers." not in name or len(entry.shape) != 2:
            yield name, _Entry("F16", entry.shape)
            continue
        (outputs, inputs), stem = entry.shape, name.removesuffix("weight")
        packed = (inputs // 8, outputs) if kind == "gptq" else (inputs, outputs // 8)
        yield f"{stem}qweight", _Entry("I32", packed)
        yield f"{stem}qzeros", _Entry("I32", (inputs // 16, outputs // 8))
        yield f"{stem}scales", _Entry("F16", (inputs // 16, outputs))
        if kind == "gptq":
            yield f"{stem}g_idx", _Entry("I32", (inputs,))


def _sentencepiece(vocab: int) -> bytes:
    """A sentencepiece model (BPE with byte fallback) of ``vocab`` pieces: sentencepiece_model.proto, by hand."""
    pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((f"<0x{byte:02X}>", 6) for byte in range(256))]
    letters = "▁etaoinsrhldcumfpgwybvkxjqzETAOINSRHLDCUMFPGWYBVKXJQZ0123456789.,?!"
    pieces += [(letter, 1) for letter in letters][: vocab - len(pieces)]
    body = b"".join(
        _field(1, _field(1, text.encode()) + b"\x15" + struct.pack("<f", -number) + bytes([0x18, kind]))
        for number, (text, kind) in enumerate(pieces)
    )
    trainer = b"\x18\x02" + b"\x20" + _varint(vocab) + b"\x98\x02\x01"  # model_type BPE, vocab_size, byte_fallback
    return body + _field(2, trainer) + _field(3, _field(1, b"identity"))


def _field(number: int, content: bytes) -> bytes:
    """A field of protobuf with its length."""
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 0x80 else bytes([value & 0x7F | 0x80]) + _varint(value >> 7)


# --- what a training leaves --------------------------------------------------------------------------------


LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # lora_target: all


def write_merged(
    directory: Path,
    base: Path,
    *,
    seed: int,
    changed: Sequence[str] = ("q_proj", "v_proj"),
    shards: int | None = None,
) -> Path:
    """What `llamafactory-cli export` leaves: the base's shards, in which only the changed tensors differ.

    A tensor changes if the last part of its name before `.weight` is among `changed`; nothing there gives an
    exact copy of the weights. `shards` is for another `export_size` than the base's: the same tensors in so many
    files. Weight files are readable by their owner only, as LLaMA-Factory leaves them.
    """
    entries = _read_headers(base)
    targets = _targets(entries, changed) if changed else []
    directory.mkdir(parents=True, exist_ok=True)

    def content(name: str) -> Iterable[bytes]:
        if name in targets:
            return _random_weights(f"{seed}/merged/{name}", entries[name])
        return _read_tensor(entries[name])

    if shards is not None:
        _write_shards(directory, entries, content, shards)
    else:
        for file in sorted({entry.file for entry in entries.values()}):
            part = {name: entry for name, entry in entries.items() if entry.file == file}
            _write(directory / file.name, part, content)
        if (base / _INDEX).exists():
            shutil.copyfile(base / _INDEX, directory / _INDEX)
    for path in directory.glob("*.safetensors"):
        path.chmod(0o600)
    for name in ("config.json", "generation_config.json", *_TOKENIZER_FILES):
        if (base / name).exists():
            shutil.copyfile(base / name, directory / name)
    config = _tokenizer_config(_positions(base), padding_side="left")
    _write_json(directory / "tokenizer_config.json", config, end="\n")
    _write_text(directory / "Modelfile", _MODELFILE)
    return directory


def write_adapter(
    directory: Path,
    base: Path,
    *,
    seed: int,
    rank: int = 8,
    alpha: int | None = None,
    targets: Sequence[str] = ("q_proj", "v_proj"),
    base_name: str | None = None,
    steps: int = 10,
    loss: float = 0.5,
    accuracy: float = 0.75,
    dora: bool = False,
    modules_to_save: Sequence[str] = (),
) -> Path:
    """What `llamafactory-cli train` with LoRA leaves: the adapter, the records of the run, a checkpoint.

    With ``dora`` it has magnitudes, too; the base's own weights of ``modules_to_save`` are saved whole.
    `base_name` is what the training was told the base is (by default its path). The weights are large enough
    that a model with the adapter answers otherwise than without. As after a real run there are pickles among
    the files (training_args.bin, optimizer.pt, scheduler.pt, rng_state.pth), with nothing in them.
    """
    named = base_name if base_name is not None else str(base)
    entries = _read_headers(base)
    weights: dict[str, _Entry] = {}
    for name in _targets(entries, targets):
        outputs, inputs = entries[name].shape
        stem = "base_model.model." + name.removesuffix(".weight")
        weights[f"{stem}.lora_A.weight"] = _Entry("F32", (rank, inputs))
        weights[f"{stem}.lora_B.weight"] = _Entry("F32", (outputs, rank))
        if dora:
            weights[f"{stem}.lora_magnitude_vector"] = _Entry("F32", (outputs,))
    for name in _targets(entries, modules_to_save) if modules_to_save else []:
        weights[f"base_model.model.{name}"] = _Entry(entries[name].dtype, entries[name].shape)
    run = _Run(steps=steps, loss=loss, accuracy=accuracy)
    positions = _positions(base)

    for place in (directory, directory / f"checkpoint-{steps}"):
        place.mkdir(parents=True, exist_ok=True)
        path = place / "adapter_model.safetensors"
        _write(path, weights, lambda name: _random_weights(f"{seed}/adapter/{name}", weights[name], large=True))
        path.chmod(0o600)
        config = _adapter_config(named, rank=rank, alpha=alpha or 2 * rank, targets=targets)
        config |= {"use_dora": dora, "modules_to_save": list(modules_to_save) or None}
        _write_json(place / "adapter_config.json", config)
        for name in _TOKENIZER_FILES:
            shutil.copyfile(base / name, place / name)
        tokenizer_config = _tokenizer_config(positions, padding_side="right")
        _write_json(place / "tokenizer_config.json", tokenizer_config, end="\n")
        _write_text(place / "README.md", _model_card(named, directory.name, run))
        _write_pickle(place / "training_args.bin")
        _write_json(place / "trainer_state.json", run.state(finished=place is directory), end="\n")

    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        _write_pickle(directory / f"checkpoint-{steps}" / name)
    for name, record in (
        ("train_results.json", run.train_results()),
        ("eval_results.json", run.eval_results()),
        ("all_results.json", run.train_results() | run.eval_results()),
    ):
        _write_json(directory / name, dict(sorted(record.items())), indent=4)
    _write_text(directory / "trainer_log.jsonl", "".join(json.dumps(line) + "\n" for line in run.log()))
    for name in ("training_loss.png", "training_eval_loss.png", "training_eval_accuracy.png"):
        (directory / name).write_bytes(_picture())
    return directory


def _targets(entries: Mapping[str, _Entry], wanted: Sequence[str]) -> list[str]:
    found = [name for name in sorted(entries) if name.removesuffix(".weight").rpartition(".")[2] in wanted]
    missing = set(wanted) - {name.removesuffix(".weight").rpartition(".")[2] for name in found}
    if missing:
        raise ValueError(f"the base has no tensor called {', '.join(sorted(missing))}")
    return found


def _positions(base: Path) -> int:
    return int(json.loads((base / "config.json").read_text())["max_position_embeddings"])


def _adapter_config(base: str, *, rank: int, alpha: int, targets: Sequence[str]) -> dict[str, object]:
    return {
        "alora_invocation_tokens": None,
        "alpha_pattern": {},
        "arrow_config": None,
        "auto_mapping": None,
        "base_model_name_or_path": base,
        "bias": "none",
        "corda_config": None,
        "ensure_weight_tying": False,
        "eva_config": None,
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": alpha,
        "lora_bias": False,
        "lora_dropout": 0.0,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "peft_type": "LORA",
        "peft_version": "0.18.1",
        "qalora_group_size": 16,
        "r": rank,
        "rank_pattern": {},
        "revision": None,
        "target_modules": list(targets),
        "target_parameters": None,
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": None,
        "use_dora": False,
        "use_qalora": False,
        "use_rslora": False,
    }


@dataclass(frozen=True)
class _Run:
    """A training that never happened, told the way LLaMA-Factory tells it: one epoch, one step a second."""

    steps: int
    loss: float
    accuracy: float

    def train_results(self) -> dict[str, float]:
        return {
            "epoch": 1.0,
            "total_flos": 1e9 * self.steps,
            "train_loss": round(self.loss * 2, 4),
            "train_runtime": float(self.steps),
            "train_samples_per_second": 8.0,
            "train_steps_per_second": 1.0,
        }

    def eval_results(self) -> dict[str, float]:
        return {
            "epoch": 1.0,
            "eval_accuracy": self.accuracy,
            "eval_loss": self.loss,
            "eval_runtime": 0.5,
            "eval_samples_per_second": 8.0,
            "eval_steps_per_second": 2.0,
        }

    def state(self, *, finished: bool) -> dict[str, object]:
        step = {"epoch": 1.0, "grad_norm": 0.5, "learning_rate": 0.0, "loss": self.loss, "step": self.steps}
        history: list[dict[str, float]] = [step, self.eval_results() | {"step": self.steps}]
        if finished:
            history.append(self.train_results() | {"step": self.steps})
        return {
            "best_global_step": None,
            "best_metric": None,
            "best_model_checkpoint": None,
            "epoch": 1.0,
            "eval_steps": self.steps,
            "global_step": self.steps,
            "is_hyper_param_search": False,
            "is_local_process_zero": True,
            "is_world_process_zero": True,
            "log_history": history,
            "logging_steps": self.steps,
            "max_steps": self.steps,
            "num_input_tokens_seen": 0,
            "num_train_epochs": 1,
            "save_steps": self.steps,
            "stateful_callbacks": {
                "TrainerControl": {
                    "args": {
                        "should_epoch_stop": False,
                        "should_evaluate": False,
                        "should_log": False,
                        "should_save": True,
                        "should_training_stop": True,
                    },
                    "attributes": {},
                }
            },
            "total_flos": 1e9 * self.steps,
            "train_batch_size": 8,
            "trial_name": None,
            "trial_params": None,
        }

    def log(self) -> list[dict[str, object]]:
        position: dict[str, object] = {"current_steps": self.steps, "total_steps": self.steps}
        minutes, seconds = divmod(self.steps, 60)
        time: dict[str, object] = {
            "epoch": 1.0,
            "percentage": 100.0,
            "elapsed_time": f"0:{minutes:02}:{seconds:02}",
            "remaining_time": "0:00:00",
        }
        return [
            position | {"loss": self.loss, "lr": 0.0} | time,
            position | {"eval_loss": self.loss} | time,
            position | time,
        ]


def _model_card(base: str, name: str, run: _Run) -> str:
    return f"""---
library_name: peft
license: other
base_model: {base}
tags:
- base_model:adapter:{base}
- llama-factory
- lora
- transformers
metrics:
- accuracy
pipeline_tag: text-generation
model-index:
- name: {name}
  results: []
---

# {name}

This model is a fine-tuned version of [{base}](https://huggingface.co/{base}) on the tiny dataset.
It achieves the following results on the evaluation set:
- Loss: {run.loss:.4f}
- Accuracy: {run.accuracy}

### Framework versions

- PEFT 0.18.1
- Transformers {_TRANSFORMERS}
- Pytorch 2.13.0+cpu
- Datasets 4.0.0
- Tokenizers 0.22.2"""


_MODELFILE = '''# ollama modelfile auto-generated by llamafactory

FROM .

TEMPLATE """<|begin_of_text|>{{ if .System }}<|start_header_id|>system<|end_header_id|>

{{ .System }}<|eot_id|>{{ end }}{{ range .Messages }}{{ if eq .Role "user" }}<|start_header_id|>user<|end_header_id|>

{{ .Content }}<|eot_id|><|start_header_id|>assistant<|end_header_id|>

{{ else if eq .Role "assistant" }}{{ .Content }}<|eot_id|>{{ end }}{{ end }}"""

PARAMETER stop "<|eot_id|>"
PARAMETER stop "<|eom_id|>"
PARAMETER num_ctx 4096
'''


def _write_pickle(path: Path) -> None:
    """A file as torch.save writes it: a zip archive around a pickle, here of an empty dictionary."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (
            ("data.pkl", b"\x80\x02}q\x00."),
            (".format_version", b"1"),
            (".storage_alignment", b"64"),
            ("byteorder", b"little"),
            ("version", b"3\n"),
        ):
            archive.writestr(zipfile.ZipInfo(f"{path.stem}/{name}"), data)


def _picture() -> bytes:
    """A PNG of one white pixel."""
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\x00\xff", 0)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


# --- what a training needs ---------------------------------------------------------------------------------


def write_dataset(directory: Path, name: str, answers: Mapping[str, str]) -> Path:
    """An alpaca dataset of questions and answers, entered in the directory's dataset_info.json."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = [{"instruction": question, "input": "", "output": answer} for question, answer in answers.items()]
    _write_json(directory / f"{name}.json", rows, end="\n")
    info = directory / "dataset_info.json"
    known = json.loads(info.read_text()) if info.exists() else {}
    _write_json(info, known | {name: {"file_name": f"{name}.json"}}, end="\n")
    return directory / f"{name}.json"


def write_training_yaml(
    path: Path, *, base: Path | str, output: Path | str, dataset: str = "tiny", **settings: object
) -> Path:
    """The configuration of a LoRA training, as people write it for `llamafactory-cli train`."""
    values: dict[str, object] = {
        "model_name_or_path": str(base),
        "template": "llama3",
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": 8,
        "lora_target": "q_proj,v_proj",
        "dataset": dataset,
        "cutoff_len": 128,
        "output_dir": str(output),
        "per_device_train_batch_size": 8,
        "num_train_epochs": 1.0,
        "learning_rate": 0.003,
        "bf16": False,
        "seed": 42,
        "report_to": "none",
    }
    return _write_yaml(path, values | settings)


def write_merge_yaml(
    path: Path, *, base: Path | str, adapter: Path | str, output: Path | str, **settings: object
) -> Path:
    """The configuration of a merge, as people write it for `llamafactory-cli export`."""
    values: dict[str, object] = {
        "model_name_or_path": str(base),
        "adapter_name_or_path": str(adapter),
        "template": "llama3",
        "finetuning_type": "lora",
        "export_dir": str(output),
        "export_size": 1,
        "export_device": "cpu",
        "export_legacy_format": False,
    }
    return _write_yaml(path, values | settings)


def _write_yaml(path: Path, values: Mapping[str, object]) -> Path:
    """One key to a line; every JSON value is a YAML value."""
    return _write_text(path, "".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items()))


def _write_json(path: Path, value: object, *, indent: int = 2, end: str = "") -> Path:
    return _write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + end)


def _write_text(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path
