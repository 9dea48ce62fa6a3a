"""Several processes at once, on one node and on several."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest

from packtrain.flows import integrity
from packtrain.storage.directory import DirectoryStore
from tests.conftest import Models
from tests.flows.conftest import House

CONTEXT = multiprocessing.get_context("spawn")


def _publish(arguments: tuple[Path, Path, Path]) -> tuple[bool, int]:
    store, home, directory = arguments
    published = House(DirectoryStore(store), home).publish(directory)
    assert published.version is not None
    return published.created, published.version.number


def _pull(arguments: tuple[Path, Path]) -> int:
    store, home = arguments
    return House(DirectoryStore(store), home).pull("llama").fetched


@pytest.mark.slow
def test_publishes_at_once_give_whole_versions(
    make_house: Callable[..., House], models: Models, tmp_path: Path
) -> None:
    """Two of one model's bytes and two of another's, from four machines: two versions, told truly."""
    store = tmp_path / "store"
    jobs = [(store, tmp_path / f"home-{n}", (models.first, models.second)[n % 2]) for n in range(4)]
    with CONTEXT.Pool(4) as pool:
        told = pool.map(_publish, jobs, chunksize=1)
    reader = make_house("reader", store=DirectoryStore(store))
    versions = reader.registry.read("llama").state.versions
    assert sorted(versions) == [1, 2]
    assert sorted(number for created, number in told if created) == [1, 2]
    assert told[0][1] == told[2][1] != told[1][1] == told[3][1]
    for number in versions:
        path = reader.pull(f"llama/{number}").path
        integrity.check_directory(path, reader.cache.manifest(versions[number].digest), reader.notes)


@pytest.mark.slow
def test_many_pulls_on_one_node_download_once(make_house: Callable[..., House], models: Models, tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    size = make_house("publisher", store=store).publish(models.first).size
    with CONTEXT.Pool(6) as pool:
        fetched = pool.map(_pull, [(tmp_path / "store", tmp_path / "node")] * 6, chunksize=1)
    assert sorted(fetched) == [0, 0, 0, 0, 0, size]
