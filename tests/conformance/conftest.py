from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.registry.machines import events, machine, mirroring

from packtrain.model.ledger import Event, Log
from packtrain.ports import Registry, Store
from packtrain.registry.mlflow import Mlflow
from packtrain.storage import multipart, objects, open_store
from packtrain.testing.memory_store import MemoryMultipart, MemoryStore

COPYING = ["directory", pytest.param("juicefs", marks=[pytest.mark.root, pytest.mark.slow]), "s3", "gcs", "memory"]
KINDS = [*COPYING, pytest.param("azure", marks=pytest.mark.slow)]


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind."""
    return open_empty(request.param, request, tmp_path)


@pytest.fixture(params=COPYING)
def copying(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind that copies by itself: on Azure the caller streams (tests/storage/test_azure.py)."""
    return open_empty(request.param, request, tmp_path)


def open_empty(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if kind in ("s3", "gcs", "azure"):
        server = request.getfixturevalue(f"{kind}_environment")
        request.getfixturevalue("monkeypatch").setattr(objects, "PAUSES", (0.01, 0.01))
        request.getfixturevalue("monkeypatch").setattr(multipart, "PAUSES", (0.01, 0.01))
        return open_store(f"{server.url}/conformance/{uuid.uuid4().hex}")
    if kind == "juicefs":
        machine, *_ = request.getfixturevalue("volume")
        return open_store((machine / "conformance" / uuid.uuid4().hex).as_uri())
    if kind == "directory":
        return open_store((tmp_path / "store").as_uri())
    return MemoryStore()


@pytest.fixture(params=["s3", "gcs", "memory"])
def assembling(request: pytest.FixtureRequest) -> Store:
    """An empty store of each kind that makes objects of parts."""
    return open_assembling(request.param, request)


@pytest.fixture(params=["s3", "memory"])
def assembling_copies(request: pytest.FixtureRequest) -> Store:
    """Those that make parts of other objects, too."""
    return open_assembling(request.param, request)


def open_assembling(kind: str, request: pytest.FixtureRequest) -> Store:
    if kind in ("s3", "gcs"):
        server = request.getfixturevalue(f"{kind}_environment")
        request.getfixturevalue("monkeypatch").setattr(multipart, "PAUSES", (0.01, 0.01))
        return open_store(f"{server.url}/conformance/{uuid.uuid4().hex}")
    store = MemoryStore()
    MemoryMultipart(store)
    return store


# What a registry writes besides what was decided
BOOKKEEPING = {"mirror.bound", "version.intent", "alias.helped", "alias.settled"}


@dataclass(frozen=True)
class Place:
    """Where a registry is: a store, and perhaps an MLflow server that shows its ledgers."""

    store: Store
    mlflow: str | None = None

    def machine(self, home: Path, actor: str = "ada") -> Registry:
        """The registry as one machine opens it; ``home`` is where it remembers what it saw."""
        ledger = machine(self.store, home, actor)
        return mirroring(ledger, self.store, self.mlflow) if self.mlflow else ledger


MLFLOW = [
    "mlflow",
    pytest.param("mlflow-sqlite", marks=[pytest.mark.engine, pytest.mark.slow]),
    pytest.param("mlflow-postgresql", marks=[pytest.mark.engine, pytest.mark.slow]),
]


@pytest.fixture(
    params=["directory", pytest.param("juicefs", marks=[pytest.mark.root, pytest.mark.slow]), "s3", "memory", *MLFLOW]
)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """An empty registry of each kind."""
    if not request.param.startswith("mlflow"):
        yield Place(open_empty(request.param, request, tmp_path))
        return
    if request.param == "mlflow":
        url = request.getfixturevalue("fake").url
    else:
        url = request.getfixturevalue(request.param.replace("-", "_")).url
    mlflow = Mlflow(url)
    for name, _ in list(mlflow.models()):
        mlflow.delete_model(name)
    yield Place(MemoryStore(), url)


def decided(log: Log) -> list[Event]:
    """What was decided in a log, without what a registry writes to keep its word."""
    return [event for event in log.events if event.action not in BOOKKEEPING]


def decisions(store: Store, name: str = "m") -> list[bytes]:
    return [data for data in events(store, name) if json.loads(data)["action"] not in BOOKKEEPING]
