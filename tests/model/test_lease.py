"""Leases: what is refused."""

from __future__ import annotations

import json

import pytest

from packtrain.errors import IntegrityError
from packtrain.model import canonical
from packtrain.model.lease import Holder, Lease

GOOD = Lease(Holder(host="h", pid=1, user="u"), until="2026-03-02T09:45:27.104Z")
VALUE = json.loads(GOOD.encode())


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "packtrain.lease/2"},
        {"until": "tomorrow"},
        {"until": 5},
        {"holder": "h"},
        {"holder": {"host": "h", "pid": "1", "user": "u"}},
        {"holder": {"host": "h", "pid": True, "user": "u"}},
        {"holder": {"host": "h", "user": "u"}},
        {"holder": {"host": "h", "pid": 1, "user": "u", "more": 1}},
        {"more": 1},
    ],
)
def test_what_is_no_lease_is_refused_by_name(change: dict[str, object]) -> None:
    with pytest.raises(IntegrityError, match="leases/m"):
        Lease.decode(canonical.encode({**VALUE, **change}), what="leases/m/x.json")


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", json.dumps(VALUE).encode()])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        Lease.decode(data, what="x")


def test_a_holder_is_named_for_people() -> None:
    assert str(Holder(host="gpu-1", pid=7, user="ada")) == "ada on gpu-1 (process 7)"
