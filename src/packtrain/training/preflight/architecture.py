"""The tensors of an architecture, from its config.json alone: names and shapes as transformers saves them.

The tables below are what ``save_pretrained`` of transformers 5.6 to 5.19 writes, name by name; tests/engines holds
them against it. A line is a tensor and its shape: ``V`` tokens, ``H`` hidden size, ``I`` intermediate size, ``Q`` and
``K`` widths of queries and of keys, ``D`` head size, ``E`` experts, ``M`` an expert's intermediate size; sums and
multiples of them as ``Q+2K``. ``@`` is the number of a vision layer, ``#`` that of an expert. Sizes that a
configuration leaves out are defaults of a class that is not here: they match anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeAlias

Shape: TypeAlias = tuple[int | None, ...]
"""The sizes of a tensor; None is one that is not known."""

Sizes: TypeAlias = Mapping[str, int | None]

MAX_SIZE = 2**31
MAX_COUNT = 1000  # of layers and of experts: keeps a hostile configuration from making lists without end

_ENDS = "model.embed_tokens.weight V H\nmodel.norm.weight H"
_NORMS = "input_layernorm.weight H\npost_attention_layernorm.weight H"
_ATTENTION = """
self_attn.q_proj.weight Q H
self_attn.k_proj.weight K H
self_attn.v_proj.weight K H
self_attn.o_proj.weight H Q
"""
_QKV_BIAS = "self_attn.q_proj.bias Q\nself_attn.k_proj.bias K\nself_attn.v_proj.bias K"
_O_BIAS = "self_attn.o_proj.bias H"
_QK_NORM = "self_attn.q_norm.weight D\nself_attn.k_norm.weight D"
_MLP = "mlp.gate_proj.weight I H\nmlp.up_proj.weight I H\nmlp.down_proj.weight H I"
_MLP_BIAS = "mlp.gate_proj.bias I\nmlp.up_proj.bias I\nmlp.down_proj.bias H"
_MORE_NORMS = "pre_feedforward_layernorm.weight H\npost_feedforward_layernorm.weight H"
_MIXTRAL_EXPERTS = """
block_sparse_moe.gate.weight E H
block_sparse_moe.experts.#.w1.weight I H
block_sparse_moe.experts.#.w2.weight H I
block_sparse_moe.experts.#.w3.weight I H
"""
_QWEN_EXPERTS = """
mlp.gate.weight E H
mlp.experts.#.gate_proj.weight M H
mlp.experts.#.up_proj.weight M H
mlp.experts.#.down_proj.weight H M
"""
_PHI_ENDS = "model.embed_tokens.weight V H\nmodel.final_layernorm.weight H\nmodel.final_layernorm.bias H"
_PHI = """
input_layernorm.weight H
input_layernorm.bias H
self_attn.q_proj.weight Q H
self_attn.k_proj.weight K H
self_attn.v_proj.weight K H
self_attn.dense.weight H Q
self_attn.dense.bias H
mlp.fc1.weight I H
mlp.fc1.bias I
mlp.fc2.weight H I
mlp.fc2.bias H
"""
_PHI_QK_NORM = """
self_attn.q_layernorm.weight D
self_attn.q_layernorm.bias D
self_attn.k_layernorm.weight D
self_attn.k_layernorm.bias D
"""
_PHI3 = """
self_attn.qkv_proj.weight Q+2K H
self_attn.o_proj.weight H Q
mlp.gate_up_proj.weight 2I H
mlp.down_proj.weight H I
"""

# Vision towers. W: width, F: width of its feed-forward, G: patches merged into one, P: its patch, O: width of the text.
_QWEN2_VISION = """
visual.blocks.@.norm1.bias W
visual.blocks.@.norm2.bias W
visual.blocks.@.mlp.fc1.weight F W
visual.blocks.@.mlp.fc1.bias F
visual.blocks.@.mlp.fc2.weight W F
visual.blocks.@.mlp.fc2.bias W
visual.merger.ln_q.bias W
"""
_QWEN2_5_VISION = """
visual.blocks.@.mlp.gate_proj.weight F W
visual.blocks.@.mlp.gate_proj.bias F
visual.blocks.@.mlp.up_proj.weight F W
visual.blocks.@.mlp.up_proj.bias F
visual.blocks.@.mlp.down_proj.weight W F
visual.blocks.@.mlp.down_proj.bias W
"""
_QWEN_VISION = """
visual.patch_embed.proj.weight W C T P P
visual.blocks.@.norm1.weight W
visual.blocks.@.norm2.weight W
visual.blocks.@.attn.qkv.weight 3W W
visual.blocks.@.attn.qkv.bias 3W
visual.blocks.@.attn.proj.weight W W
visual.blocks.@.attn.proj.bias W
visual.merger.ln_q.weight W
visual.merger.mlp.0.weight G G
visual.merger.mlp.0.bias G
visual.merger.mlp.2.weight O G
visual.merger.mlp.2.bias O
"""
_TOWER = """
vision_tower.embeddings.patch_embedding.weight W C P P
vision_tower.embeddings.position_embedding.weight N W
vision_tower.encoder.layers.@.layer_norm1.weight W
vision_tower.encoder.layers.@.layer_norm1.bias W
vision_tower.encoder.layers.@.layer_norm2.weight W
vision_tower.encoder.layers.@.layer_norm2.bias W
vision_tower.encoder.layers.@.self_attn.q_proj.weight W W
vision_tower.encoder.layers.@.self_attn.q_proj.bias W
vision_tower.encoder.layers.@.self_attn.k_proj.weight W W
vision_tower.encoder.layers.@.self_attn.k_proj.bias W
vision_tower.encoder.layers.@.self_attn.v_proj.weight W W
vision_tower.encoder.layers.@.self_attn.v_proj.bias W
vision_tower.encoder.layers.@.self_attn.out_proj.weight W W
vision_tower.encoder.layers.@.self_attn.out_proj.bias W
vision_tower.encoder.layers.@.mlp.fc1.weight F W
vision_tower.encoder.layers.@.mlp.fc1.bias F
vision_tower.encoder.layers.@.mlp.fc2.weight W F
vision_tower.encoder.layers.@.mlp.fc2.bias W
"""
_CLIP_TOWER = """
vision_tower.embeddings.class_embedding W
vision_tower.pre_layrnorm.weight W
vision_tower.pre_layrnorm.bias W
"""
_SIGLIP_TOWER = "vision_tower.embeddings.patch_embedding.bias W"
_POST_NORM = "vision_tower.post_layernorm.weight W\nvision_tower.post_layernorm.bias W"
_SIGLIP_HEAD = """
vision_tower.head.probe 1 1 W
vision_tower.head.attention.in_proj_weight 3W W
vision_tower.head.attention.in_proj_bias 3W
vision_tower.head.attention.out_proj.weight W W
vision_tower.head.attention.out_proj.bias W
vision_tower.head.layernorm.weight W
vision_tower.head.layernorm.bias W
vision_tower.head.mlp.fc1.weight F W
vision_tower.head.mlp.fc1.bias F
vision_tower.head.mlp.fc2.weight W F
vision_tower.head.mlp.fc2.bias W
"""
_LLAVA_PROJECTOR = "multi_modal_projector.linear_1.weight O L\nmulti_modal_projector.linear_2.weight O O"
_LLAVA_PROJECTOR_BIAS = "multi_modal_projector.linear_1.bias O\nmulti_modal_projector.linear_2.bias O"
_GEMMA_PROJECTOR = """
multi_modal_projector.mm_input_projection_weight W O
multi_modal_projector.mm_soft_emb_norm.weight W
"""


@dataclass(frozen=True, slots=True)
class Decoder:
    """A text model: the tables of each of its layers, and those that a flag of the configuration adds."""

    layer: tuple[str, ...]
    flags: Mapping[str, str] = field(default_factory=dict)
    ends: str = _ENDS
    experts: str = ""  # of its sparse layers
    dense: str = ""  # in their place in the others
    tied: bool = False  # the class's own tie_word_embeddings
    head_size: int | None = None  # the class's own; None: hidden size / heads
    head_bias: bool = False


_ATTENTION_BIAS = {"attention_bias": f"{_QKV_BIAS}\n{_O_BIAS}"}
_GEMMA3 = Decoder((_NORMS, _ATTENTION, _QK_NORM, _MLP, _MORE_NORMS), _ATTENTION_BIAS, tied=True, head_size=256)

DECODERS: Mapping[str, Decoder] = {
    "Llama": Decoder((_NORMS, _ATTENTION, _MLP), {**_ATTENTION_BIAS, "mlp_bias": _MLP_BIAS}),
    "Mistral": Decoder((_NORMS, _ATTENTION, _MLP)),
    "Qwen2": Decoder((_NORMS, _ATTENTION, _QKV_BIAS, _MLP)),
    "Qwen3": Decoder((_NORMS, _ATTENTION, _QK_NORM, _MLP), _ATTENTION_BIAS, head_size=128),
    "Gemma": Decoder((_NORMS, _ATTENTION, _MLP), _ATTENTION_BIAS, tied=True, head_size=256),
    "Gemma2": Decoder((_NORMS, _ATTENTION, _MLP, _MORE_NORMS), _ATTENTION_BIAS, tied=True, head_size=256),
    "Gemma3": _GEMMA3,
    "Gemma3Text": _GEMMA3,
    "Phi": Decoder((_PHI, _QKV_BIAS), {"qk_layernorm": _PHI_QK_NORM}, ends=_PHI_ENDS, head_bias=True),
    "Phi3": Decoder((_NORMS, _PHI3)),
    "Mixtral": Decoder((_NORMS, _ATTENTION), experts=_MIXTRAL_EXPERTS),
    "Qwen3Moe": Decoder((_NORMS, _ATTENTION, _QK_NORM), _ATTENTION_BIAS, experts=_QWEN_EXPERTS, dense=_MLP),
}
_FAMILY_OF_TYPE = {
    "llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "gemma": "Gemma", "gemma2": "Gemma2",
    "gemma3_text": "Gemma3", "phi": "Phi", "phi3": "Phi3", "mixtral": "Mixtral", "qwen3_moe": "Qwen3Moe",
    "qwen2_vl": "Qwen2", "qwen2_vl_text": "Qwen2", "qwen2_5_vl": "Qwen2", "qwen2_5_vl_text": "Qwen2",
}  # fmt: skip

_CLASS = re.compile(
    r"(\w+?)(ForCausalLM|ForSequenceClassification|ForTokenClassification|ForConditionalGeneration|Model)"
)

# Other spellings of the same tensors: a bare body; vision-language models before and since transformers 4.52, and in
# memory, which is how PEFT names them.
_SPELLINGS = (
    (re.compile(r"^(embed_tokens|layers|norm|final_layernorm)\."), r"model.\1."),
    (re.compile(r"^(model\.language_model|language_model\.model)\."), "model."),
    (re.compile(r"^language_model\.lm_head\b"), "lm_head"),
    (re.compile(r"^model\.(visual|vision_tower|multi_modal_projector)\."), r"\1."),
    (re.compile(r"^vision_tower\.vision_model\."), "vision_tower."),
)


class UnknownArchitecture(ValueError):
    """The tables do not have it. The message is its name."""


class BadConfig(ValueError):
    """A size that is none. The message completes "config.json: ..."."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a configuration promises: the shape of each tensor, by its canonical name.

    Those in ``optional`` may be absent; there may be any under the prefixes ``unchecked``. ``tied``: the output layer
    is the embedding (None: the class, which is not known here, would say).
    """

    architecture: str
    shapes: Mapping[str, Shape]
    optional: frozenset[str]
    unchecked: tuple[str, ...]
    tied: bool | None


def canonical(name: str) -> str:
    """The name of a tensor or module as the tables spell it."""
    if name.startswith("model.layers."):  # so is nearly every name
        return name
    for pattern, spelling in _SPELLINGS:
        name = pattern.sub(spelling, name)
    return name


def architecture(config: Mapping[str, Any]) -> str:
    """The class that an engine would load, or the model's type where no class is named."""
    names = config.get("architectures")
    if isinstance(names, list) and names and isinstance(names[0], str):
        return names[0]
    model_type = str(config.get("model_type"))
    return f"{_FAMILY_OF_TYPE[model_type]}ForCausalLM" if model_type in _FAMILY_OF_TYPE else model_type


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration of the text model: a vision-language model's own section over what is beside it."""
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, dict) else config


def expect(config: Mapping[str, Any], *, layers: int) -> Expected:
    """The tensors that a model of this configuration has; ``layers`` if it does not say how many.

    Raises UnknownArchitecture, BadConfig.
    """
    name = architecture(config)
    match = _CLASS.fullmatch(name)
    family, task = match.groups() if match else ("", "")
    text = text_config(config)
    vision: dict[str, Shape] = {}
    optional: set[str] = set()
    unchecked: tuple[str, ...] = ()
    if task == "ForConditionalGeneration":
        vision, optional, unchecked = _vision(family, config, text, name)
        family = _FAMILY_OF_TYPE.get(str(text.get("model_type")), "")
    if family not in DECODERS:
        raise UnknownArchitecture(name)
    decoder = DECODERS[family]
    shapes = dict(_body(decoder, text, layers, name)) | vision
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings"))
    if not isinstance(tied, bool):
        tied = None if task == "ForConditionalGeneration" else decoder.tied
    if task in ("ForCausalLM", "ForConditionalGeneration"):
        shapes["lm_head.weight"] = (_size(text, "vocab_size"), _size(text, "hidden_size"))
        if decoder.head_bias:
            shapes["lm_head.bias"] = (_size(text, "vocab_size"),)
        if tied is not False:
            optional.add("lm_head.weight")
    elif task != "Model":
        shapes["score.weight"] = (None, _size(text, "hidden_size"))
        shapes["score.bias"] = (None,)
        optional.add("score.bias")
    return Expected(name, shapes, frozenset(optional), unchecked, tied)


def _body(decoder: Decoder, config: Mapping[str, Any], layers: int, name: str) -> Iterator[tuple[str, Shape]]:
    sizes = _text_sizes(decoder, config)
    yield from _rows(decoder.ends, sizes)
    tables = [*decoder.layer, *(table for flag, table in decoder.flags.items() if config.get(flag) is True)]
    experts = sizes["E"] or 0
    if decoder.experts and not experts:
        raise UnknownArchitecture(f"{name} without a number of experts")
    for layer in range(_size(config, "num_hidden_layers", MAX_COUNT) or layers):
        sparse = decoder.experts and _is_sparse(config, layer)
        for table in (*tables, decoder.experts if sparse else decoder.dense):
            for tensor, shape in _rows(table, sizes):
                for number in range(experts if "#" in tensor else 1):
                    yield f"model.layers.{layer}.{tensor.replace('#', str(number))}", shape


def _is_sparse(config: Mapping[str, Any], layer: int) -> bool:
    dense, step = config.get("mlp_only_layers"), _size(config, "decoder_sparse_step") or 1
    return not (isinstance(dense, list) and layer in dense) and (layer + 1) % step == 0


def _text_sizes(decoder: Decoder, config: Mapping[str, Any]) -> Sizes:
    hidden, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    head = _size(config, "head_dim") or decoder.head_size or (hidden // heads if hidden and heads else None)
    keys = _size(config, "num_key_value_heads")
    if keys is None and "num_key_value_heads" in config:  # null: as many as there are heads
        keys = heads
    return {
        "V": _size(config, "vocab_size"),
        "H": hidden,
        "I": _size(config, "intermediate_size"),
        "Q": heads * head if heads and head else None,
        "K": keys * head if keys and head else None,
        "D": head,
        "E": _size(config, "num_local_experts", MAX_COUNT) or _size(config, "num_experts", MAX_COUNT),
        "M": _size(config, "moe_intermediate_size"),
    }


def _vision(
    family: str, config: Mapping[str, Any], text: Mapping[str, Any], name: str
) -> tuple[dict[str, Shape], set[str], tuple[str, ...]]:
    """The tensors beside a text model: their shapes, those that may be absent, and prefixes that are not checked."""
    vision = config.get("vision_config")
    if not isinstance(vision, dict):
        raise UnknownArchitecture(name)
    if family in ("Qwen2VL", "Qwen2_5_VL"):
        sizes = _qwen_sizes(family, vision)
        table = _QWEN_VISION + (_QWEN2_VISION if family == "Qwen2VL" else _QWEN2_5_VISION)
        depth = _size(vision, "depth", MAX_COUNT)
        return (_numbered(table, sizes, depth), set(), ()) if depth else ({}, set(), ("visual.",))
    if family not in ("Llava", "Gemma3"):
        raise UnknownArchitecture(name)
    sizes = _tower_sizes(config, text, vision)
    projector = _GEMMA_PROJECTOR
    if family == "Llava":
        bias = config.get("multimodal_projector_bias") is not False
        projector = f"{_LLAVA_PROJECTOR}\n{_LLAVA_PROJECTOR_BIAS if bias else ''}"
    shapes = dict(_rows(projector, sizes))
    depth, own = _size(vision, "num_hidden_layers", MAX_COUNT), _TOWERS.get(str(vision.get("model_type")))
    if own is None or depth is None:
        return shapes, set(), ("vision_tower.",)
    always, sometimes = own
    extra = dict(_rows(sometimes, sizes))
    return shapes | _numbered(f"{_TOWER}\n{always}", sizes, depth) | extra, set(extra), ()


_TOWERS = {
    "clip_vision_model": (_CLIP_TOWER, _POST_NORM),
    "siglip_vision_model": (_SIGLIP_TOWER, f"{_POST_NORM}\n{_SIGLIP_HEAD}"),
}


def _qwen_sizes(family: str, vision: Mapping[str, Any]) -> Sizes:
    first = family == "Qwen2VL"
    width, ratio = _size(vision, "embed_dim" if first else "hidden_size"), vision.get("mlp_ratio")
    merge = _size(vision, "spatial_merge_size")
    inner = int(width * ratio) if width and isinstance(ratio, int | float) and 0 < ratio < MAX_COUNT else None
    return {
        "W": width,
        "F": inner if first else _size(vision, "intermediate_size"),
        "G": width * merge**2 if width and merge else None,
        "O": _size(vision, "hidden_size" if first else "out_hidden_size"),
        "C": _size(vision, "in_channels") or _size(vision, "in_chans"),
        "T": _size(vision, "temporal_patch_size"),
        "P": _size(vision, "patch_size"),
    }


def _tower_sizes(config: Mapping[str, Any], text: Mapping[str, Any], vision: Mapping[str, Any]) -> Sizes:
    width, image, patch = (_size(vision, key) for key in ("hidden_size", "image_size", "patch_size"))
    patches = (image // patch) ** 2 if image and patch else None
    if patches and vision.get("model_type") == "clip_vision_model":
        patches += 1  # that of the class
    layers = config.get("vision_feature_layer")
    return {
        "W": width,
        "F": _size(vision, "intermediate_size"),
        "O": _size(text, "hidden_size"),
        "L": width * (len(layers) if isinstance(layers, list) else 1) if width else None,
        "N": patches,
        "C": _size(vision, "num_channels"),
        "P": patch,
    }


def _numbered(table: str, sizes: Sizes, count: int) -> dict[str, Shape]:
    return {
        name.replace("@", str(number)): shape
        for name, shape in _rows(table, sizes)
        for number in range(count if "@" in name else 1)
    }


@cache
def _parsed(table: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    lines = [line.split() for line in table.splitlines() if line]
    return tuple((name, tuple(dimensions)) for name, *dimensions in lines)


def _rows(table: str, sizes: Sizes) -> Iterator[tuple[str, Shape]]:
    for name, dimensions in _parsed(table):
        yield name, tuple(_sum(dimension, sizes) for dimension in dimensions)


def _sum(expression: str, sizes: Sizes) -> int | None:
    """The value of ``Q+2K``, None if a size of it is not known."""
    total = 0
    for term in expression.split("+"):
        times, symbol = term.rstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), term.lstrip("0123456789")
        size = sizes[symbol] if symbol else 1
        if size is None:
            return None
        total += int(times or 1) * size
    return total


def _size(config: Mapping[str, Any], key: str, limit: int = MAX_SIZE) -> int | None:
    """A size of a configuration, None if it does not say. Raises BadConfig for what is no size."""
    value = config.get(key)
    if value is None:
        return None
    if type(value) is not int or not 0 < value <= limit:
        raise BadConfig(f"says that {key} is {value!r:.40}, which is no size")
    return value
