"""The laws of `packtrain.ports.Multipart`, asked of every implementation."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import suppress

import pytest
from tests.conformance.test_store import MIB, ODD_NAMES, keys, pattern, pieces, put, race

from packtrain.errors import IntegrityError, NotFound
from packtrain.ports import Multipart, OpenUpload, PartInfo, Store
from packtrain.storage import multipart as s3_multipart

DATA = pattern(11 * MIB + 77)
CUTS = (0, 5 * MIB, 10 * MIB, len(DATA))


@pytest.fixture
def multipart(assembling: Store) -> Multipart:
    assert assembling.multipart is not None
    return assembling.multipart


def crc32_of(store: Store, data: bytes) -> int | None:
    """What the store says of an object: GCS knows other checksums only."""
    return None if store.url.startswith("gs://") else zlib.crc32(data)


def send(multipart: Multipart, upload: OpenUpload, number: int, data: bytes) -> PartInfo:
    return multipart.send(upload, number, lambda: pieces(data), len(data), zlib.crc32(data))


def part(number: int) -> bytes:
    return DATA[CUTS[number - 1] : CUTS[number]]


def send_all(multipart: Multipart, upload: OpenUpload, numbers: tuple[int, ...] = (1, 2, 3)) -> list[PartInfo]:
    return [send(multipart, upload, number, part(number)) for number in numbers]


def uploads(multipart: Multipart, prefix: str = "") -> list[OpenUpload]:
    return sorted(multipart.open_uploads(prefix), key=lambda upload: (upload.key, upload.id))


def test_parts_become_an_object_and_nothing_is_seen_before(assembling: Store, multipart: Multipart) -> None:
    upload = multipart.begin("a/k")
    sent = send_all(multipart, upload, (3, 1, 2))
    assert keys(assembling) == [] and assembling.head("a/k") is None
    multipart.complete(upload, sorted(sent, key=lambda info: info.number), zlib.crc32(DATA))
    assert keys(assembling) == ["a/k"]
    assert assembling.get("a/k") == DATA
    assert multipart.crc32("a/k") == crc32_of(assembling, DATA)
    assert uploads(multipart) == []


def test_what_is_there_stays_until_the_last_moment(assembling: Store, multipart: Multipart) -> None:
    put(assembling, "k", b"before")
    upload = multipart.begin("k")
    sent = send_all(multipart, upload)
    assert assembling.get("k") == b"before"
    multipart.complete(upload, sent, zlib.crc32(DATA))
    assert assembling.get("k") == DATA


def test_what_is_held_is_listed_for_everybody(assembling: Store, multipart: Multipart) -> None:
    upload = multipart.begin("a/k")
    assert multipart.parts(upload) == []
    sent = send_all(multipart, upload, (3, 1))
    (found,) = multipart.open_uploads("a/")
    assert found == upload and found.begun is not None
    held = multipart.parts(found)
    assert [(info.number, info.size, info.tag) for info in held] == [
        (info.number, info.size, info.tag) for info in reversed(sent)
    ]
    assert all(info.crc32 in (None, zlib.crc32(part(info.number))) for info in held)
    multipart.complete(found, [held[0], send(multipart, found, 2, part(2)), held[1]], zlib.crc32(DATA))
    assert assembling.get("a/k") == DATA


def test_a_number_written_again_holds_the_later_bytes(assembling: Store, multipart: Multipart) -> None:
    upload = multipart.begin("k")
    send(multipart, upload, 1, b"first")
    later = send(multipart, upload, 1, b"second")
    assert [info.size for info in multipart.parts(upload)] in ([6], [])  # or the store cannot tell
    multipart.complete(upload, [later], zlib.crc32(b"second"))
    assert assembling.get("k") == b"second"


def test_open_uploads_by_prefix(multipart: Multipart) -> None:
    begun = [multipart.begin(key) for key in ("a/x", "a/x", "a/xy", "b/x")]
    assert sorted(uploads(multipart, "a/"), key=lambda each: each.id) == sorted(begun[:3], key=lambda each: each.id)
    assert {each.id for each in multipart.open_uploads("a/x") if each.key == "a/x"} == {each.id for each in begun[:2]}
    assert uploads(multipart, "c/") == []
    multipart.abort(begun[0])
    assert {each.id for each in multipart.open_uploads("")} == {each.id for each in begun[1:]}
    for each in begun:
        multipart.abort(each)
    assert uploads(multipart) == []


def test_what_is_gone_is_not_found(assembling: Store, multipart: Multipart) -> None:
    put(assembling, "source", DATA)
    aborted, completed = multipart.begin("aborted"), multipart.begin("completed")
    sent = [send(multipart, each, 1, b"text") for each in (aborted, completed)]
    multipart.abort(aborted)
    multipart.complete(completed, sent[1:], zlib.crc32(b"text"))
    for gone in (aborted, completed):
        with pytest.raises(NotFound):
            multipart.parts(gone)
        with pytest.raises(NotFound):
            send(multipart, gone, 2, b"more")
        with pytest.raises(NotFound):
            assert multipart.copy(gone, 2, assembling.locate("source"), 0, 5 * MIB) or multipart.parts(gone)
        multipart.abort(gone)
    with pytest.raises(NotFound):
        multipart.complete(aborted, sent[:1], zlib.crc32(b"text"))
    with suppress(NotFound):
        multipart.complete(completed, sent[1:], zlib.crc32(b"text"))
    assert keys(assembling) == ["completed", "source"]


# What is checked


def test_other_bytes_than_announced_are_refused(assembling: Store, multipart: Multipart) -> None:
    upload = multipart.begin("k")
    with pytest.raises(IntegrityError, match="k: what arrived"):
        multipart.send(upload, 1, lambda: pieces(part(1)), len(part(1)), zlib.crc32(b"other"))
    assert multipart.parts(upload) == []
    assert send(multipart, upload, 1, part(1)).crc32 == zlib.crc32(part(1))


def test_an_object_of_other_bytes_than_announced_is_refused(assembling: Store, multipart: Multipart) -> None:
    put(assembling, "k", b"before")
    upload = multipart.begin("k")
    sent = send_all(multipart, upload)
    with pytest.raises(IntegrityError, match="k: what arrived"):
        multipart.complete(upload, sent, zlib.crc32(b"other"))
    assert assembling.get("k") == b"before"


@pytest.mark.parametrize("announced", [-1, 1], ids=["gives more", "gives less"])
def test_a_body_of_another_size_is_no_part(multipart: Multipart, announced: int) -> None:
    upload = multipart.begin("k")
    with pytest.raises(ValueError, match="k"):
        multipart.send(upload, 1, lambda: pieces(part(1)), len(part(1)) + announced, zlib.crc32(part(1)))
    assert multipart.parts(upload) == []


def test_the_exception_of_a_body_comes_out_and_nothing_is_held(assembling: Store, multipart: Multipart) -> None:
    fault = FileNotFoundError("source")

    def body() -> Iterator[bytes]:
        yield from pieces(part(1)[:MIB])
        raise fault

    upload = multipart.begin("k")
    for act in (
        lambda: multipart.send(upload, 1, body, len(part(1)), zlib.crc32(part(1))),
        lambda: multipart.put("k", body, len(part(1)), zlib.crc32(part(1))),
    ):
        with pytest.raises(FileNotFoundError) as caught:
            act()  # type: ignore[no-untyped-call]
        assert caught.value is fault
    assert multipart.parts(upload) == []
    assert keys(assembling) == []


# In one request


@pytest.mark.parametrize("size", [0, 1, 6 * MIB])
def test_put_then_read(assembling: Store, multipart: Multipart, size: int) -> None:
    for data in (b"x" + pattern(size), pattern(size)):
        multipart.put("a/k", lambda data=data: pieces(data), len(data), zlib.crc32(data))  # type: ignore[misc]
        assert assembling.get("a/k") == data
        assert multipart.crc32("a/k") == crc32_of(assembling, data)


def test_a_put_of_other_bytes_leaves_what_was_there(assembling: Store, multipart: Multipart) -> None:
    put(assembling, "k", b"before")
    with pytest.raises(IntegrityError, match="k: what arrived"):
        multipart.put("k", lambda: pieces(b"after"), 5, zlib.crc32(b"other"))
    assert assembling.get("k") == b"before"


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names(assembling: Store, multipart: Multipart, name: str) -> None:
    data = name.encode()
    key, copy = f"a/{name}", f"b/{name}"
    multipart.put(key, lambda: [data], len(data), zlib.crc32(data))
    upload = multipart.begin(copy)
    assert list(multipart.open_uploads(copy)) == [upload]
    copied = multipart.copy(upload, 1, assembling.locate(key), 0, len(data)) or send(multipart, upload, 1, data)
    assert multipart.parts(upload)[0].size == len(data)
    multipart.complete(upload, [copied], zlib.crc32(data))
    assert assembling.get(copy) == data and multipart.crc32(copy) == crc32_of(assembling, data)


def test_of_nothing_there_is_no_checksum(multipart: Multipart) -> None:
    with pytest.raises(NotFound):
        multipart.crc32("nothing")


# Copies


def test_ranges_of_other_objects_become_parts(assembling_copies: Store) -> None:
    multipart = assembling_copies.multipart
    assert multipart is not None
    put(assembling_copies, "source", DATA)
    url = assembling_copies.locate("source")
    upload = multipart.begin("k")
    copied = multipart.copy(upload, 1, url, 77, 6 * MIB)
    last = multipart.copy(upload, 3, url, 1, 10)
    assert copied is not None and last is not None
    assert copied.crc32 in (None, zlib.crc32(DATA[77 : 77 + 6 * MIB]))
    sent = send(multipart, upload, 2, part(2))
    expected = DATA[77 : 77 + 6 * MIB] + part(2) + DATA[1:11]
    multipart.complete(upload, [copied, sent, last], zlib.crc32(expected))
    assert assembling_copies.get("k") == expected
    assembling_copies.delete("source")
    assert assembling_copies.get("k") == expected


def test_a_copy_of_nothing_is_not_found(assembling_copies: Store) -> None:
    multipart = assembling_copies.multipart
    assert multipart is not None
    upload = multipart.begin("k")
    with pytest.raises(NotFound):
        multipart.copy(upload, 1, assembling_copies.locate("nothing"), 0, 5 * MIB)
    assert multipart.parts(upload) == []


def test_a_copy_from_elsewhere_is_the_callers_to_send(multipart: Multipart) -> None:
    upload = multipart.begin("k")
    for url in ("s3://another-bucket/k", "https://example.com/k", "memory://another/k", "file:///k"):
        assert multipart.copy(upload, 1, url, 0, 5 * MIB) is None
    assert multipart.parts(upload) == []


def test_many_threads_send_parts_of_one_object(assembling: Store, multipart: Multipart) -> None:
    upload = multipart.begin("k")
    data = pattern(6 * 5 * MIB)
    sent: dict[int, PartInfo] = {}

    def act(index: int) -> None:
        sent[index] = send(multipart, upload, index + 1, data[index * 5 * MIB : (index + 1) * 5 * MIB])

    assert race(6, act) == [None] * 6
    multipart.complete(upload, [sent[index] for index in range(6)], zlib.crc32(data))
    assert assembling.get("k") == data


# Storage classes


@pytest.mark.parametrize("size", [200_000, len(DATA)])
def test_an_object_moves_to_another_storage_class(
    assembling: Store, multipart: Multipart, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_multipart, "COPY", 1_000_000)  # as if it were too large for one call
    monkeypatch.setattr(s3_multipart, "STEP", 5 * MIB)
    multipart.put("k", lambda: pieces(DATA[:size]), size, zlib.crc32(DATA[:size]))
    colder = "NEARLINE" if assembling.url.startswith("gs://") else "STANDARD_IA"
    multipart.reclass("k", size, colder)
    assert assembling.get("k") == DATA[:size]
    for size_of_nothing in (1, 10_000_000):
        with pytest.raises(NotFound):
            multipart.reclass("nothing", size_of_nothing, colder)
    assert uploads(multipart) == []
