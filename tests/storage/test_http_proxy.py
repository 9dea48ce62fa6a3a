"""An HTTP proxy on the way to S3: all that speaks to S3 takes the same way, and says to the proxy who it is."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress

import pytest

from packtrain.errors import PacktrainError
from packtrain.ports import Multipart, Store
from packtrain.storage import boto, open_store
from tests.storage.test_multipart import CRC32, Recorder, recorder

__all__ = ["recorder"]

WHO = f"Basic {b64encode(b'ada:se cret').decode()}"


def by_parts(store: Store) -> Multipart:
    assert store.multipart is not None
    return store.multipart


SPEAKERS: dict[str, Callable[[Store], object]] = {
    "obstore": lambda store: store.get("k"),
    "botocore": lambda store: by_parts(store).begin("k"),
    "the wire, read": lambda store: list(store.read("k", 0, 4, memoryview(bytearray(65536)))),
    "the wire, written": lambda store: by_parts(store).put("k", lambda: [b"text"], 4, CRC32),
}
speakers = pytest.mark.parametrize("speak", SPEAKERS.values(), ids=SPEAKERS.keys())


@pytest.fixture(autouse=True)
def proxy(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorder, in the place of a server whose name nobody knows."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    address = os.environ["AWS_ENDPOINT_URL"].replace("http://", "http://ada:se%20cret@")
    monkeypatch.setenv("http_proxy", address)  # in capitals a web server's child must not believe it
    monkeypatch.setenv("HTTPS_PROXY", address)


@speakers
def test_it_is_given_the_whole_url(
    recorder: Recorder, speak: Callable[[Store], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://s3.invalid")
    with suppress(PacktrainError):  # the recorder's answers are not S3's
        speak(open_store("s3://bucket/prefix"))
    _, target, headers = recorder.heads[0]
    assert target.startswith("http://s3.invalid/bucket/prefix/k")
    assert headers["Host"] == "s3.invalid"
    assert headers["Proxy-Authorization"] == WHO


@pytest.mark.slow
@speakers
def test_it_is_asked_for_a_tunnel(
    recorder: Recorder, speak: Callable[[Store], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://s3.invalid")
    monkeypatch.setattr(boto, "_ATTEMPTS", 1)
    recorder.answers += [(403, b"")] * 100
    with pytest.raises(PacktrainError):
        speak(open_store("s3://bucket/prefix"))
    method, target, headers = recorder.heads[0]
    assert (method, target) == ("CONNECT", "s3.invalid:443")
    assert headers["Proxy-Authorization"] == WHO


@speakers
def test_hosts_that_are_excepted_are_asked_directly(
    recorder: Recorder, speak: Callable[[Store], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with suppress(PacktrainError):
        speak(open_store("s3://bucket/prefix"))
    _, target, headers = recorder.heads[0]
    assert target.startswith("/bucket/prefix/k")
    assert headers["Proxy-Authorization"] is None
