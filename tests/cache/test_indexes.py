"""A set of chunks that takes a byte for each."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from packtrain.cache.partial import Indexes

some = st.lists(st.integers(0, 300))


@given(some, some)
def test_it_holds_what_a_set_would(added: list[int], discarded: list[int]) -> None:
    indexes = Indexes(added)
    for index in discarded:
        indexes.discard(index)
    expected = set(added) - set(discarded)
    assert indexes == expected
    assert list(indexes) == sorted(expected)
    assert len(indexes) == len(expected)
    assert bool(indexes) == bool(expected)
    assert all((index in indexes) == (index in expected) for index in range(-301, 400))
