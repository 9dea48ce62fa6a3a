"""The files of weights: whole, one set of them, and an index that says the same as their headers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator

from packtrain.model.finding import Finding
from packtrain.training.checkpoint import ADAPTER_WEIGHTS, INDEX
from packtrain.training.documents import printable
from packtrain.training.preflight.view import REEXPORT, View, listed_shards, refuse, some, warn

_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_EMPTY_EXPORT = "Export again into an empty directory."


def check_weights_are_there(view: View) -> Iterator[Finding]:
    if view.checkpoint.kind == "adapter":
        if ADAPTER_WEIGHTS not in view.there:
            yield refuse("no-weights", "", f"there is no {ADAPTER_WEIGHTS}", REEXPORT)
    elif not view.top_weights and INDEX not in view.there:
        yield refuse("no-weights", "", "there are no safetensors weights", REEXPORT)


def check_headers(view: View) -> Iterator[Finding]:
    for path, problem in view.broken.items():
        fix = "It was cut short or damaged, by a full disk or an interrupted copy, say. Copy or export it again."
        yield refuse("header-invalid", path, problem, fix)
    for path, header in view.headers.items():
        if not any(tensor.size for tensor in header.tensors):
            fix = "The training or export saved nothing here (DeepSpeed ZeRO-3 can): export again."
            yield refuse("weights-empty", path, "holds no tensor data", fix)


def check_one_set_of_weights(view: View) -> Iterator[Finding]:
    """transformers loads model.safetensors if it is there, else what the index names; vLLM loads what the index
    names, without an index every safetensors file. All must mean the same files."""
    if view.checkpoint.kind == "adapter":
        others = [path for path in view.top_weights if path != ADAPTER_WEIGHTS]
        yield from (_unlisted(path, f"engines load {ADAPTER_WEIGHTS} alone") for path in others)
    elif INDEX in view.there:
        listed = listed_shards(view.index)
        for path in view.top_weights if listed else []:
            if path == "model.safetensors" and path not in listed:
                fix = f"Remove what is left of an earlier export, {path} or {INDEX} and its shards; or: {_EMPTY_EXPORT}"
                what = "is beside an index that does not name it: transformers would load it, vLLM the index's shards"
                yield refuse("weights-ambiguous", path, what, fix)
            elif path not in listed:
                yield _unlisted(path, "the index does not name it")
    elif any(_SHARD.fullmatch(path) for path in view.top_weights):
        what = "is missing, and there are shards: an engine cannot tell whether they are all"
        yield refuse("no-index", INDEX, what, _EMPTY_EXPORT)
    elif len(view.top_weights) > 1:
        for path in view.top_weights:
            if path != "model.safetensors":
                fix = "Move it out of the directory, or into a folder of its own."
                what = "is a second file of weights without an index: vLLM would load both, transformers one"
                yield refuse("weights-ambiguous", path, what, fix)


def _unlisted(path: str, why: str) -> Finding:
    fix = "Remove it if an earlier export left it there; it would travel with every pull."
    return warn("shard-unlisted", path, f"holds weights that no engine loads: {why}", fix)


def check_index(view: View) -> Iterator[Finding]:
    """The index and the shards' headers say the same about every tensor."""
    if view.checkpoint.kind == "adapter" or view.index is None:
        return
    if not listed_shards(view.index):
        yield refuse("index-invalid", INDEX, "has no weight_map of tensor names to file names", _EMPTY_EXPORT)
        return
    where: dict[str, str] = view.index["weight_map"]
    listed = listed_shards(view.index)
    for shard in sorted(listed - view.there):
        fix = f"Copy it here, or export again. {len(listed)} shards are named, {len(listed & view.there)} are here."
        yield refuse("shard-missing", shard, "is named by the index and not in the directory", fix)
    held = {shard: {tensor.name for tensor in view.headers[shard].tensors} for shard in listed & view.headers.keys()}
    counts = Counter(name for names in held.values() for name in names)
    promises: dict[str, set[str]] = {shard: set() for shard in listed}
    for name, file in where.items():
        promises[file].add(name)
    for shard, names in sorted(held.items()):
        promised = promises[shard]
        yield from _mismatch(shard, promised - names, "lacks", "that the index promises there")
        yield from _mismatch(
            shard, {name for name in names if name not in where}, "holds", "that the index does not name"
        )
        misplaced = {name for name in names - promised if name in where and counts[name] == 1}
        yield from _mismatch(shard, misplaced, "holds", "that the index places in another shard")
        twice = {name for name in names & promised if counts[name] > 1}
        yield from _mismatch(shard, twice, "holds", "that another shard holds too")


def _mismatch(shard: str, names: Iterable[str], verb: str, contradiction: str) -> Iterator[Finding]:
    if found := list(names):
        what = f"{verb} the tensor {some(found)} {contradiction}"
        fix = f"The shards and the index come from two exports: {_EMPTY_EXPORT[0].lower()}{_EMPTY_EXPORT[1:]}"
        yield refuse("index-mismatch", shard, what, fix)


def check_total_size(view: View) -> Iterator[Finding]:
    listed = listed_shards(view.index)
    if view.index is None or not listed or not listed <= view.headers.keys():
        return
    metadata = view.index.get("metadata")
    said = metadata.get("total_size") if isinstance(metadata, dict) else None
    actual = sum(tensor.size for shard in listed for tensor in view.headers[shard].tensors)
    if said is not None and said != actual:
        what = f"says that the tensors take {printable(str(said))[:40]} bytes; they take {actual}"
        yield warn("index-total", INDEX, what, "Harmless to engines, but a sign of a hand-made or mixed export.")
