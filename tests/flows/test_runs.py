"""The training run of a version in MLflow: LLaMA-Factory's own is found, else one is made; it can be followed back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from packtrain.flows.mirroring import MirroringRegistry
from packtrain.flows.runs import describing, follow
from packtrain.registry.mlflow import Mlflow
from packtrain.testing import fake_mlflow
from packtrain.testing.fake_mlflow import Fake
from packtrain.testing.memory_store import MemoryStore
from tests.conftest import Models
from tests.flows.conftest import House


@pytest.fixture
def mlflow(fake: Fake) -> Mlflow:
    return Mlflow(fake.url, environ={}, sleep=lambda _: None)


@pytest.fixture
def house(store: MemoryStore, mlflow: Mlflow, tmp_path: Path) -> House:
    house = House(store, tmp_path / "node")
    describe = describing(mlflow, store, MemoryStore, house.notes, house.clock)
    house.registry = MirroringRegistry(  # type: ignore[assignment]
        house.registry, mlflow, store, house.notes, house.clock, describe
    )
    return house


def results(directory: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((directory / "all_results.json").read_text())
    return found


def test_a_run_is_made_of_what_the_training_left(house: House, mlflow: Mlflow, fake: Fake, models: Models) -> None:
    config = house.home / "sft.yaml"
    config.parent.mkdir(exist_ok=True)
    config.write_text(
        "stage: sft\ndataset: identity\nlearning_rate: 1.0e-4\nhub_token: hf_abcdefghijklmnopqrstuvwxyz\n"
    )
    version = house.publish(models.adapter, training_config=config).version
    assert version is not None
    run = follow(mlflow, version, house.notes)
    assert run is not None
    assert (run.status, run.datasets) == ("FINISHED", ("identity",))
    assert run.url == f"{fake.url}/#/experiments/1/runs/{run.id}"
    assert run.metrics["train_loss"] == results(models.adapter)["train_loss"]
    lineage = house.registry.read("llama").state.versions[1].lineage
    assert lineage is not None
    assert run.curves["loss"] == ((10, 0.5),)
    assert set(run.artifacts) == {"training.yaml", "loss.svg"}
    stored = mlflow.run(run.id)
    assert (stored.params["learning_rate"], stored.params["stage"]) == ("0.0001", "sft")
    (root,) = {path.rpartition("/")[0] for path in fake.artifacts}
    assert b"hf_abc" not in fake.artifacts[f"{root}/training.yaml"]
    assert fake.artifacts[f"{root}/loss.svg"].startswith(b"<svg")
    house.publish(models.adapter, "other")
    assert mlflow.version("other", 1).run_id == run.id, "one training has one run"
    assert len(fake.runs) == 1


def test_the_run_that_llamafactory_reported_is_found(house: House, mlflow: Mlflow, fake: Fake, models: Models) -> None:
    """By the runtime and the loss of the training, to the last digit, in whatever experiment."""
    found = results(models.adapter)
    experiment = mlflow.experiment("fine-tuning")
    for shift in (0.001, 0.0, 1.0):
        run = mlflow.create_run(experiment, "theirs", start=0, user="trainer", tags={})
        metrics = [("train_runtime", found["train_runtime"] + shift, 0, 1), ("train_loss", found["train_loss"], 0, 1)]
        mlflow.log(run.id, params={}, metrics=metrics)
        if not shift:
            wanted = run.id
    house.publish(models.adapter)
    assert mlflow.version("llama", 1).run_id == wanted
    assert len(fake.runs) == 3


def test_a_model_of_which_nothing_is_known_has_no_run(house: House, mlflow: Mlflow, fake: Fake, models: Models) -> None:
    version = house.publish(models.base).version
    assert version is not None
    assert fake.runs == {}
    assert follow(mlflow, version, house.notes) is None
    assert follow(None, version, house.notes) is None
    tags = mlflow.version("llama", 1).tags
    assert tags["packtrain.kind"] == "merged"
    assert tags["packtrain.dtype"] in ("float32", "bfloat16")
    assert int(tags["packtrain.size"]) == version.size


def test_what_is_not_there_any_more_is_no_error(house: House, mlflow: Mlflow, fake: Fake, models: Models) -> None:
    version = house.publish(models.adapter).version
    assert version is not None
    fake.runs.clear()
    assert follow(mlflow, version, house.notes) is None
    fake.faults = lambda call, count: fake_mlflow.DOWN
    house.notes.notes.clear()
    assert follow(mlflow, version, house.notes) is None
    assert "the training run of llama/1 is not known" in house.notes.notes[0]


def test_artifacts_that_cannot_be_kept_do_not_stop_a_publish(
    house: House, mlflow: Mlflow, fake: Fake, models: Models
) -> None:
    def full(call: str, count: int) -> str | None:
        return fake_mlflow.BUSY if call.startswith("PUT") else None

    fake.faults = full
    assert house.publish(models.adapter).created
    assert any("lacks artifacts" in note for note in house.notes.notes)
