"""Whether an engine could serve a checkpoint: small checks over what was read once.

Each check takes the `View` and yields findings. docs/preflight.md documents every code, and a test keeps it so.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from packtrain.model.finding import Finding
from packtrain.model.manifest import PICKLE_SUFFIXES
from packtrain.model.safetensors import Header, HeaderError
from packtrain.training.checkpoint import ADAPTER_CONFIG, ADAPTER_WEIGHTS, INDEX, Checkpoint
from packtrain.training.documents import file_size, printable
from packtrain.training.weights import read_header

LARGE_UNKNOWN = 32 << 20  # bytes: an unknown file of this size is worth a word

_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_REEXPORT = (
    "Export again with safetensors (LLaMA-Factory: export_legacy_format: false; for a training: "
    "save_safetensors: true), into an empty directory."
)
_EMPTY_EXPORT = "Export again into an empty directory."
_VOCABULARIES = re.compile(
    r"tokenizer\.json|tokenizer\.model(\.v\d+)?|vocab\.(json|txt|model|bpe)|spiece\.model|tekken\.json"
    r"|sentencepiece\.bpe\.model|.*\.tiktoken|tokenization_\w+\.py"
)


@dataclass(frozen=True, slots=True)
class View:
    """What the checks look at. ``headers`` holds each safetensors file whose header is good, ``broken`` the problem of
    each of the others. ``there`` are the paths of all files that are there, those refused already included."""

    checkpoint: Checkpoint
    allow_code: bool
    headers: Mapping[str, Header]
    broken: Mapping[str, str]
    sizes: Mapping[str, int]
    there: frozenset[str]

    @property
    def index(self) -> dict[str, Any] | None:
        """The index of the shards, None where there is none or it does not parse."""
        return self.checkpoint.documents.get(INDEX)

    @property
    def top_weights(self) -> list[str]:
        """The safetensors files that engines look at: those directly in the directory."""
        return sorted(path for path in self.there if path.endswith(".safetensors") and "/" not in path)


def preflight(checkpoint: Checkpoint, *, allow_code: bool) -> tuple[Finding, ...]:
    """All findings, refusals first. None that refuses means that the checkpoint may be published.

    Reads the headers of the safetensors files, never their tensors. Raises NotFound if a file vanished meanwhile,
    LocalDiskError.
    """
    view = _look(checkpoint, allow_code)
    findings = [*checkpoint.findings, *(finding for check in CHECKS for finding in check(view))]
    return tuple(sorted(findings, key=lambda finding: (finding.level != "refuse", finding.where, finding.code)))


def _look(checkpoint: Checkpoint, allow_code: bool) -> View:
    headers: dict[str, Header] = {}
    broken: dict[str, str] = {}
    for path in checkpoint.taken:
        if path.endswith(".safetensors"):
            try:
                headers[path] = read_header(checkpoint.directory / path)
            except HeaderError as error:
                broken[path] = str(error)
    sizes = {path: file_size(checkpoint.directory / path) for path in checkpoint.taken}
    there = frozenset(checkpoint.taken) | {finding.where for finding in checkpoint.findings}
    return View(checkpoint, allow_code, headers, broken, sizes, there)


def _refuse(code: str, where: str, what: str, fix: str) -> Finding:
    return Finding("refuse", code, printable(where), what, fix)


def _warn(code: str, where: str, what: str, fix: str) -> Finding:
    return Finding("warn", code, printable(where), what, fix)


def check_pickle(view: View) -> Iterator[Finding]:
    for path in view.checkpoint.taken:
        if path.lower().endswith(PICKLE_SUFFIXES):
            fix = f"Remove it: the weights are there as safetensors too. {_REEXPORT}" if view.headers else _REEXPORT
            yield _refuse("pickle", path, "is a pickle format: opening it can run code", fix)


def check_custom_code(view: View) -> Iterator[Finding]:
    """A refusal; with ``allow_code`` a warning, by which publish knows that the ledger must say so."""
    find = _warn if view.allow_code else _refuse
    fix = "If you have read that code and trust it, publish with --allow-code; the ledger records that."
    if view.allow_code:
        fix = "It was allowed, and the ledger records that."
    for path in view.checkpoint.taken:
        if path.lower().endswith(".py"):
            yield find("custom-code", path, "is code that the engine would run", fix)
    for path, document in sorted(view.checkpoint.documents.items()):
        if document.get("auto_map"):
            yield find("custom-code", path, "names code to load (auto_map)", fix)


def check_config(view: View) -> Iterator[Finding]:
    if view.checkpoint.kind != "merged":
        return
    if "config.json" not in view.there:
        fix = "Give the export_dir of a merge, or copy config.json from the base model."
        yield _refuse("no-config", "", "there is no config.json, so no engine knows the architecture", fix)
    elif "config.json" in view.checkpoint.documents and not _names_architecture(
        view.checkpoint.document("config.json")
    ):
        fix = "Copy config.json from the base model, or export again."
        yield _refuse("no-config", "config.json", "names neither architectures nor a model_type", fix)


def _names_architecture(config: dict[str, Any]) -> bool:
    names = config.get("architectures")
    return isinstance(config.get("model_type"), str) or (
        isinstance(names, list) and bool(names) and all(isinstance(name, str) for name in names)
    )


def check_tokenizer(view: View) -> Iterator[Finding]:
    if view.checkpoint.kind != "merged":
        return
    found = [path for path in view.there if _VOCABULARIES.fullmatch(path)]
    if not any(view.sizes.get(path, 1) for path in found):
        fix = "Copy the tokenizer's files from the base model: tokenizer.json, tokenizer_config.json and the like."
        yield _refuse("no-tokenizer", "", "no tokenizer has a vocabulary here", fix)
    elif "vocab.json" in found and "merges.txt" not in view.there and "tokenizer.json" not in found:
        fix = "Copy merges.txt from the base model."
        yield _refuse("no-tokenizer", "merges.txt", "is missing: vocab.json needs it", fix)


def check_adapter_config(view: View) -> Iterator[Finding]:
    if view.checkpoint.kind != "adapter":
        return
    if ADAPTER_CONFIG not in view.there:
        fix = "Give the output_dir of the training; PEFT writes adapter_config.json beside the weights."
        yield _refuse("no-adapter-config", "", "there are adapter weights, but no adapter_config.json", fix)
    elif ADAPTER_CONFIG in view.checkpoint.documents and (
        problem := _not_lora(view.checkpoint.document(ADAPTER_CONFIG))
    ):
        fix = "Publish a LoRA adapter, or merge it first (packtrain export) and publish the merged model."
        yield _refuse("not-lora", ADAPTER_CONFIG, problem, fix)


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


def check_weights_are_there(view: View) -> Iterator[Finding]:
    if view.checkpoint.kind == "adapter":
        if ADAPTER_WEIGHTS not in view.there:
            yield _refuse("no-weights", "", f"there is no {ADAPTER_WEIGHTS}", _REEXPORT)
    elif not view.top_weights and INDEX not in view.there:
        yield _refuse("no-weights", "", "there are no safetensors weights", _REEXPORT)


def check_headers(view: View) -> Iterator[Finding]:
    for path, problem in view.broken.items():
        fix = "It was cut short or damaged, by a full disk or an interrupted copy, say. Copy or export it again."
        yield _refuse("header-invalid", path, problem, fix)
    for path, header in view.headers.items():
        if not any(tensor.size for tensor in header.tensors):
            fix = "The training or export saved nothing here (DeepSpeed ZeRO-3 can): export again."
            yield _refuse("weights-empty", path, "holds no tensor data", fix)


def check_one_set_of_weights(view: View) -> Iterator[Finding]:
    """transformers loads model.safetensors if it is there, else what the index names; vLLM loads what the index
    names, without an index every safetensors file. All must mean the same files."""
    if view.checkpoint.kind == "adapter":
        others = [path for path in view.top_weights if path != ADAPTER_WEIGHTS]
        yield from (_unlisted(path, f"engines load {ADAPTER_WEIGHTS} alone") for path in others)
    elif INDEX in view.there:
        listed = _listed_shards(view.index)
        for path in view.top_weights if listed else []:
            if path == "model.safetensors" and path not in listed:
                fix = f"Remove what is left of an earlier export, {path} or {INDEX} and its shards; or: {_EMPTY_EXPORT}"
                what = "is beside an index that does not name it: transformers would load it, vLLM the index's shards"
                yield _refuse("weights-ambiguous", path, what, fix)
            elif path not in listed:
                yield _unlisted(path, "the index does not name it")
    elif any(_SHARD.fullmatch(path) for path in view.top_weights):
        what = "is missing, and there are shards: an engine cannot tell whether they are all"
        yield _refuse("no-index", INDEX, what, _EMPTY_EXPORT)
    elif len(view.top_weights) > 1:
        for path in view.top_weights:
            if path != "model.safetensors":
                fix = "Move it out of the directory, or into a folder of its own."
                what = "is a second file of weights without an index: vLLM would load both, transformers one"
                yield _refuse("weights-ambiguous", path, what, fix)


def _unlisted(path: str, why: str) -> Finding:
    fix = "Remove it if an earlier export left it there; it would travel with every pull."
    return _warn("shard-unlisted", path, f"holds weights that no engine loads: {why}", fix)


def check_index(view: View) -> Iterator[Finding]:
    """The index and the shards' headers say the same about every tensor."""
    if view.checkpoint.kind == "adapter" or view.index is None:
        return
    if not _listed_shards(view.index):
        yield _refuse("index-invalid", INDEX, "has no weight_map of tensor names to file names", _EMPTY_EXPORT)
        return
    where: dict[str, str] = view.index["weight_map"]
    listed = _listed_shards(view.index)
    for shard in sorted(listed - view.there):
        fix = f"Copy it here, or export again. {len(listed)} shards are named, {len(listed & view.there)} are here."
        yield _refuse("shard-missing", shard, "is named by the index and not in the directory", fix)
    held = {shard: {tensor.name for tensor in view.headers[shard].tensors} for shard in listed & view.headers.keys()}
    counts = Counter(name for names in held.values() for name in names)
    for shard, names in sorted(held.items()):
        promised = {name for name, file in where.items() if file == shard}
        yield from _mismatch(shard, promised - names, "lacks", "that the index promises there")
        yield from _mismatch(shard, names - where.keys(), "holds", "that the index does not name")
        misplaced = {name for name in names & where.keys() - promised if counts[name] == 1}
        yield from _mismatch(shard, misplaced, "holds", "that the index places in another shard")
        twice = {name for name in names & promised if counts[name] > 1}
        yield from _mismatch(shard, twice, "holds", "that another shard holds too")


def _mismatch(shard: str, names: Iterable[str], verb: str, contradiction: str) -> Iterator[Finding]:
    if found := sorted(names):
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        what = f"{verb} the tensor {printable(found[0])[:200]!r}{more} {contradiction}"
        fix = f"The shards and the index come from two exports: {_EMPTY_EXPORT[0].lower()}{_EMPTY_EXPORT[1:]}"
        yield _refuse("index-mismatch", shard, what, fix)


def check_total_size(view: View) -> Iterator[Finding]:
    listed = _listed_shards(view.index)
    if view.index is None or not listed or not listed <= view.headers.keys():
        return
    metadata = view.index.get("metadata")
    said = metadata.get("total_size") if isinstance(metadata, dict) else None
    actual = sum(tensor.size for shard in listed for tensor in view.headers[shard].tensors)
    if said is not None and said != actual:
        what = f"says that the tensors take {printable(str(said))[:40]} bytes; they take {actual}"
        yield _warn("index-total", INDEX, what, "Harmless to engines, but a sign of a hand-made or mixed export.")


def _listed_shards(index: dict[str, Any] | None) -> set[str]:
    """The files that an index names; none if it is not an index."""
    names = index.get("weight_map") if index else None
    if not isinstance(names, dict) or not all(isinstance(file, str) for file in names.values()):
        return set()
    return set(names.values())


def check_large_unknown(view: View) -> Iterator[Finding]:
    for path, size in view.sizes.items():
        known = path.endswith(".safetensors") or path in view.checkpoint.documents or _VOCABULARIES.fullmatch(path)
        if size >= LARGE_UNKNOWN and not known and not path.lower().endswith(PICKLE_SUFFIXES):
            what = f"is not a file that an engine is known to need, and has {size} bytes"
            fix = "Move it out of the directory unless the model needs it: it would travel with every pull."
            yield _warn("large-unknown", path, what, fix)


CHECKS: tuple[Callable[[View], Iterator[Finding]], ...] = (
    check_pickle,
    check_custom_code,
    check_config,
    check_tokenizer,
    check_adapter_config,
    check_weights_are_there,
    check_headers,
    check_one_set_of_weights,
    check_index,
    check_total_size,
    check_large_unknown,
)
