"""Nothing that expires is used when old: the signed URL of a request, and the session token behind it."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from packtrain.storage import objects
from packtrain.storage.s3 import open_s3
from tests.storage.scripted import ScriptedServer, answer, run


@contextmanager
def tokens(lifetime: timedelta) -> Iterator[str]:
    """The address of an endpoint for credentials, as EKS Pod Identity has one: another session token each time."""
    given = iter(range(1, 1000))

    class Door(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            until = f"{datetime.now(UTC) + lifetime:%Y-%m-%dT%H:%M:%SZ}"
            keys = {"AccessKeyId": "key", "SecretAccessKey": "secret", "Token": f"token-{next(given)}"}
            body = json.dumps({**keys, "Expiration": until}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Door)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/credentials"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def used(script: ScriptedServer) -> list[str]:
    """The session token of each request."""
    queries = [parse_qs(urlsplit(request.split()[1].decode()).query) for request in script.requests]
    return [query["X-Amz-Security-Token"][0] for query in queries]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "PAUSES", (0.3, 0.3, 0.3))  # obstore asks for tokens ten times a second, at most


@pytest.mark.parametrize(("lifetime", "kept"), [(timedelta(hours=1), True), (timedelta(seconds=90), False)])
def test_a_token_is_renewed_before_it_expires_in_the_middle_of_a_read_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lifetime: timedelta, kept: bool
) -> None:
    """A token with an hour to live is used again; one that ends soon is not. The connection breaks in the middle of
    the body, and what is left is asked for with a URL of its own."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    half = answer("206 Partial Content", b"hal", "Content-Range: bytes 0-4/5", length=5)
    rest = answer("206 Partial Content", b"lo", "Content-Range: bytes 3-4/5")
    door = tmp_path / "door"
    door.write_text("secret")
    with tokens(lifetime) as address, run(half, rest) as script:
        for name, value in {
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": address,
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(door),
            "AWS_ENDPOINT_URL": script.url,
            "AWS_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }.items():
            monkeypatch.setenv(name, value)
        store = open_s3("bucket", "prefix")
        assert b"".join(bytes(piece) for piece in store.read("k", 0, 5, memoryview(bytearray(65536)))) == b"hallo"
        first, second = used(script)
    assert (first == second) is kept
    signed = [parse_qs(urlsplit(request.split()[1].decode()).query) for request in script.requests]
    assert all(int(query["X-Amz-Expires"][0]) <= 3600 for query in signed)
