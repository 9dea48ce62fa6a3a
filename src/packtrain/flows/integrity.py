"""Whether bytes are what their manifest says: in a directory of this machine, or where a store holds them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from blake3 import blake3

from packtrain.errors import IntegrityError, NotFound, disk_error
from packtrain.flows.buffers import page_aligned
from packtrain.flows.download import BUFFER, Nowhere, StoreSource, damaged, download
from packtrain.flows.workers import Halt, run_all
from packtrain.model.manifest import FileEntry, Manifest
from packtrain.model.pacing import Limits
from packtrain.model.sourcing import Run
from packtrain.ports import Clock, Reporter, Store

THREADS = 8

_HERE = "This copy is damaged, not the store: remove it, and pull the version again."

_local = threading.local()


def check_directory(directory: Path, manifest: Manifest, reporter: Reporter) -> None:
    """Reads every file of a directory and checks every chunk. Raises IntegrityError naming the first bad file."""
    reporter.begin("verifying", manifest.size)
    try:
        run_all(
            lambda file, halt: _check_file(directory / file.path, file, reporter, halt),
            manifest.files,
            threads=min(os.cpu_count() or 1, THREADS),
            name="verify",
        )
    finally:
        reporter.end()


def check_stored(store: Store, prefix: str, manifest: Manifest, reporter: Reporter, clock: Clock) -> None:
    """Reads every file of a version from the store and checks every chunk. Raises IntegrityError."""
    source = StoreSource(store, prefix)
    download([source], manifest, set(), Nowhere(), what="verifying", limits=Limits(), reporter=reporter, clock=clock)


def find_damaged(store: Store, prefix: str, files: Sequence[FileEntry], reporter: Reporter) -> list[FileEntry]:
    """Reads files of a version from the store. Returns those that are not what the manifest says, or are gone."""
    if not files:
        return []
    runs = [Run.whole(file) for file in files if file.chunks]
    reporter.begin("checking what is there", sum(run.length for run in runs))
    try:
        found = run_all(
            lambda run, halt: None if _is_right(store, prefix, run, reporter.advance, halt) else run.file,
            sorted(runs, key=lambda run: -run.length),
            threads=THREADS,
            name="check",
        )
    finally:
        reporter.end()
    return [file for file in found if file is not None]


def is_whole(store: Store, prefix: str, file: FileEntry, halt: Halt) -> bool:
    """Reads one file of a version from the store: whether it is what the manifest says."""
    return holds(store, prefix, Run.whole(file), halt)


def holds(store: Store, prefix: str, run: Run, halt: Halt) -> bool:
    """Reads some chunks of a version from the store: whether they are what the manifest says."""
    return not run.chunks or _is_right(store, prefix, run, lambda _: None, halt)


def _is_right(store: Store, prefix: str, run: Run, advance: Callable[[int], None], halt: Halt) -> bool:
    try:
        _check_run(store, prefix, run, advance, halt)
    except (IntegrityError, NotFound):
        return False
    return True


def _check_file(path: Path, file: FileEntry, reporter: Reporter, halt: Halt) -> None:
    buffer = _buffer()
    try:
        with path.open("rb", buffering=0) as stream:
            for chunk in file.chunks:
                digest, left = blake3(), chunk.length
                while left:
                    halt.check()
                    count = stream.readinto(buffer[: min(left, len(buffer))])
                    _require(count > 0, file, str(path.parent), _HERE)
                    digest.update(buffer[:count])
                    left -= count
                    reporter.advance(count)
                _require(digest.hexdigest() == chunk.blake3, file, str(path.parent), _HERE)
            _require(not stream.read(1), file, str(path.parent), _HERE)
    except FileNotFoundError as error:
        raise IntegrityError(f"{path} is missing", hint=_HERE) from error
    except OSError as error:
        raise disk_error(error, f"could not read {path}") from error


def _check_run(store: Store, prefix: str, run: Run, advance: Callable[[int], None], halt: Halt) -> None:
    source = StoreSource(store, prefix)
    digest, received, chunks = blake3(), 0, iter(run.chunks)
    chunk = next(chunks)
    for piece in source.read(run.file.path, run.start, run.length, _buffer()):
        halt.check()
        view = piece
        while view:
            part = view[: chunk.length - received]
            digest.update(part)
            received += len(part)
            view = view[len(part) :]
            advance(len(part))
            if received == chunk.length:
                _require(digest.hexdigest() == chunk.blake3, run.file, source.name, source.remedy)
                digest, received, chunk = blake3(), 0, next(chunks, chunk)


def _require(condition: bool, file: FileEntry, where: str, remedy: str) -> None:
    if not condition:
        raise damaged(file.path, where, remedy)


def _buffer() -> memoryview:
    """This thread's own, made once."""
    if not hasattr(_local, "buffer"):
        _local.buffer = page_aligned(BUFFER)
    return _local.buffer  # type: ignore[no-any-return]
