"""`packtrain webhook`: what is moved in MLflow is dealt with at once."""

from __future__ import annotations

import json
import signal
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from packtrain.flows.waking import Waiting
from packtrain.model.webhook import DELIVERY, SIGNATURE, TIME, sign
from packtrain.registry.mlflow import Mlflow
from packtrain.testing.fake_mlflow import Fake
from packtrain.testing.mlflow_servers import MlflowServer
from packtrain.testing.servers import S3Server
from packtrain.wiring import SystemClock
from tests.conftest import Models
from tests.programs.conftest import Cli, environment

SECRET = "a secret of two"


def machine(home: Path, s3: S3Server, url: str) -> Cli:
    (home / "secret").write_text(f"{SECRET}\n")
    store = f"{s3.url}/{uuid.uuid4().hex}"
    more = {"PACKTRAIN_STORE": store, "PACKTRAIN_REGISTRY": url}
    return Cli(home, {**environment(home), **s3.environment, **more})


@contextmanager
def listening(cli: Cli) -> Iterator[str]:
    """The receiver, until the block ends; where it listens."""
    command = cli.command("webhook", "--secret-file", "secret", "--port", "0", "--json")
    process = subprocess.Popen(
        command, env=cli.environment, cwd=cli.home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.send_signal(signal.SIGTERM)
        _, cli.told = process.communicate(timeout=60)  # type: ignore[attr-defined]
    assert process.returncode == 0


def deliver(url: str, name: str, secret: str = SECRET) -> int:
    body = json.dumps({"entity": "model_version_alias", "action": "created", "data": {"name": name}}).encode()
    sent, now = uuid.uuid4().hex, str(int(time.time()))
    headers = {DELIVERY: sent, TIME: now, SIGNATURE: sign(secret.encode(), sent, now, body)}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_delivery_wakes_and_records(tmp_path: Path, s3_environment: S3Server, fake: Fake, models: Models) -> None:
    cli = machine(tmp_path, s3_environment, fake.url)
    cli.run("publish", models.first, "--name", "llama", "--alias", "production")
    cli.run("policy", "llama", "--protect", "gold")
    waiting = Waiting(tmp_path / "cache", "llama", SystemClock())
    with listening(cli) as url:
        with urllib.request.urlopen(f"{url}healthz", timeout=30) as healthy:
            assert healthy.status == 200
        fake.models["llama"].aliases["gold"] = 1
        assert deliver(url, "llama", "guessed") == 401
        assert not waiting.wait(0)
        assert deliver(url, "llama") == 202
        assert waiting.wait(60)
        assert fake.models["llama"].aliases == {"production": 1}
        assert not waiting.wait(0)
    assert "refused a delivery" in cli.told  # type: ignore[attr-defined]
    assert "news of llama: @production at 1" in cli.told  # type: ignore[attr-defined]
    (tmp_path / "secret").write_text("\n")
    assert "secret is empty" in cli.run("webhook", "--secret-file", "secret", code=2).stderr
    cli.run("webhook", "--secret-file", "nothing", code=8)


@pytest.mark.engine
@pytest.mark.slow
def test_the_real_server_is_heard(
    tmp_path: Path, s3_environment: S3Server, mlflow_postgresql: MlflowServer, models: Models
) -> None:
    cli = machine(tmp_path, s3_environment, mlflow_postgresql.url)
    name = f"heard-{uuid.uuid4().hex[:8]}"
    cli.run("publish", models.first, "--name", name, "--alias", "production")
    cli.run("publish", models.second, "--name", name)
    client = Mlflow(mlflow_postgresql.url, environ={})
    with listening(cli) as url:
        client._post(
            "webhooks",
            {
                "name": name,
                "url": url,
                "events": [{"entity": "MODEL_VERSION_ALIAS", "action": "CREATED"}],
                "secret": SECRET,
                "status": "ACTIVE",
            },
        )
        client.set_alias(name, "production", 2)

        def heard() -> bool:
            return any(event["action"] == "alias.adopted" for event in history(cli, name))

        until(heard)


def history(cli: Cli, name: str) -> list[dict[str, str]]:
    """From the bucket alone: MLflow is not asked, so nobody but the receiver can have recorded anything."""
    cli.environment["PACKTRAIN_REGISTRY"], url = "store", cli.environment["PACKTRAIN_REGISTRY"]
    try:
        found: list[dict[str, str]] = cli.json("history", name)
        return found
    finally:
        cli.environment["PACKTRAIN_REGISTRY"] = url
