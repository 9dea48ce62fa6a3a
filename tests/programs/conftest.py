"""`packtrain` as its users meet it: a process in an environment of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Models

PROGRAM = Path(sys.executable).parent / "packtrain"
TRACEBACK = re.compile(r"Traceback|File \".*\", line \d+|internal error")


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
