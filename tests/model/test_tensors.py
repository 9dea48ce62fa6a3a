"""Which tensors two versions share: what the digests of chunks can say, and what they cannot."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packtrain.model.manifest import Chunks, FileEntry, Manifest
from packtrain.model.safetensors import Header, cut, parse_header
from packtrain.model.tensors import (
    ADDED,
    CHANGED,
    REMOVED,
    SAME,
    UNKNOWN,
    StoredTensor,
    Tally,
    compare_tensors,
    decide,
    kind_of,
    layer_of,
    stored_tensors,
    tally,
)

MIB = 1 << 20
Content = dict[str, tuple[str, int]]  # tensor -> what it holds, and its bytes


def stored(*shards: Content, chunk: int | None = None) -> dict[str, StoredTensor]:
    """The tensors of a version whose contents are told by texts."""
    return stored_tensors(*made(*shards, chunk=chunk))


def made(*shards: Content, chunk: int | None = None) -> tuple[Manifest, dict[str, Header]]:
    """The manifest and the headers of such a version. ``chunk``: cut every so many bytes instead."""
    entries: list[FileEntry] = []
    headers: dict[str, Header] = {}
    for number, content in enumerate(shards, start=1):
        path = f"model-{number:05}-of-{len(shards):05}.safetensors"
        offset, table = 0, {}
        for name, (_, size) in content.items():
            table[name] = {"dtype": "U8", "shape": [size], "data_offsets": [offset, offset + size]}
            offset += size
        text = json.dumps(table).encode()
        head = len(text).to_bytes(8, "little") + text
        headers[path] = parse_header(head, len(head) + offset)
        lengths = cut(len(head) + offset, headers[path])
        if chunk:
            whole, rest = divmod(len(head) + offset, chunk)
            lengths = [chunk] * whole + ([rest] if rest else [])
        blake3s, start = [], 0
        for length in lengths:
            blake3s.append(_digest(head, headers[path], content, start, start + length))
            start += length
        sha256 = hashlib.sha256(repr((head, content)).encode()).hexdigest()
        entries.append(FileEntry(path, start, sha256, Chunks(lengths, blake3s)))
    return Manifest.of("merged", entries), headers


def _digest(head: bytes, header: Header, content: Content, start: int, end: int) -> str:
    """Of a range: equal where the same parts of equal contents lie at the same places of it."""
    inside = [(t.start - start, content[t.name], max(t.start, start) - t.start, min(t.end, end) - t.start)
              for t in header.tensors if t.start < end and t.end > start]  # fmt: skip
    return hashlib.sha256(repr((head[start:end], inside)).encode()).hexdigest()


def states(before: dict[str, StoredTensor], after: dict[str, StoredTensor]) -> dict[str, str]:
    return {change.name: change.state for change in compare_tensors(before, after)}


OLD: Content = {"q": ("q1", 9 * MIB), "norm": ("n1", 4096), "k": ("k1", MIB), "a": ("a1", 5), "b": ("b1", 5)}


def test_large_tensors_are_told_apart_whatever_shard_they_are_in() -> None:
    new: Content = {**OLD, "q": ("q2", 9 * MIB)}
    assert states(stored(OLD), stored(new)) == {"q": CHANGED, "norm": SAME, "k": SAME, "a": SAME, "b": SAME}
    moved = stored({"k": OLD["k"]}, {"q": OLD["q"], "norm": OLD["norm"], "a": OLD["a"], "b": OLD["b"]})
    assert states(stored(OLD), moved)["k"] == states(stored(OLD), moved)["q"] == SAME


def test_small_neighbours_of_a_change_are_unknown_and_one_alone_is_not() -> None:
    new: Content = {**OLD, "a": ("a2", 5), "norm": ("n2", 4096)}
    assert states(stored(OLD), stored(new)) == {"q": SAME, "norm": CHANGED, "k": SAME, "a": UNKNOWN, "b": UNKNOWN}


def test_what_came_what_went_and_what_has_another_shape() -> None:
    new: Content = {"q": ("q1", 8 * MIB), "norm": OLD["norm"], "k": OLD["k"], "c": ("c1", 5)}
    assert states(stored(OLD), stored(new)) == {
        "q": CHANGED, "norm": SAME, "k": SAME, "a": REMOVED, "b": REMOVED, "c": ADDED,
    }  # fmt: skip
    assert {c.name: c.size for c in compare_tensors(stored(OLD), stored(new))}["a"] == 5


def test_another_way_of_cutting_is_not_taken_for_a_change() -> None:
    assert set(states(stored(OLD), stored(OLD, chunk=MIB)).values()) <= {SAME, UNKNOWN}


contents = st.dictionaries(
    st.sampled_from("abcdefgh"),
    st.tuples(st.sampled_from("xyz"), st.sampled_from([0, 1, 1000, MIB - 1, MIB, 5 * MIB])),
    min_size=1,
)


@given(contents, contents, st.booleans(), st.sampled_from([None, 700_000]))
def test_what_is_said_is_true(before: Content, after: Content, split: bool, chunk: int | None) -> None:
    """However the tensors lie: same and changed are never wrong, and what one side lacks is told."""
    shards = [dict(list(after.items())[i::2]) for i in range(2)] if split and len(after) > 1 else [after]
    for name, state in states(stored(before), stored(*shards, chunk=chunk)).items():
        was, now = before.get(name), after.get(name)
        if was is None or now is None:
            assert state == (ADDED if was is None else REMOVED)
        elif was == now:
            assert state in (SAME, UNKNOWN)
        elif was[1] == now[1] == 0:
            assert state == SAME  # no bytes, whatever they were to be
        else:
            assert state in (CHANGED, UNKNOWN)


@given(contents)
def test_nothing_is_unknown_of_a_version_and_itself(content: Content) -> None:
    assert set(states(stored(content), stored(content)).values()) == {SAME}


@given(contents, st.sampled_from([None, 700_000]))
def test_the_pieces_of_a_tensor_cover_it(content: Content, chunk: int | None) -> None:
    for tensor in stored(content, chunk=chunk).values():
        assert len(tensor.chunks) == len(tensor.pieces)
        if tensor.size:
            ends = [offset + piece.length for offset, piece in tensor.pieces]
            assert tensor.pieces[0][0] <= 0 and ends[-1] >= tensor.size
            assert all(end == start for end, (start, _) in zip(ends, tensor.pieces[1:], strict=False))


def test_digests_decide_what_is_unknown_and_nothing_else() -> None:
    new: Content = {**OLD, "a": ("a2", 5), "q": ("q2", 9 * MIB)}
    changes = compare_tensors(stored(OLD), stored(new))
    decided = decide(changes, {"a": "1", "b": "1", "q": "1", "k": "1"}, {"a": "2", "b": "1", "q": "1", "k": "2"})
    assert {c.name: c.state for c in decided} == {"q": CHANGED, "norm": SAME, "k": SAME, "a": CHANGED, "b": SAME}
    assert {c.name: c.state for c in decide(changes, {"a": "1"}, {})}["a"] == UNKNOWN


def test_a_name_that_two_files_have() -> None:
    twice = stored({"w": ("1", 8)}, {"w": ("2", 8)})
    assert list(twice) == ["w", "w (model-00002-of-00002.safetensors)"]
    assert {kind_of(name) for name in twice} == {"w"}


@pytest.mark.parametrize(
    ("name", "layer", "kind"),
    [
        ("model.layers.12.self_attn.q_proj.weight", "model.layers.12", "q_proj"),
        ("model.layers.0.self_attn.q_proj.bias", "model.layers.0", "q_proj"),
        ("model.layers.3.mlp.experts.7.gate_proj.weight", "model.layers.3", "gate_proj"),
        ("model.layers.3.block_sparse_moe.experts.7.w1.weight", "model.layers.3", "w1"),
        ("model.layers.1.input_layernorm.weight", "model.layers.1", "input_layernorm"),
        ("model.layers.0.self_attn.o_proj.qweight", "model.layers.0", "o_proj"),
        ("model.layers.0.mlp.down_proj.weight_scale_inv", "model.layers.0", "down_proj"),
        ("base_model.model.model.layers.5.self_attn.v_proj.lora_A.weight", "model.layers.5", "v_proj"),
        ("base_model.model.model.layers.5.self_attn.v_proj.lora_magnitude_vector", "model.layers.5", "v_proj"),
        ("base_model.model.lm_head.modules_to_save.weight", "", "lm_head"),
        ("model.embed_tokens.weight", "", "embed_tokens"),
        ("lm_head.weight", "", "lm_head"),
        ("transformer.h.2.attn.c_attn.weight", "transformer.h.2", "c_attn"),
        ("visual.blocks.4.attn.qkv.weight", "visual.blocks.4", "qkv"),
        ("weight", "", "weight"),
        ("model.layers.².q_proj.weight", "", "q_proj"),
        ("h." + "9" * 5000, "", "9" * 5000),
        ("", "", ""),
    ],
)
def test_the_layer_and_the_kind_of_a_tensor(name: str, layer: str, kind: str) -> None:
    assert (layer_of(name), kind_of(name)) == (layer, kind)


def test_counted_by_kind_in_the_order_of_layers() -> None:
    layers: Content = {f"layers.{n}.{kind}.weight": (kind, 2 * MIB) for n in (10, 2, 1) for kind in ("q", "k")}
    changed: Content = {**layers, "layers.2.q.weight": ("new", 2 * MIB)}
    changes = compare_tensors(stored(layers), stored(changed))
    order = [layer_of(change.name) for change in changes]
    assert order == ["layers.1"] * 2 + ["layers.2"] * 2 + ["layers.10"] * 2
    kinds = tally(changes, kind_of)
    assert (kinds["q"].tensors[CHANGED], kinds["q"].bytes[CHANGED]) == (1, 2 * MIB)
    assert (kinds["q"].tensors[SAME], kinds["k"].tensors[SAME], kinds["k"].tensors[CHANGED]) == (2, 3, 0)
    assert list(tally(changes, layer_of)) == ["layers.1", "layers.2", "layers.10"]
    [every] = tally(changes, lambda _: "").values()
    assert every.bytes[SAME] == 10 * MIB and every.size == 12 * MIB
    assert sum(tally(changes, layer_of).values(), Tally()) == every


def test_the_order_of_layers_is_total() -> None:
    names = [
        "model.layers.10.x",
        "model.layers.9.x",
        "model.norm",
        "lm_head",
        "a.1",
        "1.a",
        "model.layers.9",
        "x.²",
        "1" * 5000,
    ]
    content: Content = dict.fromkeys(names, ("c", 1))
    ordered = [change.name for change in compare_tensors(stored(content), stored(content))]
    assert sorted(ordered) == sorted(names)
    assert ("model.layers.9.x", "model.layers.10.x") in set(pairwise(n for n in ordered if n.endswith(".x")))
