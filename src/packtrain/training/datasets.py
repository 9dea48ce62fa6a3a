"""The datasets of a training: what dataset_info.json says of them, and the digests of their files.

Source of its form: LLaMA-Factory `data/README.md` and `data/parser.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from hashlib import file_digest
from pathlib import Path
from typing import Any

from packtrain.errors import LocalDiskError, NotFound
from packtrain.model.lineage import Dataset
from packtrain.training.documents import is_folder, open_regular


def describe(names: Iterable[str], folder: Path | None, info: Mapping[str, Any]) -> tuple[Dataset, ...]:
    """Each dataset with its entry in ``info``, the dataset_info.json of ``folder``, as far as they are here."""
    return tuple(Dataset(name, _digests(folder, info.get(name)), _entry(info.get(name))) for name in names)


def _entry(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _digests(folder: Path | None, entry: Any) -> dict[str, str]:
    """SHA-256 of each of a dataset's files that are here, by its path in the folder."""
    name = entry.get("file_name") if isinstance(entry, dict) else None
    if folder is None or not isinstance(name, str) or not name:
        return {}
    place = folder / name
    files = {name: place}
    if is_folder(place):  # LLaMA-Factory reads the files directly in it
        with contextlib.suppress(OSError):
            files = {f"{name}/{path.name}": path for path in sorted(place.iterdir())}
    return {path: digest for path, file in files.items() if (digest := _sha256(file))}


def is_still(path: Path, sha256: str) -> bool:
    """Whether a file is here and what it was when it was described."""
    return _sha256(path) == sha256


def _sha256(path: Path) -> str | None:
    try:
        with open_regular(path) as file:
            return file_digest(file, "sha256").hexdigest()
    except (NotFound, LocalDiskError, OSError, ValueError):  # ValueError: a NUL in the name
        return None
