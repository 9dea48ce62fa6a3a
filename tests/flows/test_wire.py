"""A bad wire to the real S3 server, and to GCS, at every request: what arrives is whole, or the failure is said and the
next run completes; no answer that is lost makes two versions or none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from packtrain.errors import IntegrityError, PacktrainError, Unavailable
from packtrain.storage.gcs import open_gcs
from packtrain.storage.objects import ObjectStore
from packtrain.storage.s3 import open_s3
from packtrain.testing.faults import WIRE, Fault
from packtrain.testing.proxy import Relay, relay
from tests.conftest import Models
from tests.flows.conftest import House, contents

pytestmark = pytest.mark.slow

Make = Callable[..., House]
Bucket = Callable[..., ObjectStore]
HASTE = 0.3  # seconds without a byte after which a client gives up on a wire that fails
PATIENCE = 60.0  # on one that does not, however busy this machine is


SERVERS = {"s3": ("AWS_ENDPOINT_URL", open_s3), "gcs": ("GOOGLE_BASE_URL", open_gcs)}
FAULTS = [
    *(("s3", fault) for fault in WIRE),
    *(("gcs", fault) for fault in (Fault.LOST_ANSWER, Fault.RESET)),
]
each_fault = pytest.mark.parametrize(("kind", "fault"), FAULTS, indirect=["kind"])


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    """Of the server."""
    return getattr(request, "param", "s3")


@pytest.fixture
def wire(kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    server = request.getfixturevalue(f"{kind}_environment")
    with relay(server.endpoint) as wire:
        monkeypatch.setenv(SERVERS[kind][0], wire.endpoint)
        yield wire


@pytest.fixture
def bucket(kind: str, wire: Relay, request: pytest.FixtureRequest) -> Bucket:
    """A store of its own, by a name."""
    folder = request.node.name.translate({ord(c): "-" for c in "[].:"})
    server = request.getfixturevalue(kind)
    return lambda name, stall=PATIENCE: SERVERS[kind][1](server.bucket, f"{folder}-{name}", stall=stall)


def patience(fault: Fault) -> float:
    """A flipped bit keeps nobody waiting, and has to be found by looking."""
    return PATIENCE if fault is Fault.FLIPPED_BIT else HASTE


def at(number: int, fault: Fault, wire: Relay) -> None:
    """The request ``number`` from now on meets it."""
    first = wire.traffic.requests
    wire.plan = lambda request: fault if request.number == first + number else None


def require_said(error: PacktrainError, fault: Fault) -> None:
    """It is the wire's fault, or the bytes', and what to do is said."""
    assert isinstance(error, IntegrityError if fault is Fault.FLIPPED_BIT else (Unavailable, IntegrityError)), error
    assert error.hint, error


def require_whole(house: House, source: Path) -> None:
    path = house.pull("llama").path
    assert {file: (path / file).read_bytes() for file in contents(source)} == contents(source)
    assert not list((house.home / "cache" / "partial").iterdir())


@each_fault
def test_pull_on_a_wire_that_fails_once(
    make_house: Make, models: Models, wire: Relay, bucket: Bucket, fault: Fault
) -> None:
    store = bucket("pull")
    make_house("publisher", store=store).publish(models.first)
    before = wire.traffic.requests
    make_house("count", store=store).pull("llama")
    requests = wire.traffic.requests - before
    assert requests > 10
    for k in range(requests):
        node = make_house(f"node-{k}", store=bucket("pull", patience(fault)))
        at(k, fault, wire)
        try:
            node.pull("llama")
        except PacktrainError as error:
            require_said(error, fault)
            assert not list((node.home / "cache").glob("snapshots/*"))
        wire.plan = None
        require_whole(make_house(f"node-{k}", store=store), models.first)


@each_fault
def test_publish_on_a_wire_that_fails_once(
    make_house: Make, models: Models, wire: Relay, bucket: Bucket, fault: Fault
) -> None:
    before = wire.traffic.requests
    make_house("count", store=bucket("count")).publish(models.first)
    requests = wire.traffic.requests - before
    assert requests > 20
    for k in range(list(Fault).index(fault) % 8, requests, 8):  # each request fails in some way
        at(k, fault, wire)
        try:
            make_house(f"publisher-{k}", store=bucket(f"publish-{k}", patience(fault))).publish(models.first)
        except PacktrainError as error:
            require_said(error, fault)
        wire.plan = None
        store = bucket(f"publish-{k}")
        make_house(f"publisher-{k}", store=store).publish(models.first)
        reader = make_house(f"reader-{k}", store=store)
        assert list(reader.registry.audit("llama").state.versions) == [1]
        require_whole(reader, models.first)


def test_a_server_that_is_gone_for_a_while(make_house: Make, models: Models, wire: Relay, bucket: Bucket) -> None:
    store = bucket("gone")
    make_house("publisher", store=store).publish(models.first)
    with wire.refusing(), pytest.raises(Unavailable, match="cannot be reached") as caught:
        make_house("node", store=store).pull("llama")
    assert "AWS_ENDPOINT_URL" in caught.value.hint
    require_whole(make_house("node", store=store), models.first)
    with wire.refusing():
        require_whole(make_house("node", store=store), models.first)
