"""safetensors headers, and where files are cut."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packtrain.model.safetensors import (
    CHUNK,
    DTYPE_BITS,
    MAX_HEADER,
    MIB,
    OWN_CHUNK,
    Header,
    HeaderError,
    Tensor,
    cut,
    header_length,
    parse_header,
)

KIB = 1 << 10


def prefixed(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


def raw(entries: Any) -> bytes:
    return prefixed(json.dumps(entries).encode())


def layout(sizes: Mapping[str, int], first: int = 0) -> dict[str, Any]:
    """Header entries of byte tensors one after the other."""
    entries, position = {}, first
    for name, size in sizes.items():
        entries[name] = {"dtype": "U8", "shape": [size], "data_offsets": [position, position + size]}
        position += size
    return entries


def header_of(sizes: list[int], length: int = 1000) -> tuple[Header, int]:
    """A header of ``length`` bytes before tensors of these sizes, and the file's size."""
    tensors, position = [], length
    for index, size in enumerate(sizes):
        tensors.append(Tensor(str(index), "U8", (size,), position, position + size))
        position += size
    return Header(length, tuple(tensors), {}), position


@st.composite
def good_files(draw: st.DrawFn) -> tuple[bytes, int, dict[str, Any]]:
    """A header that the format allows, the size of its file, its entries."""
    entries: dict[str, Any] = {}
    position = 0
    for name in draw(st.lists(st.text(st.characters(exclude_categories=["Cs"])), unique=True, max_size=5)):
        if name == "__metadata__":
            continue
        dtype = draw(st.sampled_from(sorted(DTYPE_BITS)))
        shape = draw(st.lists(st.integers(0, 9), max_size=3))
        bits = prod(shape) * DTYPE_BITS[dtype]
        if bits % 8:
            shape, bits = [*shape, 4], bits * 4
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + bits // 8]}
        position += bits // 8
    items = draw(st.permutations(sorted(entries.items())))  # the order of entries means nothing
    header: dict[str, Any] = dict(items)
    if draw(st.booleans()):
        header = {"__metadata__": {"format": "pt"}, **header}
    data = prefixed(json.dumps(header).encode() + b" " * draw(st.integers(0, 8)))
    return data, len(data) + position, entries


@given(good_files())
def test_a_good_header_reads_as_it_is_meant(file: tuple[bytes, int, dict[str, Any]]) -> None:
    data, size, entries = file
    header = parse_header(data, size)
    assert header.length == len(data)
    assert {t.name: [t.dtype, list(t.shape), [t.start - len(data), t.end - len(data)]] for t in header.tensors} == {
        name: [e["dtype"], e["shape"], e["data_offsets"]] for name, e in entries.items()
    }
    assert [t.start for t in header.tensors] == sorted(t.start for t in header.tensors)
    assert sum(cut(size, header)) == size


@given(st.binary(max_size=200), st.integers(0, 300))
def test_random_bytes_are_a_header_error(data: bytes, size: int) -> None:
    with pytest.raises(HeaderError):
        parse_header(data, size)


@given(st.binary(max_size=100), st.integers(0, 300))
def test_random_text_after_a_right_length_is_a_header_error(text: bytes, size: int) -> None:
    try:
        header = parse_header(prefixed(text), size)
    except HeaderError:
        return
    assert header.tensors == ()  # the only header so short is an empty one


@given(good_files(), st.data())
def test_a_damaged_header_is_another_good_one_or_a_header_error(
    file: tuple[bytes, int, dict[str, Any]], data: st.DataObject
) -> None:
    good, size, _ = file
    place = data.draw(st.integers(0, len(good) - 1))
    damage = data.draw(st.sampled_from(["flip", "remove", "insert", "cut", "size"]))
    bad = {
        "flip": good[:place] + bytes([good[place] ^ data.draw(st.integers(1, 255))]) + good[place + 1 :],
        "remove": good[:place] + good[place + 1 :],
        "insert": good[:place] + data.draw(st.binary(min_size=1, max_size=3)) + good[place:],
        "cut": good[:place],
        "size": good,
    }[damage]
    try:
        header = parse_header(bad, size + (damage == "size"))
    except HeaderError:
        return
    assert damage != "size"
    assert sum(cut(size, header)) == size


_NONSENSE = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5), st.just("F32"),
    st.lists(st.integers(-5, 2**65) | st.just(10**4000), max_size=4), st.dictionaries(st.text(max_size=3), st.none()),
    st.lists(st.lists(st.integers()), max_size=2),
)  # fmt: skip


@given(
    st.dictionaries(
        st.text(max_size=4) | st.just("__metadata__"),
        _NONSENSE | st.fixed_dictionaries({"dtype": _NONSENSE, "shape": _NONSENSE, "data_offsets": _NONSENSE}),
        min_size=1,
        max_size=3,
    )
)
def test_entries_of_any_type_are_a_header_error_or_good(entries: dict[str, Any]) -> None:
    data = raw(entries)
    try:
        header = parse_header(data, len(data))
    except HeaderError as error:
        str(error).encode()  # can be shown
    else:
        assert all(tensor.size == 0 for tensor in header.tensors)


def entry(**changes: Any) -> dict[str, Any]:
    return {"t": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **changes}}


@pytest.mark.parametrize(
    ("entries", "data_size", "complaint"),
    [
        (entry(data_offsets=[0, 12]), 12, "12 bytes where F32\\[2, 2\\] takes 16"),
        (entry(shape=[2, 3]), 16, "16 bytes where F32\\[2, 3\\] takes 24"),
        (entry(dtype="F16"), 16, "16 bytes where F16\\[2, 2\\] takes 8"),
        (entry(dtype="F4", shape=[3], data_offsets=[0, 1]), 1, "takes 1"),  # 12 bits are no whole bytes
        (entry(dtype="Q8"), 16, "unknown dtype 'Q8'"),
        (entry(dtype=["F32"]), 16, "unknown dtype"),
        (entry(dtype=None), 16, "unknown dtype"),
        (entry(shape=4), 16, "bad shape"),
        (entry(shape=[-2, -2]), 16, "bad shape"),
        (entry(shape=[2.0, 2]), 16, "bad shape"),
        (entry(shape=[True, 4]), 16, "bad shape"),
        (entry(shape=[2**63, 0]), 16, "bad shape"),
        (entry(shape=[2**62, 4], data_offsets=[0, 16]), 16, "2\\*\\*63 elements"),
        (entry(shape=[10**4000] * 3), 16, "bad shape"),
        (entry(data_offsets=[16, 0]), 16, "-16 bytes"),
        (entry(data_offsets=[0, 16, 32]), 16, "lacks"),
        (entry(data_offsets="ab"), 16, "bad shape or offset"),
        ({"t": {"dtype": "F32", "shape": []}}, 4, "lacks"),
        ({"t": []}, 0, "lacks"),
        ({"__metadata__": {"a": 1}}, 0, "__metadata__"),
        ({"__metadata__": []}, 0, "__metadata__"),
        (entry(), 15, "outside the file: at \\d+ of \\d+"),
        (entry(), 17, "before the end of the file"),
        (layout({"a": 8}, first=1), 9, "'a' leaves a hole"),
        (layout({"a": 8}) | layout({"b": 8}, first=9), 17, "'b' leaves a hole"),
        (layout({"a": 8}) | layout({"b": 8}, first=7), 15, "'b' overlaps"),
        (layout({"a": 8}) | layout({"b": 8}), 8, "'b' overlaps"),
        ([], 0, "does not begin with {"),
        (5, 0, "does not begin with {"),
    ],
)
def test_what_contradicts_the_format(entries: Any, data_size: int, complaint: str) -> None:
    data = raw(entries)
    with pytest.raises(HeaderError, match=complaint):
        parse_header(data, len(data) + data_size)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b'{"a":1,"a":1}', "a key appears twice"),
        (b'{"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}}', "a key appears twice"),
        (b'{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}', "not JSON"),
        (b'{"\xff":{}}', "not JSON"),
        (b"{} x", "not JSON"),
        (b" {}", "begin with {"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b'{"a":' * 100_000, "not JSON"),
        (b"", "not JSON"),
    ],
)
def test_what_is_not_json(text: bytes, complaint: str) -> None:
    with pytest.raises(HeaderError, match=complaint):
        parse_header(prefixed(text), 8 + len(text))


def test_a_hostile_shape_is_refused_before_its_product_grows() -> None:
    """A million large dimensions: their product has tens of millions of bits, and takes minutes to make."""
    data = raw(entry(shape=[2**62] * 1_000_000))
    with pytest.raises(HeaderError, match="2\\*\\*63 elements"):
        parse_header(data, len(data) + 16)


@pytest.mark.parametrize("first8", [b"", b"\0" * 7])
def test_a_file_shorter_than_its_length_field(first8: bytes) -> None:
    with pytest.raises(HeaderError, match="too short"):
        header_length(first8, len(first8))


def test_lengths_beyond_the_file_and_the_limit() -> None:
    assert header_length((92).to_bytes(8, "little"), 100) == 100
    with pytest.raises(HeaderError, match="the file ends after 100"):
        header_length((93).to_bytes(8, "little"), 100)
    with pytest.raises(HeaderError, match="limit is 100000000"):
        header_length((MAX_HEADER + 1).to_bytes(8, "little"), 2**40)


def test_a_file_without_tensors() -> None:
    assert parse_header(prefixed(b"{}"), 10).tensors == ()


# Cutting

sizes = st.one_of(
    st.integers(0, 16 * KIB),
    st.integers(0, 3 * CHUNK),
    st.sampled_from([0, 1, OWN_CHUNK - 1, OWN_CHUNK, OWN_CHUNK + 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK]),
)


@given(st.lists(sizes, max_size=20), st.sampled_from([10, 1000, CHUNK, CHUNK + 1]))
def test_a_cut_covers_the_file_and_follows_the_tensors(tensor_sizes: list[int], length: int) -> None:
    header, file_size = header_of(tensor_sizes, length)
    lengths = cut(file_size, header)
    assert sum(lengths) == file_size
    assert all(0 < n <= CHUNK for n in lengths)
    starts = {sum(lengths[:i]) for i in range(len(lengths))}
    large = [t for t in header.tensors if t.size >= OWN_CHUNK]
    assert {header.length} - {file_size} <= starts  # the header is its own
    for tensor in large:
        assert set(range(tensor.start, tensor.end, CHUNK)) <= starts  # cut every 4 MiB from its start
        assert tensor.end in starts | {file_size}  # and shares no chunk with what follows
    tensor_starts = {t.start for t in header.tensors}
    inside = {offset for t in large for offset in range(t.start, t.end, CHUNK)} | set(range(0, length, CHUNK))
    assert starts <= tensor_starts | inside  # no small tensor is cut


@given(st.lists(sizes, max_size=6), st.lists(sizes, max_size=6), st.integers(OWN_CHUNK, 3 * CHUNK))
def test_an_unchanged_large_tensor_is_cut_the_same_whatever_surrounds_it(
    before: list[int], after: list[int], size: int
) -> None:
    def chunks_of_it(around: tuple[list[int], list[int]]) -> list[int]:
        header, file_size = header_of([*around[0], size, *around[1]])
        tensor = header.tensors[len(around[0])]
        found, position = [], 0
        for length in cut(file_size, header):
            if tensor.start <= position < tensor.end:
                found.append(length)
            position += length
        return found

    assert chunks_of_it((before, after)) == chunks_of_it(([], []))
    assert sum(chunks_of_it((before, after))) == size


def test_small_tensors_share_chunks() -> None:
    header, file_size = header_of([MIB // 2] * 20)
    assert cut(file_size, header) == [1000, CHUNK, CHUNK, 2 * MIB]


def test_a_large_tensor_ends_a_run_of_small_ones() -> None:
    header, file_size = header_of([100, 200, MIB, 300, 5 * MIB, 400])
    assert cut(file_size, header) == [1000, 300, MIB, 300, CHUNK, MIB, 400]


@given(st.integers(0, 10**12))
def test_other_files_are_cut_every_4_mib(size: int) -> None:
    lengths = cut(min(size, 10**9), None)
    assert sum(lengths) == min(size, 10**9)
    assert all(n == CHUNK for n in lengths[:-1])
    assert all(0 < n <= CHUNK for n in lengths[-1:])
