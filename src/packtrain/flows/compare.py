"""What changed between two versions: from manifests, records, small documents and safetensors headers, no weights."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

from packtrain.flows.catalog import read_lineage
from packtrain.flows.diff import READERS, changed, read_stored
from packtrain.model import comparison
from packtrain.model.comparison import Comparison, Side
from packtrain.model.manifest import FileEntry
from packtrain.model.reference import Reference
from packtrain.model.version import ModelVersion
from packtrain.ports import Registry, Store

_MAX_DOCUMENT = 64 << 20  # bytes; the largest tokenizer.json in use has some 40 MB


def compare(store: Store, registry: Registry, before: Reference, after: Reference) -> Comparison:
    """Two versions, of one registered model or of two. Raises NotFound, IntegrityError."""
    return comparison.compare(*(_side(store, registry.read(each.name).state.resolve(each)) for each in (before, after)))


def _side(store: Store, version: ModelVersion) -> Side:
    stored = read_stored(store, version)
    documents = [file for file in comparison.wanted_documents(stored.manifest) if file.size <= _MAX_DOCUMENT]
    with ThreadPoolExecutor(READERS) as pool:
        contents = pool.map(lambda file: _read_whole(store, version, file), documents)
        return Side(
            stored=stored,
            lineage=read_lineage(store, version),
            documents={file.path: data for file, data in zip(documents, contents, strict=True)},
        )


def _read_whole(store: Store, version: ModelVersion, file: FileEntry) -> bytes:
    data = store.get(version.prefix + file.path)
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise changed(version, file)
    return data
