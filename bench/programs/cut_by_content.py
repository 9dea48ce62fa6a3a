"""The bytes of DIRECTORY2's content-defined chunks that DIRECTORY1 has not: cut_by_content.py DIRECTORY1 DIRECTORY2

A gear hash over the last 16 bytes, cut where its 16 highest bits are 0, with chunks of 16 to 256 KiB. Prints the sum.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy
from blake3 import blake3

SMALLEST, LARGEST, BITS, BLOCK = 16 << 10, 256 << 10, 16, 64 << 20
GEAR = numpy.random.default_rng(1).integers(0, 1 << 32, 256, dtype=numpy.uint32)
WINDOW = 32


def candidates(data: numpy.ndarray) -> Iterator[int]:
    """Where a chunk may end: the hash at a byte is the sum of GEAR[byte i before it] << i, modulo 2**32."""
    for begin in range(0, len(data), BLOCK):
        low = max(0, begin - WINDOW)
        total = GEAR[data[low : begin + BLOCK]]
        width = 1
        while width < WINDOW:  # the sum over twice as many bytes from two sums
            total[width:] += total[:-width] << numpy.uint32(width)
            width *= 2
        found = numpy.flatnonzero((total >> numpy.uint32(32 - BITS)) == 0) + low + 1
        yield from (int(each) for each in found if each > begin)


def chunks(path: Path) -> Iterator[tuple[int, bytes]]:
    data = numpy.memmap(path, dtype=numpy.uint8, mode="r")
    start = 0
    for end in [*candidates(data), len(data)]:
        while end - start > LARGEST:
            yield LARGEST, blake3(data[start : start + LARGEST]).digest()
            start += LARGEST
        if end - start >= SMALLEST or (end == len(data) and end > start):
            yield end - start, blake3(data[start:end]).digest()
            start = end


def main() -> None:
    first, second = (sorted(Path(name).glob("*.safetensors")) for name in sys.argv[1:])
    known = {digest for path in first for _, digest in chunks(path)}
    lacking = {digest: length for path in second for length, digest in chunks(path) if digest not in known}
    print(sum(lacking.values()))


main()
