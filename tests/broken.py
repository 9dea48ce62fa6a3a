"""Models that cannot be served, each in its own way, and how they get published all the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from packtrain.client import Client
from packtrain.testing.tinymodels import write_base


def lacks_a_tensor(folder: Path) -> None:
    write_base(folder, seed=9, layers=1)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))


def has_another_tokenizer(folder: Path) -> None:
    write_base(folder, seed=9)
    other = write_base(folder.parent / "other", seed=9, vocab=1024)
    shutil.copyfile(other / "tokenizer.json", folder / "tokenizer.json")


def is_truncated(folder: Path) -> None:
    write_base(folder, seed=9)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4096])


def publish_around_preflight(client: Client, folder: Path, name: str) -> int:
    """Its manifest is right: it says what is broken. Returns the version's number."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("packtrain.flows.publish.preflight", lambda *_, **__: [])
        patch.setattr("packtrain.flows.hashing._header", lambda _: None)
        version = client.publish(folder, name).version
    assert version is not None
    return version.number
