"""Uploads by parts: what the store has is not sent, what it says is asked for, what an interruption left goes on."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from packtrain.errors import IntegrityError, PacktrainError, Refused
from packtrain.flows import hashing, sending
from packtrain.flows.verify import verify
from packtrain.model import parts
from packtrain.ports import PartInfo, PartLimits
from packtrain.testing.faults import Fault, FaultyStore, Killed
from packtrain.testing.memory_store import MemoryMultipart, MemoryStore
from tests.conftest import Models
from tests.flows.conftest import House, contents

Make = Callable[..., House]
CHUNK = 8_000  # bytes
SMALLEST = 20_000  # bytes of a part
SENT = 50_000
LIMITS = PartLimits(smallest=SMALLEST, largest=1 << 30, most=1000)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """And small chunks, so that these models have several."""
    planned = parts.plan_parts
    monkeypatch.setattr(hashing, "cut", lambda size, _: [CHUNK] * (size // CHUNK) + [size % CHUNK] * bool(size % CHUNK))
    monkeypatch.setattr(
        sending, "plan_parts", lambda *given, **limits: planned(*given, **limits, sent=SENT, copied=SENT)
    )
    monkeypatch.setattr(sending, "_SMALL", 1000)


def by_parts(*, silent: bool = False, copies: bool = True) -> tuple[MemoryStore, MemoryMultipart]:
    store = MemoryStore()
    return store, MemoryMultipart(store, LIMITS, silent=silent, copies=copies)


def require_right(house: House) -> None:
    for name in house.registry.names():
        verify(house.store, house.registry, name, every_byte=True, reporter=house.notes, clock=house.clock)


def weights(store: MemoryStore) -> list[str]:
    return [key for key in store.objects if key.endswith(".safetensors")]


def flip(store: MemoryStore, key: str) -> None:
    data = bytearray(store.objects[key])
    data[len(data) // 2] ^= 1
    store.objects[key] = bytes(data)


def test_a_publish_sends_each_byte_once_and_reads_nothing(make_house: Make, models: Models) -> None:
    store, multipart = by_parts()
    store.read = None  # type: ignore[method-assign, assignment]
    house = make_house(store=store)
    published = house.publish(models.first)
    assert published.uploaded == published.size == multipart.sent
    assert list(multipart.open_uploads("")) == []


def test_the_bar_ends_where_it_should(make_house: Make, models: Models) -> None:
    store, _ = by_parts()
    house = make_house(store=store)
    advanced: list[int] = []
    house.notes.advance = advanced.append  # type: ignore[method-assign]
    published = house.publish(models.first)
    assert sum(advanced) == 2 * published.size  # hashed and uploaded


def test_a_second_version_is_copied_where_it_is_the_same(make_house: Make, models: Models) -> None:
    store, multipart = by_parts()
    house = make_house(store=store)
    first = house.publish(models.first)
    multipart.sent = 0
    second = house.publish(models.second)
    assert second.copied >= multipart.copied > 0  # small files are copied whole
    assert second.uploaded == multipart.sent < first.size
    assert second.uploaded + second.copied == second.size
    require_right(house)


def test_the_base_is_copied_from_too(make_house: Make, models: Models) -> None:
    store, _multipart = by_parts()
    house = make_house(store=store)
    house.publish(models.base, "base")
    assert house.publish(models.first, "tuned", base="base/1").copied > 0
    require_right(house)


def test_a_damaged_version_is_not_copied(make_house: Make, models: Models) -> None:
    store, _multipart = by_parts()
    house = make_house(store=store)
    house.publish(models.first)
    for key in weights(store):
        flip(store, key)
    second = house.publish(models.second)
    assert any("is damaged" in note for note in house.notes.notes)
    version = house.registry.read("llama").state.versions[second.version.number]  # type: ignore[union-attr]
    path = house.pull(f"llama/{version.number}").path
    assert {file: (path / file).read_bytes() for file in contents(models.second)} == contents(models.second)


@pytest.mark.parametrize("silent", [False, True])
def test_a_server_that_copies_nothing_is_sent_everything(make_house: Make, models: Models, silent: bool) -> None:
    store, multipart = by_parts(silent=silent, copies=False)
    house = make_house(store=store)
    house.publish(models.first)
    second = house.publish(models.second)
    assert multipart.copied == 0
    require_right(house)
    assert second.created


def test_what_a_silent_store_does_not_say_is_read_back(make_house: Make, models: Models) -> None:
    store, _multipart = by_parts(silent=True)
    read = 0
    once = store.read

    def counted(key: str, start: int, length: int, buffer: memoryview) -> Iterator[memoryview]:
        nonlocal read
        read += length
        return once(key, start, length, buffer)

    store.read = counted  # type: ignore[method-assign]
    house = make_house(store=store)
    published = house.publish(models.first)
    assert read == published.size
    read = 0
    second = house.publish(models.second)
    assert second.copied > 0 and read == second.size


def test_what_a_silent_store_got_wrong_is_sent_again(make_house: Make, models: Models) -> None:
    store, multipart = by_parts(silent=True)
    complete, damaged = multipart.complete, list[str]()

    def damaging(upload, sent, crc32) -> None:  # type: ignore[no-untyped-def]
        complete(upload, sent, crc32)
        if not damaged:
            damaged.append(upload.key)
            flip(store, upload.key)

    multipart.complete = damaging  # type: ignore[method-assign]
    house = make_house(store=store)
    house.publish(models.first)
    assert damaged
    require_right(house)


def test_a_store_that_goes_on_damaging_is_named(make_house: Make, models: Models) -> None:
    store, multipart = by_parts(silent=True)
    complete = multipart.complete

    def damaging(upload, sent, crc32) -> None:  # type: ignore[no-untyped-def]
        complete(upload, sent, crc32)
        flip(store, upload.key)

    multipart.complete = damaging  # type: ignore[method-assign]
    house = make_house(store=store)
    with pytest.raises(IntegrityError, match="still holds something else"):
        house.publish(models.first)
    assert house.registry.names() == []


def test_a_file_that_changes_is_refused_and_no_part_of_it_stays_visible(
    make_house: Make, models: Models, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(models.first, model)
    store, multipart = by_parts()
    begin = multipart.begin

    def changing(key: str):  # type: ignore[no-untyped-def]
        for file in model.glob("*.safetensors"):
            with file.open("r+b") as stream:
                stream.seek(-1, 2)
                stream.write(b"!")
        return begin(key)

    multipart.begin = changing  # type: ignore[method-assign]
    house = make_house(store=store)
    with pytest.raises(Refused, match="changed while it was being published"):
        house.publish(model)
    assert house.registry.names() == [] and weights(store) == []


# Going on


@pytest.mark.parametrize(
    ("fault", "silent", "step"),
    [
        (Fault.KILLED, False, 23),
        pytest.param(Fault.KILLED, False, 1, marks=pytest.mark.slow),
        pytest.param(Fault.KILLED, True, 3, marks=pytest.mark.slow),
        pytest.param(Fault.UNAVAILABLE, False, 5, marks=pytest.mark.slow),
        pytest.param(Fault.LOST_ANSWER, True, 5, marks=pytest.mark.slow),
    ],
)
def test_interrupted_at_every_call_it_goes_on(
    make_house: Make, models: Models, fault: Fault, silent: bool, step: int
) -> None:
    """What was acknowledged is not sent again: only what was in flight."""
    counting = FaultyStore(by_parts()[0])
    make_house("count", store=counting).publish(models.first)
    assert counting.calls > 40
    for k in range(0, counting.calls, step):
        store, multipart = by_parts(silent=silent)
        completed = False
        try:
            make_house(f"publisher-{k}", store=FaultyStore(store, {k: fault})).publish(models.first)
            completed = True
        except (Killed, PacktrainError):
            pass
        reader = make_house(f"reader-{k}", store=store)
        require_right(reader)
        assert not completed or reader.registry.names() == ["llama"]
        again = make_house(f"publisher-{k}", store=store).publish(models.first)
        most = sending.THREADS * (SENT + 2 * SMALLEST)
        assert multipart.sent <= again.size + most, k
        assert list(multipart.open_uploads("")) == [], k
        require_right(make_house(f"after-{k}", store=store))


def test_parts_of_another_plan_are_not_taken_for_ours(make_house: Make, models: Models) -> None:
    """A store that lists no checksums: only the whole object tells."""
    store, multipart = by_parts()
    send, listed = multipart.send, multipart.parts

    def killed_after_one(*given) -> PartInfo:  # type: ignore[no-untyped-def]
        send(*given)
        raise Killed

    multipart.send = killed_after_one  # type: ignore[method-assign]
    with pytest.raises(Killed):
        make_house(store=store).publish(models.first)
    multipart.send = send  # type: ignore[method-assign]

    def unsaid(of) -> list[PartInfo]:  # type: ignore[no-untyped-def]
        return [PartInfo(info.number, info.size, info.tag) for info in listed(of)]

    multipart.parts = unsaid  # type: ignore[method-assign]
    held = [parts for parts in multipart._open.values() if parts]
    assert held
    for parts_of_one in held:
        for number, data in parts_of_one.items():
            parts_of_one[number] = bytes(len(data))
    house = make_house("again", store=store)
    house.publish(models.first)
    require_right(house)
    assert list(multipart.open_uploads("")) == []


def test_objects_that_the_store_says_are_right_are_not_read(make_house: Make, models: Models) -> None:
    store, multipart = by_parts()
    counting = FaultyStore(store)
    make_house("count", store=counting).publish(models.first)
    store, multipart = by_parts()
    with pytest.raises(Killed):
        make_house("first", store=FaultyStore(store, {counting.calls - 8: Fault.KILLED})).publish(models.first)
    store.read = None  # type: ignore[method-assign, assignment]
    multipart.sent = 0
    assert make_house("second", store=store).publish(models.first).uploaded == multipart.sent == 0


def test_paranoid_reads_everything(make_house: Make, models: Models) -> None:
    store, multipart = by_parts()
    complete = multipart.complete
    multipart.crc32 = lambda key: None  # type: ignore[method-assign]

    def lying(upload, sent, crc32) -> None:  # type: ignore[no-untyped-def]
        complete(upload, sent, crc32)
        flip(store, upload.key)

    multipart.complete = lying  # type: ignore[method-assign]
    make_house("trusting", store=store).publish(models.first, "trusting")
    with pytest.raises(IntegrityError, match="not what was just sent"):
        make_house(store=store).publish(models.first, "paranoid", paranoid=True)


def test_two_publishes_of_the_same_at_once(make_house: Make, models: Models) -> None:
    store, multipart = by_parts()
    barrier = threading.Barrier(3)
    failed: list[BaseException] = []

    def act(number: int) -> None:
        house = make_house(f"publisher-{number}", store=store)
        barrier.wait()
        try:
            house.publish(models.first)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=act, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    reader = make_house("reader", store=store)
    assert list(reader.registry.read("llama").state.versions) == [1]
    require_right(reader)
    assert list(multipart.open_uploads("")) == []
