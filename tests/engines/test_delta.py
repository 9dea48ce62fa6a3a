"""What diff announces and what a pull fetches, on merges that LLaMA-Factory itself made: counted at the S3 server.

Each projection has 2 MiB, so chunks of its own, as in every model of 1B parameters or more; and headers and manifest,
which take some 100 bytes for each tensor, chunk and file, are as little beside the tensors as they are there.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pytest

from packtrain.model.safetensors import Header
from packtrain.testing.proxy import Relay, relay
from packtrain.testing.servers import S3Server
from packtrain.testing.tinymodels import LINEAR, write_base, write_merge_yaml, write_training_yaml
from packtrain.training.weights import read_header
from tests.engines.conftest import LLAMAFACTORY, ROOT, Cli

pytestmark = pytest.mark.engine

_RUN = """
import sys, yaml
from llamafactory.train.tuner import export_model, run_exp
for path in sys.argv[1:]:
    with open(path) as file:
        arguments = yaml.safe_load(file)
    (export_model if "export_dir" in arguments else run_exp)(arguments)
"""  # what `llamafactory-cli train` and `export` call, in one process: importing it takes longer than the work


@dataclass(frozen=True)
class Case:
    """A node has ``before``; of ``after`` the tensors of these ``kinds`` are new."""

    before: str
    after: str
    kinds: tuple[str, ...]


CASES = {
    "another training of q_proj,v_proj": Case("llama/1", "llama/2", ("q_proj", "v_proj")),
    "and another export_size": Case("llama/1", "llama/3", ("q_proj", "v_proj")),
    "another training, of all": Case("llama/2", "llama/4", LINEAR),
    "against the base": Case("base/1", "llama/2", ("q_proj", "v_proj")),
}


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory, engine_environment: dict[str, str]) -> dict[str, Path]:
    """The base, and merges of three adapters, in the order in which they are published; one of them in two sizes."""
    home = tmp_path_factory.mktemp("exports")
    shape = {"hidden": 1024, "heads": 8, "kv_heads": 8, "intermediate": 2048, "vocab": 1024}
    base = write_base(home / "base", seed=1, **shape)
    dataset = {"dataset_dir": str(ROOT / "demo" / "data"), "max_steps": 2, "logging_steps": 1, "save_strategy": "no"}
    dataset |= {"per_device_train_batch_size": 1}  # bfloat16 is slow on most CPUs
    trainings = {"first": ("q_proj,v_proj", 1), "second": ("q_proj,v_proj", 2), "all": ("all", 3)}
    yamls = [
        write_training_yaml(
            home / f"{name}.yaml",
            base=base,
            output=home / name,
            dataset="v1-train",
            lora_target=target,
            seed=seed,
            preprocessing_num_workers=1,
            **dataset,
        )
        for name, (target, seed) in trainings.items()
    ]
    merges = {"first": ("first", 5), "second": ("second", 5), "resharded": ("second", 0.02), "everything": ("all", 5)}
    for name, (adapter, size) in merges.items():
        merged = home / f"merged-{name}"
        path = home / f"merge-{name}.yaml"
        yamls.append(write_merge_yaml(path, base=base, adapter=home / adapter, output=merged, export_size=size))
    done = subprocess.run(
        [LLAMAFACTORY / "python", "-c", _RUN, *yamls],
        env=engine_environment, cwd=home, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return {"base": base, **{name: home / f"merged-{name}" for name in merges}}


@pytest.fixture(scope="module")
def wire(s3: S3Server) -> Iterator[Relay]:
    """Counts what the server sends."""
    with relay(s3.endpoint) as wire:
        yield wire


@pytest.fixture(scope="module")
def publisher(
    tmp_path_factory: pytest.TempPathFactory,
    s3: S3Server,
    wire: Relay,
    exports: dict[str, Path],
    engine_environment: dict[str, str],
) -> Cli:
    """A store with base/1 and llama/1 to llama/4."""
    home = tmp_path_factory.mktemp("publisher")
    cli = Cli(
        {
            **engine_environment,
            **s3.environment,
            "AWS_ENDPOINT_URL": wire.endpoint,
            "PACKTRAIN_STORE": f"{s3.url}/delta",
            "PACKTRAIN_CACHE_DIR": str(home / "cache"),
        }
    )
    for name, directory in exports.items():
        cli("publish", str(directory), "--name", "base" if name == "base" else "llama")
    return cli


def test_a_merge_leaves_what_was_not_trained(exports: dict[str, Path]) -> None:
    """The fact that all of this rests on, and that export_size does what it is for."""
    assert len(list(exports["resharded"].glob("*.safetensors"))) > len(list(exports["second"].glob("*.safetensors")))
    base = tensors(exports["base"])
    for name, kinds in {"first": ("q_proj", "v_proj"), "resharded": ("q_proj", "v_proj"), "everything": LINEAR}.items():
        merged = tensors(exports[name])
        assert merged.keys() == base.keys()
        assert {tensor for tensor in base if base[tensor] != merged[tensor]} == {
            tensor for tensor in base if tensor.split(".")[-2] in kinds
        }


def tensors(directory: Path) -> dict[str, bytes]:
    found = {}
    for path in directory.glob("*.safetensors"):
        header: Header = read_header(path)
        data = path.read_bytes()
        found |= {tensor.name: data[tensor.start : tensor.end] for tensor in header.tensors}
    return found


@pytest.mark.parametrize("case", CASES)
def test_the_server_sends_what_was_announced(publisher: Cli, wire: Relay, tmp_path: Path, case: str) -> None:
    before, after, kinds = CASES[case].before, CASES[case].after, CASES[case].kinds
    node = Cli({**publisher.environment, "PACKTRAIN_CACHE_DIR": str(tmp_path / "node")})
    node("pull", before)
    delta = node("diff", before, after)
    dry = node("pull", after, "--dry-run")
    first = wire.traffic.requests
    snapshot = node("pull", after)

    folder = f"/models/{after.partition('/')[0]}/{snapshot['digest'].removeprefix('sha256:')}/"
    asked = [request for request in wire.requests[first:] if folder in unquote(request.target)]
    sent = sum(request.down for request in asked)
    announced = delta["transfer"]["all"]["fetched"]
    assert sent == announced == dry["to_fetch"] + dry["manifest"]
    assert len(asked) >= delta["transfer"]["requests"] + 1
    assert snapshot["fetched"] == dry["to_fetch"]
    assert (snapshot["linked"], snapshot["copied"]) == tuple(delta["transfer"]["all"][w] for w in ("linked", "copied"))

    counts = delta["tensors"]["kinds"]
    assert {kind for kind, each in counts.items() if each["changed"]["tensors"]} == set(kinds)
    assert not any(each["unknown"]["tensors"] for each in counts.values())
    changed = sum(counts[kind]["changed"]["bytes"] for kind in kinds)
    assert changed <= sent <= 1.005 * changed, f"{sent / changed:.5f}"
