"""Looking up a name in a folder that other machines change, too.

The kernel remembers names, and on a shared file system it goes on for a while after another machine has removed or
replaced what a name stood for. NFS clients notice when it is opened. On FUSE file systems open(2) says that there is
nothing, although something new is there: on JuiceFS for a second. What is remembered can be told from what is absent,
because O_PATH opens a name without asking the file system; then one waits until the name is forgotten.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")

# Seconds between looks, 6 s in all: JuiceFS and most FUSE file systems remember a name for one.
PAUSES = (0.0, 0.0, 0.02, *[0.05] * 40, *[0.2] * 20)


def open_at(name: str, flags: int, folder: int) -> int:
    """openat(2) of what is there now. Raises OSError."""
    return _now(lambda: os.open(name, flags, dir_fd=folder), name, folder)


def lstat_at(name: str, folder: int) -> os.stat_result | None:
    """What is there now, or None. A symbolic link is not followed."""
    with suppress(FileNotFoundError):
        return _now(lambda: os.stat(name, dir_fd=folder, follow_symlinks=False), name, folder)
    return None


def _now(look: Callable[[], T], name: str, folder: int) -> T:
    for pause in PAUSES:
        try:
            return look()
        except FileNotFoundError:
            if not _is_remembered(name, folder):
                raise
            time.sleep(pause)
    return look()


def _is_remembered(name: str, folder: int) -> bool:
    try:
        os.close(os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=folder))
    except FileNotFoundError:
        return False
    return True
