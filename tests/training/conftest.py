"""Directories to break: small, real, written anew for each test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from packtrain.testing.tinymodels import write_adapter, write_base, write_merged

SMALL = {"vocab": 320, "hidden": 32, "layers": 1, "heads": 1, "kv_heads": 1, "intermediate": 32}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base", seed=1, **SMALL)


@pytest.fixture
def merged(tmp_path: Path, base: Path) -> Path:
    """What a merge leaves: one file of weights."""
    return write_merged(tmp_path / "merged", base, seed=2)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Three shards and their index."""
    return write_base(tmp_path / "sharded", seed=1, shards=3, **SMALL)


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    """What a LoRA training leaves, its own files and checkpoint-30/ included."""
    return write_adapter(tmp_path / "adapter", base, seed=3, steps=30)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write
