"""Numbers that are none: NaN and infinity anywhere in the weights. Reads every byte of them.

No numbers are made of the bytes. In the formats of IEEE 754 a number that is none has all bits of its exponent set, so
its highest byte is one of a few; in healthy weights hardly any number has such a byte, and only those are looked at.
(numpy would do the same in three temporary arrays a block; this keeps up with a disk and costs no dependency.)
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from packtrain.model.finding import Finding
from packtrain.model.safetensors import HeaderError, Tensor
from packtrain.ports import Reporter
from packtrain.training.checkpoint import Checkpoint
from packtrain.training.documents import disk_error, open_regular
from packtrain.training.preflight.view import refuse, some
from packtrain.training.weights import read_header

_BLOCK = 1 << 20  # bytes; a multiple of every size of a number


@dataclass(frozen=True, slots=True)
class _Format:
    """``size`` bytes a number, little-endian; ``exponent`` masks its exponent, of which all bits are set in what is
    no number. E4M3 has no infinity: its mask is the one pattern that is none."""

    size: int
    exponent: int

    @property
    def high_bytes(self) -> bytes:
        """The highest bytes that a number which is none can have."""
        mask = self.exponent >> 8 * (self.size - 1)
        return bytes(byte for byte in range(256) if byte & mask == mask)


_FORMATS: Mapping[str, _Format] = {
    "F64": _Format(8, 0x7FF << 52),
    "F32": _Format(4, 0xFF << 23),
    "BF16": _Format(2, 0xFF << 7),
    "F16": _Format(2, 0x1F << 10),
    "F8_E5M2": _Format(1, 0x1F << 2),
    "F8_E4M3": _Format(1, 0x7F),
}


def scan(checkpoint: Checkpoint, reporter: Reporter) -> tuple[Finding, ...]:
    """A refusal for each file that holds NaN or infinity. Files whose headers are bad are `preflight`'s to refuse.

    Raises NotFound, LocalDiskError.
    """
    files: dict[str, tuple[Tensor, ...]] = {}
    for path in checkpoint.taken:
        if path.endswith(".safetensors"):
            try:
                files[path] = read_header(checkpoint.directory / path).tensors
            except HeaderError:
                continue
    reporter.begin("scanning", sum(tensor.size for tensors in files.values() for tensor in tensors))
    try:
        return tuple(
            finding
            for path, tensors in files.items()
            for finding in _scan_file(checkpoint.directory / path, path, tensors, reporter)
        )
    finally:
        reporter.end()


def _scan_file(file: Path, path: str, tensors: tuple[Tensor, ...], reporter: Reporter) -> Iterator[Finding]:
    broken: dict[str, int] = {}
    with open_regular(file) as handle:
        for tensor in tensors:
            form = _FORMATS.get(tensor.dtype)
            for start in range(tensor.start, tensor.end, _BLOCK):
                length = min(_BLOCK, tensor.end - start)
                if form and (count := _count(_read(file, handle.fileno(), start, length), form)):
                    broken[tensor.name] = broken.get(tensor.name, 0) + count
                reporter.advance(length)
    if broken:
        what = f"holds NaN or infinity in the tensor {some(list(broken))}: {sum(broken.values())} numbers"
        fix = "The training diverged or the merge overflowed (float16 can): go back to an earlier checkpoint, use bf16."
        yield refuse("not-finite", path, what, fix)


def _read(file: Path, descriptor: int, start: int, length: int) -> bytes:
    try:
        return os.pread(descriptor, length, start)
    except OSError as error:
        raise disk_error(file, error) from error


def _count(block: bytes, form: _Format) -> int:
    """How many numbers of a block are none."""
    high = block[form.size - 1 :: form.size]
    suspects = form.high_bytes
    if not any(byte in high for byte in suspects):
        return 0
    return sum(
        int.from_bytes(block[place * form.size : (place + 1) * form.size], "little") & form.exponent == form.exponent
        for place, byte in enumerate(high)
        if byte in suspects
    )
