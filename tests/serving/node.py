"""A node that follows an alias: `packtrain serve NAME@alias`, as a process, and what can be seen of it."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.serving.load import Answer, Load, ask

from packtrain.serving.processes import living
from packtrain.testing.ports import free_ports
from packtrain.testing.processes import running_with

SOON = 90.0  # seconds after which waiting has failed


def is_held(lock: Path) -> bool:
    """Whether some process has a lock on the file."""
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


class Node:
    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], port: int, log: Path, key: str = ""
    ) -> None:
        self.port, self.log, self.key = port, log, key
        with log.open("ab") as said:
            self.process = subprocess.Popen(command, env=dict(environment), stdout=said, stderr=said)

    def get(self, path: str, *, key: str = "") -> tuple[int, Any]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=SOON)) as connection:
            connection.request("GET", path, headers={"Authorization": f"Bearer {key}"} if key else {})
            reply = connection.getresponse()
            data = reply.read()
        try:
            return reply.status, json.loads(data)
        except ValueError:
            return reply.status, data.decode()

    @property
    def status(self) -> Any:
        return self.get("/status", key=self.key)[1]

    def ask(self, prompt: str = "hi", tokens: int = 8, *, stream: bool = False) -> Answer:
        return ask(self.port, "llama", prompt, tokens, stream=stream)

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def until(self, condition: Callable[[], object], what: str, within: float = SOON) -> None:
        deadline = time.monotonic() + within
        while True:
            with suppress(OSError, http.client.HTTPException):
                if condition():
                    return
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.said[-5000:]}"
            assert time.monotonic() < deadline, f"waited in vain for {what}:\n{self.said[-5000:]}"
            time.sleep(0.05)

    def until_serving(self, number: int, *, alone: bool = False, within: float = SOON) -> None:
        """``alone``: and no other engine is left."""

        def serves() -> bool:
            status = self.status
            serving = status["serving"] and status["serving"]["version"] == number
            return bool(serving and (not alone or len(status["engines"]) == 1))

        self.until(serves, f"version {number} to serve", within)

    def until_said(self, text: str) -> None:
        self.until(lambda: text in self.said, text)

    def until_answers(self, load: Load, number: int) -> None:
        """So many more of a version that a switch is behind it."""
        version = f"llama/{number}"
        seen = len(load.of(version))
        self.until(lambda: len(load.of(version)) > seen + 8, f"answers of {version}")

    def engine(self, stage: str = "serving") -> int:
        """The process group of an engine."""
        return next(int(engine["pid"]) for engine in self.status["engines"] if engine["stage"] == stage)

    @property
    def engines(self) -> list[int]:
        return [int(engine["pid"]) for engine in self.status["engines"] if engine["pid"]]

    def stop(self, signum: int = signal.SIGTERM) -> int:
        self.process.send_signal(signum)
        return self.process.wait(SOON)


@contextmanager
def node(
    program: Sequence[str],
    environment: Mapping[str, str],
    home: Path,
    *options: str,
    vllm: Sequence[str] = (),
    port: int | None = None,
) -> Iterator[Node]:
    """Follows llama@production until the block ends; then nothing of it may be left: no process, and no snapshot that
    is held. One that was killed inside the block may leave engines."""
    port = port or free_ports(1)[0]
    command = [*program, "serve", "llama@production", *options]
    command += ["--", "--host", "127.0.0.1", "--port", str(port), *vllm]
    key = vllm[vllm.index("--api-key") + 1] if "--api-key" in vllm else ""
    started = Node(command, environment, port, home / "serve.log", key)
    groups = set[int]()
    try:
        started.until(lambda: started.get("/healthz")[0] == 200, "it to listen")
        yield started
        if started.process.poll() is None:
            groups = set(started.engines)
            assert started.stop() == 0, started.said[-5000:]
            cache = Path(environment["PACKTRAIN_CACHE_DIR"])
            assert list(running_with("PACKTRAIN_CACHE_DIR", str(cache))) == []
            assert [lock.name for lock in (cache / "locks").iterdir() if is_held(lock)] == []
    finally:
        if started.process.poll() is None:
            with suppress(OSError, http.client.HTTPException):
                groups = set(started.engines)
            started.process.kill()
            started.process.wait()
            for group in groups:
                with suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGKILL)
    assert all(not living(group) for group in groups), "an engine was left"
