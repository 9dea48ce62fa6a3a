"""An alias is followed with real vLLM: under load, no request is lost, and each answer is its version's own."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from packtrain.testing.tinymodels import write_adapter, write_base, write_merged, write_training_yaml
from tests.engines.conftest import READY_WITHIN, SHAPE, Cli
from tests.serving.load import PROMPTS, Answer, Load, ask
from tests.serving.node import Node, node

pytestmark = pytest.mark.engine

LONGEST = 40  # tokens of an answer
PAUSE = 1.0  # seconds: clients that never wait leave a second engine no core to start on


@dataclass(frozen=True)
class Released:
    """llama/1 and llama/2 in a store, and what each says to every prompt when it is asked alone."""

    cli: Cli
    store: Path
    greedy: Mapping[str, Mapping[str, tuple[int, ...]]]

    def is_right(self, answer: Answer) -> bool:
        return answer.ids == self.greedy[answer.version][answer.prompt][: answer.tokens]


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory, engine_environment: dict[str, str]) -> Released:
    home = tmp_path_factory.mktemp("released")
    base = write_base(home / "base", seed=1)
    cli = Cli(
        {
            **engine_environment,
            "PACKTRAIN_STORE": (home / "store").as_uri(),
            "PACKTRAIN_CACHE_DIR": str(home / "cache"),
            "PACKTRAIN_ACTOR": "alice",
        }
    )
    greedy = {}
    for number in (1, 2):
        merged = write_merged(home / f"merged-{number}", base, seed=number)
        training = write_adapter(home / f"training-{number}", base, seed=number, loss=0.5 / number)
        config = write_training_yaml(home / f"{number}.yaml", base=base, output=training, learning_rate=0.001 * number)
        lineage = ("--training-config", str(config), "--training-dir", str(training))
        assert cli("publish", str(merged), "--name", "llama", *lineage)["version"] == number
        with cli.serving(f"llama/{number}") as url:
            port = int(url.rpartition(":")[2])
            alone = {prompt: ask(port, "llama", prompt, LONGEST, stream=False) for prompt in PROMPTS}
        greedy[f"llama/{number}"] = {prompt: answer.ids for prompt, answer in alone.items()}
    assert all(len(ids) == LONGEST for answers in greedy.values() for ids in answers.values())
    assert all(greedy["llama/1"][prompt] != greedy["llama/2"][prompt] for prompt in PROMPTS)
    cli("promote", "llama/1", "--to", "production", "--reason", "the first")
    return Released(cli, home / "store", greedy)


@pytest.mark.parametrize(
    ("strategy", "becomes"), [("auto", "blue-green"), ("replace", "replace")], ids=["blue-green", "replace"]
)
def test_switches_forward_and_back_under_load(released: Released, tmp_path: Path, strategy: str, becomes: str) -> None:
    cli = released.cli
    with following(cli, tmp_path, "--strategy", strategy) as served:
        served.until_serving(1, within=READY_WITHIN)
        with Load(served.port, "llama", clients=4, tokens=(4, LONGEST), pause=PAUSE) as load:
            for number, *command in FORWARD_AND_BACK:
                cli(*command)
                served.until_serving(number, within=READY_WITHIN)
                served.until_answers(load, number)
        load.check(released.is_right)
        print(f"{len(load.answers)} answers, {len(load.of('llama/1'))} of them by llama/1")
        status = served.status
        assert status["strategy"]["name"] == becomes
        assert (status["without_service_seconds"] > 0) == (becomes == "replace")
        assert status["bad"] == []

        found = cli("what", f"http://127.0.0.1:{served.port}")
        first = cli("show", "llama/1")
        moved = [event for event in cli("history", "llama") if event["action"] == "alias.rolled_back"][-1]
        assert (found["version"], found["digest"], found["by"]) == (1, first["digest"], "its headers")
        assert found["promotion"]["sequence"] == moved["sequence"] == status["serving"]["event"]
        assert found["lineage"]["hyperparameters"]["learning_rate"] == 0.001
        assert found["lineage"] == first["lineage"]
        assert all(check["holds"] for check in found["checks"])


def test_what_breaks_under_load_is_answered_or_said(released: Released, tmp_path: Path) -> None:
    """The engine is killed, the store is away, the alias moves ten times at once, the supervisor is killed."""
    cli = released.cli
    store = released.store
    away = store.with_name("away")
    with ExitStack() as stack:
        with following(cli, tmp_path, "--strategy", "replace") as killed:
            killed.until_serving(1, within=READY_WITHIN)
            load = Load(killed.port, "llama", clients=3, tokens=(4, LONGEST), pause=PAUSE)
            asking = stack.enter_context(ExitStack())
            asking.enter_context(load)
            killed.until_answers(load, 1)

            os.killpg(killed.engine(), signal.SIGKILL)
            killed.until(lambda: killed.status["serving"] is None, "it to notice")
            killed.until_serving(1, within=READY_WITHIN)

            store.rename(away)
            killed.until(lambda: not killed.status["registry"]["reachable"], "it to notice")
            killed.until_answers(load, 1)
            away.rename(store)

            for number in (2, 1) * 5 + (2,):
                cli("promote", f"llama/{number}", "--to", "production")
            killed.until_serving(2, within=READY_WITHIN)
            killed.until_answers(load, 2)
            killed.process.kill()
            killed.process.wait()
        served = stack.enter_context(following(cli, tmp_path, "--strategy", "replace", port=killed.port))
        served.until_serving(2, within=READY_WITHIN)
        served.until_answers(load, 2)
        asking.close()
        assert len(served.engines) == 1
        assert served.status["bad"] == []
    assert all(released.is_right(answer) for answer in load.answers if not answer.problem)
    said = ("the engine broke off", "could not answer", "vanished: ", "the stream ended without [DONE]")
    assert [each for each in load.problems() if not any(reason in each.problem for reason in said)] == []
    print(f"{len(load.answers)} answers, {len(load.problems())} of them broken off")


FORWARD_AND_BACK = (
    (2, "promote", "llama/2", "--to", "production"),
    (1, "rollback", "llama"),
) * 2


def following(cli: Cli, home: Path, *options: str, port: int | None = None) -> AbstractContextManager[Node]:
    """`packtrain serve llama@production` on a node of its own."""
    environment = {**cli.environment, "PACKTRAIN_CACHE_DIR": str(home / "cache"), "PACKTRAIN_ACTOR": "node"}
    return node(["packtrain"], environment, home, "--poll", "0.5", *options, vllm=SHAPE, port=port)
