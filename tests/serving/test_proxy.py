"""The proxy, over real connections: clients before it, and behind it an engine that does what a test tells it."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import takewhile
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from packtrain.errors import EngineError
from packtrain.model.rollout import Vitals
from packtrain.serving.arguments import Endpoint
from packtrain.serving.edge import Edge
from packtrain.serving.metrics import Metrics
from packtrain.serving.proxy import KEPT_BODY, Proxy
from packtrain.serving.traffic import Backend, Traffic
from packtrain.testing.ports import free_ports

SOON = 120.0  # seconds after which waiting has failed
EVENTS = "Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"

Answer = Callable[[socket.socket, bytes, bytes], None]


class Engine:
    """Takes connections and gives each request's head and body to ``answer``, which writes to the socket."""

    def __init__(self, number: int, answer: Answer, *, healthy: bool = True, version: int | None = None) -> None:
        self.answer = answer
        self.healthy = healthy
        self.requests: list[tuple[bytes, bytes]] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.backend = Backend(
            number, f"http://127.0.0.1:{self.port}", "inner", "llama", version or number, f"sha256:{version or number}"
        )
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream, suppress(OSError):
            while head := b"".join(takewhile(lambda line: line not in (b"", b"\r\n"), stream)):
                fields = dict(line.lower().split(b": ", 1) for line in head.splitlines()[1:])
                body = stream.read(int(fields.get(b"content-length", 0)))
                if fields.get(b"transfer-encoding") == b"chunked":
                    pieces = []
                    while size := int(stream.readline(), 16):
                        pieces.append(stream.read(size + 2)[:-2])
                    stream.readline()
                    body = b"".join(pieces)
                if head.startswith(b"GET /health "):
                    status = b"200 OK" if self.healthy else b"503 Service Unavailable"
                    connection.sendall(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")
                    continue
                self.requests.append((head, body))
                self.answer(connection, head, body)
            return

    def close(self) -> None:
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self._threads:
            thread.join(SOON)


def reply(text: str, status: str = "200 OK", more: str = "") -> Answer:
    def answer(connection: socket.socket, _head: bytes, _body: bytes) -> None:
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n{more}\r\n"
        connection.sendall((head + text).encode())

    return answer


def hang_up(connection: socket.socket, *_: bytes) -> None:
    connection.shutdown(socket.SHUT_RDWR)
    raise OSError("told to hang up")


def chunk(text: str) -> bytes:
    return f"{len(text):x}\r\n{text}\r\n".encode()


def events(*texts: str, end: bool = True) -> Answer:
    def answer(connection: socket.socket, *_: bytes) -> None:
        connection.sendall(f"HTTP/1.1 200 OK\r\n{EVENTS}\r\n".encode())
        for text in texts:
            connection.sendall(chunk(f"data: {text}\n\n"))
        if not end:
            hang_up(connection)
        connection.sendall(b"0\r\n\r\n")

    return answer


class World:
    def __init__(self, edge: Edge, metrics: Metrics) -> None:
        self.edge, self.metrics = edge, metrics
        self.engines: list[Engine] = []

    def engine(self, answer: Answer, *, opened: bool = True, **more: Any) -> Engine:
        engine = Engine(len(self.engines) + 1, answer, **more)
        self.engines.append(engine)
        if opened:
            self.direct(engine)
        return engine

    def direct(self, engine: Engine | None) -> None:
        self.edge.call(self.edge.traffic.direct, engine.backend if engine else None)

    def begin(self, method: str, path: str, body: Any = None, **headers: str) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self.edge.endpoint.port, timeout=SOON)
        data = json.dumps(body) if isinstance(body, dict) else body
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, data, names, encode_chunked=True)
        return connection

    def ask(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        with closing(self.begin(method, path, body, **headers)) as connection:
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    def counted(self, name: str, **labels: str) -> float:
        value = self.metrics.registry.get_sample_value(name, labels)
        return value or 0.0

    def until_ended(self, version: str, outcome: str) -> None:
        """A client may have the end of an answer before it is counted."""
        until(lambda: self.counted("packtrain_requests_total", version=version, outcome=outcome) == 1)

    def vitals(self, engine: Engine) -> Vitals:
        return self.edge.call(self.edge.traffic.vitals, engine.backend.engine)


@contextmanager
def world(keys: tuple[str, ...] = (), hold: float = SOON) -> Iterator[World]:
    metrics = Metrics()
    [port] = free_ports(1)
    proxy = Proxy(Traffic(), metrics, keys=keys, hold=hold)
    with Edge(Endpoint("127.0.0.1", port), proxy, metrics, key="own", status=lambda: {"model": "llama"}) as edge:
        made = World(edge, metrics)
        yield made
        edge.call(edge.traffic.end)
    for engine in made.engines:
        engine.close()


@pytest.fixture
def w() -> Iterator[World]:
    with world() as made:
        yield made


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


ASK = ("POST", "/v1/completions", {"model": "llama", "prompt": "hi"})


def test_an_answer_names_its_version(w: World) -> None:
    engine = w.engine(reply('{"id": 1}', more="Connection: keep-alive\r\nX-Other: kept\r\n"), version=7)
    status, headers, body = w.ask(*ASK, X_Request_Id="abc", Authorization="Bearer mine", Cookie="a=b")
    assert (status, body) == (200, b'{"id": 1}')
    assert headers["X-Packtrain-Version"] == "llama/7"
    assert headers["X-Packtrain-Digest"] == "sha256:7"
    assert (headers["X-Request-Id"], headers["X-Other"]) == ("abc", "kept")
    [(head, sent)] = engine.requests
    assert json.loads(sent) == ASK[2]
    assert b"X-Request-Id: abc" in head and b"Bearer inner" in head and b"mine" not in head and b"a=b" in head
    w.until_ended("7", "complete")
    assert w.vitals(engine) == Vitals(1, 0, None)
    assert w.ask(*ASK)[1]["X-Request-Id"]  # one is made where the client has none


def test_a_stream_is_passed_on_as_it_comes(w: World) -> None:
    go_on = threading.Event()

    def answer(connection: socket.socket, *_: bytes) -> None:
        connection.sendall(f"HTTP/1.1 200 OK\r\n{EVENTS}\r\n".encode() + chunk("data: one\n\n"))
        assert go_on.wait(SOON)
        connection.sendall(chunk("data: [DONE]\n\n") + b"0\r\n\r\n")

    engine = w.engine(answer)
    with closing(w.begin(*ASK)) as connection:
        response = connection.getresponse()
        assert response.read1(64) == b"data: one\n\n"  # while the engine has not said more
        assert w.edge.traffic.exchanges[engine.backend.engine]
        go_on.set()
        assert response.read() == b"data: [DONE]\n\n"
    latency = w.vitals(engine).latency
    assert latency is not None and latency > 0
    assert w.counted("packtrain_time_to_first_byte_seconds_count", version="1") == 1


def test_a_client_that_leaves_takes_its_request_with_it(w: World) -> None:
    left = threading.Event()

    def answer(connection: socket.socket, *_: bytes) -> None:
        connection.sendall(f"HTTP/1.1 200 OK\r\n{EVENTS}\r\n".encode() + chunk("data: one\n\n"))
        if connection.recv(1) == b"":
            left.set()
        raise OSError

    w.engine(answer)
    with closing(w.begin(*ASK)) as connection:
        assert connection.getresponse().read1(64) == b"data: one\n\n"
    assert left.wait(SOON)
    w.until_ended("", "cancelled")
    assert not w.edge.traffic.exchanges


def test_a_client_that_leaves_before_the_answer(w: World) -> None:
    asked, left = threading.Event(), threading.Event()

    def answer(connection: socket.socket, *_: bytes) -> None:
        asked.set()
        if connection.recv(1) == b"":
            left.set()
        raise OSError

    w.engine(answer)
    with closing(w.begin(*ASK)):
        assert asked.wait(SOON)
    assert left.wait(SOON)


@pytest.mark.parametrize("size", [KEPT_BODY // 2, KEPT_BODY * 2])
def test_large_bodies(w: World, size: int) -> None:
    engine = w.engine(reply("{}"))
    body = bytes(range(256)) * (size // 256)
    assert w.ask("POST", "/v1/audio/transcriptions", body)[0] == 200
    assert (
        w.ask("POST", "/v1/audio/transcriptions", iter([body[:99], body[99:]]), Transfer_Encoding="chunked")[0] == 200
    )
    assert [sent == body for _, sent in engine.requests] == [True, True]


def test_a_request_is_asked_again_of_the_next_engine_of_the_same_version(w: World) -> None:
    first = w.engine(hang_up, version=3, healthy=False)
    second = w.engine(reply('{"id": 2}'), opened=False, version=3)
    with closing(w.begin(*ASK)) as connection:
        until(lambda: first.requests)
        w.direct(second)
        assert connection.getresponse().read() == b'{"id": 2}'
    assert w.counted("packtrain_request_retries_total") == 1
    w.until_ended("3", "complete")


def test_a_request_is_never_asked_of_another_version(w: World) -> None:
    first = w.engine(hang_up, version=3, healthy=False)
    second = w.engine(reply("{}"), opened=False, version=2)
    with closing(w.begin(*ASK)) as connection:
        until(lambda: first.requests)
        w.direct(second)
        response = connection.getresponse()
        assert response.status == 502
        assert response.headers["X-Packtrain-Version"] == "llama/3"
        assert "llama/3 could not answer" in json.loads(response.read())["error"]["message"]
    assert second.requests == []
    w.until_ended("3", "failed")


def test_a_request_that_kills_engines_is_given_up(w: World) -> None:
    engine = w.engine(hang_up)
    status, _, body = w.ask(*ASK)
    assert (status, len(engine.requests)) == (502, 2)
    assert json.loads(body)["error"]["type"] == "server_error"
    assert w.vitals(engine) == Vitals(2, 2, None)


def test_an_error_of_a_healthy_engine_is_its_answer_and_that_of_a_dying_one_is_not(w: World) -> None:
    w.engine(reply('{"error": "mine"}', "500 Internal Server Error"))
    assert w.ask(*ASK)[::2] == (500, b'{"error": "mine"}')
    w.until_ended("1", "failed")
    dying = w.engine(reply('{"error": "EngineDeadError"}', "500 Internal Server Error"), healthy=False, version=1)
    healthy = w.engine(reply("{}"), opened=False, version=1)
    with closing(w.begin(*ASK)) as connection:
        until(lambda: dying.requests)
        w.direct(healthy)
        assert connection.getresponse().status == 200


def test_the_clients_own_errors_are_no_failures(w: World) -> None:
    engine = w.engine(reply('{"error": "no such model"}', "404 Not Found"))
    assert w.ask(*ASK)[0] == 404
    assert w.vitals(engine) == Vitals(1, 0, None)
    w.until_ended("1", "refused")


@pytest.mark.parametrize(
    "answer",
    [events("one", end=False), events("one")],
    ids=["the connection broke", "the end is missing"],
)
def test_a_broken_stream_ends_with_an_error(w: World, answer: Answer) -> None:
    engine = w.engine(answer)
    status, headers, body = w.ask(*ASK)
    assert status == 200
    first, last = [line for line in body.decode().split("\n\n") if line]
    assert first == "data: one"
    assert "llama/1: the engine broke off" in json.loads(last.removeprefix("data: "))["error"]["message"]
    assert headers["X-Packtrain-Version"] == "llama/1"
    w.until_ended("1", "broken")
    assert w.vitals(engine).failures == 1


def test_a_broken_answer_that_is_no_stream_of_events_does_not_look_complete(w: World) -> None:
    def answer(connection: socket.socket, *_: bytes) -> None:
        head = "HTTP/1.1 200 OK\r\nContent-Type: audio/wav\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode() + chunk("RIFF"))
        hang_up(connection)

    w.engine(answer)
    with closing(w.begin("POST", "/v1/audio/speech", {})) as connection:
        response = connection.getresponse()
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            response.read()


def test_an_error_event_of_the_engine_counts(w: World) -> None:
    engine = w.engine(events('{"error": {"message": "EngineCore died"}}', "[DONE]"))
    assert b"EngineCore died" in w.ask(*ASK)[2]
    w.until_ended("1", "broken")
    assert w.vitals(engine).failures == 1


def test_streams_that_other_paths_end_in_their_own_way(w: World) -> None:
    w.engine(events('{"type": "response.completed"}'))
    assert w.ask("POST", "/v1/responses", {})[2] == b'data: {"type": "response.completed"}\n\n'
    w.until_ended("1", "complete")


def test_requests_wait_for_an_engine(w: World) -> None:
    assert w.ask("GET", "/readyz")[0] == w.ask("GET", "/health")[0] == 503
    assert w.ask("GET", "/healthz")[0] == 200
    with closing(w.begin(*ASK)) as connection:
        until(lambda: w.edge.traffic.waiting == 1)
        w.engine(reply("{}"))
        assert connection.getresponse().status == 200
    assert w.ask("GET", "/readyz")[0] == w.ask("GET", "/health")[0] == 200


def test_nobody_waits_for_ever() -> None:
    with world(hold=0.01) as w:
        status, headers, body = w.ask(*ASK)
        assert (status, headers["Retry-After"]) == (503, "5")
        assert json.loads(body)["error"]["code"] == "no_engine"


def test_what_waits_is_told_when_the_server_stops(w: World) -> None:
    with closing(w.begin(*ASK)) as connection:
        until(lambda: w.edge.traffic.waiting == 1)
        w.edge.call(w.edge.traffic.end)
        response = connection.getresponse()
        assert response.status == 503
        assert "stopping" in json.loads(response.read())["error"]["message"]
    assert w.ask(*ASK)[0] == 503


def test_a_drain_waits_for_what_is_in_flight(w: World) -> None:
    go_on, drained = threading.Event(), threading.Event()

    def answer(connection: socket.socket, *_: bytes) -> None:
        assert go_on.wait(SOON)
        reply('{"id": 1}')(connection, b"", b"")

    first = w.engine(answer)
    second = w.engine(reply('{"id": 2}'), opened=False)
    with closing(w.begin(*ASK)) as connection:
        until(lambda: first.requests)
        w.direct(second)
        w.edge.call(w.edge.traffic.drain, first.backend.engine, SOON, drained.set)
        assert w.ask(*ASK)[2] == b'{"id": 2}'
        assert not drained.is_set()
        go_on.set()
        assert connection.getresponse().read() == b'{"id": 1}'
    assert drained.wait(SOON)


@pytest.mark.parametrize("streams", [True, False])
def test_what_takes_longer_than_the_drain_ends_with_an_error(w: World, streams: bool) -> None:
    drained = threading.Event()

    def answer(connection: socket.socket, *_: bytes) -> None:
        if streams:
            connection.sendall(f"HTTP/1.1 200 OK\r\n{EVENTS}\r\n".encode() + chunk("data: one\n\n"))
        connection.recv(1)
        raise OSError

    engine = w.engine(answer)
    with closing(w.begin(*ASK)) as connection:
        until(lambda: engine.requests)
        response = connection.getresponse() if streams else None
        if response is not None:
            assert response.read1(64) == b"data: one\n\n"
        w.edge.call(w.edge.traffic.drain, engine.backend.engine, 0.01, drained.set)
        response = response or connection.getresponse()
        assert b"longer than the 0 s of a drain" in response.read()
        assert response.status == (200 if streams else 502)
    assert drained.wait(SOON)
    outcome = "broken" if streams else "failed"
    w.until_ended("1", outcome)


def test_a_drain_that_is_called_off(w: World) -> None:
    drained = threading.Event()
    engine = w.engine(reply("{}"))
    go_on = threading.Event()
    engine.answer = lambda connection, *_: go_on.wait(SOON) and reply("{}")(connection, b"", b"")  # type: ignore[assignment,func-returns-value]
    with closing(w.begin(*ASK)) as connection:
        until(lambda: engine.requests)
        w.edge.call(w.edge.traffic.drain, engine.backend.engine, SOON, drained.set)
        w.direct(engine)
        go_on.set()
        assert connection.getresponse().status == 200
    assert not drained.is_set()


def test_the_key_guards_everything_that_answers() -> None:
    with world(keys=("sesame", "other")) as w:
        w.engine(reply("{}"))
        for path in ("/v1/models", "/invocations", "/tokenize", "/anything"):
            assert w.ask("GET", path)[0] == 401
            assert w.ask("GET", path, Authorization="Bearer wrong")[0] == 401
            assert w.ask("GET", path, Authorization="sesame")[0] == 401
            assert w.ask("GET", path, Authorization="Bearer other")[0] == 200
        for path in ("/health", "/healthz", "/readyz", "/metrics"):
            assert w.ask("GET", path)[0] == 200
        assert w.ask("GET", "/status")[0] == 401
        assert w.ask("GET", "/status", Authorization="Bearer sesame")[0] == 200
        assert w.ask("GET", "/status", X_Packtrain_Key="own")[0] == 200


def test_models_name_the_version(w: World) -> None:
    listed = {"object": "list", "data": [{"id": "llama", "root": "/secret/path"}]}
    w.engine(reply(json.dumps(listed)), version=4)
    [entry] = json.loads(w.ask("GET", "/v1/models")[2])["data"]
    assert entry["id"] == "llama"
    assert entry["packtrain"] == {"model": "llama", "version": 4, "digest": "sha256:4"}
    assert "secret" not in entry["root"]


def test_metrics_are_ours_and_the_engines(w: World) -> None:
    w.engine(reply("# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 3.0\n"))
    w.ask(*ASK)
    families = list(text_string_to_metric_families(w.ask("GET", "/metrics")[2].decode()))
    names = [family.name for family in families]
    assert "vllm:num_requests_running" in names and "packtrain_requests" in names
    assert len(names) == len(set(names))


def test_what_is_no_request_of_this_kind(w: World) -> None:
    w.engine(reply("{}"))
    assert w.ask("GET", "/v1/realtime", Upgrade="websocket", Connection="Upgrade")[0] == 501


def test_queries_and_escapes_arrive_as_they_were_sent(w: World) -> None:
    engine = w.engine(reply("{}"))
    w.ask("GET", "/v1/files/a%2Fb?after=x%20y&b=%C3%A9")
    assert engine.requests[0][0].startswith(b"GET /v1/files/a%2Fb?after=x%20y&b=%C3%A9 HTTP/1.1")


def test_a_port_that_is_taken_is_said() -> None:
    metrics = Metrics()
    proxy = Proxy(Traffic(), metrics, keys=(), hold=1)
    with world() as w:
        second = Edge(w.edge.endpoint, proxy, metrics, key="", status=dict)
        with pytest.raises(EngineError, match=f"port {w.edge.endpoint.port} is in use"):
            second.__enter__()
