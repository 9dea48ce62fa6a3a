"""Deliveries of MLflow's webhooks: signed, fresh, once."""

from __future__ import annotations

import json

import pytest

from packtrain.errors import Refused
from packtrain.model.webhook import DELIVERY, REMEMBERED, SIGNATURE, TIME, WINDOW, Gate, sign

SECRET = b"s3cret"
NOW = 1_795_725_550


def delivery(
    entity: str = "model_version_alias",
    *,
    name: object = "llama",
    number: int = 1,
    at: int = NOW,
    secret: bytes = SECRET,
) -> tuple[dict[str, str], bytes]:
    body = json.dumps(
        {"entity": entity, "action": "created", "data": {"name": name, "alias": "production", "version": "2"}}
    ).encode()
    sent = f"delivery-{number}"
    return {DELIVERY: sent, TIME: str(at), SIGNATURE: sign(secret, sent, str(at), body)}, body


def test_the_signature_is_mlflows() -> None:
    """HMAC-SHA256 over "id.time.body", as the real server signed it."""
    assert sign(b"k", "id", "1", b"{}") == "v1,g7RitEqJvu8yMbDC6clEYxfin7F9RZIMzpsXDw051Xc="


def test_a_delivery_tells_which_model_there_is_news_of() -> None:
    assert Gate(SECRET).admit(*delivery(), NOW) == "llama"
    assert Gate(SECRET).admit(*delivery("model_version"), NOW + WINDOW) == "llama"
    assert Gate(SECRET).admit(*delivery("prompt"), NOW - WINDOW) is None
    assert Gate(SECRET).admit(*delivery(name=None), NOW) is None


def test_who_does_not_know_the_secret_is_refused() -> None:
    headers, body = delivery(secret=b"guessed")
    for wrong in (headers, {}, {**headers, SIGNATURE: "é"}, {**headers, SIGNATURE: ""}):
        with pytest.raises(Refused, match="signature"):
            Gate(SECRET).admit(wrong, body, NOW)
    headers, body = delivery()
    for tampered in (
        (headers, body + b" "),
        ({**headers, TIME: str(NOW + 1)}, body),
        ({**headers, DELIVERY: "x"}, body),
    ):
        with pytest.raises(Refused, match="signature"):
            Gate(SECRET).admit(*tampered, NOW)


@pytest.mark.parametrize("at", [NOW - WINDOW - 1, NOW + WINDOW + 1])
def test_an_old_delivery_is_refused(at: int) -> None:
    with pytest.raises(Refused, match="too long ago"):
        Gate(SECRET).admit(*delivery(at=at), NOW)


def test_a_delivery_that_comes_again_says_nothing_new() -> None:
    gate = Gate(SECRET)
    assert gate.admit(*delivery(number=1), NOW) == "llama"
    assert gate.admit(*delivery(number=1), NOW + 8) is None
    assert gate.admit(*delivery(number=2), NOW + 8) == "llama"
    for number in range(3, REMEMBERED + 10):
        gate.admit(*delivery(number=number), NOW)
    assert len(gate._seen) == REMEMBERED


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"entity": "model_version"}', b'{"entity": "model_version", "data": 1}']
)
def test_what_is_no_delivery_of_mlflows_is_refused(body: bytes) -> None:
    headers = {DELIVERY: "1", TIME: str(NOW), SIGNATURE: sign(SECRET, "1", str(NOW), body)}
    with pytest.raises(Refused, match="not one of MLflow's"):
        Gate(SECRET).admit(headers, body, NOW)
