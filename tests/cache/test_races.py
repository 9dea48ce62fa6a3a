"""Processes that race for a cache that has room for two of four models."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from packtrain.model.retention import unique_size
from packtrain.storage.directory import DirectoryStore
from tests.cache.conftest import SIZE, Node, files

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 40
QUOTA = 2 * SIZE + 2500


@pytest.mark.slow
def test_engines_never_lose_what_they_found(make_node: Callable[..., Node], tmp_path: Path) -> None:
    """Every process checks every byte of what it was given, for as long as it has it."""
    publisher = make_node("racing-publisher", store=DirectoryStore(tmp_path / "store"))
    for seed in range(1, 5):
        publisher.publish(files(seed, SIZE))
    where = (tmp_path / "store", tmp_path / "node", f"{QUOTA}B")
    racers = [
        subprocess.Popen(
            [*map(str, (sys.executable, "-m", "tests.cache.race", *where, kind, seed, ROUNDS))],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for kind, seed in zip(["engine", "engine", "puller", "puller", "engine", "puller"], "123456", strict=True)
    ]
    told = [json.loads(racer.communicate(timeout=300)[0] or "[0, 0]") for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * len(racers)
    assert all(served for served, _ in told)

    node = make_node(quota=f"{QUOTA}B", store=DirectoryStore(tmp_path / "store"))
    node.cache.sweep()
    assert node.leftovers() == []
    occupants = node.cache.contents().occupants
    assert unique_size(occupants) <= QUOTA
    assert not any(occupant.holds.in_use for occupant in occupants)
    node.pull("llama/1")
    assert set(node.verify()) == set(node.listed())
