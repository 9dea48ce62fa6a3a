"""The whole way on real input: LLaMA-Factory trains and merges, S3 keeps, a node pulls, vLLM answers.

Every answer of vLLM is compared, token by token, with what transformers says on the version's own directory.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from packtrain.testing.servers import S3Server
from tests.engines.conftest import Cli, Trained, ask, reference_answers

pytestmark = pytest.mark.engine

QUESTIONS = ("Who are you?", "What do you carry?", "Hello!")


def test_trained_published_promoted_served_and_rolled_back(
    tmp_path: Path, s3: S3Server, trained: Trained, engine_environment: dict[str, str]
) -> None:
    train = Cli(
        {
            **engine_environment,
            **s3.environment,
            "PACKTRAIN_STORE": f"{s3.url}/straight-line",
            "PACKTRAIN_CACHE_DIR": str(tmp_path / "trainer"),
            "PACKTRAIN_ACTOR": "trainer",
        }
    )
    node = Cli({**train.environment, "PACKTRAIN_CACHE_DIR": str(tmp_path / "node"), "PACKTRAIN_ACTOR": "node"})
    answers = {}
    for number, version in enumerate(("v1", "v2"), start=1):
        lineage = ("--training-config", str(trained.training_yaml(version)))
        published = train("export", str(trained.merge_yaml(version)), "--name", "llama", *lineage)
        assert published["version"] == number
        train("promote", f"llama/{number}", "--to", "production", "--expect", str(number - 1), "--reason", version)
        snapshot = node("pull", "llama@production")
        assert snapshot["version"] == number
        answers[number] = reference_answers(engine_environment, Path(snapshot["path"]), QUESTIONS)
        require_answers(node, answers[number], f"llama/{number}@{snapshot['digest'].removeprefix('sha256:')[:12]}")
    assert answers[1] != answers[2]

    move = train("rollback", "llama", "--reason", "the first was better")
    assert (move["from"], move["to"]) == (2, 1)
    digest = train("show", "llama/1")["digest"].removeprefix("sha256:")
    require_answers(node, answers[1], f"llama/1@{digest[:12]}")

    newest, oldest = train("models")
    assert oldest["lineage"]["metrics"]["eval_accuracy"] == pytest.approx(1.0)
    lineage = newest["lineage"]
    assert [each["name"] for each in lineage["datasets"]] == ["v2-train"]
    assert lineage["export_tools"]["llamafactory"].startswith("0.9")
    assert {"transformers", "torch", "peft"} <= lineage["tools"].keys()
    assert lineage["base"]["payload"] and lineage["adapters"][0]["payload"]
    assert lineage["curves"]["loss"][-1][0] == lineage["curves"]["eval_loss"][-1][0] == lineage["steps"]
    assert lineage["contradictions"] == []
    assert [event["action"] for event in train("history", "llama") if event["action"].startswith("alias.")] == [
        "alias.promoted",
        "alias.promoted",
        "alias.rolled_back",
    ]
    assert train("verify", "--bytes")[0]["versions"] == 2


def require_answers(node: Cli, expected: list[list[int]], fingerprint: str) -> None:
    with node.serving("llama@production") as url:
        for question, tokens in zip(QUESTIONS, expected, strict=True):
            assert ask(url, "llama", question) == (tokens, fingerprint)


def test_an_adapter_is_served_on_its_published_base(
    tmp_path: Path, trained: Trained, engine_environment: dict[str, str]
) -> None:
    """On a shared directory: the base is found by its bytes, pulled with the adapter, and both answer."""
    cli = Cli(
        {
            **engine_environment,
            "PACKTRAIN_STORE": (tmp_path / "store").as_uri(),
            "PACKTRAIN_CACHE_DIR": str(tmp_path / "cache"),
        }
    )
    cli("publish", str(trained.base), "--name", "tiny-base")
    published = cli("publish", str(trained.adapter("v1")), "--name", "llama", "--alias", "production")
    assert published["kind"] == "adapter"
    base, adapter = Path(cli("pull", "tiny-base")["path"]), Path(cli("pull", "llama")["path"])
    with cli.serving("llama@production") as url:
        of_adapter = [ask(url, "llama", question)[0] for question in QUESTIONS]
        of_base = [ask(url, "tiny-base", question)[0] for question in QUESTIONS]
    assert of_adapter == reference_answers(engine_environment, base, QUESTIONS, adapter=adapter)
    assert of_base == reference_answers(engine_environment, base, QUESTIONS)
    assert of_adapter != of_base
