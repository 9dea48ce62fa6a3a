"""The CRC-32 of bytes that follow each other, from those of each: as zlib's crc32_combine, which Python does not give.

A CRC is a remainder of polynomials over GF(2). Appending n bytes multiplies what was there by x^(8n), so combining
costs a multiplication modulo the polynomial, whatever the length (https://zlib.net/crc_v3.txt; zlib's crc32.c).
Bits are reflected: the highest is x^0.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

_POLYNOMIAL = 0xEDB88320
_ONE = 1 << 31  # x^0


def combined(parts: Iterable[tuple[int, int]]) -> int:
    """The CRC-32 of all bytes, from ``(crc32, length)`` of each part of them, in order. 0 for no parts."""
    total = 0
    for crc32, length in parts:
        total = _multiplied(_shift(length), total) ^ crc32
    return total


@lru_cache(maxsize=4096)
def _shift(length: int) -> int:
    """x^(8 length)."""
    result, square = _ONE, 1 << 23  # x^8
    while length:
        if length & 1:
            result = _multiplied(square, result)
        square = _multiplied(square, square)
        length >>= 1
    return result


def _multiplied(a: int, b: int) -> int:
    """The product of two polynomials, modulo the CRC's."""
    product = 0
    while a and b:
        if a & _ONE:
            product ^= b
        a = a << 1 & 0xFFFFFFFF
        b = b >> 1 ^ _POLYNOMIAL if b & 1 else b >> 1
    return product
