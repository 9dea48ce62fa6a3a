"""Directory trees in a cache: what they weigh, and how they go."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

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


def weigh(tree: Path) -> int:
    """The bytes of its files that no other name keeps."""
    return sum(status.st_size for status in _files(tree) if status.st_nlink == 1)


def throw_away(tree: Path, trash: Path) -> None:
    """Takes a tree from its place in one step. `empty` removes it. Raises OSError."""
    trash.mkdir(parents=True, exist_ok=True)
    tree.chmod(0o755)  # to move a folder, its owner needs write permission on it
    tree.rename(trash / f"{tree.name}.{uuid.uuid4().hex}")


def empty(trash: Path) -> None:
    """Removes what is in the trash. Raises OSError."""
    with suppress(FileNotFoundError):  # another process is removing the same, or there is no trash
        for tree in trash.iterdir():
            for folder, _ in walk(tree):
                folder.chmod(0o755)
            shutil.rmtree(tree)


def walk(tree: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every folder, from the top, with the names of its files. Unlike os.walk, it raises what goes wrong."""
    for folder, _, names in os.walk(tree, onerror=_raise):
        yield Path(folder), names


def sync(tree: Path) -> None:
    """Puts a tree, and its name, onto the disk. Raises OSError."""
    for folder, names in walk(tree):
        for name in [*names, "."]:
            _sync(folder / name)
    _sync(tree.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _files(tree: Path) -> Iterator[os.stat_result]:
    with suppress(FileNotFoundError):
        for folder, names in walk(tree):
            for name in names:
                with suppress(FileNotFoundError):
                    yield (folder / name).lstat()


def _raise(error: OSError) -> NoReturn:
    raise error
