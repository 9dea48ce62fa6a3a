"""Canonical JSON against the reference implementation in Python, and what it refuses."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from packtrain.errors import IntegrityError
from packtrain.model import canonical
from tests.model.strategies import json_values


@given(json_values)
def test_equals_rfc8785(value: Any) -> None:
    assert canonical.encode(value) == rfc8785.dumps(value)


@given(json_values)
def test_reads_back(value: Any) -> None:
    assert canonical.decode(canonical.encode(value), what="it") == value


@given(st.integers(0, 0x10FFFF).filter(lambda c: not 0xD800 <= c < 0xE000))
def test_every_character_is_written_as_rfc8785_says(code: int) -> None:
    assert canonical.encode(chr(code)) == rfc8785.dumps(chr(code))


@pytest.mark.parametrize(
    "value",
    [
        1.0, 0.5, float("nan"), float("inf"), 2**53, -(2**53), 10**400, "\ud800", ["\udfff"], {"\ud800": 1}, {"ä": 1},
        {"🦙": 1}, {1: "a", "1": "b"}, {"a": [1.5]},
    ],
    ids=repr,
)  # fmt: skip
def test_refuses_to_write_what_has_no_one_form(value: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        canonical.encode(value)


@pytest.mark.parametrize(
    "data",
    [
        b"", b" ", b"{", b"nul", b"[1,]", b"1 ", b" 1", b"[1, 2]", b'{"a": 1}', b'{"b":1,"a":2}', b'{"a":1,"a":1}',
        b'{"a":1,"a":2}', b'{"a":{"b":1,"b":2}}', b"1.0", b"1e2", b"-0", b"-0.0", b"01", b"+1", b"NaN", b"Infinity",
        b"-Infinity", b"9007199254740992", b"-9007199254740992", b"1" * 5000, b'"\\u0041"', b'"\\/"', b'"\\u000A"',
        b'"\\u000a"', b'"\\u001F"', b'"\\ud800"', b'"\\ud83e\\udd99"', b'"\xff"', b'"\xed\xa0\x80"', b'"\n"',
        b"\xef\xbb\xbf1", '{"ä":1}'.encode(), b"[1]\n", b"[1]\x00", b"[" * 100_000, b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 50_000, '"a"'.encode("utf-16"),
    ],
    ids=lambda data: repr(data[:24]),
)  # fmt: skip
def test_refuses_to_read_what_is_not_canonical(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="the thing"):
        canonical.decode(data, what="the thing")


@given(json_values, st.data())
def test_one_value_has_one_form(value: Any, data: st.DataObject) -> None:
    """Whatever else is JSON for the same value is refused."""
    style = data.draw(
        st.sampled_from([{"indent": 1}, {"separators": (", ", ": ")}, {"ensure_ascii": True, "sort_keys": True}])
    )
    text = json.dumps(value, **style).encode()
    if text != canonical.encode(value):
        with pytest.raises(IntegrityError):
            canonical.decode(text, what="it")


@given(st.binary() | st.text().map(lambda t: t.encode("utf-8", "surrogatepass")))
def test_bytes_are_canonical_or_an_integrity_error(data: bytes) -> None:
    try:
        value = canonical.decode(data, what="it")
    except IntegrityError:
        return
    assert canonical.encode(value) == data


@given(json_values, st.data())
def test_a_damaged_byte_is_another_value_or_refused(value: Any, data: st.DataObject) -> None:
    good = canonical.encode(value)
    place, bit = data.draw(st.integers(0, len(good) - 1)), data.draw(st.integers(0, 7))
    damaged = good[:place] + bytes([good[place] ^ (1 << bit)]) + good[place + 1 :]
    with suppress(IntegrityError):
        assert canonical.encode(canonical.decode(damaged, what="it")) == damaged
