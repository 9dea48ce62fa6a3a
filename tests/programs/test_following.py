"""`packtrain serve NAME@alias` with a stand-in for vLLM: real processes, real requests, and what can go wrong."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from packtrain.serving.processes import living
from packtrain.testing.ports import free_ports
from packtrain.testing.proxy import relay
from packtrain.testing.servers import S3Server
from tests.conftest import Models, first_fast
from tests.programs.conftest import PROGRAM, Cli
from tests.programs.nodes import (
    FAST,
    Serve,
    answers_of,
    event_of,
    promote,
    publish_broken,
    release,
    serving,
    settings,
)
from tests.serving.load import Answer, Load
from tests.serving.node import is_held, node


@pytest.fixture
def cli(tmp_path: Path, models: Models) -> Cli:
    cli = Cli(tmp_path, settings(tmp_path))
    release(cli, models)
    return cli


@pytest.fixture
def serve(cli: Cli) -> Serve:
    return serving(cli)


@pytest.mark.parametrize("strategy", first_fast("blue-green", "replace"))
def test_switches_forward_and_back_under_load(cli: Cli, serve: Serve, models: Models, strategy: str) -> None:
    with serve("--strategy", strategy, "--watch-window", "0.5") as served:
        served.until_serving(1)
        with Load(served.port, "llama") as load:
            for number in (2, 1, 2, 1):
                promote(cli, number)
                served.until_serving(number)
                served.until_answers(load, number)
        load.check(answers_of(models))
        status = served.status
        assert status["strategy"]["name"] == strategy
        assert (status["without_service_seconds"] > 0) == (strategy == "replace")
        said = served.get("/metrics")[1]
        assert f'packtrain_switches_total{{strategy="{strategy}"}} 4.0' in said
        assert 'outcome="failed"' not in said and 'outcome="broken"' not in said
        ended = [line for line in said.splitlines() if line.startswith("packtrain_requests_total")]
        assert f"packtrain_requests_accepted_total {sum(float(line.split()[-1]) for line in ended)}" in said


NAN = ({"answers": "nan"}, "no numbers")


@pytest.mark.parametrize(
    ("behaviour", "reason", "strategy"),
    [
        (*NAN, "blue-green"),
        pytest.param(*NAN, "replace", marks=pytest.mark.slow),
        pytest.param({"exit": 3}, "ended with exit code 3", "replace", marks=pytest.mark.slow),
        pytest.param({"answers": "empty"}, "answered with nothing", "blue-green", marks=pytest.mark.slow),
        pytest.param({"answers": "error"}, "answered 500: told to fail", "blue-green", marks=pytest.mark.slow),
    ],
    ids=["NaN", "NaN, replace", "does not start", "nothing", "errors"],
)
def test_a_broken_version_is_left(
    cli: Cli, serve: Serve, models: Models, strategy: str, behaviour: dict[str, Any], reason: str
) -> None:
    broken = publish_broken(cli, models, behaviour)
    with serve("--strategy", strategy) as served:
        served.until_serving(1)
        with Load(served.port, "llama", clients=2) as load:
            promote(cli, broken)
            served.until(lambda: served.status["bad"], "it to be marked")
            served.until_serving(1)
            served.until_answers(load, 1)
        load.check(answers_of(models))
        [bad] = served.status["bad"]
        assert bad["version"] == broken and reason in bad["because"]
        assert "packtrain_rollback_duration_seconds_count 1.0" in served.get("/metrics")[1]
        served.until(lambda: event_of(cli, "node.went_back"), "the event")
        event = event_of(cli, "node.went_back")
        assert (event["version"], event["to"], event["alias"]) == (broken, 1, "production")


@pytest.mark.slow
def test_what_is_bad_is_not_tried_again_until_it_is_promoted_anew(cli: Cli, serve: Serve, models: Models) -> None:
    broken = publish_broken(cli, models, {"answers": "nan"})
    with serve() as served:
        served.until_serving(1)
        promote(cli, broken)
        served.until(lambda: served.status["bad"], "it to be marked")
    with serve() as again:
        again.until_serving(1)
        assert again.status["bad"][0]["version"] == broken
        promote(cli, 2)
        again.until_serving(2)

        def tried() -> bool:
            return f"starting: version={broken}" in again.said.rpartition("following: ")[2]

        assert not tried()
        promote(cli, broken)
        again.until(tried, "another chance")


def test_a_version_that_dies_in_the_watch_window_is_left_at_once(cli: Cli, serve: Serve, models: Models) -> None:
    dying = publish_broken(cli, models, {"lives": 4})  # the gate asks two things
    with serve("--strategy", "blue-green") as served:
        served.until_serving(1)
        promote(cli, dying)
        served.until_serving(dying)
        for _ in range(2):
            assert served.ask().version == f"llama/{dying}"
        last = served.ask(tokens=40, stream=True)  # half way into it the engine dies
        assert last.version == f"llama/{dying}"
        assert "broke off" in last.problem
        assert 0 < len(last.text.split(" ")) < 40
        served.until_serving(1)
        assert served.ask().version == "llama/1"
        assert served.said.count("starting: version=1") == 1  # it stood by: no start
        said = served.get("/metrics")[1]
        for metric in ("rollbacks_total", "rollback_duration_seconds_count", "switch_duration_seconds_count"):
            assert f"packtrain_{metric} 1.0" in said
        assert "was ended by SIGKILL" in served.status["bad"][0]["because"]


@pytest.mark.slow
def test_a_version_that_fails_its_clients_is_left(cli: Cli, serve: Serve, models: Models) -> None:
    """Past the gate: only real requests show it."""
    dying = publish_broken(cli, models, {"fails_after": 2})
    with serve("--error-limit", "20%") as served:
        served.until_serving(1)
        promote(cli, dying)
        served.until_serving(dying)
        for _ in range(20):
            assert served.ask().status == 500
        served.until_serving(1)
        assert "20 of 20 requests failed" in served.status["bad"][0]["because"]
        assert served.ask().version == "llama/1"


@pytest.mark.slow
def test_a_version_that_is_slow_to_begin_is_left(cli: Cli, serve: Serve, models: Models) -> None:
    slow = publish_broken(cli, models, {"thinks": 5})
    with serve(*FAST, "--watch-window", "60", "--latency-limit", "4") as served:
        served.until_serving(1)
        promote(cli, slow)
        served.until_serving(slow)
        with Load(served.port, "llama", clients=20, tokens=(4, 8)):
            served.until_serving(1)
        assert "of the answers began after" in served.status["bad"][0]["because"]
        assert served.ask(stream=True).version == "llama/1"


@pytest.mark.slow
def test_what_served_last_stays_held_also_by_a_supervisor_that_starts_anew(
    cli: Cli, serve: Serve, models: Models
) -> None:
    assert publish_broken(cli, models, {}) == 3  # not at all

    def held() -> set[int]:
        locks = cli.home / "cache" / "locks"
        digests = {n: cli.json("show", f"llama/{n}")["digest"].removeprefix("sha256:") for n in (1, 2, 3)}
        return {n for n, digest in digests.items() if (locks / digest).exists() and is_held(locks / digest)}

    with serve(*FAST) as served:
        served.until_said("proved: version=1")
        promote(cli, 2)
        served.until_said("proved: version=2")
        served.until(lambda: held() == {1, 2}, "both to be held")
    assert held() == set()
    with serve(*FAST) as again:
        again.until_serving(2)
        again.until(lambda: held() == {1, 2}, "both to be held")
        promote(cli, 3)
        again.until_said("proved: version=3")
        again.until(lambda: held() == {2, 3}, "the last two to be held")


@pytest.mark.slow
def test_an_engine_that_crashes_is_started_again_and_nobody_notices(cli: Cli, serve: Serve, models: Models) -> None:
    with serve(*FAST) as served:
        served.until_said("proved: version=1")
        with Load(served.port, "llama", tokens=(4, 8)) as load:
            served.until(lambda: len(load.answers) > 10, "answers")
            os.killpg(served.engine(), signal.SIGKILL)
            served.until_said("serving again: version=1")
            seen = len(load.answers)
            served.until(lambda: len(load.answers) > seen + 10, "answers")
        for answer in load.problems():  # only streams that had begun, and each was told
            assert answer.streamed and answer.text and "broke off" in answer.problem
        assert served.status["bad"] == []


def test_sigterm_drains_and_leaves_nothing(serve: Serve, models: Models, tmp_path: Path) -> None:
    streaming = tmp_path / "streaming"
    with serve(STUB_VLLM_STREAMING=str(streaming)) as served:
        served.until_serving(1)
        groups = served.engines
        streaming.touch()  # from now on no stream comes to its end
        answers: list[Answer] = []
        asking = threading.Thread(target=lambda: answers.append(served.ask(tokens=60, stream=True)))
        asking.start()
        served.until(lambda: served.status["requests"]["in_flight"], "the request")
        served.process.send_signal(signal.SIGTERM)
        served.until(lambda: served.get("/readyz")[0] == 503, "the drain")
        assert served.ask().status == 503
        streaming.unlink()
        asking.join()
        assert served.process.wait(60) == 0
        [answer] = answers
        assert answer.problem == ""
        assert answers_of(models)(answer)
        assert not any(map(living, groups))


@pytest.mark.slow
def test_a_drain_has_a_deadline(serve: Serve) -> None:
    with serve("--drain", "0.2", STUB_VLLM_PACE="5") as served:
        served.until_serving(1)
        answers: list[Answer] = []
        asking = threading.Thread(target=lambda: answers.append(served.ask(tokens=60, stream=True)))
        asking.start()
        served.until(lambda: served.status["requests"]["in_flight"], "the request")
        assert served.stop() == 0
        asking.join()
        assert "longer than" in answers[0].problem


@pytest.mark.slow
def test_ctrl_c_twice_does_not_wait(serve: Serve) -> None:
    with serve("--drain", "1000", STUB_VLLM_PACE="5", STUB_VLLM_STUBBORN_CHILD="1") as served:
        served.until_serving(1)
        [group] = served.engines
        asking = threading.Thread(target=served.ask, kwargs={"tokens": 60, "stream": True})
        asking.start()
        served.until(lambda: served.status["requests"]["in_flight"], "the request")
        served.process.send_signal(signal.SIGINT)
        served.until_said("stopping: signal=SIGINT")
        assert served.stop(signal.SIGINT) == 0
        asking.join()
        assert not living(group)


@pytest.mark.slow
def test_what_a_killed_supervisor_leaves_is_ended_by_the_next(serve: Serve) -> None:
    with serve(STUB_VLLM_STUBBORN_CHILD="1") as served:
        served.until_serving(1)
        [group] = served.engines
        served.process.kill()
        served.process.wait()
        assert living(group)  # its engine does not hear
    with serve() as again:
        again.until_serving(1)
        assert not living(group)
        assert str(group) in again.said.partition("ended engines of a killed supervisor")[2].splitlines()[0]


@pytest.mark.slow
def test_without_the_store_what_serves_keeps_serving(cli: Cli, models: Models, s3: S3Server, tmp_path: Path) -> None:
    with relay(s3.endpoint) as wire:
        cli.environment |= {
            **s3.environment,
            "AWS_ENDPOINT_URL": wire.endpoint,
            "PACKTRAIN_STORE": f"{s3.url}/following/{tmp_path.name}",
        }
        for model in (models.first, models.second):
            cli.run("publish", model, "--name", "llama")
        promote(cli, 1)
        with node([str(PROGRAM)], cli.environment, cli.home, *FAST) as served:
            served.until_said("proved: version=1")
            with wire.refusing():
                served.until(lambda: not served.status["registry"]["reachable"], "it to notice")
                assert served.status["registry"]["unreachable_since"]
                assert served.ask().version == "llama/1"
                assert served.get("/readyz")[0] == 200
            served.until(lambda: served.status["registry"]["reachable"], "it to notice")
        promote(cli, 2)
        with wire.refusing(), node([str(PROGRAM)], cli.environment, cli.home, *FAST) as again:
            again.until_serving(1)  # what it last saw, and has
            assert again.ask().version == "llama/1"


@pytest.mark.slow
def test_without_the_mount_of_a_shared_volume(cli: Cli, serve: Serve) -> None:
    """An empty folder is where the store was."""
    store, elsewhere = cli.home / "store", cli.home / "elsewhere"

    def unmount() -> None:
        store.rename(elsewhere)
        store.mkdir()

    def mount() -> None:
        store.rmdir()
        elsewhere.rename(store)

    with serve(*FAST) as served:
        served.until_said("proved: version=1")
        unmount()
        served.until(lambda: not served.status["registry"]["reachable"], "it to notice")
        assert "the store is not there" in served.status["registry"]["because"]
        assert served.ask().version == "llama/1"
        mount()
        served.until(lambda: served.status["registry"]["reachable"], "it to notice")
        promote(cli, 2)
        served.until_said("proved: version=2")
    unmount()
    with serve(*FAST) as again:
        again.until_serving(2)
        assert again.ask().version == "llama/2"
        mount()
        again.until(lambda: again.status["registry"]["reachable"], "it to notice")


@pytest.mark.slow
def test_a_version_for_which_there_is_no_room(cli: Cli, serve: Serve, models: Models) -> None:
    size = sum(path.stat().st_size for path in models.first.iterdir())
    with serve(PACKTRAIN_CACHE_QUOTA=f"{size * 9 // 8}B", PACKTRAIN_CACHE_FREE="0%") as served:
        served.until_serving(1)
        promote(cli, 2)
        served.until(lambda: served.status["failing"], "it to fail")
        assert "llama/2" in served.status["failing"][0]["because"]
        assert served.ask().version == "llama/1"
        assert served.status["bad"] == []  # it is no fault of the version


@pytest.mark.slow
def test_a_flapping_alias(cli: Cli, serve: Serve, models: Models) -> None:
    with serve("--strategy", "blue-green", "--watch-window", "0.5") as served:
        served.until_serving(1)
        with Load(served.port, "llama", clients=2) as load:
            for number in (2, 1, 2, 1, 2, 1, 2):
                promote(cli, number)
            served.until_serving(2, alone=True)
        load.check(answers_of(models))


@pytest.mark.slow
def test_rollback_reaches_the_node(cli: Cli, serve: Serve) -> None:
    with serve() as served:
        served.until_serving(1)
        promote(cli, 2)
        served.until_serving(2)
        cli.run("rollback", "llama")
        served.until_serving(1)
        assert served.ask().version == "llama/1"


@pytest.mark.slow
def test_the_key_and_what_is_said_without_it(serve: Serve) -> None:
    with serve(vllm=("--api-key", "sesame")) as served:
        served.until(lambda: served.get("/readyz")[0] == 200, "it to serve")
        assert served.ask().status == 401
        assert served.get("/status")[0] == 401
        with closing(http.client.HTTPConnection("127.0.0.1", served.port)) as connection:
            connection.request("GET", "/v1/models", headers={"Authorization": "Bearer sesame"})
            [model] = json.load(connection.getresponse())["data"]
        assert (model["id"], model["packtrain"]["version"]) == ("llama", 1)


@pytest.mark.slow
def test_json_lines(cli: Cli, serve: Serve) -> None:
    with serve("--json") as served:
        served.until_serving(1)
    ours = [line for line in served.said.splitlines() if line.startswith("{")]
    events = [json.loads(line)["event"] for line in ours]
    assert [each for each in events if each != "note"] == [
        "named", "following", "here", "strategy", "starting", "healthy", "gate_passed", "ready", "stopping", "draining",
        "engine_ended", "stopped",
    ]  # fmt: skip


@pytest.mark.parametrize("refused", ["--uds", "--ssl-keyfile"])
def test_what_leaves_no_place_for_the_proxy(cli: Cli, refused: str) -> None:
    done = cli.run("serve", "llama@production", "--", refused, "x", code=2)
    assert "no port for the proxy" in done.stderr


def test_an_alias_that_is_not_set(cli: Cli) -> None:
    assert "has no alias 'staging'" in cli.run("serve", "llama@staging", code=4).stderr


def test_status_and_what(cli: Cli, serve: Serve, models: Models) -> None:
    assert cli.json("status") == []
    with serve(vllm=("--api-key", "sesame")) as served:
        served.until(lambda: served.get("/readyz")[0] == 200, "it to serve")
        url = f"http://127.0.0.1:{served.port}"
        [here] = cli.json("status")  # on its own node it is asked without the key
        assert (here["url"], here["serving"]["version"], here["pid"]) == (url, 1, served.process.pid)
        assert cli.run("status", url, code=3).stderr.startswith(f"error: {url} wants an API key")
        assert "version 1 serves" in cli.out("status", url, "--api-key", "sesame")
        found = cli.json("what", f"{url}/v1", "--api-key", "sesame")
        assert (found["name"], found["version"], found["by"]) == ("llama", 1, "its headers")
        assert found["digest"] == found["registered"]["digest"]
        assert found["promotion"]["details"]["to"] == 1
        assert all(check["holds"] for check in found["checks"])
        elsewhere = Cli(cli.home, {**cli.environment, "PACKTRAIN_STORE": str(cli.home / "other")})
        elsewhere.run("publish", models.second, "--name", "llama")  # another llama/1
        wrong = elsewhere.run("what", url, "--api-key", "sesame", code=6)
        assert "it does not hold that: its digest is" in wrong.stderr
        document = json.loads(elsewhere.run("what", url, "--api-key", "sesame", "--json", code=6).stdout)  # one
        assert not all(check["holds"] for check in document["checks"])
    assert cli.run("what", url, code=7).stderr.startswith(f"error: {url} cannot be reached")


def answers(port: int) -> bool:
    try:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
    except OSError:
        return False


@pytest.mark.slow
def test_what_one_vllm_serves_is_said_by_its_answers(cli: Cli) -> None:
    [port] = free_ports(1)
    process = subprocess.Popen(
        cli.command("serve", "llama/2", "--", "--host", "127.0.0.1", "--port", str(port)), env=cli.environment
    )
    try:
        deadline = time.monotonic() + 60
        while not answers(port):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        found = cli.json("what", f"localhost:{port}")
        assert (found["version"], found["by"], found["promotion"]) == (2, "an answer's fingerprint", None)
        assert found["registered"]["digest"].startswith(found["digest"])
        assert "has no /status" in cli.run("status", f"localhost:{port}", code=4).stderr
    finally:
        process.terminate()
        process.wait()
