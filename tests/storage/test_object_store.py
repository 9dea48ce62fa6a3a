"""What a store in a bucket promises beyond the laws that all stores share (tests/conformance)."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from packtrain.errors import AlreadyExists, NotFound, PacktrainError, Refused, Unavailable
from packtrain.storage.objects import PART, ObjectStore
from packtrain.storage.s3 import open_s3
from packtrain.storage.wire import Wire
from packtrain.testing.faults import Fault
from packtrain.testing.proxy import relay
from packtrain.testing.servers import S3Server
from tests.storage.scripted import HASTE, PATIENCE, Answer, ScriptedServer, answer, ask_again_once, run, xml


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    ask_again_once(monkeypatch)


@pytest.fixture
def store(s3_environment: S3Server) -> ObjectStore:
    return open_s3(s3_environment.bucket, f"objects/{uuid.uuid4().hex}")


@contextmanager
def scripted(
    monkeypatch: pytest.MonkeyPatch, *answers: Answer, stall: float = PATIENCE
) -> Iterator[tuple[ScriptedServer, ObjectStore]]:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    with run(*answers) as script:
        for name, value in S3Server(script.url, "key", "secret", "bucket").environment.items():
            monkeypatch.setenv(name, value)
        yield script, open_s3("bucket", "prefix", stall=stall)


def read(store: ObjectStore, key: str, length: int) -> bytes:
    return b"".join(bytes(piece) for piece in store.read(key, 0, length, memoryview(bytearray(65536))))


def test_what_is_in_the_way_of_connections_is_told_to_who_reads_and_not_before(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def distrusts(*_: object) -> None:
        raise ssl.SSLError("no certificate in the file of authorities")

    monkeypatch.setattr(Wire, "open", distrusts)
    store.prepare("k", 8)


ASKING: dict[str, Callable[[ObjectStore], object]] = {
    "get": lambda store: store.get("k"),
    "read": lambda store: read(store, "k", 5),
    "head": lambda store: store.head("k"),
    "list": lambda store: list(store.list("")),
    "children": lambda store: list(store.children("")),
    "create": lambda store: store.create("k", b"x"),
    "upload": lambda store: store.upload("k", [b"x"], 1),
    "large upload": lambda store: store.upload("k", (b"x" * PART for _ in range(3)), 3 * PART),
}
asking = pytest.mark.parametrize("ask", ASKING.values(), ids=ASKING.keys())


# Who we are, and where


@asking
@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials(
    s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch, variable: str, ask: Callable[[ObjectStore], object]
) -> None:
    monkeypatch.setenv(variable, "wrong")
    with pytest.raises(Refused, match="403") as caught:
        ask(open_s3(s3_environment.bucket, "x"))
    assert "credentials" in caught.value.hint
    assert s3_environment.endpoint in caught.value.hint


@pytest.mark.parametrize("ask", [ASKING["get"], ASKING["read"]], ids=["get", "read"])
def test_a_bucket_that_does_not_exist(s3_environment: S3Server, ask: Callable[[ObjectStore], object]) -> None:
    """It must not look like a store without that object. (SeaweedFS lists it as empty, and makes it at a PUT.)"""
    with pytest.raises(Unavailable, match="no bucket") as caught:
        ask(open_s3("no-such-bucket", "x"))
    assert "Create the bucket" in caught.value.hint


@asking
def test_no_credentials_anywhere(monkeypatch: pytest.MonkeyPatch, ask: Callable[[ObjectStore], object]) -> None:
    with scripted(monkeypatch, answer("404 Not Found")) as (server, _):
        for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(variable)
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", server.url)  # this machine is no EC2 instance
        with pytest.raises(Refused, match="no credentials") as caught:
            ask(open_s3("b", "x"))
    assert "AWS_PROFILE" in caught.value.hint


@asking
def test_nobody_listens(
    s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch, ask: Callable[[ObjectStore], object]
) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound and not listening: connecting is refused
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{held.getsockname()[1]}")
        with pytest.raises(Unavailable, match="cannot be reached") as caught:
            ask(open_s3("b", "x"))
    assert "AWS_ENDPOINT_URL" in caught.value.hint


@asking
def test_a_server_that_never_answers(monkeypatch: pytest.MonkeyPatch, ask: Callable[[ObjectStore], object]) -> None:
    with (
        scripted(monkeypatch, None, stall=HASTE) as (_, store),
        pytest.raises(Unavailable, match="did not answer in time") as caught,
    ):
        ask(store)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("status", "code", "expected", "hint"),
    [
        ("403 Forbidden", "RequestTimeTooSkewed", Refused, "clock"),
        ("403 Forbidden", "AccessDenied", Refused, "what they may do"),
        ("403 Forbidden", "SignatureDoesNotMatch", Refused, "If-None-Match"),
        ("400 Bad Request", "ExpiredToken", Refused, "Get new ones"),
        ("501 Not Implemented", "NotImplemented", Refused, "conditional puts"),
        ("301 Moved Permanently", "PermanentRedirect", Unavailable, "AWS_REGION"),
        ("400 Bad Request", "AuthorizationHeaderMalformed", Unavailable, "AWS_REGION"),
        ("404 Not Found", "NoSuchBucket", Unavailable, "Create the bucket"),
        ("418 Teapot", "Surprise", Unavailable, "Try again"),
    ],
)
@pytest.mark.parametrize("ask", [ASKING["get"], ASKING["list"], ASKING["upload"]], ids=["get", "list", "upload"])
def test_what_a_server_says_becomes_a_hint(
    monkeypatch: pytest.MonkeyPatch,
    ask: Callable[[ObjectStore], object],
    status: str,
    code: str,
    expected: type[PacktrainError],
    hint: str,
) -> None:
    with scripted(monkeypatch, answer(status, xml(code))) as (_, store), pytest.raises(expected) as caught:
        ask(store)
    assert type(caught.value) is expected
    assert hint in caught.value.hint
    assert "\n" not in caught.value.message


def test_a_server_in_trouble_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    trouble = answer("500 Internal Server Error", xml("InternalError"))
    there = answer("200 OK", b"text", "Last-Modified: Mon, 01 Jan 2024 00:00:00 GMT")
    with scripted(monkeypatch, trouble, there) as (_, store):
        assert store.get("k") == b"text"
    with scripted(monkeypatch, trouble) as (_, store), pytest.raises(Unavailable, match="InternalError"):
        store.get("k")


# Creating


@pytest.mark.parametrize(
    ("status", "code"), [("409 Conflict", "ConditionalRequestConflict"), ("503 Slow Down", "SlowDown")]
)
def test_a_creation_that_was_not_done_is_repeated(monkeypatch: pytest.MonkeyPatch, status: str, code: str) -> None:
    with scripted(monkeypatch, answer(status, xml(code)), answer("200 OK", b"", 'ETag: "e"')) as (server, store):
        store.create("k", b"x")
    assert server.requests == [b"PUT /bucket/prefix/k HTTP/1.1"] * 2


def test_a_creation_in_conflict_for_long_is_not_taken_for_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    conflict = answer("409 Conflict", xml("ConditionalRequestConflict"))
    with scripted(monkeypatch, conflict) as (_, store), pytest.raises(Unavailable):
        store.create("k", b"x")


@pytest.mark.parametrize("first", [b"", None, answer("500 Internal Server Error", xml("InternalError"))])
def test_a_creation_that_may_have_been_done_is_not_repeated(monkeypatch: pytest.MonkeyPatch, first: Answer) -> None:
    """Repeated, it would be told that somebody else was first when that was itself."""
    lost = answer("412 Precondition Failed", xml("PreconditionFailed"))
    stall = HASTE if first is None else PATIENCE
    with scripted(monkeypatch, first, lost, stall=stall) as (server, store):
        with pytest.raises(Unavailable):
            store.create("k", b"x")
        while not server.requests:
            time.sleep(0.01)
    assert len(server.requests) == 1


def test_a_creation_whose_connection_was_reset_is_not_repeated(
    s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with relay(s3_environment.endpoint, plan=lambda request: Fault.RESET if request.number == 0 else None) as wire:
        monkeypatch.setenv("AWS_ENDPOINT_URL", wire.endpoint)
        store = open_s3(s3_environment.bucket, f"objects/{uuid.uuid4().hex}")
        with pytest.raises(Unavailable):
            store.create("k", b"first")
        assert len(wire.requests) == 1
        assert store.get("k") == b"first"


def test_a_lost_race(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = answer("412 Precondition Failed", xml("PreconditionFailed"))
    with scripted(monkeypatch, lost) as (_, store), pytest.raises(AlreadyExists):
        store.create("k", b"x")


# Reading


def test_a_read_that_breaks_is_taken_up_where_it_broke(monkeypatch: pytest.MonkeyPatch) -> None:
    headers = ('ETag: "e"', "Last-Modified: Mon, 01 Jan 2024 00:00:00 GMT")
    broken = answer("206 Partial Content", b"0123", *headers, "Content-Range: bytes 0-9/10", length=10)
    rest = answer("206 Partial Content", b"456789", *headers, "Content-Range: bytes 4-9/10")
    with scripted(monkeypatch, broken, rest) as (server, store):
        assert read(store, "k", 10) == b"0123456789"
    assert len(server.requests) == 2


def test_a_server_that_closes_in_the_middle_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    headers = ("Last-Modified: Mon, 01 Jan 2024 00:00:00 GMT", "Content-Range: bytes 0-9/10")
    broken = answer("206 Partial Content", b"0123", *headers, length=10)
    with scripted(monkeypatch, broken) as (_, store), pytest.raises(Unavailable) as caught:
        read(store, "k", 10)
    assert caught.value.hint


# Uploading


@pytest.mark.slow
def test_a_failed_upload_is_aborted(store: ObjectStore, s3_environment: S3Server) -> None:
    """Parts of an upload that nobody ends cost money and show nowhere."""

    def pending() -> str:
        command = ["rclone", "--config", os.devnull, "backend", "list-multipart-uploads"]
        remote = f":s3,provider=Other,env_auth=true,endpoint='{s3_environment.endpoint}':{s3_environment.bucket}"
        rclone = os.path.join(os.path.dirname(sys.executable), command[0])
        return subprocess.run([rclone, *command[1:], remote], check=True, capture_output=True, text=True).stdout

    shown = []

    def body() -> Iterator[bytes]:
        for _ in range(6):
            yield b"x" * PART
        shown.append(pending())
        raise KeyError("the body")

    with pytest.raises(KeyError, match="the body"):
        store.upload("k", body(), 7 * PART)
    name = store.url.rpartition("/")[2]
    assert name in shown[0]
    assert name not in pending()


def test_a_body_is_not_read_to_its_end_when_sending_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    def body() -> Iterator[bytes]:
        for number in range(1000):
            taken.append(number)
            yield b"x" * PART

    with scripted(monkeypatch, answer("403 Forbidden", xml("AccessDenied"))) as (_, store), pytest.raises(Refused):
        store.upload("k", body(), 1000 * PART)
    assert len(taken) < 100


@pytest.mark.slow
def test_an_upload_takes_bounded_memory(s3_environment: S3Server) -> None:
    program = """
import os, resource
from packtrain.storage.s3 import open_s3
store = open_s3(os.environ["BUCKET"], "memory")
store.upload("small", (bytes(1 << 20) for _ in range(32)), 32 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
store.upload("large", (bytes(1 << 20) for _ in range(160)), 160 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    environment = {**os.environ, "BUCKET": s3_environment.bucket}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert int(result.stdout) < 40 << 10  # KiB: five times as much was sent, not held


# Where it is


def test_keys_are_under_the_prefix_in_the_bucket(store: ObjectStore, s3_environment: S3Server) -> None:
    store.create("models/m", b"x")
    bucket = open_s3(s3_environment.bucket, "")
    assert bucket.url == s3_environment.url
    key = store.locate("models/m").removeprefix(f"{bucket.url}/")
    assert bucket.get(key) == b"x"
    with pytest.raises(NotFound, match="s3://"):
        bucket.get("models/m")


def test_ctrl_c_is_heard_while_a_server_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    program = 'from packtrain.storage.s3 import open_s3; open_s3("b", "", stall=300).get("k")'
    with scripted(monkeypatch, None) as (server, _):
        process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE)
        while not server.requests:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=300)
    assert b"KeyboardInterrupt" in errors
