"""The tensors against config.json: names, shapes, types, and whether they are quantised."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from packtrain.model.finding import Finding
from packtrain.model.safetensors import Tensor
from packtrain.training.checkpoint import INDEX
from packtrain.training.preflight.architecture import (
    BadConfig,
    Expected,
    Shape,
    UnknownArchitecture,
    expect,
    text_config,
)
from packtrain.training.preflight.quantisation import Quantisation, quantisation_of
from packtrain.training.preflight.view import View, refuse, some, warn
from packtrain.training.weights import same_bytes

EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
_FROM_BASE = "Copy config.json from the base model, or export again into an empty directory."

_FLOATS = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_ROUTER = re.compile(r"\.gate\.weight$")  # often kept in float32 on purpose
_BUFFERS = re.compile(r"\.(rotary_emb\.inv_freq|position_ids|masked_bias|attn\.bias)$")  # engines compute them
_LAYER = re.compile(r"\.(?:layers|h|blocks|block)\.(\d+)\.")
_EMBEDDINGS = re.compile(r"(?:^|\.)(?:embed_tokens|wte|word_embeddings|tok_embeddings|embed_in|shared)\.weight$")


def check_quantisation(view: View) -> Iterator[Finding]:
    """A configuration of quantised weights has quantised weights, and they have it."""
    if problem := _quantisation_problem(view):
        fix = "Remove quantization_config if the weights are plain; else export again, config.json with the weights."
        yield refuse("quantisation-mismatch", "config.json", problem, fix)


def _quantisation_problem(view: View) -> str | None:
    if not view.merged or not view.tensors:
        return None
    quantisation = quantisation_of(view.checkpoint)
    if quantisation is None and (traces := Quantisation.traces(view.tensors)):
        return f"has no quantization_config, and there are quantised tensors: {some(traces)}"
    if quantisation and quantisation.marks and not quantisation.is_in(view.tensors):
        return f"says that the weights are quantised with {quantisation.method}, and none is"
    return None


def check_tensors(view: View) -> Iterator[Finding]:
    """Every tensor that the architecture has, and no other, in the shapes that the configuration gives."""
    if not view.merged or not view.config or not view.tensors or _quantisation_problem(view):
        return
    quantisation = quantisation_of(view.checkpoint)
    layers = _layers(view.tensors)
    try:
        expected = expect(view.config, layers=max(layers, default=-1) + 1)
    except BadConfig as error:
        yield refuse("config-invalid", "config.json", str(error), "Copy config.json from the base model.")
        return
    except UnknownArchitecture as error:
        if str(error) != "None":  # it names none: check_config refuses that
            yield from _in_general(view, layers, str(error))
        return
    shapes, optional = dict(expected.shapes), set(expected.optional)
    if quantisation:
        if not quantisation.known:
            yield from _in_general(view, layers, f"{expected.architecture} quantised with {quantisation.method}")
            return
        shapes, optional = quantisation.applied(shapes, optional, view.tensors)
    yield from _compare(view, expected, shapes, optional)


def _compare(view: View, expected: Expected, shapes: Mapping[str, Shape], optional: set[str]) -> Iterator[Finding]:
    held = view.tensors
    what = f"{expected.architecture} with this config.json"
    if missing := [name for name in shapes if name not in held and name not in optional]:
        fix = "Export again into an empty directory; if config.json is from elsewhere, copy it from the base model."
        yield refuse("tensor-missing", _weights(view), f"lacks the tensor {some(missing)} of {what}", fix)
    for where, names in _by_file(
        view,
        [name for name in held if name not in shapes and not _BUFFERS.search(name) and not _under(name, expected)],
    ):
        yield refuse("tensor-extra", where, f"holds the tensor {some(names)}, and {what} has none such", _FROM_BASE)
    for where, names in _by_file(view, [name for name in held if name in shapes and not _fits(name, held, shapes)]):
        first = min(names)
        more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        told = f"the tensor {first!r} has the shape {_shown(held[first][1].shape)}, and {what} takes "
        yield refuse("shape-mismatch", where, f"{told}{_shown(shapes[first])}{more}", _FROM_BASE)


def _under(name: str, expected: Expected) -> bool:
    return any(name.startswith(prefix) for prefix in expected.unchecked)


def _fits(name: str, held: Mapping[str, tuple[str, Tensor]], shapes: Mapping[str, Shape]) -> bool:
    shape, wanted = held[name][1].shape, shapes[name]
    return len(shape) == len(wanted) and all(b in (a, None) for a, b in zip(shape, wanted, strict=True))


def _shown(shape: Shape) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"


def _by_file(view: View, names: list[str]) -> Iterator[tuple[str, list[str]]]:
    for path in sorted({view.tensors[name][0] for name in names}):
        yield path, [name for name in names if view.tensors[name][0] == path]


def _weights(view: View) -> str:
    """Where a tensor would be that is nowhere."""
    return INDEX if view.index else next(iter(view.tensors.values()))[0]


def _in_general(view: View, layers: set[int], unknown: str) -> Iterator[Finding]:
    """What holds for any architecture. The rest is said not to be known, and never refused."""
    what = (
        f"describes {unknown}, whose tensors preflight does not know: "
        "only their types, the embedding, the number of layers and the index were checked"
    )
    fix = "Nothing to mend, but serve the version once before you promote it."
    yield warn("architecture-unknown", "config.json", what, fix)
    text = text_config(view.config)
    count, size = text.get("num_hidden_layers"), text.get("vocab_size")
    if layers and isinstance(count, int) and (absent := set(range(min(count, 10_000))) - layers):
        told = f"lacks layer {min(absent)}: config.json promises {count} layers, the weights have {len(layers)}"
        yield refuse("tensor-missing", _weights(view), told, "Export again into an empty directory.")
    rows = _embedding_rows(view)
    if rows is not None and isinstance(size, int) and rows[1] < size:
        told = f"the embedding has {rows[1]} rows, and config.json promises a vocab_size of {size}"
        yield refuse("shape-mismatch", rows[0], told, _FROM_BASE)


def _layers(tensors: Mapping[str, Any]) -> set[int]:
    """The numbers of the layers of the text model, or of whatever has layers."""
    main = [name for name in tensors if name.startswith("model.layers.")] or list(tensors)
    return {int(match[1]) for name in main if (match := _LAYER.search(f".{name}"))}


def _embedding_rows(view: View) -> tuple[str, int] | None:
    """The file of the embedding, and how many tokens it has a row for; of the largest if there are several."""
    found = [
        (path, tensor.shape[0])
        for name, (path, tensor) in view.tensors.items()
        if _EMBEDDINGS.search(name) and len(tensor.shape) == 2
    ]
    return max(found, key=lambda place: place[1], default=None)


def check_vocabulary(view: View) -> Iterator[Finding]:
    """Every token has a row in the embedding."""
    vocabulary, rows = view.vocabulary, _embedding_rows(view)
    if vocabulary and rows and (largest := max(vocabulary.ids, default=-1)) >= rows[1]:
        what = f"has tokens up to number {largest}, and the embedding in {rows[0]} has {rows[1]} rows"
        fix = "Train with resize_vocab: true if tokens were added; else copy the tokenizer from the base model."
        yield refuse("vocabulary-too-large", vocabulary.file, what, fix)


def check_dtype(view: View) -> Iterator[Finding]:
    """The type that config.json declares is the one that engines compute in and size their memory for."""
    if not view.merged or quantisation_of(view.checkpoint):
        return
    text = text_config(view.config)
    said = str(text.get("dtype") or text.get("torch_dtype")).removeprefix("torch.")
    matrices = {
        name: tensor.dtype
        for name, (_, tensor) in view.tensors.items()
        if len(tensor.shape) > 1 and tensor.dtype in _FLOATS.values() and not _ROUTER.search(name)
    }
    other = [name for name, dtype in matrices.items() if dtype != _FLOATS.get(said)]
    if said not in _FLOATS or not other:
        return
    if len(other) == len(matrices):
        what = f"says {said}, and the weights are {' and '.join(sorted(set(matrices.values())))}"
        fix = "Export again, or set dtype in config.json to what the weights are."
        yield refuse("dtype-mismatch", "config.json", what, fix)
        return
    for where, names in _by_file(view, other):
        what = f"holds {some(names)} as {matrices[min(names)]}, and config.json says {said}"
        fix = "Engines convert them. If that was not meant (freeze training leaves such), export again in one type."
        yield warn("dtype-mixed", where, what, fix)


def check_tied(view: View) -> Iterator[Finding]:
    """A tied output layer that is saved too is the embedding: transformers would use it, vLLM would not."""
    if not view.merged or EMBEDDING not in view.tensors or OUTPUT not in view.tensors:
        return
    try:
        tied = expect(view.config, layers=1).tied
    except (UnknownArchitecture, BadConfig):
        tied = view.config.get("tie_word_embeddings") is True
    (first, one), (second, two) = view.tensors[EMBEDDING], view.tensors[OUTPUT]
    folder = view.checkpoint.directory
    if tied and not (
        (one.dtype, one.shape) == (two.dtype, two.shape)
        and same_bytes(folder / first, one.start, folder / second, two.start, one.size, whole=view.whole)
    ):
        what = f"holds an output layer {two.name!r} that differs from the embedding, and config.json ties the two"
        fix = "Set tie_word_embeddings to false in config.json if it was trained apart, or export again."
        yield refuse("tied-differ", second, what, fix)
