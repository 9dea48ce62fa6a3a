"""The docs are true: their commands run, their links lead somewhere, their tables are those of the code."""

from __future__ import annotations

import re
from dataclasses import fields
from itertools import takewhile
from pathlib import Path

import click
import pytest

from packtrain import errors
from packtrain.cli.app import packtrain
from packtrain.settings import Settings
from packtrain.storage import aws, azure, gcs, google

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_options_exist(page: Path) -> None:
    for line in re.findall(r"^(?:\$ )?packtrain ([a-z]+ .*)$", page.read_text(), re.MULTILINE):
        command: click.Command = packtrain
        words = line.split()
        while isinstance(command, click.Group):
            name = words.pop(0)
            assert name in command.commands, f"{page}: packtrain {line}"
            command = command.commands[name]
        options = {option for parameter in command.params for option in parameter.opts}
        for word in takewhile(lambda word: word not in ("--", "#", "|", "||"), words):
            assert not word.startswith("--") or word in options, f"{page}: packtrain {line}: there is no {word}"


def test_the_readme_begins_with_the_two_commands() -> None:
    lines = [line for line in (ROOT / "README.md").read_text().splitlines() if line.strip()]
    assert lines[2].startswith("make demo") and lines[3].startswith("make test")


def test_the_exit_codes_are_those_of_the_errors() -> None:
    rows = re.findall(r"^\| (\d+) \| (?:`(\w+)`)? ?\|", (ROOT / "docs" / "exit-codes.md").read_text(), re.MULTILINE)
    documented = {name: int(code) for code, name in rows if name}
    assert documented == {kind.__name__: code for kind, code in errors.EXIT_CODES.items()}
    assert {int(code) for code, name in rows if not name} == {0, errors.INTERNAL_ERROR, errors.INTERRUPTED, 143}


def test_every_setting_is_described() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| `--([a-z-]+)` \|", page, re.MULTILINE)
    names = [field.name for field in fields(Settings)]
    flags = {"pull": "in-place"}  # a setting of two values is a switch
    assert rows == [(n, f"PACKTRAIN_{n.upper()}", flags.get(n, n.replace("_", "-"))) for n in names]


def test_every_variable_that_finds_s3_is_described() -> None:
    read = set(re.findall(r'"(AWS_\w+)"', Path(aws.__file__).read_text()))
    section = (ROOT / "docs" / "settings.md").read_text().partition("\n## S3\n")[2].partition("\n## ")[0]
    # obstore reads these two by itself, as the static keys that go with AWS_ACCESS_KEY_ID
    assert set(re.findall(r"`(AWS_\w+)`", section)) == read | {"AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"}


def test_every_variable_that_finds_google_is_described() -> None:
    source = Path(google.__file__).read_text() + Path(gcs.__file__).read_text()
    read = set(re.findall(r'"((?:GOOGLE|GCE|CLOUDSDK)_\w+)"', source))
    section = (
        (ROOT / "docs" / "settings.md").read_text().partition("\n## Google Cloud Storage\n")[2].partition("\n## ")[0]
    )
    assert set(re.findall(r"`((?:GOOGLE|GCE|CLOUDSDK)_\w+)`", section)) == read


def test_every_variable_that_finds_azure_is_described() -> None:
    read = set(re.findall(r'"(AZURE_[A-Z_]+)"', Path(azure.__file__).read_text()))
    section = (ROOT / "docs" / "settings.md").read_text().partition("\n## Azure\n")[2].partition("\n## ")[0]
    # obstore reads these two by itself, as what goes with AZURE_CLIENT_SECRET
    assert set(re.findall(r"`(AZURE_\w+)`", section)) == read | {"AZURE_TENANT_ID", "AZURE_CLIENT_ID"}
