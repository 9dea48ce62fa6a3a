"""Preflight's tables against real transformers and PEFT: what they save passes, and what the tests write is what they
save."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from packtrain.model.finding import Finding
from packtrain.testing.tinymodels import RECORDED, kinds, write_model
from packtrain.training.checkpoint import inspect
from packtrain.training.preflight import preflight
from packtrain.training.preflight.base import base_in
from tests.engines.conftest import LLAMAFACTORY, ROOT, VLLM

pytestmark = pytest.mark.engine

BASES = {
    "all_linear": "qwen2",
    "tied": "qwen2_tied",
    "experts": "mixtral",
    "bias": "llama_bias",
    "vision": "qwen2_vl",
    "vision_tower": "llava",
}  # the others: llama
UNSERVABLE = {"dora", "saved_modules", "bias", "tokens"}

_LOAD = """
import json, sys, transformers
from pathlib import Path
for directory in map(Path, sys.argv[1:]):
    name = json.loads((directory / "config.json").read_text())["architectures"][0]
    _, said = getattr(transformers, name).from_pretrained(directory, output_loading_info=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    print(json.dumps([directory.name, {key: str(value) for key, value in said.items() if value}, len(tokenizer)]))
"""

Run = Callable[..., str]


@pytest.fixture(scope="module")
def run(engine_environment: dict[str, str]) -> Run:
    def run(*command: object) -> str:
        done = subprocess.run(
            [str(part) for part in command], env=engine_environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    return run


@pytest.fixture(scope="module")
def saved(run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Where LLaMA-Factory's transformers and PEFT saved, and what is recorded of it."""
    home = tmp_path_factory.mktemp("saved")
    run(LLAMAFACTORY / "python", ROOT / "tools" / "record_models.py", home / "recorded", "--keep", home / "models")
    return home / "models", home / "recorded"


def without_version(recorded: Path) -> dict[str, Any]:
    model: dict[str, Any] = json.loads(recorded.read_text())
    del model["config"]["transformers_version"]
    return model


def with_its_tokenizer(model: Path, written: Path) -> Path:
    """A saved model with the files that save_pretrained of a model alone does not write."""
    for path in write_model(written / model.name, model.name).iterdir():
        if not (model / path.name).exists():
            (model / path.name).write_bytes(path.read_bytes())
    return model


def find(directory: Path, base: Path | None = None) -> list[Finding]:
    return list(preflight(inspect(directory), allow_code=False, base=base_in(base) if base else None))


def test_what_is_recorded_is_what_transformers_saves(saved: tuple[Path, Path]) -> None:
    _, recorded = saved
    committed = {path.stem: without_version(path) for path in RECORDED.glob("*.json")}
    assert {path.stem: without_version(path) for path in recorded.iterdir()} == committed


def test_what_transformers_saves_passes(saved: tuple[Path, Path], tmp_path: Path) -> None:
    models, recorded = saved
    for kind in sorted(path.stem for path in recorded.iterdir()):
        codes = [finding.code for finding in find(with_its_tokenizer(models / kind, tmp_path))]
        assert codes == (["architecture-unknown"] if kind == "qwen3_vl" else []), kind


def test_what_peft_saves_passes(saved: tuple[Path, Path]) -> None:
    models, _ = saved
    adapters = sorted(models.glob("adapter_*"))
    assert len(adapters) >= 14
    for adapter in adapters:
        name = adapter.name.removeprefix("adapter_")
        for base in (None, models / BASES.get(name, "llama")):
            codes = [finding.code for finding in find(adapter, base)]
            assert codes == (["adapter-unservable"] if name in UNSERVABLE else []), (name, base)


def test_the_transformers_of_vllm_saves_the_same_tensors(run: Run, tmp_path: Path) -> None:
    run(VLLM.parent / "python", ROOT / "tools" / "record_models.py", tmp_path)
    for path in sorted(RECORDED.glob("*.json")):
        again = json.loads((tmp_path / path.name).read_text())
        assert again["tensors"] == json.loads(path.read_text())["tensors"], path.stem


def test_transformers_loads_what_the_tests_write(run: Run, tmp_path: Path) -> None:
    """Every tensor has its place, every place its tensor. Not those in four bits: that needs a GPU's kernels."""
    written = [write_model(tmp_path / kind, kind) for kind in kinds() if kind not in ("gptq", "awq")]
    lines = run(LLAMAFACTORY / "python", "-c", _LOAD, *written).splitlines()
    assert [json.loads(line) for line in lines] == [[directory.name, {}, 320] for directory in written]
