"""A day of several machines that share a store: commands at random, killed at random moments.

Each command is a process of its own (forked from a server that has imported what commands need, so that the moments
fall into the work and not into Python's start), and dies by SIGKILL.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from packtrain.errors import EXIT_CODES
from packtrain.testing.ports import free_ports
from packtrain.testing.stub_vllm import write_executable
from tests.conftest import Models

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["packtrain.client", "packtrain.cli.app", "packtrain.storage.objects", __name__])

SEED = int(os.environ.get("PACKTRAIN_TEST_SEED", "20"))
TIMES = float(os.environ.get("PACKTRAIN_TEST_TIMES", "1"))  # as many moments as usual
FRESH = 12  # rounds after which a new name is used, of which nothing is published yet
LONGEST = 0.2  # seconds between the kill of one machine's command and the next one's; longer on a busy machine
AHEAD = "PACKTRAIN_TEST_DAYS_AHEAD"  # of a machine whose clock is wrong, and trusted by its garbage collection
MARK = "PACKTRAIN_TEST_SESSION"  # in the environment of every process that a session starts

_BAD = re.compile(r"Traceback|File \".*\", line \d+|internal error|Exception ignored")


def run(arguments: Sequence[str], environment: Mapping[str, str], home: Path, said: Path) -> None:
    """What `packtrain` would do, in this process."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(home)
    os.setsid()  # an engine's supervisor ends its own group
    for descriptor in (1, 2):
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    from packtrain.cli import _run

    _set_clock(timedelta(days=float(environment.get(AHEAD, 0))))
    code = _run(list(arguments))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _set_clock(ahead: timedelta) -> None:
    """Of this process."""
    from packtrain import wiring
    from packtrain.flows import collect

    if ahead:
        now = wiring.SystemClock.now
        wiring.SystemClock.now = lambda clock: now(clock) + ahead  # type: ignore[method-assign]
        collect._earlier_of_both_clocks = lambda _, clock, __: clock.now()


@dataclass
class Command:
    """One that runs. ``said`` is the file of what it prints."""

    arguments: Sequence[str]
    process: ForkServerProcess
    said: Path

    def end(self) -> int:
        """The exit code, negative for a signal; what it said is held to what every command promises."""
        self.process.join()
        code = self.process.exitcode
        assert code is not None
        text = self.said.read_text(errors="replace") if self.said.exists() else ""
        told = f"packtrain {' '.join(self.arguments)} ended with {code}:\n{text}"
        assert not _BAD.search(text), told
        assert code < 0 or code in {0, *EXIT_CODES.values()}, told
        if code > 0:
            errors = [line for line in text.splitlines() if line.startswith("error: ")]
            assert len(errors) == 1, told
            assert "\n  -> " in text, f"nobody is told what to do: {told}"
        return code


@dataclass
class Machine:
    """Its cache, its memory, its folder of exports."""

    home: Path
    environment: Mapping[str, str]
    count: int = 0

    def start(self, *arguments: str | Path) -> Command:
        self.count += 1
        said = self.home / f"said-{self.count}.txt"
        words = [str(argument) for argument in arguments]
        process = CONTEXT.Process(target=run, args=(words, dict(self.environment), self.home, said))
        process.start()
        return Command(words, process, said)

    def run(self, *arguments: str | Path) -> None:
        """One that nobody kills, and that must succeed."""
        command = self.start(*arguments)
        assert command.end() == 0, f"packtrain {' '.join(command.arguments)}:\n{command.said.read_text()}"

    @property
    def cache(self) -> Path:
        return self.home / "cache"

    def place_of(self, version: str) -> Path:
        """A folder of the user's own for it."""
        return self.home / "places" / version.replace("/", "-")

    def exports_of(self, name: str) -> Path:
        """The folder that is watched for it."""
        folder = self.home / "exports" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder


@dataclass
class Session:
    """``machines`` over one store, which ``store`` (a URL) names. ``killed`` and ``ended`` count commands."""

    home: Path
    store: str
    models: Models
    base: Mapping[str, str]
    seed: int
    machines: list[Machine] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    rounds: int = 0
    killed: int = 0
    ended: int = 0
    longest: float = LONGEST

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.ports = free_ports(50)
        size = sum(path.stat().st_size for path in self.models.first.iterdir())
        vllm = write_executable(self.home / "vllm")
        for number in range(3):
            home = self.home / f"machine-{number}"
            (home / "places").mkdir(parents=True)
            environment = {
                **self.base,
                "HOME": str(home),
                "TMPDIR": str(home),
                "PACKTRAIN_STORE": self.store,
                "PACKTRAIN_CACHE_DIR": str(home / "cache"),
                "PACKTRAIN_CACHE_QUOTA": f"{3 * size}B",
                "PACKTRAIN_CACHE_FREE": "0%",
                "PACKTRAIN_VLLM": str(vllm),
                "PACKTRAIN_ACTOR": f"machine-{number}",
                MARK: str(home),
            }
            self.machines.append(Machine(home, environment))

    def round(self) -> None:
        """Every machine runs a command; none lives longer than a moment, but in one round of many.

        Such a round shows how long commands take here and now, so that the moments fall into their work.
        """
        if self.rounds % FRESH == 0:
            self._add_name()
        spared = self.rounds % FRESH == FRESH // 2
        self.rounds += 1
        commands = [machine.start(*self._choose(machine)) for machine in self.machines]
        began = time.monotonic()
        for command in commands:
            if spared and command.arguments[0] != "serve":  # which does not end by itself
                command.process.join()
            else:
                time.sleep(self.chance.uniform(0, self.longest))
                command.process.kill()
        if spared:
            self.longest = max(LONGEST, (time.monotonic() - began) / len(commands))
        for command in commands:
            if command.end() < 0:
                self.killed += 1
            else:
                self.ended += 1

    def models_of(self, name: str) -> tuple[Path, Path]:
        """Two models that no other name has."""
        return self.home / "models" / f"{name}-1", self.home / "models" / f"{name}-2"

    def _add_name(self) -> None:
        name = f"llama-{len(self.names)}"
        for source, target in zip((self.models.first, self.models.second), self.models_of(name), strict=True):
            shutil.copytree(source, target)
            (target / "README.md").write_text(f"# {target.name}\n")
        self.names.append(name)

    def _choose(self, machine: Machine) -> tuple[str | Path, ...]:
        chance, name = self.chance, self.chance.choice(self.names[-2:])
        model = chance.choice(self.models_of(name))
        version = f"{name}/{chance.choice((1, 1, 2))}"
        exports = machine.exports_of(name)
        which = chance.choice((name, version, f"{name}@production"))
        commands: tuple[tuple[str | Path, ...], ...] = (
            ("publish", model, "--name", name, "--alias", "production"),
            ("publish", model, "--name", name, "--repair"),
            ("adopt", model, "--name", name),
            ("watch", exports, "--name", name, "--once", "--remove-source", "--interval", "0.01"),
            ("pull", which),
            ("pull", which),
            ("pull", which, "--pin"),
            ("pull", version, "--to", machine.place_of(version)),
            ("cache", "unpin", which),
            ("cache", "unpin", which),
            ("cache", "rm", which),
            ("cache", "verify"),
            ("cache", "ls"),
            ("serve", which, "--", "--port", str(chance.choice(self.ports))),
            ("promote", version, "--to", "production"),
            ("rollback", name),
            ("verify", "--bytes"),
        )
        chosen = chance.choice(commands)
        if chosen[0] == "watch" and not (exports / model.name).exists():
            shutil.copytree(model, exports / model.name)
        return chosen


def alive(home: Path) -> list[str]:
    """The programs that processes of a session under ``home`` have become, and that live. Ours, which were forked,
    are not among them: the kernel shows the environment with which a program was started."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={home}".encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found
