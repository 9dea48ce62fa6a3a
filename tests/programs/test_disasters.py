"""What breaks under load while an alias is followed: requests are answered or explicitly failed, the last word is the
alias's, and nothing leaks (`tests.serving.node` looks for processes and locks)."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from packtrain import Client
from packtrain.testing import fake_mlflow
from packtrain.testing.fake_mlflow import Fake
from packtrain.testing.proxy import Relay, relay
from packtrain.testing.servers import S3Server
from tests.conftest import Models
from tests.programs.conftest import Cli
from tests.programs.nodes import FAST, Serve, answers_of, event_of, promote, publish_broken, release, serving, settings
from tests.serving.disk import fill, room_for_four
from tests.serving.load import Answer, Load
from tests.serving.node import Node

pytestmark = pytest.mark.slow


@pytest.fixture
def wire(s3: S3Server) -> Iterator[Relay]:
    with relay(s3.endpoint) as wire:
        yield wire


@pytest.fixture
def cli(tmp_path: Path, models: Models, s3: S3Server, wire: Relay, fake: Fake) -> Cli:
    """A store in S3 and MLflow, both of which can be away."""
    cli = Cli(
        tmp_path,
        {
            **settings(tmp_path),
            **s3.environment,
            "AWS_ENDPOINT_URL": wire.endpoint,
            "PACKTRAIN_STORE": f"{s3.url}/{uuid.uuid4().hex}",
            "PACKTRAIN_REGISTRY": "mlflow",
            "MLFLOW_TRACKING_URI": fake.url,
        },
    )
    release(cli, models)
    return cli


@pytest.fixture
def serve(cli: Cli) -> Serve:
    return serving(cli)


def begun(cli: Cli) -> bool:
    """Whether a download is not finished."""
    return any((cli.home / "cache" / "partial").iterdir())


def check(load: Load, models: Models, *allowed: str) -> list[Answer]:
    """What was answered is right; what was not says one of these things. Returns that."""
    is_right = answers_of(models)
    failed = load.problems()
    assert all(is_right(answer) for answer in load.answers if not answer.problem)
    assert [answer for answer in failed if not any(reason in answer.problem for reason in allowed)] == []
    return failed


def test_the_engine_is_killed_again_and_again(cli: Cli, serve: Serve, models: Models) -> None:
    with serve(*FAST) as served:
        served.until_said("proved: version=1")
        with Load(served.port, "llama") as load:
            for _ in range(3):
                served.until_answers(load, 1)
                os.killpg(served.engine(), signal.SIGKILL)
                served.until(lambda: served.status["serving"] is None, "it to notice")
                served.until_serving(1)
            promote(cli, 2)
            served.until_answers(load, 2)
        # A request that killed one engine is asked once more, and no more than that.
        for answer in check(load, models, "the engine broke off", "llama/1 could not answer"):
            assert answer.version == "llama/1"
        accounts(served)


def accounts(served: Node) -> None:
    """Every request that was accepted has ended in one of the ways that there are."""
    said = served.get("/metrics")[1]
    ended = [line for line in said.splitlines() if line.startswith("packtrain_requests_total")]
    assert f"packtrain_requests_accepted_total {sum(float(line.split()[-1]) for line in ended)}" in said


def test_the_supervisor_is_killed_in_the_middle_of_a_fetch(cli: Cli, serve: Serve, models: Models) -> None:
    cli.run("pull", "llama/1")
    with ExitStack() as stack:
        with serve(*FAST, PACKTRAIN_PULL_BANDWIDTH="128KiB") as killed:
            killed.until_said("proved: version=1")
            load = Load(killed.port, "llama")
            asking = stack.enter_context(ExitStack())
            asking.enter_context(load)
            killed.until_answers(load, 1)
            promote(cli, 2)
            killed.until(lambda: begun(cli), "the fetch to begin")
            killed.process.kill()
            killed.process.wait()
        served = stack.enter_context(serve(*FAST, port=killed.port))
        served.until_answers(load, 2)
        served.until_said("proved: version=2")
        asking.close()
    check(load, models, "vanished: ", "the stream ended without [DONE]")
    assert not begun(cli)


def test_the_registry_is_away(cli: Cli, serve: Serve, models: Models, fake: Fake) -> None:
    """MLflow shows the aliases; the ledger counts, and goes on without it."""
    with serve(*FAST) as served:
        served.until_serving(1)
        with Load(served.port, "llama") as load:
            served.until_answers(load, 1)
            fake.faults = lambda _call, _count: fake_mlflow.DOWN
            served.until_answers(load, 1)
            promote(cli, 2)
            served.until_answers(load, 2)
            fake.faults = lambda _call, _count: None
            cli.run("rollback", "llama")
            served.until_answers(load, 1)
        assert check(load, models) == []
        assert fake.models["llama"].aliases == {"production": 1}
        accounts(served)


def test_the_store_is_away_in_the_middle_of_a_fetch(cli: Cli, serve: Serve, models: Models, wire: Relay) -> None:
    cli.run("pull", "llama/1")
    with serve(*FAST, PACKTRAIN_PULL_BANDWIDTH="128KiB") as served:
        served.until_serving(1)
        with Load(served.port, "llama") as load:
            promote(cli, 2)
            served.until(lambda: begun(cli), "the fetch to begin")
            with wire.refusing():
                served.until(lambda: not served.status["registry"]["reachable"], "it to notice")
                served.until_answers(load, 1)
            served.until_answers(load, 2)
        assert check(load, models) == []
        assert served.status["bad"] == []
        assert served.status["registry"]["reachable"]
        accounts(served)
    assert not begun(cli)


def test_what_went_back_without_a_ledger_is_posted_later(cli: Cli, serve: Serve, models: Models, wire: Relay) -> None:
    """Even by the supervisor after the one that saw it."""
    broken = publish_broken(cli, models, {"loading": 3, "answers": "nan"})
    with serve(*FAST) as served:
        served.until_said("proved: version=1")
        promote(cli, broken)
        served.until_said(f"starting: version={broken}")
        with wire.refusing():
            served.until(lambda: served.status["bad"], "it to be marked")
            assert not served.status["registry"]["reachable"]
            assert served.ask().version == "llama/1"
            assert served.stop() == 0
    assert event_of(cli, "node.went_back") is None
    with serve(*FAST) as again:
        again.until(lambda: event_of(cli, "node.went_back"), "the event")
        event = event_of(cli, "node.went_back")
        assert (event["version"], event["to"], event["alias"]) == (broken, 1, "production")
        again.until_serving(1)
        again.until_said("posted: ")
        assert f"starting: version={broken}" not in again.said.rpartition("following: ")[2]
    assert [e["action"] for e in cli.json("history", "llama")].count("node.went_back") == 1


def test_a_node_is_held_by_hand_while_the_store_is_away(cli: Cli, serve: Serve, wire: Relay) -> None:
    assert "Say so with --local" in cli.run("hold", "llama/1", code=2).stderr
    with serve(*FAST) as served:
        served.until_said("proved: version=1")
        promote(cli, 2)
        served.until_said("proved: version=2")
        with wire.refusing():
            served.until(lambda: not served.status["registry"]["reachable"], "it to notice")
            held = cli.run("hold", "llama/1", "--local", "--reason", "2 answers in riddles")
            assert held.stdout == "this node is held at version 1, whatever @production names\n"
            assert "the registry cannot be reached" in held.stderr
            served.until_serving(1)
            assert served.ask().version == "llama/1"
            hold = served.status["hold"]
            assert (hold["version"], hold["by"], hold["reason"]) == (1, "alice", "2 answers in riddles")
            cli.run("rollback", "llama", code=7)  # an alias never moves without its event
        served.until(lambda: event_of(cli, "node.held"), "the event")
        event = event_of(cli, "node.held")
        assert (event["version"], event["alias"], event["by"]) == (1, "production", "alice")
    with serve(*FAST) as again:
        again.until_serving(1)
        assert again.status["named"]["version"] == 2
        assert cli.out("hold", "llama/1", "--local", "--release") == "this node follows llama@production again\n"
        again.until_serving(2)
        assert again.status["hold"] is None
        again.until(lambda: "posted: action=node.held version=None" in again.said, "the event")
        assert not cli.json("hold", "llama", "--local", "--release")["changed"]


@pytest.mark.root
def test_the_disk_of_the_cache_is_full(cli: Cli, serve: Serve, models: Models) -> None:
    cache = cli.home / "cache"
    with room_for_four(models.first, cache), serve(*FAST, PACKTRAIN_CACHE_FREE="0%") as served:
        served.until_serving(1)
        with Load(served.port, "llama") as load:
            filler = fill(cache)
            promote(cli, 2)
            served.until(lambda: served.status["failing"], "it to fail")
            assert "llama/2" in served.status["failing"][0]["because"]
            served.until_answers(load, 1)
            os.killpg(served.engine(), signal.SIGKILL)  # it is started again without any room for notes
            served.until(lambda: served.status["serving"] is None, "it to notice")
            served.until_answers(load, 1)
            filler.unlink()
            served.until_answers(load, 2)
        check(load, models, "the engine broke off")
        assert served.status["bad"] == []
        served.until_said("proved: version=2")


def test_an_alias_that_moves_ten_times_in_a_second(
    tmp_path: Path, cli: Cli, serve: Serve, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.environment |= {"PACKTRAIN_STORE": (tmp_path / "store").as_uri(), "PACKTRAIN_REGISTRY": "store"}
    release(cli, models)
    for name, value in cli.environment.items():
        monkeypatch.setenv(name, value)
    releaser = Client()
    with serve("--strategy", "blue-green", "--poll", "0.05", "--watch-window", "0.5") as served:
        served.until_serving(1)
        with Load(served.port, "llama") as load:
            for _ in range(3):
                for number in (2, 1) * 5:
                    releaser.promote(f"llama/{number}", to="production")
                served.until_serving(1)
                releaser.promote("llama/2", to="production")
                served.until_serving(2, alone=True)
            served.until_answers(load, 2)
        assert check(load, models) == []
        assert len(served.engines) == 1
        accounts(served)
