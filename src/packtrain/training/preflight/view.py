"""What the checks look at, read once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from packtrain.model.finding import Finding
from packtrain.model.safetensors import Header, HeaderError, Tensor
from packtrain.training.checkpoint import ADAPTER_WEIGHTS, INDEX, Checkpoint
from packtrain.training.documents import file_size, printable
from packtrain.training.preflight.architecture import canonical
from packtrain.training.preflight.base import Base
from packtrain.training.preflight.vocabulary import BadVocabulary, Vocabulary, read_vocabulary
from packtrain.training.weights import read_header

REEXPORT = (
    "Export again with safetensors (LLaMA-Factory: export_legacy_format: false; for a training: "
    "save_safetensors: true), into an empty directory."
)


@dataclass(frozen=True)
class View:
    """``headers`` holds each safetensors file whose header is good, ``broken`` the problem of each of the others.
    ``there`` are the paths of all files that are there, those refused already included. ``base`` is an adapter's base
    where its tensors are known."""

    checkpoint: Checkpoint
    allow_code: bool
    base: Base | None
    whole: bool  # tensors that must be equal are compared whole
    headers: Mapping[str, Header]
    broken: Mapping[str, str]
    sizes: Mapping[str, int]
    there: frozenset[str]
    vocabulary: Vocabulary | None  # of a merged model
    vocabulary_problem: tuple[str, str] | None  # the file that does not parse, and why

    @property
    def merged(self) -> bool:
        return self.checkpoint.kind == "merged"

    @property
    def config(self) -> dict[str, Any]:
        return self.checkpoint.document("config.json")

    @property
    def index(self) -> dict[str, Any] | None:
        """The index of the shards, None where there is none or it does not parse."""
        return self.checkpoint.documents.get(INDEX)

    @property
    def top_weights(self) -> list[str]:
        """The safetensors files that engines look at: those directly in the directory."""
        return sorted(path for path in self.there if path.endswith(".safetensors") and "/" not in path)

    @cached_property
    def tensors(self) -> dict[str, tuple[str, Tensor]]:
        """What an engine loads: by canonical name, the file and the tensor. For an adapter, names are as they are."""
        loaded = listed_shards(self.index) or self.top_weights if self.merged else [ADAPTER_WEIGHTS]
        spell = canonical if self.merged else str
        return {
            spell(tensor.name): (path, tensor)
            for path in sorted(loaded)
            if path in self.headers
            for tensor in self.headers[path].tensors
        }


def look(checkpoint: Checkpoint, *, allow_code: bool, base: Base | None, whole: bool) -> View:
    """Reads headers and sizes. Raises NotFound if a file vanished meanwhile, LocalDiskError."""
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
    vocabulary, problem = _vocabulary(checkpoint)
    return View(checkpoint, allow_code, base, whole, headers, broken, sizes, there, vocabulary, problem)


def _vocabulary(checkpoint: Checkpoint) -> tuple[Vocabulary | None, tuple[str, str] | None]:
    """An adapter's is not read: engines use its base's."""
    if checkpoint.kind != "merged":
        return None, None
    try:
        return read_vocabulary(checkpoint), None
    except BadVocabulary as error:
        return None, (error.file, str(error))


def refuse(code: str, where: str, what: str, fix: str) -> Finding:
    return Finding("refuse", code, printable(where), what, fix)


def warn(code: str, where: str, what: str, fix: str) -> Finding:
    return Finding("warn", code, printable(where), what, fix)


def some(names: list[str]) -> str:
    """The first of many names, and how many more there are."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{printable(min(names))[:200]!r}{more}"


def listed_shards(index: dict[str, Any] | None) -> set[str]:
    """The files that an index names; none if it is not an index."""
    names = index.get("weight_map") if index else None
    if not isinstance(names, dict) or not all(isinstance(file, str) for file in names.values()):
        return set()
    return set(names.values())
