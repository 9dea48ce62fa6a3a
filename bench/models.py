"""Models to move: Llamas of random bytes in bfloat16, in the proportions of the real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from packtrain.testing.tinymodels import write_base

_HIDDEN, _INTERMEDIATE, _VOCAB, _KEYS = 2048, 8192, 8192, 1024
_LAYER = 2 * (2 * _HIDDEN * _HIDDEN + 2 * _KEYS * _HIDDEN + 3 * _HIDDEN * _INTERMEDIATE)  # bytes
_ENDS = 2 * 2 * _VOCAB * _HIDDEN  # of the input's and the output's embeddings


def shape(megabytes: int) -> dict[str, Any]:
    """Of a model of about this size, for `write_base`: as many layers as it takes."""
    return {
        "vocab": _VOCAB,
        "hidden": _HIDDEN,
        "layers": max(2, round((megabytes * 1_000_000 - _ENDS) / _LAYER)),
        "heads": _HIDDEN // 128,
        "kv_heads": _KEYS // 128,
        "intermediate": _INTERMEDIATE,
    }


def base(directory: Path, megabytes: int) -> Path:
    return write_base(directory, seed=1, shards=4, **shape(megabytes))


def size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())
