"""The gate, with real vLLM: the same weights pass in another precision, eager and compiled; others do not.

The model is small and untrained, but its output layer is large: its log-probabilities are spread as a real model's are
(a standard deviation of 3 over the vocabulary), so that rounding and ties mean what they mean there. The other weights
are loaded into one running engine, which spares a start for each.
"""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from packtrain.client import Client
from packtrain.flows.gate import attach
from packtrain.model.digest import Digest
from packtrain.model.golden import Comparison, Golden, compare
from packtrain.model.ledger import GATE, GOLDEN
from packtrain.model.version import ModelVersion
from packtrain.serving.gate import Answering
from packtrain.serving.golden import replay
from packtrain.testing.tinymodels import (
    CHAT_TEMPLATE,
    TensorBytes,
    write_adapter,
    write_base,
    write_merge_yaml,
    write_safetensors,
)
from tests.broken import has_another_tokenizer, is_truncated, lacks_a_tensor, publish_around_preflight
from tests.engines.conftest import LIMITS, READY_WITHIN, Cli, engine, load_weights
from tests.serving.load import PROMPTS, Load, ask
from tests.serving.node import Node

pytestmark = pytest.mark.engine

ADAPTED = "model.layers.1.self_attn.v_proj.weight"


@dataclass(frozen=True)
class Merged:
    """A merge by LLaMA-Factory, published as llama/1, its base, and what ``packtrain gate`` recorded of it."""

    path: Path
    base: Path
    golden: Golden
    said: Mapping[str, Any]
    cli: Cli


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory, engine_environment: dict[str, str]) -> Merged:
    home = tmp_path_factory.mktemp("gate")
    store = home / "store"
    cli = Cli({**engine_environment, "PACKTRAIN_STORE": store.as_uri(), "PACKTRAIN_CACHE_DIR": str(home / "cache")})
    base = write_base(home / "base", seed=1)
    adapter = write_adapter(home / "adapter", base, seed=4)
    cli(
        "export",
        str(write_merge_yaml(home / "merge.yaml", base=base, adapter=adapter, output=home / "merged")),
        "--name",
        "llama",
    )
    cli("policy", "llama", "--gate", "production")
    said = cli("gate", "llama/1", "--", "--dtype", "float32", "--enforce-eager", *LIMITS)
    record = Digest.parse(said["golden"])
    golden = Golden.decode((store / "records" / "llama" / f"{record.hex}.json").read_bytes(), expect=record)
    cli("promote", "llama/1", "--to", "production")  # it passed
    return Merged(home / "merged", base, golden, said, cli)


def test_a_merge_answers_as_its_adapter_on_its_base(merged: Merged) -> None:
    assert merged.said["passed"] and merged.said["recorded"]
    assert merged.said["unmerged"]["differences"] == []
    assert merged.said["unmerged"]["distance"] > 0, "two engines of different weights were compared"
    print("unmerged:", merged.said["unmerged"])


def test_bf16_eager_passes_and_other_weights_do_not(merged: Merged, tmp_path: Path) -> None:
    """Recorded in fp32. The hardest is the noise: it is no larger than what bf16 rounds away."""
    cases = {
        "one layer swapped": (_swapped, "differ by"),
        "a LoRA target left unmerged": (_left_unmerged, "differ by"),
        "1 % noise on lm_head": (_noisy, "always off the same way"),
    }
    with _engine(merged, "--dtype", "bfloat16", "--enforce-eager", "--trust-request-chat-template") as served:
        require_passed(_compared(merged, served), "bf16, eager")
        said = _compared(merged, served, chat_template=CHAT_TEMPLATE.replace("assistant", "narrator"))
        assert len(said.differences) == 8 and "chat template" in said.differences[0], said.differences
        for what, (change, expected) in cases.items():
            load_weights(served, _variant(merged, tmp_path / what, change))
            said = _compared(merged, served)
            print(what, said)
            assert any(expected in difference for difference in said.differences), f"{what}: {said}"
        load_weights(served, merged.path)
        require_passed(_compared(merged, served), "the right weights again")


def test_bf16_compiled_passes(merged: Merged, tmp_path: Path) -> None:
    with _engine(merged, "--dtype", "bfloat16") as served:
        require_passed(_compared(merged, served), "bf16, compiled")
        load_weights(served, _variant(merged, tmp_path / "noisy", _noisy))
        said = _compared(merged, served)
        print("1 % noise on lm_head, compiled", said)
        assert not said.passed, said


def test_a_node_stays_with_what_answers_right(merged: Merged, tmp_path: Path) -> None:
    """Under load: three that cannot be served, and one of another model's weights, whose golden outputs are those of
    the right ones."""
    cli = merged.cli
    client = Client(store=cli.environment["PACKTRAIN_STORE"], cache_dir=str(tmp_path / "elsewhere"), actor="mallory")
    with cli.following(tmp_path, "--strategy", "blue-green") as served:
        served.until_serving(1, within=READY_WITHIN)
        alone = {prompt: ask(served.port, "llama", prompt, 24, stream=False) for prompt in PROMPTS}
        attested = cli("attest", f"http://127.0.0.1:{served.port}")
        assert (attested["version"], attested["holds"]) == (1, True)
        with Load(served.port, "llama", clients=3, tokens=(4, 24), pause=1.0) as load:
            for broken in (lacks_a_tensor, has_another_tokenizer, is_truncated):
                broken(tmp_path / broken.__name__)
                number = publish_around_preflight(client, tmp_path / broken.__name__, "llama")
                assert "cannot be served" in _refused(served, merged, client, f"llama/{number}")
            other = write_base(tmp_path / "another model", seed=9)
            shutil.copyfile(merged.path / "config.json", other / "config.json")
            version = client.publish(other, "llama").version
            assert version is not None
            attach(client._parts.store, client._parts.registry, version, GOLDEN, _of(merged.golden, version).encode())
            assert "is answered otherwise" in _refused(served, merged, client, str(version))
        load.check(lambda answer: answer.ids == alone[answer.prompt].ids[: answer.tokens])
        assert {answer.version for answer in load.answers} == {"llama/1"}
        assert cli("attest", f"http://127.0.0.1:{served.port}")["version"] == 1


def _refused(served: Node, merged: Merged, client: Client, version: str) -> str:
    """Promotes it although its gate was never run. Returns why the node does not take it."""
    subject = client.show(version).version
    attach(client._parts.store, client._parts.registry, subject, GATE, b"{}")
    client.promote(version, to="production")

    def marked() -> list[str]:
        return [bad["because"] for bad in served.status["bad"] if bad["version"] == subject.number]

    served.until(marked, f"{version} to be marked", within=READY_WITHIN)
    return marked()[0]


def _of(golden: Golden, version: ModelVersion) -> Golden:
    return replace(golden, digest=version.digest)


def require_passed(said: Comparison, what: str) -> None:
    print(what, said)
    assert said.passed, f"{what}: {said}: {said.differences}"


def _engine(merged: Merged, *arguments: str) -> AbstractContextManager[Answering]:
    return engine(merged.cli.environment, merged.path, *LIMITS, *arguments)


def _compared(merged: Merged, served: Answering, **more: str) -> Comparison:
    """``more``: what chats ask for besides."""

    def ask(path: str, body: Mapping[str, Any]) -> tuple[int, Any]:
        return served.ask(path, {**body, **more} if "messages" in body else body)

    return compare(merged.golden, replay(ask, "llama", merged.golden))


Tensors = dict[str, TensorBytes]


def _variant(merged: Merged, directory: Path, change: Callable[[Tensors, Merged], None]) -> Path:
    shutil.copytree(merged.path, directory)
    tensors = _tensors(directory)
    change(tensors, merged)
    write_safetensors(directory / "model.safetensors", tensors)
    return directory


def _swapped(tensors: Tensors, _: Merged) -> None:
    for name in [name for name in tensors if ".layers.0." in name]:
        other = name.replace(".layers.0.", ".layers.1.")
        tensors[name], tensors[other] = tensors[other], tensors[name]


def _left_unmerged(tensors: Tensors, merged: Merged) -> None:
    tensors[ADAPTED] = _tensors(merged.base)[ADAPTED]


def _noisy(tensors: Tensors, _: Merged) -> None:
    """Each number of lm_head moves by 1 % of their standard deviation."""
    dtype, shape, data = tensors["lm_head.weight"]
    assert dtype == "BF16"
    numbers = [struct.unpack("<f", b"\0\0" + data[at : at + 2])[0] for at in range(0, len(data), 2)]
    spread = (sum(number * number for number in numbers) / len(numbers)) ** 0.5
    source = random.Random(1)
    moved = (number + 0.01 * spread * source.gauss() for number in numbers)
    rounded = ((int.from_bytes(struct.pack("<f", number), "little") + 0x8000) >> 16 for number in moved)
    tensors["lm_head.weight"] = (dtype, shape, b"".join(each.to_bytes(2, "little") for each in rounded))


def _tensors(directory: Path) -> Tensors:
    data = (directory / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    return {
        name: (each["dtype"], each["shape"], data[end + each["data_offsets"][0] : end + each["data_offsets"][1]])
        for name, each in header.items()
        if name != "__metadata__"
    }
