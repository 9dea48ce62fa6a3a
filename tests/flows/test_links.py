"""The symbolic links under serve/ converge on the ledger, whoever races and whatever fails."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from packtrain.errors import Refused
from packtrain.flows import links
from packtrain.flows.links import LinkingRegistry, Stray
from packtrain.flows.promote import archive, promote, roll_back
from packtrain.model.digest import Digest
from packtrain.model.reference import Reference
from packtrain.storage.directory import TEMPORARY, DirectoryStore
from packtrain.testing.memory_store import MemoryStore
from tests.conftest import Models
from tests.flows.conftest import House


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "share"


@pytest.fixture
def linking(make_house: Callable[..., House], root: Path) -> Callable[[str], House]:
    """``linking(NAME)``: a machine whose registry projects, over the share at ``root``."""

    def make(name: str) -> House:
        house = make_house(name, store=DirectoryStore(root))
        house.registry = LinkingRegistry(house.registry, house.store, house.notes)  # type: ignore[assignment]
        return house

    return make


@pytest.fixture
def house(linking: Callable[[str], House]) -> House:
    return linking("node")


@pytest.fixture
def published(house: House, models: Models) -> House:
    """llama/1 and llama/2; production is 1."""
    house.publish(models.first, alias="production")
    house.publish(models.second)
    return house


def move(house: House, reference: str, alias: str = "production") -> None:
    promote(house.registry, Reference.parse(reference), alias, expect=None, reason="")


def linked(root: Path) -> dict[str, Path]:
    """Where each link under serve/ leads."""
    folder = root / "serve"
    return {path.relative_to(folder).as_posix(): path.resolve() for path in folder.rglob("*") if path.is_symlink()}


def directory(house: House, root: Path, number: int) -> Path:
    return root / house.registry.read("llama").state.version(number).prefix


def strays(house: House) -> list[Stray]:
    return links.stray(house.store, house.registry, now=house.clock.now())


def is_projected(house: House, root: Path) -> bool:
    return DirectoryStore(root).links("serve/") == links.expected(house.registry.read("llama").state)


# What the links say


def test_versions_and_aliases_have_links_to_their_directories(published: House, root: Path) -> None:
    first, second = directory(published, root, 1), directory(published, root, 2)
    assert linked(root) == {
        "llama/by-version/1": first,
        "llama/by-version/2": second,
        "llama/by-alias/production": first,
    }
    opened = (root / "serve/llama/by-alias/production/packtrain.json").read_bytes()
    assert Digest.of(opened) == published.registry.read("llama").state.version(1).digest
    assert strays(published) == []


def test_links_follow_promotion_rollback_and_archive(published: House, root: Path) -> None:
    first, second = directory(published, root, 1), directory(published, root, 2)
    move(published, "llama/2")
    assert linked(root)["llama/by-alias/production"] == second
    roll_back(published.registry, "llama", "production", to=None, expect=None, reason="")
    assert linked(root)["llama/by-alias/production"] == first
    archive(published.registry, Reference.parse("llama/2"), reason="")
    assert linked(root) == {"llama/by-version/1": first, "llama/by-alias/production": first}
    assert strays(published) == []


def test_links_are_relative_so_that_a_share_may_be_mounted_anywhere(published: House, root: Path) -> None:
    elsewhere = root.rename(root.with_name("elsewhere"))
    assert (elsewhere / "serve/llama/by-alias/production/config.json").is_file()


def test_links_are_no_objects(published: House, root: Path) -> None:
    assert not [info.key for info in published.store.list("") if info.key.startswith("serve/")]
    assert "serve" not in list(published.store.children(""))


def test_a_lying_link_misleads_nobody(published: House, root: Path) -> None:
    link = root / "serve/llama/by-alias/production"
    link.unlink()
    link.symlink_to("../by-version/2")
    assert published.pull("llama@production").version.number == 1


def test_where_there_is_no_directory_there_is_nothing_to_link(house: House, models: Models) -> None:
    store = MemoryStore()
    other = House(store, house.home)
    other.registry = LinkingRegistry(other.registry, store, other.notes)  # type: ignore[assignment]
    other.publish(models.first, alias="production")
    assert strays(other) == []
    assert not [key for key in store.objects if key.startswith("serve/")]


# Races


def test_a_projector_that_was_overtaken_projects_again(
    published: House, linking: Callable[[str], House], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slow one has read its ledger; before it acts, another one moves the alias back and is done."""
    set_link = DirectoryStore.set_link
    other = linking("other")

    def overtaken(*arguments: Any) -> None:
        monkeypatch.setattr(DirectoryStore, "set_link", set_link)
        move(other, "llama/1")
        set_link(*arguments)

    monkeypatch.setattr(DirectoryStore, "set_link", overtaken)
    move(published, "llama/2")
    assert published.registry.read("llama").state.current("production") == 1
    assert is_projected(published, root)


@pytest.mark.slow
def test_racing_promoters_converge_on_the_ledger(published: House, linking: Callable[[str], House], root: Path) -> None:
    houses = [linking(f"racer-{number}") for number in range(4)]

    def run(house: House, number: int) -> None:
        for turn in range(12):
            move(house, f"llama/{1 + (turn + number) % 2}", alias=f"a{turn % 3}")

    threads = [threading.Thread(target=run, args=(house, number)) for number, house in enumerate(houses)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(published.registry.read("llama").state.aliases) == 4
    assert is_projected(published, root)
    assert [note for house in houses for note in house.notes.notes] == []


# What goes wrong


@pytest.mark.parametrize("error", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EROFS])
def test_where_links_are_not_possible_the_promotion_counts(
    published: House, root: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "symlink", fail)
    move(published, "llama/2")
    assert published.registry.read("llama").state.current("production") == 2
    [note] = [note for note in published.notes.notes if "links" in note]
    assert note.startswith("warning: ")
    assert f"{root.as_uri()}/serve/llama" in note and os.strerror(error) in note and "doctor" in note


def test_what_is_no_link_is_never_replaced(published: House, root: Path) -> None:
    place = root / "serve/llama/by-alias/production"
    place.unlink()
    place.write_text("somebody's notes")
    move(published, "llama/2")
    assert place.read_text() == "somebody's notes"
    assert any("by-alias/production" in note for note in published.notes.notes)
    [found] = strays(published)
    assert found.key == "serve/llama/by-alias/production"
    with pytest.raises(Refused, match="by-alias/production"):
        links.mend(published.store, published.registry, [found])


def test_a_projector_that_died_is_made_good_by_the_next_change(
    published: House, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "symlink", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            move(published, "llama/2")
    assert not is_projected(published, root)
    move(published, "llama/2", alias="staging")
    assert is_projected(published, root)


def _interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


# Strays


def test_strays_are_found_and_mended(published: House, root: Path) -> None:
    serve = root / "serve/llama"
    (serve / "by-version/2").unlink()
    (serve / "by-alias/production").unlink()
    (serve / "by-alias/production").symlink_to("../by-version/1")
    (serve / "by-alias/gone").symlink_to("nowhere")
    (root / "serve/never-published/by-version").mkdir(parents=True)
    (root / "serve/never-published/by-version/1").symlink_to("nowhere")
    found = strays(published)
    assert {stray.key: stray.what.split()[0] for stray in found} == {
        "serve/llama/by-alias/gone": "points",
        "serve/llama/by-alias/production": "points",
        "serve/llama/by-version/2": "is",
        "serve/never-published/by-version/1": "points",
    }
    links.mend(published.store, published.registry, found)
    assert strays(published) == []
    assert is_projected(published, root)
    assert not (root / "serve/never-published").exists()


def test_what_others_keep_under_serve_is_theirs(published: House, root: Path) -> None:
    (root / "serve/readme.txt").write_text("hello")
    (root / "serve/llama/current").symlink_to("by-alias/production")
    assert strays(published) == []
    move(published, "llama/2")
    assert (root / "serve/llama/current").resolve() == directory(published, root, 2)


def test_files_that_dead_writers_left_are_strays_and_those_of_living_ones_are_not(published: House, root: Path) -> None:
    now = published.clock.now()
    for name, age in (("host.1.dead", links.ABANDONED + timedelta(hours=1)), ("host.2.alive", timedelta(hours=1))):
        (root / TEMPORARY / name).write_bytes(b"part")
        os.utime(root / TEMPORARY / name, times=((now - age).timestamp(),) * 2)
    found = strays(published)
    assert [stray.key for stray in found] == [f"{TEMPORARY}/host.1.dead"]
    links.mend(published.store, published.registry, found)
    assert [path.name for path in (root / TEMPORARY).iterdir()] == ["host.2.alive"]
