"""What changed between two versions: from manifests, records, small documents and safetensors headers, no weights."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import accumulate

from blake3 import blake3

from packtrain.errors import IntegrityError, Refused
from packtrain.flows.catalog import read_lineage
from packtrain.flows.pull import read_manifest
from packtrain.model import comparison
from packtrain.model.amount import size
from packtrain.model.comparison import Comparison, Side
from packtrain.model.manifest import Chunk, FileEntry, Manifest
from packtrain.model.reference import Reference
from packtrain.model.safetensors import MAX_HEADER, Header, HeaderError, header_length, parse_header
from packtrain.model.tensors import UNKNOWN, StoredTensor, decide
from packtrain.model.version import ModelVersion, how_to_mend
from packtrain.ports import Registry, Store

_READERS = 16
_BUFFER = 256 << 10  # bytes
_MAX_DOCUMENT = 64 << 20  # bytes; the largest tokenizer.json in use has some 40 MB


def compare(
    store: Store, registry: Registry, before: Reference, after: Reference, *, exact: bool = False
) -> Comparison:
    """Two versions, of one registered model or of two. With ``exact``, the small tensors that share chunks in which
    something changed are read, so that none stays unknown. Raises NotFound, IntegrityError."""
    sides = [_side(store, registry.read(each.name).state.resolve(each)) for each in (before, after)]
    found = comparison.compare(*sides)
    unknown = [each for each in found.tensors if each.state == UNKNOWN]
    if not exact or not unknown:
        return found
    was = _digests(store, sides[0], [each.before for each in unknown if each.before])
    now = _digests(store, sides[1], [each.after for each in unknown if each.after])
    return replace(found, tensors=decide(found.tensors, was, now))


def _digests(store: Store, side: Side, tensors: list[StoredTensor]) -> dict[str, str]:
    """The BLAKE3 digest of each tensor's bytes, which are read by whole chunks and verified."""
    by_path: dict[str, list[StoredTensor]] = {}
    for tensor in tensors:
        by_path.setdefault(tensor.path, []).append(tensor)
    files = [file for file in side.manifest.files if file.path in by_path]
    with ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(lambda file: _digests_in(store, side.version, file, by_path[file.path]), files)
        return {name: digest for each in found for name, digest in each.items()}


def _digests_in(store: Store, version: ModelVersion, file: FileEntry, tensors: list[StoredTensor]) -> dict[str, str]:
    starts = list(accumulate((chunk.length for chunk in file.chunks), initial=0))
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


def _side(store: Store, version: ModelVersion) -> Side:
    manifest = read_manifest(store, version)
    documents = [file for file in comparison.wanted_documents(manifest) if file.size <= _MAX_DOCUMENT]
    with ThreadPoolExecutor(_READERS) as pool:
        contents = pool.map(lambda file: _read_whole(store, version, file), documents)
        return Side(
            version=version,
            manifest=manifest,
            lineage=read_lineage(store, version),
            documents={file.path: data for file, data in zip(documents, contents, strict=True)},
            headers=read_headers(store, version, manifest),
        )


def read_headers(store: Store, version: ModelVersion, manifest: Manifest) -> dict[str, Header]:
    """The header of every safetensors file of a version, by ranges. Raises IntegrityError, Refused."""
    files = [file for file in manifest.files if file.path.endswith(".safetensors")]
    with ThreadPoolExecutor(_READERS) as pool:
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
    buffer = memoryview(bytearray(min(max(chunk.length, 64 << 10), _BUFFER)))
    pieces = store.read(version.prefix + file.path, start, chunk.length, buffer)
    data = b"".join(bytes(piece) for piece in pieces)
    if blake3(data).hexdigest() != chunk.blake3:
        raise _changed(version, file)
    return data


def _read_whole(store: Store, version: ModelVersion, file: FileEntry) -> bytes:
    data = store.get(version.prefix + file.path)
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise _changed(version, file)
    return data


def _changed(version: ModelVersion, file: FileEntry) -> IntegrityError:
    return IntegrityError(
        f"{file.path} of {version} is not what its manifest says: the bytes were changed or damaged",
        hint=how_to_mend(version.name),
    )
