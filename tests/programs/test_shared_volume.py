"""Two nodes with one volume between them: each a process with a mount, a home and a memory of its own."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from packtrain.testing.ports import free_port
from packtrain.testing.stub_vllm import write_executable
from tests.conftest import Models
from tests.programs.conftest import Cli, environment

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.fixture
def nodes(volume: list[Path], tmp_path: Path) -> list[Cli]:
    """Two nodes of one store, which use it in place."""
    name = uuid.uuid4().hex
    made = []
    for number, mount in enumerate(volume, start=1):
        home = tmp_path / f"node-{number}"
        home.mkdir()
        settings = {
            "PACKTRAIN_STORE": (mount / name).as_uri(),
            "PACKTRAIN_PULL": "in-place",
            "PACKTRAIN_ACTOR": f"node-{number}",
        }
        made.append(Cli(home, environment(home) | settings))
    return made


def store(node: Cli) -> Path:
    return Path(node.environment["PACKTRAIN_STORE"].removeprefix("file://"))


def leases(node: Cli) -> list[dict[str, Any]]:
    return [json.loads(path.read_bytes()) for path in (store(node) / "leases").rglob("*.json")]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 3000
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def link(node: Cli) -> Path:
    return (store(node) / "serve/llama/by-alias/production").resolve()


def directory(node: Cli, number: int) -> Path:
    digest = node.json("show", f"llama/{number}")["digest"]
    return store(node) / "models/llama" / digest.removeprefix("sha256:")


def test_what_one_node_publishes_and_promotes_the_other_has_at_once(nodes: list[Cli], models: Models) -> None:
    trainer, server = nodes
    trainer.run("publish", models.first, "--name", "llama", "--alias", "production")
    snapshot = server.json("pull", "llama@production")
    assert (snapshot["version"], snapshot["fetched"], snapshot["in_place"]) == (1, 0, True)
    assert Path(snapshot["path"]) == directory(server, 1)
    for number in (2, 3, 4):  # the server has looked for each of these events before it was there
        trainer.run("publish", models.second, "--name", "llama", "--alias", "production", "--force")
        assert server.json("show", "llama@production")["version"] == number
        trainer, server = server, trainer
    assert server.json("verify", "llama", "--bytes")[0]["versions"] == 4


def test_links_lead_on_both_nodes_to_what_was_promoted_last(nodes: list[Cli], models: Models) -> None:
    here, there = nodes
    here.run("publish", models.first, "--name", "llama", "--alias", "production")
    wait_for(lambda: link(there) == directory(there, 1))
    here.run("publish", models.second, "--name", "llama")
    there.run("promote", "llama/2", "--to", "production")
    assert link(there) == directory(there, 2)
    wait_for(lambda: link(here) == directory(here, 2))  # the kernel may remember the old link for a moment
    here.run("rollback", "llama")
    wait_for(lambda: link(there) == directory(there, 1))


@contextmanager
def served(node: Cli, reference: str, home: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A stand-in for vLLM that the node serves a version with, once it is ready: the process, and where it answers."""
    port = free_port()
    vllm = write_executable(home / "vllm")
    command = node.command("serve", reference, "--vllm", vllm, "--", "--host", "127.0.0.1", "--port", str(port))
    log = home / "serve.log"
    with log.open("w") as said:
        process = subprocess.Popen(command, env=node.environment, stdout=said, stderr=said, text=True)
    try:
        wait_for(lambda: process.poll() is not None or " ready" in log.read_text())
        assert process.poll() is None, log.read_text()
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=300) == 0, log.read_text()


def answer(url: str) -> Any:
    body = json.dumps({"model": "llama", "prompt": "hello", "max_tokens": 4}).encode()
    request = urllib.request.Request(f"{url}/v1/completions", data=body, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as reply:
        return json.load(reply)


def test_an_engine_serves_in_place_under_a_lease_that_the_other_node_sees(
    nodes: list[Cli], models: Models, tmp_path: Path
) -> None:
    trainer, server = nodes
    trainer.run("publish", models.first, "--name", "llama", "--alias", "production")
    with served(server, "llama/1", tmp_path) as (process, url):
        path = directory(server, 1)
        assert f" from {path}\n" in (tmp_path / "serve.log").read_text()
        assert "not checked" in (tmp_path / "serve.log").read_text()
        [lease] = leases(trainer)
        assert lease["holder"] == {"host": socket.gethostname(), "pid": process.pid, "user": "node-2"}
        before = answer(url)
        assert before["system_fingerprint"].startswith("llama/1@")
        trainer.run("publish", models.second, "--name", "llama", "--alias", "production")
        assert answer(url)["choices"] == before["choices"]  # it serves what it was started on
    wait_for(lambda: leases(trainer) == [])
    with served(server, "llama@production", tmp_path) as (_, url):
        assert answer(url)["system_fingerprint"].startswith("llama/2@")
    assert not (server.home / "cache/snapshots").exists()


def at_once(nodes: list[Cli], commands: list[list[Any]]) -> list[str]:
    """What each of the commands, run on every node at the same time, says. All must succeed."""
    started = [
        subprocess.Popen(
            node.command(*command), env=node.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for command in commands
        for node in nodes
    ]
    said = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0] * len(started), "\n".join(said)
    return said


def test_nodes_that_publish_and_promote_at_once_agree(nodes: list[Cli], models: Models) -> None:
    publish = [
        ["publish", model, "--name", "llama", "--alias", "production"] for model in (models.first, models.second)
    ]
    promote = [["promote", f"llama/{number}", "--to", "production"] for number in (1, 2)]
    for commands in (publish, promote):
        for said in at_once(nodes, commands):
            assert "warning: the links" not in said
    here, there = nodes
    versions = here.json("models", "llama")
    assert sorted(version["version"] for version in versions) == [1, 2]  # the same bytes are one version
    assert versions == there.json("models", "llama")
    assert here.json("history", "llama") == there.json("history", "llama")
    current = here.json("show", "llama@production")["version"]
    for node in nodes:
        wait_for(lambda node=node: link(node) == directory(node, current))  # type: ignore[misc]
        assert node.json("verify", "llama", "--bytes")[0]["versions"] == 2
    assert not list((store(here) / ".packtrain-tmp").iterdir())


def test_a_node_that_mounts_the_volume_read_only_serves_without_a_lease(
    nodes: list[Cli], models: Models, tmp_path: Path
) -> None:
    trainer, server = nodes
    trainer.run("publish", models.first, "--name", "llama")
    share = tmp_path / "read-only"
    share.mkdir()
    subprocess.run(["mount", "--bind", str(store(server)), str(share)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(share)], check=True)
        server.environment["PACKTRAIN_STORE"] = share.as_uri()
        pulled = server.run("pull", "llama", "--verify")
        assert Path(pulled.stdout.strip()) == directory(server, 1)
        assert "warning: llama/1 is used without a lease" in pulled.stderr
        with served(server, "llama", tmp_path) as (_, url):
            assert answer(url)["system_fingerprint"].startswith("llama/1@")
        refused = server.run("promote", "llama/1", "--to", "production", code=8)
        assert "read-only" in refused.stderr
    finally:
        subprocess.run(["umount", str(share)], check=True)
    assert leases(trainer) == []
