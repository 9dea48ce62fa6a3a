from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from packtrain.ports import Store
from packtrain.storage import multipart, objects, open_store
from packtrain.testing.memory_store import MemoryMultipart, MemoryStore


@pytest.fixture(
    params=["directory", pytest.param("juicefs", marks=[pytest.mark.root, pytest.mark.slow]), "s3", "memory"]
)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind."""
    if request.param == "s3":
        server = request.getfixturevalue("s3_environment")
        request.getfixturevalue("monkeypatch").setattr(objects, "PAUSES", (0.01, 0.01))
        request.getfixturevalue("monkeypatch").setattr(multipart, "PAUSES", (0.01, 0.01))
        return open_store(f"{server.url}/conformance/{uuid.uuid4().hex}")
    if request.param == "juicefs":
        machine, *_ = request.getfixturevalue("volume")
        return open_store((machine / "conformance" / uuid.uuid4().hex).as_uri())
    if request.param == "directory":
        return open_store((tmp_path / "store").as_uri())
    return MemoryStore()


@pytest.fixture(params=["s3", "memory"])
def assembling(request: pytest.FixtureRequest) -> Store:
    """An empty store of each kind that makes objects of parts."""
    if request.param == "s3":
        server = request.getfixturevalue("s3_environment")
        request.getfixturevalue("monkeypatch").setattr(multipart, "PAUSES", (0.01, 0.01))
        return open_store(f"{server.url}/conformance/{uuid.uuid4().hex}")
    store = MemoryStore()
    MemoryMultipart(store)
    return store
