"""The disk of the cache: whether it can be written, how much fits, and what its file system can do."""

from __future__ import annotations

import fcntl
import os
import pwd
import tempfile
from collections.abc import Iterator
from pathlib import Path

from packtrain.cache import Cache
from packtrain.errors import LocalDiskError, PacktrainError, disk_error
from packtrain.flows.doctor import disks
from packtrain.flows.doctor.check import Check, failure, ok, warning
from packtrain.model.amount import size
from packtrain.model.retention import unique_size

FICLONE = 0x40049409  # ioctl_ficlone(2), linux/fs.h: shares the blocks of another file
ENOUGH = 1 << 20  # bytes


def examine(cache: Cache) -> Iterator[Check]:
    try:
        yield _writable(cache.root)
        yield _room(cache)
        yield _file_system(cache.root)
    except PacktrainError as error:
        yield failure("cache", error)


def _writable(root: Path) -> Check:
    """Found out by writing: permissions, quotas and a full or read-only disk all show."""
    here = disks.existing(root)
    owner = here.stat().st_uid
    if here == root and owner != os.geteuid():
        raise LocalDiskError(
            f"{root} belongs to {_name(owner)}, and this is {_name(os.geteuid())}",
            hint="Snapshots are shared by the processes of one user. Set another cache_dir, or run as that user.",
        )
    try:
        with tempfile.TemporaryFile(dir=here) as file:
            file.write(bytes(ENOUGH))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise disk_error(error, f"the cache {root} cannot be written") from error
    return ok("cache", f"{root} can be written" if here == root else f"{root} is not there yet and can be made")


def _room(cache: Cache) -> Check:
    contents = cache.contents()
    room, used = contents.room, unique_size(contents.occupants)
    limits = (
        f"quota {size(room.quota)}, {size(max(0, room.free))} free on its disk, of which {size(room.floor)} stay free"
    )
    if used > room.quota or room.free <= room.floor:
        return warning(
            "cache",
            f"nothing more fits: {size(used)} used, {limits}",
            "The next pull evicts what is not held: packtrain cache ls shows what there is. To have more room, free "
            "space outside of the cache, or change cache_quota, cache_free or cache_dir.",
        )
    return ok("cache", f"{size(used)} used, {limits}")


def _file_system(root: Path) -> Check:
    here = disks.existing(root)
    kind = disks.kind(here)
    able = {"hard links": _links(here), "reflinks": _clones(here)}
    what = f"on {kind}, " + ", ".join(f"{'with' if able[each] else 'without'} {each}" for each in able)
    if kind in disks.MEMORY:
        return warning(
            "cache", f"{what}: it takes memory, and is empty after a restart", "Set cache_dir to a local disk."
        )
    if kind in disks.NETWORK:
        return warning(
            "cache",
            f"{what}: over the network, as slow as the store itself",
            'Set cache_dir to a local disk; or serve from a shared volume without a copy: pull = "in-place".',
        )
    return ok("cache", what)


def _links(folder: Path) -> bool:
    """Whether a file there can have two names: then versions share what they have in common."""
    try:
        with tempfile.TemporaryDirectory(dir=folder) as home:
            (Path(home) / "one").touch()
            (Path(home) / "other").hardlink_to(Path(home) / "one")
    except OSError:
        return False
    return True


def _clones(folder: Path) -> bool:
    """Whether two files there can share their blocks."""
    try:
        with tempfile.TemporaryFile(dir=folder) as one, tempfile.TemporaryFile(dir=folder) as other:
            one.write(b"x")
            one.flush()
            fcntl.ioctl(other.fileno(), FICLONE, one.fileno())
    except OSError:
        return False
    return True


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"
