"""What a node that has one version gets for another: from two manifests and safetensors headers, no weights."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import accumulate

from blake3 import blake3

from packtrain.errors import IntegrityError, Refused
from packtrain.flows.buffers import page_aligned
from packtrain.flows.fetch import read_manifest
from packtrain.model import delta
from packtrain.model.amount import size
from packtrain.model.delta import Delta, Stored
from packtrain.model.manifest import Chunk, FileEntry, Manifest
from packtrain.model.reference import Reference
from packtrain.model.safetensors import MAX_HEADER, Header, HeaderError, header_length, parse_header
from packtrain.model.tensors import UNKNOWN, StoredTensor, decide
from packtrain.model.version import ModelVersion, how_to_mend
from packtrain.ports import Registry, Store

READERS = 16
_BUFFER = 256 << 10  # bytes


def diff(store: Store, registry: Registry, before: Reference, after: Reference, *, exact: bool = False) -> Delta:
    """Two versions, of one registered model or of two. With ``exact``, the small tensors that share chunks in which
    something changed are read, so that none stays unknown. Raises NotFound, IntegrityError."""
    was, now = (read_stored(store, registry.read(each.name).state.resolve(each)) for each in (before, after))
    found = delta.between(was, now)
    unknown = [each for each in found.tensors if each.state == UNKNOWN]
    if not exact or not unknown:
        return found
    digests_before = _digests(store, was, [each.before for each in unknown if each.before])
    digests_after = _digests(store, now, [each.after for each in unknown if each.after])
    return replace(found, tensors=decide(found.tensors, digests_before, digests_after))


def read_stored(store: Store, version: ModelVersion) -> Stored:
    """Raises IntegrityError, Refused."""
    manifest = read_manifest(store, version)
    return Stored(version, manifest, read_headers(store, version, manifest))


def _digests(store: Store, side: Stored, tensors: list[StoredTensor]) -> dict[str, str]:
    """The BLAKE3 digest of each tensor's bytes, which are read by whole chunks and verified."""
    by_path: dict[str, list[StoredTensor]] = {}
    for tensor in tensors:
        by_path.setdefault(tensor.path, []).append(tensor)
    files = [file for file in side.manifest.files if file.path in by_path]
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(lambda file: _digests_in(store, side.version, file, by_path[file.path]), files)
        return {name: digest for each in found for name, digest in each.items()}


def _digests_in(store: Store, version: ModelVersion, file: FileEntry, tensors: list[StoredTensor]) -> dict[str, str]:
    starts = list(accumulate(file.chunks.lengths, initial=0))
    lying_in: dict[int, list[StoredTensor]] = {}
    for tensor in tensors:
        for index in tensor.chunks:
            lying_in.setdefault(index, []).append(tensor)
    hashes = {tensor.name: blake3() for tensor in tensors}
    for index, present in sorted(lying_in.items()):
        start, data = starts[index], _read_chunk(store, version, file, starts[index], file.chunks[index])
        for tensor in present:
            hashes[tensor.name].update(data[max(tensor.start - start, 0) : max(tensor.start + tensor.size - start, 0)])
    return {name: each.hexdigest() for name, each in hashes.items()}


def read_headers(store: Store, version: ModelVersion, manifest: Manifest) -> dict[str, Header]:
    """The header of every safetensors file of a version, by ranges. Raises IntegrityError, Refused."""
    files = [file for file in manifest.files if file.path.endswith(".safetensors")]
    with ThreadPoolExecutor(READERS) as pool:
        headers = pool.map(lambda file: _read_header(store, version, file), files)
        return {file.path: header for file, header in zip(files, headers, strict=True)}


def _read_header(store: Store, version: ModelVersion, file: FileEntry) -> Header:
    """By whole chunks, because only those can be verified: publish cuts the header as chunks of its own."""
    data, wanted = b"", 8
    try:
        for chunk in file.chunks:
            if len(data) >= wanted:
                break
            data += _read_chunk(store, version, file, len(data), chunk)
            wanted = header_length(data[:8], file.size) if len(data) >= 8 else wanted
        return parse_header(data[:wanted], file.size)
    except HeaderError as error:
        raise IntegrityError(f"{file.path} of {version} {error}") from error


def _read_chunk(store: Store, version: ModelVersion, file: FileEntry, start: int, chunk: Chunk) -> bytes:
    if chunk.length > MAX_HEADER:
        raise Refused(
            f"{file.path} of {version} has a chunk of {size(chunk.length)}, too large to be read for a comparison",
            hint="It was not published by Packtrain. Publish the model again with packtrain publish.",
        )
    buffer = page_aligned(min(max(chunk.length, 64 << 10), _BUFFER))
    pieces = store.read(version.prefix + file.path, start, chunk.length, buffer)
    data = b"".join(bytes(piece) for piece in pieces)
    if blake3(data).hexdigest() != chunk.blake3:
        raise changed(version, file)
    return data


def changed(version: ModelVersion, file: FileEntry) -> IntegrityError:
    return IntegrityError(
        f"{file.path} of {version} is not what its manifest says: the bytes were changed or damaged",
        hint=how_to_mend(version.name),
    )
