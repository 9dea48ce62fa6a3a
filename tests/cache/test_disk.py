"""Real file systems that refuse: full, read-only, without permission. The message says what to do; nothing leaks."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from packtrain.errors import LocalDiskError
from packtrain.testing.memory_store import MemoryStore
from tests.cache.conftest import Node, as_user, files
from tests.flows.conftest import contents

pytestmark = pytest.mark.root

MODEL = 1 << 20  # bytes
DISK = 3 << 20

Make = Callable[..., Node]


@pytest.fixture
def store(tmp_path: Path) -> MemoryStore:
    """With llama/1 to llama/3 of 1 MiB."""
    store = MemoryStore()
    for seed in range(1, 4):
        Node(store, tmp_path / "publisher").publish(files(seed, MODEL))
    return store


@pytest.fixture
def disk(make_node: Make) -> Iterator[Path]:
    """The node's cache on a file system of 3 MiB: two models and what belongs to them."""
    root = make_node().home / "cache"
    root.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "packtrain-test", root], check=True)
    try:
        yield root
    finally:
        subprocess.run(["umount", "--lazy", root], check=True)


@contextmanager
def filled(disk: Path, leave: int) -> Iterator[Path]:
    """Somebody else's file, which leaves so many bytes."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - leave)
    yield ballast
    ballast.unlink()


def require_pulled(node: Node, number: int) -> None:
    found = contents(node.pull(f"llama/{number}").path)
    assert found["model.safetensors"] == files(number, MODEL)["model.safetensors"]


def test_a_disk_that_is_full_is_said_before_the_download(make_node: Make, disk: Path) -> None:
    node = make_node()
    with filled(disk, leave=MODEL // 2):
        with pytest.raises(LocalDiskError, match=r"llama/1 does not fit .* the disk has 5.* kB free") as caught:
            node.pull("llama/1")
        assert "free space outside of the cache" in caught.value.hint.lower()
        assert node.leftovers() == []
    require_pulled(node, 1)


def test_a_full_disk_is_evicted_from(make_node: Make, disk: Path) -> None:
    node = make_node()
    for number in (1, 2, 3):
        require_pulled(node, number)
        node.unpin(f"llama/{number}")
    assert set(node.listed()) == {"llama/2", "llama/3"}


def test_the_floor_stays_free(make_node: Make, disk: Path) -> None:
    node = make_node(floor="50%")
    for number in (1, 2, 3):
        require_pulled(node, number)
        node.unpin(f"llama/{number}")
        assert shutil.disk_usage(disk).free >= DISK // 2
    assert set(node.listed()) == {"llama/3"}


def test_others_fill_the_disk_between_the_look_and_the_allocation(
    make_node: Make, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was allocated is given back at once, for there is nothing in it that could be continued."""
    node = make_node()
    allocate, given = os.posix_fallocate, []

    def slow(descriptor: int, offset: int, length: int) -> None:
        if length > MODEL // 2 and not given:
            given.append(length)
            ballast = os.open(disk / "ballast", os.O_WRONLY | os.O_CREAT)
            allocate(ballast, 0, shutil.disk_usage(disk).free - 8192)
            os.close(ballast)
        allocate(descriptor, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", slow)
    with pytest.raises(LocalDiskError, match="No space left on device") as caught:
        node.pull("llama/1")
    assert given
    assert "free some space" in caught.value.hint
    assert node.leftovers() == []
    (disk / "ballast").unlink()
    require_pulled(node, 1)


def test_what_is_here_is_served_from_a_disk_without_a_free_byte(make_node: Make, disk: Path) -> None:
    node = make_node()
    node.hold("llama/1").release()
    with filled(disk, leave=0):
        assert node.pull("llama/1").fetched == 0
        node.hold("llama/1").release()
        assert set(node.listed()) == {"llama/1"}
        node.unpin("llama/1")
        assert node.remove("llama/1") > MODEL


def test_a_cache_that_is_read_only(make_node: Make, disk: Path) -> None:
    node = make_node()
    path = node.pull("llama/1").path
    node.unpin("llama/1")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for act in (
        lambda: node.pull("llama/1"),
        lambda: node.pull("llama/2"),
        lambda: node.remove("llama/1"),
        lambda: node.verify(),
        lambda: node.pin("llama/1"),
        lambda: node.listed(),
    ):
        with pytest.raises(LocalDiskError, match="Read-only file system") as caught:
            act()
        assert caught.value.hint == "The file system is read-only: choose another folder."
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    assert contents(path)["config.json"] == files(1, MODEL)["config.json"]
    require_pulled(node, 2)
    assert node.leftovers() == []


def test_without_permission(make_node: Make, open_path: None) -> None:
    make_node().home.mkdir()
    said = as_user(4242, lambda: make_node().pull("llama/1"))
    assert said.startswith("LocalDiskError: the cache") and "Permission denied" in said
    assert "choose a folder that you can write" in said
