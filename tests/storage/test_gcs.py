"""What a store on GCS promises beyond the laws that all stores share (tests/conformance): who we are there, how bytes
are read, what is repeated, and what each refusal leads to."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import pytest

from packtrain.errors import AlreadyExists, IntegrityError, NotFound, PacktrainError, Refused, Unavailable, UsageError
from packtrain.ports import OpenUpload
from packtrain.storage import gcs_multipart, google, open_store
from packtrain.storage.gcs import open_gcs
from packtrain.storage.objects import PART, ObjectStore
from packtrain.testing import gcs_uploads
from packtrain.testing.faults import Fault
from packtrain.testing.gcs_server import GcsServer
from packtrain.testing.google import READ, WRITER
from packtrain.testing.proxy import relay
from tests.storage.scripted import HASTE, PATIENCE, Answer, ScriptedServer, answer, ask_again_once, run, xml

TOKEN_ENDPOINT = "google.oauth2.credentials._GOOGLE_OAUTH2_TOKEN_ENDPOINT"  # of people's accounts: in no file


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    ask_again_once(monkeypatch)
    monkeypatch.setattr(google, "METADATA_PAUSES", (0.01, 0.01))


@pytest.fixture
def server(gcs_environment: GcsServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[GcsServer]:
    """GCS, and an environment without credentials."""
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    monkeypatch.setattr(TOKEN_ENDPOINT, gcs_environment.sign_in)
    before = dict(vars(gcs_environment.doorkeeper))
    yield gcs_environment
    vars(gcs_environment.doorkeeper).update(before)


def fresh(server: GcsServer) -> ObjectStore:
    return open_gcs(server.bucket, f"objects/{uuid.uuid4().hex}")


def read(store: ObjectStore, key: str, length: int) -> bytes:
    return b"".join(bytes(piece) for piece in store.read(key, 0, length, memoryview(bytearray(65536))))


def require_works(store: ObjectStore) -> None:
    store.create("k", b"text")
    with pytest.raises(AlreadyExists):
        store.create("k", b"other")
    assert store.get("k") == read(store, "k", 4) == b"text"
    assert [info.key for info in store.list("")] == ["k"]


ASKING: dict[str, Callable[[ObjectStore], object]] = {
    "get": lambda store: store.get("k"),
    "read": lambda store: read(store, "k", 5),
    "head": lambda store: store.head("k"),
    "list": lambda store: list(store.list("")),
    "create": lambda store: store.create("k", b"x"),
    "large upload": lambda store: store.upload("k", (b"x" * PART for _ in range(3)), 3 * PART),
}
asking = pytest.mark.parametrize("ask", ASKING.values(), ids=ASKING.keys())


# Who we are


def be_key(server: GcsServer) -> dict[str, str]:
    return server.environment


def be_key_in_a_variable(server: GcsServer) -> dict[str, str]:
    return {"GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(server.doorkeeper.key())}


def be_machine(server: GcsServer) -> dict[str, str]:
    return server.machine_environment


def be_workload(server: GcsServer) -> dict[str, str]:
    return {"GOOGLE_APPLICATION_CREDENTIALS": str(server.workload())}


def be_person(server: GcsServer) -> dict[str, str]:
    folder = server.person().parent
    (folder / "application_default_credentials.json").write_bytes((folder / "person.json").read_bytes())
    return {"CLOUDSDK_CONFIG": str(folder)}


def be_token(server: GcsServer) -> dict[str, str]:
    return {"GOOGLE_BEARER_TOKEN": server.doorkeeper.issue(WRITER)}


@pytest.mark.parametrize(
    ("be", "what"),
    [
        (be_key, WRITER.email),
        (be_key_in_a_variable, "GOOGLE_SERVICE_ACCOUNT_KEY"),
        (be_machine, "metadata server"),
        (be_workload, "another cloud"),
        (be_person, "a person's account"),
        (be_token, "GOOGLE_BEARER_TOKEN"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_identity(
    server: GcsServer, monkeypatch: pytest.MonkeyPatch, be: Callable[[GcsServer], dict[str, str]], what: str
) -> None:
    for name, value in be(server).items():
        monkeypatch.setenv(name, value)
    assert what in google.identity().what
    require_works(fresh(server))


def test_nobody_reads_what_is_public(server: GcsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    key = str(server.key("writer.json"))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", key)
    store = fresh(server)
    store.create("a name", b"text")
    monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")  # wins over the key
    nobody = open_store(store.url)
    with pytest.raises(Refused, match=r"Anonymous caller does not have storage.objects.get access"):
        nobody.get("a name")
    server.doorkeeper.anybody = frozenset((READ,))
    assert nobody.get("a name") == read(nobody, "a name", 4) == b"text"  # type: ignore[arg-type]
    with pytest.raises(Refused, match=r"Anonymous caller does not have storage.objects.create access"):
        nobody.create("b", b"text")


@asking
def test_who_may_only_read(
    server: GcsServer, monkeypatch: pytest.MonkeyPatch, ask: Callable[[ObjectStore], object]
) -> None:
    for name, value in server.reader_environment.items():
        monkeypatch.setenv(name, value)
    store = fresh(server)
    if ask in (ASKING["create"], ASKING["large upload"]):
        with pytest.raises(Refused, match=r"reader@.* does not have storage.objects.create") as caught:
            ask(store)
        assert "roles/storage.objectUser" in caught.value.hint
        assert "reader.json" in caught.value.hint
    elif ask in (ASKING["get"], ASKING["read"]):
        with pytest.raises(NotFound):
            ask(store)
    else:
        assert not ask(store)


@asking
def test_no_credentials_anywhere(server: GcsServer, ask: Callable[[ObjectStore], object]) -> None:
    with pytest.raises(Refused, match="no credentials for gs://") as caught:
        ask(fresh(server))
    assert "gcloud auth application-default login" in caught.value.hint


def test_a_machine_without_a_service_account(server: GcsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GCE_METADATA_HOST", server.machine_environment["GCE_METADATA_HOST"])
    server.doorkeeper.machine = None
    with pytest.raises(Refused, match="no service account") as caught:
        fresh(server).get("k")
    assert "bind one to the pod" in caught.value.hint


def test_a_metadata_server_that_is_not_up_yet(server: GcsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound and not listening: connecting is refused
        monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{held.getsockname()[1]}")
        with pytest.raises(Unavailable, match="metadata server"):
            fresh(server).get("k")
    token = b'{"access_token": "%b", "expires_in": 3600}' % server.doorkeeper.issue().encode()
    with run(answer("503 Service Unavailable"), answer("200 OK", token)) as metadata:
        monkeypatch.setenv("GCE_METADATA_HOST", metadata.url.removeprefix("http://"))
        require_works(fresh(server))
    assert len(metadata.requests) == 2


def test_a_token_is_used_until_shortly_before_its_end(server: GcsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GCE_METADATA_HOST", server.machine_environment["GCE_METADATA_HOST"])
    doorkeeper = server.doorkeeper

    def issued_by_three_reads() -> int:
        store = fresh(server)
        store.create("k", b"text")
        before = doorkeeper.issued
        assert [read(store, "k", 4) for _ in range(3)] == [b"text"] * 3
        return doorkeeper.issued - before

    assert issued_by_three_reads() == 0
    doorkeeper.lifetime = google.FRESH.total_seconds() - 10
    assert issued_by_three_reads() == 3


def test_credentials_that_were_revoked(server: GcsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (server.person("revoked"), server.workload("old")):
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
        for ask in (ASKING["get"], ASKING["read"], ASKING["create"]):
            with pytest.raises(Refused, match="expired or were revoked") as caught:
                ask(fresh(server))
            assert "Sign in again" in caught.value.hint


def test_a_token_that_has_ended(server: GcsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "ended")
    for ask in ASKING.values():
        with pytest.raises(Refused, match="401") as caught:
            ask(fresh(server))
        assert "GOOGLE_BEARER_TOKEN" in caught.value.hint


def test_a_token_service_that_cannot_be_reached(server: GcsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TOKEN_ENDPOINT, "http://token.invalid/token")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(server.person()))
    with pytest.raises(Unavailable, match=r"person.json: no access token") as caught:
        fresh(server).get("k")
    assert "proxies" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        ("no JSON", "holds no credentials"),
        ("[]", "holds no credentials"),
        ('{"type": "surprise"}', "'surprise' are not known"),
        ('{"type": "service_account", "client_email": "a@b", "private_key": "no", "private_key_id": "1"}', "no sense"),
    ],
)
def test_files_that_are_no_credentials(
    server: GcsServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None, said: str
) -> None:
    path = tmp_path / "credentials.json"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    with pytest.raises(UsageError, match=said) as caught:
        fresh(server)
    assert caught.value.hint


def test_a_workload_file_that_lacks_something(
    server: GcsServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "workload.json"
    path.write_text('{"type": "external_account"}')
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    with pytest.raises(UsageError, match=r"workload.json cannot be used"):
        fresh(server).get("k")


def test_google_auth_is_asked_for_where_it_is_needed(server: GcsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(google, "find_spec", lambda _: None)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(server.workload()))
    with pytest.raises(UsageError, match="google-auth") as caught:
        fresh(server)
    assert "pip install 'packtrain[gcs]'" in caught.value.hint


def test_who_pays(server: GcsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**server.environment, "GOOGLE_CLOUD_QUOTA_PROJECT": "payer"}.items():
        monkeypatch.setenv(name, value)
    seen = set()
    admit = server.doorkeeper.caller

    def watched(method: str, target: str, headers: dict[str, str]) -> object:
        seen.add({name.lower(): value for name, value in headers.items()}.get("x-goog-user-project"))
        return admit(method, target, headers)

    monkeypatch.setattr(server.doorkeeper, "caller", watched)
    require_works(fresh(server))
    assert seen == {"payer"}


# How bytes are read


def test_a_key_signs_and_a_token_is_sent(server: GcsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both past obstore; but not a name that obstore signs in another way than GCS reads it."""
    seen: list[str] = []
    admit = server.doorkeeper.caller

    def watched(method: str, target: str, headers: dict[str, str]) -> object:
        seen.append("signed" if "X-Goog-Signature=" in target else headers.get("Accept-Encoding", ""))
        return admit(method, target, headers)

    for be, ways in ((be_key, ["signed", "obstore"]), (be_machine, ["identity", "identity"])):
        with monkeypatch.context() as patch:
            patch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
            for name, value in be(server).items():
                if be is be_machine or name == "GOOGLE_APPLICATION_CREDENTIALS":
                    patch.setenv(name, value)
            store = fresh(server)
            store.create("plain", b"text")
            store.create("a #1", b"text")
            patch.setattr(server.doorkeeper, "caller", watched)
            seen.clear()
            assert read(store, "plain", 4) == read(store, "a #1", 4) == b"text"
        assert [way or "obstore" for way in seen] == ways


# What the server says


@contextmanager
def scripted(
    monkeypatch: pytest.MonkeyPatch, *answers: Answer, stall: float = PATIENCE
) -> Iterator[tuple[ScriptedServer, ObjectStore]]:
    for name in [name for name in os.environ if name.startswith(("GOOGLE_", "GCE_", "CLOUDSDK_"))]:
        monkeypatch.delenv(name)
    with run(*answers) as script:
        monkeypatch.setenv("GOOGLE_BASE_URL", script.url)
        monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "token")
        yield script, open_gcs("bucket", "prefix", stall=stall)


@pytest.mark.parametrize(
    ("status", "code", "details", "expected", "hint"),
    [
        ("404 Not Found", "NoSuchBucket", "", Unavailable, "gcloud storage buckets create"),
        ("403 Forbidden", "AccessDenied", "a@b does not have storage.objects.get access", Refused, "objectViewer"),
        ("403 Forbidden", "RequestTimeTooSkewed", "", Refused, "clock"),
        ("400 Bad Request", "ExpiredToken", "", Refused, "Get new ones"),
        ("401 Unauthorized", "AuthenticationRequired", "", Refused, "Get new ones"),
        ("400 Bad Request", "UserProjectMissing", "", Refused, "GOOGLE_CLOUD_QUOTA_PROJECT"),
        ("403 Forbidden", "AccountProblem", "", Refused, "billing"),
        ("418 Teapot", "Surprise", "", Unavailable, "Try again"),
    ],
)
@pytest.mark.parametrize("ask", [ASKING["get"], ASKING["read"], ASKING["list"], ASKING["create"]])
def test_what_gcs_says_becomes_a_hint(
    monkeypatch: pytest.MonkeyPatch,
    ask: Callable[[ObjectStore], object],
    status: str,
    code: str,
    details: str,
    expected: type[PacktrainError],
    hint: str,
) -> None:
    with scripted(monkeypatch, answer(status, xml(code, details))) as (_, store), pytest.raises(expected) as caught:
        ask(store)
    assert type(caught.value) is expected
    assert hint in caught.value.hint
    assert details in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("ask", [ask for name, ask in ASKING.items() if name != "head"])
def test_a_bucket_that_does_not_exist(gcs_environment: GcsServer, ask: Callable[[ObjectStore], object]) -> None:
    """(An answer to HEAD has no body that could say it.)"""
    with pytest.raises(Unavailable, match="no bucket gs://no-such-bucket") as caught:
        ask(open_gcs("no-such-bucket", "x"))
    assert "correct its name" in caught.value.hint


def test_nobody_listens(gcs_environment: GcsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        monkeypatch.setenv("GOOGLE_BASE_URL", f"http://127.0.0.1:{held.getsockname()[1]}")
        for ask in ASKING.values():
            with pytest.raises(Unavailable, match="cannot be reached") as caught:
                ask(open_gcs("b", "x"))
            assert "GOOGLE_BASE_URL" in caught.value.hint


def test_an_endpoint_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_BASE_URL", "storage.example.com")
    with pytest.raises(UsageError, match=r"storage\.example\.com"):
        open_gcs("b", "x")


# Creating


@pytest.mark.parametrize("code", ["SlowDown", "TooManyRequests"])
def test_a_creation_that_was_turned_away_is_repeated(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    busy = answer("429 Too Many Requests", xml(code), "Retry-After: 1")
    done = answer("200 OK", b"", 'ETag: "e"', "x-goog-generation: 1")
    with scripted(monkeypatch, busy, done) as (server, store):
        store.create("k", b"x")
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    "first", [b"", None, answer("500 Internal Server Error", xml("InternalError")), answer("503 Busy", xml("Busy"))]
)
def test_a_creation_that_may_have_been_done_is_not_repeated(monkeypatch: pytest.MonkeyPatch, first: Answer) -> None:
    lost = answer("412 Precondition Failed", xml("PreconditionFailed"))
    patience = HASTE if first is None else PATIENCE
    with scripted(monkeypatch, first, lost, stall=patience) as (server, store), pytest.raises(Unavailable):
        store.create("k", b"x")
    assert len(server.requests) == 1


def test_a_conflict_is_no_lost_race(monkeypatch: pytest.MonkeyPatch) -> None:
    conflict = answer("409 Conflict", xml("Conflict"))
    with scripted(monkeypatch, conflict) as (_, store), pytest.raises(Unavailable, match="409"):
        store.create("k", b"x")


# A worse wire, to the emulator


@pytest.mark.parametrize("fault", [Fault.LOST_ANSWER, Fault.UNAVAILABLE, Fault.TOO_MANY, Fault.RESET])
def test_a_creation_on_a_bad_wire(gcs_environment: GcsServer, monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    with relay(gcs_environment.endpoint) as wire:
        monkeypatch.setenv("GOOGLE_BASE_URL", wire.endpoint)
        store = open_gcs(gcs_environment.bucket, uuid.uuid4().hex)
        wire.plan = lambda request: fault if request.number == 0 else None
        if fault is Fault.TOO_MANY:
            store.create("k", b"first")
        else:
            with pytest.raises(Unavailable) as caught:
                store.create("k", b"first")
            assert caught.value.hint
        done = fault is not Fault.UNAVAILABLE
        assert (store.head("k") is not None) == done
        if done:
            with pytest.raises(AlreadyExists):
                store.create("k", b"second")
            assert store.get("k") == b"first"


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.CUT_SHORT, Fault.UNAVAILABLE, Fault.STALL])
@pytest.mark.parametrize("key", ["plain", "a #1"])  # past obstore, and through it
def test_a_read_on_a_bad_wire(
    gcs_environment: GcsServer, monkeypatch: pytest.MonkeyPatch, fault: Fault, key: str
) -> None:
    data = os.urandom(1 << 20)
    with relay(gcs_environment.endpoint) as wire:
        monkeypatch.setenv("GOOGLE_BASE_URL", wire.endpoint)
        patience = 6 * HASTE if fault is Fault.STALL else PATIENCE  # also what the answer that is not stalled may take
        open_gcs(gcs_environment.bucket, "wire").upload(key, [data], len(data))
        store = open_gcs(gcs_environment.bucket, "wire", stall=patience)
        first = wire.traffic.requests
        wire.plan = lambda request: fault if request.number == first else None
        assert read(store, key, len(data)) == data
        assert wire.traffic.requests == first + 2


@pytest.mark.slow
@pytest.mark.parametrize("fault", [Fault.LOST_ANSWER, Fault.UNAVAILABLE, Fault.SLOW_DOWN, Fault.RESET])
def test_an_upload_on_a_wire_that_fails_once(
    gcs_environment: GcsServer, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    """At each of its requests: begin, three parts, complete. What cannot be repeated is said, and harms nothing."""
    data = [os.urandom(PART), os.urandom(PART), os.urandom(1000)]
    size = sum(map(len, data))
    with relay(gcs_environment.endpoint) as wire:
        monkeypatch.setenv("GOOGLE_BASE_URL", wire.endpoint)
        for k in range(5):
            store = open_gcs(gcs_environment.bucket, uuid.uuid4().hex)
            store.create("k", b"before")
            first = wire.traffic.requests
            wire.plan = lambda request, at=first + k: fault if request.number == at else None  # type: ignore[misc]
            with suppress(Unavailable):
                store.upload("k", iter(data), size)
            assert store.get("k") in (b"before", b"".join(data))
            store.upload("k", iter(data), size)
            assert store.get("k") == b"".join(data)


def test_a_failed_upload_is_aborted(gcs_environment: GcsServer) -> None:
    """Parts of an upload that nobody ends cost money and show nowhere."""
    store = fresh(gcs_environment)
    shown = []

    def body() -> Iterator[bytes]:
        for _ in range(6):
            yield b"x" * PART
        shown.extend(gcs_environment.front.uploads)
        raise KeyError("the body")

    with pytest.raises(KeyError, match="the body"):
        store.upload("k", body(), 7 * PART)
    path = f"{store.url.removeprefix(gcs_environment.url + '/')}/k"
    assert path in [upload.key for upload in shown]
    assert path not in [upload.key for upload in gcs_environment.front.uploads]


# By parts


def test_listings_of_parts_and_uploads_have_no_limit(
    gcs_environment: GcsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gcs_uploads, "PAGE", 2)
    multipart = fresh(gcs_environment).multipart
    assert multipart is not None
    begun = [multipart.begin(key) for key in "aabbc"]
    assert sorted(each.id for each in multipart.open_uploads("")) == sorted(each.id for each in begun)
    for number in (5, 1, 4, 2, 3):
        multipart.send(begun[0], number, lambda: [b"x"], 1, zlib.crc32(b"x"))
    assert [part.number for part in multipart.parts(begun[0])] == [1, 2, 3, 4, 5]
    for each in begun:
        multipart.abort(each)


def test_new_files_in_a_storage_class(gcs_environment: GcsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    serve = gcs_environment.doorkeeper.service

    def watched(method: str, target: str, headers: dict[str, str], body: bytes) -> object:
        seen.append((method, {name.lower(): value for name, value in headers.items()}.get("x-goog-storage-class")))
        return serve(method, target, headers, body)

    multipart = open_gcs(gcs_environment.bucket, uuid.uuid4().hex, storage_class="NEARLINE").multipart
    assert multipart is not None
    monkeypatch.setattr(gcs_environment.doorkeeper, "service", watched)
    multipart.put("small", lambda: [b"x"], 1, zlib.crc32(b"x"))
    upload = multipart.begin("large")
    multipart.complete(upload, [multipart.send(upload, 1, lambda: [b"x"], 1, zlib.crc32(b"x"))], zlib.crc32(b"x"))
    assert seen == [("PUT", "NEARLINE"), ("POST", "NEARLINE"), ("PUT", None), ("POST", None)]


def test_a_part_that_arrived_as_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted(monkeypatch, answer("200 OK", b"", 'ETag: "0123"')) as (_, store):
        assert store.multipart is not None
        with pytest.raises(IntegrityError, match="what arrived there is not what was hashed"):
            store.multipart.send(OpenUpload("k", "id"), 1, lambda: [b"x"], 1, zlib.crc32(b"x"))


def test_a_part_is_sent_again_after_what_may_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gcs_multipart, "PAUSES", (0.0, 0.0))
    tag = f'ETag: "{hashlib.md5(b"x").hexdigest()}"'
    answers = (answer("503 Busy", xml("Busy")), b"", answer("200 OK", b"", tag))
    with scripted(monkeypatch, *answers) as (server, store):
        assert store.multipart is not None
        part = store.multipart.send(OpenUpload("k", "id"), 1, lambda: [b"x"], 1, zlib.crc32(b"x"))
    assert (part.number, part.crc32, len(server.requests)) == (1, zlib.crc32(b"x"), 3)


def test_a_key_needs_google_auth_for_parts(server: GcsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, objects are written whole, and read all the same."""
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(server.key("writer.json")))
    assert fresh(server).multipart is not None
    monkeypatch.setattr(google, "find_spec", lambda _: None)
    store = fresh(server)
    assert store.multipart is None
    require_works(store)
    store.upload("large", (b"x" * PART for _ in range(2)), 2 * PART)
    assert read(store, "large", 2 * PART) == b"x" * 2 * PART


def test_a_storage_class(gcs_environment: GcsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """(The emulator knows none but STANDARD, so what is looked at is what it was asked for.)"""
    store = fresh(gcs_environment)
    store.create("k", b"text")
    assert store.multipart is not None
    with pytest.raises(UsageError, match="GLACIER") as caught:
        store.multipart.reclass("k", 4, "GLACIER")
    assert "COLDLINE" in caught.value.hint
    asked = []
    serve = gcs_environment.doorkeeper.service

    def watched(method: str, target: str, headers: dict[str, str], body: bytes) -> object:
        asked.append((method, target, body))
        return serve(method, target, headers, body)

    monkeypatch.setattr(gcs_environment.doorkeeper, "service", watched)
    store.multipart.reclass("k", 4, "COLDLINE")
    name = quote(store.locate("k").removeprefix(f"{gcs_environment.url}/"), safe="")
    place = f"b/{gcs_environment.bucket}/o/{name}"
    assert asked == [("POST", f"/storage/v1/{place}/rewriteTo/{place}", b'{"storageClass": "COLDLINE"}')]
    with pytest.raises(UsageError, match="GLACIER"):
        open_gcs("bucket", "", storage_class="GLACIER")
    assert store.get("k") == b"text"


# Where it is


def test_keys_are_under_the_prefix_in_the_bucket(gcs_environment: GcsServer) -> None:
    store = fresh(gcs_environment)
    store.create("models/m", b"x")
    bucket = open_gcs(gcs_environment.bucket, "")
    assert bucket.url == gcs_environment.url
    assert bucket.get(store.locate("models/m").removeprefix(f"{bucket.url}/")) == b"x"
    with pytest.raises(NotFound, match="gs://"):
        bucket.get("models/m")
