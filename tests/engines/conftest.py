"""Real LLaMA-Factory and real vLLM, as `make engines` builds them, and what was trained with them once a session."""

from __future__ import annotations

import fcntl
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

from packtrain.serving import Arguments, Launch
from packtrain.serving.gate import Answering
from packtrain.serving.trial import trial
from packtrain.testing.ports import free_port
from packtrain.testing.tinymodels import write_base
from packtrain.wiring import SystemClock
from tests.serving.node import Node, node

ROOT = Path(__file__).resolve().parents[2]
LLAMAFACTORY = ROOT / ".engines" / "llamafactory" / "bin"
VLLM = ROOT / ".engines" / "vllm" / "bin" / "vllm"
READY_WITHIN = 600  # seconds
VERSIONS = ("v1", "v2")
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
    """What LLaMA-Factory left: ``base``, and for "v1" and "v2" an adapter. The merge.yaml of each, which was not run
    yet, is this process's own: it exports to ``own``."""

    base: Path
    home: Path
    own: Path

    def adapter(self, version: str) -> Path:
        return self.home / version / "adapter"

    def merge_yaml(self, version: str) -> Path:
        return self.own / version / "merge.yaml"

    def training_yaml(self, version: str) -> Path:
        return self.home / version / "sft.yaml"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, engine_environment: dict[str, str]) -> Trained:
    """By the first of pytest's processes that asks; the others wait for it."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    home, own = shared / "trained", tmp_path_factory.mktemp("own")
    with (shared / "trained.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "done").exists():
            home.mkdir()
            write_base(home / "base", seed=1)
            _train(home, engine_environment)
            (home / "done").touch()
    for version in VERSIONS:
        (own / version).mkdir()
        merge = _demo_yaml("merge", version, home).replace(
            str(home / version / "merged"), str(own / version / "merged")
        )
        (own / version / "merge.yaml").write_text(merge)
    return Trained(home / "base", home, own)


def _train(home: Path, environment: dict[str, str]) -> None:
    """Both at once: each has one thread."""
    running = []
    for version in VERSIONS:
        (home / version).mkdir()
        (home / version / "sft.yaml").write_text(_demo_yaml("sft", version, home))
        command = [str(LLAMAFACTORY / "llamafactory-cli"), "train", str(home / version / "sft.yaml")]
        with (home / version / "log").open("w") as log:
            running.append(subprocess.Popen(command, env=environment, cwd=home, stdout=log, stderr=subprocess.STDOUT))
    for version, training in zip(VERSIONS, running, strict=True):
        assert training.wait() == 0, (home / version / "log").read_text()[-3000:]


def _demo_yaml(kind: str, version: str, home: Path) -> str:
    """One of the demo's, for a base and an output below ``home``."""
    text = (ROOT / "demo" / f"{kind}-{version}.yaml").read_text()
    return text.replace(".demo/", f"{home}/").replace("demo/data", str(ROOT / "demo" / "data"))


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


@contextmanager
def engine(environment: dict[str, str], directory: Path, *arguments: str) -> Iterator[Answering]:
    """vLLM on a directory as "llama", which nobody else asks, and into which `load_weights` loads others."""
    environment = {**environment, "VLLM_SERVER_DEV_MODE": "1"}
    launch = Launch("llama", str(directory), "llama/1", Arguments(arguments), environment=environment)
    with trial(launch, str(VLLM), (), SystemClock()) as answering:
        yield answering


def load_weights(engine: Answering, directory: Path) -> None:
    """Others of the same shape, into the running engine: it spares a start."""
    change = {"method": "reload_weights", "kwargs": {"weights_path": str(directory)}}
    for path, body in (("/pause?mode=wait", {"mode": "wait"}), ("/collective_rpc", change), ("/resume", {"now": True})):
        status, answer = engine.ask(path, body)
        assert status == 200, (path, answer)


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
