"""What the proxy adds to a request, and how long a release and its way back take, beyond the engine's own start."""

from __future__ import annotations

import http.client
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from bench import tools
from bench.bench import Bench
from bench.results import Figure, Outcome
from packtrain.testing.ports import free_ports
from packtrain.testing.stub_vllm import write_executable
from packtrain.testing.tinymodels import write_base, write_merged

TITLE = "Serving"
POLL = 1.0  # seconds
NOTE = (
    "The proxy before an engine that answers at once, one request at a time over a connection that stays open, direct "
    "and through the proxy by turns. Then `packtrain serve NAME@production` with a stand-in for vLLM, polling every "
    "second, under the load of 4 clients: from the event in the ledger to the first answer of the version, less the "
    "time that its engine took to start."
)
REQUESTS = 1500
PROGRAMS = Path(__file__).parents[1] / "programs"


def run(bench: Bench) -> Outcome:
    return Outcome(TITLE, NOTE, [], [*_overhead(bench), *_releases(bench)])


# The proxy


def _overhead(bench: Bench) -> list[Figure]:
    engine, proxy = free_ports(2)
    with _program("instant.py", engine), _program("proxy.py", proxy, engine):
        direct, through = _Client(engine), _Client(proxy)
        plain: dict[_Client, list[float]] = {direct: [], through: []}
        first: dict[_Client, list[float]] = {direct: [], through: []}
        whole: dict[_Client, list[float]] = {direct: [], through: []}
        for number in range(REQUESTS * bench.runs // 5 + 50):
            for client in (direct, through) if number % 2 else (through, direct):
                took = client.plain()
                streams = client.stream() if number % 5 == 0 else None
                if number >= 50:  # warm
                    plain[client].append(took)
                    if streams:
                        first[client].append(streams[0])
                        whole[client].append(streams[1])

    def added(of: dict[_Client, list[float]], share: float) -> float:
        return 1000 * (_quantile(of[through], share) - _quantile(of[direct], share))

    return [
        Figure("added by the proxy to a request, median", added(plain, 0.5), "ms", 2),
        Figure("added by the proxy to a request, 99th percentile", added(plain, 0.99), "ms"),
        Figure("added by the proxy to the first byte of a stream, median", added(first, 0.5), "ms"),
        Figure("added by the proxy to a whole stream of 200 events, median", added(whole, 0.5), "ms"),
    ]


class _Client:
    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.body = json.dumps({"model": "m", "prompt": "hi"})
        self.headers = {"Content-Type": "application/json"}

    def plain(self) -> float:
        began = time.perf_counter()
        self.connection.request("POST", "/v1/completions", self.body, self.headers)
        self.connection.getresponse().read()
        return time.perf_counter() - began

    def stream(self) -> tuple[float, float]:
        began = time.perf_counter()
        self.connection.request("POST", "/v1/chat/completions", self.body, self.headers)
        reply = self.connection.getresponse()
        reply.read(1)
        first = time.perf_counter() - began
        reply.read()
        return first, time.perf_counter() - began


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


# Releases


def _releases(bench: Bench) -> list[Figure]:
    home = bench.work / "serving"
    home.mkdir()
    base = write_base(home / "base", seed=1)
    [port] = free_ports(1)
    environment = {
        **os.environ,
        "PACKTRAIN_STORE": str(home / "store"),
        "PACKTRAIN_CACHE_DIR": str(home / "cache"),
        "PACKTRAIN_VLLM": str(write_executable(home / "vllm")),
        "PACKTRAIN_POLL": str(POLL),
        "PACKTRAIN_WATCH_WINDOW": "2",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    for number in (1, 2):
        _packtrain(environment, "publish", str(write_merged(home / str(number), base, seed=number + 1)), "--name", "m")
    _packtrain(environment, "promote", "m/1", "--to", "production")
    log = home / "log"
    command = [*tools_command("serve", "m@production", "--json"), "--", "--host", "127.0.0.1", "--port", str(port)]
    promoted, back = [], []
    with log.open("wb") as said:
        server = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
    try:
        with _Load(port) as load:
            load.wait_for("m/1")
            for _ in range(bench.runs):
                promoted.append(_beyond_start(load, log, environment, 2, "promote", "m/2", "--to", "production"))
                time.sleep(4)  # it proves itself, and the old engine stops
                back.append(_beyond_start(load, log, environment, 1, "rollback", "m"))
                time.sleep(4)
        lost, answered = load.lost, load.answered
    finally:
        server.terminate()
        server.wait()
    print(f"  {answered} requests answered through {2 * bench.runs} switches, {lost} lost")
    return [
        Figure("promote to first answer, beyond the engine's start", statistics.median(promoted), "s"),
        Figure("rollback to first answer, cached, beyond the engine's start", statistics.median(back), "s"),
        Figure(f"requests lost of {answered} through {2 * bench.runs} switches", lost, "", 0),
    ]


def _beyond_start(load: _Load, log: Path, environment: dict[str, str], version: int, *command: str) -> float:
    """Seconds from the event in the ledger to the first answer, less those of the engine's start."""
    _packtrain(environment, *command)
    answered = load.wait_for(f"m/{version}")
    moved = json.loads(_packtrain(environment, "history", "m", "--json"))[-1]
    events = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    starting, healthy = (_last(events, name, version) for name in ("starting", "healthy"))
    return answered - _moment(moved["time"]) - (healthy - starting)


def _last(events: list[dict[str, Any]], name: str, version: int) -> float:
    found = [event["time"] for event in events if event["event"] == name and event.get("version") == version]
    return _moment(found[-1])


def _moment(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


class _Load:
    """Four clients that ask without a pause. ``lost``: requests that were not answered with 200."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.answered = self.lost = 0
        self._current, self._since = "", 0.0  # the newest version that answered, and since when
        self._changed = threading.Condition()
        self._over = False
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(4)]

    def __enter__(self) -> _Load:
        deadline = time.monotonic() + 60
        while True:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port)
                connection.request("GET", "/readyz")
                if connection.getresponse().status == 200:
                    break
            except OSError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.1)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        for thread in self._threads:
            thread.join()

    def wait_for(self, version: str) -> float:
        """When the first answer of the version that serves was there."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._current == version, 120):
                raise SystemExit(f"no answer of {version}")
            return self._since

    def _ask(self) -> None:
        body = json.dumps({"model": "m", "prompt": "hi", "max_tokens": 16})
        while not self._over:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
            try:
                connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
                reply = connection.getresponse()
                good = bool(reply.read()) and reply.status == 200
                version = reply.headers.get("X-Packtrain-Version", "")
            except (OSError, http.client.HTTPException):
                good, version = False, ""
            finally:
                connection.close()
            with self._changed:
                self.answered += good
                self.lost += not good
                if good and version != self._current:
                    self._current, self._since = version, time.time()
                    self._changed.notify_all()


def tools_command(*arguments: str) -> list[str]:
    return [str(Path(sys.executable).parent / "packtrain"), *arguments]


def _packtrain(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(tools_command(*arguments), env=environment, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"packtrain {' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    return done.stdout


@contextmanager
def _program(name: str, *ports: int) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, str(PROGRAMS / name), *map(str, ports)], cwd=tools.ROOT)
    try:
        _until(lambda: _listens(ports[0]))
        yield
    finally:
        process.terminate()
        process.wait()


def _listens(port: int) -> bool:
    try:
        http.client.HTTPConnection("127.0.0.1", port, timeout=5).connect()
    except OSError:
        return False
    return True


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("waited in vain for a program of the bench")
        time.sleep(0.05)
