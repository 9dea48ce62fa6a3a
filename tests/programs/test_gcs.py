"""Every command, over a store on GCS: a walk from training to serving and back."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

import pytest

from packtrain.storage import open_store
from packtrain.testing.gcs_server import GcsServer
from packtrain.testing.stub_vllm import write_executable
from tests.conftest import Models
from tests.programs.conftest import Cli, environment
from tests.programs.test_adopting import QUICK, put


def on_gcs(home: Path, url: str, who: dict[str, str]) -> Cli:
    home.mkdir(exist_ok=True)
    return Cli(home, environment(home) | who | {"PACKTRAIN_STORE": f"{url}/registry"})


@pytest.mark.slow
def test_the_way_of_a_model(tmp_path: Path, models: Models, gcs_environment: GcsServer) -> None:
    gcs = gcs_environment
    url = f"{gcs.url}/{uuid.uuid4().hex}"
    owner = on_gcs(tmp_path / "owner", url, gcs.environment)
    node = on_gcs(tmp_path / "node", url, gcs.reader_environment)  # may read and list, nothing else

    # publish, promote, go back
    assert "1.1 MB uploaded" in owner.out("publish", models.first, "--name", "llama", "--alias", "production")
    assert "llama/1 holds these bytes already" in owner.out("publish", models.first, "--name", "llama")
    owner.run("publish", models.second, "--name", "llama")
    owner.run("promote", "llama/2", "--to", "production", "--reason", "better")
    assert owner.json("rollback", "llama", "--reason", "worse")["to"] == 1
    assert len(node.json("history", "llama")) == 9
    assert [(each["version"], each["aliases"]) for each in node.json("models")] == [(2, []), (1, ["production"])]
    refused = node.run("promote", "llama/2", "--to", "production", "--reason", "x", code=3).stderr
    assert "does not have storage.objects.create" in refused and "roles/storage.objectUser" in refused

    # pull and serve; what lies there is a plain directory at a URL that others read
    pulled = Path(node.out("pull", "llama@production").strip())
    assert (pulled / "config.json").read_bytes() == (models.first / "config.json").read_bytes()
    address = node.out("url", "llama@production").strip()
    assert open_store(address).get("config.json") == (models.first / "config.json").read_bytes()
    with node.engine("serve", "llama@production", vllm=write_executable(tmp_path / "vllm")) as engine:
        assert [model["id"] for model in engine.models["data"]] == ["llama"]

    # adopt what lies in the bucket, copied there by the server; watch a folder
    put(f"{url}/team/v1", models.first)
    assert "llama/1 holds" not in owner.out("adopt", f"{url}/team/v1", "--name", "adopted", "--alias", "staging")
    shutil.copytree(models.second, tmp_path / "exports" / "one")
    owner.run("watch", tmp_path / "exports", "--name", "watched", "--once", *QUICK)
    assert {each["name"] for each in owner.json("models")} == {"llama", "adopted", "watched"}

    # damage is found and mended; what was retired is collected
    digest = owner.json("show", "llama/2")["digest"].removeprefix("sha256:")
    store = open_store(owner.environment["PACKTRAIN_STORE"])
    weights = next(info.key for info in store.list(f"models/llama/{digest}/") if info.key.endswith(".safetensors"))
    data = bytearray(store.get(weights))
    data[-1] ^= 1
    store.upload(weights, [bytes(data)], len(data))
    assert weights.rpartition("/")[2] in owner.run("verify", "llama", "--bytes", code=6).stderr
    owner.run("publish", models.second, "--name", "llama", "--repair")
    owner.run("verify", "--bytes")
    owner.run("archive", "llama/2", "--reason", "worse")
    owner.run("gc", "--grace", "0d")
    assert store.head(weights) is None
    owner.run("verify", "--bytes")


def test_the_doctor(tmp_path: Path, gcs_environment: GcsServer) -> None:
    url = f"{gcs_environment.url}/{uuid.uuid4().hex}"
    checks = {
        (check["about"], check["level"])
        for check in on_gcs(tmp_path / "owner", url, gcs_environment.environment).json("doctor")
    }
    steps = (
        "credentials",
        "store",
        "reading",
        "writing",
        "conditional writes",
        "uploads by parts",
        "deleting",
        "clock",
    )
    assert {(step, "ok") for step in (*steps, "ledgers")} <= checks

    reader = on_gcs(tmp_path / "reader", url, gcs_environment.reader_environment).run("doctor").stdout
    assert "warning  writing" in reader and "only pulls and serves needs no more" in reader
    assert "reader@packtrain-test" in reader and "PRIVATE KEY" not in reader

    nobody = on_gcs(tmp_path / "nobody", url, gcs_environment.nobody).run("doctor", code=3).stdout
    assert "failure  store" in nobody and "gcloud auth application-default login" in nobody

    wrong = on_gcs(tmp_path / "wrong", "gs://another-bucket", gcs_environment.environment)
    assert "there is no bucket gs://another-bucket" in wrong.run("doctor", code=7).stdout
