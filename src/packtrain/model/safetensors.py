"""safetensors headers, and where a file is cut into chunks.

Format: 8 bytes little-endian header length N, N bytes of JSON, then the tensors' bytes; each entry gives dtype,
shape and ``data_offsets`` relative to the end of the header (https://github.com/huggingface/safetensors, "Format").
The reader here is as strict as the reference implementation: the tensors must cover the rest of the file without
holes or overlaps.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

from packtrain.model.canonical import uncollected

MIB = 1 << 20
CHUNK = 4 * MIB
OWN_CHUNK = 1 * MIB  # a tensor of this size or more starts a chunk of its own
MAX_HEADER = 100_000_000  # bytes; the reference implementation's limit
MAX_COUNT = 2**63  # of bytes or elements: also keeps a hostile shape from growing numbers without end

# Bits, because the sub-byte types exist. Source: safetensors `tensor.rs`, enum Dtype.
DTYPE_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


class HeaderError(ValueError):
    """A header that does not parse or that contradicts the file. The message completes "FILE: ..."."""


class Tensor(NamedTuple):
    """One entry of a header; ``start`` and ``end`` are byte offsets in the *file*."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Header:
    """A parsed header: ``length`` bytes from the start of the file, then ``tensors`` in file order."""

    length: int
    tensors: tuple[Tensor, ...]
    metadata: dict[str, str]


def header_length(first8: bytes, file_size: int) -> int:
    """Bytes that the header takes with its 8-byte prefix. Raises HeaderError."""
    if len(first8) < 8:
        raise HeaderError(f"is {file_size} bytes long, too short for a safetensors file")
    length = int.from_bytes(first8, "little")
    if length > MAX_HEADER:
        raise HeaderError(f"claims a header of {length} bytes; the format's limit is {MAX_HEADER}")
    if 8 + length > file_size:
        raise HeaderError(f"claims a header of {length} bytes, but the file ends after {file_size}")
    return 8 + length


def parse_header(header: bytes, file_size: int) -> Header:
    """Reads the header (prefix included) of a file of ``file_size`` bytes. Raises HeaderError."""
    with uncollected():
        return _parse(header, header_length(header[:8], file_size), file_size)


def _parse(header: bytes, length: int, file_size: int) -> Header:
    try:
        entries = _load(header[8:length].decode("utf-8"))
        names = "".join(entries) if isinstance(entries, dict) else ""
        names.encode("utf-8")  # refuses what is not Unicode (lone surrogates)
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"has a header that is not JSON: {error}") from error
    if header[8:9] != b"{":
        raise HeaderError("has a header that does not begin with {, as a JSON object must here")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise HeaderError("has __metadata__ that is not a map of strings")
    tensors = [_tensor(name, entry, length) for name, entry in entries.items()]
    tensors.sort(key=attrgetter("start", "end"))
    position = length
    for tensor in tensors:
        if tensor.start != position:
            kind = "overlaps the one before it" if tensor.start < position else "leaves a hole before it"
            raise HeaderError(f"has a header in which tensor {tensor.name!r} {kind} (offset {tensor.start})")
        position = tensor.end
    if position != file_size:
        where = "outside the file" if position > file_size else "before the end of the file"
        raise HeaderError(f"has a header whose tensors end {where}: at {position} of {file_size} bytes")
    return Header(length=length, tensors=tuple(tensors), metadata=metadata)


def cut(file_size: int, header: Header | None) -> list[int]:
    """The lengths of a file's chunks, in order; they sum to ``file_size``.

    A safetensors file is cut at tensor starts, so that a tensor that did not change gives the same chunks in
    whatever shard it lands: the header is its own; a tensor of 1 MiB or more starts its own, cut every 4 MiB from
    its start; runs of smaller tensors share chunks of at most 4 MiB. Without a header: every 4 MiB.
    """
    if header is None:
        return _every_4_mib(file_size)
    lengths = _every_4_mib(header.length)
    run = 0
    for _, _, _, start, end in header.tensors:
        size = end - start
        if size >= OWN_CHUNK:
            if run:
                lengths.append(run)
                run = 0
            lengths += [size] if size <= CHUNK else _every_4_mib(size)  # of 200,000 experts each is one chunk
        elif run + size > CHUNK:
            lengths.append(run)
            run = size
        else:
            run += size
    if run:
        lengths.append(run)
    return lengths


def _every_4_mib(size: int) -> list[int]:
    whole, rest = divmod(size, CHUNK)
    return [CHUNK] * whole + ([rest] if rest else [])


def _load(text: str) -> Any:
    """The JSON of a header. Raises ValueError, also if a key appears twice.

    The parser drops such keys silently, or asks for each object. In a text without white space a key ends with ``":``,
    and so may parts of names: if there are not more of these than keys in what was read, no key was dropped.
    """
    compact = text.rstrip(" \t\n\r")  # writers pad headers with spaces
    if not any(space in compact for space in " \t\n\r"):
        value = json.loads(compact)
        entries = value.values() if isinstance(value, dict) else ()
        if compact.count('":') == len(entries) + sum(len(entry) for entry in entries if type(entry) is dict):
            return value
    return json.loads(text, object_pairs_hook=_no_duplicates)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key appears twice")
    return value


def _tensor(name: str, entry: Any, base: int) -> Tensor:
    """Written for a mixture of experts with 200,000 of them."""
    try:
        dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise HeaderError(f"has a header whose entry {name!r} lacks dtype, shape or data_offsets") from error
    if type(shape) is not list or type(start) is not int or type(end) is not int:
        raise _bad_numbers(name)
    if not (0 <= start < MAX_COUNT and 0 <= end < MAX_COUNT):
        raise _bad_numbers(name)
    bits = DTYPE_BITS.get(dtype) if type(dtype) is str else None
    if bits is None:
        raise HeaderError(f"has a tensor {name!r} of unknown dtype {dtype!r}")
    count = 1
    for n in shape:
        if type(n) is not int or not 0 <= n < MAX_COUNT:
            raise _bad_numbers(name)
        count *= n
        if count >= MAX_COUNT:
            raise HeaderError(f"has a tensor {name!r} whose shape has 2**63 elements or more")
    bits *= count
    if (end - start) * 8 != bits:
        raise HeaderError(f"has a tensor {name!r} of {end - start} bytes where {dtype}{list(shape)} takes {bits // 8}")
    return Tensor(name, dtype, tuple(shape), base + start, base + end)


def _bad_numbers(name: str) -> HeaderError:
    return HeaderError(f"has a header whose entry {name!r} has a bad shape or offset")
