"""An engine's life, with real processes: the launcher, the stand-in for vLLM, and its child."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from packtrain.testing import tinymodels
from packtrain.testing.ports import free_port
from packtrain.testing.processes import living, members
from packtrain.testing.stub_vllm import write_executable

LAUNCHER = Path(__file__).with_name("launcher.py")
FINGERPRINT = "llama-finetuned/3@sha256:0123456789ab"
SOON = 120.0  # seconds after which waiting has failed


class Launched:
    """A launcher that was started, and what can be seen of it from outside."""

    def __init__(self, folder: Path, how: str, executable: Path, model: Path, words: list[str], **env: str) -> None:
        self.port = free_port()
        self.pin = folder / "pin"
        self._stderr = folder / "stderr"
        adapter, *more = words if words and words[0].startswith("/") else ["-", *words]
        command = [sys.executable, LAUNCHER, how, executable, model, self.pin, adapter]
        with self._stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                [*map(str, command), "--host", "127.0.0.1", "--port", str(self.port), *more],
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, **env},
            )
        self.group = 0  # the engine's, once it is known

    @property
    def said(self) -> str:
        return self._stderr.read_text()

    def ask(self, path: str, body: object = None) -> Any:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=SOON)) as connection:
            connection.request("POST" if body else "GET", path, json.dumps(body) if body else None)
            answer = connection.getresponse().read()
            return json.loads(answer) if answer else None

    def complete(self, model: str = "llama-finetuned") -> Any:
        return self.ask("/v1/completions", {"model": model, "prompt": "abc"})

    def until_said(self, text: str) -> None:
        until(lambda: text in self.said or self.process.poll() is not None, text)
        assert text in self.said

    def until_serving(self) -> dict[str, int]:
        """Waits for the engine itself, not for what is said of it. Gives its processes."""

        def serving() -> bool:
            with suppress(OSError):
                self.group = self.ask("/stub/processes")["server"]
            return self.group != 0

        until(serving, "the engine to serve")
        processes: dict[str, int] = self.ask("/stub/processes")
        return processes

    def send(self, signum: int) -> None:
        self.process.send_signal(signum)

    def end(self) -> int:
        return self.process.wait(SOON)

    def pinned(self) -> bool:
        return is_locked(self.pin)

    def clean_up(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        if self.group and members(self.group):
            with suppress(ProcessLookupError):
                os.killpg(self.group, signal.SIGKILL)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinymodels.write_base(tmp_path_factory.mktemp("models") / "base", seed=1)


@pytest.fixture
def launch(tmp_path: Path, base: Path) -> Iterator[Callable[..., Launched]]:
    executable = write_executable(tmp_path / "vllm")
    launched: list[Launched] = []

    def start(*words: str, how: str = "supervise", model: Path = base, vllm: Path = executable, **env: str) -> Launched:
        folder = tmp_path / str(len(launched))
        folder.mkdir()
        launched.append(Launched(folder, how, vllm, model, list(words), **env))
        return launched[-1]

    yield start
    for each in launched:
        each.clean_up()


def test_it_says_when_it_is_ready_and_ends_with_vllms_exit_code(launch: Callable[..., Launched]) -> None:
    engine = launch()
    engine.until_said(f"note: llama-finetuned is ready at http://127.0.0.1:{engine.port} after ")
    engine.until_serving()
    answer = engine.complete()
    assert (answer["model"], answer["system_fingerprint"]) == ("llama-finetuned", FINGERPRINT)
    assert engine.pinned()

    engine.send(signal.SIGTERM)
    assert engine.end() == 0
    assert members(engine.group) == []
    assert not engine.pinned()
    assert engine.process.stdout is not None
    assert engine.process.stdout.read() == b""


def test_an_adapter_answers_beside_its_base(launch: Callable[..., Launched], base: Path, tmp_path: Path) -> None:
    adapter = tinymodels.write_adapter(tmp_path / "an adapter, x=1", base, seed=2, rank=24)
    engine = launch(str(adapter))
    engine.until_serving()
    assert [(m["id"], m["parent"]) for m in engine.ask("/v1/models")["data"]] == [
        ("tiny-llama", None),
        ("llama-finetuned", "tiny-llama"),
    ]
    texts = {engine.complete(name)["choices"][0]["text"] for name in ("tiny-llama", "llama-finetuned")}
    assert len(texts) == 2


def test_an_engine_that_does_not_start(launch: Callable[..., Launched]) -> None:
    engine = launch(STUB_VLLM_EXIT="3")
    assert engine.end() == 3
    assert "note: vLLM ended with exit code 3 before it was ready" in engine.said
    assert not engine.pinned()


def test_a_directory_that_is_no_model(launch: Callable[..., Launched], tmp_path: Path) -> None:
    engine = launch(model=tmp_path)
    assert engine.end() == 1
    assert "has no config.json" in engine.said
    assert "before it was ready" in engine.said


def test_an_executable_that_cannot_be_executed(launch: Callable[..., Launched], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(0o755)
    engine = launch(vllm=broken)
    assert engine.end() == 127
    assert "ended with exit code 127 before it was ready" in engine.said
    becoming = launch(vllm=broken, how="exec")
    assert becoming.end() == 9
    assert f"error: {broken} does not start" in becoming.said


@pytest.mark.parametrize("child", [{}, {"STUB_VLLM_STUBBORN_CHILD": "1", "HASTE": "100"}], ids=["willing", "stubborn"])
def test_an_engine_that_crashes_leaves_nothing(launch: Callable[..., Launched], child: dict[str, str]) -> None:
    engine = launch(STUB_VLLM_CRASH="1", **child)
    engine.until_said("is ready")
    engine.until_serving()
    with pytest.raises((OSError, http.client.HTTPException)):
        engine.ask("/health")
    assert engine.end() == 128 + signal.SIGKILL
    assert members(engine.group) == []
    assert not engine.pinned()
    assert "note: vLLM was ended by SIGKILL" in engine.said
    assert "before it was ready" not in engine.said


def test_an_engine_dies_with_a_supervisor_that_is_killed(launch: Callable[..., Launched]) -> None:
    engine = launch()
    engine.until_serving()
    engine.send(signal.SIGKILL)
    engine.end()
    until(lambda: not members(engine.group), "the engine's processes to end")
    assert not engine.pinned()


def test_the_engine_holds_the_pin_longer_than_its_supervisor(launch: Callable[..., Launched], tmp_path: Path) -> None:
    answering = tmp_path / "answering"
    answering.touch()
    engine = launch("--shutdown-timeout", "60", STUB_VLLM_ANSWERING=str(answering))
    engine.until_serving()
    with in_flight(engine) as answers:
        engine.send(signal.SIGKILL)
        engine.end()
        assert engine.pinned()
        answering.unlink()
    assert answers[0]["system_fingerprint"] == FINGERPRINT
    until(lambda: not members(engine.group), "the engine's processes to end")
    assert not engine.pinned()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_requests_in_flight_are_answered(launch: Callable[..., Launched], tmp_path: Path, signum: int) -> None:
    answering = tmp_path / "answering"
    answering.touch()
    engine = launch("--shutdown-timeout", "60", STUB_VLLM_ANSWERING=str(answering))
    engine.until_serving()
    with in_flight(engine) as answers:
        engine.send(signum)
        engine.until_said("note: stopping vLLM, for at most 90 s")
        answering.unlink()
    assert answers[0]["model"] == "llama-finetuned"
    assert engine.end() == 0


def test_an_engine_that_does_not_end_is_killed_when_its_time_is_over(launch: Callable[..., Launched]) -> None:
    engine = launch(STUB_VLLM_STUBBORN_CHILD="1", HASTE="100")
    engine.until_serving()
    engine.send(signal.SIGTERM)
    assert engine.end() == 128 + signal.SIGKILL
    assert "note: killing vLLM" in engine.said
    assert members(engine.group) == []


def test_a_second_ctrl_c_kills_at_once(launch: Callable[..., Launched]) -> None:
    engine = launch("--shutdown-timeout", "100000", STUB_VLLM_STUBBORN_CHILD="1")
    engine.until_serving()
    engine.send(signal.SIGINT)
    engine.until_said("note: stopping vLLM")
    engine.send(signal.SIGINT)
    assert engine.end() == 128 + signal.SIGKILL
    assert members(engine.group) == []


def test_a_stop_while_the_model_loads(launch: Callable[..., Launched], tmp_path: Path) -> None:
    loading = tmp_path / "loading"
    loading.touch()
    engine = launch(STUB_VLLM_LOADING=str(loading))
    until(lambda: bool(engine_core_of(engine)), "the engine's child")
    engine.send(signal.SIGTERM)
    assert engine.end() == 0
    assert "ready" not in engine.said
    assert not engine.pinned()


def test_other_signals_go_to_the_engine(launch: Callable[..., Launched]) -> None:
    engine = launch()
    engine.until_serving()
    engine.send(signal.SIGUSR1)
    assert engine.end() == 128 + signal.SIGUSR1
    assert "vLLM was ended by SIGUSR1" in engine.said
    assert members(engine.group) == []


def test_a_signal_that_is_ignored_stays_ignored(launch: Callable[..., Launched], tmp_path: Path) -> None:
    nohup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        engine = launch()
    finally:
        signal.signal(signal.SIGHUP, nohup)
    engine.until_said("is ready")
    engine.send(signal.SIGHUP)
    assert engine.until_serving()["server"] == engine.group
    engine.send(signal.SIGTERM)
    assert engine.end() == 0


@pytest.mark.parametrize("how", ["supervise", "exec"])
def test_a_port_in_use_is_refused_before_anything_starts(launch: Callable[..., Launched], how: str) -> None:
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        engine = launch("--port", str(port), how=how)
        assert engine.end() == 9
    assert engine.said.startswith(f"error: port {port} is in use")
    assert "note:" not in engine.said


def test_readiness_that_cannot_be_seen_is_said_to_be_so(launch: Callable[..., Launched], tmp_path: Path) -> None:
    engine = launch("--ssl-keyfile", "key.pem")
    engine.until_serving()
    assert "note: with --ssl-keyfile, whether vLLM is ready cannot be seen" in engine.said
    engine.send(signal.SIGTERM)
    assert engine.end() == 0
    assert "is ready at" not in engine.said


def test_run_becomes_the_engine_and_keeps_the_pin(launch: Callable[..., Launched]) -> None:
    engine = launch(how="exec")
    assert engine.until_serving()["server"] == engine.process.pid
    assert engine.pinned()
    assert engine.complete()["system_fingerprint"] == FINGERPRINT
    engine.send(signal.SIGTERM)
    assert engine.end() == 0
    assert not engine.pinned()


class in_flight:  # noqa: N801
    """A request that the engine has and has not answered yet; its answer when the block is left."""

    def __init__(self, engine: Launched) -> None:
        self._engine = engine
        self._answers: list[Any] = []
        self._thread = threading.Thread(target=lambda: self._answers.append(engine.complete()))

    def __enter__(self) -> list[Any]:
        self._thread.start()
        until(lambda: self._engine.ask("/load")["server_load"] == 1, "the request to arrive")
        return self._answers

    def __exit__(self, *_: object) -> None:
        self._thread.join(SOON)
        assert self._answers, "the request was not answered"


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)


def engine_core_of(engine: Launched) -> list[int]:
    """The engine's child, found from outside. Only it has a parent whose parent is the launcher and its arguments."""
    table = list(living())
    engines = {pid for pid, parent, _ in table if parent == engine.process.pid}
    return [pid for pid, parent, _ in table if parent in engines and b"engine-core" in command_of(pid)]


def command_of(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def is_locked(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False
