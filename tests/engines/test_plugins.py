"""Packtrain's plugins in a real MLflow: the server's guard, with and without basic authentication, and its clients'."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from packtrain.errors import Refused
from packtrain.registry.mlflow import Mlflow
from packtrain.testing.mlflow_servers import QUIET, MlflowServer, mlflow_server
from packtrain.testing.ports import free_port
from packtrain.testing.servers import S3Server
from packtrain.testing.stub_vllm import write_executable
from tests.conftest import MLFLOW, Models
from tests.programs.conftest import Cli, environment

pytestmark = [pytest.mark.engine, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "a password of many characters"


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PYTHONPATH with which MLflow's environment is one in which Packtrain is installed, too."""
    folder = tmp_path_factory.mktemp("beside")
    (ours,) = ROOT.glob(".venv/lib/python*/site-packages")
    (folder / "sitecustomize.py").write_text(f"import sys\nsys.path += [{str(ours)!r}, {str(ROOT / 'src')!r}]\n")
    return str(folder)


@pytest.fixture(scope="module", params=["packtrain", "packtrain-basic-auth"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, s3: S3Server, beside: str
) -> Iterator[MlflowServer]:
    directory = tmp_path_factory.mktemp("guarded")
    environment = {
        **os.environ,
        **s3.environment,
        "PYTHONPATH": beside,
        "PACKTRAIN_STORE": f"{s3.url}/{uuid.uuid4().hex}",
        "PACKTRAIN_CACHE_DIR": str(directory / "cache"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a key",
        "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
    }
    with mlflow_server(directory, MLFLOW, environment=environment, options=("--app-name", request.param)) as server:
        yield server


@pytest.fixture
def cli(server: MlflowServer, s3_environment: S3Server, tmp_path: Path) -> Cli:
    return Cli(
        tmp_path,
        {
            **environment(tmp_path),
            **s3_environment.environment,
            "PACKTRAIN_STORE": server.process.environment["PACKTRAIN_STORE"],
            "PACKTRAIN_REGISTRY": server.url,
            **credentials(server),
        },
    )


def credentials(server: MlflowServer) -> dict[str, str]:
    if "packtrain" in server.process.command:
        return {}
    return {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": PASSWORD}


def moves(server: MlflowServer) -> list[dict[str, Any]]:
    """What the guard has logged."""
    lines = server.process.log.read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith('{"event": "alias"')]


def in_mlflow(server: MlflowServer, beside: str, home: Path, *command: str, **more: str) -> str:
    """A command in MLflow's environment, with Packtrain beside it."""
    variables = {**os.environ, **QUIET, "PATH": f"{MLFLOW / 'bin'}:/usr/bin:/bin", "PYTHONPATH": beside, **more}
    done = subprocess.run(
        command,
        env={**variables, "MLFLOW_TRACKING_URI": server.url, **credentials(server), "HOME": str(home)},
        cwd=home, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_moves_of_protected_aliases_that_no_ledger_knows_are_refused_and_all_are_logged(
    server: MlflowServer, cli: Cli, models: Models, beside: str, tmp_path: Path
) -> None:
    cli.run("publish", models.first, "--name", "llama", "--alias", "production")
    cli.run("publish", models.second, "--name", "llama")
    cli.run("policy", "llama", "--protect", "production")
    somebody = Mlflow(server.url, environ=credentials(server), actor="somebody")
    with pytest.raises(Refused, match=r"@production of llama is protected, and its ledger says that it is 1") as caught:
        somebody.set_alias("llama", "production", 2)
    assert "packtrain promote llama/2 --to production" in str(caught.value)
    with pytest.raises(Refused):
        somebody.remove_alias("llama", "production")
    somebody.set_alias("llama", "staging", 2)
    cli.run("promote", "llama/2", "--to", "production")
    shown = somebody.model("llama")
    assert shown is not None
    assert shown.aliases == {"production": 2, "staging": 2}

    client = "import mlflow; mlflow.MlflowClient().set_registered_model_alias('llama', 'staging', 1)"
    in_mlflow(server, beside, tmp_path, "python", "-c", client, PACKTRAIN_ACTOR="carol")
    told = [(m["alias"], m["from"], m["to"], m["actor"], m["status"]) for m in moves(server)]
    name = (lambda actor: "admin") if credentials(server) else (lambda actor: actor)
    assert told == [
        ("production", None, 1, name("alice"), 200),
        ("production", 1, 2, name("somebody"), 403),
        ("production", 1, None, name("somebody"), 403),
        ("staging", None, 2, name("somebody"), 200),
        ("production", 1, 2, name("alice"), 200),
        ("staging", 2, 1, name("carol"), 200),
    ]
    if credentials(server):
        with pytest.raises(Refused, match="does not know who asks"):
            Mlflow(server.url, environ={}).set_alias("llama", "staging", 2)
        assert len(moves(server)) == len(told), "who is not let in does not reach the guard"


DEPLOY = """
import json, sys, time
from mlflow.deployments import get_deploy_client
client, port = get_deploy_client("packtrain"), sys.argv[1]
client.create_deployment("chat", "models:/llama@production", config={"port": port})
try:
    while (first := client.get_deployment("chat"))["status"] == "starting":
        time.sleep(0.1)
    answer = client.predict("chat", {"prompt": "Hello", "max_tokens": 1})
    client.update_deployment("chat", "models:/llama/2")
    while (second := client.get_deployment("chat"))["status"] == "starting":
        time.sleep(0.1)
    listed = [each["name"] for each in client.list_deployments()]
finally:
    client.delete_deployment("chat")
print(json.dumps([first, second, listed, client.list_deployments(), json.loads(answer.to_json())]))
"""


def test_a_deployment_is_a_running_vllm(tmp_path: Path, models: Models, beside: str) -> None:
    """Of a registry in a directory: MLflow's client is used, and no MLflow server."""
    cli = Cli(tmp_path, environment(tmp_path))
    cli.run("publish", models.first, "--name", "llama", "--alias", "production")
    cli.run("publish", models.second, "--name", "llama")
    variables = {
        **cli.environment,
        **QUIET,
        "PYTHONPATH": beside,
        "PACKTRAIN_VLLM": str(write_executable(tmp_path / "vllm")),
    }
    done = subprocess.run(
        [MLFLOW / "bin" / "python", "-c", DEPLOY, str(free_port())],
        env=variables, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    first, second, listed, left, answer = json.loads(done.stdout.splitlines()[-1])
    assert (first["status"], first["reference"]) == ("ready", "llama@production")
    assert (second["status"], second["reference"]) == ("ready", "llama/2")
    assert (listed, left) == (["chat"], [])
    assert answer
