"""safetensors files on this machine: their headers, and the few bytes of tensors that preflight compares."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from packtrain.model.safetensors import Header, header_length, parse_header
from packtrain.training.documents import disk_error, open_regular

_BLOCK = 64 << 10  # bytes
_SAMPLES = 64  # blocks, evenly spread


def read_header(path: Path) -> Header:
    """The header of a safetensors file, checked against the file's size; the tensors' bytes are not read.

    Raises `packtrain.model.safetensors.HeaderError`, whose message completes "FILE: ...", NotFound, LocalDiskError.
    """
    with open_regular(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            first8 = file.read(8)
            header = first8 + file.read(header_length(first8, size) - 8)
        except OSError as error:
            raise disk_error(path, error) from error
    return parse_header(header, size)


def same_bytes(one: Path, one_start: int, two: Path, two_start: int, size: int, *, whole: bool) -> bool:
    """Whether two ranges of ``size`` bytes hold the same; if not ``whole``, as far as 4 MiB spread over them tell.

    Raises NotFound, LocalDiskError.
    """
    with open_regular(one) as first, open_regular(two) as second:
        for offset in _offsets(size, whole):
            count = min(_BLOCK, size - offset)
            if _at(one, first.fileno(), one_start + offset, count) != _at(
                two, second.fileno(), two_start + offset, count
            ):
                return False
    return True


def _offsets(size: int, whole: bool) -> Iterator[int]:
    """Where to compare: everywhere, or of what is not small at places evenly spread from the start to the end."""
    if whole or size <= _SAMPLES * _BLOCK:
        yield from range(0, size, _BLOCK)
    else:
        yield from (number * (size - _BLOCK) // (_SAMPLES - 1) for number in range(_SAMPLES))


def _at(path: Path, descriptor: int, offset: int, count: int) -> bytes:
    try:
        return os.pread(descriptor, count, offset)
    except OSError as error:
        raise disk_error(path, error) from error
