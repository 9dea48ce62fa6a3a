"""A partial download is completed: what it has is trusted or read back, the rest comes from the sources."""

from __future__ import annotations

import os
from collections.abc import Sequence

from blake3 import blake3

from packtrain.cache import Partial
from packtrain.flows.download import Limits, Source, download
from packtrain.model.manifest import Manifest
from packtrain.model.sourcing import missing_runs
from packtrain.ports import Clock, Reporter


def fetch(
    sources: Sequence[Source], manifest: Manifest, partial: Partial, limits: Limits, reporter: Reporter, clock: Clock
) -> int:
    """Completes ``partial``. Returns the bytes that came from the sources.

    Raises IntegrityError, naming the file, when no source gives the manifest's bytes; Unavailable when they keep
    failing, and then a later call continues.
    """
    if partial.doubtful:
        _recheck(manifest, partial, reporter)
    return download(
        sources,
        manifest,
        partial.finished,
        partial,
        what="fetching",
        limits=limits,
        reporter=reporter,
        clock=clock,
    )


def _recheck(manifest: Manifest, partial: Partial, reporter: Reporter) -> None:
    """Reads back the chunks that were written before a reboot; those that are right need not be fetched again."""
    skip = set(range(sum(len(file.chunks) for file in manifest.files))) - partial.doubtful
    runs = list(missing_runs(manifest, skip))
    reporter.begin("checking what an earlier download left", sum(run.length for run in runs))
    for run in runs:
        with partial.open(run.file.path) as descriptor:
            position = run.start
            for index, chunk in enumerate(run.chunks, start=run.first):
                if blake3(_pread(descriptor, chunk.length, position)).hexdigest() == chunk.blake3:
                    partial.finished.add(index)
                position += chunk.length
                reporter.advance(chunk.length)
    reporter.end()
    partial.settle_doubts()


def _pread(descriptor: int, length: int, position: int) -> bytes:
    pieces = []
    while length and (piece := os.pread(descriptor, length, position)):
        pieces.append(piece)
        position += len(piece)
        length -= len(piece)
    return b"".join(pieces)
