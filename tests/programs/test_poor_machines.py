"""Machines that give less than others: few open files, no /proc, odd names, other file systems. Work goes on, or the
message says what to do."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from packtrain.testing.merges import write_merges
from tests.conftest import Models
from tests.flows.conftest import contents
from tests.programs.conftest import Cli

pytestmark = pytest.mark.slow


def at_most(files: int) -> Callable[[], None]:
    """For a process that is to have so few open files."""
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))


@pytest.fixture
def two(published: Cli, tmp_path: Path) -> Cli:
    """A machine of its own over a store with llama/1 and llama/2."""
    return Cli(tmp_path, {**published.environment, "PACKTRAIN_CACHE_DIR": str(tmp_path / "cache")})


@pytest.mark.parametrize("files", [24, 40, 64])
def test_few_open_files_make_a_pull_narrow_and_do_not_end_it(two: Cli, models: Models, files: int) -> None:
    for number, source in ((1, models.first), (2, models.second)):
        path = Path(two.run("pull", f"llama/{number}", preexec_fn=at_most(files)).stdout.strip())
        assert {name: (path / name).read_bytes() for name in contents(source)} == contents(source)


def test_too_few_open_files_are_named(two: Cli) -> None:
    done = two.run("pull", "llama/1", code=8, preexec_fn=at_most(11))
    assert "Too many open files" in done.stderr and "ulimit -n" in done.stderr
    two.run("pull", "llama/1")


@pytest.mark.parametrize("name", ["with space", "ünï-漢字", '\'quoted "$HOME"', "x" * 255])
def test_folders_of_any_name(two: Cli, models: Models, name: str) -> None:
    place = two.home / name
    assert two.out("pull", "llama/1", "--cache-dir", place).startswith(f"{place}/snapshots/")
    assert two.out("pull", "llama/2", "--cache-dir", place)
    to = two.home / "to" / name
    assert two.out("pull", "llama/2", "--to", to, "--cache-dir", place).strip() == str(to)
    assert (to / "config.json").read_bytes() == (models.second / "config.json").read_bytes()
    assert os.listdir(to.parent) == [name]


def test_a_name_that_no_file_system_takes(two: Cli) -> None:
    done = two.run("pull", "llama/1", "--to", two.home / ("x" * 256), code=8)
    assert "File name too long" in done.stderr and "choose a shorter one" in done.stderr


@pytest.mark.root
def test_without_proc(two: Cli) -> None:
    """Nobody knows which boot this is, so nothing is trusted for having been written under it: it is read again."""
    hide = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"]
    for number in (1, 2, 1):
        done = subprocess.run(
            [*hide, *two.command("pull", f"llama/{number}")],
            env=two.environment, cwd=two.home, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert Path(done.stdout.strip(), "config.json").is_file()


@contextmanager
def mounted(kind: str, home: Path) -> Iterator[Path]:
    """A file system of this kind, as large as the smallest XFS."""
    image, place = home / f"{kind}.img", home / kind
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(320 << 20)
    subprocess.run([f"mkfs.{kind}", "-q", image], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def used(place: Path) -> int:
    os.sync()
    usage = os.statvfs(place)
    return (usage.f_blocks - usage.f_bfree) * usage.f_frsize


@pytest.mark.root
@pytest.mark.skipif(shutil.which("mkfs.xfs") is None, reason="needs mkfs.xfs")
def test_xfs_shares_the_blocks_of_what_did_not_change(cli: Cli, tmp_path: Path) -> None:
    """Copies of chunks take neither space nor time there, where they lie alike in both versions."""
    shape = {"hidden": 1024, "heads": 8, "kv_heads": 8, "intermediate": 1024, "vocab": 1024}
    merges = write_merges(tmp_path / "merges", shards=2, **shape)
    for directory in (merges.first, merges.second):
        cli.run("publish", directory, "--name", "llama")
    with mounted("xfs", tmp_path) as place:
        first = cli.json("pull", "llama/1", "--cache-dir", place / "cache")
        before = used(place)
        second = cli.json("pull", "llama/2", "--cache-dir", place / "cache")
        assert second["copied"] > first["size"] // 2
        assert used(place) - before < second["fetched"] + first["size"] // 10
        cli.run("cache", "verify", "--cache-dir", place / "cache")
