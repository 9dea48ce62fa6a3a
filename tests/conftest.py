"""Fixtures that every level of the tests may use."""

from __future__ import annotations

import os
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from packtrain.testing.azurite import AzureServer, azurite
from packtrain.testing.azurite import command as azurite_command
from packtrain.testing.fake_mlflow import Fake, fake_mlflow
from packtrain.testing.gcs_server import GcsServer
from packtrain.testing.gcs_server import gcs as run_gcs
from packtrain.testing.mlflow_servers import MlflowServer, mlflow_server
from packtrain.testing.servers import S3Server, seaweedfs
from packtrain.testing.tinymodels import write_adapter, write_base, write_merged
from packtrain.testing.volumes import juicefs

# A law holds or it does not; how fast examples are made and run on a busy machine says nothing.
settings.register_profile("full", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # of `make test`
settings.register_profile("fast", settings.get_profile("full"), max_examples=25)  # of `make check`
settings.load_profile("full")
SHARED_FIXTURES = (HealthCheck.too_slow, HealthCheck.function_scoped_fixture)  # what a law suppresses that has some


def first_fast(*values: object) -> list[object]:
    """Parameters of a test that takes a while: `make check` has the first one, `make test` all."""
    return [values[0], *(pytest.param(value, marks=pytest.mark.slow) for value in values[1:])]


def pytest_configure() -> None:
    """A shell that starts us in the background lets us, and all that we start, ignore Ctrl-C, which is tested here."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Models:
    """Directories as LLaMA-Factory leaves them. ``home`` holds them under these names."""

    home: Path
    base: Path
    first: Path
    second: Path
    adapter: Path


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Read-only: copy what you want to change."""
    home = tmp_path_factory.mktemp("models")
    base = write_base(home / "base", seed=1, shards=2)
    return Models(
        home,
        base=base,
        first=write_merged(home / "merged-1", base, seed=2),
        second=write_merged(home / "merged-2", base, seed=3),
        adapter=write_adapter(home / "adapter", base, seed=4),
    )


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can reach: pytest's own are closed to them."""
    with tempfile.TemporaryDirectory() as home:
        Path(home).chmod(0o755)
        yield Path(home)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Permissions mean nothing to root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server with one bucket, started when the first test asks for it."""
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture
def s3_environment(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The same server, with an environment in which every S3 client finds it and nothing else."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return s3


@pytest.fixture
def fake() -> Iterator[Fake]:
    """An MLflow server of a few lines, empty."""
    with fake_mlflow() as server:
        yield server


MLFLOW = Path(__file__).parents[1] / ".engines" / "mlflow"


@pytest.fixture(scope="session")
def mlflow_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A real MLflow server on SQLite."""
    with mlflow_server(tmp_path_factory.mktemp("mlflow-sqlite"), MLFLOW) as server:
        yield server


@pytest.fixture(scope="session")
def mlflow_postgresql(tmp_path_factory: pytest.TempPathFactory, s3: S3Server) -> Iterator[MlflowServer]:
    """A real MLflow server on PostgreSQL, with its artifacts in the S3 server."""
    with mlflow_server(
        tmp_path_factory.mktemp("mlflow-postgresql"),
        MLFLOW,
        backend="postgresql",
        artifacts=f"{s3.url}/mlflow",
        environment={**os.environ, **s3.environment, "MLFLOW_S3_ENDPOINT_URL": s3.endpoint},
    ) as server:
        yield server


@pytest.fixture(scope="session")
def gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcsServer]:
    """An emulator of GCS with one bucket, started when the first test asks for it."""
    with run_gcs(tmp_path_factory.mktemp("gcs")) as server:
        yield server


@pytest.fixture
def gcs_environment(gcs: GcsServer, monkeypatch: pytest.MonkeyPatch) -> GcsServer:
    """The same server, with an environment in which a client finds it and a service account's key, and nothing else."""
    for name in [name for name in os.environ if name.startswith(("GOOGLE_", "GCE_", "CLOUDSDK_"))]:
        monkeypatch.delenv(name)
    for name, value in gcs.environment.items():
        monkeypatch.setenv(name, value)
    return gcs


@pytest.fixture(scope="session")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureServer]:
    """Azure's emulator with one container, started when the first test asks for it."""
    with azurite(tmp_path_factory.mktemp("azurite")) as server:
        yield server


@pytest.fixture
def azure_environment(azure: AzureServer, monkeypatch: pytest.MonkeyPatch) -> AzureServer:
    """The same server, with an environment in which a client finds it and nothing else."""
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    for name, value in azure.environment.items():
        monkeypatch.setenv(name, value)
    return azure


@pytest.fixture(scope="session")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    """A real shared volume, mounted on two machines."""
    with juicefs(tmp_path_factory.mktemp("juicefs")) as mounts:
        yield mounts


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need root or Azurite are skipped, in one line, where there is none."""
    is_installed = azurite_command() is not None
    for item in items:
        if os.geteuid() != 0 and item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root"))
        if _asks_for("azure", item) and not is_installed:
            item.add_marker(pytest.mark.skip(reason="needs Azurite: make azurite"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was skipped, and why, in a line for each reason."""
    reasons = Counter(str(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", []))
    for reason, count in sorted(reasons.items()):
        terminalreporter.write_line(f"{count} skipped: {reason.removeprefix('Skipped: ')}")


def _asks_for(server: str, item: pytest.Item) -> bool:
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    asked = (*getattr(item, "fixturenames", ()), *(value for value in parameters if isinstance(value, str)))
    return server in asked
