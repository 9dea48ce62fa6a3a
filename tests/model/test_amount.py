"""Amounts of bytes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packtrain.errors import UsageError
from packtrain.model.amount import Amount, size


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0GB", 0),
        ("12B", 12),
        ("500GB", 500_000_000_000),
        ("1.5 TB", 1_500_000_000_000),
        ("200GiB", 200 << 30),
        ("1kib", 1024),
        ("0.1kB", 100),
        ("80%", 8_000),
        ("2.5 %", 250),
        ("100%", 10_000),
    ],
)
def test_in_bytes(text: str, count: int) -> None:
    assert Amount(text).of(10_000) == count
    assert str(Amount(text)) == text


@pytest.mark.parametrize("text", ["", "500", "GB", "5 gigs", "-1GB", "101%", "1e3GB", "5G", "1,5TB", "5GB ", "١GB"])
def test_what_is_none_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(UsageError, match="not an amount") as caught:
        Amount(text)
    assert "500GB" in caught.value.hint


@given(st.integers(0, 10**18))
def test_a_size_reads_back_as_about_itself(count: int) -> None:
    assert abs(Amount(size(count)).of(0) - count) <= count * 0.05 + 0.5
