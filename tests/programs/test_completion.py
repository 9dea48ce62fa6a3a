"""Completion, as shells ask for it: bash itself is driven at a terminal, zsh and fish where they are installed."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click
import pytest

from packtrain.cli import completing
from packtrain.cli.app import packtrain
from packtrain.model.ledger import State
from tests.programs.conftest import PROGRAM, Cli
from tests.programs.test_help import commands

WITHIN = 60.0  # seconds that a shell has for what it should do at once
PROMPT = "ready> "
KILL_LINE = "\x15"


class Terminal:
    """A shell at a terminal that somebody types on."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.shown = ""

    def type(self, keys: str) -> None:
        self.shown = ""
        os.write(self._descriptor, keys.encode())

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + WITHIN
        while text not in self.shown:
            assert time.monotonic() < deadline, f"{text!r} did not come: {self.shown!r}"
            if select.select([self._descriptor], [], [], 0.1)[0]:
                self.shown += os.read(self._descriptor, 4096).decode(errors="replace")

    def run(self, commands: str) -> None:
        """Types commands onto an empty line, and returns when the prompt is back."""
        self.type(f"{KILL_LINE}{commands}; echo do''ne\n")
        self.wait_for("done\r\n")
        self.wait_for(PROMPT)


@contextmanager
def shell(cli: Cli, *command: str) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env=cli.environment, cwd=cli.home, start_new_session=True
    )
    os.close(slave)
    try:
        yield Terminal(master)
    finally:
        process.kill()
        process.wait()
        os.close(master)


@pytest.fixture(scope="module")
def asked(published: Cli) -> Cli:
    """This machine has seen llama, with two versions; packtrain is on PATH."""
    published.environment |= {
        "PATH": f"{PROGRAM.parent}{os.pathsep}{os.environ['PATH']}",
        "PS1": PROMPT,
        "TERM": "dumb",
    }
    published.run("models")
    (published.home / "output").mkdir()
    (published.home / "other-yaml").mkdir()
    (published.home / "other.yaml").write_text("")
    return published


@pytest.fixture(scope="module")
def bash(asked: Cli) -> Iterator[Terminal]:
    with shell(asked, "bash", "--norc", "--noprofile", "-i") as terminal:
        terminal.run("bind 'set enable-bracketed-paste off'; bind 'set bell-style none'")
        terminal.run("source <(packtrain completion bash)")
        yield terminal


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("packtrain prom", "promote "),
        ("packtrain --regi", "--registry "),
        ("packtrain promote --rea", "--reason "),
        ("packtrain init --profile ob", "object "),
        ("packtrain completion z", "zsh "),
        ("packtrain cache ve", "verify "),
        ("packtrain show lla", "llama"),
        ("packtrain show llama@", "llama@production "),
        ("packtrain show llama@pr", "llama@production "),
        ("packtrain show 'llama@pr", "'llama@production' "),
        ("packtrain show llama/", "llama/"),
        ("true; PACKTRAIN_ACTOR=bob packtrain history lla", "llama "),
        ("packtrain promote llama/1 --to pro", "production "),
        ("packtrain rollback llama --alias pro", "production "),
        ("packtrain publish --name lla", "llama "),
        ("packtrain publish outp", "output/"),
        ("packtrain publish output --name x --training-config other.y", "other.yaml "),
        ("packtrain publish output --name x --training-dir oth", "other-yaml/"),
        ("packtrain publish output --name x --base outp", "output/"),
        ("packtrain --cache-dir outp", "output/"),
        ("packtrain export othe", "other"),
    ],
)
def test_bash_completes(bash: Terminal, typed: str, completed: str) -> None:
    bash.run("true")
    bash.type(typed + "\t")
    bash.wait_for(f"{typed.rpartition(' ')[0]} {completed}")


@pytest.mark.slow
def test_bash_offers_all_that_one_name_has(bash: Terminal) -> None:
    bash.run("true")
    bash.type("packtrain show lla\t\t\t")
    for each in ("llama@production", "llama/2", "llama/1"):
        bash.wait_for(each)


def candidates(cli: Cli, line: str, **environment: str) -> list[str]:
    """What the program answers to bash's script."""
    done = subprocess.run(
        [PROGRAM],
        env={**cli.environment, "COMP_WORDS": line, "_PACKTRAIN_COMPLETE": "bash_complete", **environment},
        cwd=cli.home,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_several_names_come_before_what_belongs_to_each(cli: Cli, published: Cli) -> None:
    cli.environment["PACKTRAIN_CACHE_DIR"] = str(cli.home / "cache")
    assert candidates(cli, "packtrain show ") == []  # nothing was seen here
    merged = published.json("show", "llama/1")["url"].removeprefix("file://")
    for name in ("llama", "llama-tiny"):
        cli.run("publish", merged, "--name", name)
    assert candidates(cli, "packtrain show lla") == ["plain,llama", "plain,llama-tiny"]
    assert candidates(cli, "packtrain show llama-") == ["plain,llama-tiny", "plain,llama-tiny/1"]
    assert candidates(cli, "packtrain show llama/") == ["plain,llama/1"]


@pytest.mark.parametrize(("name", "command"), commands(packtrain).items())
def test_every_path_and_every_name_is_completed(
    name: str, command: click.Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completing, "_seen", lambda _: [State("llama", trails={"production": (1,)})])
    offered = dict.fromkeys(("NAME", "REFERENCE", "ALIAS", "SNAPSHOT", "BASE", "BEFORE", "AFTER"), "plain")
    offered |= {"DIR": "dir", "SOURCE": "dir", "YAML": "file", "FILE": "file", "COMMAND": "file"}
    with click.Context(command, info_name=name) as context:
        for parameter in command.params:
            if (metavar := (parameter.metavar or "").strip("[]")) in offered:
                kinds = {item.type for item in parameter.shell_complete(context, "")}
                assert kinds == {offered[metavar]}, parameter.name


def test_settings_that_are_typed_count(published: Cli) -> None:
    published.run("models")
    assert candidates(published, "packtrain history ll") == ["plain,llama"]
    assert candidates(published, "packtrain --store /nowhere history ll") == []
    assert candidates(published, "packtrain history --store /nowhere ll") == []


def test_wrong_settings_and_a_store_that_is_away_offer_nothing_and_complain_about_nothing(published: Cli) -> None:
    assert candidates(published, "packtrain show ll", PACKTRAIN_STORE="nonsense") == []
    bucket = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    assert candidates(published, "packtrain show ll", PACKTRAIN_STORE="s3://bucket", **bucket) == []


@pytest.mark.parametrize(("name", "check"), [("bash", "-n"), ("zsh", "-n"), ("fish", "--no-execute")])
def test_the_script_is_one_that_the_shell_accepts(cli: Cli, name: str, check: str) -> None:
    script = cli.out("completion", name)
    assert cli.json("completion", name) == {"shell": name, "script": script.rstrip("\n")}
    if (program := shutil.which(name)) is None:
        pytest.skip(f"{name} is not installed")
    assert subprocess.run([program, check], input=script, capture_output=True, text=True, check=True).stderr == ""


@pytest.mark.skipif(not shutil.which("zsh"), reason="zsh is not installed")
def test_zsh_completes(asked: Cli) -> None:
    with shell(asked, "zsh", "-f", "-i") as terminal:
        terminal.run(f"PROMPT='{PROMPT}'; autoload -U compinit; compinit -u; source <(packtrain completion zsh)")
        terminal.type("packtrain show llama@pr\t")
        terminal.wait_for("llama@production")


@pytest.mark.skipif(not shutil.which("fish"), reason="fish is not installed")
def test_fish_completes(asked: Cli) -> None:
    ask = "packtrain completion fish | source; complete --do-complete 'packtrain show llama@pr'"
    done = subprocess.run(["fish", "-c", ask], env=asked.environment, capture_output=True, text=True, check=True)
    assert done.stdout == "llama@production\n"
