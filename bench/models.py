"""Models to move: Llamas of random bytes in bfloat16, in the proportions of the real ones."""

from __future__ import annotations

from pathlib import Path

from packtrain.testing.tinymodels import write_base, write_merged

_HIDDEN, _INTERMEDIATE, _VOCAB, _KEYS = 2048, 8192, 8192, 1024
_LAYER = 2 * (2 * _HIDDEN * _HIDDEN + 2 * _KEYS * _HIDDEN + 3 * _HIDDEN * _INTERMEDIATE)  # bytes
_ENDS = 2 * 2 * _VOCAB * _HIDDEN  # of the input's and the output's embeddings
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def base(directory: Path, megabytes: int, *, shards: int = 4) -> Path:
    """A model of about this size: as many layers as it takes. The same tensors whatever the shards."""
    return write_base(
        directory,
        seed=1,
        vocab=_VOCAB,
        hidden=_HIDDEN,
        layers=max(2, round((megabytes * 1_000_000 - _ENDS) / _LAYER)),
        heads=_HIDDEN // 128,
        kv_heads=_KEYS // 128,
        intermediate=_INTERMEDIATE,
        shards=shards,
    )


def merged(directory: Path, base: Path, *, changed: tuple[str, ...], seed: int) -> Path:
    """What a LoRA on ``changed`` leaves of a base: those tensors are other bytes, the rest is the same."""
    return write_merged(directory, base, seed=seed, changed=changed)


def size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())
