"""Garbage collection among real processes: publishes, archives, promotions and collections race for one store, on
machines whose clocks disagree by a month, and die by SIGKILL at random moments. No version loses a byte."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from packtrain.model.version import version_prefix
from packtrain.ports import Store
from packtrain.storage import open_store
from packtrain.testing.servers import S3Server
from tests.conftest import Models
from tests.programs.conftest import Cli, environment
from tests.programs.sessions import AHEAD, LONGEST, SEED, TIMES, Machine, Session
from tests.programs.test_sessions import registry_of, require_cache_sound

ROUNDS = {"directory": 35, "s3": 25}
DEADLY = 0.3  # how many of the commands are killed


class Collecting(Session):
    """One registered model and its adapter; the last machine is a month ahead, so that to it every lease is over."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.machines[-1].environment = {**self.machines[-1].environment, AHEAD: "30"}
        for name in ("one", "two"):
            shutil.copytree(self.models.first if name == "one" else self.models.second, self.home / name)

    def _add_name(self) -> None:
        """There is one."""

    def _choose(self, machine: Machine) -> tuple[str | Path, ...]:
        version, oldest, adapter = self.one_of("llama"), self.one_of("llama", oldest=True), self.one_of("adapter")
        publish = ("publish", self.home / self.chance.choice(("one", "two")), "--name", "llama")
        gc = ("gc", "--grace", "0s")
        if machine is self.machines[-1] and self.chance.random() < 0.7:
            return gc
        commands: list[tuple[str | Path, ...]] = [
            publish,
            publish,
            (*publish, "--force"),
            ("publish", self.models.adapter, "--name", "adapter", "--base", version),
            ("archive", oldest),
            ("archive", oldest),
            ("archive", version),
            ("archive", adapter),
            ("promote", version, "--to", "production"),
            ("rollback", "llama"),
            ("pull", "llama"),
            ("verify", "--bytes"),
            ("gc", "--dry-run"),
            gc,
        ]
        return self.chance.choice(commands)

    def round(self) -> None:
        """Every machine runs a command; some of them die, the others come to their end."""
        self.rounds += 1
        commands = [machine.start(*self._choose(machine)) for machine in self.machines]
        for command in commands:
            if self.chance.random() < DEADLY:
                time.sleep(self.chance.uniform(0, 2 * LONGEST))
                command.process.kill()
        for command in commands:
            if command.end() < 0:
                self.killed += 1
            else:
                self.ended += 1

    def one_of(self, name: str, *, oldest: bool = False) -> str:
        """A version that is not archived, or the first if there is none."""
        state = registry_of(open_store(self.store), self.home).read(name).state
        live = [number for number, version in sorted(state.versions.items()) if not version.archived] or [1]
        return f"{name}/{live[0] if oldest else self.chance.choice(live)}"


def publish_for_nobody(session: Collecting) -> None:
    """A version of bytes that no other version has and no adapter needs, archived."""
    (session.home / "two" / "README.md").write_text("# Nobody's\n")
    session.machines[0].run("publish", session.home / "two", "--name", "llama")
    session.machines[0].run("archive", "llama")


def require_only_garbage_is_gone(store: Store, home: Path, run: Callable[..., object]) -> None:
    """Every version that is not archived is whole, with its base; and nothing else is left."""
    registry = registry_of(store, home)
    states = [registry.read(name).state for name in ("llama", "adapter")]
    live = [version for state in states for version in state.versions.values() if not version.archived]
    named = {version.prefix for version in live}
    named |= {version_prefix(version.base.name, version.base.digest) for version in live if version.base}
    assert any(version.collected for state in states for version in state.versions.values())
    run("verify", "--bytes")
    assert {"/".join([*info.key.split("/")[:3], ""]) for info in store.list("models/")} == named
    for state in states:
        assert not {version.prefix for version in state.versions.values() if version.collected} & named


@pytest.mark.slow
@pytest.mark.parametrize("kind", ROUNDS)
def test_no_race_of_processes_loses_a_byte(
    kind: str, tmp_path: Path, models: Models, request: pytest.FixtureRequest
) -> None:
    base, url = environment(tmp_path), (tmp_path / "store").as_uri()
    if kind == "s3":
        server: S3Server = request.getfixturevalue("s3_environment")
        base, url = {**base, **server.environment}, f"{server.url}/collecting"
    print(f"PACKTRAIN_TEST_SEED={SEED}")
    session = Collecting(tmp_path, url, models, base, SEED)
    store = open_store(url)
    first = session.machines[0]
    first.run("publish", session.home / "one", "--name", "llama", "--alias", "production")
    while session.rounds < ROUNDS[kind] * TIMES:
        session.round()
    assert session.ended and session.killed
    for machine in session.machines:
        require_cache_sound(machine)
    first.run("publish", session.home / "one", "--name", "llama", "--force", "--alias", "production")
    first.run("verify", "--bytes")
    publish_for_nobody(session)
    first.environment = {**first.environment, AHEAD: "400"}
    first.run("gc", "--grace", "0s")
    require_only_garbage_is_gone(store, tmp_path, first.run)
    assert not store.multipart or not list(store.multipart.open_uploads("models/"))


def test_the_command(cli: Cli, models: Models) -> None:
    cli.run("publish", models.first, "--name", "llama")
    assert cli.out("gc") == "0 B freed\n"
    assert cli.json("gc", "--dry-run") == {"dry_run": True, "size": 0, "garbage": [], "kept": [], "not_touched": []}
    cli.run("publish", models.second, "--name", "llama")
    cli.run("archive", "llama/1")
    (cli.home / "store/models/mine.txt").write_text("not Packtrain's")
    shown = cli.out("gc")
    assert "KEPT" in shown and "NOT TOUCHED" in shown and shown.endswith("\n0 B freed\n")
    found = cli.json("gc", "--grace", "0s")
    (gone,) = found["garbage"]
    assert gone["what"] == "version" and found["size"] == gone["size"] > 0
    assert found["not_touched"] == [{"where": "models/mine.txt", "why": "nothing of Packtrain's has such a name"}]
    assert (cli.home / "store/models/mine.txt").read_text() == "not Packtrain's"
    assert cli.json("models")[1]["collected"] is True
    assert "gave up 1 manifest as garbage" in cli.out("history", "llama")
    for bad in ("soon", "-1d", "7"):
        assert "-> Write a number and its unit: 7d" in cli.run("gc", "--grace", bad, code=2).stderr
