"""Directory trees in a cache: what they weigh, and how they go."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from packtrain.model.retention import Inode


def measure(tree: Path) -> tuple[dict[Inode, int], int]:
    """The sizes of its files, and how many bytes of them have no place on the disk yet.

    A file counts with its length, whatever the file system makes of it: a download's files have theirs from the
    start, so that what it will need is taken. What vanishes meanwhile does not count.
    """
    inodes, unallocated = {}, 0
    for status in _files(tree):
        inodes[status.st_dev, status.st_ino] = status.st_size
        unallocated += max(0, status.st_size - status.st_blocks * 512)
    return inodes, unallocated


def throw_away(tree: Path, trash: Path) -> None:
    """Takes a tree from its place in one step. `empty` removes it. Raises OSError."""
    trash.mkdir(parents=True, exist_ok=True)
    tree.chmod(0o755)  # to move a folder, its owner needs write permission on it
    tree.rename(trash / f"{tree.name}.{uuid.uuid4().hex}")


def empty(trash: Path) -> None:
    """Removes what is in the trash, as far as it can; another process may be doing the same."""
    if not trash.exists():
        return
    for tree in trash.iterdir():
        for folder, _, _ in os.walk(tree):
            Path(folder).chmod(0o755)
        shutil.rmtree(tree, ignore_errors=True)


def sync(tree: Path) -> None:
    """Puts a tree, and its name, onto the disk. Raises OSError."""
    for folder, _, names in os.walk(tree):
        for name in [*names, "."]:
            _sync(Path(folder) / name)
    _sync(tree.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _files(tree: Path) -> Iterator[os.stat_result]:
    for folder, _, names in os.walk(tree):
        for name in names:
            try:
                yield (Path(folder) / name).lstat()
            except FileNotFoundError:
                continue
