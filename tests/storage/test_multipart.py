"""What goes to an S3 server with parts: how they are encrypted, kept and signed, and whom we believe."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from bench.servers import certificate

from packtrain.errors import IntegrityError, NotFound, Refused, Unavailable, UsageError
from packtrain.ports import Multipart
from packtrain.storage import multipart, open_store
from packtrain.testing.servers import seaweedfs
from tests.storage.test_renewal import tokens

CRC32 = zlib.crc32(b"text")


class Recorder:
    """An S3 server that takes everything, or answers as it is told, and keeps the heads of requests."""

    def __init__(self) -> None:
        self.heads: list[tuple[str, str, Message]] = []
        self.answers: list[tuple[int, bytes]] = []

    @contextmanager
    def running(self) -> Iterator[str]:
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                recorder.heads.append((self.command, self.path, self.headers))
                upload = b"<InitiateMultipartUploadResult><UploadId>7</UploadId></InitiateMultipartUploadResult>"
                status, body = recorder.answers.pop(0) if recorder.answers else (200, upload)
                self.send_response(status)
                self.send_header("ETag", '"tag"')
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_PUT = do_POST = do_GET = do_DELETE = do_CONNECT = answer  # noqa: N815

            def log_message(self, format: str, *args: object) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(multipart, "PAUSES", (0.01, 0.01))
    recorder = Recorder()
    with recorder.running() as endpoint:
        for name, value in {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }.items():
            monkeypatch.setenv(name, value)
        yield recorder


def parts_of(storage_class: str | None = None) -> Multipart:
    found = open_store("s3://bucket/prefix", storage_class=storage_class).multipart
    assert found is not None
    return found


def put(to: Multipart) -> None:
    to.put("k", lambda: [b"text"], 4, CRC32)


def test_encryption_and_storage_class_go_with_every_new_object(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SERVER_SIDE_ENCRYPTION", "aws:kms")
    monkeypatch.setenv("AWS_SSE_KMS_KEY_ID", "arn:aws:kms:eu-west-1:1:key/2")
    monkeypatch.setenv("AWS_SSE_BUCKET_KEY_ENABLED", "true")
    to = parts_of("STANDARD_IA")
    put(to)
    upload = to.begin("k")
    to.send(upload, 1, lambda: [b"text"], 4, CRC32)
    to.reclass("k", 4, "GLACIER_IR")
    whole, begun, part, moved = (headers for _, _, headers in recorder.heads)
    for headers, storage_class in ((whole, "STANDARD_IA"), (begun, "STANDARD_IA"), (moved, "GLACIER_IR")):
        assert headers["x-amz-server-side-encryption"] == "aws:kms"
        assert headers["x-amz-server-side-encryption-aws-kms-key-id"] == "arn:aws:kms:eu-west-1:1:key/2"
        assert headers["x-amz-server-side-encryption-bucket-key-enabled"] == "true"
        assert headers["x-amz-storage-class"] == storage_class
    assert part["x-amz-server-side-encryption"] is None  # S3 wants it when the upload is begun, and not again
    assert part["x-amz-checksum-crc32"] == whole["x-amz-checksum-crc32"]
    assert "x-amz-server-side-encryption" in recorder.heads[0][1]  # in what was signed


def test_without_settings_the_bucket_decides(recorder: Recorder) -> None:
    put(parts_of())
    ((_, _, headers),) = recorder.heads
    assert not [name for name in headers if name.lower().startswith(("x-amz-server", "x-amz-storage"))]


@pytest.mark.parametrize(("lifetime", "kept"), [(timedelta(hours=1), True), (timedelta(minutes=5), False)])
def test_each_request_is_signed_with_a_token_that_lives(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, lifetime: timedelta, kept: bool
) -> None:
    """The second one is the repetition of a request that failed."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    recorder.answers += [(500, b""), (200, b"")]
    with tokens(lifetime) as address:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", address)
        put(parts_of())
    first, second = (path.partition("X-Amz-Security-Token=")[2].partition("&")[0] for _, path, _ in recorder.heads)
    assert first and (first == second) is kept
    assert all("X-Amz-Expires=3600" in path for _, path, _ in recorder.heads)


def xml(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>said</Message></Error>".encode()


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (400, "BadDigest", IntegrityError),
        (404, "NoSuchUpload", NotFound),
        (403, "AccessDenied", Refused),
        (403, "ExpiredToken", Refused),
        (503, "SlowDown", Unavailable),
        (400, "InvalidStorageClass", UsageError),
    ],
)
def test_what_a_server_says_is_our_error(recorder: Recorder, status: int, code: str, error: type[Exception]) -> None:
    to = parts_of("NONE")
    upload = to.begin("k")
    recorder.answers += [(status, xml(code))] * 20
    if error is not UsageError:
        with pytest.raises(error):
            to.send(upload, 1, lambda: [b"text"], 4, CRC32)
    if error is not Unavailable:  # botocore tries for some time
        with pytest.raises(error):
            to.begin("k")


def test_nobody_to_sign_as_is_said(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(Refused, match="no credentials") as caught:
        put(parts_of())
    assert "AWS_PROFILE" in caught.value.hint
    assert recorder.heads == []


@pytest.mark.parametrize("code", ["NotImplemented", "InvalidRequest", "InvalidObjectState"])
def test_what_is_not_copied_is_the_callers_to_send(recorder: Recorder, code: str) -> None:
    to = parts_of()
    upload = to.begin("k")
    recorder.answers += [(501 if code == "NotImplemented" else 400, xml(code))] * 20
    assert to.copy(upload, 1, "s3://bucket/other", 0, 10) is None


@pytest.mark.slow
def test_an_authority_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that speaks to S3 believes it: obstore, botocore, and our own connections."""
    with seaweedfs(tmp_path / "s3", certificate=certificate(tmp_path / "tls")) as server:
        for name, value in {**server.environment, "AWS_ENDPOINT_URL": server.secure_endpoint}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "tls" / "authority.pem"))
        store = open_store(f"{server.url}/trusted")
        assert store.multipart is not None
        upload = store.multipart.begin("parts")
        part = store.multipart.send(upload, 1, lambda: [b"text"], 4, CRC32)
        store.multipart.complete(upload, [part], CRC32)
        assert store.get("parts") == b"text"
        assert b"".join(bytes(p) for p in store.read("parts", 0, 4, memoryview(bytearray(65536)))) == b"text"
        monkeypatch.delenv("AWS_CA_BUNDLE")
        stranger = open_store(f"{server.url}/trusted")
        assert stranger.multipart is not None
        with pytest.raises(Unavailable):
            stranger.multipart.begin("parts")


def test_what_only_reads_never_imports_botocore() -> None:
    program = (
        'from packtrain.storage import open_store; open_store("s3://bucket"); import sys; print(sys.modules.keys())'
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "packtrain.storage.multipart" in done.stdout and "botocore" not in done.stdout


def test_an_authority_that_cannot_be_read(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", "/nowhere.pem")
    with pytest.raises(UsageError, match="nowhere") as caught:
        parts_of()
    assert "AWS_CA_BUNDLE" in caught.value.hint
