"""MLflow, its database and the bucket are killed in the middle of a publish and a promotion, each with SIGKILL."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from packtrain import Client
from packtrain.ports import Store
from packtrain.registry import mlflow as mlflow_api
from packtrain.storage import objects, open_store
from packtrain.testing.clock import FakeClock
from packtrain.testing.faults import Fault, FaultyStore
from packtrain.testing.mlflow_servers import MlflowServer
from packtrain.testing.servers import Process, S3Server
from tests.conftest import Models
from tests.flows.writers import Writer, attempt, forget, require_whole

pytestmark = [pytest.mark.engine, pytest.mark.slow]

KILLS = 5  # of each server, from the first step to the last


class Steps:
    """Counts what is asked of the bucket and of MLflow. Before step ``at``, ``then`` is called."""

    def __init__(self) -> None:
        self.count = 0
        self.at: int | None = None
        self.then: Callable[[], object] = lambda: None

    def step(self) -> None:
        self.count += 1
        if self.count == self.at:
            self.then()


class CountedStore(FaultyStore):
    """Each call, and each piece of a body, is a step."""

    def __init__(self, inner: Store, steps: Steps) -> None:
        super().__init__(inner)
        self._steps = steps

    def before(self) -> Fault | None:
        self._steps.step()
        return super().before()


class Counting(httpx.HTTPTransport):
    """Each request is a step."""

    def __init__(self, steps: Steps) -> None:
        super().__init__()
        self._steps = steps

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self._steps.step()
        return super().handle_request(request)


@pytest.mark.parametrize("victim", ["mlflow", "postgresql", "bucket"])
def test_nodes_serve_on_and_whoever_comes_next_finishes(
    victim: str,
    mlflow_postgresql: MlflowServer,
    s3_environment: S3Server,
    models: Models,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (mlflow_api, objects):
        monkeypatch.setattr(module, "PAUSES", (0.01, 0.01))
    servers = {
        "mlflow": mlflow_postgresql.process,
        "postgresql": mlflow_postgresql.database,
        "bucket": s3_environment.process,
    }
    process, url = servers[victim], mlflow_postgresql.url
    assert process is not None

    def once(home: Path, kill_at: int | None) -> int:
        """How many steps the second version took."""
        home.mkdir()
        forget(url)
        place, steps = f"{s3_environment.url}/kills/{uuid.uuid4().hex}", Steps()
        writer = Writer(CountedStore(open_store(place), steps), home / "ada", url, "ada", FakeClock())
        writer.client.__dict__["_http"] = httpx.Client(base_url=url, transport=Counting(steps), timeout=30)
        attempt(writer, models.first)
        node = Client(store=place, registry=url, cache_dir=home / "node")
        assert node.pull("m@production").version.number == 1
        first, steps.at, steps.then = steps.count, None if kill_at is None else steps.count + kill_at, process.kill
        try:
            attempt(writer, models.second)
            _require_service(node, killed=process)
        finally:
            if not process.alive:
                process.start()
        writer.client.__dict__["_http"].close()
        require_whole(open_store(place), home / "bob", url, models.second)
        return steps.count - first

    total = once(tmp_path / "undisturbed", None)
    for kill in range(KILLS):
        once(tmp_path / f"{kill}", 1 + kill * (total - 1) // (KILLS - 1))


def _require_service(node: Client, *, killed: Process) -> None:
    """A node pulls what the alias names as far as it knows; without the bucket that is what it has."""
    snapshot = node.pull("m@production")
    assert snapshot.version.number in (1, 2)
    assert (snapshot.path / "config.json").is_file()
    if not killed.alive and "weed" in killed.command[0]:
        assert snapshot.fetched == 0
