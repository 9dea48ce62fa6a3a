"""`adopt`, `watch` and `publish --repair` as their users meet them."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from packtrain.storage import open_store
from packtrain.testing.servers import S3Server
from tests.conftest import Models
from tests.programs.conftest import Cli, environment

QUICK = ("--interval", "0.05")


def events(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def put(url: str, directory: Path) -> None:
    store = open_store(url)
    for path in directory.iterdir():
        store.upload(path.name, [path.read_bytes()], path.stat().st_size)


def on_s3(home: Path, s3: S3Server) -> tuple[Cli, str]:
    url = f"{s3.url}/{uuid.uuid4().hex}"
    return Cli(home, environment(home) | s3.environment | {"PACKTRAIN_STORE": f"{url}/registry"}), url


def test_adopt_a_folder(cli: Cli, models: Models) -> None:
    for source in (models.first, models.first.as_uri()):
        assert cli.json("adopt", source, "--name", "llama", "--dry-run")["version"] is None
    adopted = cli.json("adopt", models.first, "--name", "llama", "--alias", "staging")
    assert (adopted["version"], adopted["created"], adopted["alias"]["to"]) == (1, True, 1)
    assert cli.json("publish", models.first, "--name", "llama")["created"] is False
    done = cli.run("adopt", models.adapter, "--name", "adapter")
    assert "next: packtrain promote adapter/1" in done.stderr


def test_adopt_a_prefix(tmp_path: Path, models: Models, s3_environment: S3Server) -> None:
    cli, url = on_s3(tmp_path, s3_environment)
    put(f"{url}/team/v1", models.first)
    done = cli.run("adopt", f"{url}/team/v1", "--name", "llama")
    assert "lineage is unknown" in done.stderr and done.stdout.startswith("llama/1: merged")
    assert cli.json("publish", models.first, "--name", "llama")["created"] is False


def test_what_adopt_cannot_find(cli: Cli, tmp_path: Path, s3_environment: S3Server) -> None:
    on_bucket, url = on_s3(tmp_path, s3_environment)
    assert "does not exist" in cli.run("adopt", "nowhere", "--name", "llama", code=4).stderr
    assert "is not a store" in cli.run("adopt", "hf://org/v1", "--name", "llama", code=2).stderr
    assert "there is nothing at" in on_bucket.run("adopt", f"{url}/nothing", "--name", "llama", code=4).stderr


def test_repair(cli: Cli, models: Models) -> None:
    cli.run("publish", models.first, "--name", "llama")
    damaged = Path(cli.out("url", "llama").strip().removeprefix("file://")) / "config.json"
    damaged.chmod(0o644)
    damaged.write_bytes(damaged.read_bytes().replace(b"llama", b"ilama", 1))
    error = cli.run("verify", "--bytes", code=6).stderr
    assert "packtrain publish DIR --name llama --repair" in error
    assert cli.run("publish", models.second, "--name", "llama", "--repair", code=3).stdout == ""
    assert "mended config.json" in cli.out("publish", models.first, "--name", "llama", "--repair")
    (repaired,) = cli.json("publish", models.first, "--name", "llama", "--repair")
    assert (repaired["version"], repaired["mended"], repaired["lineage"]) == (1, [], True)
    cli.run("verify", "--bytes")
    for option in ("--force", "--dry-run", "--allow-code", "--alias=x"):
        cli.run("publish", models.first, "--name", "llama", "--repair", option, code=2)


def test_watch_tells_an_event_a_line(cli: Cli, models: Models) -> None:
    folder = cli.home / "exports"
    shutil.copytree(models.first, folder / "good")
    shutil.copytree(models.second, folder / "bad")
    (folder / "bad" / "tokenizer.json").unlink()
    told = events(cli.run("watch", folder, "--name", "llama", "--once", "--remove-source", "--json", *QUICK))
    assert sorted((each["event"], Path(each["path"]).name) for each in told) == [
        ("found", "bad"), ("found", "good"), ("published", "good"), ("refused", "bad"), ("removed", "good"),
    ]  # fmt: skip
    by_event = {each["event"]: each for each in told}
    assert by_event["published"]["version"]["version"] == 1
    assert any(finding["code"] == "no-tokenizer" for finding in by_event["refused"]["findings"])
    assert cli.run("watch", folder, "--name", "llama", "--once", *QUICK).stdout == ""
    assert sorted(path.name for path in folder.iterdir()) == ["bad"]


def test_watch_speaks_to_people(cli: Cli, models: Models) -> None:
    folder = cli.home / "exports"
    shutil.copytree(models.second, folder / "bad")
    (folder / "bad" / "tokenizer.json").unlink()
    shown = cli.out("watch", folder, "--name", "llama", "--once", *QUICK)
    assert "found; it is published when it is finished" in shown
    assert "refuse no-tokenizer" in shown and "\n    -> " in shown
    for bad in (("--interval", "0"), ("--interval", "soon"), ("--alias", "latest")):
        cli.run("watch", folder, "--name", "llama", "--once", *bad, code=2)
    cli.run("watch", folder / "nowhere", "--name", "llama", code=4)
    cli.run("watch", folder, "--name", "llama", "--once", "--store", "file:///proc/nowhere", *QUICK)  # nothing to do


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_watch_is_ended_at_once(cli: Cli, number: signal.Signals, code: int) -> None:
    (cli.home / "exports").mkdir()
    process = subprocess.Popen(
        cli.command("watch", cli.home / "exports", "--name", "llama", "--interval", "600"),
        env=cli.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not list((cli.home / "cache").glob("watch/*.lock")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (code, "")
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("command", ["adopt", "watch"])
def test_killed_at_random_moments(tmp_path: Path, models: Models, s3_environment: S3Server, command: str) -> None:
    """A real process on a real bucket, killed again and again: nothing half is ever visible, and in the end it is
    there once, whole, and the next run leaves nothing behind."""
    chance = random.Random(7)
    cli, url = on_s3(tmp_path, s3_environment)
    put(f"{url}/team/v1", models.first)
    for number in range(5):
        name = f"llama-{number}"
        folder = tmp_path / name
        shutil.copytree(models.first, folder / "export")
        arguments: tuple[str | Path, ...] = ("adopt", f"{url}/team/v1", "--name", name)
        if command == "watch":
            arguments = ("watch", folder, "--name", name, "--once", "--remove-source", *QUICK)
        for _ in range(3):
            process = subprocess.Popen(
                cli.command(*arguments), env=cli.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            time.sleep(chance.uniform(0.15, 1.0))
            process.kill()
            process.wait()
            if any(each["name"] == name for each in cli.json("models")):
                cli.run("verify", name, "--bytes")
            else:
                assert (folder / "export" / "config.json").exists()
        cli.run(*arguments)
        (shown,) = [each for each in cli.json("models") if each["name"] == name]
        assert shown["version"] == 1
        cli.run("verify", name, "--bytes")
        assert cli.json("publish", models.first, "--name", name)["created"] is False
        assert (folder / "export").exists() == (command == "adopt")
    scratch = tmp_path / "cache" / "scratch"
    assert not scratch.exists() or [path.name for path in scratch.iterdir()] == ["lock"]
