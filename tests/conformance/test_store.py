"""The laws of `packtrain.ports.Store`, asked of every implementation."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from packtrain.errors import AlreadyExists, NotFound, Unavailable
from packtrain.model.manifest import unsafe_path
from packtrain.ports import ObjectInfo, Store

MIB = 1 << 20
BIG = 20 * MIB + 12345  # several parts in a bucket, and no multiple of anything

ODD_NAMES = [
    "with space", " leading", "trailing ", "pl+us", "per%cent", "per%20cent", "ha#sh", "ti~lde", "a&b=c;d:e@f,g!",
    "(round)[square]{curly}", "quo'te\"s", "st*r?", "<|>^`$", ".hidden", "x..y", "...", "-rf", "ünïcödé", "e\u0301",
    "日本語", "🦙.safetensors", "n" * 200, "UPPER", "upper", "folder with space/ünder/100%.json",
]  # fmt: skip


def pattern(size: int) -> bytes:
    """Bytes in which every place looks different from its neighbours, so that a shifted range shows."""
    return array("I", range(size // 4 + 1)).tobytes()[:size]


def pieces(data: bytes, size: int = 300_000) -> Iterator[bytes]:
    return (data[i : i + size] for i in range(0, len(data), size))


def put(store: Store, key: str, data: bytes) -> None:
    store.upload(key, pieces(data), len(data))


def read(store: Store, key: str, start: int, length: int) -> bytes:
    buffer = memoryview(bytearray(64 << 10))
    return b"".join(bytes(piece) for piece in store.read(key, start, length, buffer))


def keys(store: Store, prefix: str = "") -> list[str]:
    return sorted(info.key for info in store.list(prefix))


def race(count: int, act: Callable[[int], None]) -> list[BaseException | None]:
    """What each of ``count`` threads that act at the same moment raised."""
    barrier = threading.Barrier(count)

    def run(number: int) -> BaseException | None:
        barrier.wait()
        try:
            act(number)
        except Exception as error:
            return error
        return None

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


# An empty store


def test_an_empty_store_holds_nothing(store: Store) -> None:
    assert keys(store) == []
    assert keys(store, "a/") == []
    assert list(store.children("")) == []
    assert list(store.children("a/b/")) == []
    assert store.head("a") is None


def test_what_is_not_there_is_not_found(store: Store) -> None:
    put(store, "a/b", b"x")
    for key in ("nothing", "a/nothing", "a", "a/b/c", "nothing/at/all"):
        assert store.head(key) is None
        with pytest.raises(NotFound, match=key):
            store.get(key)
        for length in (0, 1):
            with pytest.raises(NotFound, match=key):
                read(store, key, 0, length)


# Create


def test_create_then_read(store: Store) -> None:
    store.create("ledger/m/1.json", b"event")
    assert store.get("ledger/m/1.json") == b"event"
    assert store.head("ledger/m/1.json") == ObjectInfo("ledger/m/1.json", 5)


def test_create_never_replaces(store: Store) -> None:
    store.create("k", b"first")
    with pytest.raises(AlreadyExists, match="k"):
        store.create("k", b"second")
    with pytest.raises(AlreadyExists):
        store.create("k", b"first")
    assert store.get("k") == b"first"


def test_create_does_not_replace_an_upload(store: Store) -> None:
    put(store, "k", b"uploaded")
    with pytest.raises(AlreadyExists):
        store.create("k", b"created")
    assert store.get("k") == b"uploaded"


@pytest.mark.slow
def test_of_racing_creators_one_wins(store: Store) -> None:
    outcomes = race(16, lambda number: store.create("ledger/m/7", b"writer %d" % number))
    winners = [number for number, error in enumerate(outcomes) if error is None]
    assert len(winners) == 1
    assert all(isinstance(error, AlreadyExists) for error in outcomes if error is not None)
    assert store.get("ledger/m/7") == b"writer %d" % winners[0]
    assert keys(store) == ["ledger/m/7"]


# Upload


@pytest.mark.parametrize("size", [0, 1, 8 * MIB, 8 * MIB + 1, BIG])
def test_upload_then_read(store: Store, size: int) -> None:
    data = pattern(size)
    put(store, "models/m/weights", data)
    assert store.head("models/m/weights") == ObjectInfo("models/m/weights", size)
    assert store.get("models/m/weights") == data


def test_upload_replaces(store: Store) -> None:
    put(store, "k", b"a longer first text")
    put(store, "k", b"second")
    assert store.get("k") == b"second"
    assert keys(store) == ["k"]


@pytest.mark.parametrize("size", [100, BIG], ids=["small", "large"])
@pytest.mark.parametrize("before", [None, b"before"], ids=["new", "replacing"])
@pytest.mark.parametrize(
    "fault", [OSError(5, "reading failed"), FileNotFoundError("source"), KeyboardInterrupt()], ids=repr
)
def test_the_exception_of_a_body_comes_out_and_nothing_changes(
    store: Store, size: int, before: bytes | None, fault: BaseException
) -> None:
    if before is not None:
        put(store, "k", before)

    def body() -> Iterator[bytes]:
        yield from pieces(pattern(size))
        raise fault

    with pytest.raises(type(fault)) as caught:
        store.upload("k", body(), size + 1)
    assert caught.value is fault
    assert keys(store) == ([] if before is None else ["k"])
    assert before is None or store.get("k") == before


@pytest.mark.parametrize("size", [100, BIG], ids=["small", "large"])
@pytest.mark.parametrize("announced", [-1, 1], ids=["gives more", "gives less"])
def test_a_body_of_another_size_is_refused(store: Store, size: int, announced: int) -> None:
    put(store, "k", b"before")
    with pytest.raises(ValueError, match="k"):
        store.upload("k", pieces(pattern(size)), size + announced)
    assert store.get("k") == b"before"


def test_of_racing_uploads_one_is_there_whole(store: Store) -> None:
    bodies = [bytes([number]) * (9 * MIB + number) for number in range(4)]
    outcomes = race(4, lambda number: put(store, "k", bodies[number]))
    parts_are_shared = store.url.startswith("az://")  # then only one of them need succeed
    assert None in outcomes
    assert all(error is None or (parts_are_shared and isinstance(error, Unavailable)) for error in outcomes)
    assert store.get("k") in bodies
    assert keys(store) == ["k"]


def test_a_reader_never_sees_part_of_an_upload(store: Store) -> None:
    put(store, "k", b"before")
    seen: list[tuple[bytes, ObjectInfo | None, list[str]]] = []

    def body() -> Iterator[bytes]:
        for piece in pieces(pattern(BIG), 5 * MIB):
            yield piece
            seen.append((store.get("k"), store.head("k"), keys(store)))

    store.upload("k", body(), BIG)
    assert seen == [(b"before", ObjectInfo("k", 6), ["k"])] * len(seen)
    assert seen
    assert store.get("k") == pattern(BIG)


def test_a_body_may_read_the_store_and_reuse_its_buffer(store: Store) -> None:
    put(store, "source", pattern(BIG))
    buffer = memoryview(bytearray(64 << 10))
    store.upload("copy", store.read("source", 0, BIG, buffer), BIG)
    assert store.get("copy") == pattern(BIG)


# Copy


@pytest.mark.parametrize("size", [0, 1, BIG])
def test_a_copy_of_an_object_is_equal_and_apart(copying: Store, size: int) -> None:
    put(copying, "a/source", pattern(size))
    told: list[int] = []
    assert copying.copy_from(copying.locate("a/source"), "b/copy", size, told.append)
    assert sum(told) == size
    assert copying.get("b/copy") == pattern(size)
    put(copying, "a/source", b"something else")
    assert copying.get("b/copy") == pattern(size)


def test_a_copy_of_what_is_fixed_outlives_it(store: Store) -> None:
    put(store, "a/source", pattern(1000))
    put(store, "b/copy", b"before")
    told: list[int] = []
    assert store.copy_from(store.locate("a/source"), "b/copy", 1000, told.append, fixed=True)
    assert sum(told) == 1000
    store.delete("a/source")
    assert store.get("b/copy") == pattern(1000)
    assert keys(store) == ["b/copy"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_copy_of_an_odd_name(copying: Store, name: str) -> None:
    put(copying, f"a/{name}", name.encode())
    assert copying.copy_from(copying.locate(f"a/{name}"), f"b/{name}", len(name.encode()), lambda _: None)
    assert copying.get(f"b/{name}") == name.encode()


def test_a_copy_replaces(copying: Store) -> None:
    put(copying, "source", b"new")
    put(copying, "k", b"before")
    assert copying.copy_from(copying.locate("source"), "k", 3, lambda _: None)
    assert copying.get("k") == b"new"


def test_a_copy_of_nothing_is_not_found(copying: Store) -> None:
    put(copying, "k", b"before")
    with pytest.raises(NotFound, match="nothing"):
        copying.copy_from(copying.locate("nothing"), "k", 3, lambda _: None)
    assert copying.get("k") == b"before"


def test_a_copy_from_elsewhere_is_the_callers_to_stream(store: Store) -> None:
    told: list[int] = []
    for url in ("s3://another-bucket/k", "https://example.com/k", "memory://another/k"):
        assert not store.copy_from(url, "k", 3, told.append)
    assert keys(store) == [] and sum(told) == 0


def until_another_tick(store: Store) -> None:
    """A folder's files have the times of its file system, whose clock may stand still for some milliseconds; and an
    inode that is free is used again."""
    if store.directory is None:
        return
    clock = store.directory.with_name("clock")
    clock.touch()
    before = clock.stat().st_mtime_ns
    while clock.stat().st_mtime_ns == before:
        clock.touch()


def test_a_tag_changes_with_every_write_of_other_bytes(store: Store) -> None:
    tags = set()
    for text in (b"one", b"two", b"six"):
        put(store, "k", text)
        info = store.head("k")
        assert info is not None and info.tag
        assert [listed.tag for listed in store.list("")] == [info.tag]
        tags.add(info.tag)
        until_another_tick(store)
    assert len(tags) == 3


# Delete


def test_delete(store: Store) -> None:
    put(store, "a/b/c", b"deleted")
    put(store, "a/kept", b"kept")
    store.delete("a/b/c")
    assert store.head("a/b/c") is None
    assert keys(store) == ["a/kept"]
    with pytest.raises(NotFound, match="a/b/c"):
        store.get("a/b/c")


def test_what_is_not_there_is_deleted_all_the_same(store: Store) -> None:
    put(store, "a/b", b"kept")
    for key in ("nothing", "a/nothing", "nothing/at/all", "a", "a/b/c"):
        store.delete(key)
    assert keys(store) == ["a/b"]


def test_a_deleted_key_is_free_again(store: Store) -> None:
    store.create("a/k", b"first")
    store.delete("a/k")
    store.create("a/k", b"second")
    assert store.get("a/k") == b"second"


def test_of_racing_deleters_every_one_returns(store: Store) -> None:
    put(store, "a/b/k", b"")
    assert race(8, lambda _: store.delete("a/b/k")) == [None] * 8
    assert keys(store) == []


@pytest.mark.slow
def test_deleting_harms_no_writer_beside_it(store: Store) -> None:
    def act(number: int) -> None:
        for turn in range(25):
            key = f"a/b/{number}-{turn}"
            if turn % 2:
                store.create(key, b"x")
            else:
                put(store, key, b"x")
            assert store.get(key) == b"x"
            store.delete(key)
            assert store.head(key) is None

    assert race(4, act) == [None] * 4
    assert keys(store) == []


# Read


def test_ranges(store: Store) -> None:
    data = pattern(3 * MIB)
    put(store, "k", data)
    size = len(data)
    for start, length in [
        (0, 0),
        (0, 1),
        (0, size),
        (size - 1, 1),
        (size, 0),
        (1, 65536),
        (65535, 2),
        (123_457, 2 * MIB),
    ]:
        assert read(store, "k", start, length) == data[start : start + length], (start, length)


def test_reads_that_were_prepared_are_as_others(store: Store) -> None:
    store.prepare("none", 3)  # it does not have to be there
    put(store, "k", pattern(MIB))
    store.prepare("k", 2)
    with ThreadPoolExecutor(3) as pool:
        for data in pool.map(lambda start: read(store, "k", start, 1000), (0, 1000, 2000)):
            assert len(data) == 1000
    assert read(store, "k", 0, MIB) == pattern(MIB)


@pytest.mark.parametrize(("start", "length"), [(0, 11), (9, 2), (10, 1), (50, 5)])
def test_a_range_past_the_end_is_not_silently_short(store: Store, start: int, length: int) -> None:
    put(store, "k", b"0123456789")
    with pytest.raises(Unavailable, match="k"):
        read(store, "k", start, length)


def test_a_reader_may_stop_early(store: Store) -> None:
    put(store, "k", pattern(3 * MIB))
    stream = store.read("k", 0, 3 * MIB, memoryview(bytearray(64 << 10)))
    assert len(next(stream)) > 0
    del stream
    assert read(store, "k", 4, 4) == pattern(8)[4:]


def test_many_threads_read_one_object(store: Store) -> None:
    data = pattern(4 * MIB)
    put(store, "k", data)
    step = 256 << 10

    def check(number: int) -> None:
        assert read(store, "k", number * step, step) == data[number * step : (number + 1) * step]

    assert race(16, check) == [None] * 16


# Listings


def test_a_listing_shows_exactly_what_is_under_a_prefix(store: Store) -> None:
    everything = {"a/b/x": 1, "a/b/c/y": 2, "a/bc/z": 3, "a/b.json": 4, "ab": 5, "b/a/b/w": 6}
    for key, size in everything.items():
        put(store, key, b"s" * size)

    def listing(prefix: str) -> dict[str, int]:
        found = [(info.key, info.size) for info in store.list(prefix)]
        assert len(found) == len(dict(found))
        return dict(found)

    assert listing("") == everything
    assert listing("a/b/") == {"a/b/x": 1, "a/b/c/y": 2}
    assert listing("a/") == {"a/b/x": 1, "a/b/c/y": 2, "a/bc/z": 3, "a/b.json": 4}
    assert listing("a/b/x/") == {}
    assert listing("c/") == {}


def test_children_are_the_folders(store: Store) -> None:
    for key in ("a/b/x", "a/b/c/y", "a/bc/z", "a/file", "top"):
        put(store, key, b"")
    assert list(store.children("")) == ["a"]
    assert sorted(store.children("a/")) == ["b", "bc"]
    assert list(store.children("a/b/")) == ["c"]
    assert list(store.children("a/b/c/")) == []


def test_a_listing_has_no_limit(store: Store) -> None:
    names = [f"{number:04}" for number in range(1100)]  # S3 gives at most 1000 at once
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: store.create(f"many/{name}/e", b""), names))
    assert keys(store, "many/") == [f"many/{name}/e" for name in names]
    assert sorted(store.children("many/")) == names


@pytest.mark.parametrize("name", ODD_NAMES)
def test_every_name_that_a_file_may_have(store: Store, name: str) -> None:
    assert unsafe_path(name) is None
    key = f"models/m/{name}"
    put(store, key, name.encode())
    assert store.get(key) == name.encode()
    assert read(store, key, 0, 1) == name.encode()[:1]
    assert store.head(key) == ObjectInfo(key, len(name.encode()))
    assert keys(store) == [key]
    assert keys(store, "models/m/") == [key]
    with pytest.raises(AlreadyExists):
        store.create(key, b"")
    if "/" in name:
        assert list(store.children("models/m/")) == [name.partition("/")[0]]


# Where it is


def test_locations(store: Store) -> None:
    assert not store.url.endswith("/")
    assert store.locate("models/m/file") == f"{store.url}/models/m/file"
    assert store.locate("models/m/") == f"{store.url}/models/m"
