"""A whole version from a directory store to a cache on another file system, its files not in the page cache."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench import models, tools
from bench.bench import Bench
from bench.measure import Contender, forget_pages, on_every_core, race
from bench.results import Figure, Outcome, Table, ratio, wall

TITLE = "Cold pull from a directory"
NOTE = (
    "From a directory store to a cache on another file system, with both cores. Cold: the store's files are taken out "
    "of the page cache before each run. The other file system is an ext4 of its own in a file on the same disk, or a "
    "tmpfs, which takes the disk out of writing."
)


def run(bench: Bench) -> Outcome:
    model, environment = bench.model(2 * bench.megabytes), tools.plain_environment(bench.work / "home")
    outcome = Outcome(TITLE, NOTE)
    store = bench.work / "stores" / "pulls"
    digest = bench.publish(model, f"file://{store}", environment).removeprefix("sha256:")
    source = store / "models" / "m" / digest
    for kind, how in (("tmpfs", "tmpfs"), ("ext4", "another ext4")):
        for cold in (True, False):
            with _mounted(bench.work, kind, 2 * models.size(model)) as place, on_every_core():
                contenders = _contenders(store, source, place, cold=cold)
                print(f"  {how}, {'cold' if cold else 'warm'}")
                race(contenders, bench.runs, environment, memory=2 * models.size(model))
            temperature = "cold" if cold else "in the page cache"
            table = Table.of(f"pull from a directory to {how}, {temperature}", models.size(model), contenders)
            outcome.tables.append(table)
            ours, copy, *_ = table.rows
            target = 1.1 if cold else None
            what = f"directory to {how}, {temperature}: wall, to cp"
            outcome.figures.append(Figure(what, ratio(ours, copy, wall), "x", target))
    return outcome


def _contenders(store: Path, source: Path, place: Path, *, cold: bool) -> list[Contender]:
    out, cache = place / "out", place / "cache"
    copy = ["cp", "-r", str(source), str(out)]
    hashed = tools.Tools.python("then_blake3", str(out), *copy)

    def chill() -> None:
        if cold:
            forget_pages(source)

    pull = tools.packtrain("pull", "m", store=f"file://{store}", cache=cache)
    return [
        Contender("packtrain", lambda _: pull, verified=True, remove=[cache], before=chill),
        Contender("cp -r", lambda _: copy, remove=[out], before=chill),
        Contender("cp -r + BLAKE3", lambda _: hashed, verified=True, remove=[out], before=chill),
    ]


@contextmanager
def _mounted(work: Path, kind: str, size: int) -> Iterator[Path]:
    """A new file system with room for ``size`` bytes."""
    if os.geteuid() != 0:
        raise SystemExit("a file system of its own needs root: run as root, or leave out directory")
    place, image = work / "mounted", work / "image"
    place.mkdir()
    with ExitStack() as undo:
        undo.callback(place.rmdir)
        if kind == "tmpfs":
            mount = ["-t", "tmpfs", "-o", f"size={size + (256 << 20)}", "tmpfs"]
        else:
            undo.callback(image.unlink, missing_ok=True)
            with image.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, size + (512 << 20))
            subprocess.run(["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0", str(image)], check=True)
            # Direct: a disk has no page cache of its own.
            attach = ["losetup", "--find", "--show", "--direct-io=on", str(image)]
            device = subprocess.run(attach, check=True, capture_output=True, text=True).stdout.strip()
            undo.callback(subprocess.run, ["losetup", "--detach", device], check=False)
            mount = [device]
        subprocess.run(["mount", *mount, str(place)], check=True)
        undo.callback(subprocess.run, ["umount", str(place)], check=False)
        yield place
