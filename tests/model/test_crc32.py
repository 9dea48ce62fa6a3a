from __future__ import annotations

import zlib

from hypothesis import given
from hypothesis import strategies as st

from packtrain.model.crc32 import combined


@given(st.lists(st.binary(max_size=300)))
def test_the_checksum_of_parts_is_that_of_the_whole(parts: list[bytes]) -> None:
    assert combined((zlib.crc32(part), len(part)) for part in parts) == zlib.crc32(b"".join(parts))


def test_long_parts() -> None:
    zeros = bytes(4 << 20)
    assert combined([(zlib.crc32(b"x"), 1), (zlib.crc32(zeros), len(zeros))]) == zlib.crc32(b"x" + zeros)


def test_the_order_matters() -> None:
    one, two = (zlib.crc32(b"one"), 3), (zlib.crc32(b"two!"), 4)
    assert combined([one, two]) != combined([two, one])
