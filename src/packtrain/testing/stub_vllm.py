"""A stand-in for vLLM, for tests and for the demo without engines. It is never an engine: it loads no model.

    python stub_vllm.py serve PATH [vllm serve arguments]

What it has in common with `vllm serve`, so far as starting, watching and stopping it goes:

- the arguments that Packtrain gives, with vLLM's rules for them; others are ignored;
- the port is taken at once, and listened on only when the model is "loaded": when PATH holds what a model needs;
- a child process, as vLLM's engine core is, which is left behind if this process is killed;
- /health, /version, /load, /metrics, /v1/models, /v1/completions, /v1/chat/completions, streamed or not, and
  `system_fingerprint`;
- VLLM_API_KEY, for what lies below /v1;
- SIGTERM and SIGINT end it with 0; with --shutdown-timeout, after the requests in flight.

With `return_token_ids` an answer also says token ids, and a prompt that is a list of them gets `prompt_logprobs`, which
agree: the likeliest token after some others depends on these and on the weights. A chat's tokens depend on the chat
template.

An answer depends on the question and on the SHA-256 of the weights, so that it shows which version gave it; it has as
many words as tokens were asked for, and at least four. /stub/processes gives the process ids. Knobs, by environment:

    STUB_VLLM_EXIT=N             fail to start, with this exit code
    STUB_VLLM_LOADING=PATH       not ready while PATH exists
    STUB_VLLM_ANSWERING=PATH     no completion is answered while PATH exists
    STUB_VLLM_STREAMING=PATH     no stream goes on after its first word while PATH exists
    STUB_VLLM_CRASH=1            kill itself when /health is asked for the second time
    STUB_VLLM_STUBBORN_CHILD=1   the child ignores SIGTERM, and this process waits for it
    STUB_VLLM_PACE=SECONDS       between two words of a stream

and by a file in the model, `stub_vllm.json`, so that one version behaves as no other does:

    exit: N           fail to start, with this exit code
    answers: "empty" | "nan" | "error" | "stall"      instead of an answer
    loading: SECONDS  until it is ready
    thinks: SECONDS   before the first word of a stream
    lives: N          requests; with the next one it kills itself, half way into the answer if that is streamed
    fails_after: N    requests; to the others the answer is an error
    drifts: NATS      its log-probabilities, each to where it likes

It needs nothing but the standard library and runs as a file: `write_executable` makes a command of it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

TICK = 0.02  # seconds
RIVALS = 20
ORPHANED_CHILD_LIVES = 60.0  # seconds; then it ends, so that a failing test leaves nothing for good
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def write_executable(path: Path) -> Path:
    """Writes the command ``path``, which does what `vllm` would be asked to do, and returns it."""
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(__file__)} "$@"\n')
    path.chmod(0o755)
    return path


class CannotServeError(Exception):
    """A model that vLLM would not load."""


class Model:
    """A name that can be asked for, and the digest of the weights that answer."""

    def __init__(
        self, name: str, root: str, weights: Sequence[Path], parent: str | None = None, template: Path | None = None
    ) -> None:
        digest = hashlib.sha256()
        for path in weights:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        self.name, self.root, self.parent = name, root, parent
        template = template or Path(root, "chat_template.jinja")
        self.template = template.read_bytes() if template.is_file() else b""
        self.digest = digest.hexdigest()

    def render(self, messages: Sequence[dict[str, str]]) -> list[int]:
        return [*hashlib.sha256(self.template).digest()[:4], *json.dumps(messages).encode()]

    def likeliest(self, tokens: Sequence[int], drifts: float = 0.0) -> dict[int, float]:
        """What may come after some tokens, by how likely it is."""
        seed = hashlib.sha256(f"{self.digest}\n{list(tokens)}".encode()).digest()
        ranked = dict.fromkeys(seed[:RIVALS])
        return {
            token: -0.2 - 1.1 * rank + (drifts if (token + len(tokens)) % 2 else -drifts)
            for rank, token in enumerate(ranked)
        }

    def greedy(self, tokens: Sequence[int], count: int) -> list[int]:
        found = list[int]()
        for _ in range(count):
            found.append(next(iter(self.likeliest([*tokens, *found]))))
        return found

    def answer(self, prompt: str, tokens: int = 0) -> str:
        words = ["weights", self.digest[:12], "say"]
        for number in range(max(1, tokens - 3)):
            words.append(hashlib.sha256(f"{self.digest}\n{prompt}\n{number}".encode()).hexdigest()[:8])
        return " ".join(words)


class Server(ThreadingHTTPServer):
    """Takes the port when made; listens when activated."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, host: str, port: int, fingerprint: str | None, crash: bool) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), Handler, bind_and_activate=False)
        self.server_bind()
        self.fingerprint, self.crash = fingerprint, crash
        self.models: dict[str, Model] = {}
        self.engine_core = 0
        self.health_asked = 0
        self.asked = 0
        self.behaviour: dict[str, Any] = {}
        self.in_flight = 0
        self.lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    completions: ClassVar = {"/v1/completions": "text_completion", "/v1/chat/completions": "chat.completion"}

    def do_GET(self) -> None:
        if self.path == "/health":
            self.health()
        elif self.path == "/version":
            self.send({"version": "stub"})
        elif self.path == "/load":
            self.send({"server_load": self.server.in_flight})
        elif self.path == "/metrics":
            self.send_text("vllm:num_requests_running 0.0\n")
        elif not self.has_key():
            self.fail(HTTPStatus.UNAUTHORIZED, "Unauthorized")
        elif self.path == "/v1/models":
            models = [
                {"id": m.name, "object": "model", "owned_by": "stub", "root": m.root, "parent": m.parent}
                for m in self.server.models.values()
            ]
            self.send({"object": "list", "data": models})
        elif self.path == "/stub/processes":
            self.send({"server": os.getpid(), "engine_core": self.server.engine_core})
        else:
            self.fail(HTTPStatus.NOT_FOUND, "Not Found")

    def do_POST(self) -> None:
        body = self.body()
        if self.path not in self.completions:
            self.fail(HTTPStatus.NOT_FOUND, "Not Found")
            return
        if not self.has_key():
            self.fail(HTTPStatus.UNAUTHORIZED, "Unauthorized")
            return
        with self.server.lock:
            self.server.in_flight += 1
        try:
            wait_while(lambda: exists(os.environ.get("STUB_VLLM_ANSWERING")))
            self.complete(json.loads(body))
        except (ValueError, KeyError, TypeError) as error:
            self.fail(HTTPStatus.BAD_REQUEST, f"not a request: {error!r}")
        finally:
            with self.server.lock:
                self.server.in_flight -= 1

    def health(self) -> None:
        with self.server.lock:
            self.server.health_asked += 1
        if self.server.crash and self.server.health_asked > 1:
            os.kill(os.getpid(), signal.SIGKILL)
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def has_key(self) -> bool:
        key = os.environ.get("VLLM_API_KEY")
        return not key or not self.path.startswith("/v1") or self.headers.get("Authorization") == f"Bearer {key}"

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def complete(self, request: dict[str, Any]) -> None:
        model = self.server.models.get(request["model"])
        if model is None:
            self.fail(HTTPStatus.NOT_FOUND, f"The model `{request['model']}` does not exist.")
            return
        behaviour = self.server.behaviour
        with self.server.lock:
            self.server.asked += 1
            dies = self.server.asked > behaviour.get("lives", math.inf)
        match "error" if self.server.asked > behaviour.get("fails_after", math.inf) else behaviour.get("answers"):
            case "error":
                self.fail(HTTPStatus.INTERNAL_SERVER_ERROR, "told to fail")
                return
            case "stall":
                time.sleep(ORPHANED_CHILD_LIVES)
            case _:
                pass
        chat = self.path == "/v1/chat/completions"
        if request.get("prompt_logprobs"):
            self.score(model, request)
            return
        text = model.answer(json.dumps(request["messages" if chat else "prompt"]), int(request.get("max_tokens") or 0))
        words = [] if behaviour.get("answers") == "empty" else text.split(" ")
        if request.get("stream"):
            self.stream(model, words, chat, dies)
            return
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        text = " ".join(words)
        said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        logprobs = self.logprobs(words, chat) if request.get("logprobs") else None
        usage = {"prompt_tokens": 1, "completion_tokens": len(words), "total_tokens": 1 + len(words)}
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "logprobs": logprobs, **said}
        document = {**self.envelope(model, self.completions[self.path]), "choices": [choice], "usage": usage}
        if request.get("return_token_ids"):
            prompt = model.render(request["messages"]) if chat else list(str(request["prompt"]).encode())
            choice["token_ids"] = model.greedy(prompt, int(request["max_tokens"]))
            (document if chat else choice)["prompt_token_ids"] = prompt
        self.send(document)

    def score(self, model: Model, request: dict[str, Any]) -> None:
        """As vLLM: nothing about the first token, and of each other one its rivals and itself."""
        sequence, drifts = request["prompt"], float(self.server.behaviour.get("drifts", 0))
        scores: list[dict[str, Any] | None] = [None]
        for place in range(1, len(sequence)):
            likely = model.likeliest(sequence[:place], drifts)
            likely.setdefault(sequence[place], -30.0)
            scores.append({str(token): {"logprob": score} for token, score in likely.items()})
        choice = {"index": 0, "finish_reason": "length", "text": "", "logprobs": None, "prompt_logprobs": scores}
        self.send({**self.envelope(model, "text_completion"), "choices": [choice]})

    def envelope(self, model: Model, kind: str) -> dict[str, Any]:
        return {
            "id": f"cmpl-{self.headers.get('X-Request-Id') or time.monotonic_ns()}",
            "object": kind,
            "created": int(time.time()),
            "model": model.name,
            "system_fingerprint": self.server.fingerprint,
        }

    def logprobs(self, words: Sequence[str], chat: bool) -> dict[str, Any]:
        value = math.nan if self.server.behaviour.get("answers") == "nan" else -0.5
        if chat:
            return {"content": [{"token": word, "logprob": value} for word in words]}
        return {"tokens": words, "token_logprobs": [value] * len(words)}

    def stream(self, model: Model, words: Sequence[str], chat: bool, dies: bool) -> None:
        """A word an event. Stops when the client is gone."""
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        time.sleep(self.server.behaviour.get("thinks", 0))
        envelope = self.envelope(model, "chat.completion.chunk" if chat else "text_completion")
        for number, word in enumerate(words):
            if dies and number == len(words) // 2:
                os.kill(os.getpid(), signal.SIGKILL)
            text = f" {word}" if number else word
            said = {"delta": {"content": text}} if chat else {"text": text}
            self.event(json.dumps({**envelope, "choices": [{"index": 0, "finish_reason": None, **said}]}))
            time.sleep(float(os.environ.get("STUB_VLLM_PACE", "0")))
            wait_while(lambda: exists(os.environ.get("STUB_VLLM_STREAMING")))
        self.event("[DONE]")
        self.chunk(b"")

    def event(self, data: str) -> None:
        self.chunk(f"data: {data}\n\n".encode())

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def send_text(self, text: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def send(self, value: object, status: HTTPStatus = HTTPStatus.OK) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def fail(self, status: HTTPStatus, message: str) -> None:
        self.send({"error": {"message": message, "type": status.phrase, "code": status.value}}, status)

    def log_message(self, format: str, *args: Any) -> None:
        print(f"stub_vllm: {format % args}", file=sys.stderr)


def main(arguments: Sequence[str]) -> int:
    if arguments == ["engine-core"]:
        return engine_core()
    wanted = parse(arguments)
    if "STUB_VLLM_EXIT" in os.environ:
        print("stub_vllm: told to fail", file=sys.stderr)
        return int(os.environ["STUB_VLLM_EXIT"])
    try:
        return serve(wanted)
    except (CannotServeError, OSError) as error:
        print(f"stub_vllm: {error}", file=sys.stderr)
        return 1


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="stub_vllm")
    serve = parser.add_subparsers(required=True).add_parser("serve")
    serve.add_argument("model")
    serve.add_argument("--served-model-name", nargs="+")
    serve.add_argument("--host", default="")
    serve.add_argument("--port", type=int, default=8000)
    serve.add_argument("--revision")
    serve.add_argument("--fingerprint-mode", choices=["full", "hash", "custom", "none"], default="full")
    serve.add_argument("--fingerprint-value")
    serve.add_argument("--enable-lora", action="store_true")
    serve.add_argument("--max-lora-rank", type=int, choices=LORA_RANKS, default=16)
    serve.add_argument("--lora-modules", nargs="+", default=[])
    serve.add_argument("--chat-template", type=Path)
    serve.add_argument("--shutdown-timeout", type=int, default=0)
    return parser.parse_known_args(arguments)[0]


def serve(wanted: argparse.Namespace) -> int:
    signals = list[int]()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda number, _: signals.append(number))

    fingerprint = {"custom": wanted.fingerprint_value, "none": None}.get(wanted.fingerprint_mode, "stub-vllm")
    server = Server(wanted.host, wanted.port, fingerprint, crash="STUB_VLLM_CRASH" in os.environ)
    server.models = {model.name: model for model in load(wanted)}
    server.behaviour = behaviour(Path(wanted.model))
    if code := server.behaviour.get("exit"):
        print("stub_vllm: the model says that it does not start", file=sys.stderr)
        return int(code)
    ready_at = time.monotonic() + server.behaviour.get("loading", 0)
    with subprocess.Popen([sys.executable, __file__, "engine-core"], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()  # it is up
            server.engine_core = child.pid
            wait_while(
                lambda: (exists(os.environ.get("STUB_VLLM_LOADING")) or time.monotonic() < ready_at) and not signals
            )
            if not signals:
                server.server_activate()
                threading.Thread(target=server.serve_forever, args=(TICK,), daemon=True).start()
                wait_while(lambda: not signals)
                drained_by = time.monotonic() + wanted.shutdown_timeout
                wait_while(lambda: server.in_flight > 0 and time.monotonic() < drained_by)
            server.server_close()
        finally:
            child.terminate()
    return 0


def load(wanted: argparse.Namespace) -> list[Model]:
    """The base under each of its names, and the adapters. Raises CannotServeError."""
    root = Path(wanted.model)
    weights = base_weights(root)
    names = wanted.served_model_name or [wanted.model]
    models = [Model(name, wanted.model, weights, template=wanted.chat_template) for name in names]
    for module in wanted.lora_modules:
        name, _, path = module.partition("=")
        if module.startswith("{"):
            name, path = (json.loads(module)[key] for key in ("name", "path"))
        models.append(
            Model(name, path, [*weights, adapter_weights(Path(path), wanted)], names[0], wanted.chat_template)
        )
    return models


def behaviour(root: Path) -> dict[str, Any]:
    """What the model says of its own engine."""
    path = root / "stub_vllm.json"
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def base_weights(root: Path) -> list[Path]:
    if not (root / "config.json").is_file():
        raise CannotServeError(f"{root} has no config.json")
    if not any((root / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        raise CannotServeError(f"{root} has no tokenizer")
    index = root / "model.safetensors.index.json"
    if index.is_file():
        weights = [root / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    else:
        weights = sorted(root.glob("*.safetensors"))
    if not weights or not all(path.is_file() for path in weights):
        raise CannotServeError(f"{root} lacks weights")
    return weights


def adapter_weights(path: Path, wanted: argparse.Namespace) -> Path:
    if not wanted.enable_lora:
        raise CannotServeError("--lora-modules without --enable-lora")
    try:
        rank = json.loads((path / "adapter_config.json").read_text())["r"]
    except (OSError, ValueError, KeyError) as error:
        raise CannotServeError(f"{path} is not an adapter: {error!r}") from error
    if rank > wanted.max_lora_rank:
        raise CannotServeError(f"LoRA rank {rank} is greater than max_lora_rank {wanted.max_lora_rank}")
    weights = path / "adapter_model.safetensors"
    if not weights.is_file():
        raise CannotServeError(f"{path} has no adapter_model.safetensors")
    return weights


def engine_core() -> int:
    """The child. Like vLLM's, it does not hear Ctrl-C itself, and does not end with a parent that is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if "STUB_VLLM_STUBBORN_CHILD" in os.environ:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = os.getppid()
    print("up", flush=True)
    while os.getppid() == parent:
        time.sleep(0.5)
    time.sleep(ORPHANED_CHILD_LIVES)
    return 0


def wait_while(condition: Callable[[], bool]) -> None:
    while condition():
        time.sleep(TICK)


def exists(path: str | None) -> bool:
    return path is not None and Path(path).exists()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
