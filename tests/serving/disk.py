"""A disk that is full."""

from __future__ import annotations

from pathlib import Path


def fill(folder: Path) -> Path:
    """A file that leaves no room beside it."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return path
