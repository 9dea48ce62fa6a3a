"""What stands in front of the S3 server, or in its place, besides what tests use."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import obstore
from obstore.store import S3Store

from packtrain.testing.servers import REGION, S3Server


def certificate(directory: Path) -> tuple[Path, Path]:
    """One for 127.0.0.1 and its key, by an authority whose own is ``authority.pem`` beside it."""
    directory.mkdir(parents=True, exist_ok=True)
    request = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    authority = ["-subj", "/CN=bench", "-keyout", "authority.key", "-out", "authority.pem"]
    leaf = ["-CA", "authority.pem", "-CAkey", "authority.key", "-subj", "/CN=localhost"]
    leaf += ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE"]
    for command in ([*request, *authority], [*request, *leaf, "-keyout", "server.key", "-out", "server.pem"]):
        subprocess.run([*command, "-days", "2"], cwd=directory, check=True, capture_output=True)
    return directory / "server.pem", directory / "server.key"


def trusting(directory: Path) -> dict[str, str]:
    """What makes each of the tools trust the certificate that was made there."""
    names = ("SSL_CERT_FILE", "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
    return dict.fromkeys(names, str(directory / "authority.pem"))


@contextmanager
def hub(server: S3Server, key: str, revision: str) -> Iterator[str]:
    """A Hugging Face Hub with one repository, ``bench/model``: the files under ``key`` in the bucket of a server, to
    which it sends its clients with signed URLs, as the real one does. Gives its address."""
    store = S3Store(
        server.bucket,
        prefix=key,
        endpoint=server.endpoint,
        access_key_id=server.access_key,
        secret_access_key=server.secret_key,
        region=REGION,
        client_options={"allow_http": True},
    )
    files = {meta["path"]: (meta["size"], meta["e_tag"] or "") for page in obstore.list(store) for meta in page}

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            name = path.partition("/resolve/")[2].partition("/")[2]
            if "/tree/" in path:
                tree = [{"type": "file", "path": each, "size": size, "oid": tag} for each, (size, tag) in files.items()]
                self.answer(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
            elif path.startswith("/api/models/"):
                siblings = [{"rfilename": each} for each in files]
                self.answer(200, json.dumps({"id": "bench/model", "sha": revision, "siblings": siblings}).encode())
            elif name in files:
                size, tag = files[name]
                url = obstore.sign(store, "GET", name, timedelta(hours=1))
                headers = {"Location": url, "X-Repo-Commit": revision, "X-Linked-Size": str(size), "X-Linked-ETag": tag}
                self.answer(302, headers=headers)
            else:
                self.answer(404)

        def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for header, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
                self.send_header(header, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    front = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=front.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{front.server_address[1]}"
    finally:
        front.shutdown()
        front.server_close()
