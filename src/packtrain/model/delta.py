"""What a node that has one version gets for another: every byte, by tensor, by file, by the way in which it comes.

It is the very `Plan` that a pull follows, whose only snapshot is the version before; so what is said here is what
happens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate

from packtrain.model.manifest import FileEntry, Manifest
from packtrain.model.safetensors import Header
from packtrain.model.sourcing import Plan, Ways, find_at_hand
from packtrain.model.tensors import (
    ADDED,
    CHANGED,
    REMOVED,
    SAME,
    StoredTensor,
    Tally,
    TensorChange,
    compare_tensors,
    kind_of,
    layer_of,
    stored_tensors,
    tally,
)
from packtrain.model.version import ModelVersion


@dataclass(frozen=True, slots=True)
class Stored:
    """A version as it is stored. ``headers`` holds that of every safetensors file."""

    version: ModelVersion
    manifest: Manifest
    headers: Mapping[str, Header]


@dataclass(frozen=True, slots=True)
class FileChange:
    """A file of either version: its ``state``; its sizes in bytes, None where it is not there; in which ``ways`` it
    comes, and of these bytes its ``header`` (None: it is no safetensors file that is there)."""

    path: str
    state: str
    before: int | None
    after: int | None
    ways: Ways
    header: Ways | None


@dataclass(frozen=True, slots=True)
class Delta:
    """Every file and every tensor of either version, and how the manifest of ``after`` comes."""

    before: ModelVersion
    after: ModelVersion
    files: tuple[FileChange, ...]
    tensors: tuple[TensorChange, ...]
    plan: Plan
    manifest: Ways

    @property
    def headers(self) -> Ways:
        """How the safetensors headers come."""
        return sum((file.header for file in self.files if file.header), Ways())

    @property
    def ways(self) -> Ways:
        """How all of it comes, the manifest included."""
        return self.plan.ways + self.manifest

    @property
    def total(self) -> Tally:
        """All tensors."""
        return tally(self.tensors, lambda _: "").get("", Tally())

    @property
    def same(self) -> bool:
        """Whether a node that has the one has the other."""
        return self.before.digest == self.after.digest


@dataclass(frozen=True, slots=True)
class Stack:
    """Layers of one kind, such as ``model.layers``, and of each kind of tensor in them what changed, by the layer's
    number. What is in no layer is in a stack without a name, whose only layer is 0."""

    name: str
    layers: list[int]
    kinds: dict[str, dict[int, Tally]] = field(default_factory=dict)


def stacks(changes: Iterable[TensorChange]) -> list[Stack]:
    """The layers, the kinds of each in the order in which they come; what is outside of them last."""
    found: dict[str, Stack] = {}
    for (layer, kind), each in tally(changes, lambda name: (layer_of(name), kind_of(name))).items():
        name, _, number = layer.rpartition(".")
        stack = found.setdefault(name if layer else "", Stack(name if layer else "", []))
        stack.kinds.setdefault(kind, {})[int(number or 0)] = each
    for stack in found.values():
        stack.layers.extend(sorted({number for row in stack.kinds.values() for number in row}))
    return sorted(found.values(), key=lambda stack: not stack.name)


def between(before: Stored, after: Stored) -> Delta:
    """What the digests tell; a tensor may stay unknown (`packtrain.model.tensors`)."""
    same = before.version.digest == after.version.digest
    at_hand = find_at_hand(after.manifest, [(before.version.digest, before.manifest)])
    everything = range(sum(len(file.chunks) for file in after.manifest.files))
    plan = Plan.of(after.manifest, at_hand, frozenset(everything if same else ()))
    was = stored_tensors(before.manifest, before.headers)
    now = stored_tensors(after.manifest, after.headers)
    return Delta(
        before.version,
        after.version,
        files=tuple(_files(before.manifest, after, plan)),
        tensors=tuple(_with_ways(compare_tensors(was, now), plan)),
        plan=plan,
        manifest=Ways() if same else Ways(fetched=len(after.manifest.encode())),
    )


def _files(before: Manifest, after: Stored, plan: Plan) -> Iterator[FileChange]:
    was = {file.path: file for file in before.files}
    now = {file.path: file for file in after.manifest.files}
    firsts = _firsts(after.manifest)
    for path in sorted(was.keys() | now.keys()):
        old, new = was.get(path), now.get(path)
        ways, header = Ways(), None
        if new is not None:
            ways = plan.ways_of(new, firsts[path], 0, new.size)
            if path in after.headers:
                header = plan.ways_of(new, firsts[path], 0, after.headers[path].length)
        yield FileChange(path, _state(old, new), old.size if old else None, new.size if new else None, ways, header)


def _state(old: FileEntry | None, new: FileEntry | None) -> str:
    if old is None or new is None:
        return ADDED if old is None else REMOVED
    return SAME if old.sha256 == new.sha256 else CHANGED


def _with_ways(changes: tuple[TensorChange, ...], plan: Plan) -> Iterator[TensorChange]:
    firsts = _firsts(plan.manifest)
    files = {file.path: file for file in plan.manifest.files}
    for change in changes:
        tensor = change.after
        yield change if tensor is None else replace(change, ways=_ways(tensor, files[tensor.path], firsts, plan))


def _ways(tensor: StoredTensor, file: FileEntry, firsts: Mapping[str, int], plan: Plan) -> Ways:
    if not tensor.pieces:
        return Ways()
    offset, _ = tensor.pieces[0]
    end = tensor.start + tensor.size
    return plan.ways_of(file, firsts[file.path], tensor.start, end, begin=tensor.first, at=tensor.start + offset)


def _firsts(manifest: Manifest) -> dict[str, int]:
    """The index of each file's first chunk among all."""
    counts = [len(file.chunks) for file in manifest.files]
    return dict(zip((file.path for file in manifest.files), accumulate(counts, initial=0), strict=False))
