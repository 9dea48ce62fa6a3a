"""An HTTP server that says what a test wants."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from packtrain.storage import objects
from packtrain.storage.objects import Connection, ObjectStore

Answer = bytes | None  # None: silence
PATIENCE = 60.0  # seconds, with a server that answers, however busy this machine is
HASTE = 0.5  # seconds, with one that does not


def ask_again_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a server in trouble; and not for as long as the patience with it lasts."""
    connect = ObjectStore._connect

    def once(store: ObjectStore, silence: float, *, retries: int, **more: Any) -> Connection:
        return connect(store, silence, retries=min(retries, 1), **more)

    monkeypatch.setattr(ObjectStore, "_connect", once)
    monkeypatch.setattr(objects, "PAUSES", (0.01, 0.01))


class ScriptedServer:
    """Gives each request the next of ``answers``, the last one again and again."""

    def __init__(self, answers: list[Answer]) -> None:
        self.requests: list[bytes] = []
        self.closing = threading.Event()
        script = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                self.request.settimeout(PATIENCE)
                request = b""
                while b"\r\n\r\n" not in request:
                    more = self.request.recv(65536)
                    if not more:
                        return
                    request += more
                script.requests.append(request.partition(b"\r\n")[0])
                answer = answers[min(len(script.requests), len(answers)) - 1]
                if answer is None:
                    script.closing.wait()
                else:
                    self.request.sendall(answer)

        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@contextmanager
def run(*answers: Answer) -> Iterator[ScriptedServer]:
    script = ScriptedServer(list(answers))
    thread = threading.Thread(target=script.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield script
    finally:
        script.closing.set()
        script.server.shutdown()
        thread.join()
        script.server.server_close()


def answer(status: str, body: bytes = b"", *headers: str, length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", "Connection: close"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


def xml(code: str, details: str = "") -> bytes:
    more = f"<Details>{details}</Details>" if details else ""
    return f"<Error><Code>{code}</Code><Message>m</Message>{more}</Error>".encode()
