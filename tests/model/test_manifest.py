"""Manifests: round trip, refusals, identity of the payload."""

from __future__ import annotations

import gc
import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packtrain.errors import IntegrityError, Refused
from packtrain.model import canonical
from packtrain.model.digest import Digest
from packtrain.model.manifest import (
    FILE_NAME,
    PICKLE_SUFFIXES,
    Base,
    Chunk,
    Chunks,
    FileEntry,
    Manifest,
    refuse_unsafe,
    unsafe_path,
)
from tests.model.strategies import chunks, digests, file_lists, hex256, manifests, mutations

A, B, C = "a" * 64, "b" * 64, "c" * 64

MERGED = Manifest.of(
    "merged",
    [
        FileEntry("config.json", 10, A, Chunks([10], [B])),
        FileEntry("sub/model.safetensors", 30, B, Chunks([10, 20], [A, C])),
        FileEntry("empty", 0, C, Chunks()),
        FileEntry("MLmodel", 5, C, Chunks([5], [C]), generated=True),
    ],
)
ADAPTERS = [
    Manifest.of("adapter", MERGED.files, base)
    for base in [
        None,
        Base(manifest=Digest(A), payload=Digest(B)),
        Base(payload=Digest(B)),
        Base(hub="org/name", revision="main"),
        Base(hub="org/name"),
    ]
]


def file(path: str, size: int = 1) -> FileEntry:
    return FileEntry(path, size, A, Chunks([size], [B]) if size else Chunks())


@given(manifests)
def test_reads_back(manifest: Manifest) -> None:
    data = manifest.encode()
    assert Manifest.decode(data, expect=manifest.digest) == manifest
    assert manifest.digest == Digest.of(data)
    assert manifest.size == sum(chunk.length for f in manifest.files for chunk in f.chunks)


@given(manifests, digests)
def test_other_bytes_than_were_named_are_refused(manifest: Manifest, other: Digest) -> None:
    with pytest.raises(IntegrityError, match=f"not {other}"):
        Manifest.decode(manifest.encode(), expect=other)


# What is a valid manifest again, one mutation away. Its digest is another, so whoever names the digest refuses it.
STILL_VALID = {
    ".files[0] removed",  # a generated file, which no payload covers
    ".files[0].path longer",
    ".files[0].path shorter",
    ".files[0].path in capitals",
    ".base removed",  # an adapter whose base nobody knows
    ".base.revision removed",
    ".base.manifest removed",
    ".base.hub longer",
    ".base.hub shorter",
    ".base.hub in capitals",
    ".base.revision longer",
    ".base.revision shorter",
    ".base.revision in capitals",
}


def refused(data: bytes) -> bool:
    try:
        Manifest.decode(data, what="the thing")
    except IntegrityError as error:
        return error.message.startswith("the thing ")
    return False


@pytest.mark.parametrize("manifest", [MERGED, *ADAPTERS], ids=["merged", "none", "version", "bytes", "hub@rev", "hub"])
def test_every_mutation_of_a_field_is_refused(manifest: Manifest) -> None:
    value = canonical.decode(manifest.encode(), what="it")
    count = 0
    for what, mutated in mutations(value):
        data = canonical.encode(mutated)
        count += 1
        with pytest.raises(IntegrityError, match="is not the manifest that was named"):
            Manifest.decode(data, expect=manifest.digest)
        if what in STILL_VALID:
            assert Manifest.decode(data).encode() == data
        else:
            assert refused(data), what
    assert count > 100


@given(manifests, st.data())
def test_a_flipped_bit_is_refused(manifest: Manifest, data: st.DataObject) -> None:
    good = manifest.encode()
    place, bit = data.draw(st.integers(0, len(good) - 1)), data.draw(st.integers(0, 7))
    bad = good[:place] + bytes([good[place] ^ (1 << bit)]) + good[place + 1 :]
    with pytest.raises(IntegrityError):
        Manifest.decode(bad, expect=manifest.digest)
    with suppress(IntegrityError):  # without the digest it may be another manifest, in its canonical form
        assert Manifest.decode(bad).encode() == bad


@given(st.binary() | st.text().map(str.encode))
def test_nonsense_is_an_integrity_error(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        Manifest.decode(data)


def test_another_schema_says_so() -> None:
    data = canonical.encode({"schema": "packtrain.manifest/2"})
    with pytest.raises(IntegrityError, match=r"packtrain\.manifest/2.*reads packtrain\.manifest/1") as caught:
        Manifest.decode(data)
    assert "upgrade" in caught.value.hint


def with_files(*files: dict[str, Any]) -> bytes:
    rows = [[f["path"], f["size"], f["sha256"]] for f in files]
    return canonical.encode(
        {
            "schema": "packtrain.manifest/1",
            "kind": "merged",
            "payload": Digest.of(canonical.encode(rows)).hex,
            "files": list(files),
        }
    )


def row(path: str, **changes: Any) -> dict[str, Any]:
    return {"path": path, "size": 3, "sha256": A, "chunks": [[3, B]], **changes}


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (with_files(), "no files"),
        (with_files(row("b"), row("a")), "not sorted"),
        (with_files(row("a"), row("a")), "appears twice"),
        (with_files(row("a"), row("a/b")), "'a' is listed as a file and as a folder"),
        (with_files(row("a"), row("a-b"), row("a/b/c")), "'a' is listed as a file and as a folder"),
        (with_files(row("../a")), "leaves its folder"),
        (with_files(row(FILE_NAME)), "reserved"),
        (with_files(row("a", chunks=[])), "do not sum"),
        (with_files(row("a", chunks=[[2, B]])), "do not sum"),
        (with_files(row("a", chunks=[[4, B]])), "do not sum"),
        (with_files(row("a", chunks=[[3, B], [0, B]])), "chunk of 'a'"),
        (with_files(row("a", chunks=[[4, B], [-1, B]])), "chunk of 'a'"),
        (with_files(row("a", chunks=[[3, B.upper()]])), "chunk of 'a'"),
        (with_files(row("a", sha256="sha256:" + A)), "sha256 of 'a'"),
        (with_files(row("a", size=-3)), "size of 'a'"),
        (with_files(row("a", generated=False)), "generated of 'a'"),
        (with_files(row("a")).replace(b',"path"', b', "path"'), "not in canonical form"),
        (ADAPTERS[-1].encode().replace(b'"hub":"', b'"hub":"\\ud800'), "not canonical JSON"),
        (MERGED.encode().replace(b'"chunks":[[', b'"chunks":[[9007199254740993,'), "chunk of"),
        (with_files(row("a")).replace(b":3", b":9007199254740993").replace(b"[3", b"[9007199254740993"), "is beyond 2"),
    ],
)
def test_what_is_not_a_valid_manifest(data: bytes, complaint: str) -> None:
    with pytest.raises(IntegrityError, match=complaint):
        Manifest.decode(data, what="models/m/packtrain.json")


def test_a_writer_is_refused_what_readers_would_refuse() -> None:
    for files in [[], [file("a"), file("a")], [file("a"), file("a/b")], [file("../a")], [replace(file("a"), size=2)]]:
        with pytest.raises(IntegrityError, match="the new manifest"):
            Manifest.of("merged", files)
    with pytest.raises(IntegrityError, match="only an adapter"):
        Manifest.of("merged", [file("a")], Base(hub="org/name"))
    with pytest.raises(IntegrityError, match="neither merged nor adapter"):
        Manifest.of("quantized", [file("a")])


@given(file_lists, st.randoms())
def test_the_order_in_which_files_are_found_means_nothing(files: list[FileEntry], random: Any) -> None:
    shuffled = list(files)
    random.shuffle(shuffled)
    assert Manifest.of("merged", files).encode() == Manifest.of("merged", shuffled).encode()


# The payload


@given(file_lists, st.data())
def test_the_payload_depends_on_exported_bytes_alone(files: list[FileEntry], data: st.DataObject) -> None:
    manifest = Manifest.of("merged", files)
    recut = [
        replace(f, chunks=Chunks([f.size], [data.draw(hex256)]) if f.size else Chunks())
        for f in files
        if not f.generated
    ]
    generated = FileEntry("zzz-generated", 1, data.draw(hex256), Chunks([1], [data.draw(hex256)]), generated=True)
    assert Manifest.of("merged", [*recut, generated]).payload == manifest.payload
    assert Manifest.of("adapter", [*recut, generated], Base(hub="org/name")).payload == manifest.payload


def test_the_payload_is_the_documented_digest() -> None:
    rows = json.dumps([["config.json", 10, A], ["empty", 0, C], ["sub/model.safetensors", 30, B]])
    assert MERGED.payload == Digest.of(rows.replace(" ", "").encode())


@pytest.mark.parametrize("change", [{"path": "b"}, {"sha256": B}, {"size": 2, "chunks": Chunks([2], [B])}])
def test_the_payload_tells_exported_bytes_apart(change: dict[str, Any]) -> None:
    other = Manifest.of("merged", [replace(file("a"), **change)])
    assert other.payload != Manifest.of("merged", [file("a")]).payload


# Paths and law 8


@pytest.mark.parametrize(
    "path",
    [
        "a", "a/b/c.json", ".gitattributes", "..a", "a..", "...", "-rf", "with space/x",
        "日本語/ü.txt", "🦙", "e\u0301",
        "packtrain.json.bak", "sub/packtrain.json", "x" * 512, "C:x", "a:b", "~", "$HOME", "*",
    ],
)  # fmt: skip
def test_safe_paths(path: str) -> None:
    assert unsafe_path(path) is None


@pytest.mark.parametrize(
    "path",
    [
        "", "/", "/a", "//a", "a/", "a//b", ".", "./a", "a/.", "a/./b", "..", "../a", "a/..", "a/../b", "a/../../b",
        "a\\b", "..\\a", "a\0b", "a\nb", "a\tb", "a\x1b[2Jb", "a\x7fb", "a\x85b", "a\u2028b", "a\u202eb", "a\u200bb",
        "a\ufeff", "\ud800", "a\xa0b", "x" * 513, "ü" * 257, FILE_NAME, f"{FILE_NAME}/a",
    ],
    ids=ascii,
)  # fmt: skip
def test_unsafe_paths(path: str) -> None:
    assert unsafe_path(path)


@given(st.text())
def test_a_safe_path_stays_below_its_folder(path: str) -> None:
    if unsafe_path(path) is None:
        assert not path.startswith("/")
        assert not {"", ".", ".."} & set(path.split("/"))
        path.encode()


@pytest.mark.parametrize("suffix", PICKLE_SUFFIXES)
@pytest.mark.parametrize("allow_code", [False, True])
def test_pickle_is_refused_whatever_is_allowed(suffix: str, allow_code: bool) -> None:
    for path in (f"sub/x{suffix}", f"x{suffix.upper()}"):
        with pytest.raises(Refused, match="pickle") as caught:
            refuse_unsafe(["config.json", path], allow_code=allow_code, what="llama/3")
        assert path in caught.value.message
        assert "llama/3" in caught.value.message


@pytest.mark.parametrize("path", ["modeling_llama.py", "sub/X.PY"])
def test_code_needs_to_be_allowed(path: str) -> None:
    refuse_unsafe([path], allow_code=True, what="llama/3")
    with pytest.raises(Refused, match="code that the engine would run") as caught:
        refuse_unsafe([path], allow_code=False, what="llama/3")
    assert "--allow-code" in caught.value.hint


def test_what_a_model_is_made_of_is_not_refused() -> None:
    paths = [
        "model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin.index.json",
        "config.json", "tokenizer.model", "chat_template.jinja", "README.md", "merges.txt",
    ]  # fmt: skip
    refuse_unsafe(paths, allow_code=False, what="llama/3")


def test_a_manifest_that_is_refused_leaves_the_collector_on() -> None:
    with pytest.raises(IntegrityError):
        Manifest.decode(b'{"schema":')
    assert gc.isenabled()


# Chunks


@given(chunks, st.data())
def test_chunks_are_a_sequence_of_them(some: Chunks, data: st.DataObject) -> None:
    each = list(some)
    assert all(isinstance(chunk, Chunk) for chunk in each)
    assert [(chunk.length, chunk.blake3) for chunk in each] == [tuple(pair) for pair in json.loads(some.encode())]
    assert [some[index] for index in range(-len(some), len(some))] == each + each
    assert list(some.lengths) == [chunk.length for chunk in each]
    part = data.draw(st.slices(len(some)))
    assert list(some[part]) == each[part]
    for index in (len(some), -len(some) - 1):
        with pytest.raises(IndexError):
            some[index]


@given(chunks, chunks)
def test_chunks_are_equal_where_each_is(one: Chunks, other: Chunks) -> None:
    assert (one == other) == (list(one) == list(other))
    assert one == one[:]
    assert hash(one) == hash(one[:])
    assert one != list(one)


@pytest.mark.parametrize(
    "value",
    [
        None, {}, "x", [1], [[]], ["ab"], [{"a": 1, "b": 2}], [[1]], [[1, A, A]], [[1, A], [1]],
        [[True, A]], [[1.0, A]], [[0, A]], [[-1, A]], [[2**64, A]], [["1", A]],
        [[1, None]], [[1, ""]], [[1, A[1:]]], [[1, A + "a"]], [[1, "A" * 64]], [[1, "g" * 64]], [[1, " a" * 32]],
        [[1, "a" * 62 + "  "], [1, "  " + "a" * 62]], [[1, "٣" * 64]], [[1, "\ud800" * 64]],
    ],
    ids=ascii,
)  # fmt: skip
def test_what_is_not_a_list_of_chunks(value: Any) -> None:
    assert Chunks.read(value) is None


def test_no_chunks() -> None:
    assert Chunks.read([]) == Chunks()
