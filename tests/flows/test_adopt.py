"""What lies in a folder or a bucket becomes a version: the same one that a publish makes, and the source stays."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import stat
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from packtrain.errors import NotFound, PacktrainError, PreflightRefused, Refused, Unavailable
from packtrain.flows import staging
from packtrain.flows.adopt import adopt
from packtrain.flows.publish import Published, Request
from packtrain.flows.verify import verify
from packtrain.model.manifest import FILE_NAME, Manifest
from packtrain.ports import ObjectInfo, Store
from packtrain.storage import open_store
from packtrain.storage.directory import DirectoryStore
from packtrain.storage.multipart import S3Multipart
from packtrain.storage.s3 import S3
from packtrain.testing.faults import Fault, FaultyStore, Killed
from packtrain.testing.memory_store import MemoryStore
from packtrain.testing.servers import S3Server
from tests.conftest import Models, first_fast
from tests.flows.below import Below
from tests.flows.conftest import House, contents
from tests.flows.test_interruptions import killed_at, require_whole

Make = Callable[..., House]


def take(house: House, source: Path | Store, name: str = "llama", **options: object) -> Published:
    request = Request(directory=Path("unused"), name=name, **options)  # type: ignore[arg-type]
    return adopt(
        house.store, house.registry, source, request,
        scratch=house.home / "scratch", reporter=house.notes, clock=house.clock,
    )  # fmt: skip


def put(store: Store, directory: Path, prefix: str = "") -> None:
    for name, data in contents(directory).items():
        store.upload(prefix + name, [data], len(data))


def objects_of(store: Store) -> dict[str, bytes]:
    return {info.key: store.get(info.key) for info in store.list("")}


def require_right(house: House, name: str = "llama") -> None:
    verify(house.store, house.registry, name, every_byte=True, reporter=house.notes, clock=house.clock)


@dataclass
class Case:
    store: Store
    source: Path | Store


@pytest.fixture(
    params=["folder to its own disk", "folder to memory", "prefix to itself", "prefix to another", "bucket to itself",
            "bucket to a folder", "folder to a bucket"]
)  # fmt: skip
def case(request: pytest.FixtureRequest, models: Models, tmp_path: Path) -> Case:
    """Every way from a source that holds ``models.first`` to a store."""
    origin, target = request.param.split(" to ")
    folder = Path(shutil.copytree(models.first, tmp_path / "source"))
    memory = MemoryStore()
    url = ""
    if "bucket" in request.param:
        url = f"{request.getfixturevalue('s3_environment').url}/{uuid.uuid4().hex}"
    source: dict[str, Callable[[], Path | Store]] = {
        "folder": lambda: folder,
        "prefix": lambda: Below(memory, "team/v1/"),
        "bucket": lambda: open_store(f"{url}/team/v1"),
    }
    stores: dict[str, Callable[[], Store]] = {
        "its own disk": lambda: DirectoryStore(tmp_path / "store"),
        "a folder": lambda: DirectoryStore(tmp_path / "store"),
        "memory": MemoryStore,
        "itself": lambda: memory if origin == "prefix" else open_store(f"{url}/registry"),
        "another": lambda: MemoryStore("another"),
        "a bucket": lambda: open_store(f"{url}/registry"),
    }
    if origin == "prefix":
        put(memory, models.first, "team/v1/")
    if origin == "bucket":
        put(open_store(f"{url}/team/v1"), models.first)
    return Case(stores[target](), source[origin]())


def test_it_is_the_version_that_publish_makes_and_the_source_stays(
    case: Case, make_house: Make, models: Models
) -> None:
    house = make_house(store=case.store)
    adopted = take(house, case.source, alias="staging")
    assert (
        adopted.created and adopted.digest == make_house("publisher", store=MemoryStore()).publish(models.first).digest
    )
    require_whole(make_house("reader", store=case.store), models.first)
    require_right(house)
    assert house.registry.read("llama").state.aliases == {"staging": 1}
    left = contents(case.source) if isinstance(case.source, Path) else objects_of(case.source)
    assert left == contents(models.first)
    assert any("lineage is unknown" in note for note in house.notes.notes)

    again = take(house, case.source)
    assert (again.created, again.uploaded, again.version) == (False, 0, adopted.version)
    assert list((house.home / "scratch").glob("*/")) == []


def test_a_dry_run_writes_nothing(case: Case, make_house: Make) -> None:
    house = make_house(store=case.store)
    before = objects_of(case.store)
    dry = take(house, case.source, dry_run=True)
    assert dry.version is None and dry.uploaded == dry.size > 0
    assert objects_of(case.store) == before


def test_an_adapter_brings_its_training_and_names_its_base(house: House, models: Models) -> None:
    source = MemoryStore("team")
    put(source, models.adapter)
    house.publish(models.base, name="base")
    adopted = take(house, source, "adapter", base="base/1")
    assert adopted.version is not None and str(adopted.version.base) == "base/1"
    assert adopted.lineage.metrics and "training_args.bin" in adopted.left
    assert not any("lineage is unknown" in note for note in house.notes.notes)


# Bytes take the shortest way


def test_within_a_bucket_the_server_copies(
    s3_environment: S3Server, make_house: Make, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{s3_environment.url}/{uuid.uuid4().hex}"
    put(open_store(f"{url}/v1"), models.first)
    uploaded: list[str] = []
    put_ = S3Multipart.put

    def watched(multipart: S3Multipart, key: str, *rest) -> None:  # type: ignore[no-untyped-def]
        uploaded.append(key.rpartition("/")[2])
        put_(multipart, key, *rest)

    monkeypatch.setattr(S3Multipart, "put", watched)
    house = make_house(store=open_store(f"{url}/registry"))
    take(house, open_store(f"{url}/v1"))
    assert sorted(uploaded) == ["MLmodel", "requirements.txt"]  # what nobody else has

    uploaded.clear()
    monkeypatch.setattr(S3, "copies", 100_000)  # what S3 copies at most
    take(make_house("large", store=open_store(f"{url}/large")), open_store(f"{url}/v1"))
    large = {name for name, data in contents(models.first).items() if len(data) > 100_000}
    assert large and set(uploaded) == {"MLmodel", "requirements.txt"} | large


def test_of_weights_only_headers_are_fetched_for_preflight(
    house: House, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: dict[str, int] = {}

    class Metered(MemoryStore):
        def read(self, key: str, start: int, length: int, buffer: memoryview):  # type: ignore[no-untyped-def]
            fetched[key] = fetched.get(key, 0) + length
            return super().read(key, start, length, buffer)

    source = Metered("team")
    put(source, models.adapter)
    source.objects["checkpoint-9/optimizer.pt"] = bytes(50_000)
    monkeypatch.setattr(staging, "MAX_DOCUMENT", 100_000)
    source.objects["huge.json"] = bytes(100_001)
    with staging.staged(source, house.home / "scratch", house.notes, house.clock) as (directory, _):
        for key, data in source.objects.items():
            assert (directory / key).stat().st_size == len(data)
        assert fetched["adapter_model.safetensors"] < 20_000
        assert "checkpoint-9/optimizer.pt" not in fetched and "huge.json" not in fetched
        assert (directory / "adapter_config.json").read_bytes() == source.objects["adapter_config.json"]


# What is refused


def test_what_cannot_be_served_is_refused_in_the_sources_own_name(house: House, models: Models) -> None:
    outer = MemoryStore()
    put(outer, models.first, "v1/")
    del outer.objects["v1/tokenizer.json"]
    with pytest.raises(PreflightRefused, match="memory://store/v1 cannot be served") as caught:
        take(house, Below(outer, "v1/"))
    assert {finding.code for finding in caught.value.findings if finding.level == "refuse"} == {"no-tokenizer"}
    outer.objects = {"v1/readme.txt": b"hello"}
    with pytest.raises(Refused, match="memory://store/v1 holds no model"):
        take(house, Below(outer, "v1/"))
    assert house.store.objects == {}  # type: ignore[attr-defined]


def test_a_cut_object_is_refused(house: House, models: Models) -> None:
    source = MemoryStore("team")
    put(source, models.first)
    key = next(key for key in source.objects if key.endswith(".safetensors"))
    for length in (0, 5, 100, len(source.objects[key]) - 1):
        source.objects[key] = source.objects[key][:length]
        with pytest.raises(PreflightRefused, match="header-invalid"):
            take(house, source)
        put(source, models.first)


@pytest.mark.parametrize("key", ["../escape", "a/../../escape", "a//b", "x" * 256, "a\0b", "config.json/below"])
def test_names_that_no_file_can_have_are_refused(house: House, models: Models, key: str) -> None:
    source = MemoryStore("team")
    put(source, models.first)
    source.objects[key] = b"x"
    with pytest.raises(Refused):
        take(house, source)
    assert not (house.home / "scratch" / "escape").exists() and not list(house.home.rglob("escape"))


def test_nothing_there_and_too_much_there(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    source = MemoryStore("team")
    with pytest.raises(NotFound, match="nothing at"):
        take(house, source)
    monkeypatch.setattr(staging, "MAX_FILES", 3)
    source.objects = {str(number): b"" for number in range(4)}
    with pytest.raises(Refused, match="more than 3 objects"):
        take(house, source)


def test_the_marks_of_folders_are_no_files(house: House, models: Models) -> None:
    """Consoles and some servers make an empty object for a folder; obstore lists it without its slash."""

    class Marked(MemoryStore):
        def list(self, prefix: str):  # type: ignore[no-untyped-def]
            yield from super().list(prefix)
            yield ObjectInfo("empty-folder", 0)

        def head(self, key: str) -> ObjectInfo | None:
            return None if key == "empty-folder" else super().head(key)

    source = Marked("team")
    put(source, models.first)
    source.objects["original"] = b""
    source.objects["original/params.json"] = b"{}"
    take(house, source)
    assert {"original/params.json"} <= set(contents(house.pull("llama").path))
    assert "empty-folder" not in contents(house.pull("llama").path)


def test_a_published_versions_own_directory_gives_the_same_payload(house: House, models: Models) -> None:
    published = house.publish(models.first)
    assert isinstance(house.store, MemoryStore)
    again = take(house, Below(house.store, f"models/llama/{published.digest.hex}/"))
    assert not again.created and again.version == published.version


# The source changes meanwhile


@pytest.mark.parametrize("change", ["other bytes", "gone", "one more"])
def test_a_prefix_that_changes_between_hashing_and_naming(
    make_house: Make, models: Models, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    store = MemoryStore()
    put(store, models.first, "v1/")
    key = next(key for key in store.objects if key.endswith(".safetensors"))
    good = store.objects[key]
    house = make_house(store=store)
    original = house.registry.change

    def meddle(name: str, decide):  # type: ignore[no-untyped-def]
        if change == "other bytes":
            store.objects[key] = good[:-1] + bytes([good[-1] ^ 1])
        elif change == "gone":
            store.objects.pop(key, None)
        else:
            store.objects["v1/more.json"] = b"{}"
        return original(name, decide)

    monkeypatch.setattr(house.registry, "change", meddle)
    with pytest.raises(Refused, match="changed while"):
        take(house, Below(store, "v1/"))
    assert make_house("reader", store=store).registry.names() == []

    store.objects.pop("v1/more.json", None)
    store.objects[key] = good
    again = make_house("again", store=store)
    take(again, Below(store, "v1/"))
    require_right(again)


def test_a_write_that_no_time_shows_is_found_by_reading_back(
    make_house: Make, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel copies a folder's files; size, time and inode stay as they were."""
    source = Path(shutil.copytree(models.first, tmp_path / "source"))
    weights = next(source.glob("*.safetensors"))
    times = weights.stat()
    house = make_house(store=DirectoryStore(tmp_path / "store"))
    original = house.registry.change

    def meddle(name: str, decide):  # type: ignore[no-untyped-def]
        with weights.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\xff")
        os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
        return original(name, decide)

    monkeypatch.setattr(house.registry, "change", meddle)
    with pytest.raises(Refused, match="changed while"):
        take(house, source)
    assert house.registry.names() == []


def test_a_source_that_stutters_is_read_on(house: House, models: Models) -> None:
    """Of three attempts at an object, the first brings nothing, the second half a piece."""
    attempts = Counter[str]()

    class Stuttering(MemoryStore):
        def read(self, key: str, start: int, length: int, buffer: memoryview):  # type: ignore[no-untyped-def]
            attempts[key] += 1
            turn = attempts[key] % 3
            for piece in super().read(key, start, length, buffer):
                if turn == 1:
                    raise Unavailable("it broke off")
                yield piece if turn == 0 else piece[: len(piece) // 2]
                if turn == 2:
                    raise Unavailable("it broke off")

    source = Stuttering("team")
    put(source, models.first)
    take(house, source)
    require_right(house)
    assert attempts.keys() == contents(models.first).keys() and min(attempts.values()) >= 9


def test_a_source_that_stays_away_is_said(house: House, models: Models) -> None:
    class Away(MemoryStore):
        def read(self, key: str, start: int, length: int, buffer: memoryview):  # type: ignore[no-untyped-def]
            if length > 100_000:
                raise Unavailable("it cannot be reached")
            return super().read(key, start, length, buffer)

    source = Away("team")
    put(source, models.first)
    with pytest.raises(Unavailable):
        take(house, source)
    assert house.clock.monotonic() > 1  # it was tried again, with pauses


# Killed, cut off


@pytest.mark.slow
@pytest.mark.parametrize("fault", first_fast(Fault.KILLED, Fault.UNAVAILABLE, Fault.LOST_ANSWER))
@pytest.mark.parametrize("copied", [True, False], ids=["copied", "streamed"])
def test_adopt_interrupted_at_every_call_to_the_store(
    make_house: Make, models: Models, fault: Fault, copied: bool
) -> None:
    def fresh() -> tuple[MemoryStore, MemoryStore]:
        store, team = MemoryStore(), MemoryStore("team")
        put(store, models.first, "v1/")
        put(team, models.first)
        return store, Below(store, "v1/") if copied else team

    store, source = fresh()
    counting = FaultyStore(store)
    take(make_house("count", store=counting), source)
    assert counting.calls > 20
    for k in range(counting.calls):
        store, source = fresh()
        with suppress(Killed, PacktrainError):
            take(make_house(f"adopter-{k}", store=FaultyStore(store, {k: fault})), source)
        require_whole(make_house(f"reader-{k}", store=store), models.first)
        again = make_house(f"adopter-{k}", store=store)
        take(again, source)
        require_whole(make_house(f"after-{k}", store=store), models.first)
        require_right(again)
        assert objects_of(source) == contents(models.first)


def test_a_copy_that_nobody_could_check_is_read_by_the_next(make_house: Make, models: Models) -> None:
    """Killed after the server copied something that had just changed, and before that was found out."""
    store = MemoryStore()
    put(store, models.first, "v1/")
    key = next(key for key in store.objects if key.endswith(".safetensors"))
    good = store.objects[key]

    class Meddling(MemoryStore):
        def copy_from(self, url: str, key: str, size: int, advance: Callable[[int], None]) -> bool:
            copied = super().copy_from(url, key, size, advance)
            if key.endswith(".safetensors"):
                self.objects[key] = self.objects[key][:-1] + b"?"
                raise Killed
            return copied

    meddling = Meddling()
    meddling.objects = store.objects
    with pytest.raises(Killed):
        take(make_house("killed", store=meddling), Below(meddling, "v1/"))
    assert store.objects[key] == good
    again = make_house("again", store=store)
    take(again, Below(store, "v1/"))
    require_right(again)


@pytest.mark.slow
def test_adopt_killed_at_every_call_to_the_file_system(make_house: Make, models: Models, tmp_path: Path) -> None:
    team = DirectoryStore(tmp_path / "team")
    put(team, models.first)
    k, going = 0, True
    while going:
        root = tmp_path / f"store-{k}"
        home = f"adopter-{k}"
        going = killed_at(lambda r=root, h=home: take(make_house(h, store=DirectoryStore(r)), team), k)  # type: ignore[misc]
        require_whole(make_house(f"reader-{k}", store=DirectoryStore(root)), models.first)
        again = make_house(home, store=DirectoryStore(root))
        take(again, team)
        after = make_house(f"after-{k}", store=DirectoryStore(root))
        require_whole(after, models.first)
        assert after.registry.names() == ["llama"]
        assert [path.name for path in (again.home / "scratch").iterdir()] == ["lock"]  # nothing leaks past the next run
        shutil.rmtree(root)
        k += 7
    assert k > 100


def _adopt(arguments: tuple[Path, Path, Path]) -> tuple[bool, int]:
    root, home, source = arguments
    adopted = take(House(DirectoryStore(root), home), source)
    assert adopted.version is not None
    return adopted.created, adopted.version.number


@pytest.mark.slow
def test_adopts_at_once_make_one_version(make_house: Make, models: Models, tmp_path: Path) -> None:
    root = tmp_path / "store"
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        told = pool.map(_adopt, [(root, tmp_path / f"home-{n}", models.first) for n in range(3)], chunksize=1)
    assert sorted(told) == [(False, 1), (False, 1), (True, 1)]
    reader = make_house("reader", store=DirectoryStore(root))
    require_whole(reader, models.first)
    require_right(reader)


def test_copies_in_a_folder_are_read_only_and_no_links(make_house: Make, models: Models, tmp_path: Path) -> None:
    house = make_house(store=DirectoryStore(tmp_path / "store"))
    digest = take(house, models.first).digest
    stored = tmp_path / "store" / "models" / "llama" / digest.hex
    Manifest.decode((stored / FILE_NAME).read_bytes(), expect=digest)
    for name in contents(models.first):
        info = (stored / name).stat()
        assert info.st_nlink == 1 and stat.S_IMODE(info.st_mode) == 0o444
        assert info.st_ino != (models.first / name).stat().st_ino
