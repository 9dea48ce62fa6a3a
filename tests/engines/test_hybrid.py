"""The hybrid on real parts: LLaMA-Factory reports to MLflow on PostgreSQL, S3 keeps the bytes, stock MLflow clients and
nodes with real vLLM use the same versions."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from packtrain.registry.mlflow import Mlflow
from packtrain.testing.browser import find_browser, read_page
from packtrain.testing.mlflow_servers import QUIET, MlflowServer
from packtrain.testing.servers import S3Server
from tests.conftest import MLFLOW
from tests.engines.conftest import LLAMAFACTORY, Cli, Trained, ask, reference_answers

pytestmark = pytest.mark.engine

QUESTIONS = ("Who are you?", "What do you carry?")
READINGS = 6  # of a page that has not got everything yet

STOCK = """
import importlib.util, json, sys
import mlflow
assert importlib.util.find_spec("packtrain") is None
uri, text = sys.argv[1:]
pipe = mlflow.transformers.load_model(uri)
assert type(pipe).__name__ == "TextGenerationPipeline"
(generated,) = pipe(text, max_new_tokens=24, do_sample=False, return_full_text=False)
(predicted,) = mlflow.pyfunc.load_model(uri).predict([text])
info = mlflow.models.get_model_info(uri)
print(json.dumps({
    "generated": generated["generated_text"],
    "predicted": predicted,
    "signature": info.signature.inputs.to_dict(),
    "flavors": sorted(info.flavors),
}))
"""

SMALL = """
import sys
from PIL import Image
for path in sys.argv[1:]:
    picture = Image.open(path).convert("RGB")
    width, height = picture.size
    picture.crop((0, 0, int(0.742 * width), height)).quantize(256).save(path, optimize=True)  # not MLflow's assistant
"""


@pytest.fixture(scope="module")
def reported(
    tmp_path_factory: pytest.TempPathFactory,
    trained: Trained,
    engine_environment: dict[str, str],
    mlflow_postgresql: MlflowServer,
) -> Path:
    """The home of version one, trained as in its YAML but with ``report_to: mlflow``: an sft.yaml and a merge.yaml."""
    home = tmp_path_factory.mktemp("reported")
    for kind, source in (("sft", trained.training_yaml("v1")), ("merge", trained.merge_yaml("v1"))):
        text = source.read_text()
        for theirs in (trained.home, trained.own):
            text = text.replace(str(theirs / "v1"), str(home))
        for before, after in (
            ("report_to: none", "report_to: mlflow"),
            ("num_train_epochs: 100", "num_train_epochs: 30"),
            ("logging_steps: 10", "logging_steps: 3"),
        ):
            text = text.replace(before, after)
        (home / f"{kind}.yaml").write_text(text)
    environment = {
        **engine_environment,
        **mlflow_postgresql.environment,
        "MLFLOW_EXPERIMENT_NAME": "fine-tuning",
        "GIT_PYTHON_REFRESH": "quiet",
    }
    command = [str(LLAMAFACTORY / "llamafactory-cli"), "train", str(home / "sft.yaml")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=home)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return home


@pytest.fixture(scope="module")
def environment(engine_environment: dict[str, str], s3: S3Server, mlflow_postgresql: MlflowServer) -> dict[str, str]:
    return {
        **engine_environment,
        **s3.environment,
        **mlflow_postgresql.environment,
        "PACKTRAIN_STORE": f"{s3.url}/hybrid",
        "PACKTRAIN_REGISTRY": mlflow_postgresql.url,
        "MLFLOW_S3_ENDPOINT_URL": s3.endpoint,
    }


@pytest.fixture(scope="module")
def machine(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``machine(NAME)``: `packtrain` on a machine of its own."""

    def make(name: str) -> Cli:
        cache = str(tmp_path_factory.mktemp(name))
        return Cli({**environment, "PACKTRAIN_CACHE_DIR": cache, "PACKTRAIN_ACTOR": name})

    return make


@pytest.fixture(scope="module")
def published(machine: Any, reported: Path, trained: Trained) -> Cli:
    """hybrid/1, whose training reported to MLflow, in production; hybrid/2, whose training did not; an adapter."""
    trainer = machine("trainer")
    assert trainer("export", str(reported / "merge.yaml"), "--name", "hybrid", "--alias", "production")["version"] == 1
    config = ("--training-config", str(trained.training_yaml("v2")))
    assert trainer("export", str(trained.merge_yaml("v2")), "--name", "hybrid", *config)["version"] == 2
    trainer("publish", str(trained.base), "--name", "hybrid-base")
    trainer("publish", str(trained.adapter("v1")), "--name", "hybrid-adapter", "--alias", "production")
    return trainer


def test_versions_link_to_their_training(published: Cli, mlflow_postgresql: MlflowServer, reported: Path) -> None:
    mlflow = Mlflow(mlflow_postgresql.url)
    theirs, ours = (mlflow.run(mlflow.version("hybrid", number).run_id or "") for number in (1, 2))

    assert theirs.experiment == mlflow.experiment("fine-tuning")
    assert theirs.params["learning_rate"] == "0.003"  # LLaMA-Factory's callback logs all of its arguments
    results = json.loads((reported / "adapter" / "all_results.json").read_text())
    assert theirs.metrics["train_loss"] == results["train_loss"]
    assert len(mlflow.metric(theirs.id, "loss")) > 5

    assert ours.experiment == mlflow.experiment("hybrid")
    assert ours.status == "FINISHED"
    assert ours.params["learning_rate"] == "0.003"
    assert ours.params["dataset"] == "v2-train"
    assert ours.datasets == ("v2-train", "v2-eval")
    lineage = published("show", "hybrid/2")["lineage"]
    assert mlflow.metric(ours.id, "loss") == [tuple(point) for point in lineage["curves"]["loss"]]
    assert ours.metrics["eval_accuracy"] == lineage["metrics"]["eval_accuracy"]
    assert mlflow.artifacts(ours.id) == ["export.yaml", "loss.svg", "training.yaml"]

    told = published("lineage", "hybrid/1")[0]["run"]
    assert (told["url"], told["status"]) == (mlflow.page(theirs), "FINISHED")
    assert [tuple(point) for point in told["curves"]["loss"]] == mlflow.metric(theirs.id, "loss")
    assert [run["id"] for run in published("compare", "hybrid/1", "hybrid/2")["runs"]] == [theirs.id, ours.id]

    tags = mlflow.version("hybrid", 2).tags
    assert tags["packtrain.digest"] == published("show", "hybrid/2")["digest"]
    assert (tags["packtrain.kind"], tags["packtrain.dtype"], tags["packtrain.actor"]) == (
        "merged",
        "bfloat16",
        "trainer",
    )
    assert "llamafactory 0.9" in tags["packtrain.tools"]
    assert sum(len(key) + len(value) for key, value in tags.items()) < 1024
    assert mlflow.version("hybrid-adapter", 1).tags["packtrain.base"] == "hybrid-base/1"


def test_stock_clients_download_and_load(
    published: Cli, environment: dict[str, str], engine_environment: dict[str, str], tmp_path: Path
) -> None:
    """Without Packtrain installed, and with what they add to the directory, it still verifies."""
    clean = {key: value for key, value in environment.items() if not key.startswith("PACKTRAIN_")}
    stock = {**clean, **QUIET, "PATH": f"{MLFLOW / 'bin'}:/usr/bin:/bin", "HOME": str(tmp_path)}

    def run(*command: str) -> str:
        done = subprocess.run(command, env=stock, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    merged, adapter = tmp_path / "merged", tmp_path / "adapter"
    run("mlflow", "artifacts", "download", "-u", "models:/hybrid@production", "-d", str(merged))
    run("mlflow", "artifacts", "download", "-u", "models:/hybrid-adapter@production", "-d", str(adapter))
    assert (adapter / "adapter_model.safetensors").is_file()
    taken = published("pull", "hybrid@production", "--to", str(merged))
    assert taken["fetched"] == 0, "what a stock client downloaded is whole, whatever it has added"

    loaded = json.loads(run("python", "-c", STOCK, "models:/hybrid@production", "Who are you?").splitlines()[-1])
    assert loaded["generated"]
    assert loaded["predicted"].startswith("Who are you?"), "it samples: transformers' pipelines do"
    assert len(loaded["predicted"]) > len("Who are you?")
    assert loaded["signature"] == [{"type": "string", "required": True}]
    assert loaded["flavors"] == ["python_function", "transformers"]


def test_two_nodes_serve_two_aliases_while_mlflow_comes_and_goes(
    published: Cli, machine: Any, engine_environment: dict[str, str], mlflow_postgresql: MlflowServer
) -> None:
    stable, candidate = machine("node-1"), machine("node-2")
    published("promote", "hybrid/2", "--to", "candidate", "--reason", "to be tried")
    answers = {
        number: reference_answers(engine_environment, Path(stable("pull", f"hybrid/{number}")["path"]), QUESTIONS)
        for number in (1, 2)
    }
    assert answers[1] != answers[2]
    with stable.serving("hybrid@production") as first, candidate.serving("hybrid@candidate") as second:
        for url, number in ((first, 1), (second, 2)):
            assert [ask(url, "hybrid", question)[0] for question in QUESTIONS] == answers[number]
    published("promote", "hybrid/2", "--to", "production", "--expect", "1", "--reason", "better")

    mlflow_postgresql.process.kill()
    try:
        assert stable("pull", "hybrid@production")["version"] == 2
        assert published("rollback", "hybrid", "--reason", "worse after all")["to"] == 1
        with stable.serving("hybrid@production") as url:
            assert [ask(url, "hybrid", question)[0] for question in QUESTIONS] == answers[1]
        assert Mlflow(mlflow_postgresql.url, environ={}).url
    finally:
        mlflow_postgresql.process.start()
    shown = Mlflow(mlflow_postgresql.url).model("hybrid")
    assert shown is not None
    assert shown.aliases == {"production": 2, "candidate": 2}, "MLflow was away when the alias moved"
    published("show", "hybrid@production")
    shown = Mlflow(mlflow_postgresql.url).model("hybrid")
    assert shown is not None
    assert shown.aliases == {"production": 1, "candidate": 2}
    assert published("verify", "--bytes")[0]["versions"] == 2


def test_people_see_it_in_mlflows_pages(published: Cli, mlflow_postgresql: MlflowServer, tmp_path: Path) -> None:
    """In a real browser. With PICTURES=docs in the environment, the pictures there are taken anew."""
    if find_browser() is None:
        pytest.skip("needs a browser: apt-get install chromium")
    published("promote", "hybrid/2", "--to", "candidate", "--reason", "to be looked at")
    mlflow = Mlflow(mlflow_postgresql.url)
    run = mlflow.page(mlflow.run(mlflow.version("hybrid", 1).run_id or ""))
    digest = published("show", "hybrid/2")["digest"]
    pages = {
        "versions": (f"{mlflow.url}/#/models/hybrid", ["Version 1", "Version 2", "production", "candidate", digest]),
        "version": (f"{mlflow.url}/#/models/hybrid/versions/2", ["Source Run", "candidate", digest, "trainer"]),
        "run": (run, ["Finished", "train_loss", "llamafactory-cli"]),
        "curves": (f"{run}/model-metrics", ["eval_accuracy", "Step"]),
    }
    pictures = Path(os.environ.get("PICTURES", tmp_path)).absolute()
    for name, (url, texts) in pages.items():
        picture = pictures / f"mlflow-{name}.png" if name in ("versions", "run") else None
        for _ in range(READINGS):
            shown = read_page(url, tmp_path / "browser", picture=picture, width=1600, height=840)
            missing = [text for text in texts if text not in shown]
            if not missing:
                break
        assert missing == [], name
        if picture is not None:
            subprocess.run([MLFLOW / "bin" / "python", "-c", SMALL, picture], check=True)
            assert 10_000 < picture.stat().st_size < 200_000, "a blank page is smaller"
