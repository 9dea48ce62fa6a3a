"""An alias is followed with real vLLM: under load, no request is lost, and each answer is its version's own."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from packtrain import Client
from packtrain.registry.mlflow import Mlflow
from packtrain.testing.mlflow_servers import MlflowServer
from packtrain.testing.servers import S3Server
from packtrain.testing.tinymodels import write_adapter, write_base, write_merged, write_training_yaml
from tests.engines.conftest import READY_WITHIN, SHAPE, Cli, engine, load_weights
from tests.serving.disk import fill, room_for_four
from tests.serving.load import PROMPTS, Answer, Load, ask

pytestmark = pytest.mark.engine

LONGEST = 40  # tokens of an answer
PAUSE = 1.0  # seconds: clients that never wait leave a second engine no core to start on
EXPLICIT = ("the engine broke off", "could not answer", "vanished: ", "the stream ended without [DONE]")


@dataclass(frozen=True)
class Released:
    """llama/1 (production) and llama/2 in a store, and what each says to every prompt when it is asked alone."""

    cli: Cli
    store: Path
    merged: Mapping[int, Path]
    greedy: Mapping[str, Mapping[str, tuple[int, ...]]]

    def is_right(self, answer: Answer) -> bool:
        return answer.ids == self.greedy[answer.version][answer.prompt][: answer.tokens]

    def check(self, load: Load) -> None:
        """Every answer is right; what was not answered has said so."""
        assert all(self.is_right(answer) for answer in load.answers if not answer.problem)
        assert [each for each in load.problems() if not any(reason in each.problem for reason in EXPLICIT)] == []
        print(f"{len(load.answers)} answers, {len(load.problems())} of them broken off")


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
    merged = {number: write_merged(home / f"merged-{number}", base, seed=number) for number in (1, 2)}
    for number, folder in merged.items():
        training = write_adapter(home / f"training-{number}", base, seed=number, loss=0.5 / number)
        config = write_training_yaml(home / f"{number}.yaml", base=base, output=training, learning_rate=0.001 * number)
        lineage = ("--training-config", str(config), "--training-dir", str(training))
        assert cli("publish", str(folder), "--name", "llama", *lineage)["version"] == number
    greedy = {}
    with engine(engine_environment, merged[1], *SHAPE) as alone:
        for number, folder in merged.items():
            load_weights(alone, folder)
            answers = (
                ask(alone.endpoint.port, "llama", each, LONGEST, stream=False, key=alone.key) for each in PROMPTS
            )
            greedy[f"llama/{number}"] = {answer.prompt: answer.ids for answer in answers}
    assert all(len(ids) == LONGEST for answers in greedy.values() for ids in answers.values())
    assert all(greedy["llama/1"][prompt] != greedy["llama/2"][prompt] for prompt in PROMPTS)
    cli("promote", "llama/1", "--to", "production", "--reason", "the first")
    return Released(cli, home / "store", merged, greedy)


@pytest.fixture
def hybrid(released: Released, s3: S3Server, mlflow_postgresql: MlflowServer) -> Cli:
    """The same two versions in S3 and MLflow."""
    cli = Cli(
        {
            **released.cli.environment,
            **s3.environment,
            **mlflow_postgresql.environment,
            "PACKTRAIN_STORE": f"{s3.url}/following",
            "PACKTRAIN_REGISTRY": mlflow_postgresql.url,
        }
    )
    for folder in released.merged.values():
        cli("publish", str(folder), "--name", "llama")
    cli("promote", "llama/1", "--to", "production")
    return cli


@pytest.mark.parametrize(
    ("strategy", "becomes", "times"),
    [("auto", "blue-green", 2), ("replace", "replace", 1)],
    ids=["blue-green", "replace"],
)
def test_switches_forward_and_back_under_load(
    released: Released, tmp_path: Path, strategy: str, becomes: str, times: int
) -> None:
    cli = released.cli
    with cli.following(tmp_path, "--strategy", strategy) as served:
        served.until_serving(1, within=READY_WITHIN)
        with Load(served.port, "llama", clients=4, tokens=(4, LONGEST), pause=PAUSE) as load:
            for number, *command in FORWARD_AND_BACK * times:
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


def test_what_is_killed_under_load_is_answered_or_said(
    released: Released, hybrid: Cli, s3: S3Server, mlflow_postgresql: MlflowServer, tmp_path: Path
) -> None:
    """The engine, MLflow, the bucket's server and the supervisor, in turn."""
    assert s3.process is not None
    with ExitStack() as stack:
        with hybrid.following(tmp_path, "--strategy", "replace") as killed:
            killed.until_serving(1, within=READY_WITHIN)
            load = Load(killed.port, "llama", clients=3, tokens=(4, LONGEST), pause=PAUSE)
            asking = stack.enter_context(ExitStack())
            asking.enter_context(load)
            killed.until_answers(load, 1)

            os.killpg(killed.engine(), signal.SIGKILL)
            killed.until(lambda: killed.status["serving"] is None, "it to notice")
            killed.until_serving(1, within=READY_WITHIN)

            mlflow_postgresql.process.kill()
            try:
                killed.until_answers(load, 1)
                hybrid("promote", "llama/2", "--to", "production")
                killed.until_serving(2, within=READY_WITHIN)
                killed.until_answers(load, 2)
            finally:
                mlflow_postgresql.process.start()

            s3.process.kill()
            try:
                killed.until(lambda: not killed.status["registry"]["reachable"], "it to notice")
                killed.until_answers(load, 2)
            finally:
                s3.process.start()
            killed.until(lambda: killed.status["registry"]["reachable"], "it to see again")

            killed.process.kill()
            killed.process.wait()
        served = stack.enter_context(hybrid.following(tmp_path, "--strategy", "replace", port=killed.port))
        served.until_serving(2, within=READY_WITHIN)
        served.until_answers(load, 2)
        asking.close()
        assert len(served.engines) == 1
        assert served.status["bad"] == []
    released.check(load)
    hybrid("show", "llama@production")  # who comes next tells MLflow what it missed
    shown = Mlflow(mlflow_postgresql.url).model("llama")
    assert shown is not None and shown.aliases == {"production": 2}


def test_an_alias_that_moves_ten_times_at_once(released: Released, tmp_path: Path) -> None:
    releaser = Client(store=released.store.as_uri(), cache_dir=str(tmp_path / "elsewhere"), actor="alice")
    with released.cli.following(tmp_path, "--strategy", "replace", "--poll", "0.05") as served:
        served.until_serving(1, within=READY_WITHIN)
        with Load(served.port, "llama", clients=3, tokens=(4, LONGEST), pause=PAUSE) as load:
            served.until_answers(load, 1)
            for number in (2, 1) * 5 + (2,):
                releaser.promote(f"llama/{number}", to="production")
            served.until_serving(2, alone=True, within=READY_WITHIN)
            served.until_answers(load, 2)
        load.check(released.is_right)
        assert served.status["bad"] == []
    releaser.rollback("llama", to=1)


@pytest.mark.root
def test_the_disk_of_the_cache_is_full(released: Released, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    try:
        cli = Cli({**released.cli.environment, "PACKTRAIN_CACHE_FREE": "0%"})
        with room_for_four(released.merged[1], cache), cli.following(tmp_path, "--strategy", "replace") as served:
            served.until_serving(1, within=READY_WITHIN)
            with Load(served.port, "llama", clients=3, tokens=(4, LONGEST), pause=PAUSE) as load:
                served.until_answers(load, 1)
                filler = fill(cache)
                released.cli("promote", "llama/2", "--to", "production")
                served.until(lambda: served.status["failing"], "it to fail")
                assert "llama/2" in served.status["failing"][0]["because"]
                served.until_answers(load, 1)
                filler.unlink()
                served.until_serving(2, within=READY_WITHIN)
                served.until_answers(load, 2)
            load.check(released.is_right)
            assert served.status["bad"] == []
    finally:
        released.cli("rollback", "llama", "--to", "1")


FORWARD_AND_BACK = (
    (2, "promote", "llama/2", "--to", "production"),
    (1, "rollback", "llama"),
)
