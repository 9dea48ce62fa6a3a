"""Help teaches, and is quick: it loads nothing that it does not need."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import click
import pytest

import packtrain
from packtrain.cli.app import packtrain as group
from packtrain.cli.helptext import Command
from tests.programs.conftest import PROGRAM, Cli

HEAVY = {"rich", "obstore", "blake3", "yaml", "pydantic", "asyncio", "ssl", "http", "subprocess", "packtrain.client"}


def loaded(*arguments: str, environment: dict[str, str]) -> set[str]:
    """The modules that a command imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", PROGRAM, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.MULTILINE))


@pytest.mark.parametrize("arguments", [[], ["--help"], ["publish", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(cli: Cli, arguments: list[str]) -> None:
    modules = loaded(*arguments, environment=cli.environment)
    assert "click" in modules
    assert not modules & HEAVY


def test_looking_loads_neither_the_bar_nor_s3(published: Cli) -> None:
    modules = loaded("models", environment=published.environment)
    assert "packtrain.client" in modules
    assert not modules & {"rich", "obstore", "pydantic"}


def test_the_commands_are_in_the_order_of_the_job(cli: Cli) -> None:
    shown = cli.out("--help")
    assert cli.out() == shown
    assert cli.out("-h") == shown
    headings = re.findall(r"^(\S.*):$", shown, re.MULTILINE)
    assert headings == [
        "Set up", "Publish", "Promote", "Pull and serve", "Look", "Check", "Clean up", "Options", "Settings",
        "The straight line",
    ]  # fmt: skip
    assert "..." not in shown.replace("[ARGS]...", "")  # no line is cut
    assert max(len(line) for line in shown.splitlines()) <= 80


def commands(group: click.Group, before: str = "") -> dict[str, click.Command]:
    """Every command that does something, by what is typed for it."""
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        below = commands(command, f"{before}{name} ") if isinstance(command, click.Group) else {}
        found |= below or {f"{before}{name}": command}
    return found


@pytest.mark.parametrize(("name", "command"), commands(group).items())
def test_every_command_has_two_sentences_and_an_example_that_parses(name: str, command: click.Command) -> None:
    assert isinstance(command, Command)
    assert command.help is not None
    first, _, rest = command.help.partition("\n\n")
    assert first.endswith(".")
    assert rest.strip()
    assert command.epilog is not None
    found = re.search(rf"packtrain {name}\b([^()]*)", command.epilog)
    assert found is not None
    with group.make_context("packtrain", [name]) as context:
        command.make_context(name, shlex.split(found[1]), parent=context)


def test_the_straight_line_parses() -> None:
    assert group.epilog is not None
    for line in group.epilog.splitlines():
        program, name, *arguments = shlex.split(line)
        assert program == "packtrain"
        with group.make_context("packtrain", [name]) as context:
            group.commands[name].make_context(name, arguments, parent=context)


def test_settings_are_flags_of_the_same_names() -> None:
    def flags(command: click.Command) -> set[str]:
        return {option for parameter in command.params for option in parameter.opts if option.startswith("--")}

    everywhere = {"--json", "--store", "--registry", "--cache-dir"}
    assert everywhere | {"--cache-quota", "--cache-free", "--actor", "--vllm", "--llamafactory"} <= flags(group)
    for name, command in commands(group).items():
        assert everywhere <= flags(command), name
    assert {name for name, command in commands(group).items() if "--in-place" in flags(command)} == {
        "gate", "pull", "serve", "run",
    }  # fmt: skip
    assert {name for name, command in commands(group).items() if "--vllm" in flags(command)} == {
        "doctor", "gate", "serve", "run",
    }  # fmt: skip
    assert {name for name, command in commands(group).items() if "--llamafactory" in flags(command)} == {
        "doctor", "export",
    }  # fmt: skip
    for flag in ("--cache-quota", "--cache-free"):
        assert {name for name, command in commands(group).items() if flag in flags(command)} == {
            "doctor", "gate", "pull", "serve", "run",
            "cache ls", "cache rm", "cache verify", "cache pin", "cache unpin",
        }  # fmt: skip
    assert {name for name, command in commands(group).items() if "--actor" in flags(command)} == {
        "publish", "export", "adopt", "register", "watch", "promote", "rollback", "hold", "archive", "policy",
        "gate", "gc", "webhook",
    }  # fmt: skip


def test_the_version(cli: Cli) -> None:
    assert cli.out("--version") == f"packtrain {packtrain.__version__}\n"


def test_the_public_names_are_all_there() -> None:
    for name in packtrain.__all__:
        assert getattr(packtrain, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = packtrain.nope
