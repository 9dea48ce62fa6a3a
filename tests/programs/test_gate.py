"""`packtrain gate` and `attest`, and the gate of a node, with a stand-in for vLLM."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from packtrain.client import Client
from packtrain.serving.arguments import Endpoint
from packtrain.serving.processes import is_healthy
from packtrain.testing.ports import free_ports
from packtrain.testing.stub_vllm import write_executable
from packtrain.testing.tinymodels import write_dataset, write_merge_yaml
from tests.broken import has_another_tokenizer, is_truncated, lacks_a_tensor, publish_around_preflight
from tests.conftest import Models, first_fast
from tests.programs.conftest import PROGRAM, Cli, environment
from tests.serving.node import SOON, Node, node

Serve = Callable[..., AbstractContextManager[Node]]


@pytest.fixture
def cli(tmp_path: Path, models: Models) -> Cli:
    """A store with llama/1 (production) and llama/2, and a node with a stand-in for vLLM."""
    settings = {
        **environment(tmp_path),
        "PACKTRAIN_VLLM": str(write_executable(tmp_path / "vllm")),
        "PACKTRAIN_WATCH_WINDOW": "60",
        "PACKTRAIN_POLL": "0.2",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    cli = Cli(tmp_path, settings)
    cli.run("publish", models.first, "--name", "llama", "--alias", "production")
    cli.run("publish", models.second, "--name", "llama")
    return cli


@pytest.fixture
def serve(cli: Cli) -> Serve:
    def start(*vllm: str) -> AbstractContextManager[Node]:
        return node([str(PROGRAM)], cli.environment, cli.home, vllm=vllm)

    return start


def another_template(cli: Cli) -> str:
    path = cli.home / "another.jinja"
    path.write_text("{{ messages[0]['content'] }}")
    return str(path)


def test_it_records_then_compares_and_a_policy_demands_it(cli: Cli) -> None:
    cli.run("policy", "llama", "--gate", "production")
    refused = cli.run("promote", "llama/2", "--to", "production", code=3).stderr
    assert "llama/2 has not passed a gate, which the policy of llama demands for @production" in refused
    assert "packtrain gate llama/2" in refused

    first = cli.json("gate", "llama/2")
    assert (first["passed"], first["recorded"], first["source"], first["compared"]) == (True, True, "built in", None)
    assert len(first["prompts"]) == 8 and first["unmerged"] is None
    again = cli.json("gate", "llama/2")
    assert (again["recorded"], again["golden"]) == (False, first["golden"])
    assert again["compared"]["differences"] == [] and again["compared"]["distance"] == 0
    cli.run("promote", "llama/2", "--to", "production")
    said = [line.split("  ")[-1] for line in cli.out("history", "llama").splitlines()]
    assert any(line.startswith("passed its gate") for line in said)

    wrong = cli.run("gate", "llama/2", "--", "--chat-template", another_template(cli), code=3)
    assert "DOES NOT HOLD" in wrong.stdout and "the chat template or the tokenizer is another" in wrong.stderr
    cli.run("promote", "llama/1", "--to", "staging")
    cli.run("rollback", "llama", "--to", "1")
    assert "llama/2 failed its gate" in cli.run("promote", "llama/2", "--to", "production", code=3).stderr


def test_prompts_of_a_file_and_of_the_training(cli: Cli, models: Models, tmp_path: Path) -> None:
    asked = tmp_path / "asked.txt"
    asked.write_text("Who are you?\n\nWhere to?\n")
    assert cli.json("gate", "llama/1", "--prompts", asked)["prompts"] == ["Who are you?", "Where to?"]
    again = cli.run("gate", "llama/1", "--prompts", asked, code=2).stderr
    assert "has golden outputs already, of prompts from: asked.txt" in again and "--anew" in again
    asked.write_text(json.dumps([[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]]))
    assert cli.json("gate", "llama/1", "--prompts", asked, "--anew")["prompts"] == ["Hi"]

    (tmp_path / "data").mkdir()
    write_dataset(tmp_path / "data", "questions", {"What do you carry?": "Weights."})
    config = tmp_path / "sft.yaml"
    config.write_text("dataset_dir: data\neval_dataset: questions\n")
    folder = tmp_path / "third"
    shutil.copytree(models.second, folder)
    (folder / "generation_config.json").write_text("{}")
    cli.run("publish", folder, "--name", "llama", "--training-config", config)
    said = cli.json("gate", "llama/3")
    assert (said["prompts"], said["source"]) == (["What do you carry?"], "questions, of the training's evaluation")


def test_a_merge_that_is_not_its_adapter_on_its_base_fails(cli: Cli, models: Models, tmp_path: Path) -> None:
    """The weights of another model, under the same configuration."""
    config = write_merge_yaml(
        tmp_path / "merge.yaml", base=models.base, adapter=models.adapter, output=tmp_path / "merged"
    )
    folder = tmp_path / "other"
    shutil.copytree(models.second, folder)
    (folder / "generation_config.json").write_text("{}")
    cli.run("publish", folder, "--name", "llama", "--export-config", config)
    cli.run("policy", "llama", "--gate", "production")
    failed = cli.run("gate", "llama/3", code=3)
    assert "llama/3 failed its gate: not as the adapter on its base" in failed.stderr
    assert "golden" not in failed.stdout, "what failed is no measure"
    refused = cli.run("promote", "llama/3", "--to", "production", code=3).stderr
    assert "llama/3 failed its gate" in refused


def test_a_node_refuses_what_does_not_answer_so(cli: Cli, serve: Serve) -> None:
    """Its vLLM is told to use another chat template than the gate's was."""
    cli.run("gate", "llama/2")
    with serve("--chat-template", another_template(cli)) as served:
        served.until_serving(1)  # of which nothing golden is known
        assert served.status["gate"]["golden"] is None
        cli.run("promote", "llama/2", "--to", "production")
        served.until(lambda: served.status["bad"], "it to be marked")
        [bad] = served.status["bad"]
        assert bad["version"] == 2 and "the chat template or the tokenizer is another" in bad["because"]
        served.until_serving(1, alone=True)
        assert served.ask().version == "llama/1"
        assert 'packtrain_gates_total{result="failed"} 1.0' in served.get("/metrics")[1]


def test_a_node_compares_and_an_endpoint_is_attested(cli: Cli, serve: Serve) -> None:
    cli.run("gate", "llama/2")
    with serve("--api-key", "sesame") as served:
        served.until_serving(1)
        url, key = f"http://127.0.0.1:{served.port}", ("--api-key", "sesame")
        none = cli.run("attest", url, *key, code=4).stderr
        assert "llama/1 has no golden outputs" in none and "packtrain gate llama/1" in none
        cli.run("promote", "llama/2", "--to", "production")
        served.until_serving(2)
        golden = served.status["gate"]["golden"]
        assert (golden["prompts"], golden["equal"], golden["distance"]) == (8, 128, 0)
        assert 'packtrain_gate_distance_nats{version="2"} 0.0' in served.get("/metrics")[1]
        assert "passed in" in cli.out("status", url, *key)
        attested = cli.json("attest", url, *key)
        assert (attested["version"], attested["holds"], attested["compared"]["equal"]) == (2, True, 128)
        assert "it answers as that version" in cli.out("attest", url, *key)
        assert "wants an API key" in cli.run("attest", url, code=3).stderr


@pytest.mark.slow
def test_what_answers_otherwise_is_not_attested(cli: Cli) -> None:
    """One vLLM, which no gate kept from serving."""
    cli.run("gate", "llama/2")
    [port] = free_ports(1)
    command = cli.command("serve", "llama/2", "--", "--host", "127.0.0.1", "--port", str(port))
    process = subprocess.Popen([*command, "--chat-template", another_template(cli)], env=cli.environment)
    try:
        deadline = time.monotonic() + SOON
        while not is_healthy(Endpoint("127.0.0.1", port)):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        wrong = cli.run("attest", f"http://127.0.0.1:{port}", code=6)
    finally:
        process.terminate()
        process.wait()
    assert "does not answer as llama/2" in wrong.stderr and "DOES NOT HOLD" in wrong.stdout


def test_a_node_without_the_store_still_has_the_golden_outputs(cli: Cli, serve: Serve) -> None:
    cli.run("gate", "llama/2")
    cli.run("promote", "llama/2", "--to", "production")
    with serve() as served:
        served.until_serving(2)
    shutil.rmtree(cli.home / "store" / "records")
    with serve() as served:
        served.until_serving(2)
        assert served.status["gate"]["golden"]["equal"] == 128
    shutil.rmtree(cli.home / "cache" / "serving" / "golden")
    with serve() as served:
        served.until_serving(2)
        assert served.status["gate"]["golden"] is None
        assert "golden unreachable" in served.said


@pytest.mark.parametrize("broken", first_fast(is_truncated, lacks_a_tensor, has_another_tokenizer))
def test_what_was_published_around_preflight_is_stopped_on_the_node(
    cli: Cli, serve: Serve, tmp_path: Path, broken: Callable[[Path], None]
) -> None:
    broken(tmp_path / "broken")
    assert cli.run("publish", tmp_path / "broken", "--name", "llama", code=3).stderr.startswith("error:")
    client = Client(store=cli.environment["PACKTRAIN_STORE"], cache_dir=str(tmp_path / "elsewhere"), actor="mallory")
    assert publish_around_preflight(client, tmp_path / "broken", "llama") == 3
    with serve() as served:
        served.until_serving(1)
        cli.run("promote", "llama/3", "--to", "production")
        served.until(lambda: served.status["bad"], "it to be marked")
        assert served.status["bad"][0]["version"] == 3 and "cannot be served" in served.status["bad"][0]["because"]
        assert served.ask().version == "llama/1"
    assert "cannot be served" in cli.run("gate", "llama/3", code=3).stderr
