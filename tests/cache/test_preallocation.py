"""A download's large files get their room at once, and a full disk is met before the first byte."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from packtrain.cache import Partial
from packtrain.errors import LocalDiskError
from packtrain.model.manifest import Chunks, FileEntry, Manifest

LARGE = 16 << 20
SIZES = {"1.safetensors": LARGE, "2.safetensors": LARGE + 1, "3.safetensors": LARGE + 2, "config.json": 100}


@pytest.fixture
def manifest() -> Manifest:
    return Manifest.of(
        "merged", [FileEntry(path, size, "0" * 64, Chunks([size], ["0" * 64])) for path, size in SIZES.items()]
    )


def sizes(partial: Partial) -> dict[str, tuple[int, bool]]:
    """Of each file, and whether the disk has given room for all of it."""
    infos = {path: (partial.tree / path).stat() for path in SIZES}
    return {path: (info.st_size, info.st_blocks * 512 >= info.st_size) for path, info in infos.items()}


def test_large_files_get_their_room_at_once(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocate, together = os.posix_fallocate, threading.Barrier(3)

    def meeting(descriptor: int, offset: int, length: int) -> None:
        if length >= LARGE:
            together.wait(timeout=300)
        allocate(descriptor, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", meeting)
    partial = Partial(tmp_path, manifest, "boot-1")
    assert sizes(partial) == {path: (size, True) for path, size in SIZES.items()}
    partial.close()


def test_one_that_gets_none_is_told_of(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allocate = os.posix_fallocate

    def full(descriptor: int, offset: int, length: int) -> None:
        if length == LARGE + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        allocate(descriptor, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(LocalDiskError, match="No space left"):
        Partial(tmp_path, manifest, "boot-1")


def test_without_threads_they_get_it_in_turn(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", none_left)
        partial = Partial(tmp_path, manifest, "boot-1")
    assert sizes(partial) == {path: (size, True) for path, size in SIZES.items()}
    partial.close()


def test_a_new_journal_is_not_cut(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ext4 flushes a file that was ever cut to nothing when it is closed, and whoever closes it waits for the disk."""
    cut, truncate = [], os.ftruncate

    def noting(descriptor: int, length: int) -> None:
        if length == 0:
            cut.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        truncate(descriptor, length)

    monkeypatch.setattr(os, "ftruncate", noting)
    partial = Partial(tmp_path / "partial", manifest, "boot")
    partial.finish(0)
    partial.close()
    assert cut == []
    Partial(tmp_path / "partial", manifest, "another boot").settle_doubts()  # that one has something in it
    assert cut == [str(tmp_path / "partial" / "journal")]
