"""`packtrain init`: a file that explains itself and works."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from packtrain.cli.commands.setting_up import PROFILES
from packtrain.errors import LocalDiskError
from packtrain.flows.init import PROFILES as WRITTEN
from packtrain.flows.init import init
from packtrain.settings import PULLS, load
from tests.conftest import Models, as_nobody
from tests.programs.conftest import Cli


@pytest.fixture
def here(cli: Cli) -> Path:
    """A project of somebody who has no settings yet. It becomes the working directory of every command."""
    for name in [name for name in cli.environment if name.startswith("PACKTRAIN_")]:
        del cli.environment[name]
    (cli.home / "project").mkdir()
    return cli.home / "project"


@pytest.mark.parametrize("profile", ["nfs", "object", "mlflow", "hybrid"])
def test_every_line_is_explained_and_what_must_be_edited_is_marked(cli: Cli, here: Path, profile: str) -> None:
    done = cli.run("init", "--profile", profile, cwd=here)
    assert done.stdout == f"wrote packtrain.toml for the profile {profile}\n"
    assert done.stderr == "next: edit what is marked EDIT THIS in packtrain.toml, then: packtrain doctor\n"
    file = here / "packtrain.toml"
    head, *settings = file.read_text().rstrip("\n").split("\n\n")
    assert f"profile {profile}" in head
    for part in settings:
        *about, line = part.split("\n")
        assert about and all(each.startswith("# ") for each in about), part
        assert re.fullmatch(r'(# )?\w+ = "[^"]+"(  # EDIT THIS)?', line), part
    edit = ["store", "registry"] if profile in ("mlflow", "hybrid") else ["store"]
    assert [part.rpartition("\n")[2] for part in settings if part.endswith("EDIT THIS")] == [
        f'{key} = "{getattr(WRITTEN[profile], key)}"  # EDIT THIS' for key in edit
    ]
    settings = load({}, environ={"HOME": str(cli.home)}, directory=here)
    assert settings.store == WRITTEN[profile].store
    assert settings.pull == ("in-place" if profile == "nfs" else "cache") in PULLS
    commented = re.sub(r"^# (\w+ = )", r"\1", file.read_text(), flags=re.MULTILINE)
    assert commented.count(" = ") == len(tomllib.loads(commented)) == 9


def test_it_works_as_it_is_if_what_must_be_edited_is_given(cli: Cli, here: Path, models: Models) -> None:
    store = (cli.home / 'a "volume"').as_uri()
    done = cli.run("init", "--profile", "nfs", "--store", store, "--cache-dir", "cache", cwd=here)
    assert done.stderr == "next: packtrain doctor\n"
    assert "EDIT THIS" not in (here / "packtrain.toml").read_text()
    cli.run("publish", models.first, "--name", "llama", cwd=here)
    assert (cli.home / 'a "volume"' / "ledger" / "llama").is_dir()
    assert (here / "cache" / "ledgers").is_dir()
    assert "failure" not in cli.run("doctor", cwd=here).stdout


def test_a_file_that_is_there_stays(cli: Cli, here: Path) -> None:
    (here / "packtrain.toml").write_text('actor = "bob"\n')
    done = cli.run("init", "--profile", "object", cwd=here, code=3)
    assert done.stderr.splitlines()[0] == "error: packtrain.toml is there already"
    assert (here / "packtrain.toml").read_text() == 'actor = "bob"\n'


@pytest.mark.parametrize("profile", ["mlflow", "hybrid"])
def test_a_directory_is_no_store_for_mlflow(cli: Cli, here: Path, profile: str) -> None:
    done = cli.run("init", "--profile", profile, "--store", "file:///mnt/models", cwd=here, code=3)
    assert f"the profile {profile} needs a bucket: MLflow refuses directories like file:///mnt/models" in done.stderr
    assert list(here.iterdir()) == []
    (here / "packtrain.toml").write_text('store = "file:///mnt/models"\nregistry = "http://127.0.0.1:9"\n')
    refused = cli.run("doctor", cwd=here, code=3).stdout
    assert "MLflow at http://127.0.0.1:9 cannot register what lies in file:///mnt/models" in refused
    assert "cannot register" in cli.run("models", cwd=here, code=3).stderr


def test_the_profiles_are_those_of_the_help(cli: Cli, here: Path) -> None:
    assert tuple(WRITTEN) == PROFILES
    assert "'nfs', 'object', 'mlflow', 'hybrid'" in cli.run("init", "--profile", "ftp", code=2).stderr
    missing = "error: Missing option '--profile'. Choose from: nfs, object, mlflow, hybrid"
    assert cli.run("init", code=2).stderr.splitlines()[0] == missing
    told = cli.json("init", "--profile", "object", "--store", "s3://models/prod")
    assert told == {"path": str(cli.home / "packtrain.toml"), "profile": "object"}


@pytest.mark.root
def test_a_folder_that_cannot_be_written(open_folder: Path) -> None:
    with as_nobody(), pytest.raises(LocalDiskError, match=r"could not write .*packtrain.toml: Permission denied"):
        init("object", open_folder, {})
    assert list(open_folder.iterdir()) == []
