"""Which tensors two versions share: told from their manifests and safetensors headers, without their bytes.

A tensor of `safetensors.OWN_CHUNK` or more has chunks of its own, so equal digests mean equal bytes and different ones
mean different bytes, in whatever shard it lies. Smaller neighbours share chunks: where such a chunk is equal in both,
all in it are the same; where it differs, something in it changed, and which of them it was is unknown.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TypeVar

from packtrain.model.manifest import Chunk, FileEntry, Manifest
from packtrain.model.safetensors import Header, Tensor
from packtrain.model.sourcing import Ways

Key = TypeVar("Key", bound=Hashable)

SAME, CHANGED, ADDED, REMOVED, UNKNOWN = STATES = ("same", "changed", "added", "removed", "unknown")

_LEAVES = re.compile(
    r"weight|bias|default|modules_to_save|qweight|qzeros|scales|g_idx|weight_(scale|scale_inv|packed|shape|zero_point)|input_scale"
    r"|lora_(A|B|embedding_A|embedding_B|magnitude_vector)"
)


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor and the chunks that it lies in: ``start`` bytes into the file ``path``, from its chunk ``first`` on.
    ``pieces`` gives each chunk with the offset at which it starts, in bytes from the tensor's first one: negative
    where others come before it in the chunk."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int  # bytes
    path: str
    start: int
    first: int
    pieces: tuple[tuple[int, Chunk], ...]

    @property
    def chunks(self) -> range:
        """The indices of its chunks in the file."""
        return range(self.first, self.first + len(self.pieces))

    @property
    def own(self) -> dict[tuple[int, int], str]:
        """The digests of the chunks that hold nothing else, by their offset and length."""
        return {
            (offset, chunk.length): chunk.blake3
            for offset, chunk in self.pieces
            if offset >= 0 and offset + chunk.length <= self.size
        }


@dataclass(frozen=True, slots=True)
class TensorChange:
    """One tensor in two versions: its ``state``, what it was and is (None: it is not there), and in which ``ways`` a
    node that has the one gets the other."""

    name: str
    state: str
    before: StoredTensor | None
    after: StoredTensor | None
    ways: Ways = field(default_factory=Ways)

    @property
    def size(self) -> int:
        """Bytes, as it is in the version after, or was."""
        return (self.after or self.before).size  # type: ignore[union-attr]


@dataclass(slots=True)
class Tally:
    """How many tensors are in each state, their bytes, and in which ways they come."""

    tensors: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STATES, 0))
    bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STATES, 0))
    ways: Ways = field(default_factory=Ways)

    @property
    def size(self) -> int:
        """Bytes in the version after."""
        return sum(count for state, count in self.bytes.items() if state != REMOVED)

    def count(self, change: TensorChange) -> None:
        """One more."""
        self.tensors[change.state] += 1
        self.bytes[change.state] += change.size
        self.ways += change.ways

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            {state: self.tensors[state] + other.tensors[state] for state in STATES},
            {state: self.bytes[state] + other.bytes[state] for state in STATES},
            self.ways + other.ways,
        )


def stored_tensors(manifest: Manifest, headers: Mapping[str, Header]) -> dict[str, StoredTensor]:
    """Every tensor of the files whose headers are given, by its name. One that is in several files keeps its name in
    the first and is ``name (path)`` in the others."""
    found: dict[str, StoredTensor] = {}
    for file in manifest.files:
        header = headers.get(file.path)
        ends = list(accumulate(file.chunks.lengths))
        for tensor in header.tensors if header else ():
            key = tensor.name if tensor.name not in found else f"{tensor.name} ({file.path})"
            first = bisect_right(ends, tensor.start)
            pieces = _pieces(tensor, file, ends, first)
            found[key] = StoredTensor(
                key, tensor.dtype, tensor.shape, tensor.size, file.path, tensor.start, first, pieces
            )
    return found


def _pieces(tensor: Tensor, file: FileEntry, ends: list[int], index: int) -> tuple[tuple[int, Chunk], ...]:
    pieces = []
    while tensor.size and index < len(ends) and ends[index] - file.chunks.lengths[index] < tensor.end:
        chunk = file.chunks[index]
        pieces.append((ends[index] - chunk.length - tensor.start, chunk))
        index += 1
    return tuple(pieces)


def compare_tensors(before: Mapping[str, StoredTensor], after: Mapping[str, StoredTensor]) -> tuple[TensorChange, ...]:
    """Every tensor of either version, in the order of layers."""
    names = sorted(before.keys() | after.keys(), key=_natural)
    return tuple(
        TensorChange(name, _state(before.get(name), after.get(name)), before.get(name), after.get(name))
        for name in names
    )


def _state(before: StoredTensor | None, after: StoredTensor | None) -> str:
    if before is None or after is None:
        return ADDED if before is None else REMOVED
    if (before.dtype, before.shape) != (after.dtype, after.shape):
        return CHANGED
    if before.pieces == after.pieces:
        return SAME
    was = before.own
    if any(was.get(place, digest) != digest for place, digest in after.own.items()):
        return CHANGED
    return UNKNOWN


def decide(
    changes: Iterable[TensorChange], before: Mapping[str, str], after: Mapping[str, str]
) -> tuple[TensorChange, ...]:
    """The changes with those that were unknown decided, where both versions' digests of a tensor are given."""
    return tuple(
        replace(change, state=SAME if before[change.name] == after[change.name] else CHANGED)
        if change.state == UNKNOWN and change.name in before and change.name in after
        else change
        for change in changes
    )


def layer_of(name: str) -> str:
    """What a tensor's layer is called, as far as its first number: ``model.layers.12``; empty outside of layers."""
    parts = name.removeprefix("base_model.model.").split(".")
    number = next((index for index, part in enumerate(parts) if _is_number(part)), None)
    return "" if number is None else ".".join(parts[: number + 1])


def kind_of(name: str) -> str:
    """The module that a tensor belongs to, whatever its layer and expert: ``q_proj``, ``embed_tokens``."""
    parts = name.partition(" ")[0].split(".")
    while len(parts) > 1 and (_LEAVES.fullmatch(parts[-1]) or _is_number(parts[-1])):
        parts.pop()
    return parts[-1]


def tally(changes: Iterable[TensorChange], key: Callable[[str], Key]) -> dict[Key, Tally]:
    """The changes counted by what ``key`` makes of their names (`layer_of`, `kind_of`), in the order in which they
    come."""
    found: dict[Key, Tally] = {}
    for change in changes:
        found.setdefault(key(change.name), Tally()).count(change)
    return found


def _natural(name: str) -> list[tuple[int, str]]:
    """Layer 2 comes before layer 10."""
    return [(int(part), "") if _is_number(part) else (-1, part) for part in name.split(".")]


def _is_number(part: str) -> bool:
    return part.isascii() and part.isdigit() and len(part) < 10  # not a superscript, nor 5000 digits
