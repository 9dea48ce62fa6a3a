"""The relay is what it says, in front of the real S3 server: the same bytes, and on the wire what a plan says."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from urllib.parse import urlsplit

import obstore
import pytest
from obstore.store import S3Store

from packtrain.errors import AlreadyExists, Unavailable
from packtrain.ports import Store
from packtrain.storage import open_store
from packtrain.testing.faults import WIRE, Fault
from packtrain.testing.proxy import Relay, Request, relay
from packtrain.testing.servers import REGION, S3Server

DATA = bytes(n * n % 251 for n in range(300_000))


@pytest.fixture
def wire(s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    with relay(s3_environment.endpoint, stall=10.0) as wire:
        monkeypatch.setenv("AWS_ENDPOINT_URL", wire.endpoint)
        yield wire


@pytest.fixture
def store(wire: Relay, s3_environment: S3Server) -> Store:
    store = open_store(f"{s3_environment.url}/through-a-relay")
    store.upload("data", [DATA], len(DATA))
    return store


def get(wire: Relay, server: S3Server, patience: float = 60.0) -> tuple[int, dict[str, str], bytes]:
    """One GET without the help of a client that knows better. Raises what breaks it."""
    signer = S3Store(
        server.bucket,
        endpoint=wire.endpoint,
        access_key_id=server.access_key,
        secret_access_key=server.secret_key,
        region=REGION,
        client_options={"allow_http": True},
    )
    url = urlsplit(obstore.sign(signer, "GET", "through-a-relay/data", timedelta(minutes=5)))
    connection = http.client.HTTPConnection(url.netloc, timeout=patience)
    try:
        connection.request("GET", f"{url.path}?{url.query}")
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    finally:
        connection.close()


def first(fault: Fault | None) -> Iterator[Fault | None]:
    yield fault
    while True:
        yield None


def plan(wire: Relay, fault: Fault) -> None:
    """The next request meets it."""
    faults = first(fault)
    wire.plan = lambda _: next(faults)


def test_the_server_believes_who_signs_for_the_relay(wire: Relay, store: Store, s3: S3Server) -> None:
    buffer = memoryview(bytearray(1 << 16))
    assert b"".join(bytes(piece) for piece in store.read("data", 0, len(DATA), buffer)) == DATA
    store.delete("once")
    store.create("once", b"1")
    with pytest.raises(AlreadyExists):
        store.create("once", b"2")
    assert {info.key for info in store.list("")} >= {"data", "once"}
    assert get(wire, s3)[2] == DATA


def test_bodies_are_counted(wire: Relay, store: Store, s3: S3Server) -> None:
    before = wire.traffic.requests, wire.traffic.down, wire.traffic.heads_down
    assert wire.traffic.up == len(DATA)
    get(wire, s3)
    assert wire.traffic.down - before[1] == len(DATA)
    assert wire.traffic.requests - before[0] == 1
    assert wire.traffic.heads_down > before[2]
    assert wire.requests[-1].down == len(DATA)
    assert wire.requests[-1].method == "GET" and "/through-a-relay/data" in wire.requests[-1].target


def test_it_takes_as_long_as_it_should(wire: Relay, store: Store, s3: S3Server) -> None:
    """At least: how much longer depends on the machine."""
    wire.latency = 0.1
    began = time.monotonic()
    get(wire, s3)
    assert time.monotonic() - began >= 0.2, "a connection, and an answer"
    wire.latency, wire.rate = 0.0, 1e6
    began = time.monotonic()
    get(wire, s3)
    assert time.monotonic() - began >= 0.25


@pytest.mark.parametrize("fault", [Fault.CUT_SHORT, Fault.RESET, Fault.STALL, Fault.LOST_ANSWER])
def test_a_body_that_breaks_off(wire: Relay, store: Store, s3: S3Server, fault: Fault) -> None:
    plan(wire, fault)
    expected = {
        Fault.CUT_SHORT: http.client.IncompleteRead,
        Fault.RESET: ConnectionResetError,
        Fault.STALL: TimeoutError,
        Fault.LOST_ANSWER: http.client.RemoteDisconnected,
    }
    with pytest.raises(expected[fault]):
        get(wire, s3, patience=1.0 if fault is Fault.STALL else 60.0)
    assert get(wire, s3)[2] == DATA


def test_a_body_that_is_wrong(wire: Relay, store: Store, s3: S3Server) -> None:
    plan(wire, Fault.SHORT)
    assert get(wire, s3)[2] == DATA[: len(DATA) // 2]
    plan(wire, Fault.FLIPPED_BIT)
    wrong = get(wire, s3)[2]
    assert [n for n in range(len(DATA)) if wrong[n] != DATA[n]] == [len(DATA) // 2]


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (Fault.UNAVAILABLE, 500, b"InternalError"),
        (Fault.SLOW_DOWN, 503, b"SlowDown"),
        (Fault.TOO_MANY, 429, b"TooManyRequests"),
    ],
)
def test_an_answer_in_the_servers_place(
    wire: Relay, store: Store, s3: S3Server, fault: Fault, status: int, code: bytes
) -> None:
    plan(wire, fault)
    answered, fields, body = get(wire, s3)
    assert answered == status and code in body
    assert fields.get("retry-after") == (None if fault is Fault.UNAVAILABLE else "1")


def test_a_put_is_carried_out_and_its_answer_lost(wire: Relay, store: Store) -> None:
    def lose(request: Request) -> Fault | None:
        return Fault.LOST_ANSWER if request.method == "PUT" else None

    wire.plan = lose
    with pytest.raises(Unavailable, match="error sending request"):
        store.create("lost", b"1")
    wire.plan = None
    assert store.get("lost") == b"1"


def test_a_listing_in_another_order(wire: Relay, store: Store) -> None:
    keys = [f"many/{number}/x" for number in range(8)]
    for key in keys:
        store.create(key, b"1")
    wire.plan = lambda _: Fault.SHUFFLED
    found = [info.key for info in store.list("many/")]
    assert sorted(found) == keys and found not in (keys, keys[::-1])
    assert set(store.children("many/")) == {str(number) for number in range(8)}
    for key in keys:
        store.delete(key)


def test_nobody_listens(wire: Relay, store: Store, s3: S3Server) -> None:
    with wire.refusing(), pytest.raises(ConnectionRefusedError):
        get(wire, s3)
    assert get(wire, s3)[2] == DATA


@pytest.mark.parametrize("fault", WIRE)
def test_answers_in_chunks_and_without_a_body_meet_every_fault(wire: Relay, store: Store, fault: Fault) -> None:
    """A HEAD has nothing to shorten; a listing comes in chunks. What the store cannot repeat by itself, it says."""
    wire.stall = 0.1
    plan(wire, fault)
    info = store.head("data")
    assert info is not None and info.size == len(DATA)
    plan(wire, fault)
    before = wire.traffic.requests
    with suppress(Unavailable):
        found = [info.key for info in store.list("")]
        assert "data" in found or fault is Fault.FLIPPED_BIT  # nothing in a listing proves what it says
    assert wire.traffic.requests > before
