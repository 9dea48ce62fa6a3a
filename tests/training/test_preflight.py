from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import SHARED_FIXTURES

from packtrain.errors import NotFound
from packtrain.model.finding import Finding
from packtrain.model.safetensors import HeaderError
from packtrain.testing.tinymodels import write_safetensors
from packtrain.training.checkpoint import INDEX, inspect
from packtrain.training.preflight import files, preflight, view
from packtrain.training.weights import read_header

WEIGHTS = "model.safetensors"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]


def find(directory: Path, *, allow_code: bool = False) -> tuple[Finding, ...]:
    return preflight(inspect(directory), allow_code=allow_code)


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    value = json.loads(path.read_text())
    changed = change(value)
    path.write_text(json.dumps(value if changed is None else changed))


def tensors(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    data = path.read_bytes()
    return {t.name: (t.dtype, t.shape, data[t.start : t.end]) for t in read_header(path).tensors}


def cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)


def rename_first_tensor(path: Path) -> None:
    held = tensors(path)
    name = sorted(held)[0]
    held["renamed"] = held.pop(name)
    write_safetensors(path, held)


def move_a_tensor(directory: Path) -> None:
    last, first = directory / SHARDS[2], directory / SHARDS[0]
    giver, taker = tensors(last), tensors(first)
    name = sorted(giver)[0]
    taker[name] = giver.pop(name)
    write_safetensors(last, giver)
    write_safetensors(first, taker)


def hold_a_tensor_twice(directory: Path) -> None:
    first, second = (directory / name for name in SHARDS[:2])
    one, two = tensors(first), tensors(second)
    name = sorted(one)[0]
    write_safetensors(second, two | {name: one[name]})


def add_a_tensor(directory: Path) -> None:
    path = directory / SHARDS[2]
    write_safetensors(path, tensors(path) | {"stranger": ("F32", (1,), b"\0" * 4)})


def grow(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(files.LARGE_UNKNOWN)


def link_out(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/null")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def remove(*names: str) -> Callable[[Path], None]:
    return lambda directory: [(directory / name).unlink() for name in names] and None


def put(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda directory: (directory / name).write_bytes(content) and None


def changed(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    return lambda directory: edit(directory / name, change)


def lora(**values: Any) -> Callable[[Path], None]:
    return changed("adapter_config.json", lambda config: config.update(values))


# (fixture, what breaks it, the findings it must give and no others: (level, code, where))
CASES: dict[str, tuple[str, Callable[[Path], Any], set[tuple[str, str, str]]]] = {
    "a link out": ("merged", lambda d: link_out(d / WEIGHTS), {("refuse", "symlink", WEIGHTS)}),
    "a pipe": ("merged", lambda d: pipe(d / "tokenizer.json"), {("refuse", "special-file", "tokenizer.json")}),
    "a name": ("merged", put("a\\b", b"x"), {("refuse", "unsafe-path", "a\\b")}),
    "config is a list": ("merged", put("config.json", b"[]"), {("refuse", "json-invalid", "config.json")}),
    "index is text": ("sharded", put(INDEX, b"shards"), {("refuse", "json-invalid", INDEX)}),
    "pickle beside": ("merged", put("pytorch_model.bin", b"x"), {("refuse", "pickle", "pytorch_model.bin")}),
    "a pickle in capitals": ("merged", put("extra.PKL", b"x"), {("refuse", "pickle", "extra.PKL")}),
    "pickle alone": (
        "merged",
        lambda d: (d / WEIGHTS).rename(d / "pytorch_model.bin"),
        {("refuse", "pickle", "pytorch_model.bin"), ("refuse", "no-weights", "")},
    ),
    "adapter pickle alone": (
        "adapter",
        lambda d: (d / ADAPTER_WEIGHTS).rename(d / "adapter_model.bin"),
        {("refuse", "pickle", "adapter_model.bin"), ("refuse", "no-weights", "")},
    ),
    "code": ("merged", put("modeling_x.py", b"x"), {("refuse", "custom-code", "modeling_x.py")}),
    "code in an adapter": ("adapter", put("x.py", b"x"), {("refuse", "custom-code", "x.py")}),
    "auto_map": (
        "merged",
        changed("config.json", lambda c: c.update(auto_map={"AutoModel": "x.Y"})),
        {("refuse", "custom-code", "config.json")},
    ),
    "tokenizer auto_map": (
        "merged",
        changed("tokenizer_config.json", lambda c: c.update(auto_map={"AutoTokenizer": ["x.Y", None]})),
        {("refuse", "custom-code", "tokenizer_config.json")},
    ),
    "no config": ("merged", remove("config.json"), {("refuse", "no-config", "")}),
    "empty config": ("merged", put("config.json", b"{}"), {("refuse", "no-config", "config.json")}),
    "architectures of nothing": (
        "merged",
        put("config.json", b'{"architectures": [null]}'),
        {("refuse", "no-config", "config.json")},
    ),
    "no tokenizer": ("merged", remove("tokenizer.json"), {("refuse", "no-tokenizer", "")}),
    "empty tokenizer": ("merged", put("tokenizer.json", b""), {("refuse", "no-tokenizer", "")}),
    "lost merges": (
        "merged",
        lambda d: (d / "tokenizer.json").rename(d / "vocab.json"),
        {("refuse", "no-tokenizer", "merges.txt")},
    ),
    "no adapter config": ("adapter", remove("adapter_config.json"), {("refuse", "no-adapter-config", "")}),
    "no adapter weights": ("adapter", remove(ADAPTER_WEIGHTS), {("refuse", "no-weights", "")}),
    "prompt tuning": ("adapter", lora(peft_type="PROMPT_TUNING"), {("refuse", "not-lora", "adapter_config.json")}),
    "no rank": ("adapter", lora(r=0), {("refuse", "not-lora", "adapter_config.json")}),
    "rank of truth": ("adapter", lora(r=True), {("refuse", "not-lora", "adapter_config.json")}),
    "no alpha": ("adapter", lora(lora_alpha=None), {("refuse", "not-lora", "adapter_config.json")}),
    "no targets": ("adapter", lora(target_modules=[]), {("refuse", "not-lora", "adapter_config.json")}),
    "odd targets": ("adapter", lora(target_modules=[1]), {("refuse", "not-lora", "adapter_config.json")}),
    "adapter config is text": (
        "adapter",
        put("adapter_config.json", b"lora"),
        {("refuse", "json-invalid", "adapter_config.json")},
    ),
    "no weights": ("merged", remove(WEIGHTS), {("refuse", "no-weights", "")}),
    "cut short": ("merged", lambda d: cut(d / WEIGHTS), {("refuse", "header-invalid", WEIGHTS)}),
    "cut adapter": ("adapter", lambda d: cut(d / ADAPTER_WEIGHTS), {("refuse", "header-invalid", ADAPTER_WEIGHTS)}),
    "nothing in it": ("merged", put(WEIGHTS, b""), {("refuse", "header-invalid", WEIGHTS)}),
    "an LFS pointer": (
        "merged",
        put(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        {("refuse", "header-invalid", WEIGHTS)},
    ),
    "cut shard": ("sharded", lambda d: cut(d / SHARDS[1]), {("refuse", "header-invalid", SHARDS[1])}),
    "no tensors": ("merged", lambda d: write_safetensors(d / WEIGHTS, {}), {("refuse", "weights-empty", WEIGHTS)}),
    "empty tensors": (
        "adapter",
        lambda d: write_safetensors(d / ADAPTER_WEIGHTS, {"lora_A": ("F32", (0, 8), b"")}),
        {("refuse", "weights-empty", ADAPTER_WEIGHTS)},
    ),
    "no index": ("sharded", remove(INDEX), {("refuse", "no-index", INDEX)}),
    "no map": ("sharded", put(INDEX, b'{"metadata": {}}'), {("refuse", "index-invalid", INDEX)}),
    "empty map": ("sharded", put(INDEX, b'{"weight_map": {}}'), {("refuse", "index-invalid", INDEX)}),
    "map to lists": ("sharded", put(INDEX, b'{"weight_map": {"a": []}}'), {("refuse", "index-invalid", INDEX)}),
    "shard missing": ("sharded", remove(SHARDS[1]), {("refuse", "shard-missing", SHARDS[1])}),
    "all shards missing": ("sharded", remove(*SHARDS), {("refuse", "shard-missing", shard) for shard in SHARDS}),
    "shard elsewhere": (
        "sharded",
        changed(INDEX, lambda index: index["weight_map"].update(stray="../../etc/passwd")),
        {("refuse", "shard-missing", "../../etc/passwd")},
    ),
    "tensor missing": (
        "sharded",
        changed(INDEX, lambda index: index["weight_map"].update(stray=SHARDS[0])),
        {("refuse", "index-mismatch", SHARDS[0])},
    ),
    "tensor renamed": (
        "sharded",
        lambda d: rename_first_tensor(d / SHARDS[1]),
        {("refuse", "index-mismatch", SHARDS[1])},
    ),
    "tensor moved": (
        "sharded",
        move_a_tensor,
        {("refuse", "index-mismatch", SHARDS[0]), ("refuse", "index-mismatch", SHARDS[2])},
    ),
    "tensor unnamed": (
        "sharded",
        add_a_tensor,
        {("refuse", "index-mismatch", SHARDS[2]), ("warn", "index-total", INDEX)},
    ),
    "tensor twice": (
        "sharded",
        hold_a_tensor_twice,
        {("refuse", "index-mismatch", SHARDS[0]), ("warn", "index-total", INDEX)},
    ),
    "total": (
        "sharded",
        changed(INDEX, lambda index: index["metadata"].update(total_size=1)),
        {("warn", "index-total", INDEX)},
    ),
    "old single file": (
        "sharded",
        lambda d: write_safetensors(d / WEIGHTS, {"a": ("F32", (1,), b"\0" * 4)}),
        {("refuse", "weights-ambiguous", WEIGHTS)},
    ),
    "old shard": (
        "sharded",
        lambda d: write_safetensors(d / "model-00004-of-00004.safetensors", {"a": ("F32", (1,), b"\0" * 4)}),
        {("warn", "shard-unlisted", "model-00004-of-00004.safetensors")},
    ),
    "second file of weights": (
        "merged",
        lambda d: write_safetensors(d / "value_head.safetensors", {"a": ("F32", (1,), b"\0" * 4)}),
        {("refuse", "weights-ambiguous", "value_head.safetensors")},
    ),
    "second adapter file": (
        "adapter",
        lambda d: write_safetensors(d / "value_head.safetensors", {"a": ("F32", (1,), b"\0" * 4)}),
        {("warn", "shard-unlisted", "value_head.safetensors")},
    ),
    "large unknown": ("merged", lambda d: grow(d / "model.gguf"), {("warn", "large-unknown", "model.gguf")}),
}


@pytest.mark.parametrize("fixture", ["base", "merged", "sharded", "adapter"])
def test_good_directories_give_no_findings(fixture, request):
    assert find(request.getfixturevalue(fixture)) == ()


@pytest.mark.parametrize("case", CASES)
def test_a_broken_directory_gives_its_finding_and_no_other(case, request):
    fixture, break_it, expected = CASES[case]
    directory = request.getfixturevalue(fixture)
    break_it(directory)
    findings = find(directory)
    assert {(finding.level, finding.code, finding.where) for finding in findings} == expected
    assert all(finding.what and finding.fix for finding in findings)
    levels = [finding.level for finding in findings]
    assert levels == sorted(levels)  # refusals first


def test_allowed_code_is_said_and_not_refused(merged):
    (merged / "modeling_x.py").write_text("x")
    edit(merged / "config.json", lambda config: config.update(auto_map={"AutoModel": "modeling_x.Y"}))
    findings = find(merged, allow_code=True)
    assert {(f.level, f.code, f.where) for f in findings} == {
        ("warn", "custom-code", "config.json"),
        ("warn", "custom-code", "modeling_x.py"),
    }


def test_many_disagreements_are_one_finding(sharded):
    edit(
        sharded / INDEX,
        lambda index: {"weight_map": {**index["weight_map"], **{f"t{n}": SHARDS[0] for n in range(99)}}},
    )
    [finding] = find(sharded)
    assert "'t0' and 98 more" in finding.what


def test_a_shard_that_is_a_link_out_is_refused_once(sharded):
    link_out(sharded / SHARDS[0])
    assert [(f.code, f.where) for f in find(sharded)] == [("symlink", SHARDS[0])]


def test_a_file_that_vanishes_meanwhile(merged):
    checkpoint = inspect(merged)
    (merged / WEIGHTS).unlink()
    with pytest.raises(NotFound, match="does not exist"):
        preflight(checkpoint, allow_code=False)


def test_headers_are_read_once(sharded, monkeypatch):
    read = []
    monkeypatch.setattr(view, "read_header", lambda path: read.append(path.name) or read_header(path))
    find(sharded)
    assert sorted(read) == SHARDS


@settings(max_examples=200, suppress_health_check=SHARED_FIXTURES)
@given(
    header=st.binary(max_size=60)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "a"]), inner, max_size=4
            )
        ),
    ).map(lambda value: json.dumps(value).encode()),
    lie=st.sampled_from([0, 0, 0, 1, -1, 1 << 40]),
    tail=st.binary(max_size=9),
)
def test_any_bytes_as_weights(merged, header, lie, tail):
    length = max(0, len(header) + lie)
    (merged / WEIGHTS).write_bytes(length.to_bytes(8, "little") + header + tail)
    findings = find(merged)
    known = {"header-invalid", "weights-empty", "tensor-missing", "tensor-extra", "shape-mismatch", "dtype-mismatch"}
    assert {finding.code for finding in findings} <= known
    for finding in findings:
        str(finding).encode("utf-8")


@settings(max_examples=150, suppress_health_check=SHARED_FIXTURES)
@given(
    index=st.recursive(
        st.none() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(SHARDS),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["metadata", "weight_map", "total_size", "a"]), inner, max_size=4)
        ),
    )
)
def test_any_json_as_index(sharded, index):
    (sharded / INDEX).write_text(json.dumps(index))
    for finding in find(sharded):
        str(finding).encode("utf-8")


def test_read_header(merged, tmp_path):
    header = read_header(merged / WEIGHTS)
    assert sum(tensor.size for tensor in header.tensors) + header.length == (merged / WEIGHTS).stat().st_size
    (tmp_path / "short.safetensors").write_bytes(b"1234")
    with pytest.raises(HeaderError, match="too short"):
        read_header(tmp_path / "short.safetensors")
    with pytest.raises(NotFound):
        read_header(tmp_path / "none.safetensors")
