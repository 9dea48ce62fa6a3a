"""Where settings come from, in rising order."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from packtrain.errors import UsageError
from packtrain.settings import Settings, load
from tests.conftest import Models
from tests.programs.conftest import Cli


def loaded(home: Path, flags: Mapping[str, str | None] | None = None, **environ: str) -> Settings:
    return load(flags or {}, environ={"HOME": str(home), **environ}, directory=home / "project" / "deep")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "project" / "deep").mkdir(parents=True)
    return tmp_path


def test_without_any_the_store_and_the_cache_are_folders_of_the_user(home: Path) -> None:
    settings = loaded(home)
    assert settings.store == (home / ".local/share/packtrain/store").as_uri()
    assert settings.cache_dir == home / ".cache/packtrain"
    assert settings.registry == "store"
    xdg = loaded(home, XDG_DATA_HOME=str(home / "data"), XDG_CACHE_HOME=str(home / "cache"))
    assert xdg.store == (home / "data/packtrain/store").as_uri()
    assert xdg.cache_dir == home / "cache/packtrain"


def test_file_then_environment_then_flag(home: Path) -> None:
    (home / "project" / "packtrain.toml").write_text('store = "s3://file"\nactor = "file"\nvllm = "file"\n')
    settings = loaded(
        home, {"vllm": "flag", "store": None}, PACKTRAIN_ACTOR="environment", PACKTRAIN_VLLM="environment"
    )
    assert (settings.store, settings.actor, settings.vllm) == ("s3://file", "environment", "flag")
    assert loaded(home, PACKTRAIN_ACTOR="").actor == "file"


def test_pull_is_one_of_two_ways(home: Path) -> None:
    assert loaded(home).pull == "cache"
    assert loaded(home, PACKTRAIN_PULL="in-place").pull == "in-place"
    assert loaded(home, {"pull": "cache"}, PACKTRAIN_PULL="in-place").pull == "cache"
    with pytest.raises(UsageError, match="copy") as caught:
        loaded(home, PACKTRAIN_PULL="copy")
    assert "cache, in-place" in caught.value.hint


def test_the_nearest_file_counts_alone_unless_one_is_named(home: Path) -> None:
    (home / "packtrain.toml").write_text('actor = "far"\nvllm = "far"\n')
    (home / "project" / "packtrain.toml").write_text('actor = "near"\n')
    assert (loaded(home).actor, loaded(home).vllm) == ("near", "vllm")
    assert loaded(home, PACKTRAIN_CONFIG=str(home / "packtrain.toml")).actor == "far"
    with pytest.raises(UsageError, match="PACKTRAIN_CONFIG names"):
        loaded(home, PACKTRAIN_CONFIG=str(home / "nope.toml"))


def test_a_relative_cache_is_relative_to_whoever_says_it(home: Path) -> None:
    (home / "project" / "packtrain.toml").write_text('cache_dir = "snapshots"\n')
    assert loaded(home).cache_dir == home / "project" / "snapshots"
    assert loaded(home, {"cache_dir": "here"}).cache_dir == Path.cwd() / "here"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('stoer = "x"', "unknown setting 'stoer'"),
        ("store = 3", "store must be a text"),
        ('store = ""', "store must be a text"),
        ("store = ", "cannot be read"),
        ('cache_quota = "lots"', "cache_quota: 'lots' is not an amount"),
        ('cache_free = "101%"', "cache_free: '101%' is not an amount"),
    ],
)
def test_a_bad_file_is_named(home: Path, content: str, message: str) -> None:
    path = home / "project" / "packtrain.toml"
    path.write_text(content)
    with pytest.raises(UsageError, match=message) as raised:
        loaded(home)
    assert str(path) in raised.value.message


def test_a_bad_variable_is_named(home: Path) -> None:
    with pytest.raises(UsageError, match="PACKTRAIN_CACHE_QUOTA: '5 gigs' is not an amount") as raised:
        loaded(home, PACKTRAIN_CACHE_QUOTA="5 gigs")
    assert "500GB" in raised.value.hint
    assert str(loaded(home, {"cache_quota": "80%"}, PACKTRAIN_CACHE_QUOTA="5 gigs").cache_quota) == "80%"


def test_a_process_finds_its_settings_in_the_same_order(cli: Cli, models: Models) -> None:
    deep = cli.home / "project" / "deep"
    deep.mkdir(parents=True)
    file = cli.home / "project" / "packtrain.toml"
    stores = {name: (cli.home / name).as_uri() for name in ("file", "environment", "flag")}
    for name, uri in stores.items():
        cli.run("publish", models.first, "--name", name, "--store", uri)
    file.write_text(f'store = "{stores["file"]}"\n')
    del cli.environment["PACKTRAIN_STORE"]

    def seen(*arguments: str) -> str:
        return cli.run("models", *arguments, cwd=deep).stdout.splitlines()[-1].split()[0]

    assert seen() == "file"
    cli.environment["PACKTRAIN_STORE"] = stores["environment"]
    assert seen() == "environment"
    assert seen("--store", stores["flag"]) == "flag"
    file.write_text('stoer = "x"\n')
    assert str(file) in cli.run("models", cwd=deep, code=2).stderr
