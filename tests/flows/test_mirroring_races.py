"""Thirty writers at once, and servers that go away at every step, over a fake MLflow and over real ones."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from packtrain.flows import mirroring
from packtrain.registry import mlflow as mlflow_api
from packtrain.testing.clock import FakeClock
from packtrain.testing.fake_mlflow import Fake
from packtrain.testing.faults import Fault, FaultyStore
from packtrain.testing.memory_store import MemoryStore
from packtrain.testing.mlflow_servers import MlflowServer
from tests.conftest import Models
from tests.flows.writers import Writer, attempt, forget, require_whole
from tests.model.examples import MERGED

WRITERS = 30
REAL = [pytest.mark.engine, pytest.mark.slow]


@pytest.fixture(
    params=[
        "fake",
        pytest.param("mlflow_sqlite", marks=REAL),
        pytest.param("mlflow_postgresql", marks=REAL),
    ]
)
def url(request: pytest.FixtureRequest) -> str:
    """A server without registered models."""
    found: str = request.getfixturevalue(request.param).url
    forget(found)
    return found


def test_thirty_writers_publish_and_promote(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost: what each was told is in the ledger under its name; MLflow has those versions and no others, and
    its alias is where the last event put it."""
    monkeypatch.setattr(mirroring, "PATIENCE", timedelta(minutes=10))  # nobody is taken for dead who is only slow
    store = MemoryStore()
    writers = [Writer(store, tmp_path / str(n), url, f"writer-{n}") for n in range(WRITERS)]
    writers[0].publish(MERGED)

    def work(writer: Writer) -> None:
        writer.publish(MERGED)
        writer.promote()

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(work, writers))
    referee = Writer(store, tmp_path / "referee", url, "referee")
    state = referee.registry.read("m").state
    log = referee.ledger.audit("m")
    assert not state.mirror.unsettled
    assert not state.mirror.intents
    said = {event.sequence: event for event in log.events}
    for writer in writers:
        for sequence, what in writer.told:
            event = said[sequence]
            d = event.details
            assert what == (d["version"] if event.action == "version.created" else (d["from"], d["to"]))
            assert event.actor == writer.actor
    assert len(state.versions) == WRITERS + 1
    assert sorted(state.versions) == [version.number for version in referee.client.versions("m")]
    shown = referee.client.model("m")
    assert shown is not None
    assert shown.aliases == state.aliases
    moves = [event for event in log.events if event.action == "alias.promoted"]
    assert [event.details["from"] for event in moves][1:] == [event.details["to"] for event in moves][:-1]
    assert not [event for event in log.events if event.action == "alias.adopted"], "nobody moved it in MLflow"


class Cutting(httpx.HTTPTransport):
    """The server dies at a request: before it gets it, or before it answers; and stays away."""

    def __init__(self, dies_at: int, answers_lost: bool) -> None:
        super().__init__()
        self.left = dies_at
        self._answers_lost = answers_lost

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.left -= 1
        if self.left >= 0:
            return super().handle_request(request)
        if self.left == -1 and self._answers_lost:
            super().handle_request(request).read()
            raise httpx.ReadError("the connection broke", request=request)
        raise httpx.ConnectError("nobody is there", request=request)


@pytest.mark.slow
@pytest.mark.parametrize("answers_lost", [False, True])
def test_mlflow_dies_at_every_request_of_publish_and_promote(
    url: str, tmp_path: Path, models: Models, answers_lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_api, "PAUSES", ())
    for dies_at in range(100):
        forget(url)
        store = MemoryStore(f"store-{dies_at}")
        writer = Writer(store, tmp_path / f"{dies_at}", url, "ada", FakeClock())
        transport = Cutting(dies_at, answers_lost)
        writer.client.__dict__["_http"] = httpx.Client(base_url=url, transport=transport)
        attempt(writer, models.first)
        writer.client.__dict__["_http"].close()
        require_whole(store, tmp_path / f"{dies_at}-next", url, models.first)
        if transport.left >= 0:
            break
    assert dies_at > 8


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "every"), [(Fault.UNAVAILABLE, 3), (Fault.KILLED, 1)])
def test_the_bucket_or_the_publisher_dies_at_every_call_of_publish_and_promote(
    fake: Fake, tmp_path: Path, models: Models, fault: Fault, every: int
) -> None:
    for dies_at in range(0, 300, every):
        fake.models.clear()
        store = MemoryStore(f"store-{dies_at}")
        faulty = FaultyStore(store, dict.fromkeys(range(dies_at, 1000), fault))
        attempt(Writer(faulty, tmp_path / f"{dies_at}", fake.url, "ada", FakeClock()), models.first)
        require_whole(store, tmp_path / f"{dies_at}-next", fake.url, models.first)
        if faulty.calls <= dies_at:
            break
    assert 30 < dies_at < 297


@pytest.mark.engine
@pytest.mark.slow
def test_mlflow_and_its_database_are_killed_while_people_promote(
    mlflow_postgresql: MlflowServer, tmp_path: Path
) -> None:
    """SIGKILL, in the middle: whoever was told that an alias moved finds its event, and MLflow shows it in the end."""
    forget(mlflow_postgresql.url)
    store = MemoryStore()
    writers = [Writer(store, tmp_path / str(n), mlflow_postgresql.url, f"writer-{n}") for n in range(4)]
    for _ in range(3):
        writers[0].publish(MERGED)
    over = threading.Event()

    def work(writer: Writer) -> None:
        while not over.is_set():
            writer.promote()

    assert mlflow_postgresql.database is not None
    with ThreadPoolExecutor(len(writers)) as pool:
        at_work = [pool.submit(work, writer) for writer in writers]
        try:
            for process in (mlflow_postgresql.process, mlflow_postgresql.database):
                enough = sum(len(writer.told) for writer in writers) + 8
                while sum(len(writer.told) for writer in writers) < enough and not any(f.done() for f in at_work):
                    over.wait(0.05)
                process.kill()
                process.start()
        finally:
            over.set()
    for done in at_work:
        done.result()
    referee = Writer(store, tmp_path / "referee", mlflow_postgresql.url, "referee")
    state = referee.registry.read("m").state
    shown = referee.client.model("m")
    assert shown is not None
    assert shown.aliases == state.aliases
    assert not state.mirror.unsettled
    said = {event.sequence: event for event in referee.ledger.audit("m").events}
    for writer in writers:
        assert all(said[sequence].actor == writer.actor for sequence, _ in writer.told)
