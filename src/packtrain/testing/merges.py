"""Versions of one model that differ as merges of LLaMA-Factory's do, in realistic shapes and without a training.

    versions = write_merges(home, **TINY_LLAMA)      # or any arguments of `write_base`
    publish versions.first, pull it; publish versions.resharded, pull that: what was fetched?

The same arguments write the same bytes. Each directory takes as much room as the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packtrain.testing.tinymodels import LINEAR, write_base, write_merged

# TinyLlama 1.1B: 2.2 GB in bfloat16, q_proj and v_proj together 0.2 GB of it.
TINY_LLAMA = {"vocab": 32000, "hidden": 2048, "layers": 22, "heads": 32, "kv_heads": 4, "intermediate": 5632}


@dataclass(frozen=True)
class Merges:
    """Directories as LLaMA-Factory leaves them: ``base`` in ``shards`` files; two merges of other trainings of
    q_proj and v_proj, ``first`` and ``second``; the second with another export_size, ``resharded``; and a merge of a
    training of all linear layers, ``everything``."""

    base: Path
    first: Path
    second: Path
    resharded: Path
    everything: Path


def write_merges(home: Path, *, shards: int = 4, reshards: int = 3, **shape: Any) -> Merges:
    """All of them, in folders of ``home``. ``shape`` goes to `write_base`."""
    base = write_base(home / "base", seed=1, shards=shards, **shape)
    return Merges(
        base,
        first=write_merged(home / "first", base, seed=2),
        second=write_merged(home / "second", base, seed=3),
        resharded=write_merged(home / "resharded", base, seed=3, shards=reshards),
        everything=write_merged(home / "everything", base, seed=4, changed=LINEAR),
    )
