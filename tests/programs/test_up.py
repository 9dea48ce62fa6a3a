"""`packtrain up`: the servers of the hybrid on one machine, and gone again."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import MLFLOW, Models
from tests.programs.conftest import Cli, environment

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@contextmanager
def up(cli: Cli) -> Iterator[dict[str, str]]:
    """The servers, until the block ends; what their users need in the environment."""
    process = subprocess.Popen(
        cli.command("up", "--json"), env=cli.environment, cwd=cli.home, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        told = json.loads(process.stdout.readline())
        lines = (cli.home / told["env"]).read_text().splitlines()
        yield dict(line.removeprefix("export ").split("=", 1) for line in lines)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130


def test_what_was_published_is_there_after_the_next_start(open_folder: Path, models: Models) -> None:
    cli = Cli(open_folder, environment(open_folder))  # as root, PostgreSQL runs as somebody else, who must get there
    (cli.home / ".engines").mkdir()
    (cli.home / ".engines" / "mlflow").symlink_to(MLFLOW)
    with up(cli) as needed:
        cli.environment |= needed
        cli.run("publish", models.first, "--name", "llama", "--alias", "production")
        assert (cli.home / ".packtrain" / "env").stat().st_mode & 0o777 == 0o600
    with up(cli) as needed:
        cli.environment |= needed
        assert [entry["aliases"] for entry in cli.json("models")] == [["production"]]
        assert "failure" not in cli.out("doctor")
        cli.run("publish", models.second, "--name", "llama", "--alias", "production")
    assert "cannot be reached" in cli.run("models", code=7).stderr
