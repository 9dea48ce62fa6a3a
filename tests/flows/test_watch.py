"""Exports become versions as they appear: each once, whole, and never before it is finished."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from packtrain.errors import IntegrityError, NotFound, PacktrainError, Unavailable, UsageError
from packtrain.flows.promote import promote
from packtrain.flows.verify import verify
from packtrain.flows.watch import LONGEST_PAUSE, Happened, Watch, watch
from packtrain.model.reference import Reference
from packtrain.storage.directory import DirectoryStore
from packtrain.testing.faults import Fault, FaultyStore, Killed
from packtrain.testing.memory_store import MemoryStore
from tests.conftest import Models, first_fast
from tests.flows.conftest import House, contents
from tests.flows.test_interruptions import killed_at, require_whole

Make = Callable[..., House]


class Over(Exception):
    """The test has seen enough."""


def watching(house: House, folder: Path, **options: object) -> Iterator[Happened]:
    request = Watch(folder, "llama", **options)  # type: ignore[arg-type]
    return watch(
        house.store, house.registry, request,
        memory=house.home / "watch", reporter=house.notes, clock=house.clock,
    )  # fmt: skip


def once(house: House, folder: Path, **options: object) -> list[str]:
    """The events of two looks."""
    return [happened.event for happened in watching(house, folder, once=True, **options)]


def looks(house: House, folder: Path, between: Callable[[int], None], **options: object) -> list[Happened]:
    """Events of many looks; ``between`` is called with 1, 2, ... instead of every pause, and ends it by `Over`."""
    count = 0

    def sleep(_: float) -> None:
        nonlocal count
        count += 1
        between(count)

    house.clock.sleep = sleep  # type: ignore[method-assign]
    seen = []
    with suppress(Over):
        for happened in watching(house, folder, **options):
            seen.append(happened)
    return seen


def versions(house: House) -> list[int]:
    return sorted(house.registry.read("llama").state.versions)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "exports").mkdir()
    return tmp_path / "exports"


def export(source: Path, folder: Path, name: str = "one") -> Path:
    return Path(shutil.copytree(source, folder / name))


# What is an export, and when is it finished


def test_exports_become_versions_once(house: House, models: Models, folder: Path) -> None:
    one = export(models.first, folder)
    assert once(house, folder, alias="staging") == ["found", "published"]
    assert once(house, folder, alias="staging") == []
    two = export(models.second, folder, "two")
    (folder / "notes").mkdir()
    (folder / "notes" / "todo.txt").write_text("not a model")
    shutil.copytree(models.first, folder / ".hidden")
    assert once(house, folder, alias="staging") == ["found", "published"]
    assert house.registry.read("llama").state.aliases == {"staging": 2}
    for number, path in ((1, one), (2, two)):
        pulled = contents(house.pull(f"llama/{number}").path)
        assert contents(path).items() <= pulled.items()


def test_the_folder_itself_may_be_the_export(house: House, models: Models, folder: Path) -> None:
    shutil.copytree(models.adapter, folder, dirs_exist_ok=True)
    shutil.copytree(models.first, folder / "merged")
    assert once(house, folder) == ["found", "published"]
    assert house.registry.read("llama").state.latest.kind == "adapter"


def written_slowly(source: Path, target: Path, pieces: int) -> Iterator[None]:
    """Writes an export as LLaMA-Factory does: the configuration, shard after shard in pieces, the index, the
    tokenizer; one step at a time."""
    order = {"config.json": 0, "generation_config.json": 1, ".safetensors": 2, "model.safetensors.index.json": 3}
    target.mkdir()
    for name, data in sorted(
        contents(source).items(), key=lambda item: (order.get(item[0], order.get(Path(item[0]).suffix, 4)), item[0])
    ):
        step = max(1, -(-len(data) // (pieces if name.endswith(".safetensors") else 1)))
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        with (target / name).open("wb", buffering=0) as file:
            for start in range(0, len(data), step):
                file.write(data[start : start + step])
                yield


@pytest.mark.parametrize("source", ["first", "base", "adapter"])
def test_nothing_is_published_while_it_is_written(make_house: Make, models: Models, folder: Path, source: str) -> None:
    """A look after every step of the writer; in the end exactly one version, of all of it."""
    house = make_house()
    original: Path = getattr(models, source)
    writer = written_slowly(original, folder / "slow", pieces=5)
    done = 0

    def between(_: int) -> None:
        nonlocal done
        if done == 0:
            assert house.registry.names() == []
            if next(writer, "over") is None:
                return
        done += 1
        if done > 3:
            raise Over

    seen = looks(house, folder, between)
    assert [happened.event for happened in seen] == ["found", "published"]
    assert versions(house) == [1]
    pulled = contents(house.pull("llama").path)
    taken = {name for name in contents(original) if name in pulled}
    assert {name: pulled[name] for name in taken} == {name: contents(original)[name] for name in taken}


@pytest.mark.parametrize("source", ["first", "base"])
def test_a_writer_that_pauses_too_long_is_refused_until_it_goes_on(
    make_house: Make, models: Models, folder: Path, source: str
) -> None:
    """Two looks between any two steps: what is visible is always a whole model, the last of it all."""
    house = make_house()
    original: Path = getattr(models, source)
    writer = written_slowly(original, folder / "slow", pieces=3)
    done = 0

    def between(count: int) -> None:
        nonlocal done
        for number in versions(house):
            names = contents(house.pull(f"llama/{number}").path)
            assert {name for name in contents(original) if name.endswith(".safetensors")} <= set(names)
            assert "tokenizer.json" in names
        if count % 3 == 0 and next(writer, "over") == "over":
            done += 1
            if done > 1:
                raise Over

    seen = looks(house, folder, between)
    assert {"refused", "published"} <= {happened.event for happened in seen}
    assert contents(original).items() <= contents(house.pull("llama").path).items()


def test_what_grows_while_it_is_published_is_not_named(
    house: House, models: Models, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = export(models.first, folder)
    original = house.registry.change
    late = iter([True])

    def change(name: str, decide):  # type: ignore[no-untyped-def]
        if next(late, False):
            (path / "chat_template.jinja2").write_text("it came late")
        return original(name, decide)

    monkeypatch.setattr(house.registry, "change", change)
    assert once(house, folder) == ["found"]
    assert versions(house) == []
    assert once(house, folder) == ["found", "published"]
    assert "chat_template.jinja2" in contents(house.pull("llama").path)


def test_a_refused_export_is_said_once_and_tried_again_when_it_changes(
    house: House, models: Models, folder: Path
) -> None:
    path = export(models.first, folder)
    (path / "tokenizer.json").rename(folder / "kept")
    (refused,) = [each for each in watching(house, folder, once=True) if each.event != "found"]
    assert refused.event == "refused" and {finding.code for finding in refused.findings} >= {"no-tokenizer"}
    assert once(house, folder) == []  # another process, too
    (folder / "kept").rename(path / "tokenizer.json")
    assert once(house, folder) == ["found", "published"]


def test_a_folder_of_two_models_is_refused(house: House, models: Models, folder: Path) -> None:
    path = export(models.first, folder)
    shutil.copy(models.adapter / "adapter_config.json", path)
    seen = list(watching(house, folder, once=True))
    assert [each.event for each in seen] == ["found", "refused"]
    assert "a whole model and an adapter" in seen[1].message and seen[1].hint
    assert once(house, folder) == []


def test_bad_requests(house: House, folder: Path) -> None:
    with pytest.raises(NotFound):
        once(house, folder / "nothing")
    with pytest.raises(UsageError):
        once(house, folder, alias="latest")


# What is remembered


def test_what_is_known_is_not_read_again(
    make_house: Make, models: Models, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(models.first, folder)
    once(make_house(), folder)
    monkeypatch.setattr("packtrain.flows.watch.publish", lambda *_, **__: pytest.fail("it was read again"))
    assert once(make_house(), folder) == []


def test_without_its_memory_it_knows_the_bytes_and_moves_no_alias(
    make_house: Make, models: Models, folder: Path
) -> None:
    house = make_house()
    export(models.first, folder)
    export(models.second, folder, "two")
    once(house, folder, alias="staging")
    promote(house.registry, Reference.parse("llama/1"), "staging", expect=2, reason="the second is worse")
    for damage in (lambda path: path.write_text("{"), lambda path: path.unlink()):
        damage(next((house.home / "watch").glob("*.json")))
        assert once(house, folder, alias="staging") == ["found", "found", "known", "known"]
        assert house.registry.read("llama").state.aliases == {"staging": 1}
    assert once(make_house("another"), folder, alias="staging") == ["found", "found", "known", "known"]
    assert versions(house) == [1, 2]


# Removing


def test_a_source_is_removed_when_the_store_holds_it(house: House, models: Models, folder: Path) -> None:
    one = export(models.first, folder)
    adapter = export(models.adapter, folder, "two")
    before = contents(adapter)
    seen = list(watching(house, folder, once=True, remove_source=True))
    assert [each.event for each in seen] == ["found", "found", "published", "removed", "published", "removed"]
    assert not one.exists()
    pulled = contents(house.pull("llama").path)
    left = contents(adapter)  # what the training needs and nobody published
    assert left and left == {name: data for name, data in before.items() if name not in pulled}
    assert set(seen[-1].stayed) == set(left)
    assert once(house, folder, remove_source=True) == []


def test_what_makes_it_a_model_goes_first(
    house: House, models: Models, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that nobody takes what a removal left when it was cut off for a model."""
    removed = list[str]()
    unlink = Path.unlink

    def recorded(path: Path, missing_ok: bool = False) -> None:
        if folder in path.parents:
            removed.append(path.name)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", recorded)
    one = export(models.base, folder)
    there = set(contents(one))
    assert "removed" in once(house, folder, remove_source=True)
    assert set(removed[:2]) == {"config.json", "model.safetensors.index.json"}
    assert set(removed) == there


def test_the_watched_folder_itself_stays(house: House, models: Models, folder: Path) -> None:
    shutil.copytree(models.first, folder, dirs_exist_ok=True)
    assert once(house, folder, remove_source=True) == ["found", "published", "removed"]
    assert list(folder.iterdir()) == []


def test_what_was_published_before_can_be_removed_later(house: House, models: Models, folder: Path) -> None:
    path = export(models.first, folder)
    once(house, folder)
    assert once(house, folder, remove_source=True) == ["removed"]
    assert not path.exists()


def test_what_the_store_does_not_hold_rightly_is_not_removed(
    house: House, models: Models, store: MemoryStore, folder: Path
) -> None:
    path = export(models.first, folder)
    once(house, folder)
    key = next(key for key in store.objects if key.endswith(".safetensors"))
    good = store.objects[key]
    store.objects[key] = good[:-1] + bytes([good[-1] ^ 1])
    with pytest.raises(IntegrityError) as caught:
        once(house, folder, remove_source=True)
    assert "--repair" in caught.value.hint
    assert contents(path) == contents(models.first)

    def between(count: int) -> None:
        if count == 4:
            raise Over

    (failed,) = looks(house, folder, between, remove_source=True)  # and it is not said at every look
    assert failed.event == "failed" and failed.retry == 60


def test_what_changes_while_the_store_is_read_is_not_removed(
    house: House, models: Models, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = export(models.first, folder)
    once(house, folder)

    def note(text: str) -> None:
        if "reading llama/1 back" in text:
            (path / "generation_config.json").write_text("{}")

    monkeypatch.setattr(house.notes, "note", note)
    assert once(house, folder, remove_source=True)[0] == "kept"
    assert contents(path).keys() == contents(models.first).keys()
    assert (path / "generation_config.json").read_text() == "{}"


@pytest.mark.slow
def test_a_new_export_into_the_same_folder_survives_a_removal_that_was_cut_off(
    make_house: Make, models: Models, folder: Path
) -> None:
    path = export(models.first, folder)

    def remove() -> None:
        for _ in watching(make_house(), folder, once=True, remove_source=True):
            pass

    once(make_house(), folder)
    (memory,) = (make_house().home / "watch").glob("*.json")
    k, resumed = 0, False
    while killed_at(remove, k) and contents(path).keys() == contents(models.first).keys():
        begun = '"removing": {' in memory.read_text()
        k = 0 if begun and not resumed else k + 1  # from here on a run has fewer calls
        resumed = begun
    assert path.exists() and contents(path)  # it was killed after the first file was gone
    shutil.copytree(models.second, path, dirs_exist_ok=True)
    once(make_house(), folder, remove_source=True)
    once(make_house(), folder, remove_source=True)
    house = make_house()
    assert versions(house) == [1, 2]
    assert contents(models.second).items() <= contents(house.pull("llama").path).items()
    assert not path.exists()


# When things break


def test_a_store_that_is_away_is_said_and_tried_again_ever_more_slowly(
    make_house: Make, models: Models, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = make_house()
    export(models.first, folder)
    export(models.second, folder, "two")
    away = True
    read = house.registry.read

    def sometimes(name: str):  # type: ignore[no-untyped-def]
        if away:
            raise Unavailable("the store cannot be reached", hint="Start it.")
        return read(name)

    monkeypatch.setattr(house.registry, "read", sometimes)
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        nonlocal away
        pauses.append(seconds)
        away = len(pauses) < 9
        if len(pauses) == 12:
            raise Over

    house.clock.sleep = sleep  # type: ignore[method-assign]
    seen = []
    with suppress(Over):
        for happened in watching(house, folder, interval=10.0):
            seen.append(happened)
    events = [each.event for each in seen]
    assert events == ["found", "found", *["failed"] * 8, "published", "published"]
    assert pauses == [10, 20, 40, 80, 160, 320, *[LONGEST_PAUSE] * 3, 10, 10, 10]
    assert seen[2].retry == pauses[1] and seen[2].hint == "Start it."


def test_once_ends_with_what_failed_and_the_others_are_published(
    house: House, models: Models, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = export(models.first, folder)
    export(models.second, folder, "two")
    weights = next(path.glob("*.safetensors"))
    opened = Path.open

    def eio(self: Path, *rest, **more):  # type: ignore[no-untyped-def]
        if self.name == weights.name and self.parent.name == "one":
            raise OSError(5, "Input/output error")
        return opened(self, *rest, **more)

    monkeypatch.setattr(Path, "open", eio)
    with pytest.raises(PacktrainError, match="Input/output error"):
        once(house, folder)
    assert versions(house) == [1]
    monkeypatch.undo()
    assert once(house, folder) == ["found", "published"]


def test_the_folder_goes_away_and_comes_back(house: House, models: Models, folder: Path) -> None:
    export(models.first, folder)

    def between(count: int) -> None:
        if count == 1:
            folder.rename(folder.with_name("away"))
        elif count == 3:
            folder.with_name("away").rename(folder)
        elif count == 6:
            raise Over

    events = [each.event for each in looks(house, folder, between)]
    assert events == ["found", "failed", "failed", "published"]


def test_one_export_that_fails_does_not_slow_the_others_down(
    house: House, models: Models, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = export(models.second, folder, "locked")
    scandir = os.scandir

    def denied(path: object = "."):  # type: ignore[no-untyped-def]
        if Path(os.fspath(path)) == locked.resolve():  # type: ignore[call-overload]
            raise PermissionError(13, "Permission denied")
        return scandir(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", denied)
    pauses: list[float] = []
    sleep = house.clock.sleep

    def pause(seconds: float) -> None:
        sleep(seconds)
        pauses.append(seconds)
        if len(pauses) == 3:
            export(models.first, folder)
        elif len(pauses) == 4:
            monkeypatch.undo()
        elif len(pauses) == 9:
            raise Over

    house.clock.sleep = pause  # type: ignore[method-assign]
    seen = []
    with suppress(Over):
        for happened in watching(house, folder):
            seen.append((happened.event, happened.path.name, happened.retry))
    assert set(pauses) == {30.0}
    assert seen == [
        ("failed", "locked", 60), ("failed", "locked", 120), ("found", "one", None), ("published", "one", None),
        ("found", "locked", None), ("published", "locked", None),
    ]  # fmt: skip


def test_a_removal_that_fails_half_way_is_said_and_goes_on(
    house: House, models: Models, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = export(models.first, folder)
    unlink = Path.unlink

    def denied(self: Path, missing_ok: bool = False) -> None:
        if self.name == "tokenizer.json":
            raise PermissionError(13, "Permission denied")
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", denied)
    for _ in range(2):
        with pytest.raises(PacktrainError, match="could not remove"):
            once(house, folder, remove_source=True)
    assert "tokenizer.json" in contents(path) and "config.json" not in contents(path)
    monkeypatch.undo()
    assert once(house, folder, remove_source=True) == ["removed"]
    assert not path.exists()


@pytest.mark.parametrize("ours", [True, False], ids=["it made the version", "the version is older"])
def test_after_a_death_the_alias_moves_only_for_what_was_made_then(
    make_house: Make, models: Models, store: MemoryStore, folder: Path, ours: bool
) -> None:
    """Killed after the version was made and before the alias moved; or when it had only begun to look."""
    house = make_house()
    if not ours:
        house.publish(models.first)
    export(models.first, folder)
    dying = make_house("dying")
    dying.clock.sleep(3600)
    change, begun = dying.registry.change, iter([not ours])

    def killed(name: str, decide):  # type: ignore[no-untyped-def]
        log, event = change(name, decide)
        if event and event.action == "version.created":
            raise Killed
        return log, event

    dying.registry.change = killed  # type: ignore[method-assign]
    if not ours:
        dying.registry.read = lambda name: house.registry.read(name) if next(begun, False) else _die()  # type: ignore[method-assign]
    with pytest.raises(Killed):
        once(dying, folder, alias="staging")
    again = make_house("dying")
    again.clock.sleep(7200)
    assert once(again, folder, alias="staging") == ["found", "published" if ours else "known"]
    assert again.registry.read("llama").state.aliases == ({"staging": 1} if ours else {})


def _die() -> object:
    raise Killed


# Killed


def safe(make_house: Make, store: object, models: Models, path: Path, who: str) -> None:
    """Nothing half is visible, and nothing is lost: every exported file is in the folder or in a version."""
    reader = make_house(who, store=store)
    require_whole(reader, models.first)
    if contents(path) != contents(models.first):
        assert versions(reader) == [1]
        verify(reader.store, reader.registry, "llama", every_byte=True, reporter=reader.notes, clock=reader.clock)
        assert contents(path).items() <= contents(models.first).items()


@pytest.mark.slow
@pytest.mark.parametrize("fault", first_fast(Fault.KILLED, Fault.UNAVAILABLE, Fault.LOST_ANSWER))
def test_watch_interrupted_at_every_call_to_the_store(
    make_house: Make, models: Models, folder: Path, fault: Fault
) -> None:
    counting = FaultyStore(MemoryStore())
    once(make_house("count", store=counting), folder_with(models, folder, "count"), alias="staging", remove_source=True)
    assert counting.calls > 40
    for k in range(counting.calls):
        store, there = MemoryStore(), folder_with(models, folder, str(k))
        with suppress(Killed, PacktrainError):
            once(make_house(f"w-{k}", store=FaultyStore(store, {k: fault})), there, alias="staging", remove_source=True)
        safe(make_house, store, models, there / "one", f"reader-{k}")
        again = make_house(f"w-{k}", store=store)
        once(again, there, alias="staging", remove_source=True)
        assert versions(again) == [1] and not (there / "one").exists()
        assert again.registry.read("llama").state.aliases == {"staging": 1}
        require_whole(make_house(f"after-{k}", store=store), models.first)


def folder_with(models: Models, folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    export(models.first, folder / name)
    return folder / name


@pytest.mark.slow
def test_watch_killed_at_every_ninth_call_to_the_file_system(
    make_house: Make, models: Models, folder: Path, tmp_path: Path
) -> None:
    """Some 170 of them."""
    k, going = 0, True
    while going:
        root, there = tmp_path / "store", folder_with(models, folder, str(k))
        name = f"w-{k}"

        def act(root: Path = root, there: Path = there, name: str = name) -> None:
            once(make_house(name, store=DirectoryStore(root)), there, alias="staging", remove_source=True)

        going = killed_at(act, k)
        safe(make_house, DirectoryStore(root), models, there / "one", f"reader-{k}")
        act()
        again = make_house(name, store=DirectoryStore(root))
        assert versions(again) == [1] and not (there / "one").exists()
        assert again.registry.read("llama").state.aliases == {"staging": 1}
        assert len(list((again.home / "watch").iterdir())) == 2  # the memory and its lock: no leak
        shutil.rmtree(root)
        k += 9
    assert k > 200


# Two at once


def _watch(arguments: tuple[Path, Path, Path]) -> list[str]:
    root, home, folder = arguments
    house = House(DirectoryStore(root), home)
    events: list[str] = []

    def between(count: int) -> None:
        if count == 6:
            raise Over

    for happened in looks(house, folder, between, remove_source=True):
        events.append(happened.event)
    return events


@pytest.mark.parametrize("machines", [1, 2])
def test_two_watchers_do_no_harm(make_house: Make, models: Models, folder: Path, tmp_path: Path, machines: int) -> None:
    for name, source in (("one", models.first), ("two", models.second)):
        export(source, folder, name)
    root = tmp_path / "store"
    homes = [tmp_path / f"home-{n % machines}" for n in range(2)]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        told = pool.map(_watch, [(root, home, folder) for home in homes], chunksize=1)
    reader = make_house("reader", store=DirectoryStore(root))
    assert versions(reader) == [1, 2]
    assert sum(events.count("published") for events in told) == 2
    assert os.listdir(folder) == []
    verify(reader.store, reader.registry, "llama", every_byte=True, reporter=reader.notes, clock=reader.clock)
