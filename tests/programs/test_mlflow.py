"""The straight line with an MLflow server as the registry, as its users meet it."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from packtrain.registry.mlflow import Mlflow
from packtrain.testing import fake_mlflow
from packtrain.testing.fake_mlflow import Fake
from packtrain.testing.servers import S3Server
from tests.conftest import Models
from tests.programs.conftest import Cli, environment


@pytest.fixture
def cli(tmp_path: Path, s3_environment: S3Server, fake: Fake) -> Cli:
    return Cli(
        tmp_path,
        {
            **environment(tmp_path),
            **s3_environment.environment,
            "PACKTRAIN_STORE": f"{s3_environment.url}/{uuid.uuid4().hex}",
            "PACKTRAIN_REGISTRY": "mlflow",
            "MLFLOW_TRACKING_URI": fake.url,
        },
    )


def test_the_straight_line(cli: Cli, fake: Fake, models: Models) -> None:
    cli.run("publish", models.first, "--name", "llama", "--alias", "production")
    cli.run("publish", models.second, "--name", "llama")
    assert cli.json("promote", "llama/2", "--to", "production", "--expect", "1")["moved"]
    shown = fake.models["llama"]
    assert shown.aliases == {"production": 2}
    assert shown.versions[2]["source"] == cli.json("show", "llama/2")["url"].rstrip("/")
    assert cli.json("rollback", "llama")["to"] == shown.aliases["production"] == 1
    assert [entry["aliases"] for entry in cli.json("models")] == [[], ["production"]]
    assert "MLflow shows @production: 2" in cli.out("history", "llama")
    assert cli.json("pull", "llama@production")["version"] == 1
    assert cli.json("policy", "llama", "--protect", "production") == {"protected": ["production"], "gated": []}
    assert cli.out("policy", "llama") == "protected  @production\ngated      none\n"
    assert cli.json("verify")[0]["versions"] == 2
    fake.models.clear()
    assert "was deleted or renamed in MLflow" in cli.run("show", "llama").stderr
    assert cli.out("register", "llama") == "llama: 2 versions in MLflow\n"
    assert fake.models["llama"].aliases == {"production": 1}


def test_lineage_and_compare_lead_to_the_training_in_mlflow(cli: Cli, fake: Fake, models: Models) -> None:
    """Its page, metrics, curves, datasets and artifacts; a version of which no training is known has none."""
    cli.run("publish", models.adapter, "--name", "tone")
    cli.run("publish", models.base, "--name", "llama")
    mlflow, (run_id,) = Mlflow(fake.url, environ={}), fake.runs
    run = mlflow.run(run_id)
    page = mlflow.page(run)
    told = cli.json("lineage", "tone")[0]["run"]
    assert (told["id"], told["url"], told["status"]) == (run_id, page, "FINISHED")
    assert told["curves"]["loss"] == [[10, 0.5]]
    assert told["metrics"] == run.metrics
    assert told["artifacts"] == ["loss.svg"]
    text = cli.out("lineage", "tone")
    assert f"{page} (finished)" in text
    assert "loss in 1 point" in text
    assert cli.json("lineage", "llama")[0]["run"] is None
    assert [each and each["id"] for each in cli.json("compare", "llama", "tone")["runs"]] == [None, run_id]
    assert page in cli.out("compare", "llama", "tone")


@pytest.mark.slow
def test_without_mlflow_what_needs_it_says_so_and_the_rest_goes_on(cli: Cli, fake: Fake, models: Models) -> None:
    cli.run("publish", models.first, "--name", "llama", "--alias", "production")
    cli.environment["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"
    done = cli.run("pull", "llama@production")
    assert "MLflow at http://127.0.0.1:9 cannot be reached" in done.stderr
    assert "The ledger counts" in done.stderr
    refused = cli.run("publish", models.second, "--name", "llama", code=7).stderr
    assert "run the same command again when MLflow answers" in refused


@pytest.mark.slow
def test_versions_of_others_are_adopted_or_pulled_unverified(
    cli: Cli, fake: Fake, models: Models, tmp_path: Path
) -> None:
    client = Mlflow(fake.url, environ={})
    client.create_model("llama", "")
    for path in models.first.rglob("*"):
        if path.is_file():
            fake.artifacts[f"1/abc/artifacts/model/{path.relative_to(models.first)}"] = path.read_bytes()
    client.create_version("llama", "mlflow-artifacts:/1/abc/artifacts/model", run_id=None, tags={})
    done = cli.run("pull", "llama/1", "--unverified", "--to", "looked-at")
    assert done.stdout == f"{tmp_path / 'looked-at'}\n"
    assert "UNVERIFIED: nothing vouches" in done.stderr
    assert (tmp_path / "looked-at" / "config.json").read_bytes() == (models.first / "config.json").read_bytes()
    assert "into a folder of yours" in cli.run("pull", "llama/1", "--unverified", code=2).stderr
    cli.run("pull", "llama/1", code=4)
    assert cli.json("adopt", "llama/1", "--alias", "production")["version"] == 1
    assert fake.models["llama"].aliases == {"production": 1}
    assert cli.json("pull", "llama@production")["verified"]
    assert "is in the ledger already" in cli.run("adopt", "llama/1", code=5).stderr


@pytest.mark.slow
def test_the_doctor_tries_the_server_out_and_leaves_nothing(cli: Cli, fake: Fake, models: Models) -> None:
    cli.run("publish", models.first, "--name", "llama")
    told = cli.out("doctor")
    assert f"ok       mlflow              {fake.url} answers, version 3.0.0-fake" in told
    assert "ok       mlflow sources      it takes versions and aliases under s3://" in told
    assert "ok       mlflow models       1, as the ledgers say" in told
    assert list(fake.models) == ["llama"]
    fake.models.clear()
    assert "registered model llama was deleted or renamed" in cli.run("doctor").stderr
    ask = fake.answer

    def refusing(method: str, call: str, asked: dict[str, object]) -> object:
        if call == "model-versions/create":
            raise fake_mlflow._RefusedError(400, "INVALID_PARAMETER_VALUE", "Invalid model version source")
        return ask(method, call, asked)

    fake.answer = refusing  # type: ignore[method-assign]
    refused = cli.run("doctor", code=3).stdout
    assert "Invalid model version source" in refused
    assert "a link on its own disk" in refused
    assert fake.models == {}
    cli.environment["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"
    assert (
        "failure  mlflow              MLflow at http://127.0.0.1:9 cannot be reached"
        in cli.run("doctor", code=7).stdout
    )
