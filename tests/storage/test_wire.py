"""The connections that are kept for the next request."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Barrier, Thread

import pytest

from packtrain.storage.wire import Link, Wire

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
