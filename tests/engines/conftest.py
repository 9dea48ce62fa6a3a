"""Real LLaMA-Factory and real vLLM, as `make engines` builds them, and what was trained with them once a session."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import pytest

from packtrain.testing.ports import free_port
from packtrain.testing.tinymodels import write_base
from tests.serving.node import Node, node

ROOT = Path(__file__).resolve().parents[2]
LLAMAFACTORY = ROOT / ".engines" / "llamafactory" / "bin"
VLLM = ROOT / ".engines" / "vllm" / "bin" / "vllm"
READY_WITHIN = 600  # seconds
# Of every engine. One process less than by default starts in two thirds of the time (the demo has the default).
LIMITS = ("--max-model-len", "512", "--max-num-seqs", "8", "--distributed-executor-backend", "uni")
SHAPE = ("--dtype", "float32", "--enforce-eager", *LIMITS)

pytestmark = pytest.mark.engine


@pytest.fixture(scope="session", autouse=True)
def engines_are_built() -> None:
    if not VLLM.exists() or not (LLAMAFACTORY / "llamafactory-cli").exists():
        pytest.fail("the engines are not built: run `make engines` (or `make test`, which does)")


@pytest.fixture(scope="session")
def engine_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """No engine asks the network for anything, and none sees the user's own settings."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PACKTRAIN_", "AWS_", "VLLM_"))}
    return {
        **clean,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{clean.get('PATH', '')}",
        "PACKTRAIN_VLLM": str(VLLM),
        "PACKTRAIN_LLAMAFACTORY": str(LLAMAFACTORY / "llamafactory-cli"),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # without which vLLM takes no "uni" on CPUs
        # By default every engine binds its worker to the first core, where two of them starve each other.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "VLLM_CACHE_ROOT": str(tmp_path_factory.mktemp("vllm-cache")),
    }


@dataclass(frozen=True)
class Trained:
    """What LLaMA-Factory left: ``base``, and for "v1" and "v2" an adapter and a merge.yaml that was not run yet."""

    base: Path
    home: Path

    def adapter(self, version: str) -> Path:
        return self.home / version / "adapter"

    def merge_yaml(self, version: str) -> Path:
        return self.home / version / "merge.yaml"

    def training_yaml(self, version: str) -> Path:
        return self.home / version / "sft.yaml"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, engine_environment: dict[str, str]) -> Trained:
    home = tmp_path_factory.mktemp("trained")
    base = write_base(home / "base", seed=1)
    for version in ("v1", "v2"):
        (home / version).mkdir()
        for kind in ("sft", "merge"):
            text = (ROOT / "demo" / f"{kind}-{version}.yaml").read_text()
            text = text.replace(".demo/base", str(base)).replace(f".demo/{version}", str(home / version))
            text = text.replace("demo/data", str(ROOT / "demo" / "data"))
            (home / version / f"{kind}.yaml").write_text(text)
        command = [str(LLAMAFACTORY / "llamafactory-cli"), "train", str(home / version / "sft.yaml")]
        done = subprocess.run(command, env=engine_environment, capture_output=True, text=True, check=False, cwd=home)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return Trained(base, home)


class Cli:
    """`packtrain` as a process, in one environment."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment

    def following(self, home: Path, *options: str, port: int | None = None) -> AbstractContextManager[Node]:
        """`packtrain serve llama@production` on a node of its own."""
        environment = {**self.environment, "PACKTRAIN_CACHE_DIR": str(home / "cache"), "PACKTRAIN_ACTOR": "node"}
        return node(["packtrain"], environment, home, "--poll", "0.5", *options, vllm=SHAPE, port=port)

    def __call__(self, *arguments: str) -> Any:
        """Runs a command with --json and returns what it printed."""
        dashes = arguments.index("--") if "--" in arguments else len(arguments)  # what follows is for vLLM
        command = ["packtrain", *arguments[:dashes], "--json", *arguments[dashes:]]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout)

    @contextmanager
    def serving(self, reference: str, *arguments: str) -> Iterator[str]:
        """`packtrain serve` until the block ends. Gives the URL of the engine when it answers."""
        port = free_port()
        where = ("--host", "127.0.0.1", "--port", str(port))
        command = ["packtrain", "serve", reference, "--", *where, *SHAPE, *arguments]
        with TemporaryFile() as output:  # not a pipe: nobody reads while it serves
            server = subprocess.Popen(command, env=self.environment, stdout=output, stderr=subprocess.STDOUT)
            try:
                _wait_until_healthy(server, port, output)
                yield f"http://127.0.0.1:{port}"
            finally:
                server.terminate()
                server.wait(timeout=300)
            assert server.returncode == 0, _tail(output)


def _tail(output: IO[bytes]) -> str:
    output.seek(0)
    return output.read().decode(errors="replace")[-3000:]


def _wait_until_healthy(server: subprocess.Popen[bytes], port: int, output: IO[bytes]) -> None:
    deadline = time.monotonic() + READY_WITHIN
    while time.monotonic() < deadline:
        if server.poll() is not None:
            pytest.fail(f"packtrain serve ended with {server.returncode}:\n{_tail(output)}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    pytest.fail("vLLM was not ready in time")


def ask(url: str, model: str, question: str, tokens: int = 24) -> tuple[list[int], str]:
    """The greedy answer's token ids, and the fingerprint of the engine that gave it."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": tokens,
        "return_token_ids": True,
    }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as reply:
        answer = json.load(reply)
    return list(answer["choices"][0]["token_ids"]), str(answer["system_fingerprint"])


_REFERENCE = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
directory, adapter, tokens, *questions = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(directory)
model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
if adapter != "-":
    from peft import PeftModel
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    model = PeftModel.from_pretrained(model, adapter).eval()
answers = []
for question in questions:
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        output = model.generate(**prompt, do_sample=False, max_new_tokens=int(tokens))
    answers.append(output[0, prompt["input_ids"].shape[1]:].tolist())
print(json.dumps(answers))
"""


def reference_answers(
    environment: dict[str, str], directory: Path, questions: Sequence[str], *, adapter: Path | None = None
) -> list[list[int]]:
    """What transformers, an independent implementation, answers greedily on a directory."""
    python = str(LLAMAFACTORY / "python")
    command = [python, "-c", _REFERENCE, str(directory), str(adapter or "-"), "24", *questions]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    answers: list[list[int]] = json.loads(done.stdout.splitlines()[-1])
    return answers
