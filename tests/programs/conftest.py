"""`packtrain` as its users meet it: a process in an environment of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from packtrain.testing.ports import free_port
from tests.conftest import Models

PROGRAM = Path(sys.executable).parent / "packtrain"
TRACEBACK = re.compile(r"Traceback|File \".*\", line \d+|internal error")


@dataclass
class Engine:
    """``models`` is what it answers for /v1/models; ``said`` what its stderr had, all of it when it has ended."""

    process: subprocess.Popen[str]
    models: Any = None
    said: str = ""


@dataclass
class Cli:
    """Runs commands, and holds every one of them to what all promise: no traceback, and a result on stdout alone."""

    home: Path
    environment: dict[str, str] = field(default_factory=dict)

    def command(self, *arguments: str | Path) -> list[str]:
        return [str(PROGRAM), *map(str, arguments)]

    def run(self, *arguments: str | Path, code: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": self.home, **options}
        done = subprocess.run(
            self.command(*arguments), env=self.environment, text=True, check=False, timeout=300, **options
        )
        assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
        assert not TRACEBACK.search(f"{done.stdout}{done.stderr}"), done.stderr
        return done

    def out(self, *arguments: str | Path) -> str:
        return self.run(*arguments).stdout

    def json(self, *arguments: str | Path, code: int = 0) -> Any:
        done = self.run(*arguments, "--json", code=code)
        for line in done.stderr.splitlines():
            assert json.loads(line)["event"] in ("begin", "progress", "end", "note", "error")
        return json.loads(done.stdout)

    @contextmanager
    def engine(self, *arguments: str | Path, vllm: Path, stop: signal.Signals = signal.SIGTERM) -> Iterator[Engine]:
        """`packtrain serve` or `run`, from when its engine answers until it is told to end, and does so in peace."""
        port = free_port()
        process = subprocess.Popen(
            self.command(*arguments, "--vllm", vllm, "--", "--port", str(port), "--host", "127.0.0.1"),
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        engine = Engine(process)
        try:
            engine.models = _ask_when_ready(f"http://127.0.0.1:{port}/v1/models", process)
            yield engine
        finally:
            process.send_signal(stop)
            engine.said += process.communicate(timeout=300)[1]
        assert process.returncode == 0, engine.said


def _ask_when_ready(url: str, process: subprocess.Popen[str]) -> Any:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5) as reply:
                return json.load(reply)
        except OSError:
            time.sleep(0.05)
    return pytest.fail(f"no answer; the command ended with {process.poll()}")


def environment(home: Path) -> dict[str, str]:
    """Without the settings of whoever runs the tests."""
    clean = {
        k: v for k, v in os.environ.items() if not k.startswith(("PACKTRAIN_", "XDG_", "AWS_", "GOOGLE_", "PYTHON"))
    }
    return {
        **clean,
        "HOME": str(home),
        "TMPDIR": str(home),
        "PACKTRAIN_STORE": (home / "store").as_uri(),
        "PACKTRAIN_CACHE_DIR": str(home / "cache"),
        "PACKTRAIN_ACTOR": "alice",
    }


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path, environment(tmp_path))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, models: Models) -> Cli:
    """A store with llama/1 and llama/2 (production, after 1); tests that share it do not change it."""
    home = tmp_path_factory.mktemp("published")
    cli = Cli(home, environment(home))
    cli.run("publish", models.first, "--name", "llama", "--alias", "production")
    cli.run("publish", models.second, "--name", "llama", "--alias", "production")
    return cli
