"""What a file system is."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

NETWORK = {
    "nfs", "nfs4", "cifs", "smb3", "ceph", "glusterfs", "lustre", "9p", "fuse.juicefs", "fuse.sshfs", "fuse.s3fs",
}  # fmt: skip
MEMORY = {"tmpfs", "ramfs"}


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    return next(each for each in (path, *path.parents) if each.exists())


def kind(path: Path) -> str:
    """The type of the file system that holds a path that is there, as in /proc/mounts: ext4, nfs4, fuse.juicefs.

    Found by its device among the mounts (proc(5), mountinfo: field 3 is major:minor, the type follows `` - ``).
    """
    with suppress(OSError, ValueError):
        device = path.stat().st_dev
        here = f"{os.major(device)}:{os.minor(device)}"
        for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            fields, _, rest = line.partition(" - ")
            if fields.split()[2] == here:
                return rest.split()[0]
    return "an unknown file system"
