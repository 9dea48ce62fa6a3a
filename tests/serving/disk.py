"""A disk that is small, and may be full. Needs root."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def room_for_four(model: Path, folder: Path) -> Iterator[None]:
    """Until the end, ``folder`` is a disk of its own, with room for four copies of a model."""
    size = 4 * sum(path.stat().st_size for path in model.iterdir()) + (4 << 20)
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path) -> Path:
    """A file that leaves no room beside it."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return path
