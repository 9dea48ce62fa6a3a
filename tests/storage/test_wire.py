"""The connections that are kept for the next request."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Barrier, Event, Thread

import pytest

from packtrain.storage.wire import Link, Wire, _next_size

CLIENTS = 5


class Server(ThreadingHTTPServer):
    """Takes what is put; the first requests wait for each other, so that each has a connection of its own."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.together = Barrier(CLIENTS)
        self.is_first = True
        self.connections: list[socket.socket] = []

    @property
    def link(self) -> Link:
        return Link(f"http://127.0.0.1:{self.server_port}/x")

    def restart(self) -> None:
        """Its clients' connections are gone, as after a restart."""
        self.is_first = False
        for connection in self.connections:
            connection.shutdown(socket.SHUT_RDWR)
            connection.close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def setup(self) -> None:
        super().setup()
        self.server.connections.append(self.request)

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.is_first:
            self.server.together.wait(30)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.send_response(206)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_connections_that_a_restart_closed_are_not_tried(server: Server) -> None:
    """Each that is would cost a request one of its attempts."""
    wire = Wire(stall=10)
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(lambda _: wire.write(server.link, [b"x"], 1), range(CLIENTS)))
    assert len(server.connections) == CLIENTS

    server.restart()

    wire.write(server.link, [b"x"], 1)
    assert len(server.connections) == CLIENTS + 1
    wire.write(server.link, [b"x"], 1)
    assert len(server.connections) == CLIENTS + 1, "and the new one is kept"


@pytest.mark.parametrize(
    ("room", "piece", "connections"),
    [
        pytest.param(64 << 10, b"hello", 1, id="all of it: given back, though nobody asks for more"),
        pytest.param(3, b"hel", 3, id="left in the middle: closed"),
    ],
)
def test_what_becomes_of_a_connection_whose_reader_goes(
    server: Server, room: int, piece: bytes, connections: int
) -> None:
    wire, buffer = Wire(stall=10), memoryview(bytearray(room))
    for _ in range(3):
        pieces = wire.read(server.link, 0, 5, buffer)
        assert bytes(next(pieces)) == piece
        del pieces
    assert len(server.connections) == connections


def test_requests_take_the_connections_that_were_opened_for_them(server: Server) -> None:
    wire = Wire(stall=10)
    wire.open(server.link, CLIENTS)  # and nobody waits until they are open
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(lambda _: wire.write(server.link, [b"x"], 1), range(CLIENTS)))
    assert len(server.connections) == CLIENTS


def test_a_connection_that_could_not_be_opened_is_told_to_who_waits_for_it_and_to_nobody_else(server: Server) -> None:
    wire, answer = Wire(stall=10), Event()

    def refuse(connection: HTTPConnection) -> None:
        answer.wait(30)
        raise ConnectionRefusedError("not now")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HTTPConnection, "connect", refuse)
        wire.open(server.link, 2)
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(wire.write, server.link, [b"x"], 1)
            while len(wire._opening) == 2:
                time.sleep(0.001)
            answer.set()
            with pytest.raises(ConnectionRefusedError, match="not now"):
                waiting.result()
    server.is_first = False
    until = time.monotonic() + 30
    while wire._opening:
        assert time.monotonic() < until
        time.sleep(0.001)
    wire.write(server.link, [b"x"], 1)
    assert len(server.connections) == 1


def test_pieces_grow_while_they_come_fast_and_shrink_again() -> None:
    sizes = [size := 64 << 10]
    for took in (0.01, 0.01, 0.09, 0.3, 0.6, 0.6, 0.6, 0.6, 0.01):
        sizes.append(size := _next_size(size, took, 256 << 10))
    assert [size >> 10 for size in sizes] == [64, 128, 256, 256, 256, 128, 64, 64, 64, 128]
